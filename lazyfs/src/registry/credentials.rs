//! Credentials as users already have them: `containers-auth.json` (podman, skopeo, buildah) and docker's `config.json`.
//!
//! Parsing only: which files exist is the caller's business, and so are credential helpers, which are programs to run.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use serde::Deserialize;

use crate::error::{Error, Outcome, Result};

/// The largest file that is read, bytes.
const MAX_FILE: usize = 1 << 20;

/// What proves to a registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password (or an access token in its place).
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token that the registry's token service gave at login ("identity token").
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password of {user}"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// A parsed credentials file.
#[derive(Clone, Debug, Default)]
pub struct AuthFile {
    /// Normalised key (`host[:port][/namespace]`) -> credential.
    credentials: BTreeMap<String, Credential>,
    /// Normalised key -> name of the credential helper.
    helpers: BTreeMap<String, String>,
    /// The helper for everything else.
    store: Option<String>,
}

impl AuthFile {
    /// Parses `bytes`; `name` says in messages whose they are. Secrets never appear in an error.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let refuse = |why: String| Error::new(Outcome::BadInput, format!("reading credentials from {name}")).because(why);
        if bytes.len() > MAX_FILE {
            return Err(refuse(format!("it has {} bytes, at most {MAX_FILE} are read", bytes.len())));
        }
        // serde_json quotes values in type errors, which could be a secret: only the position is passed on.
        let raw: RawFile = serde_json::from_slice(bytes)
            .map_err(|e| refuse(format!("malformed JSON at line {}, column {}", e.line(), e.column())))?;
        let mut file = Self { store: raw.creds_store.filter(|s| !s.is_empty()), ..Self::default() };
        for (key, entry) in raw.auths {
            let credential = entry.check().map_err(|why| refuse(format!("auths[`{key}`]: {why}")))?;
            if let Some(credential) = credential {
                file.credentials.insert(normal_key(&key), credential);
            }
        }
        file.helpers = raw.cred_helpers.into_iter().map(|(key, helper)| (normal_key(&key), helper)).collect();
        Ok(file)
    }

    /// The credential for a repository: that of the longest namespace that has one (containers-auth.json(5)).
    pub fn credential(&self, host: &str, repository: &str) -> Option<&Credential> {
        let full = format!("{}/{repository}", normal_key(host));
        let mut key = full.as_str();
        loop {
            if let Some(credential) = self.credentials.get(key) {
                return Some(credential);
            }
            key = &key[..key.rfind('/')?];
        }
    }

    /// The credential helper that the file names for a host (`docker-credential-NAME`); it comes before what the file has itself.
    pub fn helper_of(&self, host: &str) -> Option<&str> {
        self.helpers.get(&normal_key(host)).map(String::as_str)
    }

    /// The credential helper for everything else.
    pub fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }
}

/// Keys come with a scheme and an API path (docker login to the Hub writes `https://index.docker.io/v1/`).
fn normal_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, rest) = key.split_at(key.find('/').unwrap_or(key.len()));
    match host {
        "index.docker.io" | "registry-1.docker.io" => format!("docker.io{rest}"),
        _ => key.to_owned(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    #[serde(default)]
    auths: BTreeMap<String, RawEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct RawEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl RawEntry {
    /// `None` for an empty entry: docker writes `{}` where a helper has the secret.
    fn check(self) -> Result<Option<Credential>, &'static str> {
        if let Some(token) = self.identitytoken.filter(|t| !t.is_empty()) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        let Some(auth) = self.auth.filter(|a| !a.is_empty()) else {
            return Ok(match (self.username, self.password) {
                (Some(user), Some(password)) => Some(Credential::Password { user, password }),
                _ => None,
            });
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| "`auth` is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "`auth` is not UTF-8")?;
        let (user, password) = text.split_once(':').ok_or("`auth` is not base64 of USER:PASSWORD")?;
        // Docker pads with NULs.
        let password = password.trim_end_matches('\0').to_owned();
        match user {
            "<token>" => Ok(Some(Credential::IdentityToken(password))),
            user => Ok(Some(Credential::Password { user: user.to_owned(), password })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> Credential {
        Credential::Password { user: user.to_owned(), password: "p".to_owned() }
    }

    #[test]
    fn the_longest_namespace_wins() {
        // dTpw = u:p, djpw = v:p, dzpw = w:p
        let file = AuthFile::parse(
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"quay.io":{"auth":"djpw"},"quay.io/team":{"auth":"dzpw"},
                "gone.io":{},"id.io":{"auth":"","identitytoken":"t"},"plain.io:5000":{"username":"x","password":"p"}},
                "credHelpers":{"gcr.io":"gcloud"},"credsStore":"desktop","other":1}"#,
            "f",
        )
        .unwrap();
        let token = Credential::IdentityToken("t".to_owned());
        for (host, repository, wanted) in [
            ("docker.io", "library/redis", Some(password("u"))),
            ("quay.io", "other/a", Some(password("v"))),
            ("quay.io", "team/a", Some(password("w"))),
            ("quay.io", "teammate/a", Some(password("v"))),
            ("gone.io", "a", None),
            ("id.io", "a", Some(token)),
            ("plain.io:5000", "a", Some(password("x"))),
            ("plain.io", "a", None),
        ] {
            assert_eq!(file.credential(host, repository), wanted.as_ref(), "{host}/{repository}");
        }
        assert_eq!((file.helper_of("gcr.io"), file.helper_of("a.io"), file.store()), (Some("gcloud"), None, Some("desktop")));
    }

    #[test]
    fn bad_files_are_refused_without_showing_secrets() {
        for (text, why) in [
            ("", "malformed JSON at line 1"),
            (r#"{"auths":"hunter2"}"#, "malformed JSON at line 1"),
            (r#"{"auths":{"a":{"auth":"hunter2!"}}}"#, "auths[`a`]: `auth` is not base64"),
            (r#"{"auths":{"a":{"auth":"aHVudGVyMg=="}}}"#, "USER:PASSWORD"),
            (r#"{"auths":{"a":{"auth":"//8="}}}"#, "not UTF-8"),
        ] {
            let error = AuthFile::parse(text.as_bytes(), "f").unwrap_err().one_line();
            assert!(error.contains(why) && !error.contains("hunter"), "{text}: {error}");
        }
        assert!(!format!("{:?}", Credential::IdentityToken("hunter2".into())).contains("hunter"));
    }
}
