//! Public keys in PEM (RFC 7468, "PUBLIC KEY") and the signatures that they verify.

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// The largest key file that is read, bytes.
const MAX_KEY: u64 = 64 << 10;

/// Where a policy has a key.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// In the policy itself.
    Data(Vec<u8>),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Data(bytes) => write!(f, "key {}", Digest::of(bytes).short()),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl KeySource {
    /// Reads the key.
    pub fn load(&self) -> Result<Key> {
        let text = match self {
            Self::Data(bytes) => bytes.clone(),
            Self::File(path) => {
                let mut bytes = Vec::new();
                let read = std::fs::File::open(path).and_then(|file| file.take(MAX_KEY).read_to_end(&mut bytes));
                read.map_err(|e| Error::io("reading the public key", path, e))?;
                bytes
            }
        };
        Key::parse(&text).map_err(|why| {
            Error::new(Outcome::BadInput, format!("reading the public key {self}"))
                .because(why)
                .advise("it must be a public key in PEM, as `cosign generate-key-pair` or `openssl pkey -pubout` writes it")
        })
    }
}

/// A public key.
pub struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
}

impl Key {
    /// Reads one PEM document.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| "it is not text".to_owned())?;
        let kind = text.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----")).map(|(kind, _)| kind);
        let body = match kind {
            Some("PUBLIC KEY") => text.split_once("-----BEGIN PUBLIC KEY-----").map(|(_, rest)| rest).unwrap_or_default(),
            Some(other) => return Err(format!("it is of the kind `{}`", other.chars().take(40).collect::<String>())),
            None => return Err("it has no line `-----BEGIN PUBLIC KEY-----`".to_owned()),
        };
        let (body, rest) = body.split_once("-----END PUBLIC KEY-----").ok_or("it has no end")?;
        if rest.contains("-----BEGIN") {
            return Err("it has more than one key; list several with keyPaths or keyDatas".to_owned());
        }
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|e| format!("it is not base64: {e}"))?;
        Self::from_spki(&der)
    }

    /// SubjectPublicKeyInfo (RFC 5280): a sequence of an algorithm, which is a sequence of identifier and parameter, and a bit string.
    fn from_spki(der: &[u8]) -> Result<Self, String> {
        const MALFORMED: &str = "it is not a SubjectPublicKeyInfo";
        let mut whole = Der(der);
        let mut info = whole.next(0x30).ok_or(MALFORMED)?;
        let mut algorithm = info.next(0x30).ok_or(MALFORMED)?;
        let key = info.next(0x03).ok_or(MALFORMED)?;
        let [0, key @ ..] = key.0 else { return Err(MALFORMED.to_owned()) };
        if !(whole.0.is_empty() && info.0.is_empty()) {
            return Err("something follows the key".to_owned());
        }
        let id = algorithm.next(0x06).ok_or(MALFORMED)?;
        let curve = algorithm.next(0x06).map(|curve| curve.0);
        let algorithm: &'static dyn VerificationAlgorithm = match (id.0, curve) {
            (EC_PUBLIC_KEY, Some(P256)) => &ECDSA_P256_SHA256_ASN1,
            (EC_PUBLIC_KEY, Some(P384)) => &ECDSA_P384_SHA256_ASN1,
            (RSA, None) => &RSA_PKCS1_2048_8192_SHA256,
            (ED25519_ID, None) => &ED25519,
            (EC_PUBLIC_KEY, _) => return Err("it is of an elliptic curve other than P-256 and P-384".to_owned()),
            _ => return Err("it is none of ECDSA, RSA and Ed25519".to_owned()),
        };
        Ok(Self { algorithm, key: key.to_vec() })
    }

    /// Whether this key made `signature` of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.key).verify(message, signature).is_ok()
    }
}

/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 1.3.132.0.34
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
/// 1.2.840.113549.1.1.1
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.3.101.112
const ED25519_ID: &[u8] = &[0x2b, 0x65, 0x70];

/// DER that is left to read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, if it has this tag.
    fn next(&mut self, tag: u8) -> Option<Self> {
        let (length, rest) = match self.0 {
            [found, length @ 0..=0x7f, rest @ ..] if *found == tag => (usize::from(*length), rest),
            [found, 0x81, length @ 0x80..=0xff, rest @ ..] if *found == tag => (usize::from(*length), rest),
            [found, 0x82, high @ 1..=0xff, low, rest @ ..] if *found == tag => {
                (usize::from(*high) << 8 | usize::from(*low), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Self(content))
    }
}
