//! Pulling under a policy, from a source that tells lies.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform};
use crate::policy::tests::{Signer, payload};
use crate::pull::resolve_all;
use crate::source::{BoxFuture, ByteStream, RawManifest};

const NAME: &str = "example.com/a/b:1";

/// What tags and digests name, and blobs. What it says of digests is not checked.
#[derive(Default)]
struct Repository {
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<Digest, Bytes>,
    asked: Mutex<Vec<String>>,
    broken: bool,
}

impl Repository {
    /// Adds a manifest under its digest, and a tag.
    fn put(&mut self, tag: &str, text: &str) -> Digest {
        let digest = Digest::of(text.as_bytes());
        for name in [tag.to_owned(), digest.to_string()] {
            self.manifests.insert(name, text.as_bytes().to_vec());
        }
        digest
    }

    fn sign(&mut self, signer: &Signer, image: &Digest, name: &str) -> Digest {
        let signature = signer.sign(&payload(image, name));
        let digest = Digest::of(&signature.payload);
        let text = serde_json::json!({"schemaVersion": 2, "layers": [
            {"mediaType": "application/other", "digest": digest, "size": 1},
            {"mediaType": signature::PAYLOAD, "digest": digest, "size": signature.payload.len(),
             "annotations": {signature::ANNOTATION: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &signature.signature)}},
        ]});
        self.blobs.insert(digest, signature.payload.into());
        self.put(&signature::tag(image), &text.to_string());
        digest
    }
}

impl Source for Repository {
    fn name(&self) -> String {
        "example.com/a/b".to_owned()
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        self.asked.lock().unwrap().push(tag_or_digest.to_owned());
        let tried = || format!("asking for {tag_or_digest}");
        let found = match self.manifests.get(tag_or_digest) {
            _ if self.broken => Err(Error::new(Outcome::Unavailable, tried())),
            None => Err(Error::new(Outcome::NotFound, tried())),
            Some(bytes) => Ok(RawManifest {
                bytes: bytes.clone().into(),
                digest: tag_or_digest.parse().unwrap_or_else(|_| Digest::of(bytes)),
                media_type: String::new(),
            }),
        };
        Box::pin(std::future::ready(found))
    }

    fn open(&self, blob: Digest, _: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let bytes = self.blobs[&blob].clone();
        Box::pin(std::future::ready(Ok(Box::pin(futures_util::stream::iter([Ok(bytes)])) as ByteStream)))
    }
}

fn image() -> String {
    let digest = Digest::of(b"");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":2}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":3}}]}}"#
    )
}

fn index(of: &Digest) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{of}","size":9,
        "platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    )
}

fn policy_of(signer: &Signer, identity: &str) -> Policy {
    let text = format!(
        r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{}","signedIdentity":{{"type":"{identity}"}}}}]}}"#,
        signer.data()
    );
    Policy::parse(Path::new("/p.json"), text.as_bytes()).unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_digest_decides_at_each_step() {
    let platform: Platform = "linux/amd64".parse().unwrap();
    let mut repository = Repository::default();
    let manifest = repository.put("one", &image());
    let top = repository.put("all", &index(&manifest));
    for (selector, digests) in [
        ("one", vec![manifest]),
        ("all", vec![manifest, top]),
        (&*manifest.to_string(), vec![manifest]),
        (&*top.to_string(), vec![manifest, top]),
    ] {
        assert_eq!(resolve_all(&repository, selector, &platform).await.unwrap().digests, digests, "{selector}");
    }
    // The registry has something else under the digests: of the manifest, and with it behind the index.
    repository.manifests.insert(manifest.to_string(), format!("{} ", image()).into());
    for selector in [manifest.to_string(), top.to_string(), "all".to_owned()] {
        let error = resolve_all(&repository, &selector, &platform).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Integrity, "{selector}");
        assert!(error.one_line().contains(&format!("not {manifest}")), "{selector}: {error:?}");
    }
}

#[tokio::test]
async fn what_is_signed_is_let_in_and_kept() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let policy = policy_of(&signer, "matchRepoDigestOrExact");
    let (manifest, top) = (Digest::of(b"manifest"), Digest::of(b"index"));
    let gate = Gate::of(Some(&policy), &reference(NAME)).unwrap();
    let admit = async |repository: &Repository| gate.admit(repository, &[manifest, top]).await;

    let mut repository = Repository::default();
    assert_eq!(admit(&repository).await.unwrap_err().outcome(), Outcome::Denied);
    assert_eq!(*repository.asked.lock().unwrap(), [signature::tag(&manifest), signature::tag(&top)]);
    repository.sign(&stranger, &manifest, NAME);
    assert_eq!(admit(&repository).await.unwrap_err().outcome(), Outcome::Denied);
    repository.sign(&signer, &top, NAME);
    let vouched = admit(&repository).await.unwrap().unwrap();
    assert_eq!((vouched.digests.as_slice(), vouched.signatures.len()), (&[manifest, top][..], 2));

    // What is kept decides later, also under another policy.
    let dir = tempfile::tempdir().unwrap();
    let files = crate::store::image::ImageFiles::of(dir.path(), &manifest);
    let record = crate::store::image::ImageRecord::new(NAME.into(), false, "{}".into());
    files.write(b"", b"", record).unwrap();
    let kept = |policy: &Policy| kept::decide(&policy.rule(&reference(NAME)), &manifest, &files);
    assert_eq!(kept(&policy).unwrap_err().outcome(), Outcome::Denied);
    files.keep_signatures(&vouched.to_bytes()).unwrap();
    kept(&policy).unwrap();
    kept(&policy_of(&stranger, "matchRepository")).unwrap();
    assert_eq!(kept(&policy_of(&Signer::new(), "matchRepository")).unwrap_err().outcome(), Outcome::Denied);
    files.keep_signatures(b"{}").unwrap();
    assert_eq!(kept(&policy).unwrap_err().outcome(), Outcome::Integrity);

    // Signatures that cannot be read are no signatures that are not there.
    let signed = repository.sign(&signer, &manifest, NAME);
    repository.blobs.insert(signed, Bytes::from_static(b"{}"));
    assert_eq!(admit(&repository).await.unwrap_err().outcome(), Outcome::Integrity);
    repository.put(&signature::tag(&manifest), "{");
    assert_eq!(admit(&repository).await.unwrap_err().outcome(), Outcome::BadInput);
    repository.broken = true;
    assert_eq!(admit(&repository).await.unwrap_err().outcome(), Outcome::Unavailable);
}

#[tokio::test]
async fn nobody_is_asked_where_the_answer_is_known() {
    let repository = Repository::default();
    let digests = [Digest::of(b"manifest")];
    let reject = Policy::parse(Path::new("/p.json"), br#"{"default":[{"type":"reject"}]}"#).unwrap();
    assert_eq!(Gate::of(Some(&reject), &reference(NAME)).unwrap_err().outcome(), Outcome::Denied);
    let accept = Policy::parse(Path::new("/p.json"), br#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    for policy in [Some(&accept), None] {
        let gate = Gate::of(policy, &reference(NAME)).unwrap();
        assert_eq!(gate.admit(&repository, &digests).await.unwrap(), None);
    }
    let signed = policy_of(&Signer::new(), "matchRepository");
    let gate = Gate::of(Some(&signed), &reference("docker-archive:/a.tar")).unwrap();
    assert_eq!(gate.admit(&repository, &digests).await.unwrap_err().outcome(), Outcome::Denied);
    assert_eq!(*repository.asked.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_index_beside_the_image_counts_as_much_as_the_image() {
    let signer = Signer::new();
    let (by_tag, pinned) = (reference(NAME), reference(&format!("{NAME}@{}", Digest::of(b"manifest"))));
    let signed = policy_of(&signer, "matchRepository");
    let accept = Policy::parse(Path::new("/p.json"), br#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let (good, bad) = (Digest::of(b"signed artifact"), Digest::of(b"other artifact"));
    let mut repository = Repository::default();
    repository.sign(&signer, &good, "example.com/a/b");
    repository.sign(&Signer::new(), &bad, "example.com/a/b");
    for (policy, reference, strict, trusted) in [
        (None, &by_tag, false, [true, true]),
        (Some(&accept), &by_tag, false, [true, true]),
        (None, &pinned, true, [false, false]),
        (Some(&accept), &pinned, true, [false, false]),
        (Some(&signed), &by_tag, true, [true, false]),
        (Some(&signed), &pinned, true, [true, false]),
    ] {
        let gate = Gate::of(policy, reference).unwrap();
        assert_eq!(gate.is_strict(), strict, "{gate:?}");
        let found = [gate.trusts(&repository, &good).await, gate.trusts(&repository, &bad).await];
        assert_eq!(found, trusted, "{gate:?}");
    }
}
