//! The fields of our own binary files: little-endian, fixed width, and a header that every such file begins with.
//!
//! ```text
//! 0   magic         8 bytes
//! 8   version       u32   of that kind of file; a change that old readers cannot skip gets a bit in `incompatible` or a new version
//! 12  header length u32   where the content begins
//! 16  compatible    u64   features a reader may ignore
//! 24  incompatible  u64   features a reader must know
//! 32  file length   u64   to tell a truncated file at once
//! ```

/// Length of the header that all files share.
pub(crate) const HEADER: usize = 40;

/// Reads fields off the front of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next `len` bytes; `None` where there are not as many.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Begins a file of this version whose header has `extra` bytes behind the shared fields.
pub(crate) fn begin(magic: [u8; 8], version: u32, extra: usize) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(magic);
    file.extend(version.to_le_bytes());
    file.extend(u32::try_from(HEADER + extra).expect("headers are short").to_le_bytes());
    file.extend([0; HEADER - 16]);
    file
}

/// Completes a file that [`begin`] began: enters its length.
pub(crate) fn end(mut file: Vec<u8>) -> Vec<u8> {
    let length = file.len() as u64;
    enter_length(&mut file, length);
    file
}

/// Enters the length of the whole file into its header.
pub(crate) fn enter_length(header: &mut [u8], length: u64) {
    header[32..HEADER].copy_from_slice(&length.to_le_bytes());
}

/// Checks the shared header of `file` and yields what is behind it: the rest of the header, `extra` bytes, and the content.
/// `name` is what such a file is called in messages.
pub(crate) fn open<'a>(
    file: &'a [u8],
    magic: [u8; 8],
    known: u32,
    name: &str,
    extra: usize,
) -> Result<(Reader<'a>, Reader<'a>), Malformed> {
    let mut header = Reader::new(file);
    let short = || Malformed::Bad(format!("its {} bytes are not even the header of a {name}", file.len()));
    if header.array::<8>().ok_or_else(short)? != magic {
        return Err(Malformed::Bad(format!("it is not a {name}: the first bytes are others")));
    }
    let version = header.u32().ok_or_else(short)?;
    if version != known {
        return Err(Malformed::Unknown(format!("it is a {name} of version {version}; only version {known} is known")));
    }
    let length = header.u32().ok_or_else(short)? as usize;
    let _compatible = header.u64().ok_or_else(short)?;
    let incompatible = header.u64().ok_or_else(short)?;
    if incompatible != 0 {
        return Err(Malformed::Unknown(format!("it needs features {incompatible:#x}, which this version does not know")));
    }
    let file_length = header.u64().ok_or_else(short)?;
    if file_length != file.len() as u64 {
        return Err(Malformed::Bad(format!("it has {} bytes, but its header says {file_length}", file.len())));
    }
    if length < HEADER + extra || length > file.len() {
        return Err(Malformed::Bad(format!("its header length {length} is wrong")));
    }
    Ok((Reader::new(&file[HEADER..length]), Reader::new(&file[length..])))
}

/// Why a file was refused.
#[derive(Debug)]
pub(crate) enum Malformed {
    /// Damaged, or something else.
    Bad(String),
    /// Written by a newer version.
    Unknown(String),
}

impl Malformed {
    /// The error of the operation `tried`.
    pub(crate) fn into_error(self, tried: String) -> crate::error::Error {
        use crate::error::{Error, Outcome};
        match self {
            Self::Bad(cause) => Error::new(Outcome::BadInput, tried).because(cause),
            Self::Unknown(cause) => Error::new(Outcome::Unsupported, tried).because(cause),
        }
    }
}

/// Castagnoli's CRC as the kernel computes it: begun with all ones, not inverted at the end.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_what_the_kernel_computes() {
        // RFC 3720 B.4: 32 bytes of zeros have 0x8A9136AA, with the final inversion that the kernel leaves out.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
    }
}
