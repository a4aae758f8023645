//! The client against a server of a few lines, which answers by a script that sees the request's head; and against Debian's
//! docker-registry where that is installed.

mod hosts;
mod push;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;

use super::*;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::reference::{Reference, RegistryReference};
use crate::source::{ByteStream, RawManifest, Source};

/// A request as the script sees it: `GET /path`, and all headers in lower case.
pub(crate) struct Asked {
    pub line: String,
    head: String,
    body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

type Script = dyn Fn(&Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// A server on a port of loopback; its threads end with their connections.
pub(crate) struct Server {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(script: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, asked): (Arc<Script>, _) = (Arc::new(script), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, script, seen) = (stream.unwrap(), Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &*script, &seen));
            }
        });
        Self { port, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn repository(&self, credential: Option<Credential>) -> Repository {
        self.repository_with(credential, Options { idle: Duration::from_millis(200), ..Options::default() })
    }

    pub fn repository_with(&self, credential: Option<Credential>, options: Options) -> Repository {
        Repository::new(&Registry::new(options).unwrap(), &reference(&format!("127.0.0.1:{}/a/b:t", self.port)), credential)
    }
}

fn reference(text: &str) -> RegistryReference {
    match text.parse().unwrap() {
        Reference::Registry(reference) => reference,
        _ => panic!("{text} is no registry"),
    }
}

fn serve(mut stream: TcpStream, script: &Script, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut head = String::new();
        while let Ok(n) = reader.read_line(&mut head) {
            if n <= 2 {
                break;
            }
        }
        let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
        // Names in lower case; values as they are, since tokens are compared.
        let lower = |l: &str| l.split_once(": ").map_or(String::new(), |(n, v)| format!("{}: {v}\n", n.to_ascii_lowercase()));
        let mut asked = Asked { head: head.lines().map(lower).collect(), line, body: String::new() };
        let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
        reader.by_ref().take(length).read_to_string(&mut asked.body).unwrap();
        seen.lock().unwrap().push(asked.line.clone());
        if script(&asked, &mut stream).is_err() {
            return;
        }
    }
}

pub(crate) fn answer(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).as_bytes())?;
    stream.write_all(body)
}

fn broken() -> std::io::Result<()> {
    Err(std::io::Error::other("the script closes the connection"))
}

async fn read(stream: Result<ByteStream>) -> Result<Vec<u8>> {
    let pieces: Vec<Bytes> = stream?.try_collect().await?;
    Ok(pieces.concat())
}

async fn read_range(repository: &Repository, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    read(repository.open(Digest::of(b"blob"), range).await).await
}

fn challenge(port: u16) -> String {
    format!(r#"Bearer realm="http://127.0.0.1:{port}/token",service="me",scope="repository:a/b:pull""#)
}

fn password() -> Option<Credential> {
    Some(Credential::Password { user: "u".to_owned(), password: "p".to_owned() })
}

const BLOB: &[u8] = b"0123456789";
const RANGE: [(&str, &str); 1] = [("content-range", "bytes 2-5/10")];

#[tokio::test]
async fn tokens_are_fetched_kept_and_renewed() {
    // Tokens are t1, t2, …; t1 is refused with 403 at its second use, t2 works for ever.
    let (issued, uses) = (Mutex::new(0), Mutex::new(0));
    let server = Server::start(move |asked, stream| {
        let port = stream.local_addr()?.port();
        if asked.line.starts_with("GET /token?") {
            assert!(
                asked.line.contains("service=me") && asked.line.contains("scope=repository%3Aa%2Fb%3Apull"),
                "{}",
                asked.line
            );
            let mut issued = issued.lock().unwrap();
            *issued += 1;
            return answer(stream, "200 OK", &[], format!(r#"{{"token":"t{issued}","expires_in":300}}"#).as_bytes());
        }
        match asked.header("authorization") {
            Some("Bearer t1") => {
                let mut uses = uses.lock().unwrap();
                *uses += 1;
                match *uses {
                    1 => answer(stream, "206 Partial Content", &RANGE, b"2345"),
                    _ => answer(stream, "403 Forbidden", &[], b""),
                }
            }
            Some("Bearer t2") => answer(stream, "206 Partial Content", &RANGE, b"2345"),
            _ => answer(stream, "401 Unauthorized", &[("www-authenticate", &challenge(port))], b""),
        }
    });
    let repository = server.repository(None);
    let get = format!("GET /v2/a/b/blobs/{}", Digest::of(b"blob"));
    let token = "GET /token?service=me&scope=repository%3Aa%2Fb%3Apull&client_id=towline".to_owned();
    assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345");
    assert_eq!(server.asked(), [get.clone(), token.clone(), get.clone()]);
    assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345");
    assert_eq!(server.asked(), [get.clone(), token, get.clone()], "403 renews");
    assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345");
    assert_eq!(server.asked(), [get]);
}

#[tokio::test]
async fn a_token_is_renewed_ahead_of_its_end_and_once_for_all() {
    let server = Server::start(move |asked, stream| {
        let port = stream.local_addr()?.port();
        match (asked.line.starts_with("GET /token"), asked.header("authorization")) {
            (true, _) => answer(stream, "200 OK", &[], br#"{"token":"t","expires_in":0.3}"#),
            (false, None) => answer(stream, "401 Unauthorized", &[("www-authenticate", &challenge(port))], b""),
            (false, Some(_)) => answer(stream, "206 Partial Content", &RANGE, b"2345"),
        }
    });
    let repository = server.repository(None);
    let tokens = |asked: Vec<String>| asked.iter().filter(|line| line.starts_with("GET /token")).count();
    let twenty = || futures_util::future::join_all((0..20).map(|_| read_range(&repository, 2..6)));
    assert!(twenty().await.iter().all(Result::is_ok));
    assert_eq!(tokens(server.asked()), 1);
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(twenty().await.iter().all(Result::is_ok));
    let asked = server.asked();
    assert_eq!(asked.len() - tokens(asked.clone()), 20, "a request was sent with a token that was about to end");
    assert_eq!(tokens(asked), 1);
}

#[tokio::test]
async fn credentials_go_where_they_belong() {
    let server = Server::start(move |asked, stream| match asked.header("authorization") {
        Some("Basic dTpw") => answer(stream, "206 Partial Content", &RANGE, b"2345"),
        _ => answer(stream, "401 Unauthorized", &[("www-authenticate", "Basic realm=x")], b""),
    });
    assert_eq!(read_range(&server.repository(password()), 2..6).await.unwrap(), b"2345");
    let anonymous = read_range(&server.repository(None), 2..6).await.unwrap_err();
    assert_eq!(anonymous.outcome(), Outcome::Denied);
    assert!(anonymous.one_line().contains("podman login 127.0.0.1"), "{anonymous:?}");
    let wrong = Some(Credential::Password { user: "u".to_owned(), password: "wrong".to_owned() });
    assert!(read_range(&server.repository(wrong), 2..6).await.unwrap_err().one_line().contains("give no access"));

    // An identity token goes to the token service, in a body.
    let server = Server::start(move |asked, stream| {
        let port = stream.local_addr()?.port();
        match (asked.line.as_str(), asked.header("authorization")) {
            ("POST /token", None) => {
                let body = &asked.body;
                assert!(body.contains("grant_type=refresh_token") && body.contains("refresh_token=secret"), "{body}");
                answer(stream, "200 OK", &[], br#"{"access_token":"x"}"#)
            }
            (_, Some("Bearer x")) => answer(stream, "206 Partial Content", &RANGE, b"2345"),
            _ => answer(stream, "401 Unauthorized", &[("www-authenticate", &challenge(port))], b""),
        }
    });
    let token = Some(Credential::IdentityToken("secret".to_owned()));
    assert_eq!(read_range(&server.repository(token), 2..6).await.unwrap(), b"2345");
}

#[tokio::test]
async fn redirects_are_followed_without_the_secret_and_remembered() {
    let storage = Server::start(|asked, stream| {
        assert_eq!(asked.header("authorization"), None, "the secret went to the storage");
        assert_eq!(asked.header("range"), Some("bytes=2-5"));
        match asked.line.contains("sig=1") {
            true => answer(stream, "206 Partial Content", &RANGE, b"2345"),
            false => answer(stream, "403 Forbidden", &[], b"expired"),
        }
    });
    let place = format!("http://127.0.0.1:{}/x?sig=1", storage.port);
    let server = Server::start(move |asked, stream| match asked.header("authorization") {
        Some(_) => answer(stream, "307 Temporary Redirect", &[("location", &place)], b""),
        None => answer(stream, "401 Unauthorized", &[("www-authenticate", "Basic realm=x")], b""),
    });
    let repository = server.repository(password());
    for _ in 0..3 {
        assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345");
    }
    assert_eq!((server.asked().len(), storage.asked().len()), (2, 3), "the place is not asked for again");
}

#[tokio::test]
async fn ranges_are_what_was_asked_for_or_an_error() {
    type Answer = fn(&mut TcpStream) -> std::io::Result<()>;
    type Wanted = std::result::Result<&'static [u8], (Outcome, &'static str)>;
    let cases: [(&str, Answer, Wanted); 11] = [
        ("206", |s| answer(s, "206 Partial Content", &RANGE, b"2345"), Ok(b"2345")),
        ("206 without a total", |s| answer(s, "206 Partial Content", &[("content-range", "bytes 2-5/*")], b"2345"), Ok(b"2345")),
        ("200 with everything", |s| answer(s, "200 OK", &[], BLOB), Ok(b"2345")),
        ("200 that is too short", |s| answer(s, "200 OK", &[], b"0123"), Err((Outcome::Unavailable, "2 bytes early"))),
        (
            "another range",
            |s| answer(s, "206 Partial Content", &[("content-range", "bytes 0-3/10")], b"0123"),
            Err((Outcome::Unsupported, "bytes 0 to 4")),
        ),
        ("no range", |s| answer(s, "206 Partial Content", &[], b"2345"), Err((Outcome::Unsupported, "`Content-Range: `"))),
        (
            "a range outside of the total",
            |s| answer(s, "206 Partial Content", &[("content-range", "bytes 2-5/4")], b"2345"),
            Err((Outcome::Unsupported, "bytes 2-5/4")),
        ),
        (
            "a body that breaks off",
            |s| {
                s.write_all(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 2-5/10\r\n\r\n23")?;
                broken()
            },
            Err((Outcome::Unavailable, "reading the body")),
        ),
        (
            "404",
            |s| answer(s, "404 Not Found", &[], br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no blob"}]}"#),
            Err((Outcome::NotFound, "BLOB_UNKNOWN no blob")),
        ),
        ("416", |s| answer(s, "416 Range Not Satisfiable", &[], b""), Err((Outcome::Integrity, "shorter than its manifest"))),
        ("503", |s| answer(s, "503 Service Unavailable", &[("retry-after", "7")], b""), Err((Outcome::Unavailable, "503"))),
    ];
    for (name, script, wanted) in cases {
        let server = Server::start(move |_, stream| script(stream));
        match (read_range(&server.repository(None), 2..6).await, wanted) {
            (Ok(bytes), Ok(wanted)) => assert_eq!(bytes, wanted, "{name}"),
            (Err(e), Err((outcome, why))) => {
                assert!(e.outcome() == outcome && e.one_line().contains(why), "{name}: {e:?}");
                assert_eq!(e.asked_to_wait(), (name == "503").then_some(Duration::from_secs(7)));
            }
            (result, wanted) => panic!("{name}: {result:?} instead of {wanted:?}"),
        }
        assert_eq!(server.asked().len(), 1, "{name}: one request per call");
    }
    assert_eq!(read_range(&Server::start(|_, _| broken()).repository(None), 3..3).await.unwrap(), b"");
}

#[tokio::test]
async fn silence_and_dripping_have_a_deadline() {
    let head = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4000\r\ncontent-range: bytes 0-3999/4000\r\n\r\n";
    let silent = Server::start(move |_, stream| {
        stream.write_all(head)?;
        std::thread::sleep(Duration::from_secs(3));
        broken()
    });
    let dripping = Server::start(move |_, stream| {
        stream.write_all(head)?;
        for _ in 0..60 {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        broken()
    });
    for (server, why) in [(silent, "nothing came for 0.2 s"), (dripping, "bytes came in")] {
        let begin = Instant::now();
        let error = read_range(&server.repository(None), 0..4000).await.unwrap_err();
        assert!(error.one_line().contains(why), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
    let mute = Server::start(|_, _| {
        std::thread::sleep(Duration::from_secs(3));
        broken()
    });
    let options = Options { headers: Duration::from_millis(200), ..Options::default() };
    let error = read_range(&mute.repository_with(None, options), 0..4).await.unwrap_err();
    assert!(error.one_line().contains("no answer for 0.2 s"), "{error:?}");
}

#[tokio::test]
async fn manifests_are_verified_limited_and_retried() {
    let digest = Digest::of(b"{}").to_string();
    let wrong = Digest::of(b"[]").to_string();
    let tries = Mutex::new(0);
    let (good, other) = (digest.clone(), wrong.clone());
    let server = Server::start(move |asked, stream| {
        assert!(asked.header("accept").unwrap().contains("vnd.oci.image.index.v1+json"));
        let json = |stream: &mut TcpStream, digest: &str| {
            let headers = [("content-type", "application/x; charset=utf-8"), ("docker-content-digest", digest)];
            answer(stream, "200 OK", &headers, b"{}")
        };
        match asked.line.trim_start_matches("GET /v2/a/b/manifests/") {
            "flaky" => {
                let mut tries = tries.lock().unwrap();
                *tries += 1;
                if *tries < 3 { answer(stream, "500 Internal Server Error", &[], b"oops") } else { json(stream, &good) }
            }
            "lying" => json(stream, &other),
            "huge" => answer(stream, "200 OK", &[], &vec![b' '; (4 << 20) + 1]),
            "missing" => answer(stream, "404 Not Found", &[], b"<html>"),
            _ => json(stream, ""),
        }
    });
    let repository = server.repository_with(None, Options::default());
    let RawManifest { bytes, digest: found, media_type } = repository.manifest("flaky").await.unwrap();
    assert_eq!((&bytes[..], found.to_string(), media_type.as_str()), (&b"{}"[..], digest.clone(), "application/x"));
    assert!(repository.manifest(&digest).await.is_ok());
    for (what, outcome, why) in [
        ("lying", Outcome::Integrity, "its digest is"),
        (&wrong, Outcome::Integrity, "its digest is"),
        ("huge", Outcome::BadInput, "at most 4194304"),
        ("missing", Outcome::NotFound, "exist in the registry"),
    ] {
        let error: Error = repository.manifest(what).await.unwrap_err();
        assert!(error.outcome() == outcome && error.one_line().contains(why), "{what}: {error:?}");
        assert!(error.one_line().contains("127.0.0.1"), "{error:?}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let registry = Registry::new(Options::default()).unwrap();
    let repository = Repository::new(&registry, &reference(&format!("127.0.0.1:{port}/a")), None);
    let line = repository.manifest("latest").await.unwrap_err().one_line();
    for part in [&format!("http://127.0.0.1:{port}/v2/a/manifests/latest"), "onnection refused", "is it running"] {
        assert!(line.contains(part), "{line} does not say {part}");
    }
}

/// Debian's docker-registry with one blob and one manifest in it, until this is dropped.
struct RealRegistry {
    process: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        for ended in [self.process.kill(), self.process.wait().map(drop)] {
            ended.expect("ending the registry that this test started");
        }
    }
}

impl RealRegistry {
    async fn start(blob: &[u8], manifest: &str) -> Self {
        let real = Self::spawn("").await;
        real.push(blob, manifest).await;
        real
    }

    /// `http` is added to that part of its configuration.
    async fn spawn(http: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let storage = dir.path().display();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp:\n  addr: \"127.0.0.1:{port}\"\n{http}"
        );
        std::fs::write(&config, text).unwrap();
        let process = std::process::Command::new("docker-registry").arg("serve").arg(&config).spawn().unwrap();
        let real = Self { process, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen after 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        real
    }

    async fn push(&self, blob: &[u8], manifest: &str) {
        let http = Registry::new(Options::default()).unwrap().http().clone();
        let base = format!("http://127.0.0.1:{}/v2/a/b", self.port);
        let upload = http.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
        let place = upload.headers()["location"].to_str().unwrap().to_owned();
        let separator = if place.contains('?') { '&' } else { '?' };
        let put = http.put(format!("{place}{separator}digest={}", Digest::of(blob))).body(blob.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), 201);
        let put = http.put(format!("{base}/manifests/t")).header("content-type", "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(put.body(manifest.to_owned()).send().await.unwrap().status(), 201);
    }
}

#[tokio::test]
async fn a_real_registry_serves_manifests_and_ranges() {
    if std::process::Command::new("docker-registry").arg("--version").output().is_err() {
        println!("SKIP a_real_registry_serves_manifests_and_ranges: docker-registry is not installed");
        return;
    }
    let blob: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::of(&blob);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":200000}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":200000}}]}}"#
    );
    let real = RealRegistry::start(&blob, &manifest).await;
    let registry = Registry::new(Options::default()).unwrap();
    let repository = Repository::new(&registry, &reference(&format!("localhost:{}/a/b:t", real.port)), None);
    let raw = repository.manifest("t").await.unwrap();
    assert_eq!(
        (raw.digest, raw.media_type.as_str()),
        (Digest::of(manifest.as_bytes()), "application/vnd.oci.image.manifest.v1+json")
    );
    assert!(crate::manifest::Document::parse(&raw).is_ok());
    for range in [0..200_000u64, 7..8, 100_000..150_001, 199_999..200_000] {
        let bytes = read(repository.open(digest, range.clone()).await).await.unwrap();
        assert_eq!(bytes, blob[range.start as usize..range.end as usize], "{range:?}");
    }
    assert_eq!(repository.manifest("gone").await.unwrap_err().outcome(), Outcome::NotFound);
    assert_eq!(read(repository.open(digest, 199_999..200_001).await).await.unwrap_err().outcome(), Outcome::Unsupported);
    assert_eq!(read(repository.open(digest, 200_000..200_001).await).await.unwrap_err().outcome(), Outcome::Integrity);
}
