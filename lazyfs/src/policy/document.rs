//! The text of a policy file becomes checked requirements.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::identity::{Named, SignedIdentity, check_prefix};
use super::key::KeySource;

/// The most keys of one requirement.
const MAX_KEYS: usize = 64;

/// One thing that is demanded of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing is.
    AcceptAnything,
    /// It is refused.
    Reject,
    /// A sigstore signature by one of the keys, about the image's identity.
    Sigstore { keys: Vec<KeySource>, identity: SignedIdentity },
    /// Something that podman knows and this program does not; refuses the image.
    Unsupported { what: &'static str },
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AcceptAnything => f.write_str("insecureAcceptAnything"),
            Self::Reject => f.write_str("reject"),
            Self::Sigstore { keys, identity } => {
                let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
                write!(f, "sigstoreSigned by {} as {identity}", keys.join(" or "))
            }
            Self::Unsupported { what } => f.write_str(what),
        }
    }
}

/// What scopes of a transport demand.
type Scopes = BTreeMap<String, Vec<Requirement>>;

/// The default requirements, and those of transports.
pub fn parse(text: &[u8]) -> Result<(Vec<Requirement>, BTreeMap<String, Scopes>), String> {
    let raw: Document = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let default = check_all(raw.default).map_err(|why| format!("default: {why}"))?;
    let mut transports = BTreeMap::new();
    for (transport, scopes) in raw.transports.0 {
        let mut checked = Scopes::new();
        for (scope, requirements) in scopes.0 {
            let place = |why: String| format!("transports.{transport}, scope \"{scope}\": {why}");
            super::scope::check(&transport, &scope).map_err(place)?;
            checked.insert(scope.clone(), check_all(requirements).map_err(place)?);
        }
        transports.insert(transport, checked);
    }
    Ok((default, transports))
}

fn check_all(raw: Vec<RawRequirement>) -> Result<Vec<Requirement>, String> {
    match raw.is_empty() {
        true => {
            Err("the list of requirements is empty; write [{\"type\":\"insecureAcceptAnything\"}] or [{\"type\":\"reject\"}]"
                .into())
        }
        false => raw.into_iter().map(RawRequirement::check).collect(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: Unique<Unique<Vec<RawRequirement>>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum RawRequirement {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy {
        #[serde(rename = "keyType")]
        _key_type: IgnoredAny,
        #[serde(rename = "keyPath")]
        _key_path: Option<IgnoredAny>,
        #[serde(rename = "keyPaths")]
        _key_paths: Option<IgnoredAny>,
        #[serde(rename = "keyData")]
        _key_data: Option<IgnoredAny>,
        #[serde(rename = "signedIdentity")]
        _signed_identity: Option<IgnoredAny>,
    },
    SignedBaseLayer {
        #[serde(rename = "baseLayerIdentity")]
        _base_layer_identity: IgnoredAny,
    },
    SigstoreSigned {
        key_path: Option<String>,
        key_paths: Option<Vec<String>>,
        key_data: Option<String>,
        key_datas: Option<Vec<String>>,
        fulcio: Option<IgnoredAny>,
        pki: Option<IgnoredAny>,
        rekor_public_key_path: Option<IgnoredAny>,
        rekor_public_key_paths: Option<IgnoredAny>,
        rekor_public_key_data: Option<IgnoredAny>,
        rekor_public_key_datas: Option<IgnoredAny>,
        signed_identity: Option<RawIdentity>,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum RawIdentity {
    MatchExact {},
    MatchRepoDigestOrExact {},
    MatchRepository {},
    ExactReference { docker_reference: String },
    ExactRepository { docker_repository: String },
    RemapIdentity { prefix: String, signed_prefix: String },
}

impl RawRequirement {
    fn check(self) -> Result<Requirement, String> {
        let unsupported = |what| Ok(Requirement::Unsupported { what });
        match self {
            Self::InsecureAcceptAnything {} => Ok(Requirement::AcceptAnything),
            Self::Reject {} => Ok(Requirement::Reject),
            Self::SignedBy { .. } => unsupported("signedBy (GPG signatures)"),
            Self::SignedBaseLayer { .. } => unsupported("signedBaseLayer"),
            Self::SigstoreSigned { fulcio: Some(_), .. } => unsupported("sigstoreSigned with fulcio (keyless signatures)"),
            Self::SigstoreSigned { pki: Some(_), .. } => unsupported("sigstoreSigned with pki (certificates)"),
            Self::SigstoreSigned {
                rekor_public_key_path,
                rekor_public_key_paths,
                rekor_public_key_data,
                rekor_public_key_datas,
                ..
            } if [rekor_public_key_path, rekor_public_key_paths, rekor_public_key_data, rekor_public_key_datas]
                .iter()
                .any(Option::is_some) =>
            {
                unsupported("sigstoreSigned with an entry in a rekor log")
            }
            Self::SigstoreSigned { key_path, key_paths, key_data, key_datas, signed_identity, .. } => {
                let paths = [key_path.map(|path| vec![path]), key_paths];
                let datas = [key_data.map(|data| vec![data]), key_datas];
                let keys = check_keys(paths, datas)?;
                let identity = signed_identity.map_or(Ok(SignedIdentity::RepoDigestOrExact), RawIdentity::check)?;
                Ok(Requirement::Sigstore { keys, identity })
            }
        }
    }
}

fn check_keys(paths: [Option<Vec<String>>; 2], datas: [Option<Vec<String>>; 2]) -> Result<Vec<KeySource>, String> {
    let given = paths.iter().chain(&datas).filter(|list| list.is_some()).count();
    if given != 1 {
        return Err(format!("sigstoreSigned needs exactly one of keyPath, keyPaths, keyData and keyDatas, and has {given}"));
    }
    let path = |path: String| match path.starts_with('/') {
        true => Ok(KeySource::File(PathBuf::from(path))),
        false => Err(format!("the key path `{path}` is not absolute")),
    };
    let data = |data: String| match STANDARD.decode(data.trim()) {
        Ok(bytes) => Ok(KeySource::Data(bytes)),
        Err(e) => Err(format!("keyData is not base64: {e}")),
    };
    let mut keys: Vec<KeySource> = paths.into_iter().flatten().flatten().map(path).collect::<Result<_, _>>()?;
    keys.extend(datas.into_iter().flatten().flatten().map(data).collect::<Result<Vec<_>, _>>()?);
    match keys.len() {
        0 => Err("sigstoreSigned names no key".to_owned()),
        n if n > MAX_KEYS => Err(format!("sigstoreSigned names {n} keys, at most {MAX_KEYS} are read")),
        _ => Ok(keys),
    }
}

impl RawIdentity {
    fn check(self) -> Result<SignedIdentity, String> {
        Ok(match self {
            Self::MatchExact {} => SignedIdentity::Exact,
            Self::MatchRepoDigestOrExact {} => SignedIdentity::RepoDigestOrExact,
            Self::MatchRepository {} => SignedIdentity::Repository,
            Self::ExactReference { docker_reference } => {
                let named = Named::parse(&docker_reference)?;
                if named.is_name_only() {
                    return Err(format!("dockerReference `{docker_reference}` has neither tag nor digest"));
                }
                SignedIdentity::ExactReference(named)
            }
            Self::ExactRepository { docker_repository } => {
                let named = Named::parse(&docker_repository)?;
                if !named.is_name_only() {
                    return Err(format!("dockerRepository `{docker_repository}` has a tag or a digest"));
                }
                SignedIdentity::ExactRepository(named)
            }
            Self::RemapIdentity { prefix, signed_prefix } => {
                check_prefix(&prefix).and_then(|()| check_prefix(&signed_prefix))?;
                SignedIdentity::Remap { prefix, signed_prefix }
            }
        })
    }
}

/// A map in which no key may come twice.
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Once<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(key) = access.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("`{key}` is there twice")));
                    }
                    map.insert(key, access.next_value()?);
                }
                Ok(Unique(map))
            }
        }
        deserializer.deserialize_map(Once(PhantomData))
    }
}
