//! Times as Go writes them into JSON: RFC 3339 with up to nine decimals and a zone.

/// Seconds since the epoch and nanoseconds, `None` where the text is not a time.
pub(crate) fn parse(text: &str) -> Option<(i64, u32)> {
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

/// The time as Go writes it; `None` outside of the years 0 to 9999.
pub(super) fn format((seconds, nanos): (i64, u32)) -> Option<String> {
    if !(-62_167_219_200..=253_402_300_799).contains(&seconds) {
        return None;
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Never too late, and at most a few steps too early: a year has 366 days or one less.
    let mut year = 1970 + if days < 0 { days.div_euclid(365) } else { days / 366 };
    while days_from_epoch(year + 1, 1, 1) <= days {
        year += (days - days_from_epoch(year + 1, 1, 1)) / 366 + 1;
    }
    let mut day = days - days_from_epoch(year, 1, 1);
    let mut month = 1;
    while day >= days_in(year, month) {
        day -= days_in(year, month);
        month += 1;
    }
    let decimals = match nanos {
        0 => String::new(),
        _ => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}{decimals}Z", day + 1))
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
    use super::{format, parse};

    #[test]
    fn what_is_written_is_read() {
        for time in [
            (0, 0),
            (1, 1),
            (-1, 999_999_999),
            (951_782_399, 100),
            (951_782_400, 0),
            (1_709_251_199, 5),
            (-62_135_596_800, 0),
            (-62_167_219_200, 0),
            (253_402_300_799, 999_999_999),
        ] {
            let text = format(time).unwrap();
            assert_eq!(parse(&text), Some(time), "{text}");
        }
        for day in -800_000..800_000 {
            let time = (day * 86_400 / 2 + 17, 0);
            assert_eq!(parse(&format(time).unwrap()), Some(time));
        }
        assert_eq!(format((981_173_106, 789_000_000)).unwrap(), "2001-02-03T04:05:06.789Z");
        for seconds in [-62_167_219_201, 253_402_300_800, i64::MIN, i64::MAX] {
            assert_eq!(format((seconds, 0)), None, "{seconds}");
        }
    }

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
