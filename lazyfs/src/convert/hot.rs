//! Which files are needed first: from an access profile, or from a list of paths.

use crate::error::{Error, Outcome, Result};
use crate::layer::name;
use crate::layer::write::order::{HotFile, HotKey};
use crate::profile::{Access, MAX_PROFILE, Profile};
use crate::table::CHUNKED_FROM;

/// The longest list or profile, bytes.
pub const MAX_BYTES: u64 = MAX_PROFILE;
/// Reads a profile, or a list of paths, one a line, the first needed first. A profile yields itself, too, for the image that is made
/// with it.
pub fn parse(bytes: &[u8]) -> Result<(Vec<HotFile>, Option<Profile>)> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        let profile = Profile::parse(bytes)?;
        return Ok((of_profile(&profile), Some(profile)));
    }
    Ok((paths(bytes)?, None))
}

/// The files of a profile in the order in which they are needed.
pub fn of_profile(profile: &Profile) -> Vec<HotFile> {
    // Files below that length are fetched as a whole, whatever of them is read; and of one of which most is read anyway the rest costs less
    // than the gap that it would be.
    let is_whole = |access: &Access| access.size < CHUNKED_FROM || access.bytes() >= access.size / 8 * 7;
    let parts = |access: &Access| (!is_whole(access)).then(|| access.ranges());
    let file = |access: &Access| HotFile { key: HotKey::Content(access.digest), parts: parts(access) };
    profile.accesses().iter().map(file).collect()
}

/// Empty lines and those that begin with `#` say nothing.
fn paths(text: &[u8]) -> Result<Vec<HotFile>> {
    let mut files = Vec::new();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let path = name::clean(line).map_err(|why| {
            Error::new(Outcome::BadInput, format!("reading line {} of a list of paths", number + 1))
                .because(format!("the path {why}"))
        })?;
        files.push(HotFile { key: HotKey::Path(path), parts: None });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn lists_of_paths() {
        let path = |path: &str| HotFile { key: HotKey::Path(path.into()), parts: None };
        assert_eq!(parse(b"/bin/sh\r\n\n# libraries\n./lib//x.so").unwrap().0, [path("bin/sh"), path("lib/x.so")]);
        assert_eq!(parse(b"").unwrap(), (vec![], None));
        for (text, says) in [("ok\n../x", "line 2"), ("a\0b", "NUL"), (" {\"version\":9}", "version 9"), ("{", "profile")] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.one_line().contains(says), "{error:?}");
        }
    }

    #[test]
    fn files_of_a_profile_are_whole_where_that_is_cheaper() {
        let digest = |n: u8| Digest::of(&[n]);
        let part = |n, size, read| Access::of(digest(n), format!("/{n}"), size, u64::from(n), std::iter::once(0..read));
        let profile = Profile::new(
            digest(0),
            5,
            [part(1, 4 << 20, 16 << 10), part(2, 1000, 10), part(3, 2 << 20, 2 << 20), part(4, 4 << 20, 3 << 20)],
        );
        let (files, same) = parse(&profile.to_bytes()).unwrap();
        assert_eq!(same, Some(profile));
        assert_eq!(files.iter().map(|file| file.parts.is_none()).collect::<Vec<_>>(), [false, true, true, false]);
        assert_eq!(files[0].parts, Some(std::iter::once(0..16 << 10).collect()));
        assert_eq!(files[0].key, HotKey::Content(digest(1)));
    }
}
