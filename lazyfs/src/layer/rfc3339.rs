//! Times as Go writes them into JSON: RFC 3339 with up to nine decimals and a zone.

/// Seconds since the epoch and nanoseconds, `None` where the text is not a time.
pub(super) fn parse(text: &str) -> Option<(i64, u32)> {
    let bytes = text.as_bytes();
    let (fixed, rest) = bytes.split_at_checked(19)?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|&(at, separator)| fixed[at].eq_ignore_ascii_case(&separator)) {
        return None;
    }
    let [year, month, day] = [number(&fixed[..4])?, number(&fixed[5..7])?, number(&fixed[8..10])?];
    let [hour, minute, second] = [number(&fixed[11..13])?, number(&fixed[14..16])?, number(&fixed[17..])?];
    if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, zone) = decimals(rest)?;
    let seconds = days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - zone_offset(zone)?, nanos))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
}

/// Takes `.789` off the front: nanoseconds and what follows.
fn decimals(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some(rest) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let count = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    if !(1..=9).contains(&count) {
        return None;
    }
    let scale = 10u32.pow(9 - u32::try_from(count).ok()?);
    Some((u32::try_from(number(&rest[..count])?).ok()? * scale, &rest[count..]))
}

/// Seconds that a zone is ahead of UTC.
fn zone_offset(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            let seconds = (hours <= 23 && minutes <= 59).then_some(hours * 3600 + minutes * 60)?;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, proleptic Gregorian calendar.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let years = year - 1;
    let before_year = years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400) - 719_162;
    before_year + (1..month).map(|m| days_in(year, m)).sum::<i64>() + day - 1
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn times_of_all_shapes() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("1969-01-02T00:00:00Z", (-31_449_600, 0)),
            ("2001-02-03T04:05:06.789012345Z", (981_173_106, 789_012_345)),
            ("2001-02-03T05:35:06.5+01:30", (981_173_106, 500_000_000)),
            ("2024-02-29T23:59:59-08:00", (1_709_279_999, 0)),
            ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
            ("9999-12-31T23:59:59Z", (253_402_300_799, 0)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "2001-02-03",
            "2001-02-03T04:05:06",
            "2001-02-30T04:05:06Z",
            "2001-13-03T04:05:06Z",
            "2001-02-03T24:05:06Z",
            "2001-02-03T04:05:06.Z",
            "2001-02-03T04:05:06.1234567890Z",
            "2001-02-03T04:05:06+1:00",
            "2001-02-03T04:05:06Zx",
            "+001-02-03T04:05:06Z",
            "2001-02-03Tä4:05:0Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
