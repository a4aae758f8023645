//! A repository as a [`Sink`] (distribution-spec 1.1, "Pushing").
//!
//! ```text
//! HEAD blob --there--> done
//!   | POST ?mount=…&from=…  (the content is in another repository of this registry) --201--> done
//!   | POST --202--> an upload session
//!        small: PUT ?digest=… with all bytes
//!        large: PATCH, PATCH, … then PUT ?digest=…
//!        broken off: GET the session says how much has arrived, and it goes on from there; else a new session
//! ```
//!
//! One piece of a blob is under way at a time, straight from its content to the registry: nothing is held in memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::client::is_passing;
use super::repository::{MAX_LOGINS, Repository, without_query};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::About;
use crate::sink::{Blob, Content, Progress, Sink, Stored};
use crate::source::{BoxFuture, RawManifest, Source};

/// How often an upload is taken up again after a failure that looks passing, without any progress in between.
const ATTEMPTS: u32 = 5;
/// The longest pause between two attempts, also where the registry asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An upload that the registry has opened.
struct Session {
    url: Url,
    /// Bytes that have arrived.
    offset: u64,
    /// The least length of a piece that is not the last one.
    least: u64,
}

impl Repository {
    async fn is_there(&self, blob: Blob) -> Result<bool> {
        let response = self.ask(Method::HEAD, &format!("blobs/{}", blob.digest), &HeaderMap::new(), None, true).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure_of("HEAD", response).await),
        }
    }

    async fn push_blob(&self, blob: Blob, content: &Content, progress: Progress<'_>) -> Result<Stored> {
        let tried = || format!("pushing blob {} to {}", blob.digest, Sink::name(self));
        let stored = async {
            if self.is_there(blob).await? {
                return Ok(Stored::Existed);
            }
            let elsewhere = content.repository().filter(|(host, name)| *host == self.host && *name != self.name);
            let Some(mut session) = self.begin(blob, elsewhere.map(|(_, name)| name)).await? else { return Ok(Stored::Mounted) };
            let sent = self.upload(&mut session, blob, content, progress).await;
            if sent.is_err() {
                self.give_up(&session).await;
            }
            sent.map(|()| Stored::Sent)
        };
        let stored: Stored = stored.await.map_err(|e: Error| e.during(tried()))?;
        progress(blob.size);
        Ok(stored)
    }

    /// Opens an upload; `None` where the registry took the blob over from the repository `from`.
    async fn begin(&self, blob: Blob, from: Option<&str>) -> Result<Option<Session>> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        if let Some(from) = from {
            let path = format!("blobs/uploads/?mount={}&from={}", blob.digest, from.replace('/', "%2F"));
            let response = self.ask(Method::POST, &path, &headers, None, true).await?;
            match response.status() {
                StatusCode::CREATED => return Ok(None),
                StatusCode::ACCEPTED => return self.session(&response).map(Some),
                // Whoever may not read there still may write here.
                status => tracing::debug!("{} does not mount {} from {from}: {status}", Sink::name(self), blob.digest),
            }
        }
        let response = self.ask(Method::POST, "blobs/uploads/", &headers, None, true).await?;
        match response.status() {
            StatusCode::ACCEPTED => self.session(&response).map(Some),
            _ => Err(self.refusal("POST", response).await),
        }
    }

    fn session(&self, response: &Response) -> Result<Session> {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let url = self.location(response.url(), header(LOCATION.as_str()).unwrap_or_default())?;
        let least = header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Session { url, offset: 0, least })
    }

    /// Where an upload goes on. A registry behind a proxy that ends TLS often names itself with http.
    fn location(&self, asked: &Url, text: &str) -> Result<Url> {
        let wrong =
            |why: String| Error::new(Outcome::Unsupported, format!("opening an upload at {}", without_query(asked))).because(why);
        if text.is_empty() {
            return Err(wrong("the answer has no Location".to_owned()));
        }
        let mut url = asked.join(text).map_err(|e| wrong(format!("its Location `{text}` is malformed: {e}")))?;
        let is_downgrade = asked.scheme() == "https" && url.scheme() == "http";
        if is_downgrade && (url.host_str() != asked.host_str() || url.set_scheme("https").is_err()) {
            return Err(wrong("it sends the upload from https to plain http".to_owned()));
        }
        Ok(url)
    }

    /// Sends everything, from where the session is. Failures that look passing are tried again, more of them where there is progress.
    async fn upload(&self, session: &mut Session, blob: Blob, content: &Content, progress: Progress<'_>) -> Result<()> {
        let (mut failures, mut pause) = (0, Duration::from_millis(200));
        loop {
            let before = session.offset;
            let error = match self.advance(session, blob, content, progress).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    failures = 0;
                    continue;
                }
                Err(error) if error.outcome() != Outcome::Unavailable => return Err(error),
                Err(error) => error,
            };
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(error);
            }
            tracing::debug!("pushing again: {}", error.one_line());
            tokio::time::sleep(error.asked_to_wait().unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.take_up(session, blob).await?;
            if session.offset > before {
                failures = 0;
            }
            progress(session.offset);
        }
    }

    /// Sends the next piece, or the last one; true when the registry has the blob.
    async fn advance(&self, session: &mut Session, blob: Blob, content: &Content, progress: Progress<'_>) -> Result<bool> {
        let piece = self.registry.options().piece.max(session.least);
        if session.offset == 0 && blob.size > piece || session.offset > 0 && session.offset < blob.size {
            let range = session.offset..blob.size.min(session.offset + piece);
            let response = self.send_piece(Method::PATCH, &session.url, content, range.clone(), true, progress).await?;
            if response.status() != StatusCode::ACCEPTED {
                return Err(self.refusal("PATCH", response).await);
            }
            let least = session.least;
            *session = Session { offset: arrived(&response).unwrap_or(range.end), least, ..self.session(&response)? };
            return Ok(false);
        }
        // A registry that has more than there is will say that the digest is wrong.
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let rest = session.offset.min(blob.size)..blob.size;
        let response = self.send_piece(Method::PUT, &url, content, rest, false, progress).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(true),
            StatusCode::BAD_REQUEST => {
                let refused = self.failure_of("PUT", response).await;
                Err(Error::new(Outcome::Integrity, format!("sending {} bytes of {content:?}", blob.size))
                    .because(refused)
                    .advise("the source's copy of this blob is damaged, or the registry does not take it"))
            }
            _ => Err(self.refusal("PUT", response).await),
        }
    }

    /// Asks how much of a session has arrived, or opens another one.
    async fn take_up(&self, session: &mut Session, blob: Blob) -> Result<()> {
        let tried = || format!("GET {}", without_query(&session.url));
        let request = || self.registry.http().get(session.url.clone());
        let known = match self.send_to_session(tried, &session.url, request).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => {
                let place = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
                let url = place.map_or(Ok(session.url.clone()), |place| self.location(response.url(), place))?;
                arrived(&response).map(|offset| Session { url, offset: offset.min(blob.size), least: session.least })
            }
            Ok(response) => {
                tracing::debug!("{} does not know the upload any more: {}", Sink::name(self), response.status());
                None
            }
            Err(e) => {
                tracing::debug!("{}", e.one_line());
                None
            }
        };
        *session = match known {
            Some(known) => known,
            None => self.begin(blob, None).await?.expect("nothing was to be mounted"),
        };
        Ok(())
    }

    /// Ends a session that comes to nothing. The registry would end it some day, too.
    async fn give_up(&self, session: &Session) {
        let tried = || format!("DELETE {}", without_query(&session.url));
        let request = || self.registry.http().delete(session.url.clone());
        match self.send_to_session(tried, &session.url, request).await {
            Ok(response) => tracing::debug!("{}: {}", tried(), response.status()),
            Err(e) => tracing::debug!("{}", e.one_line()),
        }
    }

    async fn send_to_session(
        &self,
        tried: impl Fn() -> String,
        url: &Url,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<Response> {
        let proof = if self.is_own(url) { self.auth.proof(&self.registry).await? } else { None };
        let request = match &proof {
            Some(proof) => request().header(AUTHORIZATION, proof.header.clone()),
            None => request(),
        };
        self.registry.send(tried, request).await
    }

    /// Sends bytes `range` of the content, again with a new token where the old one has ended.
    async fn send_piece(
        &self,
        method: Method,
        url: &Url,
        content: &Content,
        range: Range<u64>,
        is_part: bool,
        progress: Progress<'_>,
    ) -> Result<Response> {
        let tried = || format!("{method} {}", without_query(url));
        let own = self.is_own(url);
        for login in 0.. {
            let proof = if own { self.auth.proof(&self.registry).await? } else { None };
            let sent = Arc::new(AtomicU64::new(0));
            let (count, pieces) = (Arc::clone(&sent), content.open(range.clone()).await?);
            let failed = Arc::new(std::sync::Mutex::new(None));
            let keep = Arc::clone(&failed);
            let body = Body::wrap_stream(pieces.map(move |piece| match piece {
                Ok(piece) => {
                    count.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    Ok(piece)
                }
                Err(e) => {
                    // The HTTP client would only say that the body ended with an error.
                    let said = std::io::Error::other(e.one_line());
                    *keep.lock().expect("no holder of this lock panics") = Some(e);
                    Err(said)
                }
            }));
            let mut request = self
                .registry
                .http()
                .request(method.clone(), url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, range.end - range.start)
                .body(body);
            if is_part {
                request = request.header(CONTENT_RANGE, format!("{}-{}", range.start, range.end - 1));
            }
            if let Some(proof) = &proof {
                request = request.header(AUTHORIZATION, proof.header.clone());
            }
            let report = || progress(range.start + sent.load(Ordering::Relaxed));
            let response = match self.send_while_moving(&tried, request, &sent, report).await {
                Ok(response) => response,
                Err(e) => return Err(failed.lock().expect("no holder of this lock panics").take().unwrap_or(e)),
            };
            let refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let retry =
                refused && own && login < MAX_LOGINS && self.auth.refused(&self.registry, &response, proof.as_ref()).await?;
            if !retry {
                return Ok(response);
            }
        }
        unreachable!("the last round returns")
    }

    /// Sends a request with a long body; given up when nothing has moved for as long as an answer may take.
    async fn send_while_moving(
        &self,
        tried: &impl Fn() -> String,
        request: reqwest::RequestBuilder,
        sent: &AtomicU64,
        report: impl Fn(),
    ) -> Result<Response> {
        const TICK: Duration = Duration::from_millis(100);
        // A registry checks the digest of all that came, and may copy it, before it answers.
        let patience = self.registry.options().headers * 3;
        let answer = request.send();
        tokio::pin!(answer);
        let (mut last, mut still) = (0, Duration::ZERO);
        loop {
            match tokio::time::timeout(TICK, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(e)) => return Err(super::client::transport(tried(), e)),
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    report();
                    still = if now == last { still + TICK } else { Duration::ZERO };
                    last = now;
                    if still >= patience {
                        return Err(Error::new(Outcome::Unavailable, tried())
                            .because(format!("nothing moved for {} s after {now} bytes", still.as_secs()))
                            .advise("is the registry overloaded, or its disk full?"));
                    }
                }
            }
        }
    }

    /// Tokens go to the registry and not to a storage that it sends uploads to.
    fn is_own(&self, url: &Url) -> bool {
        let own = self.url(url.scheme(), "");
        own.is_ok_and(|own| own.host_str() == url.host_str() && own.port_or_known_default() == url.port_or_known_default())
    }

    /// What it means that a registry does not take something.
    async fn refusal(&self, method: &str, response: Response) -> Error {
        let status = response.status();
        let error = self.failure_of(method, response).await;
        match status {
            StatusCode::METHOD_NOT_ALLOWED => Error::new(Outcome::Denied, format!("pushing to {}", Sink::name(self)))
                .because(error)
                .advise("the registry is read-only"),
            StatusCode::PAYLOAD_TOO_LARGE => Error::new(Outcome::Unsupported, format!("pushing to {}", Sink::name(self)))
                .because(error)
                .advise("the registry or a proxy before it limits the size of uploads: raise that limit"),
            StatusCode::INSUFFICIENT_STORAGE => Error::new(Outcome::NoSpace, format!("pushing to {}", Sink::name(self)))
                .because(error)
                .advise("the registry's disk is full: free space there"),
            status if status.is_client_error() && !is_passing(status) && error.outcome() == Outcome::Unsupported => {
                error.advise("the registry does not take this")
            }
            _ => error,
        }
    }

    async fn push_manifest(&self, manifest: &RawManifest, tag: Option<&str>) -> Result<()> {
        let name = tag.filter(|tag| !tag.is_empty()).map_or_else(|| manifest.digest.to_string(), str::to_owned);
        let about = About::of(manifest)?;
        let tried = || format!("pushing manifest {} as {name} to {}", manifest.digest, Sink::name(self));
        let response = self.put_manifest_text(manifest, &about.media_type, &name).await.map_err(|e| e.during(tried()))?;
        let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        if let Some(Ok(stored)) = said.map(str::parse::<Digest>)
            && stored != manifest.digest
        {
            return Err(Error::new(Outcome::Integrity, tried())
                .because(format!("the registry stored it as {stored}"))
                .advise("the registry or something on the way to it changes content"));
        }
        match about.subject {
            // The registry that knows referrers says so.
            Some(subject) if !response.headers().contains_key("oci-subject") => {
                self.list_by_tag(manifest, &about, subject).await.map_err(|e| e.during(tried()))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn put_manifest_text(&self, manifest: &RawManifest, media_type: &str, name: &str) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(media_type)
            .map_err(|e| Error::new(Outcome::BadInput, format!("reading media type `{media_type}`")).because(e))?;
        headers.insert(CONTENT_TYPE, value);
        let response = self.ask(Method::PUT, &format!("manifests/{name}"), &headers, Some(&manifest.bytes), true).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(response),
            _ => Err(self.refusal("PUT", response).await),
        }
    }
}

/// How many bytes a session has: `Range: 0-1023`. An empty one is `0-0` or has none, which one byte looks like, too: it is sent again.
fn arrived(response: &Response) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let (_, last) = text.trim_start_matches("bytes=").split_once('-')?;
    match last.trim().parse::<u64>().ok()? {
        0 => Some(0),
        last => last.checked_add(1),
    }
}

impl Sink for Repository {
    fn name(&self) -> String {
        Source::name(self)
    }

    fn has_blob(&self, blob: Blob) -> BoxFuture<'_, Result<bool>> {
        Box::pin(self.is_there(blob))
    }

    fn put_blob<'a>(&'a self, blob: Blob, content: &'a Content, progress: Progress<'a>) -> BoxFuture<'a, Result<Stored>> {
        Box::pin(self.push_blob(blob, content, progress))
    }

    fn put_manifest<'a>(&'a self, manifest: &'a RawManifest, tag: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.push_manifest(manifest, tag))
    }
}
