//! The HTTP client that all repositories share: TLS, deadlines, redirects, patience.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use crate::error::{Error, Outcome, Result};

/// How many hops a redirect may take.
const MAX_REDIRECTS: usize = 10;
/// How often a manifest or token is asked for.
const TRIES: u32 = 3;
/// The longest `Retry-After` that is waited for while a user looks on.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How registries are talked to.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a TCP connection and TLS handshake may take.
    pub connect: Duration,
    /// How long a registry may take from the request to the response's headers, redirects included.
    pub headers: Duration,
    /// How long a body may pause. A body that crawls below 1 KiB/s is given up too.
    pub idle: Duration,
    /// Hosts (with their ports, as in references) that speak plain HTTP. Hosts on this machine's loopback need not be named: they
    /// are tried with and without TLS.
    pub plain_http: Vec<String>,
    /// How many bytes of a blob one request of a push carries: what a broken connection costs at most, and what registries behind
    /// proxies still take.
    pub piece: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            headers: Duration::from_secs(20),
            idle: Duration::from_secs(15),
            plain_http: Vec::new(),
            piece: 32 << 20,
        }
    }
}

/// The HTTP client. Cheap to clone; one a process, so that connections are shared.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Client,
    options: Options,
}

impl Registry {
    /// Makes the client. Roots of trust are those of the system (and of `SSL_CERT_FILE`, which the TLS library reads itself).
    pub fn new(options: Options) -> Result<Self> {
        // reqwest without a built-in provider takes the process's default. Somebody else having set one is as good.
        if rustls::crypto::CryptoProvider::get_default().is_none()
            && rustls::crypto::ring::default_provider().install_default().is_err()
        {
            tracing::debug!("another thread has installed a TLS provider");
        }
        let follow = Policy::custom(|attempt| {
            let came_from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            match () {
                () if attempt.previous().len() > MAX_REDIRECTS => attempt.error("more than 10 redirects"),
                () if came_from_tls && attempt.url().scheme() != "https" => attempt.error("redirected from https to plain http"),
                () => attempt.follow(),
            }
        });
        let http = Client::builder()
            .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect)
            .redirect(follow)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(16)
            .build()
            .map_err(|e| Error::new(Outcome::Io, "setting up the HTTP client").because(e))?;
        Ok(Self { inner: Arc::new(Inner { http, options }) })
    }

    pub(super) fn http(&self) -> &Client {
        &self.inner.http
    }

    pub(super) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Whether a host as in a reference is to be asked without TLS only.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        self.inner.options.plain_http.iter().any(|plain| plain == host)
    }

    /// Whether a secret may go there: over TLS, or where the user allowed plain HTTP, or within this machine.
    pub(super) fn may_send_secrets(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        url.scheme() == "https" || is_loopback(host) || self.is_plain(host) || self.is_plain(&with_port)
    }

    /// Sends one request and waits for the headers of the response.
    pub(super) async fn send(&self, tried: impl Fn() -> String, request: RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.inner.options.headers, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(transport(tried(), e)),
            Err(_) => Err(Error::new(Outcome::Unavailable, tried())
                .because(format!("no answer for {} s", self.inner.options.headers.as_secs_f32()))
                .advise("is the registry overloaded, or a proxy in the way?")),
        }
    }

    /// Sends a request that a user waits for, again where the failure looks passing: no connection, 429, 5xx. Other statuses are
    /// the caller's business.
    pub(super) async fn send_patiently(
        &self,
        tried: impl Fn() -> String,
        mut request: impl FnMut() -> RequestBuilder,
    ) -> Result<Response> {
        let mut pause = Duration::from_millis(200);
        for _ in 1..TRIES {
            let asked = match self.send(&tried, request()).await {
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) => retry_after(&response),
                Err(e) if e.outcome() != Outcome::Unavailable => return Err(e),
                Err(e) => {
                    tracing::debug!("trying again: {}", e.one_line());
                    None
                }
            };
            if asked.is_some_and(|wait| wait > LONGEST_WAIT) {
                break;
            }
            tokio::time::sleep(asked.unwrap_or(pause)).await;
            pause *= 2;
        }
        self.send(&tried, request()).await
    }

    /// Bounds reading a small body.
    pub(super) async fn deadline<T>(&self, tried: impl Fn() -> String, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.inner.options.headers, work).await {
            Ok(result) => result.map_err(|e| e.during(tried())),
            Err(_) => Err(Error::new(Outcome::Unavailable, tried())
                .because(format!("the answer was not complete after {} s", self.inner.options.headers.as_secs_f32()))),
        }
    }
}

/// Whether a status says "later" rather than "no".
pub(super) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3). The form with a date is rare and left out: backoff serves as well.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_limited(mut response: Response, limit: u64) -> Result<Bytes> {
    let too_long = |len: u64| {
        Error::new(Outcome::BadInput, "reading the answer")
            .because(format!("it has {len} bytes or more, at most {limit} are read"))
    };
    if let Some(len) = response.content_length().filter(|len| *len > limit) {
        return Err(too_long(len));
    }
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|e| transport("reading the answer".to_owned(), e))? {
        body.extend_from_slice(&piece);
        if body.len() as u64 > limit {
            return Err(too_long(body.len() as u64));
        }
    }
    Ok(body.freeze())
}

/// Whether a URL's or reference's host is on this machine's loopback.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn transport(tried: String, cause: reqwest::Error) -> Error {
    let (outcome, advice) = if cause.is_redirect() {
        (Outcome::Denied, "the registry sends its content from a place that is not safe to follow")
    } else if cause.is_connect() {
        (Outcome::Unavailable, "is the registry's name and port right, is it running, and reachable from here?")
    } else {
        (Outcome::Unavailable, "trying again may help")
    };
    Error::new(outcome, tried).because(cause.without_url()).advise(advice)
}
