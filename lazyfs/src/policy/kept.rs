//! The signatures of an image as the store keeps them, in `images/<digest>/signatures`: JSON with a version.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Accepted, Rule, Signature};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::image::ImageFiles;

/// Version of the format; one with another version is refused.
const VERSION: u32 = 1;
/// The longest file that is read, bytes: more than the longest and the most signatures take.
pub const MAX_FILE: u64 = 32 << 20;

/// What is known of an image beside the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// Its manifest, and the indexes that led to it.
    pub digests: Vec<Digest>,
    /// Signatures of any of them. Not verified.
    pub signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    digests: Vec<Digest>,
    signatures: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    payload: String,
    signature: String,
}

impl Vouched {
    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entry = |s: &Signature| Entry { payload: STANDARD.encode(&s.payload), signature: STANDARD.encode(&s.signature) };
        let signatures = self.signatures.iter().map(entry).collect();
        serde_json::to_vec(&File { version: VERSION, digests: self.digests.clone(), signatures }).expect("keys are texts")
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if file.version != VERSION {
            return Err(format!("it has version {}, this program knows {VERSION}", file.version));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|e| e.to_string());
        let entry = |e: &Entry| Ok(Signature { payload: decode(&e.payload)?, signature: decode(&e.signature)? });
        let signatures = file.signatures.iter().map(entry).collect::<Result<_, String>>()?;
        Ok(Self { digests: file.digests, signatures })
    }
}

/// Decides by what the store keeps of an image.
pub fn decide(rule: &Rule, image: &Digest, files: &ImageFiles) -> Result<Accepted> {
    let vouched = match files.signatures()? {
        Some(bytes) => Vouched::from_bytes(&bytes).map_err(|why| {
            Error::new(Outcome::Integrity, format!("reading the kept signatures of {image}"))
                .because(why)
                .advise("pull the image again")
        })?,
        None => Vouched { digests: Vec::new(), signatures: Vec::new() },
    };
    let mut digests = vec![*image];
    digests.extend(vouched.digests.into_iter().filter(|digest| digest != image));
    rule.decide(&digests, &vouched.signatures)
}
