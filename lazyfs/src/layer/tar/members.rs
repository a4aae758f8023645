//! Where the members of a tar file are: read by skipping from header to header, so that a large archive costs as many small reads as it has
//! members.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::{self, BLOCK};
use super::pax::Pax;
use super::{MAX_EXTENSION, padding};
use crate::error::{Error, Outcome, Result};

/// The most members that an archive may have. Each is a blob or says something about one.
const MAX_MEMBERS: usize = 1 << 16;

/// One member of a tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, without `./` in front.
    pub name: String,
    /// Where its content is in the file.
    pub range: Range<u64>,
    /// What a symbolic or hard link means; relative to the member's directory for the former.
    pub link: Option<String>,
}

/// Lists the members of a tar file; `path` is for messages.
pub fn members(file: &File, path: &Path) -> Result<Vec<Member>> {
    let tried = || format!("reading the archive {}", path.display());
    let size = file.metadata().map_err(|e| Error::io("examining", path, e))?.len();
    let bad = |at: u64, why: String| Error::new(Outcome::BadInput, tried()).because(format!("at byte {at}: {why}"));
    let (mut all, mut at) = (Vec::new(), 0);
    let mut long = Long::default();
    while at + BLOCK as u64 <= size {
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, at).map_err(|e| Error::io("reading", path, e))?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(all);
        }
        let mut header = header::parse(&block).map_err(|why| bad(at, format!("{why}{}", compressed(&block))))?;
        let start = at + BLOCK as u64;
        if let b'x' | b'L' | b'K' = header.kind {
            if header.size > MAX_EXTENSION || start + header.size > size {
                return Err(bad(at, format!("an extended header has {} bytes", header.size)));
            }
            let mut text = vec![0; usize::try_from(header.size).expect("at most MAX_EXTENSION")];
            file.read_exact_at(&mut text, start).map_err(|e| Error::io("reading", path, e))?;
            long.take(header.kind, &text).map_err(|why| bad(at, why))?;
        } else if header.kind != b'g' {
            let long = std::mem::take(&mut long);
            header.size = long.size.unwrap_or(header.size);
            let end = start.checked_add(header.size).filter(|end| *end <= size);
            let end = end.ok_or_else(|| bad(at, "it ends in the middle of a member".to_owned()))?;
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| bad(at, "a name is not UTF-8".to_owned()));
            let name = text(long.name.unwrap_or(header.name))?;
            let link = text(long.link.unwrap_or(header.link))?;
            let link = matches!(header.kind, b'1' | b'2').then_some(link);
            all.push(Member { name: name.trim_start_matches("./").to_owned(), range: start..end, link });
            if all.len() > MAX_MEMBERS {
                return Err(bad(at, format!("it has more than {MAX_MEMBERS} members")));
            }
        }
        at = start + header.size + padding(header.size);
    }
    match all.is_empty() && size > 0 {
        true => Err(bad(0, "it is too short for a tar".to_owned())),
        // Without its last two blocks of zeros a tar is complete, too.
        false => Ok(all),
    }
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Long {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Long {
    fn take(&mut self, kind: u8, text: &[u8]) -> Result<(), String> {
        match kind {
            b'L' => self.name = Some(header::text(text).to_vec()),
            b'K' => self.link = Some(header::text(text).to_vec()),
            _ => {
                let pax = Pax::parse(text).map_err(|(_, why)| why)?;
                if pax.sparse {
                    return Err("a member is sparse".to_owned());
                }
                self.name = pax.path.map(<[u8]>::to_vec).or(self.name.take());
                self.link = pax.linkpath.map(<[u8]>::to_vec).or(self.link.take());
                self.size = pax.size.or(self.size);
            }
        }
        Ok(())
    }
}

fn compressed(block: &[u8]) -> &'static str {
    match block {
        [0x1f, 0x8b, ..] => "; it is compressed with gzip: unpack it first, as with `gunzip`",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "; it is compressed with zstd: unpack it first, as with `unzstd`",
        [b'B', b'Z', b'h', ..] => "; it is compressed with bzip2: unpack it first",
        [0xfd, b'7', b'z', ..] => "; it is compressed with xz: unpack it first",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::compose::Composed;
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn file_header(name: &str, size: u64) -> [u8; BLOCK] {
        Composed::file(name, 0o644, size).header()
    }

    fn list(bytes: &[u8]) -> Result<Vec<Member>> {
        members(&file(bytes), Path::new("a.tar"))
    }

    #[test]
    fn members_are_found_where_they_are() {
        let long = "x".repeat(150);
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(3);
        tar.append_data(&mut header.clone(), "./a", &b"abc"[..]).unwrap();
        tar.append_data(&mut header, &long, &b"def"[..]).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "d/l", "../a").unwrap();
        let bytes = tar.into_inner().unwrap();
        let found = list(&bytes).unwrap();
        let names: Vec<(&str, Option<&str>)> = found.iter().map(|m| (m.name.as_str(), m.link.as_deref())).collect();
        assert_eq!(names, [("a", None), (long.as_str(), None), ("d/l", Some("../a"))]);
        let content = |m: &Member| &bytes[m.range.start as usize..m.range.end as usize];
        assert_eq!((content(&found[0]), content(&found[1])), (&b"abc"[..], &b"def"[..]));
    }

    #[test]
    fn bad_archives_are_refused() {
        let mut cut = file_header("a", 600).to_vec();
        cut.extend([7; 512]);
        let mut gzip = vec![0x1f, 0x8b];
        gzip.resize(1024, 1);
        let mut many = Vec::new();
        (0..=MAX_MEMBERS).for_each(|_| many.extend(file_header("a", 0)));
        let mut global = file_header("g", 1 << 21);
        global[156] = b'x';
        for (bytes, why) in [
            (&b"short"[..], "too short"),
            (&cut, "in the middle of a member"),
            (&gzip, "gunzip"),
            (&many, "more than 65536"),
            (&[b'z'; 1024], "field `chksum`"),
            (&resum(global), "an extended header has 2097152 bytes"),
        ] {
            let error = list(bytes).unwrap_err();
            assert!(error.outcome() == Outcome::BadInput && error.one_line().contains(why), "{error:?}");
        }
    }

    fn resum(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}
