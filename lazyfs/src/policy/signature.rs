//! Sigstore signatures as cosign, podman and skopeo attach them: in the repository of the image, a manifest with the tag
//! `sha256-<digest>.sig`, each of whose layers is a signed text ("simple signing" payload) with its signature in an annotation.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{Descriptor, MAX_MANIFEST};
use crate::pull::read_blob;
use crate::source::Source;

/// Where the signature is.
pub const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a signed text is.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// What a signed text calls itself.
const KIND: &str = "cosign container image signature";
/// The longest signed text, bytes.
const MAX_PAYLOAD: u64 = 64 << 10;
/// The most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 128;

/// A text and who vouches for it. Not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What is signed.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// What a signed text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The manifest that is vouched for.
    pub digest: Digest,
    /// What it is called.
    pub reference: String,
}

impl Claim {
    /// Reads a signed text; whoever calls this has verified who signed it.
    pub fn parse(payload: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Text {
            critical: Critical,
            #[serde(rename = "optional")]
            _optional: Option<IgnoredAny>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Critical {
            #[serde(rename = "type")]
            kind: String,
            identity: Identity,
            image: Image,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct Identity {
            docker_reference: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct Image {
            docker_manifest_digest: Digest,
        }
        let text: Text = serde_json::from_slice(payload).map_err(|e| format!("what it signs is malformed: {e}"))?;
        match text.critical.kind.as_str() {
            KIND => Ok(Self {
                digest: text.critical.image.docker_manifest_digest,
                reference: text.critical.identity.docker_reference,
            }),
            other => Err(format!("what it signs is a `{other}`")),
        }
    }
}

/// The tag of a manifest's signatures.
pub fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// All signatures of these manifests in a repository. That there are none is no error; that they cannot be read is one.
pub async fn fetch(source: &dyn Source, digests: &[Digest]) -> Result<Vec<Signature>> {
    let mut found = Vec::new();
    for digest in digests {
        let raw = match source.manifest(&tag(digest)).await {
            Ok(raw) => raw,
            Err(error) if error.outcome() == Outcome::NotFound => continue,
            Err(error) => return Err(error.during(format!("looking for signatures of {digest} in {}", source.name()))),
        };
        let blobs = attached(&raw.bytes).map_err(|why| {
            Error::new(Outcome::BadInput, format!("reading the signatures of {digest} in {}", source.name())).because(why)
        })?;
        for (blob, signature) in blobs {
            found.push(Signature { payload: read_blob(source, &blob, MAX_PAYLOAD).await?, signature });
        }
    }
    Ok(found)
}

/// The signed texts of a signature manifest, and their signatures. Anything else in it is left alone.
fn attached(manifest: &[u8]) -> Result<Vec<(Descriptor, Vec<u8>)>, String> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: Digest,
        size: u64,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    if manifest.len() as u64 > MAX_MANIFEST {
        return Err(format!("the manifest has {} bytes", manifest.len()));
    }
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for layer in manifest.layers.into_iter().filter(|layer| layer.media_type == PAYLOAD) {
        // One that cannot be read vouches for nothing.
        let Some(Ok(signature)) = layer.annotations.get(ANNOTATION).map(|text| STANDARD.decode(text.trim())) else { continue };
        if found.len() == MAX_SIGNATURES {
            return Err(format!("there are more than {MAX_SIGNATURES}"));
        }
        found.push((Descriptor { media_type: layer.media_type, digest: layer.digest, size: layer.size }, signature));
    }
    Ok(found)
}
