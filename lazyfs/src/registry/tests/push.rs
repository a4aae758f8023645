//! Pushing: against scripts that break off, and against Debian's docker-registry, which knows no referrers API.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::sink::{Blob, Content, Sink, Stored};

fn blob(content: &[u8]) -> (Blob, Content) {
    let blob = Blob { digest: Digest::of(content), size: content.len() as u64 };
    (blob, Content::Bytes(Bytes::copy_from_slice(content)))
}

fn pushing(port: u16, name: &str, piece: u64) -> Repository {
    let registry = Registry::new(Options { piece, ..Options::default() }).unwrap();
    Repository::to_push(&registry, &reference(&format!("127.0.0.1:{port}/{name}:t")), None)
}

fn manifest(text: String) -> RawManifest {
    let bytes = Bytes::from(text);
    RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() }
}

/// A registry that has `got` of an upload, and does something else at its `n`th request that has a body.
fn flaky(
    n: u32,
    mut trouble: impl FnMut(&mut TcpStream) -> std::io::Result<()> + Send + 'static,
) -> (Server, Arc<Mutex<String>>) {
    let got = Arc::new(Mutex::new(String::new()));
    let (kept, count) = (Arc::clone(&got), Mutex::new(0));
    let trouble = Mutex::new(move |stream: &mut TcpStream| trouble(stream));
    let server = Server::start(move |asked, stream| {
        let mut got = kept.lock().unwrap();
        let method = asked.line.split(' ').next().unwrap();
        if !asked.body.is_empty() {
            *count.lock().unwrap() += 1;
            if *count.lock().unwrap() == n {
                return trouble.lock().unwrap()(stream);
            }
        }
        let place = [("location", "/v2/a/b/blobs/uploads/1?state=x")];
        match method {
            "HEAD" => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
            "POST" => {
                got.clear();
                answer(stream, "202 Accepted", &place, b"")
            }
            "GET" | "PATCH" => {
                if method == "PATCH" {
                    let range = format!("{}-{}", got.len(), got.len() + asked.body.len() - 1);
                    assert_eq!(asked.header("content-range"), Some(&*range));
                }
                got.push_str(&asked.body);
                let range = format!("0-{}", got.len().max(1) - 1);
                let status = if method == "GET" { "204 No Content" } else { "202 Accepted" };
                answer(stream, status, &[place[0], ("range", &range)], b"")
            }
            "PUT" => {
                assert!(asked.line.contains("state=x&digest=sha256%3A"), "{}", asked.line);
                got.push_str(&asked.body);
                answer(stream, "201 Created", &[], b"")
            }
            _ => answer(stream, "202 Accepted", &[], b""),
        }
    });
    (server, got)
}

#[tokio::test]
async fn an_upload_that_breaks_off_goes_on_where_it_was() {
    let text = "0123456789abcdefghij";
    // 20 bytes in pieces of 8: PATCH, PATCH, PATCH with the rest, PUT without a body.
    for (what, n, piece, posts) in [("nothing", 9, 8, 1), ("first", 1, 8, 1), ("second", 2, 8, 1), ("the only one", 1, 64, 1)] {
        for status in ["", "503 Service Unavailable"] {
            let (server, got) = flaky(n, move |stream| match status {
                "" => broken(),
                status => answer(stream, status, &[("retry-after", "0")], b""),
            });
            let (blob, content) = blob(text.as_bytes());
            let most = AtomicU64::new(0);
            let progress = |bytes| {
                most.fetch_max(bytes, Ordering::Relaxed);
            };
            let stored = pushing(server.port, "a/b", piece).put_blob(blob, &content, &progress).await.unwrap();
            assert_eq!((stored, got.lock().unwrap().as_str()), (Stored::Sent, text), "{what} {status}");
            assert_eq!(most.load(Ordering::Relaxed), 20);
            assert_eq!(server.asked().iter().filter(|line| line.starts_with("POST")).count(), posts, "{what}");
        }
    }
}

#[tokio::test]
async fn refusals_say_why_and_are_not_tried_again() {
    for (status, outcome, why) in [
        ("400 Bad Request", Outcome::Integrity, "damaged"),
        ("405 Method Not Allowed", Outcome::Denied, "read-only"),
        ("413 Payload Too Large", Outcome::Unsupported, "raise that limit"),
        ("507 Insufficient Storage", Outcome::NoSpace, "free space there"),
        ("401 Unauthorized", Outcome::Denied, "podman login"),
    ] {
        let (server, _) =
            flaky(1, move |stream| answer(stream, status, &[], br#"{"errors":[{"code":"X","message":"because"}]}"#));
        let (blob, content) = blob(b"0123");
        let error = pushing(server.port, "a/b", 64).put_blob(blob, &content, &|_| ()).await.unwrap_err();
        assert!(error.outcome() == outcome && error.one_line().contains(why), "{status}: {error:?}");
        assert!(error.one_line().contains("because"), "{error:?}");
        let asked = server.asked();
        assert_eq!(asked.iter().filter(|line| line.starts_with("PUT")).count(), 1, "{asked:?}");
        assert!(asked.last().unwrap().starts_with("DELETE"), "the upload is given up: {asked:?}");
    }
}

#[tokio::test]
async fn content_that_cannot_be_read_is_not_blamed_on_the_registry() {
    let (server, _) = flaky(9, |_| broken());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short");
    std::fs::write(&path, "0123").unwrap();
    let content = Content::File(Arc::new(std::fs::File::open(&path).unwrap()), path);
    let blob = Blob { digest: Digest::of(b"x"), size: 10 };
    let error = pushing(server.port, "a/b", 64).put_blob(blob, &content, &|_| ()).await.unwrap_err();
    assert!(error.outcome() == Outcome::Integrity && error.one_line().contains("short"), "{error:?}");
}

#[tokio::test]
async fn a_real_registry_takes_blobs_manifests_and_referrers() {
    if std::process::Command::new("docker-registry").arg("--version").output().is_err() {
        println!("SKIP a_real_registry_takes_blobs_manifests_and_referrers: docker-registry is not installed");
        return;
    }
    let real = RealRegistry::start(b"x", &manifest_of(&Blob { digest: Digest::of(b"x"), size: 1 })).await;
    let repository = pushing(real.port, "team/app", 60_000);
    let large: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    for content in [&large[..], b"small", b""] {
        let (blob, content) = blob(content);
        assert!(!repository.has_blob(blob).await.unwrap() || blob.size == 0);
        let stored = repository.put_blob(blob, &content, &|_| ()).await.unwrap();
        assert!(stored == Stored::Sent || blob.size == 0);
        assert_eq!(repository.put_blob(blob, &content, &|_| ()).await.unwrap(), Stored::Existed);
    }
    let (large, _) = blob(&large);
    assert_eq!(read(repository.open(large.digest, 59_990..60_010).await).await.unwrap().len(), 20);
    // Into another repository of the same registry nothing is sent.
    let other = pushing(real.port, "team/other", 60_000);
    let content = Content::Blob(Arc::new(pushing(real.port, "team/app", 1)), large.digest);
    assert_eq!(other.put_blob(large, &content, &|_| ()).await.unwrap(), Stored::Mounted);
    let wrong = Blob { digest: Digest::of(b"other"), size: 5 };
    let error = repository.put_blob(wrong, &blob(b"small").1, &|_| ()).await.unwrap_err();
    assert!(error.outcome() == Outcome::Integrity && error.one_line().contains("DIGEST_INVALID"), "{error:?}");

    let image = manifest(manifest_of(&large));
    let error = other.put_manifest(&manifest(manifest_of(&wrong)), Some("t")).await.unwrap_err();
    assert!(error.one_line().contains("MANIFEST_BLOB_UNKNOWN"), "{error:?}");
    repository.put_manifest(&image, None).await.unwrap();
    assert_eq!(repository.manifest("v1").await.unwrap_err().outcome(), Outcome::NotFound);
    repository.put_manifest(&image, Some("v1")).await.unwrap();
    assert_eq!(repository.manifest("v1").await.unwrap().digest, image.digest);

    // Two referrers through the tag schema, and no image with that digest at all.
    for kind in ["a/b", "c/d"] {
        let subject = format!(r#""artifactType":"{kind}","subject":{{"mediaType":"m","digest":"{}","size":1}},"#, image.digest);
        let text = manifest_of(&large).replacen("\"config\"", &format!("{subject}\"config\""), 1);
        repository.put_manifest(&manifest(text), None).await.unwrap();
    }
    let kinds = |found: Vec<crate::source::Referrer>| found.into_iter().map(|r| r.artifact_type).collect::<Vec<_>>();
    assert_eq!(kinds(repository.referrers(image.digest, None).await.unwrap()), ["a/b", "c/d"]);
    assert_eq!(kinds(repository.referrers(image.digest, Some("c/d")).await.unwrap()), ["c/d"]);
    assert!(repository.referrers(Digest::of(b"nobody"), None).await.unwrap().is_empty());
}

fn manifest_of(blob: &Blob) -> String {
    let Blob { digest, size } = blob;
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}]}}"#
    )
}

#[tokio::test]
async fn a_registry_with_referrers_is_asked_for_them() {
    let subject = Digest::of(b"image");
    let entry = format!(r#"{{"mediaType":"m","digest":"{}","size":3,"artifactType":"a/b"}}"#, Digest::of(b"x"));
    let server = Server::start(move |asked, stream| match asked.line.as_str() {
        line if line.starts_with("GET /v2/a/b/referrers/") => {
            let body = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
            answer(stream, "200 OK", &[("content-type", "application/vnd.oci.image.index.v1+json")], body.as_bytes())
        }
        line if line.starts_with("PUT /v2/a/b/manifests/") => {
            answer(stream, "201 Created", &[("oci-subject", &subject.to_string())], b"")
        }
        line => panic!("{line}"),
    });
    let repository = pushing(server.port, "a/b", 1);
    assert_eq!(repository.referrers(subject, Some("a/b")).await.unwrap().len(), 1);
    assert_eq!(repository.referrers(subject, Some("other")).await.unwrap().len(), 0);
    let text = format!(r#"{{"schemaVersion":2,"subject":{{"digest":"{subject}","size":1}}}}"#);
    repository.put_manifest(&manifest(text), None).await.unwrap();
    assert_eq!(server.asked().len(), 3, "no index with a tag is made");
}
