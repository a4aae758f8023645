//! One repository of a registry: manifests and blob ranges.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::auth::Authenticator;
use super::body::stream_exactly;
use super::client::{MAX_REDIRECTS, Registry, authority, check_encoding, is_passing, read_limited, retry_after};
use super::credentials::Credential;
use super::endpoint::{Endpoint, Transport};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{ACCEPTED, MAX_MANIFEST};
use crate::reference::RegistryReference;
use crate::source::{BoxFuture, ByteStream, RawManifest, Referrer, Source};

/// The largest error document that is read, bytes.
const MAX_ERROR: u64 = 16 * 1024;
/// How often one request may be sent again with new authorisation: first anonymous, then with a token, then with a fresh one.
pub(super) const MAX_LOGINS: u32 = 2;

/// One repository in one registry.
pub struct Repository {
    pub(super) registry: Registry,
    pub(super) host: String,
    pub(super) name: String,
    pub(super) auth: Authenticator,
    endpoint: Endpoint,
    /// For requests to the endpoint's host only.
    headers: HeaderMap,
    /// `http` or `https`, known after the first answer.
    scheme: OnceLock<&'static str>,
    /// Where the registry redirected a blob to (object storage, mostly): asking there directly saves a round trip per range.
    places: Mutex<HashMap<Digest, Url>>,
}

impl Repository {
    /// The repository of a reference; tag and digest in it are ignored.
    pub fn new(registry: &Registry, reference: &RegistryReference, credential: Option<Credential>) -> Self {
        Self::with(registry.clone(), unconfigured(registry, reference), HeaderMap::new(), credential, "pull")
    }

    /// The repository of a reference as a [`crate::sink::Sink`]: tokens are asked for that allow to push.
    pub fn to_push(registry: &Registry, reference: &RegistryReference, credential: Option<Credential>) -> Self {
        Self::with(registry.clone(), unconfigured(registry, reference), HeaderMap::new(), credential, "pull,push")
    }

    /// The repository at an endpoint. Reads the certificates that it names.
    pub fn at(registry: &Registry, endpoint: Endpoint, credential: Option<Credential>, push: bool) -> Result<Self> {
        let bad = |name: &str| {
            Error::new(Outcome::BadInput, format!("asking {endpoint}"))
                .because(format!("`{name}` is configured as a header and cannot be one, or its value cannot"))
                .advise("correct hosts.toml")
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.headers {
            let value = HeaderValue::from_str(value).map(|mut value| {
                value.set_sensitive(true);
                value
            });
            headers.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(name))?, value.map_err(|_| bad(name))?);
        }
        let registry = registry.at(&endpoint)?;
        Ok(Self::with(registry, endpoint, headers, credential, if push { "pull,push" } else { "pull" }))
    }

    fn with(registry: Registry, endpoint: Endpoint, headers: HeaderMap, credential: Option<Credential>, actions: &str) -> Self {
        Self {
            registry,
            host: endpoint.host.clone(),
            name: endpoint.repository.clone(),
            auth: Authenticator::new(&endpoint.repository, actions, credential),
            endpoint,
            headers,
            scheme: OnceLock::new(),
            places: Mutex::default(),
        }
    }

    /// Where it is asked.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The schemes to try, best first.
    fn schemes(&self) -> &'static [&'static str] {
        match self.scheme.get() {
            Some(&"http") => &["http"],
            Some(_) => &["https"],
            None => self.endpoint.schemes(),
        }
    }

    /// The host's part of an address.
    fn authority(&self) -> &str {
        if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host }
    }

    pub(super) fn url(&self, scheme: &str, path: &str) -> Result<Url> {
        let text = format!("{scheme}://{}{}/{}/{path}", self.authority(), self.endpoint.path, self.name);
        let mut url = Url::parse(&text).map_err(|e| Error::new(Outcome::BadInput, format!("asking {text}")).because(e))?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// What is known of its host.
    pub(super) fn known_host(&self) -> std::sync::Arc<super::host::Host> {
        let scheme = self.schemes()[0];
        let name = self.url(scheme, "").map(|url| authority(&url)).unwrap_or_default();
        self.registry.host(&name)
    }

    /// Sends a GET below the repository, logging in where the registry wants it. `patient` retries passing failures.
    async fn get(&self, path: &str, headers: &HeaderMap, patient: bool) -> Result<Response> {
        self.ask(Method::GET, path, headers, None, patient).await
    }

    /// Sends a request with a small body, if any.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Bytes>,
        patient: bool,
    ) -> Result<Response> {
        let mut first_failure = None;
        for scheme in self.schemes() {
            let url = self.url(scheme, path)?;
            let request = || {
                let request = self.registry.http().request(method.clone(), url.clone());
                let request = request.headers(self.headers.clone()).headers(headers.clone());
                match body {
                    Some(body) => request.body(body.clone()),
                    None => request,
                }
            };
            match self.send_authorized(|| format!("{method} {}", without_query(&url)), request, patient).await {
                Ok(response) if response.status() == StatusCode::BAD_REQUEST && self.schemes().len() > 1 => {
                    first_failure.get_or_insert(self.failure_of(method.as_str(), response).await);
                }
                Ok(response) => {
                    self.scheme.get_or_init(|| scheme);
                    return match method {
                        Method::GET => self.follow(response, headers).await,
                        _ => Ok(response),
                    };
                }
                Err(e) if e.outcome() != Outcome::Unavailable => return Err(e),
                Err(e) => {
                    first_failure.get_or_insert(e);
                }
            }
        }
        Err(first_failure.expect("there is at least one scheme"))
    }

    /// Follows redirects where the client does not, since there are headers that are for the endpoint's host alone.
    async fn follow(&self, mut response: Response, headers: &HeaderMap) -> Result<Response> {
        for _ in 0..MAX_REDIRECTS {
            let from = response.url().clone();
            let place = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
            let Some(place) = place.filter(|_| !self.headers.is_empty() && response.status().is_redirection()) else {
                return Ok(response);
            };
            let tried = || format!("following {} to its content", without_query(&from));
            let place = from.join(place).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
            if from.scheme() == "https" && place.scheme() != "https" {
                return Err(Error::new(Outcome::Denied, tried()).because("it redirects from https to plain http"));
            }
            response = self.registry.send(tried, self.registry.http().get(place).headers(headers.clone())).await?;
        }
        let tried = format!("following {}", without_query(response.url()));
        Err(Error::new(Outcome::Denied, tried).because(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Sends a request, again with authorisation where the registry wants it.
    async fn send_authorized(
        &self,
        tried: impl Fn() -> String,
        request: impl Fn() -> RequestBuilder,
        patient: bool,
    ) -> Result<Response> {
        for login in 0..=MAX_LOGINS {
            let proof = self.auth.proof(&self.registry).await?;
            let request = || match &proof {
                Some(proof) => request().header(AUTHORIZATION, proof.header.clone()),
                None => request(),
            };
            let response = match patient {
                true => self.registry.send_patiently(&tried, request).await?,
                false => self.registry.send(&tried, request()).await?,
            };
            let refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let retry = refused
                && login < MAX_LOGINS
                && self.auth.refused(&self.registry, &response, proof.as_ref()).await.map_err(|e| e.during(tried()))?;
            if !retry {
                return Ok(response);
            }
        }
        unreachable!("the last round returns")
    }

    /// What a response that is not the one hoped for means to the user.
    async fn failure(&self, response: Response) -> Error {
        self.failure_of("GET", response).await
    }

    pub(super) async fn failure_of(&self, method: &str, response: Response) -> Error {
        let (status, url, wait) = (response.status(), response.url().clone(), retry_after(&response));
        let said = match self.registry.deadline(String::new, read_limited(response, MAX_ERROR)).await {
            Ok(body) => explain(&body),
            // The status says enough; that the explanation broke off adds nothing.
            Err(_) => String::new(),
        };
        let image = format!("{}/{}", self.host, self.name);
        let (outcome, advice) = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.auth.is_anonymous() => {
                (Outcome::Denied, format!("is `{image}` spelled right? If it is private, log in: `podman login {}`", self.host))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                (Outcome::Denied, format!("the credentials for {} give no access to it; log in again", self.host))
            }
            StatusCode::NOT_FOUND => (Outcome::NotFound, format!("do `{image}` and this tag or digest exist in the registry?")),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                (Outcome::Integrity, "the registry's blob is shorter than its manifest says; push the image again".to_owned())
            }
            StatusCode::TOO_MANY_REQUESTS => {
                (Outcome::Unavailable, "the registry limits how often it is asked; wait, or log in".to_owned())
            }
            status if is_passing(status) => {
                (Outcome::Unavailable, "the registry has a problem of its own; try again later".to_owned())
            }
            _ => (Outcome::Unsupported, "this is not how a registry answers; is the host right?".to_owned()),
        };
        let because = if said.is_empty() { format!("it answered {status}") } else { format!("it answered {status}: {said}") };
        let error = Error::new(outcome, format!("{method} {}", without_query(&url))).because(because).advise(advice);
        match wait {
            Some(wait) => error.retry_after(wait),
            None => error,
        }
    }

    async fn get_manifest(&self, tag_or_digest: &str) -> Result<RawManifest> {
        let tried = || format!("reading the manifest {}:{tag_or_digest}", self.name());
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(&ACCEPTED.join(", ")).expect("media types are ASCII"));
        let response = self.get(&format!("manifests/{tag_or_digest}"), &headers, true).await?;
        if response.status() != StatusCode::OK {
            return Err(self.failure(response).await);
        }
        check_encoding(&response)?;
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let media_type = text(CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim().to_owned();
        let declared = text("docker-content-digest");
        let bytes = self.registry.deadline(tried, read_limited(response, MAX_MANIFEST)).await?;
        let digest = Digest::of(&bytes);
        let wanted = tag_or_digest.parse::<Digest>().or_else(|_| declared.parse());
        match wanted {
            Ok(wanted) if wanted != digest => Err(Error::new(Outcome::Integrity, tried())
                .because(format!("its digest is {digest}, not {wanted}"))
                .advise("the registry or something on the way to it changes content")),
            _ => Ok(RawManifest { bytes, digest, media_type }),
        }
    }

    async fn get_range(&self, blob: Digest, range: Range<u64>) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let mut headers = HeaderMap::new();
        let text = format!("bytes={}-{}", range.start, range.end - 1);
        headers.insert(RANGE, HeaderValue::from_str(&text).expect("digits are ASCII"));
        let place = self.places().get(&blob).cloned();
        if let Some(place) = place {
            let request = self.registry.http().get(place.clone()).headers(headers.clone());
            match self.registry.send(|| format!("GET {}", without_query(&place)), request).await {
                Ok(response) if response.status().is_success() => return self.check_range(response, &range),
                // It is overloaded; the registry would only send us there again.
                Ok(response) if is_passing(response.status()) => return Err(self.failure(response).await),
                // The place was lent for a while; only the registry knows the next one.
                Ok(_) | Err(_) => self.places().remove(&blob),
            };
        }
        let response = self.get(&format!("blobs/{blob}"), &headers, false).await?;
        if !response.status().is_success() {
            return Err(self.failure(response).await);
        }
        let elsewhere = response.url().path() != format!("{}/{}/blobs/{blob}", self.endpoint.path, self.name);
        if elsewhere {
            self.places().insert(blob, response.url().clone());
        }
        self.check_range(response, &range)
    }

    /// Accepts the range that was asked for, or the whole blob.
    fn check_range(&self, response: Response, range: &Range<u64>) -> Result<ByteStream> {
        check_encoding(&response)?;
        let idle = self.registry.options().idle;
        let len = range.end - range.start;
        let wrong = |why: String| {
            let tried = format!("GET {} from byte {} to {}", without_query(response.url()), range.start, range.end);
            Err(Error::new(Outcome::Unsupported, tried)
                .because(why)
                .advise("the registry cannot serve ranges; pull without --lazy"))
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let header = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                match parse_content_range(header) {
                    Some(sent) if sent == *range => Ok(stream_exactly(response, 0, len, idle)),
                    Some(sent) => wrong(format!("it sent bytes {} to {}", sent.start, sent.end)),
                    None => wrong(format!("it answered 206 with `Content-Range: {header}`")),
                }
            }
            StatusCode::OK => Ok(stream_exactly(response, range.start, len, idle)),
            other => wrong(format!("it answered {other}")),
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Url>> {
        self.places.lock().expect("no holder of this lock panics")
    }
}

/// The registry that a reference names, where nothing but the client's options is known of it.
fn unconfigured(registry: &Registry, reference: &RegistryReference) -> Endpoint {
    let mut endpoint = Endpoint::of(reference);
    if registry.is_plain(reference.host()) {
        endpoint.transport = Transport::Plain;
    }
    endpoint
}

impl Source for Repository {
    fn name(&self) -> String {
        format!("{}/{}", self.host, self.name)
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(self.get_manifest(tag_or_digest))
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(self.get_range(blob, range))
    }

    fn referrers<'a>(&'a self, subject: Digest, artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        Box::pin(self.list_referrers(subject, artifact_type))
    }

    fn repository(&self) -> Option<(&str, &str)> {
        Some((&self.host, &self.name))
    }
}

/// `bytes 0-99/1234` (RFC 9110 section 14.4) as a half-open range.
fn parse_content_range(text: &str) -> Option<Range<u64>> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total_fits = total == "*" || total.parse::<u64>().is_ok_and(|total| last < total);
    (first <= last && total_fits).then(|| first..last + 1)
}

/// The messages of an error document (distribution-spec, "Error codes"), or the beginning of a plain text.
fn explain(body: &Bytes) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Document>(body) {
        Ok(document) => document.errors.iter().map(|e| format!("{} {}", e.code, e.message)).collect::<Vec<_>>().join(", "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Signed addresses carry secrets in their query.
pub(super) fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}
