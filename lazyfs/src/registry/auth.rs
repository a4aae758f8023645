//! Who we are, to a registry: challenges, tokens and their renewal (distribution-spec "token authentication", RFC 9110 section 11).
//!
//! An [`Authenticator`] belongs to one repository. It starts anonymous; the registry's first 401 says what it wants (`Basic` or
//! `Bearer` with a token service). A token is renewed ahead of its end, and after any 401 or 403 that came in spite of it: some
//! registries answer 403 for an expired token.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::client::{Registry, read_limited};
use super::credentials::Credential;
use crate::error::{Error, Outcome, Result};

/// How long a token lives whose service does not say it (distribution-spec: "for compatibility ... 60 seconds").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// How long before its end a token is renewed, or a third of its life if that is shorter.
const RENEW_AHEAD: Duration = Duration::from_secs(30);
/// The largest answer of a token service, bytes.
const MAX_TOKEN: u64 = 1 << 20;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Send user and password.
    Basic,
    /// Get a token first.
    Bearer {
        /// Where from.
        realm: String,
        /// For whom, as the registry calls itself.
        service: Option<String>,
        /// For what; a repository and its actions.
        scope: Option<String>,
    },
}

/// What a request was authorised with.
#[derive(Clone)]
pub(super) struct Proof {
    pub header: HeaderValue,
    /// Grows with each renewal: tells whether somebody else has renewed since a request was sent.
    generation: u64,
    renew_at: Option<Instant>,
}

/// The authorisation of one repository.
pub(super) struct Authenticator {
    scope: String,
    credential: Option<Credential>,
    state: Mutex<State>,
    /// Held across the token request, against this project's habit: it is what makes twenty parallel requests renew once. Nothing
    /// else is locked under it, and the request that it covers has a deadline.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    challenge: Option<Challenge>,
    proof: Option<Proof>,
}

impl Authenticator {
    /// `actions` is `pull`, or `pull,push`.
    pub fn new(repository: &str, actions: &str, credential: Option<Credential>) -> Self {
        let scope = format!("repository:{repository}:{actions}");
        Self { scope, credential, state: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Whether there is anything to log in with.
    pub fn is_anonymous(&self) -> bool {
        self.credential.is_none()
    }

    /// What to send now; renews a token that is about to end.
    pub async fn proof(&self, registry: &Registry) -> Result<Option<Proof>> {
        let (proof, challenge) = {
            let state = self.state();
            (state.proof.clone(), state.challenge.clone())
        };
        match (&proof, challenge) {
            (Some(old), Some(challenge)) if old.renew_at.is_some_and(|at| at <= Instant::now()) => {
                self.renew(registry, challenge, Some(old)).await?;
                Ok(self.state().proof.clone())
            }
            _ => Ok(proof),
        }
    }

    /// Acts on a 401 or 403 to a request that was sent with `used`. True: try again, there is something new to send.
    pub async fn refused(&self, registry: &Registry, response: &Response, used: Option<&Proof>) -> Result<bool> {
        let texts = response.headers().get_all(reqwest::header::WWW_AUTHENTICATE);
        let offered: Vec<Challenge> = texts.iter().filter_map(|text| text.to_str().ok()).flat_map(parse_challenges).collect();
        let is_bearer = |c: &&Challenge| matches!(c, Challenge::Bearer { .. });
        let chosen = offered.iter().find(is_bearer).or(offered.first()).cloned().or_else(|| self.state().challenge.clone());
        let Some(challenge) = chosen else { return Ok(false) };
        if challenge == Challenge::Basic && (used.is_some() || self.credential.is_none()) {
            return Ok(false);
        }
        // A 403 without a challenge is a token that was not good enough; without a token it is a refusal.
        if response.status() == StatusCode::FORBIDDEN && used.is_none() {
            return Ok(false);
        }
        self.renew(registry, challenge, used).await?;
        Ok(true)
    }

    async fn renew(&self, registry: &Registry, challenge: Challenge, used: Option<&Proof>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let now = self.state().proof.as_ref().map(|p| p.generation);
        if now.unwrap_or(0) > used.map_or(0, |p| p.generation) {
            return Ok(());
        }
        let (header, life) = match &challenge {
            Challenge::Basic => (self.basic()?, None),
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.as_deref().unwrap_or(&self.scope);
                let token = self.token(registry, realm, service.as_deref(), scope).await?;
                (secret(&format!("Bearer {}", token.text), "token")?, Some(token.life))
            }
        };
        let renew_at = life.map(|life| Instant::now() + life.saturating_sub(RENEW_AHEAD.min(life / 3)));
        let mut state = self.state();
        state.proof = Some(Proof { header, generation: now.unwrap_or(0) + 1, renew_at });
        state.challenge = Some(challenge);
        Ok(())
    }

    fn basic(&self) -> Result<HeaderValue> {
        match &self.credential {
            Some(Credential::Password { user, password }) => {
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                secret(&format!("Basic {text}"), "password")
            }
            Some(Credential::IdentityToken(_)) => Err(Error::new(Outcome::Denied, "logging in with an identity token")
                .because("this registry wants a user and a password")
                .advise("log in again with `podman login` or `docker login`")),
            None => Err(Error::new(Outcome::Denied, "logging in without credentials")),
        }
    }

    async fn token(&self, registry: &Registry, realm: &str, service: Option<&str>, scope: &str) -> Result<Token> {
        let tried = || format!("getting a token for {scope} from {realm}");
        let url = Url::parse(realm).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
        if !registry.may_send_secrets(&url) {
            return Err(Error::new(Outcome::Denied, tried()).because("the token service is neither https nor on this machine"));
        }
        let response = registry
            .send_patiently(tried, || {
                let mut fields: Vec<(&str, &str)> = service.map(|s| ("service", s)).into_iter().collect();
                fields.extend([("scope", scope), ("client_id", "towline")]);
                if let Some(Credential::IdentityToken(token)) = &self.credential {
                    fields.extend([("grant_type", "refresh_token"), ("refresh_token", token)]);
                    return registry
                        .http()
                        .post(url.clone())
                        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                        .body(form(&fields));
                }
                if let Some(Credential::Password { user, .. }) = &self.credential {
                    fields.push(("account", user));
                }
                let mut url = url.clone();
                url.query_pairs_mut().extend_pairs(&fields);
                let request = registry.http().get(url);
                match self.basic() {
                    Ok(basic) => request.header(AUTHORIZATION, basic),
                    Err(_) => request,
                }
            })
            .await?;
        let status = response.status();
        if !status.is_success() {
            let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST);
            let outcome = if denied { Outcome::Denied } else { Outcome::Unavailable };
            let error = Error::new(outcome, tried()).because(format!("the token service answered {status}"));
            return Err(if denied { error.advise("are user and password right? `podman login` checks them") } else { error });
        }
        // The server's own clock: ours may be wrong, or be set meanwhile.
        let date = response.headers().get(DATE).and_then(|date| super::date::parse(date.to_str().ok()?));
        let body = registry.deadline(tried, read_limited(response, MAX_TOKEN)).await?;
        Token::parse(&body, date).map_err(|e| e.during(tried()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

fn secret(text: &str, what: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::new(Outcome::BadInput, format!("sending a {what} with characters that HTTP cannot carry")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form.invalid/").expect("a constant");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

struct Token {
    text: String,
    life: Duration,
}

impl Token {
    /// `date` is when the answer was sent, in seconds since the epoch: a token from a cache has lived for a while.
    fn parse(body: &[u8], date: Option<i64>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
            issued_at: Option<String>,
        }
        // The parser's message could quote the token.
        let bad = |why: &'static str| Error::new(Outcome::BadInput, "reading the token service's answer").because(why);
        let raw: Raw = serde_json::from_slice(body).map_err(|_| bad("it is not a token response"))?;
        let text = raw.token.or(raw.access_token).filter(|t| !t.is_empty()).ok_or_else(|| bad("it has no token"))?;
        let life = raw.expires_in.filter(|s| *s > 0.0 && *s < 1e9).map_or(DEFAULT_LIFE, Duration::from_secs_f64);
        let issued = raw.issued_at.and_then(|text| crate::layer::rfc3339::parse(&text)).map(|(seconds, _)| seconds);
        let age = date.zip(issued).map_or(0, |(date, issued)| u64::try_from(date.saturating_sub(issued)).unwrap_or(0));
        let life = life.saturating_sub(Duration::from_secs(age));
        Ok(Self { text, life })
    }
}

/// Parses one `WWW-Authenticate` value: `scheme [param[, param]…][, scheme …]`. Unknown schemes and broken parts are left out.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut all: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for part in split_outside_quotes(text) {
        let part = part.trim();
        // `Bearer realm="…"` opens a challenge, `service="…"` goes on with it.
        let (scheme, param) = match part.split_once([' ', '\t']) {
            Some((first, rest)) if !first.contains('=') => (Some(first), rest.trim()),
            _ if !part.contains('=') => (Some(part), ""),
            _ => (None, part),
        };
        if let Some(scheme) = scheme.filter(|s| !s.is_empty()) {
            all.push((scheme.to_ascii_lowercase(), Vec::new()));
        }
        if let (Some((_, params)), Some((name, value))) = (all.last_mut(), param.split_once('=')) {
            params.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    let check = |(scheme, params): (String, Vec<(String, String)>)| {
        let find = |name: &str| params.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer { realm: find("realm")?, service: find("service"), scope: find("scope") }),
            _ => None,
        }
    };
    all.into_iter().filter_map(check).collect()
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else { return value.to_owned() };
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        for (text, wanted) in [
            (hub, vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"))]),
            (r#"Basic realm="a, b""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (r#"bearer Realm=https://x , service="s\"q""#, vec![bearer("https://x", Some("s\"q"), None)]),
            (r#"Negotiate, Bearer realm="r", Basic realm="b""#, vec![bearer("r", None, None), Challenge::Basic]),
            ("Bearer service=\"no realm\"", vec![]),
            ("", vec![]),
            (", ,=,\"", vec![]),
            ("Digest qop=\"auth", vec![]),
        ] {
            assert_eq!(parse_challenges(text), wanted, "{text}");
        }
    }

    #[test]
    fn token_answers_are_parsed() {
        for (body, wanted) in [
            (r#"{"token":"t","expires_in":300}"#, Some(("t", 300))),
            (r#"{"access_token":"a"}"#, Some(("a", 60))),
            (r#"{"token":"t","access_token":"a","expires_in":0}"#, Some(("t", 60))),
            (r#"{"token":"t","expires_in":300,"issued_at":"1970-01-01T00:15:00Z"}"#, Some(("t", 200))),
            (r#"{"token":"t","expires_in":300,"issued_at":"1970-01-01T00:00:00Z"}"#, Some(("t", 0))),
            (r#"{"token":"t","expires_in":300,"issued_at":"2030-01-01T00:00:00Z"}"#, Some(("t", 300))),
            (r#"{"token":"t","expires_in":300,"issued_at":"now"}"#, Some(("t", 300))),
            (r#"{"token":""}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            let token = Token::parse(body.as_bytes(), Some(1000)).ok();
            assert_eq!(token.map(|t| (t.text, t.life.as_secs())), wanted.map(|(t, l)| (t.to_owned(), l)), "{body}");
        }
        assert_eq!(form(&[("scope", "repository:a/b:pull"), ("x", "&=")]), "scope=repository%3Aa%2Fb%3Apull&x=%26%3D");
    }
}
