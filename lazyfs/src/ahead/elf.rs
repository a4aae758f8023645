//! What an ELF file needs before its first instruction: its interpreter and the libraries that it names (System V ABI, "Program
//! Loading and Dynamic Linking"). A pure parser; whatever is out of bounds or absurd needs nothing.

use crate::wire::Reader;

/// Longest path or name that is read, bytes.
const MAX_NAME: usize = 4096;
/// Bytes of it that are read at a time.
const NAME_STEP: usize = 64;
/// Bytes of the header, and the longest record of a segment that is taken for one.
const HEADER: usize = 64;
const MAX_RECORD: usize = 256;
/// Most segments that are looked at; real files have about a dozen.
const MAX_SEGMENTS: usize = 64;
/// Most entries of the dynamic section that are looked at; a program with 500 libraries is still below.
const MAX_ENTRIES: usize = 1024;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What a file needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Path of the dynamic linker.
    pub interpreter: Option<Vec<u8>>,
    /// Names of libraries, in the order in which they are loaded.
    pub libraries: Vec<Vec<u8>>,
    /// Directories to look in first; `$ORIGIN` is that of the file.
    pub run_path: Vec<Vec<u8>>,
}

/// Whether a file that begins like this is one.
pub(super) fn is_elf(beginning: &[u8]) -> bool {
    beginning.starts_with(MAGIC)
}

/// Reads the file: up to so many bytes from this offset on, fewer only at its end. `None`: they are not to be had.
pub(super) type ReadAt<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

/// What the file needs. Only what tells it is read. Files for machines with 32 bits or the other byte order need nothing.
pub(super) fn needs(file: &ReadAt<'_>) -> Needs {
    Elf::open(file).and_then(|elf| elf.needs()).unwrap_or_default()
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    len: u64,
}

struct Elf<'a> {
    file: &'a ReadAt<'a>,
    segments: Vec<Segment>,
}

impl<'a> Elf<'a> {
    fn open(file: &'a ReadAt<'a>) -> Option<Self> {
        let header = file(0, HEADER)?;
        let mut header = Reader::new(&header);
        let ident: [u8; 16] = header.array()?;
        if !is_elf(&ident) || ident[4] != CLASS_64 || ident[5] != LITTLE_ENDIAN {
            return None;
        }
        header.take(16)?; // type, machine, version, entry
        let table = header.u64()?;
        header.take(14)?; // section table, flags, length of this header
        let (width, count) = (usize::from(header.u16()?), usize::from(header.u16()?).min(MAX_SEGMENTS));
        if width == 0 || width > MAX_RECORD {
            return None;
        }
        let table = file(table, width * count).filter(|table| table.len() == width * count)?;
        let segments = table.chunks_exact(width).map(segment).collect::<Option<_>>()?;
        Some(Self { file, segments })
    }

    fn of_kind(&self, kind: u32) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.kind == kind)
    }

    /// Where in the file is what is loaded at this address.
    fn at_address(&self, address: u64) -> Option<u64> {
        let holds = |s: &&Segment| s.kind == PT_LOAD && address >= s.address && address - s.address < s.len;
        let segment = self.segments.iter().find(holds)?;
        segment.offset.checked_add(address - segment.address)
    }

    fn needs(&self) -> Option<Needs> {
        let interpreter = self.of_kind(PT_INTERP).and_then(|segment| self.text(segment.offset));
        let Some(dynamic) = self.of_kind(PT_DYNAMIC) else { return Some(Needs { interpreter, ..Needs::default() }) };
        let dynamic = (self.file)(dynamic.offset, usize::try_from(dynamic.len).ok()?.min(MAX_ENTRIES * 16))?;
        let entries = || {
            let mut fields = Reader::new(&dynamic);
            std::iter::from_fn(move || Some((fields.u64()?, fields.u64()?))).take_while(|(tag, _)| *tag != 0)
        };
        let strings = entries().find(|(tag, _)| *tag == DT_STRTAB).and_then(|(_, address)| self.at_address(address))?;
        let string = |offset: u64| self.text(strings.checked_add(offset)?);
        let of_tag = |wanted: u64| entries().filter(move |(tag, _)| *tag == wanted).filter_map(|(_, offset)| string(offset));
        let libraries = of_tag(DT_NEEDED).collect();
        // ld.so(8): RPATH counts only where there is no RUNPATH.
        let run_path = of_tag(DT_RUNPATH).next().or_else(|| of_tag(DT_RPATH).next()).unwrap_or_default();
        let run_path = run_path.split(|c| *c == b':').filter(|dir| !dir.is_empty()).map(<[u8]>::to_vec).collect();
        Some(Needs { interpreter, libraries, run_path })
    }

    /// The bytes before the first NUL; `None` where there is none near, or nothing before it.
    fn text(&self, offset: u64) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        // In small steps: what is behind it may have to be fetched.
        while text.len() < MAX_NAME {
            let more = (self.file)(offset.checked_add(text.len() as u64)?, NAME_STEP)?;
            if let Some(end) = more.iter().position(|c| *c == 0) {
                text.extend(&more[..end]);
                return Some(text).filter(|text| !text.is_empty());
            }
            if more.len() < NAME_STEP {
                return None;
            }
            text.extend(more);
        }
        None
    }
}

fn segment(record: &[u8]) -> Option<Segment> {
    let mut fields = Reader::new(record);
    let kind = fields.u32()?;
    fields.u32()?;
    let (offset, address) = (fields.u64()?, fields.u64()?);
    fields.u64()?;
    Some(Segment { kind, offset, address, len: fields.u64()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(file: &[u8]) -> Needs {
        super::needs(&|offset, len| {
            let rest = file.get(usize::try_from(offset).ok()?..)?;
            Some(rest[..len.min(rest.len())].to_vec())
        })
    }

    #[test]
    fn a_real_program_and_what_is_none() {
        // This test's own program, and what the linker was told to build it with.
        let own = std::fs::read("/proc/self/exe").unwrap();
        let found = needs(&own);
        let interpreter = String::from_utf8(found.interpreter.clone().unwrap()).unwrap();
        assert!(interpreter.starts_with("/lib") && interpreter.contains("ld-"), "{interpreter}");
        assert!(found.libraries.contains(&b"libc.so.6".to_vec()), "{found:?}");
        for file in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &own[..100], &own[..64]] {
            assert_eq!(needs(file), Needs::default());
        }
    }

    #[test]
    fn run_paths_and_absurd_numbers() {
        let file = crate::ahead::sample::elf(Some("/lib/ld.so"), &["liba.so.1", "b.so"], Some("$ORIGIN/../x::/opt"));
        let found = needs(&file);
        assert_eq!(found.interpreter.as_deref(), Some(&b"/lib/ld.so"[..]));
        assert_eq!(found.libraries, [b"liba.so.1".to_vec(), b"b.so".to_vec()]);
        assert_eq!(found.run_path, [b"$ORIGIN/../x".to_vec(), b"/opt".to_vec()]);
        for at in 0..file.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                drop(needs(&damaged));
            }
            drop(needs(&file[..at]));
        }
    }
}
