//! The HTTP client that all repositories share: TLS, deadlines, redirects, patience.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, DATE, HeaderMap, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url};

use super::date;
use super::endpoint::{Endpoint, Transport};
use super::hedge::Hedges;
use super::host::{Host, Hosts};
use super::proxies::Proxies;
use super::repository::without_query;
use super::tls::Pem;
use crate::digest::Digest;
use crate::error::{Error, MORE_FILES, Outcome, Result, is_lack_of_files};

/// How many hops a redirect may take.
pub(super) const MAX_REDIRECTS: usize = 10;
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
    /// How long a body may crawl below 1 KiB/s where another host can be asked.
    pub lag: Duration,
    /// Hosts (with their ports, as in references) that speak plain HTTP. Hosts on this machine's loopback need not be named: they
    /// are tried with and without TLS.
    pub plain_http: Vec<String>,
    /// How many bytes of a blob one request of a push carries: what a broken connection costs at most, and what registries behind
    /// proxies still take.
    pub piece: u64,
    /// Through whom hosts are reached.
    pub proxies: Proxies,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            headers: Duration::from_secs(20),
            idle: Duration::from_secs(15),
            lag: Duration::from_secs(4),
            plain_http: Vec::new(),
            piece: 32 << 20,
            proxies: Proxies::default(),
        }
    }
}

/// The HTTP client for one host. Cheap to clone; all that come from one [`Registry::new`] share connections and what is known of
/// hosts.
#[derive(Clone, Debug)]
pub struct Registry {
    http: Client,
    options: Arc<Options>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By what tells them apart: trust, identity, deadline.
    clients: Mutex<HashMap<Digest, Client>>,
    hosts: Hosts,
    hedges: Hedges,
}

impl Registry {
    /// Makes the client. Roots of trust are those of the system (and of `SSL_CERT_FILE`, which the TLS library reads itself).
    pub fn new(options: Options) -> Result<Self> {
        provide_tls();
        let http = built(builder(&options)?)?;
        Ok(Self { http, options: Arc::new(options), shared: Arc::default() })
    }

    /// How often a second host was asked because the first was late.
    pub fn hedged(&self) -> u64 {
        self.shared.hedges.total()
    }

    pub(super) fn hedges(&self) -> &Hedges {
        &self.shared.hedges
    }

    /// The client for an endpoint, with its trust, identity and deadline. Reads the files that the endpoint names.
    pub fn at(&self, endpoint: &Endpoint) -> Result<Self> {
        let mut options = Options::clone(&self.options);
        if matches!(endpoint.transport, Transport::Plain | Transport::TlsThenPlain) {
            options.plain_http.push(endpoint.host.clone());
        }
        options.connect = endpoint.connect.unwrap_or(options.connect);
        let tls = Pem::read(&endpoint.tls)?;
        let http = if tls.is_ordinary() && endpoint.connect.is_none() && endpoint.headers.is_empty() {
            self.http.clone()
        } else {
            // Headers of an endpoint are for its host alone, so whoever sends them follows redirects by himself.
            let follows = endpoint.headers.is_empty();
            let key = tls.key(&format!("{:?} {follows}", options.connect));
            let known = self.clients().get(&key).cloned();
            match known {
                Some(http) => http,
                None => {
                    let builder = tls.apply(builder(&options)?)?;
                    let http = built(if follows { builder } else { builder.redirect(Policy::none()) })?;
                    self.clients().insert(key, http.clone());
                    http
                }
            }
        };
        Ok(Self { http, options: Arc::new(options), shared: Arc::clone(&self.shared) })
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Digest, Client>> {
        self.shared.clients.lock().expect("no holder of this lock panics")
    }

    /// What is known of a host: whether it is to be left alone, and how fast it answers.
    pub(super) fn host(&self, name: &str) -> Arc<Host> {
        self.shared.hosts.get(name)
    }

    pub(super) fn http(&self) -> &Client {
        &self.http
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Whether a host as in a reference is to be asked without TLS only.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        self.options.plain_http.iter().any(|plain| plain == host)
    }

    /// Whether a secret may go there: over TLS, or where the user allowed plain HTTP, or within this machine.
    pub(super) fn may_send_secrets(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        url.scheme() == "https" || is_loopback(host) || self.is_plain(host) || self.is_plain(&with_port)
    }

    /// Sends one request and waits for the headers of the response. Waits before where the host is to be left alone for a moment, and
    /// fails at once where that would be long.
    pub(super) async fn send(&self, tried: impl Fn() -> String, request: RequestBuilder) -> Result<Response> {
        let (client, request) = request.build_split();
        let request = request.map_err(|e| Error::new(Outcome::BadInput, tried()).because(e.without_url()))?;
        let host = self.host(&authority(request.url()));
        let pass = host.pass(self.options.headers).await.map_err(|e| e.during(tried()))?;
        let began = Instant::now();
        let failure = match tokio::time::timeout(self.options.headers, client.execute(request)).await {
            Ok(Ok(response)) if says_later(response.status()) => {
                let last = authority(response.url());
                let (asked, why) = (retry_after(&response), format!("it answered {}", response.status()));
                if last == *host.name() {
                    pass.failed(asked, &why);
                } else {
                    pass.worked(None);
                    self.host(&last).failed(asked, &why);
                }
                return Ok(response);
            }
            Ok(Ok(response)) => {
                pass.worked(Some(began.elapsed()));
                return Ok(response);
            }
            Ok(Err(e)) => transport(tried(), e),
            Err(_) => Error::new(Outcome::Unavailable, tried())
                .because(format!("no answer for {} s", self.options.headers.as_secs_f32()))
                .advise("is the registry overloaded, or a proxy in the way?"),
        };
        match failure.outcome() {
            Outcome::Unavailable => {
                let mut last: &dyn std::error::Error = &failure;
                while let Some(cause) = last.source() {
                    last = cause;
                }
                pass.failed(None, &last.to_string());
            }
            // The host was not asked.
            Outcome::Busy => drop(pass),
            _ => pass.worked(None),
        }
        Err(failure)
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
        match tokio::time::timeout(self.options.headers, work).await {
            Ok(result) => result.map_err(|e| e.during(tried())),
            Err(_) => Err(Error::new(Outcome::Unavailable, tried())
                .because(format!("the answer was not complete after {} s", self.options.headers.as_secs_f32()))),
        }
    }
}

/// Whether a status says "later" rather than "no".
pub(crate) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Whether a status says that the host is to be left alone for a while.
fn says_later(status: StatusCode) -> bool {
    is_passing(status) && status != StatusCode::REQUEST_TIMEOUT
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a time, which is compared with the server's own clock. A time of a server that
/// does not tell what its clock shows says nothing: ours may be set, or wrong.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    date::wait(text(RETRY_AFTER)?, text(DATE).and_then(date::parse))
}

/// Refuses a body that is not the bytes that were asked for but something that they have been made into: nobody asked for that, and
/// ranges of it are not ranges of the blob.
pub(super) fn check_encoding(response: &Response) -> Result<()> {
    for name in [CONTENT_ENCODING, TRANSFER_ENCODING] {
        let all = response.headers().get_all(&name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let all: Vec<String> =
            all.flat_map(|value| value.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>()).collect();
        let known = ["identity", "chunked", ""];
        if let Some(coding) = all.iter().find(|coding| !known.contains(&coding.to_ascii_lowercase().as_str())) {
            return Err(Error::new(Outcome::Unsupported, format!("GET {}", without_query(response.url())))
                .because(format!(
                    "the answer came with `{name}: {}`, which was not asked for",
                    coding.chars().take(40).collect::<String>()
                ))
                .advise("something on the way compresses content: exempt the registry from that"));
        }
    }
    Ok(())
}

/// Host and port of an address.
pub(super) fn authority(url: &Url) -> String {
    let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or_default())
}

/// reqwest without a built-in provider takes the process's default. Somebody else having set one is as good.
fn provide_tls() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread has installed a TLS provider");
    }
}

/// A client for servers that are no registries. It follows no redirects.
pub(crate) fn ordinary_client(proxies: &Proxies, connect: Duration) -> Result<Client> {
    provide_tls();
    built(builder(&Options { connect, proxies: proxies.clone(), ..Options::default() })?.redirect(Policy::none()))
}

fn builder(options: &Options) -> Result<ClientBuilder> {
    let follow = Policy::custom(|attempt| {
        let came_from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        match () {
            () if attempt.previous().len() > MAX_REDIRECTS => attempt.error("more than 10 redirects"),
            () if came_from_tls && attempt.url().scheme() != "https" => attempt.error("redirected from https to plain http"),
            () => attempt.follow(),
        }
    });
    let builder = Client::builder()
        .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
        // Blobs are compressed where that helps, and their bytes are what digests and ranges are about.
        .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
        .connect_timeout(options.connect)
        .redirect(follow)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(16);
    options.proxies.apply(builder)
}

fn built(builder: ClientBuilder) -> Result<Client> {
    builder.build().map_err(|e| Error::new(Outcome::Io, "setting up the HTTP client").because(e))
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_limited(mut response: Response, limit: u64) -> Result<Bytes> {
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

pub(crate) fn transport(tried: String, cause: reqwest::Error) -> Error {
    let mut causes = std::iter::successors(std::error::Error::source(&cause), |cause| cause.source());
    let lacks_files = causes.any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(is_lack_of_files));
    let (outcome, advice) = if lacks_files {
        (Outcome::Busy, MORE_FILES)
    } else if cause.is_redirect() {
        (Outcome::Denied, "the registry sends its content from a place that is not safe to follow")
    } else if cause.is_connect() {
        (Outcome::Unavailable, "is the registry's name and port right, is it running, and reachable from here?")
    } else {
        (Outcome::Unavailable, "trying again may help")
    };
    Error::new(outcome, tried).because(cause.without_url()).advise(advice)
}
