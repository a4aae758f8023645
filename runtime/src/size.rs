//! Sizes on the command line: bytes with an optional binary suffix, as runc takes them.

use crate::error::{Error, Outcome, Result};

/// A number of bytes: `1048576`, `1024k`, `1m`, `1 MiB`, `0.5g`; suffixes b, k, m, g, t, p with an optional `b` or `ib`, in any
/// case, each 1024 times the one before. `-1` is "unlimited".
pub fn parse(text: &str) -> Result<i64> {
    let bad = || {
        Error::new(Outcome::BadInput, format!("reading the size {text:?}"))
            .because("it is a number of bytes with an optional suffix b, k, m, g, t or p, or -1 for unlimited")
    };
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
    let unit = match suffix.as_str() {
        "" | "b" => 0,
        _ => {
            let (letter, rest) = suffix.split_at_checked(1).ok_or_else(bad)?;
            let power = "kmgtp".find(letter).ok_or_else(bad)? + 1;
            ["", "b", "ib"].contains(&rest).then_some(power).ok_or_else(bad)?
        }
    };
    let value: f64 = number.parse().map_err(|_| bad())?;
    let bytes = value * 1024f64.powi(i32::try_from(unit).map_err(|_| bad())?);
    // 2^63 is the first f64 that does not fit.
    if bytes < 9_223_372_036_854_775_808.0 { Ok(bytes as i64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_runc_takes_them() {
        let cases = [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("1k", 1024),
            ("1KiB", 1024),
            ("32m", 33_554_432),
            ("32MB", 33_554_432),
            ("1.5g", 1_610_612_736),
            ("2 G", 2_147_483_648),
            ("7b", 7),
            ("1t", 1 << 40),
            ("1p", 1 << 50),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for text in
            ["", "m", "-2", "+1", "1x", "1.5x", "1mm", "1mib2", "1e3", "nan", "inf", "9999999p", "1  m", "é", "1é", "1.2.3"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
