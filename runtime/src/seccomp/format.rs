//! A compiled filter as bytes, as it lies in the cache and beside a container's record.
//!
//! ```text
//! 0   8   "TWLNFLT1": magic and version
//! 8   32  key: digest of what it was compiled from
//! 40  8   SECCOMP_FILTER_FLAG_* bits
//! 48  4   number of instructions
//! 52      instructions, 8 bytes each: code 2, jt 1, jf 1, k 4
//! ..  32  SHA-256 of everything before
//! ```
//! Numbers are little-endian. A reader refuses anything that is not exactly this; the kernel checks the program itself.

use sha2::{Digest as _, Sha256};

use super::{Filter, Instruction};

const MAGIC: &[u8; 8] = b"TWLNFLT1";
const HEADER: usize = 52;
const DIGEST: usize = 32;

/// The longest file: BPF_MAXINSNS instructions.
pub const MAX_LEN: usize = HEADER + libc::BPF_MAXINSNS as usize * 8 + DIGEST;

/// What a filter was compiled from.
pub type Key = [u8; DIGEST];

/// The file of `filter`.
pub fn encode(filter: &Filter, key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + filter.program.len() * 8 + DIGEST);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&filter.flags.to_le_bytes());
    bytes.extend_from_slice(&(filter.program.len() as u32).to_le_bytes());
    for &(code, jt, jf, k) in &filter.program {
        bytes.extend_from_slice(&code.to_le_bytes());
        bytes.extend_from_slice(&[jt, jf]);
        bytes.extend_from_slice(&k.to_le_bytes());
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// The inverse of [`encode`]; with `key`, only of a filter compiled from that. The error says what is wrong with the file.
pub fn decode(bytes: &[u8], key: Option<&Key>) -> Result<Filter, &'static str> {
    let length = bytes.len().checked_sub(DIGEST).filter(|length| *length >= HEADER).ok_or("too short")?;
    let (content, digest) = bytes.split_at(length);
    if Sha256::digest(content).as_slice() != digest {
        return Err("its digest is wrong");
    }
    if &content[..8] != MAGIC {
        return Err("another format");
    }
    if key.is_some_and(|key| &content[8..40] != key) {
        return Err("compiled from something else");
    }
    let number =
        |at: usize, size: usize| content[at..at + size].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (instructions, rest) = content[HEADER..].as_chunks::<8>();
    if !rest.is_empty() || instructions.len() as u64 != number(48, 4) {
        return Err("another number of instructions than it says");
    }
    let program: Vec<Instruction> = instructions
        .iter()
        .map(|&[a, b, jt, jf, c, d, e, f]| (u16::from_le_bytes([a, b]), jt, jf, u32::from_le_bytes([c, d, e, f])))
        .collect();
    if program.is_empty() || program.len() > libc::BPF_MAXINSNS as usize {
        return Err("no program of a length that the kernel takes");
    }
    Ok(Filter { program, flags: number(40, 8) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> Filter {
        Filter { program: vec![(0x20, 0, 0, 4), (0x15, 1, 2, 0xc000_003e), (0x06, 0, 0, 0x7fff_0000)], flags: 6 }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&filter(), &[7; 32]);
        assert_eq!(decode(&bytes, Some(&[7; 32])), Ok(filter()));
        assert_eq!(decode(&bytes, None), Ok(filter()));
        assert_eq!(decode(&bytes, Some(&[8; 32])), Err("compiled from something else"));
    }

    #[test]
    fn every_damaged_byte_is_seen() {
        let good = encode(&filter(), &[7; 32]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(decode(&bad, None), Err("its digest is wrong"), "byte {at}");
            assert!(decode(&good[..at], None).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_right_digest_does_not_make_a_wrong_file_right() {
        let signed = |mut content: Vec<u8>| {
            content.extend_from_slice(&Sha256::digest(content.clone()));
            content
        };
        let content = |edit: fn(&mut Vec<u8>)| {
            let mut bytes = encode(&filter(), &[7; 32]);
            bytes.truncate(bytes.len() - DIGEST);
            edit(&mut bytes);
            signed(bytes)
        };
        for (bytes, why) in [
            (content(|bytes| bytes[7] = b'2'), "another format"),
            (content(|bytes| bytes[48] = 4), "another number of instructions than it says"),
            (content(|bytes| bytes.push(0)), "another number of instructions than it says"),
            (content(|bytes| bytes.truncate(40)), "too short"),
            (
                content(|bytes| {
                    bytes.truncate(HEADER);
                    bytes[48] = 0;
                }),
                "no program of a length that the kernel takes",
            ),
        ] {
            assert_eq!(decode(&bytes, None), Err(why));
        }
    }
}
