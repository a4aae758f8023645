//! Several hosts, hosts that fail, proxies and certificates.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::registry::endpoint::Tls;

fn good(stream: &mut TcpStream) -> std::io::Result<()> {
    answer(stream, "206 Partial Content", &RANGE, b"2345")
}

fn mirrors(registry: &Registry, servers: &[&Server]) -> Mirrors {
    let at = |server: &&Server| {
        let endpoint =
            Endpoint { transport: Transport::Plain, ..Endpoint::new(&format!("127.0.0.1:{}", server.port), "a/b", "a test") };
        Repository::at(registry, endpoint, None, false).unwrap()
    };
    Mirrors::new("r.io/a/b".to_owned(), servers.iter().map(at).collect())
}

async fn read_from(source: &dyn Source, blob: &[u8]) -> Result<Vec<u8>> {
    read(source.open(Digest::of(blob), 2..6).await).await
}

async fn read_urgently(source: &dyn Source) -> Result<Vec<u8>> {
    read(source.open_urgently(Digest::of(b"blob"), 2..6).await).await
}

#[tokio::test]
async fn an_expired_place_is_asked_for_again() {
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "400 Bad Request"] {
        let uses = Mutex::new(0);
        let storage = Server::start(move |asked, stream| {
            let mut uses = uses.lock().unwrap();
            *uses += 1;
            match asked.line.contains("sig=1") && *uses > 1 {
                true => answer(stream, status, &[], b"expired"),
                false => good(stream),
            }
        });
        let (port, lent) = (storage.port, Mutex::new(0));
        let server = Server::start(move |_, stream| {
            let mut lent = lent.lock().unwrap();
            *lent += 1;
            let place = format!("http://127.0.0.1:{port}/x?sig={lent}");
            answer(stream, "307 Temporary Redirect", &[("location", &place)], b"")
        });
        let repository = server.repository(None);
        for _ in 0..3 {
            assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345", "{status}");
        }
        assert_eq!(server.asked().len(), 2, "{status}");
        assert_eq!(storage.asked(), ["GET /x?sig=1", "GET /x?sig=1", "GET /x?sig=2", "GET /x?sig=2"], "{status}");
    }
}

#[tokio::test]
async fn a_storm_of_failures_is_one_retry_loop() {
    let server = Server::start(|_, stream| answer(stream, "503 Service Unavailable", &[], b""));
    let repository = server.repository(None);
    assert!(read_range(&repository, 2..6).await.is_err());
    assert!(read_range(&repository, 2..6).await.is_err());
    server.asked();
    // The host rests: of all who want something only one at a time asks, and each after a pause.
    let begin = Instant::now();
    let all = futures_util::future::join_all((0..40).map(|_| read_range(&repository, 2..6)));
    assert!(tokio::time::timeout(Duration::from_millis(900), all).await.is_err());
    // Pauses are 100, 200, 400 ms and so on, less a quarter at most.
    let asked = server.asked().len() as u128;
    assert!(asked <= 2 + begin.elapsed().as_millis() / 75 && asked < 20, "{asked} requests in {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_host_that_asks_for_time_gets_it() {
    let later = [("retry-after", "Sun, 06 Nov 1994 08:59:37 GMT"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let server = Server::start(move |_, stream| answer(stream, "429 Too Many Requests", &later, b""));
    let repository = server.repository(None);
    for n in 0..3 {
        let error = read_range(&repository, 2..6).await.unwrap_err();
        let wait = error.asked_to_wait().expect("it says how long");
        assert!(wait > Duration::from_secs(500) && wait <= Duration::from_secs(600), "{n}: {error:?}");
    }
    assert_eq!(server.asked().len(), 1, "it was asked once");
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_left_when_they_fail() {
    let broken = Server::start(|_, stream| answer(stream, "503 Service Unavailable", &[], b""));
    let missing = Server::start(|_, stream| answer(stream, "404 Not Found", &[], b""));
    let own = Server::start(|_, stream| good(stream));
    let source = mirrors(&Registry::new(Options::default()).unwrap(), &[&broken, &missing, &own]);
    for _ in 0..6 {
        assert_eq!(read_from(&source, b"blob").await.unwrap(), b"2345");
    }
    assert_eq!((broken.asked().len(), missing.asked().len(), own.asked().len()), (2, 6, 6), "the first is not well");
    // What fails everywhere is reported as the registry itself reports it.
    let own = Server::start(|_, stream| answer(stream, "404 Not Found", &[], br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#));
    let source = mirrors(&Registry::new(Options::default()).unwrap(), &[&missing, &own]);
    let error = read_from(&source, b"blob").await.unwrap_err();
    assert!(error.outcome() == Outcome::NotFound && error.one_line().contains("BLOB_UNKNOWN"), "{error:?}");
}

#[tokio::test]
async fn a_late_first_byte_makes_the_next_host_be_asked() {
    // Headers come at once, and then nothing: the first byte counts.
    let slow = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 2-5/10\r\n\r\n")?;
        std::thread::sleep(Duration::from_secs(30));
        broken()
    });
    let fast = Server::start(|_, stream| good(stream));
    let source = mirrors(&Registry::new(Options::default()).unwrap(), &[&slow, &fast]);
    let begin = Instant::now();
    assert_eq!(read_urgently(&source).await.unwrap(), b"2345");
    assert!(begin.elapsed() < Duration::from_secs(14), "the slow one was waited for");
    assert_eq!((slow.asked().len(), fast.asked().len()), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_drips_is_left_in_the_middle_and_asked_last() {
    let head = "HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 2-5/10\r\n\r\n";
    for silent in [false, true] {
        let (closed, seen) = std::sync::mpsc::channel();
        let closed = Mutex::new(closed);
        let slow = Server::start(move |_, stream| {
            stream.write_all(head.as_bytes())?;
            stream.write_all(b"2")?;
            // One more byte, and then nothing; or a byte each 300 ms.
            for byte in if silent { &b""[..] } else { &b"34"[..] } {
                std::thread::sleep(Duration::from_millis(300));
                stream.write_all(&[*byte])?;
            }
            let mut rest = [0];
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            if stream.read(&mut rest)? == 0 {
                closed.lock().unwrap().send(()).map_err(std::io::Error::other)?;
            }
            broken()
        });
        let own = Server::start(|_, stream| good(stream));
        let options = Options { lag: Duration::from_millis(200), ..Options::default() };
        let source = mirrors(&Registry::new(options).unwrap(), &[&slow, &own]);
        let error = read_from(&source, b"blob").await.unwrap_err();
        let why = if silent { "nothing came for" } else { "bytes came in" };
        let line = error.one_line();
        assert!(error.outcome() == Outcome::Unavailable && line.contains(why), "{line}");
        assert!(line.contains(&slow.port.to_string()), "{line}");
        let dropped = tokio::task::spawn_blocking(move || seen.recv_timeout(Duration::from_secs(60)));
        assert!(dropped.await.unwrap().is_ok(), "the connection to the slow mirror is kept");
        for _ in 0..3 {
            assert_eq!(read_from(&source, b"blob").await.unwrap(), b"2345");
        }
        assert_eq!((slow.asked().len(), own.asked().len()), (1, 3), "the slow one is asked again");
        assert!(source.origin(&Digest::of(b"blob")).contains(&own.port.to_string()), "{}", source.origin(&Digest::of(b"blob")));
    }
}

#[tokio::test]
async fn a_second_host_is_asked_only_for_programs_that_wait_and_seldom() {
    let (release, seconds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let held = |count: Option<Arc<AtomicUsize>>| {
        let release = Arc::clone(&release);
        Server::start(move |_, stream| {
            if let Some(count) = &count {
                count.fetch_add(1, Relaxed);
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            while !release.load(Relaxed) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            good(stream)
        })
    };
    let (first, second) = (held(None), held(Some(Arc::clone(&seconds))));
    let registry = Registry::new(Options::default()).unwrap();
    let source = Arc::new(mirrors(&registry, &[&first, &second]));
    let background = tokio::time::timeout(Duration::from_secs(2), read_from(&*source, b"blob")).await;
    assert!(background.is_err());
    assert_eq!((seconds.load(Relaxed), registry.hedged()), (0, 0), "a second host was asked though nobody waits");

    let programs: Vec<_> = (0..12)
        .map(|_| {
            let source = Arc::clone(&source);
            tokio::spawn(async move { read_urgently(&*source).await })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while seconds.load(Relaxed) < 4 {
        assert!(Instant::now() < deadline, "{} of the programs have asked the second host", seconds.load(Relaxed));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((seconds.load(Relaxed), registry.hedged()), (4, 4));
    release.store(true, Relaxed);
    for program in programs {
        assert_eq!(program.await.unwrap().unwrap(), b"2345");
    }
}

#[tokio::test]
async fn a_mirror_that_sends_damage_is_not_asked_for_that_blob_again() {
    let liar = Server::start(|_, stream| answer(stream, "206 Partial Content", &RANGE, b"liar"));
    let own = Server::start(|_, stream| good(stream));
    let source = mirrors(&Registry::new(Options::default()).unwrap(), &[&liar, &own]);
    assert_eq!(read_from(&source, b"blob").await.unwrap(), b"liar");
    assert!(source.distrust(&Digest::of(b"blob")), "another is left");
    assert_eq!(read_from(&source, b"blob").await.unwrap(), b"2345");
    assert_eq!(read_from(&source, b"other").await.unwrap(), b"liar", "other blobs may be right");
    assert!(!source.distrust(&Digest::of(b"blob")));
    assert!(read_from(&source, b"blob").await.is_ok(), "where all are distrusted all are asked");
    // A manifest that is not what its digest says comes from the next host.
    let digest = Digest::of(b"{}").to_string();
    let liar = Server::start(|_, stream| answer(stream, "200 OK", &[], b"[]"));
    let own = Server::start(|_, stream| answer(stream, "200 OK", &[], b"{}"));
    let source = mirrors(&Registry::new(Options::default()).unwrap(), &[&liar, &own]);
    assert_eq!(&source.manifest(&digest).await.unwrap().bytes[..], b"{}");
}

#[tokio::test]
async fn a_small_blob_comes_from_whoever_has_it_right() {
    let range = [("content-range", "bytes 0-3/4")];
    let liar = Server::start(move |_, stream| answer(stream, "206 Partial Content", &range, b"liar"));
    let own = Server::start(move |_, stream| answer(stream, "206 Partial Content", &range, b"good"));
    let registry = Registry::new(Options::default()).unwrap();
    let blob = crate::manifest::Descriptor { digest: Digest::of(b"good"), size: 4, media_type: String::new() };
    let source = mirrors(&registry, &[&liar, &own]);
    assert_eq!(crate::pull::read_blob(&source, &blob, 10).await.unwrap(), b"good");
    let source = mirrors(&registry, &[&liar, &liar]);
    let error = crate::pull::read_blob(&source, &blob, 10).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Integrity, "{error:?}");
}

#[tokio::test]
async fn headers_are_for_the_endpoint_alone_and_mirrors_are_told_for_whom() {
    let storage = Server::start(|asked, stream| {
        assert_eq!(asked.header("x-secret"), None, "the header went to the storage");
        good(stream)
    });
    let place = format!("http://127.0.0.1:{}/x", storage.port);
    let server = Server::start(move |asked, stream| {
        assert_eq!(asked.header("x-secret"), Some("s"));
        assert!(asked.line.starts_with("GET /sub/v2/a/b/blobs/") && asked.line.ends_with("?ns=r.io"), "{}", asked.line);
        answer(stream, "307 Temporary Redirect", &[("location", &place)], b"")
    });
    let endpoint = Endpoint {
        headers: vec![("X-Secret".to_owned(), "s".to_owned())],
        path: "/sub/v2".to_owned(),
        namespace: Some("r.io".to_owned()),
        ..Endpoint::new(&format!("127.0.0.1:{}", server.port), "a/b", "a test")
    };
    let repository = Repository::at(&Registry::new(Options::default()).unwrap(), endpoint, None, false).unwrap();
    for _ in 0..2 {
        assert_eq!(read_range(&repository, 2..6).await.unwrap(), b"2345");
    }
    assert_eq!((server.asked().len(), storage.asked().len()), (1, 2), "the place is remembered");
}

#[tokio::test]
async fn proxies_are_asked_except_for_this_machine() {
    let proxy = Server::start(|asked, stream| {
        assert_eq!(asked.header("proxy-authorization"), Some("Basic dTpw"));
        match asked.line.starts_with("GET http://registry.invalid:5000/v2/a/b/blobs/") {
            true => good(stream),
            false => answer(stream, "500 Internal Server Error", &[], asked.line.as_bytes()),
        }
    });
    let direct = Server::start(|_, stream| good(stream));
    let http = Some(format!("http://u:p@127.0.0.1:{}", proxy.port));
    let options = |none: &str| {
        let proxies = Proxies { http: http.clone(), none: Some(none.to_owned()), ..Proxies::default() };
        Options { plain_http: vec!["registry.invalid:5000".to_owned()], proxies, ..Options::default() }
    };
    let far = |none: &str| Repository::new(&Registry::new(options(none)).unwrap(), &reference("registry.invalid:5000/a/b"), None);
    assert_eq!(read_range(&far("other.invalid"), 2..6).await.unwrap(), b"2345");
    assert_eq!(proxy.asked().len(), 1);
    assert!(read_range(&far("x,.invalid"), 2..6).await.unwrap_err().one_line().contains("reachable from here"));
    assert_eq!(read_range(&direct.repository_with(None, options("x")), 2..6).await.unwrap(), b"2345");
    assert_eq!((proxy.asked().len(), direct.asked().len()), (0, 1));
}

/// Runs openssl in a directory.
fn openssl(dir: &std::path::Path, arguments: &str) {
    let output = std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn certificates_are_checked_against_the_configured_authority() {
    let test = "certificates_are_checked_against_the_configured_authority";
    for tool in ["openssl", "docker-registry"] {
        if std::process::Command::new(tool).arg("--version").output().is_err() {
            println!("SKIP {test}: {tool} is not installed");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    openssl(dir.path(), &format!("req -x509 {ec} -keyout ca.key -out ca.crt -subj /CN=authority"));
    openssl(dir.path(), &format!("req -x509 {ec} -keyout other.key -out other.crt -subj /CN=other"));
    std::fs::write(dir.path().join("server.ext"), "subjectAltName=DNS:localhost").unwrap();
    std::fs::write(dir.path().join("client.ext"), "extendedKeyUsage=clientAuth").unwrap();
    for name in ["server", "client"] {
        openssl(dir.path(), &format!("req {ec} -keyout {name}.key -out {name}.csr -subj /CN={name}").replace(" -days 30", ""));
        let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 30";
        openssl(dir.path(), &format!("x509 -req -in {name}.csr {sign} -extfile {name}.ext -out {name}.crt"));
    }
    let at = |name: &str| dir.path().join(name);
    let tls =
        format!("  tls: {{certificate: {0}/server.crt, key: {0}/server.key, clientcas: [{0}/ca.crt]}}\n", dir.path().display());
    let real = RealRegistry::spawn(&tls).await;
    let registry = Registry::new(Options::default()).unwrap();
    let ask = async |tls: Tls| {
        let endpoint =
            Endpoint { tls, transport: Transport::Tls, ..Endpoint::new(&format!("localhost:{}", real.port), "a/b", "a test") };
        Repository::at(&registry, endpoint, None, false).unwrap().manifest("gone").await.unwrap_err()
    };
    let identity =
        |name: &str| endpoint::Identity { certificate: at(&format!("{name}.crt")), key: Some(at(&format!("{name}.key"))) };
    let known = Tls { authorities: vec![at("ca.crt")], identities: vec![identity("client")], skip_verify: false };
    // 404 is an answer: the handshake worked, in both directions.
    assert_eq!(ask(known.clone()).await.outcome(), Outcome::NotFound);
    assert_eq!(ask(Tls { authorities: Vec::new(), skip_verify: true, ..known.clone() }).await.outcome(), Outcome::NotFound);
    for (what, tls) in [
        ("unknown authority", Tls { authorities: Vec::new(), ..known.clone() }),
        ("other authority", Tls { authorities: vec![at("other.crt")], ..known.clone() }),
        ("no identity", Tls { identities: Vec::new(), ..known.clone() }),
        ("other identity", Tls { identities: vec![identity("other")], ..known.clone() }),
    ] {
        let error = ask(tls).await;
        assert_eq!(error.outcome(), Outcome::Unavailable, "{what}: {error:?}");
    }
    let client = registry.at(&Endpoint { tls: known, ..Endpoint::new("localhost", "a", "") }).unwrap();
    let version = client.http().get(format!("https://localhost:{}/v2/", real.port)).send().await.unwrap().version();
    assert_eq!(version, reqwest::Version::HTTP_2);
    for (name, text) in [("empty.crt", ""), ("bad.crt", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")] {
        std::fs::write(at(name), text).unwrap();
        let tls = Tls { authorities: vec![at(name)], ..Tls::default() };
        let endpoint = Endpoint { tls, ..Endpoint::new("localhost", "a", "") };
        assert!(registry.at(&endpoint).unwrap_err().one_line().contains(name));
    }
}
