//! What a registry can do wrong, one row each, met by a small file and by a read of a large one through the real client. Nothing wrong
//! is ever stored; what passes is waited for; what does not is an error in time that says image, layer, offset and host.

use std::io::Write as _;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::*;
use super::rig::{Rig, noise, rig};
use crate::registry::tests::{Asked, Server, answer};
use crate::registry::{Options, Repository};

const LARGE: usize = 1_050_000;
/// Answers of rows that pass.
const FAULTY: usize = 4;
const CONFIG: &str = "readahead=0,readbehind=0,prefetch=0,read_window=0,ahead=0,background_idle=1,backoff_first=5,backoff_max=50";

/// What an answer is made of.
struct Met<'a> {
    blob: &'a [u8],
    range: Range<usize>,
    nth: usize,
    /// Connections that drip.
    drips: &'a AtomicUsize,
}

impl Met<'_> {
    fn right(&self) -> &[u8] {
        &self.blob[self.range.clone()]
    }

    /// 206 for the right range, with these headers more.
    fn head(&self, length: usize, more: &str) -> String {
        let Range { start, end } = self.range;
        let range = format!("content-range: bytes {start}-{}/{}", end - 1, self.blob.len());
        format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\n{range}\r\n{more}\r\n")
    }

    fn send(&self, stream: &mut TcpStream, head: &str, body: &[u8]) -> std::io::Result<()> {
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)
    }

    fn with_body(&self, stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
        self.send(stream, &self.head(body.len(), ""), body)
    }
}

type Answer = fn(&Met<'_>, &mut TcpStream) -> std::io::Result<()>;

enum Wanted {
    /// It passes: nobody notices.
    Passes,
    /// It stays until it is repaired, and is an error until then.
    Fails(Outcome, &'static str),
    /// The same; nothing, or hardly anything comes.
    Late(&'static str),
    /// The same, and what was damaged is not asked for again before the image is pulled again, or the host for long.
    Stays(Outcome, &'static str),
}

fn closed<T>() -> std::io::Result<T> {
    Err(std::io::Error::other("the script closes the connection"))
}

fn storm(met: &Met<'_>, stream: &mut TcpStream) -> std::io::Result<()> {
    let status = ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"][met.nth % 4];
    let wait = [("retry-after", ["0", "soon", "1", "-7"][met.nth / 2 % 4])];
    answer(stream, status, if met.nth.is_multiple_of(2) { &wait } else { &[] }, b"<html>storm</html>")
}

fn drip(met: &Met<'_>, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(met.head(met.right().len(), "").as_bytes())?;
    met.drips.fetch_add(1, Ordering::SeqCst);
    let dripped = met.right().iter().try_for_each(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&[*byte])
    });
    met.drips.fetch_sub(1, Ordering::SeqCst);
    dripped
}

fn flipped(met: &Met<'_>, stream: &mut TcpStream) -> std::io::Result<()> {
    let mut body = met.right().to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    met.with_body(stream, &body)
}

fn elsewhere(met: &Met<'_>, stream: &mut TcpStream) -> std::io::Result<()> {
    let place = met.blob.len() - met.range.len();
    met.with_body(stream, &met.blob[place..])
}

fn half(met: &Met<'_>, stream: &mut TcpStream) -> std::io::Result<()> {
    met.send(stream, &met.head(met.right().len(), ""), &met.right()[..met.right().len() / 2])?;
    closed()
}

fn as_chunks(met: &Met<'_>, stream: &mut TcpStream, coding: &str, body: &[u8]) -> std::io::Result<()> {
    let head = met.head(0, &format!("transfer-encoding: {coding}\r\n")).replace("content-length: 0\r\n", "");
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat();
    met.send(stream, &head, &chunk)
}

fn rows() -> Vec<(&'static str, Answer, Wanted)> {
    use Outcome::{Denied, Integrity, NotFound, Unavailable, Unsupported};
    use Wanted::{Fails, Late, Passes, Stays};
    vec![
        ("a storm of 5xx", storm, Passes),
        ("a storm that stays", storm, Fails(Unavailable, "50")),
        (
            "429 for an hour",
            |_, s| answer(s, "429 Too Many Requests", &[("retry-after", "3600")], b""),
            Stays(Unavailable, "429"),
        ),
        ("connections that are reset", |_, _| closed(), Passes),
        ("a body that breaks off in a chunk", half, Passes),
        ("a body that is announced too short", |m, s| m.with_body(s, &m.right()[..m.right().len() / 2]), Passes),
        ("a body that is announced too long", |m, s| m.send(s, &m.head(m.right().len() + 9, ""), m.right()), Passes),
        ("a chunked body", |m, s| as_chunks(m, s, "chunked", m.right()).and_then(|()| s.write_all(b"0\r\n\r\n")), Passes),
        ("a chunked body that breaks off", |m, s| as_chunks(m, s, "chunked", &m.right()[..9]).and_then(|()| closed()), Passes),
        (
            "no body at all",
            |m, s| m.send(s, &m.head(m.right().len(), ""), b"").and_then(|()| closed()),
            Fails(Unavailable, "body of http"),
        ),
        (
            "silence before the answer",
            |_, _| {
                std::thread::sleep(Duration::from_secs(2));
                closed()
            },
            Late("no answer for"),
        ),
        (
            "silence in the body",
            |m, s| {
                m.send(s, &m.head(m.right().len(), ""), b"x")?;
                std::thread::sleep(Duration::from_secs(2));
                closed()
            },
            Late("nothing came for"),
        ),
        ("a body that drips", drip, Late("bytes came in")),
        (
            "another range",
            |m, s| answer(s, "206 Partial Content", &[("content-range", "bytes 0-9/10")], &m.right()[..10]),
            Fails(Unsupported, "bytes 0 to 10"),
        ),
        (
            "another total",
            |m, s| {
                let Range { start, end } = m.range;
                answer(s, "206 Partial Content", &[("content-range", &format!("bytes {start}-{}/99999999", end - 1))], m.right())
            },
            Passes,
        ),
        (
            "an impossible total",
            |m, s| {
                let Range { start, end } = m.range;
                answer(s, "206 Partial Content", &[("content-range", &format!("bytes {start}-{}/1", end - 1))], m.right())
            },
            Fails(Unsupported, "/1`"),
        ),
        (
            "several ranges",
            |m, s| answer(s, "206 Partial Content", &[("content-type", "multipart/byteranges; boundary=x")], m.right()),
            Fails(Unsupported, "Content-Range: `"),
        ),
        ("everything instead of a range", |m, s| answer(s, "200 OK", &[], m.blob), Passes),
        (
            "a page instead of a range",
            |_, s| answer(s, "200 OK", &[("content-type", "text/html")], b"<html>log in</html>"),
            Fails(Unavailable, "bytes early"),
        ),
        (
            "a compressed answer",
            |m, s| answer(s, "200 OK", &[("content-encoding", "gzip")], m.blob),
            Fails(Unsupported, "content-encoding: gzip"),
        ),
        (
            "a compressed transfer",
            |m, s| as_chunks(m, s, "gzip, chunked", m.right()),
            Fails(Unsupported, "transfer-encoding: gzip"),
        ),
        ("a bit that is flipped once", |m, s| if m.nth == 0 { flipped(m, s) } else { m.with_body(s, m.right()) }, Passes),
        ("a bit that is flipped", flipped, Stays(Integrity, "push the image again")),
        ("bytes of another place", elsewhere, Stays(Integrity, "push the image again")),
        (
            "a blob that is gone",
            |_, s| answer(s, "404 Not Found", &[], br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
            Fails(NotFound, "BLOB_UNKNOWN"),
        ),
        (
            "a blob that is shorter",
            |_, s| answer(s, "416 Range Not Satisfiable", &[], b""),
            Fails(Integrity, "shorter than its manifest"),
        ),
        ("access that is taken away", |_, s| answer(s, "403 Forbidden", &[], b""), Fails(Denied, "podman login")),
        (
            "redirects without an end",
            |_, s| answer(s, "307 Temporary Redirect", &[("location", "/v2/x")], b""),
            Fails(Denied, "redirects"),
        ),
        ("no HTTP", |_, s| s.write_all(b"220 mail.example ESMTP\r\n").and_then(|()| closed()), Fails(Unavailable, "fetching")),
    ]
}

/// A rig with a small and a large file behind a server that has the fault.
struct Case {
    rig: Rig,
    server: Server,
    faulty: Arc<AtomicBool>,
    met: Arc<AtomicUsize>,
    drips: Arc<AtomicUsize>,
}

impl Case {
    fn new(fault: Answer, wanted: &Wanted) -> Self {
        let passes = matches!(wanted, Wanted::Passes);
        // Only where the end of patience is what is to be seen.
        let deadline = if matches!(wanted, Wanted::Late(_) | Wanted::Fails(Outcome::Unavailable, _)) { 4000 } else { 30_000 };
        let rig = rig(&[3000, LARGE, 500], &format!("{CONFIG},demand_deadline={deadline}"));
        let (faulty, met, drips) =
            (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let script = {
            let (fake, faulty, met, drips) = (Arc::clone(&rig.fake), Arc::clone(&faulty), Arc::clone(&met), Arc::clone(&drips));
            move |asked: &Asked, stream: &mut TcpStream| {
                if asked.line.contains("/manifests/") {
                    return answer(stream, "200 OK", &[], &fake.manifest);
                }
                let range = range_of(asked).unwrap_or(0..fake.blob.len());
                let met = Met { blob: &fake.blob, range, nth: met.fetch_add(1, Ordering::SeqCst), drips: &drips };
                match faulty.load(Ordering::SeqCst) && !(passes && met.nth >= FAULTY) {
                    true => fault(&met, stream),
                    false => met.with_body(stream, met.right()),
                }
            }
        };
        let server = Server::start(script);
        let plain_http = vec![format!("127.0.0.1:{}", server.port)];
        let mut options = Options { plain_http, ..Options::default() };
        if matches!(wanted, Wanted::Late(_)) {
            (options.idle, options.headers) = (Duration::from_millis(300), Duration::from_millis(300));
        }
        let source: Repository = server.repository_with(None, options);
        rig.attach_to(&rig.fetcher, rig.image, Arc::new(source));
        Self { rig, server, faulty, met, drips }
    }

    /// Where the bytes that are asked for are in the blob.
    fn piece(&self, file: usize) -> Range<u64> {
        let chunks = self.rig.chunks(file);
        chunks[0].start..chunks[0].end
    }

    async fn get(&self, file: usize) -> Result<()> {
        match file {
            0 => self.rig.demand(0).await,
            _ => {
                let bytes = self.rig.read(1, 1000..2000).await?;
                assert!(bytes == noise(LARGE, 2)[1000..2000], "wrong bytes were read");
                Ok(())
            }
        }
    }

    /// Everything is right that can be had by now.
    async fn completes(&self, name: &str) {
        self.faulty.store(false, Ordering::SeqCst);
        if let Err(error) = self.rig.background().await {
            panic!("{name}: {error:?}");
        }
        for (file, len) in [(0, 3000), (2, 500)] {
            let object = self.rig.store.cas().objects_dir().join(self.rig.files[file].0.object_path());
            assert!(std::fs::read(object).unwrap() == noise(len, file + 1), "{name}: file {file} has other bytes");
        }
        assert!(self.rig.read(1, 0..LARGE as u64).await.unwrap() == noise(LARGE, 2), "{name}: the large file has other bytes");
    }
}

fn range_of(asked: &Asked) -> Option<Range<usize>> {
    let (first, last) = asked.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

async fn passes(name: &'static str, case: Case) {
    for file in [0, 1] {
        case.met.store(0, Ordering::SeqCst);
        if let Err(error) = case.get(file).await {
            panic!("{name}, file {file}: {error:?}");
        }
    }
    case.completes(name).await;
}

async fn fails(name: &'static str, case: Case, outcome: Outcome, why: &'static str, stays: bool) {
    let layer = case.rig.table.layers().next().unwrap().digest.to_string();
    for file in [0, 1] {
        let error = case.get(file).await.expect_err(name);
        let (line, host) = (error.one_line(), format!("127.0.0.1:{}", case.server.port));
        assert_eq!(error.outcome(), outcome, "{name}, file {file}: {line}");
        for part in ["fake/image:1", &layer, &host] {
            assert!(line.contains(part), "{name}, file {file}: no `{part}` in: {line}");
        }
        let offset = line.split_once("offset ").and_then(|(_, rest)| rest.split(',').next()?.parse::<u64>().ok());
        assert!(offset.is_some_and(|offset| case.piece(file).contains(&offset)), "{name}, file {file}: no offset in: {line}");
        // A machine with too much to do is late itself.
        let reasons = [why, "no answer for", "nothing came for"];
        let reasons = if outcome == Outcome::Unavailable { &reasons[..] } else { &reasons[..1] };
        assert!(reasons.iter().any(|why| line.contains(why)), "{name}, file {file}: no `{why}` in: {line}");
        assert!(line.len() < 700 && !what_next(&error).is_empty(), "{name}, file {file}: {line}");
    }
    assert!(case.rig.local().is_empty(), "{name}: {:?} are stored", case.rig.local());
    let deadline = Instant::now() + Duration::from_secs(60);
    while case.drips.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < deadline, "{name}: the connection is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    case.faulty.store(false, Ordering::SeqCst);
    if stays {
        let before = case.met.load(Ordering::SeqCst);
        assert!(case.get(0).await.is_err() && case.get(1).await.is_err(), "{name}: it was tried again");
        assert_eq!(case.met.load(Ordering::SeqCst), before, "{name}: it was asked for again");
        return;
    }
    // The host may be left alone for a moment.
    while let Err(error) = case.get(0).await.and(case.get(1).await) {
        assert!(Instant::now() < deadline, "{name}: it stays after it was repaired: {error:?}");
    }
    case.completes(name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_wrong_is_stored_and_every_error_says_where() {
    let (mut all, few) = (tokio::task::JoinSet::new(), Arc::new(tokio::sync::Semaphore::new(8)));
    for (name, fault, wanted) in rows() {
        let few = Arc::clone(&few);
        all.spawn(async move {
            let _permit = few.acquire_owned().await.unwrap();
            let (case, wanted) = tokio::task::spawn_blocking(move || (Case::new(fault, &wanted), wanted)).await.unwrap();
            match wanted {
                Wanted::Passes => passes(name, case).await,
                Wanted::Fails(outcome, why) => fails(name, case, outcome, why, false).await,
                Wanted::Late(why) => fails(name, case, Outcome::Unavailable, why, false).await,
                Wanted::Stays(outcome, why) => fails(name, case, outcome, why, true).await,
            }
        });
    }
    // All rows are looked at, so that one run tells of all that is wrong.
    let mut wrong = 0;
    while let Some(row) = all.join_next().await {
        wrong += usize::from(row.is_err());
    }
    assert_eq!(wrong, 0, "rows that are not as they should be; they are above");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_lost_a_file_of_a_layer_that_streamed_past_does_not_become_complete() {
    use crate::layer::LayerKind;
    use crate::layer::sample::{file, layer};
    use crate::table::{LayerSource, Table, build};

    let rig = rig(&[1000], "background_idle=1");
    let index = layer([file("a", b"one"), file("b", b"two")]);
    let blob = Digest::of(b"blob");
    let source = LayerSource { digest: blob, diff_id: blob, size: 100, kind: LayerKind::Stream, index: &index };
    let table = Arc::new(Table::from_bytes(build(&[source]).unwrap()).unwrap());
    let objects = [b"one", b"two"].map(|content| {
        let mut writer = rig.store.cas().writer().unwrap();
        writer.write(content).unwrap();
        writer.finish().unwrap()
    });
    let streamed = Rig { table, image: Digest::of(b"image"), ..rig };
    streamed.attach(&streamed.fetcher, streamed.image);
    streamed.background().await.unwrap();
    streamed.store.cas().remove(&objects[1]).unwrap();
    let error = streamed.background().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Integrity);
    let line = error.one_line();
    assert!(line.contains("fake/image:1") && line.contains(&objects[1].to_string()) && line.contains("pull the image"), "{line}");
}
