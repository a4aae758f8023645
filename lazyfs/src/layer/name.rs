//! What the name of a layer entry means: a path, a whiteout or an opaque marker. One place decides it for every layer format, so
//! that an index and its tar cannot be read differently.
//!
//! Names are relative to the root of the image whatever they look like: leading `/` and `./` go, as containerd's extraction does it.
//! `..` is refused; no tool writes it, and what it would mean depends on symbolic links.

use super::EntryKind;

/// The longest path: PATH_MAX without its NUL. containerd could not extract a longer one.
const MAX_PATH: usize = 4095;
/// NAME_MAX of Linux.
const MAX_COMPONENT: usize = 255;

/// What the name of an entry stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Name {
    /// The entry itself is at this path; empty for the root.
    Path(Vec<u8>),
    /// A marker, [`EntryKind::Whiteout`] or [`EntryKind::Opaque`], about this path.
    Marker(Vec<u8>, EntryKind),
    /// Bookkeeping of aufs (`.wh..wh.plnk` and the like), which image tools ignore.
    Ignored,
}

/// Reads the name of a layer entry (image-spec, layer.md, "Whiteouts"). The error says what is wrong with it.
pub fn parse(raw: &[u8]) -> Result<Name, String> {
    let mut path = clean(raw)?;
    let base = path.iter().rposition(|&c| c == b'/').map_or(0, |slash| slash + 1);
    let Some(hidden) = path[base..].strip_prefix(b".wh.") else { return Ok(Name::Path(path)) };
    match hidden {
        b".wh..opq" => {
            path.truncate(base.saturating_sub(1));
            Ok(Name::Marker(path, EntryKind::Opaque))
        }
        b"" | b"." | b".." => Err("is a whiteout of nothing".into()),
        _ if hidden.starts_with(b".wh.") => Ok(Name::Ignored),
        _ => {
            path.drain(base..base + b".wh.".len());
            Ok(Name::Marker(path, EntryKind::Whiteout))
        }
    }
}

/// The path that `raw` means, in the form of [`super::Entry::path`]. The error says what is wrong with it.
pub fn clean(raw: &[u8]) -> Result<Vec<u8>, String> {
    if raw.len() > MAX_PATH {
        return Err(format!("is longer than {MAX_PATH} bytes"));
    }
    if raw.contains(&0) {
        return Err("contains a NUL byte".into());
    }
    if raw.is_empty() {
        return Err("is empty".into());
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|&c| c == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err("contains `..`".into()),
            _ if component.len() > MAX_COMPONENT => return Err(format!("has a component of more than {MAX_COMPONENT} bytes")),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// Checks the target of a symbolic link, which is kept verbatim: what it means is decided inside the container.
pub fn link_target(raw: &[u8]) -> Result<&[u8], String> {
    match raw {
        [] => Err("is empty".into()),
        _ if raw.len() > MAX_PATH => Err(format!("is longer than {MAX_PATH} bytes")),
        _ if raw.contains(&0) => Err("contains a NUL byte".into()),
        _ => Ok(raw),
    }
}

/// Checks the name of an extended attribute.
pub fn xattr(raw: &[u8]) -> Result<&[u8], String> {
    match raw {
        [] => Err("has an empty name".into()),
        _ if raw.len() > MAX_COMPONENT => Err(format!("has a name longer than {MAX_COMPONENT} bytes")),
        _ if raw.contains(&0) => Err("has a name with a NUL byte".into()),
        _ => Ok(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_image_tools_take_them_for() {
        let path = |text: &str| Name::Path(text.into());
        for (raw, expected) in [
            ("etc/passwd", path("etc/passwd")),
            ("./etc//passwd/.", path("etc/passwd")),
            ("/etc/", path("etc")),
            ("./", path("")),
            ("/", path("")),
            (".wh.etc", Name::Marker("etc".into(), EntryKind::Whiteout)),
            ("a/b/.wh.c", Name::Marker("a/b/c".into(), EntryKind::Whiteout)),
            ("a/.wh.c/", Name::Marker("a/c".into(), EntryKind::Whiteout)),
            (".wh..wh..opq", Name::Marker("".into(), EntryKind::Opaque)),
            ("a/b/.wh..wh..opq", Name::Marker("a/b".into(), EntryKind::Opaque)),
            (".wh..wh.plnk", Name::Ignored),
            ("a/.wh.b/c", path("a/.wh.b/c")),
            ("a/.wh", path("a/.wh")),
        ] {
            assert_eq!(parse(raw.as_bytes()), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "n".repeat(256);
        let deep = "d/".repeat(2048);
        for raw in ["", "../etc", "a/../../b", "a/..", "a\0b", ".wh.", "a/.wh..", "a/.wh...", &long, &deep] {
            assert!(parse(raw.as_bytes()).is_err(), "{raw:?} was taken");
        }
    }
}
