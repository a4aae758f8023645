//! A mirror as Dragonfly's daemon is one to containerd: an HTTP proxy on the node that fetches what it is asked for from the registry that
//! the request names, keeps blobs, and answers from there, with ranges.
//!
//! The registry is named by `ns=HOST`, as containerd tells every mirror, or by the header `X-Dragonfly-Registry: http://HOST`, which is what
//! Dragonfly's documentation puts into `hosts.toml`; the header goes first. Manifests are passed on each time.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long the registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What is wrong with the bytes of blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// Nothing.
    None,
    /// Those of layers are damaged.
    Layers,
    /// Those of configurations, too.
    All,
}

/// One request that was answered.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path without the query.
    pub path: String,
    /// `User-Agent`.
    pub agent: String,
    /// What `ns=` says.
    pub namespace: Option<String>,
    /// Whether the header of `hosts.toml` was there.
    pub has_header: bool,
    /// Whether it was for a range.
    pub is_range: bool,
    /// Bytes of the answer's body.
    pub bytes: usize,
}

struct Answer {
    status: String,
    /// `Content-Type` and `Docker-Content-Digest`, as lines.
    headers: String,
    body: Vec<u8>,
}

struct Shared {
    blobs: Mutex<HashMap<String, Arc<Answer>>>,
    asked: Mutex<Vec<Asked>>,
    fetched: AtomicUsize,
    lies: Mutex<Lies>,
    open: Mutex<Vec<TcpStream>>,
    stopping: AtomicBool,
}

/// The running mirror; on drop it is gone, with all connections.
pub struct Mirror {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Mirror {
    /// On a free loopback port.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            blobs: Mutex::default(),
            asked: Mutex::default(),
            fetched: AtomicUsize::new(0),
            lies: Mutex::new(Lies::None),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if serving.stopping.load(Ordering::SeqCst) {
                    return;
                }
                lock(&serving.open).extend(stream.try_clone());
                let shared = Arc::clone(&serving);
                // A client that has gone is no failure of the mirror.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Self { address, shared }
    }

    /// A `hosts.toml` for a registry that speaks HTTP without TLS, with this as its mirror, as Dragonfly's documentation has it.
    pub fn hosts_toml(&self, registry: &str) -> String {
        format!(
            "server = \"http://{registry}\"\n\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{}\".header]\nX-Dragonfly-Registry = [\"http://{registry}\"]\n",
            self.address, self.address
        )
    }

    /// From now on it lies so much.
    pub fn lie(&self, lies: Lies) {
        *lock(&self.shared.lies) = lies;
    }

    /// How many blobs it has asked the registry for.
    pub fn fetched(&self) -> usize {
        self.shared.fetched.load(Ordering::SeqCst)
    }

    /// What was asked for so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; when this fails it is gone already.
        TcpStream::connect(self.address).ok();
        for stream in lock(&self.shared.open).drain(..) {
            // It may be closed.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let headers = read_headers(&mut lines)?;
            let mut words = line.split(' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            self.answer(&mut stream, method, target, &headers)?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, method: &str, target: &str, headers: &HashMap<String, String>) -> io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let namespace = query.split('&').find_map(|pair| pair.strip_prefix("ns=")).map(|ns| ns.replace("%3A", ":"));
        let named = headers.get("x-dragonfly-registry").and_then(|url| url.strip_prefix("http://"));
        let Some(registry) = named.or(namespace.as_deref()) else {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        };
        let accept = headers.get("accept").map(String::as_str).unwrap_or_default();
        let Ok(found) = self.find(registry, path, method, accept) else {
            return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
        };
        let range = headers.get("range").and_then(|text| parse_range(text, found.body.len()));
        let mut body = range.clone().map_or(&found.body[..], |range| &found.body[range]).to_vec();
        if path.contains("/blobs/") && self.is_lie(&found.body) {
            body.iter_mut().step_by(512).for_each(|byte| *byte ^= 1);
        }
        let place = range
            .as_ref()
            .map(|range| format!("content-range: bytes {}-{}/{}\r\n", range.start, range.end - 1, found.body.len()));
        let status = if range.is_some() { "206 Partial Content" } else { &found.status };
        let place = place.unwrap_or_default();
        let head = format!("HTTP/1.1 {status}\r\n{}{place}content-length: {}\r\n\r\n", found.headers, body.len());
        let sent = if method == "HEAD" { &[][..] } else { &body };
        // First: whoever has read the answer may look.
        lock(&self.asked).push(Asked {
            path: path.to_owned(),
            agent: headers.get("user-agent").cloned().unwrap_or_default(),
            namespace,
            has_header: named.is_some(),
            is_range: range.is_some(),
            bytes: sent.len(),
        });
        stream.write_all(head.as_bytes())?;
        stream.write_all(sent)
    }

    fn is_lie(&self, blob: &[u8]) -> bool {
        match *lock(&self.lies) {
            Lies::None => false,
            Lies::Layers => !blob.starts_with(b"{"),
            Lies::All => true,
        }
    }

    /// What is kept, or what the registry has. Whole blobs are fetched, whatever part of them is asked for; one at a time.
    fn find(&self, registry: &str, path: &str, method: &str, accept: &str) -> io::Result<Arc<Answer>> {
        if !path.contains("/blobs/") {
            return fetch(registry, path, method, accept).map(Arc::new);
        }
        let mut blobs = lock(&self.blobs);
        if let Some(found) = blobs.get(path) {
            return Ok(Arc::clone(found));
        }
        self.fetched.fetch_add(1, Ordering::SeqCst);
        let found = Arc::new(fetch(registry, path, "GET", accept)?);
        if found.status.starts_with("200") {
            blobs.insert(path.to_owned(), Arc::clone(&found));
        }
        Ok(found)
    }
}

/// By their names in lower case.
fn read_headers(lines: &mut BufReader<TcpStream>) -> io::Result<HashMap<String, String>> {
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim().split_once(':') else { return Ok(headers) };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// Asks the registry. It says how long its answers are.
fn fetch(registry: &str, path: &str, method: &str, accept: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(registry)?;
    stream.set_read_timeout(Some(SILENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {registry}\r\naccept: {accept}\r\nconnection: close\r\n\r\n")?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let status = line.trim().strip_prefix("HTTP/1.1 ").ok_or(io::ErrorKind::InvalidData)?.to_owned();
    let headers = read_headers(&mut lines)?;
    let length: usize = headers.get("content-length").and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    if method != "HEAD" {
        lines.read_exact(&mut body)?;
    }
    let kept = ["content-type", "docker-content-digest", "www-authenticate"];
    let headers = kept.iter().filter_map(|name| Some(format!("{name}: {}\r\n", headers.get(*name)?))).collect();
    Ok(Answer { status, headers, body })
}

/// `bytes=A-B` or `bytes=A-` as a half-open range.
fn parse_range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    let end = if last.is_empty() { length } else { last.parse::<usize>().ok()?.checked_add(1)?.min(length) };
    (first < end).then_some(first..end)
}
