//! What containerd names for a stream, parsed: nothing, a path, or a URI.
//!
//! ```text
//! ""                          nothing: /dev/null
//! /path, fifo:///path         a FIFO that containerd made (or a file that is there: appended to)
//! file:///path                a file: made with its directories, appended to
//! binary:///program?key=value a log driver, started with the arguments `key value`
//! ```

use std::path::{Path, PathBuf};

use towline_runtime::{Error, Outcome, Result};

/// The longest path the kernel takes, and with it the longest that is looked at.
const LONGEST: usize = 4096;

/// Where a stream comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Null,
    /// Something that is there: a FIFO, or a file.
    Path(PathBuf),
    /// A file that is made where it is missing.
    File(PathBuf),
    /// A program that reads both output streams.
    Driver {
        /// Its file.
        program: PathBuf,
        /// Its arguments after its name.
        arguments: Vec<String>,
    },
}

impl Target {
    /// Parses what containerd sent for `stream`, which names it in errors.
    pub fn parse(stream: &str, text: &str) -> Result<Self> {
        let bad = |why: String| Error::new(Outcome::BadInput, format!("reading what {stream} is: {text:.200?}")).because(why);
        if text.len() > LONGEST {
            return Err(bad(format!("it is longer than {LONGEST} bytes")));
        }
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Path(absolute(text).map_err(bad)?)) };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') {
            return Err(bad("it has a fragment: a # in a name is written %23".into()));
        }
        let path = absolute(&decode(path, false).map_err(bad)?).map_err(bad)?;
        match scheme {
            "binary" => Ok(Self::Driver { program: path, arguments: arguments(query).map_err(bad)? }),
            "fifo" | "file" if !query.is_empty() => Err(bad(format!("{scheme} takes no parameters"))),
            "fifo" => Ok(Self::Path(path)),
            "file" => Ok(Self::File(path)),
            _ => Err(Error::new(Outcome::Unsupported, format!("reading what {stream} is: {text:.200?}"))
                .because(format!("there is no log scheme {scheme:?}"))
                .advise("use a FIFO, file:// or binary://")),
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match text {
        _ if text.contains('\0') => Err("there is a NUL byte in it".into()),
        _ if !Path::new(text).is_absolute() => Err(format!("{text:?} is no absolute path")),
        _ => Ok(PathBuf::from(text)),
    }
}

/// `a=b&c` is the arguments `a b c ""`: containerd hands both over, in whatever order.
fn arguments(query: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value] {
            let part = decode(part, true)?;
            if part.contains('\0') {
                return Err("there is a NUL byte in an argument".into());
            }
            all.push(part);
        }
    }
    Ok(all)
}

/// Undoes percent encoding (RFC 3986), in a query also `+` for a space.
fn decode(text: &str, query: bool) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => {
                let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
                let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                out.push(code.ok_or_else(|| format!("a % without two digits in {text:?}"))?);
                rest = &tail[2..];
            }
            b'+' if query => out.push(b' '),
            _ => out.push(*first),
        }
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_streams() {
        let driver = |program: &str, arguments: &[&str]| Target::Driver {
            program: program.into(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        for (text, wanted) in [
            ("", Target::Null),
            ("/run/x-stdout", Target::Path("/run/x-stdout".into())),
            ("/run/100%", Target::Path("/run/100%".into())),
            ("fifo:///run/x", Target::Path("/run/x".into())),
            ("file:///var/log/a%20b", Target::File("/var/log/a b".into())),
            ("binary:///bin/log", driver("/bin/log", &[])),
            ("binary:///bin/log?a=b%26&c&d=e+f", driver("/bin/log", &["a", "b&", "c", "", "d", "e f"])),
        ] {
            assert_eq!(Target::parse("stdout", text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn bad_names_say_why() {
        let long = format!("/{}", "x".repeat(LONGEST));
        for (text, outcome, why) in [
            ("run/x", Outcome::BadInput, "absolute"),
            ("file://host/x", Outcome::BadInput, "absolute"),
            ("file://", Outcome::BadInput, "absolute"),
            ("file:///x?mode=1", Outcome::BadInput, "parameters"),
            ("file:///x#y", Outcome::BadInput, "fragment"),
            ("binary:///x?a=%0", Outcome::BadInput, "two digits"),
            ("binary:///x?a=%+1", Outcome::BadInput, "two digits"),
            ("binary:///x?a=%00", Outcome::BadInput, "NUL"),
            ("binary:///%ff", Outcome::BadInput, "UTF-8"),
            ("/run/\0", Outcome::BadInput, "NUL"),
            ("npipe:////./pipe/x", Outcome::Unsupported, "npipe"),
            (&long, Outcome::BadInput, "longer"),
        ] {
            let error = Target::parse("stdout", text).unwrap_err();
            assert_eq!(error.outcome(), outcome, "{text:.50}");
            assert!(error.one_line().contains(why), "{}", error.one_line());
        }
    }
}
