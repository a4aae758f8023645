//! Points in time as logs and tables show them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since the epoch, now.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// RFC 3339 in UTC with nine digits of a second: `2026-02-28T23:59:59.000000001Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:09}Z", since.subsec_nanos())
}

/// Parses a point in time: RFC 3339 (or its beginning: a date, or one with a time, in UTC), seconds since the epoch, or a length of time before
/// `now` such as `90s`, `10m`, `2h` or `1h30m`. Says what is wrong with it.
pub fn parse(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let bad = || "it is no point in time such as 2026-02-28T23:59:59Z, 1767225599 or 10m".to_owned();
    if let Some(length) = length(text) {
        return Ok(now.checked_sub(length).unwrap_or(UNIX_EPOCH));
    }
    if let Some((whole, part)) = seconds(text) {
        return UNIX_EPOCH.checked_add(Duration::new(whole, part)).ok_or_else(bad);
    }
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let (clock, offset) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) => (&clock[..at], zone(&clock[at..]).ok_or_else(bad)?),
        None => (clock, 0),
    };
    let [year, month, day] = numbers(date, '-').ok_or_else(bad)?;
    let (clock, part) = clock.split_once('.').map_or((clock, "0"), |(clock, part)| (clock, part));
    let [hour, minute, second] = numbers(clock, ':').ok_or_else(bad)?;
    let (_, nanoseconds) = seconds(&format!("0.{part}")).ok_or_else(bad)?;
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 60 {
        return Err(bad());
    }
    let days = (0..)
        .find(|days| civil(*days) >= (year, month, day))
        .filter(|days| civil(*days) == (year, month, day))
        .ok_or_else(bad)?;
    let since = days * 86_400 + hour * 3600 + minute * 60 + second;
    let since = since.checked_add_signed(-offset).ok_or_else(bad)?;
    Ok(UNIX_EPOCH + Duration::new(since, nanoseconds))
}

/// A length of time with units.
fn length(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = match after.chars().next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &after[1..];
    }
    (!text.is_empty()).then_some(Duration::from_secs(total))
}

/// A number of seconds, with at most nine digits behind the point.
fn seconds(text: &str) -> Option<(u64, u32)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    Some((whole.parse().ok()?, format!("{part:0<9}").parse().ok()?))
}

/// Three numbers.
fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut all = text.split(between).map(|number| number.parse().ok().filter(|_| number.bytes().all(|c| c.is_ascii_digit())));
    let three = [all.next()??, all.next()??, all.next()??];
    all.next().is_none().then_some(three)
}

/// Seconds that a zone is ahead.
fn zone(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = text.strip_prefix('+').map(|rest| (1, rest)).or_else(|| Some((-1, text.strip_prefix('-')?)))?;
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok()?);
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 3600 + minutes * 60))
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const DAYS_IN_ERA: u64 = 146_097; // 400 years
    let days = days + DAYS_TO_1970;
    let (era, of_era) = (days / DAYS_IN_ERA, days % DAYS_IN_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// How long ago `then` (seconds since the epoch) was, for people.
pub fn ago(then: u64) -> String {
    format!("{} ago", span(Duration::from_secs(now().saturating_sub(then))))
}

/// A length of time in its largest whole unit.
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (count, unit) = match seconds {
        0..=59 => (seconds, "second"),
        60..=3599 => (seconds / 60, "minute"),
        3600..=86_399 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (951_868_800, "2000-03-01T00:00:00.000000007Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 7)), text);
        }
    }

    #[test]
    fn points_in_time_as_users_write_them() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        for (text, shown) in [
            ("2026-02-28T23:59:59Z", "2026-02-28T23:59:59.000000000Z"),
            ("2024-02-29", "2024-02-29T00:00:00.000000000Z"),
            ("2026-02-28T23:59:59.5+01:30", "2026-02-28T22:29:59.500000000Z"),
            ("2026-02-28 23:59:59-01:00", "2026-03-01T00:59:59.000000000Z"),
            ("1767225599.25", "2025-12-31T23:59:59.250000000Z"),
            ("10m", "1970-01-01T02:36:40.000000000Z"),
            ("1h30m", "1970-01-01T01:16:40.000000000Z"),
            ("999999h", "1970-01-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(parse(text, now).unwrap()), shown, "{text}");
        }
        for bad in [
            "",
            "x",
            "-1",
            "2026-02-30",
            "2026-13-01",
            "2026-01-01T24:00:00Z",
            "1969-01-01",
            "2026-01-01T00:00",
            "5y",
            "99999999999999999999m",
        ] {
            assert!(parse(bad, now).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn spans() {
        for (seconds, text) in [(0, "0 seconds"), (1, "1 second"), (119, "1 minute"), (7200, "2 hours"), (86_400, "1 day")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
