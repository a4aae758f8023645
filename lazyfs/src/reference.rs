//! Image references: what a user types to name an image.
//!
//! ```text
//! [HOST[:PORT]/]NAME[:TAG][@sha256:…]    in a registry; HOST defaults to docker.io, TAG to latest
//! oci:DIR[:TAG][@sha256:…]               in an OCI image layout directory
//! oci-archive:FILE[:TAG][@sha256:…]      in a tar of such a directory
//! docker-archive:FILE[:NAME:TAG|:@N]     in what `docker save` or `podman save` wrote
//! ```
//!
//! The grammar of the first form is that of the distribution project ("reference"), which docker, podman and containerd share. The
//! canonical form that [`Reference`] displays is complete, so that two spellings of one image compare equal.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The registry that a reference without a host means.
const DEFAULT_HOST: &str = "docker.io";
/// The tag that a reference without tag and digest means.
const DEFAULT_TAG: &str = "latest";
/// The longest repository name (distribution: `NameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// The longest tag (distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;

/// Names an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Reference {
    /// An image in a registry.
    Registry(RegistryReference),
    /// An image in an OCI image layout directory.
    Layout(LayoutReference),
    /// An image in a tar file.
    Archive(ArchiveReference),
}

/// Kind of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArchiveKind {
    /// `oci-archive:`
    Oci,
    /// `docker-archive:`
    Docker,
}

/// Names an image in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArchiveReference {
    kind: ArchiveKind,
    file: PathBuf,
    /// A tag; in docker's archives a whole name, or `@N`.
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Names an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Names an image in an OCI image layout directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutReference {
    dir: PathBuf,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not an image reference: {why}")]
pub struct NotAReference {
    text: String,
    why: String,
}

impl Reference {
    /// What [`crate::source::Source::manifest`] is asked for: the digest where there is one, else the tag, else nothing (a layout
    /// directory's only image).
    pub fn selector(&self) -> String {
        let (tag, digest) = match self {
            Self::Registry(r) => (&r.tag, &r.digest),
            Self::Layout(l) => (&l.tag, &l.digest),
            Self::Archive(a) => (&a.tag, &a.digest),
        };
        match digest {
            Some(digest) => digest.to_string(),
            None => tag.clone().unwrap_or_default(),
        }
    }

    /// Whether a text names an image in a registry without saying in which one.
    pub fn is_short(text: &str) -> bool {
        let local = ["oci:", "oci-archive:", "docker-archive:"].iter().any(|prefix| text.starts_with(prefix));
        !local && !text.split_once('/').is_some_and(|(first, _)| is_host(first))
    }

    /// The digest that pins the image, where the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Registry(r) => r.digest,
            Self::Layout(l) => l.digest,
            Self::Archive(a) => a.digest,
        }
    }

    /// The tag that an image gets when it is written there; empty where none was given.
    pub fn tag(&self) -> &str {
        let tag = match self {
            Self::Registry(r) => &r.tag,
            Self::Layout(l) => &l.tag,
            Self::Archive(a) => &a.tag,
        };
        tag.as_deref().unwrap_or_default()
    }

    /// The same reference with a relative layout directory or archive resolved against `base`. Whoever talks to a daemon does this first: the
    /// daemon has another working directory.
    pub fn absolute(self, base: &Path) -> Self {
        match self {
            Self::Layout(l) => Self::Layout(LayoutReference { dir: base.join(l.dir), ..l }),
            Self::Archive(a) => Self::Archive(ArchiveReference { file: base.join(a.file), ..a }),
            registry @ Self::Registry(_) => registry,
        }
    }
}

impl RegistryReference {
    /// Registry host with its port, as users write it: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository in the registry: `library/redis`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the image, where there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (rest, digest) = split_digest(text)?;
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path.to_owned()),
            _ => (DEFAULT_HOST, rest.to_owned()),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        check_host(host)?;
        let (name, tag) = match path.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (path.as_str(), None),
        };
        check_name(name)?;
        tag.map_or(Ok(()), check_tag)?;
        let repository = match host == DEFAULT_HOST && !name.contains('/') {
            true => format!("library/{name}"),
            false => name.to_owned(),
        };
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }
}

impl LayoutReference {
    /// The layout directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tag, where one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (rest, digest) = split_digest(text)?;
        let (dir, tag) = match rest.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
            _ => (rest, None),
        };
        if dir.is_empty() {
            return Err("the directory is missing; write oci:DIR or oci:DIR:TAG".to_owned());
        }
        tag.map_or(Ok(()), check_tag)?;
        Ok(Self { dir: dir.into(), tag: tag.map(str::to_owned), digest })
    }
}

impl ArchiveReference {
    /// What kind of archive it is.
    pub fn kind(&self) -> ArchiveKind {
        self.kind
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The tag, or name in a docker-archive, where one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    fn parse(text: &str, kind: ArchiveKind) -> Result<Self, String> {
        let (file, tag, digest) = match kind {
            ArchiveKind::Oci => {
                let (rest, digest) = split_digest(text)?;
                match rest.rsplit_once(':') {
                    Some((file, tag)) if !tag.contains('/') => {
                        check_tag(tag)?;
                        (file, Some(tag), digest)
                    }
                    _ => (rest, None, digest),
                }
            }
            // A name has colons itself, so the file cannot.
            ArchiveKind::Docker => match text.split_once(':') {
                Some((file, name)) => {
                    let is_number = name.strip_prefix('@').is_some_and(|n| n.parse::<u32>().is_ok());
                    if !is_number {
                        RegistryReference::parse(name)?;
                    }
                    (file, Some(name), None)
                }
                None => (text, None, None),
            },
        };
        if file.is_empty() {
            return Err("the file is missing; write oci-archive:FILE or docker-archive:FILE".to_owned());
        }
        Ok(Self { kind, file: file.into(), tag: tag.map(str::to_owned), digest })
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.rsplit_once('@') {
        // A directory may have an @ in its name; a digest has no slash.
        Some((_, after)) if after.contains('/') => Ok((text, None)),
        Some((before, digest)) => Ok((before, Some(digest.parse().map_err(|e: crate::digest::NotADigest| e.to_string())?))),
        None => Ok((text, None)),
    }
}

/// Whether the first path component names a host rather than a part of the repository.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.contains(|c: char| c.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let (address, rest) = v6.split_once(']').ok_or_else(|| format!("the host `{host}` has no closing bracket"))?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
            match rest {
                "" => return Ok(()),
                _ => ("ipv6", Some(rest.strip_prefix(':').ok_or_else(|| format!("`{rest}` after the address is not a port"))?)),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("`{name}` is not a host name"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_ok_and(|p| p > 0) && port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        Some(port) => Err(format!("`{port}` is not a port number")),
        None => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    if name.len() > MAX_NAME {
        return Err(format!("the name has {} characters, at most {MAX_NAME} are allowed", name.len()));
    }
    if name.contains(|c: char| c.is_ascii_uppercase()) {
        return Err(format!("the name `{name}` has upper-case letters; write `{}`", name.to_ascii_lowercase()));
    }
    match name.split('/').find(|component| !is_component(component)) {
        Some("") => Err(format!("`{name}` has an empty component")),
        Some(bad) => Err(format!("`{bad}` must be lower-case letters and digits, separated by one of . _ __ or dashes")),
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separator = |run: &[u8]| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
    let bytes = component.as_bytes();
    bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes.split(|b| alphanumeric(*b)).all(separator)
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match tag.as_bytes() {
        [] => Err("the tag after the colon is missing".to_owned()),
        [first, rest @ ..] if tag.len() <= MAX_TAG && word(*first) && rest.iter().all(|b| word(*b) || b".-".contains(b)) => {
            Ok(())
        }
        _ => Err(format!("the tag `{tag}` must be at most {MAX_TAG} letters, digits, and . _ - not at its beginning")),
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let parsed = match text.split_once(':') {
            Some(("oci", layout)) => LayoutReference::parse(layout).map(Self::Layout),
            Some(("oci-archive", rest)) => ArchiveReference::parse(rest, ArchiveKind::Oci).map(Self::Archive),
            Some(("docker-archive", rest)) => ArchiveReference::parse(rest, ArchiveKind::Docker).map(Self::Archive),
            _ if text.contains("://") => Err("leave the scheme away".to_owned()),
            _ => RegistryReference::parse(text).map(Self::Registry),
        };
        parsed.map_err(|why| NotAReference { text: text.chars().take(300).collect(), why })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tag, digest) = match self {
            Self::Registry(r) => {
                write!(f, "{}/{}", r.host, r.repository)?;
                (&r.tag, &r.digest)
            }
            Self::Layout(l) => {
                write!(f, "oci:{}", l.dir.display())?;
                (&l.tag, &l.digest)
            }
            Self::Archive(a) => {
                let kind = match a.kind {
                    ArchiveKind::Oci => "oci-archive",
                    ArchiveKind::Docker => "docker-archive",
                };
                write!(f, "{kind}:{}", a.file.display())?;
                (&a.tag, &a.digest)
            }
        };
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        match digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = NotAReference;

    fn try_from(text: String) -> Result<Self, NotAReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn references_have_one_canonical_form() {
        let pinned = format!("redis:7@{DIGEST}");
        let long = format!("docker.io/library/{pinned}");
        let bare = format!("quay.io/a/b@{DIGEST}");
        let layout = format!("oci:/d:t@{DIGEST}");
        for (text, canonical) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("index.docker.io/redis", "docker.io/library/redis:latest"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/python:zstd", "localhost:5000/python:zstd"),
            ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[::1]/a", "[::1]/a:latest"),
            ("x/a.b_c__d---e/f", "docker.io/x/a.b_c__d---e/f:latest"),
            (&pinned, &long),
            (&bare, &bare),
            ("oci:/srv/images:py", "oci:/srv/images:py"),
            ("oci:dir", "oci:dir"),
            ("oci:/a:b/c", "oci:/a:b/c"),
            ("oci-archive:a.tar:t", "oci-archive:a.tar:t"),
            ("oci-archive:/a:b/c.tar", "oci-archive:/a:b/c.tar"),
            ("docker-archive:/a.tar", "docker-archive:/a.tar"),
            ("docker-archive:a.tar:localhost:5000/x:t", "docker-archive:a.tar:localhost:5000/x:t"),
            ("docker-archive:a.tar:@1", "docker-archive:a.tar:@1"),
            (&layout, &layout),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            let short = canonical.starts_with("docker.io/") && !text.starts_with("docker.io/") && !text.starts_with("index.");
            assert_eq!(Reference::is_short(text), short, "{text}");
            assert_eq!(canonical.parse::<Reference>().unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn the_selector_prefers_the_digest() {
        for (text, selector) in [("redis", "latest"), (&*format!("redis:7@{DIGEST}"), DIGEST), ("oci:/d:t", "t"), ("oci:/d", "")]
        {
            assert_eq!(text.parse::<Reference>().unwrap().selector(), selector, "{text}");
        }
        let absolute = "oci:d:t".parse::<Reference>().unwrap().absolute(Path::new("/base"));
        assert_eq!(absolute.to_string(), "oci:/base/d:t");
        let absolute = "docker-archive:d.tar:x".parse::<Reference>().unwrap().absolute(Path::new("/base"));
        assert_eq!((absolute.to_string().as_str(), absolute.tag()), ("docker-archive:/base/d.tar:x", "x"));
    }

    #[test]
    fn bad_references_say_what_is_wrong() {
        let long = "a".repeat(300);
        let tag = format!("a:{}", "t".repeat(129));
        for (text, why) in [
            ("", "the name is missing"),
            ("Redis", "write `redis`"),
            ("localhost:5000/", "the name is missing"),
            ("localhost:99999/a", "`99999` is not a port"),
            ("localhost:+5/a", "`+5` is not a port"),
            ("a//b", "empty component"),
            ("a/../b", "must be lower-case"),
            ("a/-b", "must be lower-case"),
            ("a___b", "must be lower-case"),
            ("a b", "must be lower-case"),
            ("a:", "tag after the colon is missing"),
            ("a:.x", "must be at most 128"),
            (&tag, "must be at most 128"),
            (&long, "at most 255"),
            ("a@sha256:12", "is not a digest"),
            ("a@sha512:12", "is not a digest"),
            ("https://a/b", "leave the scheme away"),
            ("[::1/a", "no closing bracket"),
            ("[::zz]/a", "not an IPv6 address"),
            ("-x.io/a", "is not a host name"),
            ("oci:", "the directory is missing"),
            ("oci-archive:", "the file is missing"),
            ("docker-archive::x", "the file is missing"),
            ("docker-archive:a.tar:X", "write `x`"),
            ("docker-archive:a.tar:@x", "is not a digest"),
            ("oci-archive:a.tar:", "tag after the colon is missing"),
            ("oci:/d:", "tag after the colon is missing"),
            ("oci:/d:a b", "must be at most 128"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
