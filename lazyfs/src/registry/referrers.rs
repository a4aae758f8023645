//! What refers to a manifest (distribution-spec 1.1, "Listing Referrers"): by the API where the registry has it, else by an index with
//! a tag that is made of the subject's digest ("Referrers Tag Schema").

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::client::read_limited;
use super::repository::Repository;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{About, MAX_MANIFEST, OCI_INDEX};
use crate::source::{RawManifest, Referrer, Source};

/// The most referrers of one image that are read.
const MAX_REFERRERS: usize = 4096;

impl Repository {
    pub(super) async fn list_referrers(&self, subject: Digest, artifact_type: Option<&str>) -> Result<Vec<Referrer>> {
        let tried = || format!("listing what refers to {subject} in {}", Source::name(self));
        let found = self.all_referrers(subject).await.map_err(|e| e.during(tried()))?;
        Ok(found.into_iter().filter(|referrer| referrer.is(artifact_type)).collect())
    }

    async fn all_referrers(&self, subject: Digest) -> Result<Vec<Referrer>> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        let response = self.ask(Method::GET, &format!("referrers/{subject}"), &headers, None, true).await?;
        match response.status() {
            StatusCode::OK => {
                let tried = || format!("GET {}", response.url());
                let (said, more) = (tried(), response.headers().contains_key("link"));
                let text = self.registry.deadline(|| said.clone(), read_limited(response, MAX_MANIFEST)).await?;
                if more {
                    tracing::debug!("{said}: only the first page is read");
                }
                parse(&text)
            }
            // Registries that do not know the API answer in their own ways.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => Ok(self.tagged(subject).await?.0),
            _ => Err(self.failure_of("GET", response).await),
        }
    }

    /// The index with the subject's tag, and the text it was read from.
    async fn tagged(&self, subject: Digest) -> Result<(Vec<Referrer>, Option<Bytes>)> {
        match self.manifest(&tag(subject)).await {
            Ok(raw) => Ok((parse(&raw.bytes)?, Some(raw.bytes))),
            Err(e) if e.outcome() == Outcome::NotFound => Ok((Vec::new(), None)),
            Err(e) => Err(e),
        }
    }

    /// Adds a manifest to the index with its subject's tag. The specification gives clients no way to do so atomically.
    pub(super) async fn list_by_tag(&self, manifest: &RawManifest, about: &About, subject: Digest) -> Result<()> {
        let (mut known, _) = self.tagged(subject).await?;
        if known.iter().any(|referrer| referrer.digest == manifest.digest) {
            return Ok(());
        }
        known.extend(about.referrer(manifest, &subject));
        let document = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": known});
        let bytes = Bytes::from(document.to_string());
        let index = RawManifest { digest: Digest::of(&bytes), bytes, media_type: OCI_INDEX.to_owned() };
        self.put_manifest_text(&index, OCI_INDEX, &tag(subject)).await.map(drop)
    }
}

fn tag(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn parse(text: &[u8]) -> Result<Vec<Referrer>> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Referrer>,
    }
    let refuse = |why: String| Error::new(Outcome::BadInput, "reading an index of referrers").because(why);
    let index: Index = serde_json::from_slice(text).map_err(|e| refuse(e.to_string()))?;
    match index.manifests.len() {
        n if n > MAX_REFERRERS => Err(refuse(format!("it names {n} manifests, at most {MAX_REFERRERS} are read"))),
        _ => Ok(index.manifests),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_referrers_are_read_or_refused() {
        let entry = format!(r#"{{"mediaType":"m","digest":"{}","size":3,"artifactType":"a"}}"#, Digest::of(b"x"));
        let many = vec![entry.clone(); MAX_REFERRERS + 1].join(",");
        for (entries, wanted) in [("", Ok(0)), (&*entry, Ok(1)), (&*many, Err("at most 4096")), ("{}", Err("missing field"))] {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
            match (parse(text.as_bytes()), wanted) {
                (Ok(found), Ok(n)) => assert_eq!(found.len(), n),
                (Err(e), Err(why)) => assert!(e.one_line().contains(why), "{e:?}"),
                (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
            }
        }
    }
}
