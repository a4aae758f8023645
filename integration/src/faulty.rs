//! A registry that misbehaves on command: it serves one OCI layout, and meets requests with the fault that was set.
//!
//! A fault is data, so that a test is a table of them. What can be wrong with an answer as bytes on the wire is in the table of the fetcher's
//! own tests (`lazyfs/src/fetch/tests/faults.rs`); here are those that are met from end to end.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::images::{Layout, digest};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Manifests, by tag or digest.
    Manifests,
    /// Blobs and ranges of them.
    Blobs,
}

/// How it is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 500, 502, 503 and 504 in turn.
    Storm,
    /// This status, and `Retry-After` with so many seconds.
    Status(u16, Option<u32>),
    /// The connection is closed in the middle of the body.
    Half,
    /// The connection is closed before the body.
    Nothing,
    /// A byte every 50 ms, for ever.
    Drip,
    /// The bytes before, said to be those.
    OtherRange,
    /// `Content-Encoding: gzip`.
    Encoded,
    /// One bit in the middle is another.
    Flipped,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which requests meet it.
    pub on: On,
    /// What they meet.
    pub kind: Kind,
    /// How many of them; [`usize::MAX`] for all.
    pub times: usize,
}

impl Fault {
    /// All requests of a kind meet it.
    pub const fn always(on: On, kind: Kind) -> Self {
        Self { on, kind, times: usize::MAX }
    }

    /// The next so many do.
    pub const fn times(times: usize, on: On, kind: Kind) -> Self {
        Self { on, kind, times }
    }
}

struct Shared {
    layout: Layout,
    tags: Mutex<HashMap<String, Vec<u8>>>,
    fault: Mutex<Option<Fault>>,
    /// What a tag becomes as soon as it has been asked for.
    moves: Mutex<Option<(String, Vec<u8>)>>,
    stopping: AtomicBool,
}

/// The running registry; on drop nothing new is accepted.
pub struct FaultyRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultyRegistry {
    /// Serves the manifests that tags of this layout name, and its blobs, on a free loopback port.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(layout: Layout, tags: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let manifests = tags.iter().map(|tag| ((*tag).to_owned(), layout.manifest_bytes(tag))).collect();
        let shared = Arc::new(Shared {
            layout,
            tags: Mutex::new(manifests),
            fault: Mutex::default(),
            moves: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if serving.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                // A client that has gone is no failure of the registry.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on requests meet this.
    pub fn set(&self, fault: Option<Fault>) {
        *lock(&self.shared.fault) = fault;
    }

    /// Gives a manifest a tag, which may have meant another one.
    pub fn tag(&self, tag: &str, manifest: &[u8]) {
        lock(&self.shared.tags).insert(tag.to_owned(), manifest.to_vec());
    }

    /// Gives a manifest the tag as soon as somebody has been told what it means now.
    pub fn move_once_asked(&self, tag: &str, manifest: &[u8]) {
        *lock(&self.shared.moves) = Some((tag.to_owned(), manifest.to_vec()));
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; when this fails it is gone already.
        TcpStream::connect(self.address).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let (mut line, mut range) = (String::new(), None);
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                lines.read_line(&mut header)?;
                let header = header.trim().to_ascii_lowercase();
                match header.strip_prefix("range: bytes=") {
                    Some(asked) => range = parse_range(asked),
                    None if header.is_empty() => break,
                    None => {}
                }
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            self.answer(&mut stream, &path, range)?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, path: &str, range: Option<Range<usize>>) -> io::Result<()> {
        let words: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
        let (on, body) = match words[..] {
            [.., "manifests", selector] => (On::Manifests, self.manifest(selector)),
            [.., "blobs", blob] => (On::Blobs, std::fs::read(self.layout.blob_path(blob)).ok()),
            _ => (On::Manifests, Some(b"{}".to_vec())),
        };
        match (self.fault_for(on), body) {
            (_, None) => send(stream, "404 Not Found", "", b"{}"),
            (Some((kind, nth)), Some(body)) => misbehave(stream, kind, nth, &body, range),
            (None, Some(body)) => send_part(stream, &body, range),
        }
    }

    fn manifest(&self, selector: &str) -> Option<Vec<u8>> {
        let mut tags = lock(&self.tags);
        let found =
            tags.iter().find(|(tag, bytes)| *tag == selector || digest(bytes) == selector).map(|(_, bytes)| bytes.clone());
        let mut moves = lock(&self.moves);
        if let Some((tag, new)) = moves.take_if(|(tag, _)| tag == selector) {
            tags.insert(tag, new);
        }
        found
    }

    /// What the next request of this kind meets, and the how-manieth that is.
    fn fault_for(&self, on: On) -> Option<(Kind, usize)> {
        let mut fault = lock(&self.fault);
        let set = fault.as_mut().filter(|fault| fault.on == on && fault.times > 0)?;
        set.times -= 1;
        Some((set.kind, usize::MAX - set.times))
    }
}

fn misbehave(stream: &mut TcpStream, kind: Kind, nth: usize, body: &[u8], range: Option<Range<usize>>) -> io::Result<()> {
    let part = range.clone().map_or(body, |range| &body[range]);
    let closed = || Err(io::Error::other("the fault closes the connection"));
    match kind {
        Kind::Storm => {
            let status =
                ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"][nth % 4];
            send(stream, status, "", b"<html>storm</html>")
        }
        Kind::Status(status, wait) => {
            let wait = wait.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
            send(stream, &format!("{status} Faulty"), &wait, b"{}")
        }
        Kind::Half => {
            stream.write_all(head(body, range).as_bytes())?;
            stream.write_all(&part[..part.len() / 2])?;
            closed()
        }
        Kind::Nothing => {
            stream.write_all(head(body, range).as_bytes())?;
            closed()
        }
        Kind::Drip => {
            stream.write_all(head(body, range).as_bytes())?;
            for byte in part {
                stream.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
        Kind::OtherRange => {
            let len = part.len();
            let range = format!("content-range: bytes 0-{}/{}\r\n", len - 1, body.len());
            send(stream, "206 Partial Content", &range, &body[..len])
        }
        Kind::Encoded => send(stream, "200 OK", "content-encoding: gzip\r\n", part),
        Kind::Flipped => {
            let mut flipped = body.to_vec();
            let at = range.as_ref().map_or(body.len() / 2, |range| range.start + range.len() / 2);
            flipped[at] ^= 1;
            send_part(stream, &flipped, range)
        }
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).as_bytes())?;
    stream.write_all(body)
}

fn send_part(stream: &mut TcpStream, body: &[u8], range: Option<Range<usize>>) -> io::Result<()> {
    stream.write_all(head(body, range.clone()).as_bytes())?;
    stream.write_all(range.map_or(body, |range| &body[range]))
}

fn head(body: &[u8], range: Option<Range<usize>>) -> String {
    match range {
        None => format!("HTTP/1.1 200 OK\r\ncontent-type: {MANIFEST}\r\ncontent-length: {}\r\n\r\n", body.len()),
        Some(Range { start, end }) => {
            let place = format!("content-range: bytes {start}-{}/{}", end - 1, body.len());
            format!("HTTP/1.1 206 Partial Content\r\n{place}\r\ncontent-length: {}\r\n\r\n", end - start)
        }
    }
}

/// `A-B` as a half-open range.
fn parse_range(text: &str) -> Option<Range<usize>> {
    let (first, last) = text.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}
