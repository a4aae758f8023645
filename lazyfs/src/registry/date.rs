//! Times in HTTP headers (RFC 9110 section 5.6.7).

use std::time::Duration;

use crate::layer::rfc3339;

/// The longest time that is believed when a server asks to be left alone.
const LONGEST: Duration = Duration::from_secs(3600);
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since the epoch of `Sun, 06 Nov 1994 08:49:37 GMT`. The two forms that RFC 9110 calls obsolete are not read.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.split(' ');
    let mut word = || words.next();
    let (day, month, year, time, zone) = (word()?, word()?, word()?, word()?, word()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    if zone != "GMT" || day.len() != 2 || year.len() != 4 || time.len() != 8 {
        return None;
    }
    rfc3339::parse(&format!("{year}-{month:02}-{day}T{time}Z")).map(|(seconds, _)| seconds)
}

/// How long a `Retry-After` asks to wait, when the server's clock shows `now`. Without that only seconds are understood.
pub(super) fn wait(text: &str, now: Option<i64>) -> Option<Duration> {
    let text = text.trim();
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(parse(text)?.saturating_sub(now?).max(0)).ok()?,
    };
    Some(Duration::from_secs(seconds).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_times() {
        let now = parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(now, 784_111_777);
        for (text, wanted) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("99999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("Sun, 06 Nov 2094 08:49:07 GMT", Some(3600)),
            ("Sun, 31 Feb 1994 08:49:07 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("-7", None),
            ("soon", None),
            ("", None),
            ("x, a b c d e", None),
        ] {
            assert_eq!(wait(text, Some(now)).map(|w| w.as_secs()), wanted, "{text}");
        }
        assert_eq!(wait("7", None), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 2094 08:49:07 GMT", None), None, "our own clock is not asked");
    }
}
