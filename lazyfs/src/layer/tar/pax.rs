//! The records of a pax header: `LENGTH KEY=VALUE\n`, LENGTH in decimal and counting itself.

use std::collections::BTreeMap;

use crate::error::Outcome;

/// The records that matter for a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax<'a> {
    pub(super) path: Option<&'a [u8]>,
    pub(super) linkpath: Option<&'a [u8]>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// As `mtime`.
    pub(super) atime: Option<(i64, u32)>,
    /// As `mtime`.
    pub(super) ctime: Option<(i64, u32)>,
    /// `SCHILY.xattr.NAME`, as star and Go write them.
    pub(super) xattrs: BTreeMap<&'a [u8], &'a [u8]>,
    /// Whether the content is one of GNU tar's sparse formats.
    pub(super) sparse: bool,
}

impl<'a> Pax<'a> {
    pub(super) fn parse(mut records: &'a [u8]) -> Result<Self, (Outcome, String)> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let bad = |text: &str| (Outcome::BadInput, format!("its pax header {text}"));
            let (key, value, rest) = record(records).ok_or_else(|| bad("has a malformed record"))?;
            records = rest;
            let wrong = || bad(&format!("has a malformed `{}`", key.escape_ascii()));
            // An empty value takes an earlier record back; only attributes may be empty.
            match (key, value) {
                (b"path", _) => pax.path = Some(value).filter(|value| !value.is_empty()),
                (b"linkpath", _) => pax.linkpath = Some(value).filter(|value| !value.is_empty()),
                (b"size", b"") => pax.size = None,
                (b"size", _) => {
                    let size = decimal(value).and_then(|size| u64::try_from(size).ok()).filter(|&size| size < 1 << 62);
                    pax.size = Some(size.ok_or_else(wrong)?);
                }
                (b"uid", b"") => pax.uid = None,
                (b"gid", b"") => pax.gid = None,
                (b"mtime", b"") => pax.mtime = None,
                (b"atime", b"") => pax.atime = None,
                (b"ctime", b"") => pax.ctime = None,
                (b"uid", _) => pax.uid = Some(decimal(value).ok_or_else(wrong)?),
                (b"gid", _) => pax.gid = Some(decimal(value).ok_or_else(wrong)?),
                (b"mtime", _) => pax.mtime = Some(time(value).ok_or_else(wrong)?),
                (b"atime", _) => pax.atime = Some(time(value).ok_or_else(wrong)?),
                (b"ctime", _) => pax.ctime = Some(time(value).ok_or_else(wrong)?),
                _ => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => drop(pax.xattrs.insert(name, value)),
                    None => pax.sparse |= key.starts_with(b"GNU.sparse."),
                },
            }
        }
        Ok(pax)
    }
}

/// Takes a record off the front: key, value and what follows.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(&records[..space])?).ok()?;
    let (record, rest) = records.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    (equals > 0).then_some((&record[..equals], &record[equals + 1..], rest))
}

fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })?;
    Some(if negative { -value } else { value })
}

/// Seconds with decimals; more than nine are cut off.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let dot = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let seconds = decimal(&text[..dot])?;
    let decimals = text.get(dot + 1..).unwrap_or_default();
    if !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| decimals.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + digit(at));
    match text.starts_with(b"-") && nanos > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tar::compose;

    fn written(key: &str, value: &str) -> Vec<u8> {
        compose::record(key.as_bytes(), value.as_bytes())
    }

    #[test]
    fn records_are_read_and_empty_values_take_back() {
        let records: Vec<u8> = [
            ("path", "a=b"),
            ("path", "new"),
            ("mtime", "981173106.7890123456"),
            ("SCHILY.xattr.u", "\n"),
            ("SCHILY.xattr.empty", "x"),
            ("SCHILY.xattr.empty", ""),
            ("size", "10"),
            ("size", ""),
        ]
        .iter()
        .flat_map(|(key, value)| written(key, value))
        .collect();
        let pax = Pax::parse(&records).unwrap();
        assert_eq!(pax.path, Some(&b"new"[..]));
        assert_eq!(pax.mtime, Some((981_173_106, 789_012_345)));
        assert_eq!(pax.xattrs, BTreeMap::from([(&b"u"[..], &b"\n"[..]), (b"empty", b"")]));
        assert_eq!((pax.size, pax.sparse), (None, false));
        assert!(Pax::parse(&written("GNU.sparse.major", "1")).unwrap().sparse);
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"7."), Some((7, 0)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for records in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=b",
            b"7 a=b\n",
            b"6 a b\n",
            b"5 =b\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
            b"0 a=b\n",
            b"1 ",
            b"11 size=-1\n",
            b"11 size=1x\n",
            b"28 size=9223372036854775807\n",
            b"12 mtime=1.x\n",
            b"10 mtime=\x31\xff\n",
            b"9 uid=.\n",
        ] {
            assert!(Pax::parse(records).is_err(), "{}", records.escape_ascii());
        }
    }
}
