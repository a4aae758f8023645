//! Sends spans to a collector by OTLP/HTTP, in batches, for as long as somebody makes spans.
//!
//! A batch that is not taken for a reason that may pass is tried again until its time is over. Meanwhile new spans gather in the bounded
//! queue. A collector that does not answer is logged once, and once more when it does again.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::otlp::{encode, rejected};
use super::{Ended, Settings, Tracer};
use crate::error::{Error, Outcome, Result};
use crate::observe::names::{Known, Names};
use crate::registry::{is_passing, ordinary_client, read_limited, retry_after, transport};

/// The first pause after a failure that may pass; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is shorter, whatever a collector says.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// The longest answer that is read, bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A task that sends spans.
#[derive(Debug)]
pub struct Exporting {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Exporting {
    /// Sends what `tracer` collects, on a task of the current tokio runtime. `store` is where the names of files are looked up.
    pub fn start(settings: Settings, tracer: Tracer, store: Option<PathBuf>) -> Result<Self> {
        let exporter = Exporter {
            http: ordinary_client(&settings.proxies, CONNECT)?,
            headers: headers(&settings)?,
            settings,
            tracer,
            store,
            fails: false,
        };
        let (stop, stopped) = oneshot::channel();
        Ok(Self { task: tokio::spawn(exporter.run(stopped)), stop })
    }

    /// Sends what is left, for as long as `patience` lasts.
    pub async fn finish(mut self, patience: Duration) {
        // Where it has ended, nothing is left.
        self.stop.send(()).unwrap_or_default();
        if tokio::time::timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans were not sent within {patience:?}");
        }
    }
}

struct Exporter {
    settings: Settings,
    tracer: Tracer,
    http: Client,
    headers: HeaderMap,
    store: Option<PathBuf>,
    /// Whether the last batch was lost.
    fails: bool,
}

impl Exporter {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut last = false;
        while !last {
            tokio::select! {
                () = self.tracer.full() => {}
                () = sleep(self.settings.delay) => {}
                _ = &mut stopped => last = true,
            }
            loop {
                let batch = self.tracer.take();
                if batch.is_empty() {
                    break;
                }
                self.send(batch).await;
            }
        }
    }

    async fn send(&mut self, batch: Vec<Ended>) {
        let count = batch.len() as u64;
        let batch = named(self.store.clone(), batch).await;
        let body = encode(&self.settings.resource, &batch);
        let dropped = match self.deliver(body).await {
            Ok(None) => 0,
            Ok(Some((number, why))) => {
                tracing::warn!("{} has not taken {number} of {count} spans: {why}", self.settings.url);
                number.min(count)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!("{}; spans are dropped until that works", error.one_line());
                }
                return self.tracer.sent(0, count);
            }
        };
        if std::mem::take(&mut self.fails) {
            tracing::info!("{} takes spans again", self.settings.url);
        }
        self.tracer.sent(count - dropped, dropped);
    }

    /// Sends one body until it is taken, refused, or its time over.
    async fn deliver(&self, body: Vec<u8>) -> Result<Option<(u64, String)>> {
        let deadline = Instant::now() + self.settings.timeout;
        let (body, mut pause) = (bytes::Bytes::from(body), FIRST_PAUSE);
        loop {
            let failure = match timeout_at(deadline, self.post(body.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    return Err(Error::new(Outcome::Unavailable, self.tried())
                        .because(format!("no answer for {:?}", self.settings.timeout)));
                }
            };
            let wait = failure.asked_to_wait().unwrap_or(pause).max(LEAST_PAUSE);
            if failure.outcome() != Outcome::Unavailable || Instant::now() + wait >= deadline {
                return Err(failure);
            }
            sleep(wait).await;
            pause *= 2;
        }
    }

    async fn post(&self, body: bytes::Bytes) -> Result<Option<(u64, String)>> {
        let request = self.http.post(&self.settings.url).headers(self.headers.clone()).body(body);
        let response = request.send().await.map_err(|e| transport(self.tried(), e).advise("is the collector running?"))?;
        let status = response.status();
        if status.is_success() {
            let answer = read_limited(response, MAX_ANSWER).await.map_err(|e| e.during(self.tried()))?;
            return Ok(rejected(&answer));
        }
        let refused = |outcome| Error::new(outcome, self.tried()).because(format!("it answered {status}"));
        if is_passing(status) {
            return Err(match retry_after(&response) {
                Some(wait) => refused(Outcome::Unavailable).retry_after(wait),
                None => refused(Outcome::Unavailable),
            });
        }
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                refused(Outcome::Denied).advise("OTEL_EXPORTER_OTLP_HEADERS may have to name a key")
            }
            _ => refused(Outcome::BadInput).advise("does it take OTLP as http/json there?"),
        })
    }

    fn tried(&self) -> String {
        format!("sending spans to {}", self.settings.url)
    }
}

fn headers(settings: &Settings) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in &settings.headers {
        let bad = || Error::new(Outcome::BadInput, format!("reading the header {name} of OTEL_EXPORTER_OTLP_HEADERS"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|e| bad().because(e))?;
        let mut value = HeaderValue::from_str(value).map_err(|e| bad().because(e))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

/// The spans with the names of the files that they are about, which nobody had to wait for until now.
async fn named(store: Option<PathBuf>, spans: Vec<Ended>) -> Vec<Ended> {
    let Some(store) = store.filter(|_| spans.iter().any(|span| span.content.is_some())) else { return spans };
    let kept = spans.clone();
    let naming = tokio::task::spawn_blocking(move || {
        let (mut spans, mut images) = (spans, std::collections::HashMap::new());
        for span in &mut spans {
            let Some((image, what)) = span.content.take() else { continue };
            // The image may have been removed meanwhile: its files have no names then.
            let names = images.entry(image).or_insert_with(|| Names::of(&store, &image).ok());
            let Some(Known { path, range, .. }) = names.as_ref().and_then(|names| names.resolve(&what)) else { continue };
            span.attributes.push(("file.path", path.into()));
            if let Some(range) = range {
                span.attributes.push(("towline.file.offset", range.start.into()));
                span.attributes.push(("towline.file.length", (range.end - range.start).into()));
            }
        }
        spans
    });
    naming.await.unwrap_or(kept)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use serde_json::Value as Json;

    use super::super::tests::settings;
    use super::super::{Kind, Tracer};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Answers each request with the next of `answers`, and passes on what it got: head and body.
    fn collector(answers: Vec<&'static str>) -> (String, mpsc::Receiver<(String, Json)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                sender.send(request(&mut stream)).unwrap();
                let more = "content-length: 0\r\nconnection: close\r\n\r\n";
                stream
                    .write_all(format!("HTTP/1.1 {answer}{}", if answer.contains("\r\n\r\n") { "" } else { more }).as_bytes())
                    .unwrap();
            }
        });
        (url, received)
    }

    fn request(stream: &mut TcpStream) -> (String, Json) {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            if let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(all[..end].to_vec()).unwrap().to_lowercase();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
                if all.len() >= end + 4 + length {
                    return (head, serde_json::from_slice(&all[end + 4..]).unwrap());
                }
            }
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "the request ended early");
            all.extend_from_slice(&piece[..n]);
        }
    }

    async fn export(url: &str, more: &[(&str, &str)], spans: usize) -> Tracer {
        let settings = settings(url, more);
        let tracer = Tracer::new(&settings);
        let exporting = Exporting::start(settings, tracer.clone(), None).unwrap();
        for _ in 0..spans {
            drop(tracer.begin("x", Kind::Internal, None));
        }
        exporting.finish(PATIENCE).await;
        tracer
    }

    fn names(body: &Json) -> usize {
        body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn batches_arrive_with_their_headers() {
        let (url, received) = collector(vec![
            "200 OK\r\n",
            "200 OK\r\ncontent-length: 42\r\nconnection: close\r\n\r\n{\"partialSuccess\":{\"rejectedSpans\":\"1\"}}  ",
        ]);
        let more = [("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")];
        let tracer = export(&url, &more, 4).await;
        let got: Vec<_> = received.iter().collect();
        assert_eq!(got.iter().map(|(_, body)| names(body)).collect::<Vec<_>>(), [2, 2]);
        assert!(got[0].0.starts_with("post /v1/traces http/1.1") && got[0].0.contains("api-key: secret"));
        assert!(got[0].0.contains("content-type: application/json"));
        assert_eq!(tracer.counts(), (3, 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_pass_is_tried_again_and_what_does_not_is_dropped() {
        for (answers, counts) in [
            (vec!["503 Busy\r\nretry-after: 0\r\n", "429 Later\r\nretry-after: 0\r\n", "200 OK\r\n"], (1, 0)),
            (vec!["400 Bad\r\n"], (0, 1)),
            (vec!["401 No\r\n"], (0, 1)),
            (vec!["307 There\r\nlocation: /x\r\n"], (0, 1)),
        ] {
            let (tries, shown) = (answers.len(), format!("{answers:?}"));
            let (url, received) = collector(answers);
            assert_eq!(export(&url, &[], 1).await.counts(), counts, "{shown}");
            assert_eq!(received.iter().count(), tries, "{shown}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_is_down_or_silent_costs_only_spans() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for address in [down, silent.local_addr().unwrap()] {
            let tracer = export(&format!("http://{address}/"), &[("OTEL_EXPORTER_OTLP_TIMEOUT", "300")], 3).await;
            assert_eq!(tracer.counts(), (0, 3), "{address}");
        }
    }

    #[tokio::test]
    async fn a_header_that_http_does_not_allow_is_refused_without_showing_it() {
        let settings = settings("http://c/", &[("OTEL_EXPORTER_OTLP_HEADERS", "key=sec%0aret")]);
        let error = Exporting::start(settings.clone(), Tracer::new(&settings), None).unwrap_err().one_line();
        assert!(error.contains("header key") && !error.contains("sec"), "{error}");
    }
}
