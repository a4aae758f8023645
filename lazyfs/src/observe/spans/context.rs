//! Which trace a span belongs to, as programs hand it on: a `traceparent` (W3C Trace Context, level 1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A span, seen from those that it caused. As text, `00-TRACE-SPAN-FLAGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Context {
    /// The trace; not zero.
    pub trace: u128,
    /// The span; not zero.
    pub span: u64,
    /// Whether spans of this trace are recorded.
    pub sampled: bool,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for Context {
    type Err = String;

    /// Section 3.2 of the recommendation: later versions may have more fields, which are passed over.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{why}; it has to be 00-TRACE-SPAN-FLAGS in hexadecimal digits of lower case");
        let mut fields = text.split('-');
        let mut field = |digits: usize, name: &str| {
            let field = fields.next().unwrap_or_default();
            let is_hex = field.len() == digits && field.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
            match u128::from_str_radix(field, 16) {
                Ok(value) if is_hex => Ok(value),
                _ => Err(bad(&format!("the {name} has not {digits} digits"))),
            }
        };
        let (version, trace) = (field(2, "version")?, field(32, "trace")?);
        let (span, flags) = (field(16, "span")?, field(2, "flags")?);
        let more = fields.next().is_some();
        match (version, more) {
            (0xff, _) => Err(bad("version ff is forbidden")),
            (0, true) => Err(bad("it has more than four fields")),
            _ if trace == 0 || span == 0 => Err(bad("trace and span must not be zero")),
            _ => {
                let span = u64::try_from(span).map_err(|e| bad(&e.to_string()))?;
                Ok(Self { trace, span, sampled: flags & 1 == 1 })
            }
        }
    }
}

impl From<Context> for String {
    fn from(context: Context) -> Self {
        context.to_string()
    }
}

impl TryFrom<String> for Context {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn contexts_are_read_and_written() {
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("03", true), ("ff", true)] {
            let context: Context = format!("00-{TRACE}-{SPAN}-{flags}").parse().unwrap();
            assert_eq!((context.trace, context.sampled), (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, sampled));
            assert_eq!(context.to_string(), format!("00-{TRACE}-{SPAN}-0{}", u8::from(sampled)));
            let json = serde_json::to_string(&context).unwrap();
            assert_eq!(serde_json::from_str::<Context>(&json).unwrap(), context);
        }
        assert!(format!("cc-{TRACE}-{SPAN}-01-more").parse::<Context>().is_ok_and(|later| later.sampled));
    }

    #[test]
    fn bad_contexts_are_refused() {
        let (upper, zeros) = (TRACE.to_uppercase(), "0".repeat(32));
        for text in [
            "".to_owned(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", "é".repeat(16)),
        ] {
            assert!(text.parse::<Context>().is_err(), "{text}");
        }
    }
}
