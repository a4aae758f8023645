//! Manifests, image indexes and image configurations: raw bytes from a registry become checked structures.
//!
//! Sources: image-spec 1.1 (`manifest.md`, `image-index.md`, `config.md`) and docker's "Image Manifest V 2, Schema 2". Unknown
//! fields are ignored, as both demand; unknown media types are refused, since guessing what a blob is would be worse.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::source::{RawManifest, Referrer};

/// The largest manifest or index that is read (distribution-spec, "Pushing manifests": registries accept at least this).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The largest image configuration that is read. Configurations of images with much history reach some hundred kilobytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// The most layers an image may have; overlayfs itself stops at 500, docker at 127.
const MAX_LAYERS: usize = 1024;
/// The most manifests an index may name.
const MAX_INDEX_ENTRIES: usize = 4096;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of docker's manifests.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of docker's image configurations.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The media types that a registry is asked for.
pub const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// A checked document that a tag or digest can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Images for several platforms.
    Index(Index),
}

/// Names a blob or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob as it is transferred.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// How the tar stream is compressed.
    pub compression: Compression,
    /// Annotations of the layer; tables of contents are announced here.
    pub annotations: BTreeMap<String, String>,
}

/// How a layer's tar stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd, zstd:chunked included.
    Zstd,
}

/// An image index: one image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    entries: Vec<(Descriptor, Option<Platform>)>,
}

/// What an image runs on, in the words of image-spec (Go's GOOS and GOARCH).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// Processor: `amd64`.
    pub architecture: String,
    /// Variant of the processor: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

/// The parts of an image configuration that running a container needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the image runs on.
    pub platform: Platform,
    /// Digests of the uncompressed layers, lowest first; as many as the manifest has layers.
    pub diff_ids: Vec<Digest>,
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to stop, where it is not SIGTERM.
    pub stop_signal: Option<String>,
    /// Directories that want a volume, sorted.
    pub volumes: Vec<String>,
}

impl Document {
    /// Checks what a source sent.
    pub fn parse(raw: &RawManifest) -> Result<Self> {
        let tried = || format!("reading manifest {}", raw.digest);
        let refuse = |outcome: Outcome, why: String| Err(Error::new(outcome, tried()).because(why));
        if raw.bytes.len() as u64 > MAX_MANIFEST {
            return refuse(Outcome::BadInput, format!("it has {} bytes, at most {MAX_MANIFEST} are read", raw.bytes.len()));
        }
        let text: RawDocument =
            serde_json::from_slice(&raw.bytes).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
        if text.schema_version == 1 || raw.media_type.contains("docker.distribution.manifest.v1") {
            return Err(Error::new(Outcome::Unsupported, tried())
                .because("it is a docker schema 1 manifest, a format that was given up in 2017")
                .advise("push the image again with a current tool"));
        }
        if text.schema_version != 2 {
            return refuse(Outcome::BadInput, format!("schemaVersion is {}, not 2", text.schema_version));
        }
        // A document that calls itself one thing and is served as another is how CVE-2021-41190 worked.
        let declared = text.media_type.as_deref().unwrap_or(&raw.media_type);
        if !raw.media_type.is_empty() && ACCEPTED.contains(&raw.media_type.as_str()) && declared != raw.media_type {
            return refuse(Outcome::BadInput, format!("it is served as {} but calls itself {declared}", raw.media_type));
        }
        if text.manifests.is_some() && text.layers.is_some() {
            return refuse(Outcome::BadInput, "it has both layers and manifests".to_owned());
        }
        match declared {
            OCI_MANIFEST | DOCKER_MANIFEST => Manifest::check(text).map(Self::Image),
            OCI_INDEX | DOCKER_LIST => Index::check(text).map(Self::Index),
            other => Err(Error::new(Outcome::Unsupported, format!("media type `{other}` is not an image"))),
        }
        .map_err(|e| e.during(tried()))
    }
}

impl Manifest {
    fn check(text: RawDocument) -> Result<Self> {
        let config = text.config.ok_or_else(|| bad("the field `config` is missing"))?.check("config")?;
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
            let why = format!("its config is `{}`, so it is not a container image", config.media_type);
            return Err(Error::new(Outcome::Unsupported, why));
        }
        if config.size > MAX_CONFIG {
            return Err(bad(format!("its config has {} bytes, at most {MAX_CONFIG} are read", config.size)));
        }
        let layers = text.layers.ok_or_else(|| bad("the field `layers` is missing"))?;
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(bad(format!("it has {} layers, 1 to {MAX_LAYERS} are possible", layers.len())));
        }
        let layers = layers.into_iter().enumerate().map(|(n, layer)| Layer::check(n, layer)).collect::<Result<_>>()?;
        Ok(Self { config, layers, annotations: text.annotations.unwrap_or_default() })
    }
}

impl Layer {
    fn check(nth: usize, raw: RawDescriptor) -> Result<Self> {
        let annotations = raw.annotations.clone().unwrap_or_default();
        let descriptor = raw.check(&format!("layers[{nth}]"))?;
        let compression = match descriptor.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Compression::Gzip
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Compression::Zstd
            }
            other => {
                let why = match other {
                    t if t.contains("encrypted") => "it is encrypted",
                    t if t.contains("nondistributable") || t.contains("foreign") => "it is not in the registry (a foreign layer)",
                    _ => "no such layer is known",
                };
                let tried = format!("layers[{nth}] has media type `{other}`");
                let error = Error::new(Outcome::Unsupported, tried).because(why);
                return Err(match other.contains("encrypted") {
                    true => error.advise(
                        "towline has no keys for encrypted layers: decrypt the image first, for instance with \
                         `skopeo copy --decryption-key KEY …`",
                    ),
                    false => error,
                });
            }
        };
        Ok(Self { digest: descriptor.digest, size: descriptor.size, compression, annotations })
    }
}

impl Index {
    fn check(text: RawDocument) -> Result<Self> {
        let manifests = text.manifests.ok_or_else(|| bad("the field `manifests` is missing"))?;
        if manifests.len() > MAX_INDEX_ENTRIES {
            return Err(bad(format!("it names {} manifests, at most {MAX_INDEX_ENTRIES} are read", manifests.len())));
        }
        let entry = |(n, raw): (usize, RawDescriptor)| {
            let platform = raw.platform.clone();
            Ok((raw.check(&format!("manifests[{n}]"))?, platform))
        };
        Ok(Self { entries: manifests.into_iter().enumerate().map(entry).collect::<Result<_>>()? })
    }

    /// What the index names, and for which platforms.
    pub fn entries(&self) -> &[(Descriptor, Option<Platform>)] {
        &self.entries
    }

    /// The manifest (or nested index) for `wanted`. Of several the best variant wins, then the first; an entry without a platform
    /// fits only where nothing else does.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor> {
        let rank = |platform: Option<&Platform>| match platform {
            None => Some(2),
            Some(p) if p.os != wanted.os || p.architecture != wanted.architecture => None,
            Some(p) if p.normal_variant() == wanted.normal_variant() => Some(0),
            Some(p) if p.variant.is_none() || wanted.variant.is_none() => Some(1),
            Some(_) => None,
        };
        let best = self.entries.iter().filter_map(|(d, p)| Some((rank(p.as_ref())?, d))).min_by_key(|(rank, _)| *rank);
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
            let has: Vec<String> = self.entries.iter().filter_map(|(_, p)| p.as_ref().map(Platform::to_string)).collect();
            Error::new(Outcome::NotFound, format!("choosing the image for {wanted}"))
                .because(format!("the index has only {}", if has.is_empty() { "nothing".to_owned() } else { has.join(", ") }))
                .advise("ask for one of these with --platform")
        })
    }
}

impl Platform {
    /// The platform of this program.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// arm64 means v8 and arm means v7 where nothing is said, as everywhere else.
    fn normal_variant(&self) -> Option<&str> {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (None | Some(""), "arm64") => Some("v8"),
            (None | Some(""), "arm") => Some("v7"),
            (Some(""), _) => None,
            (variant, _) => variant,
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `os/architecture[/variant]`.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture, ref variant @ ..] if variant.len() < 2 && parts.iter().all(|part| !part.is_empty()) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.first().map(|&variant| variant.to_owned()),
            }),
            _ => Err(Error::new(Outcome::BadInput, format!("reading platform `{text}`"))
                .because("it is not os/architecture[/variant]")
                .advise("write for example linux/amd64 or linux/arm64/v8")),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Checks the configuration blob of an image with `layers` layers. Its digest is the caller's business.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self> {
        let tried = "reading the image configuration";
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| Error::new(Outcome::BadInput, tried).because(e))?;
        let refuse = |why: String| Err(Error::new(Outcome::BadInput, tried).because(why));
        if raw.rootfs.kind != "layers" {
            return refuse(format!("rootfs.type is `{}`, not `layers`", raw.rootfs.kind));
        }
        if raw.rootfs.diff_ids.len() != layers {
            return refuse(format!("it names {} diff_ids for {layers} layers", raw.rootfs.diff_ids.len()));
        }
        let mut run = raw.config.unwrap_or_default();
        if let Some(bad) = run.env.iter().flatten().find(|e| !e.contains('=') || e.starts_with('=')) {
            return refuse(format!("config.Env has `{}`, which is not NAME=value", bad.chars().take(80).collect::<String>()));
        }
        let texts = [&run.entrypoint, &run.cmd, &run.env].into_iter().flatten().flatten();
        if texts.chain([&run.user, &run.working_dir].into_iter().flatten()).any(|text| text.contains('\0')) {
            return refuse("a text in config has a NUL byte".to_owned());
        }
        Ok(Self {
            platform: Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant },
            diff_ids: raw.rootfs.diff_ids,
            entrypoint: run.entrypoint.take().unwrap_or_default(),
            cmd: run.cmd.take().unwrap_or_default(),
            env: run.env.take().unwrap_or_default(),
            user: run.user.take().unwrap_or_default(),
            working_dir: run.working_dir.take().unwrap_or_default(),
            labels: run.labels.take().unwrap_or_default(),
            stop_signal: run.stop_signal.take().filter(|signal| !signal.is_empty()),
            volumes: run.volumes.take().unwrap_or_default().into_keys().collect(),
        })
    }
}

/// What a manifest or index says of itself. Of any kind, also one that is no container image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its media type, inferred where it does not say it.
    pub media_type: String,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    /// What it is, where it is an artifact.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl About {
    /// Reads what is common to all manifests.
    pub fn of(raw: &RawManifest) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Text {
            media_type: Option<String>,
            artifact_type: Option<String>,
            subject: Option<RawDescriptor>,
            config: Option<RawDescriptor>,
            manifests: Option<serde::de::IgnoredAny>,
            annotations: Option<BTreeMap<String, String>>,
        }
        let text: Text = serde_json::from_slice(&raw.bytes)
            .map_err(|e| Error::new(Outcome::BadInput, format!("reading manifest {}", raw.digest)).because(e))?;
        let config = text.config.map(|config| config.media_type).unwrap_or_default();
        // OCI leaves the field out as often as not; docker never does.
        let inferred = if text.manifests.is_some() { OCI_INDEX } else { OCI_MANIFEST };
        let served = Some(raw.media_type.clone()).filter(|served| ACCEPTED.contains(&served.as_str()));
        Ok(Self {
            media_type: text.media_type.or(served).unwrap_or_else(|| inferred.to_owned()),
            subject: text.subject.map(|subject| subject.digest),
            artifact_type: text.artifact_type.or(Some(config)).filter(|kind| !kind.is_empty()),
            annotations: text.annotations.unwrap_or_default(),
        })
    }

    /// This manifest as a referrer of `subject`, if it is one.
    pub fn referrer(&self, raw: &RawManifest, subject: &Digest) -> Option<Referrer> {
        (self.subject == Some(*subject)).then(|| Referrer {
            media_type: self.media_type.clone(),
            digest: raw.digest,
            size: raw.bytes.len() as u64,
            artifact_type: self.artifact_type.clone().unwrap_or_default(),
            annotations: self.annotations.clone(),
        })
    }
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(Outcome::BadInput, why)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

impl RawDescriptor {
    fn check(self, field: &str) -> Result<Descriptor> {
        // Ranges are computed as i64 by some registries, and no layer comes near.
        if self.size > 1 << 46 {
            return Err(bad(format!("{field}.size is {}", self.size)));
        }
        Ok(Descriptor { media_type: self.media_type, digest: self.digest, size: self.size })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type", default = "layers")]
    kind: String,
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

fn layers() -> String {
    "layers".to_owned()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

#[cfg(test)]
mod tests;
