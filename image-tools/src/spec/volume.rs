//! Bind mounts as users write them: `SOURCE:DESTINATION[:OPTION,…]`.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Path on the host, absolute.
    pub source: PathBuf,
    /// Path in the container, absolute.
    pub destination: PathBuf,
    /// Whether the container may not write.
    pub read_only: bool,
}

/// Parses a bind mount; a relative source is taken to be below `base`. Says what is wrong with it.
pub fn parse(text: &str, base: &Path) -> Result<Volume, String> {
    let mut fields = text.split(':');
    let source = fields.next().unwrap_or_default();
    let destination = fields.next().ok_or("the destination is missing: write SOURCE:DESTINATION[:ro]")?;
    let options = fields.next();
    if fields.next().is_some() {
        return Err("it has more than three fields".into());
    }
    if source.is_empty() {
        return Err("the source is empty".into());
    }
    if !source.contains('/') && !matches!(source, "." | "..") {
        return Err(format!("there are no named volumes: write ./{source} for a directory here, or an absolute path"));
    }
    let destination = Path::new(destination);
    let normal = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !destination.is_absolute() || !destination.components().all(normal) {
        return Err(format!("destination `{}` is not an absolute path without `..`", destination.display()));
    }
    if destination == Path::new("/") {
        return Err("the destination is the container's root".into());
    }
    let mut read_only = false;
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            other => return Err(format!("option `{other}` is neither `ro` nor `rw`")),
        }
    }
    Ok(Volume { source: base.join(source), destination: destination.to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let volume = |source: &str, destination: &str, read_only| Volume {
            source: source.into(),
            destination: destination.into(),
            read_only,
        };
        for (text, expected) in [
            ("/a:/b", volume("/a", "/b", false)),
            ("/a:/b:ro", volume("/a", "/b", true)),
            ("./a:/b/c:rw", volume("/here/./a", "/b/c", false)),
            (".:/b", volume("/here/.", "/b", false)),
        ] {
            assert_eq!(parse(text, Path::new("/here")).unwrap(), expected, "{text}");
        }
        for bad in ["", "/a", ":/b", "/a:b", "/a:/", "/a:/b/../c", "data:/b", "/a:/b:rx", "/a:/b:ro:rw", "/a:"] {
            assert!(parse(bad, Path::new("/here")).is_err(), "{bad} was taken");
        }
    }
}
