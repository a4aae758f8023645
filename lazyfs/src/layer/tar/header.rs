//! One header block of a tar.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// What a header says, and later its extensions.
#[derive(Debug)]
pub(in crate::layer) struct Header {
    pub(in crate::layer) name: Vec<u8>,
    pub(in crate::layer) mode: i64,
    pub(in crate::layer) uid: i64,
    pub(in crate::layer) gid: i64,
    pub(in crate::layer) size: u64,
    /// Seconds and nanoseconds.
    pub(in crate::layer) mtime: (i64, u32),
    /// Time of the last access, where the tar has one.
    pub(in crate::layer) atime: Option<(i64, u32)>,
    /// Time of the last change of the inode, where the tar has one.
    pub(in crate::layer) ctime: Option<(i64, u32)>,
    /// `typeflag`.
    pub(in crate::layer) kind: u8,
    pub(in crate::layer) link: Vec<u8>,
    /// Major, minor.
    pub(in crate::layer) device: (i64, i64),
    pub(in crate::layer) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads a header. The error names the field and says what is wrong with it.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, String> {
    check_sum(block)?;
    let field = |name: &str, start: usize, len: usize| {
        number(&block[start..start + len]).ok_or_else(|| format!("field `{name}` is not a number"))
    };
    let size = field("size", 124, 12)?;
    let size = u64::try_from(size).ok().filter(|&size| size < 1 << 62).ok_or_else(|| format!("field `size` is {size}"))?;
    // POSIX and GNU headers have devices; only POSIX has a prefix, and star keeps times behind a shorter one.
    let (is_posix, is_gnu) = (&block[257..263] == b"ustar\0", &block[257..265] == b"ustar  \0");
    let prefix: &[u8] = match (is_posix, &block[508..512] == b"tar\0") {
        (true, true) => text(&block[345..345 + 131]),
        (true, false) => text(&block[345..345 + 155]),
        (false, _) => b"",
    };
    let mut name = text(&block[..100]).to_vec();
    if !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    let device = match is_posix || is_gnu {
        true => (field("devmajor", 329, 8)?, field("devminor", 337, 8)?),
        false => (0, 0),
    };
    // Of the formats that have these times, Go reads only GNU's, and passes over what is none: they tell nothing that matters.
    let time = |start: usize| match is_gnu && block[start] != 0 {
        true => number(&block[start..start + 12]).map(|seconds| (seconds, 0)),
        false => None,
    };
    Ok(Header {
        name,
        atime: time(345),
        ctime: time(357),
        mode: field("mode", 100, 8)?,
        uid: field("uid", 108, 8)?,
        gid: field("gid", 116, 8)?,
        size,
        mtime: (field("mtime", 136, 12)?, 0),
        kind: block[156],
        link: text(&block[157..257]).to_vec(),
        device,
        xattrs: BTreeMap::new(),
    })
}

/// The name of a header that may be damaged, for messages.
pub(super) fn raw_name(block: &[u8; BLOCK]) -> &[u8] {
    text(&block[..100])
}

/// What stands before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), String> {
    let stored = number(&block[148..156]).ok_or("field `chksum` is not a number")?;
    let counted = || block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let sum: i64 = counted().map(i64::from).sum();
    // Some old programs took the bytes for signed.
    let signed_sum: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
    match stored == sum || stored == signed_sum {
        true => Ok(()),
        false => Err(format!("field `chksum` is {stored}, but the header sums up to {sum}: it is not a tar, or damaged")),
    }
}

/// A number in octal digits, or in binary where the first bit is set (GNU). An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, big-endian; the mark itself is not part of the number, the second bit is its sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
        let start = if negative { -1i128 } else { 0 };
        let value = [first]
            .iter()
            .chain(&field[1..])
            .try_fold(start, |value, &byte| value.checked_mul(256).map(|value| value | i128::from(byte)))?;
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&byte| byte == 0 || byte == b' ').unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|&byte| byte == 0 || byte == b' ') {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_octal_and_binary() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", None),
            (b"0000689\0", None),
            (b"-000001\0", None),
            (b"644\0 644", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
