//! Heads of tar entries, written: the counterpart of [`super::header`] and [`super::pax`].
//!
//! POSIX format. What a header has no room for stands in a pax header before it; numbers that are too large for octal digits are
//! written in base 256, as GNU tar and everybody else does. The same entry makes the same bytes.

use super::header::BLOCK;

/// Longest name or link target that has room in a header, bytes.
const NAME: usize = 100;

/// What an entry is to say of itself.
#[derive(Clone, Debug)]
pub struct Composed<'a> {
    /// Its name; that of a directory ends with `/`.
    pub name: &'a [u8],
    /// `typeflag`.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content that follow.
    pub size: u64,
    /// Time of the last change: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Where a link leads.
    pub link: &'a [u8],
    /// Major, minor.
    pub device: Option<(u32, u32)>,
    /// Whole names and values.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Composed<'a> {
    /// A regular file with fixed owner and time, so that the same content makes the same archive.
    pub fn file(name: &'a str, mode: u32, size: u64) -> Self {
        let name = name.as_bytes();
        Self { name, kind: b'0', mode, uid: 0, gid: 0, size, mtime: (0, 0), link: b"", device: None, xattrs: &[] }
    }

    /// The header alone.
    ///
    /// # Panics
    /// Where it needs a pax header, which only [`Self::head`] writes.
    pub fn header(&self) -> [u8; BLOCK] {
        assert!(self.records().is_empty(), "there is no room in one header");
        self.block()
    }

    /// Everything before the content.
    pub fn head(&self) -> Vec<u8> {
        let records = self.records();
        if records.is_empty() {
            return self.block().to_vec();
        }
        let base = self.name.strip_suffix(b"/").unwrap_or(self.name).rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let name = [b"PaxHeaders/", &base[..base.len().min(NAME - 11)]].concat();
        let extension = Composed {
            name: &name,
            kind: b'x',
            mode: 0o644,
            size: records.len() as u64,
            mtime: (0, 0),
            link: b"",
            device: None,
            xattrs: &[],
            ..*self
        };
        let mut head = extension.block().to_vec();
        head.extend(records);
        head.resize(head.len().next_multiple_of(BLOCK), 0);
        head.extend(self.block());
        head
    }

    /// What the header has no room for.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in [(&b"path"[..], self.name), (b"linkpath", self.link)] {
            if value.len() > NAME {
                records.extend(record(key, value));
            }
        }
        let (seconds, nanos) = self.mtime;
        if nanos > 0 || seconds < 0 {
            records.extend(record(b"mtime", time(seconds, nanos).as_bytes()));
        }
        for (name, value) in self.xattrs {
            records.extend(record(&[b"SCHILY.xattr.", &name[..]].concat(), value));
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |start: usize, bytes: &[u8]| block[start..start + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(NAME)]);
        put(100, &number::<8>(self.mode.into()));
        put(108, &number::<8>(self.uid.into()));
        put(116, &number::<8>(self.gid.into()));
        put(124, &number::<12>(self.size));
        put(136, &number::<12>(u64::try_from(self.mtime.0).unwrap_or(0)));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(NAME)]);
        put(257, b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            put(329, &number::<8>(major.into()));
            put(337, &number::<8>(minor.into()));
        }
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// A field of `N` bytes: octal digits, or base 256.
fn number<const N: usize>(value: u64) -> [u8; N] {
    let digits = format!("{value:0width$o}", width = N - 1);
    let mut field = [0; N];
    if digits.len() < N {
        field[..N - 1].copy_from_slice(digits.as_bytes());
    } else {
        let bytes = value.to_be_bytes();
        let len = bytes.len().min(N);
        field[N - len..].copy_from_slice(&bytes[bytes.len() - len..]);
        field[0] |= 0x80;
    }
    field
}

/// A record of a pax header.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let len =
        (rest.len()..).find(|len| len.to_string().len() + rest.len() == *len).expect("lengths grow faster than their digits");
    [len.to_string().as_bytes(), &rest].concat()
}

/// Seconds with decimals; the nanoseconds count upwards also before 1970.
fn time(seconds: i64, nanos: u32) -> String {
    let (sign, whole, nanos) = match seconds < 0 && nanos > 0 {
        true => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
        false => (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs(), nanos),
    };
    match nanos {
        0 => format!("{sign}{whole}"),
        nanos => format!("{sign}{whole}.{}", format!("{nanos:09}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tar::split::Split;

    #[test]
    fn what_is_composed_is_read_as_it_was() {
        let long = [b"d/".repeat(100), b"f".to_vec()].concat();
        let xattrs = [(b"user.a".to_vec(), b"1\n=\0".to_vec()), (b"security.capability".to_vec(), vec![0xff; 20])];
        let plain = Composed::file("a", 0o644, 0);
        for (entry, has_pax) in [
            (plain.clone(), false),
            (Composed { mtime: (1_700_000_000, 0), uid: 0o7_777_777, ..plain.clone() }, false),
            (Composed { name: &long, ..plain.clone() }, true),
            (Composed { kind: b'2', link: &long, ..plain.clone() }, true),
            (Composed { kind: b'3', device: Some((4095, 1_048_575)), ..plain.clone() }, false),
            (Composed { uid: u32::MAX, gid: 0o10_000_000, ..plain.clone() }, false),
            (Composed { mtime: (1, 500_000_000), ..plain.clone() }, true),
            (Composed { mtime: (-2, 500_000_000), ..plain.clone() }, true),
            (Composed { mtime: (-1, 500_000_000), ..plain.clone() }, true),
            (Composed { mtime: (-7, 0), ..plain.clone() }, true),
            (Composed { mtime: (1 << 34, 0), ..plain.clone() }, false),
            (Composed { xattrs: &xattrs, ..plain.clone() }, true),
        ] {
            let head = entry.head();
            assert_eq!(head.len() > BLOCK, has_pax, "{entry:?}");
            let mut split = Split::new(&head[..]);
            let read = split.next_head().unwrap().unwrap().header;
            assert_eq!((&read.name[..], &read.link[..], read.kind), (entry.name, entry.link, entry.kind), "{entry:?}");
            let numbers = [entry.mode, entry.uid, entry.gid].map(i64::from);
            assert_eq!(([read.mode, read.uid, read.gid], read.mtime), (numbers, entry.mtime), "{entry:?}");
            let device = entry.device.map_or((0, 0), |(major, minor)| (major.into(), minor.into()));
            assert_eq!(read.device, device, "{entry:?}");
            assert_eq!(read.xattrs.into_iter().collect::<Vec<_>>().len(), entry.xattrs.len());
        }
    }

    #[test]
    fn sizes_beyond_the_octal_digits_are_read_back() {
        for size in [7, (1 << 33) - 1, 1 << 33, 1 << 61] {
            assert_eq!(super::super::header::parse(&Composed::file("blobs/x", 0o644, size).header()).unwrap().size, size);
        }
    }
}
