//! One repository at several hosts: mirrors in their order, the registry itself last.
//!
//! A host that fails is asked last until it is well again ([`super::host`]). When a program waits, and a host's first byte is later than
//! nineteen of twenty of its answers were, the next host is asked as well, and whoever is first is read; the other request is dropped. That is
//! done once for a request, for a few at a time ([`super::hedge`]), and never for what nobody waits for. A body that breaks off
//! or crawls while another host could be asked is given up, and its host is asked last for a while. What a host
//! sends is checked against its digest like that of any other; a host whose content turned out to be wrong is not asked for
//! that blob again.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture as Work, FutureExt as _};
use futures_util::stream::{self, FuturesUnordered, StreamExt as _};

use super::pace::Pace;
use super::repository::Repository;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::source::{BoxFuture, ByteStream, RawManifest, Referrer, Source};

/// No second host is asked sooner than this.
const HEDGE_FLOOR: Duration = Duration::from_millis(50);
/// When a second host is asked while nothing is known of the first.
const HEDGE_UNKNOWN: Duration = Duration::from_secs(1);
/// For how long a host whose body broke off or crawled is asked after the others.
const LAME: Duration = Duration::from_secs(60);
/// How many blobs are remembered as damaged at a host.
const MAX_DISTRUSTED: usize = 4096;

/// See the module.
pub struct Mirrors {
    /// In the order of configuration; the registry that the reference names is the last.
    members: Vec<Arc<Repository>>,
    name: String,
    /// Which member sent damaged content of which blob.
    distrusted: Mutex<HashSet<(usize, Digest)>>,
    /// Who was read last for a blob.
    last: Mutex<Vec<(Digest, usize)>>,
    /// Members whose bodies broke off or crawled, and until when they are asked last.
    lame: Arc<Mutex<HashMap<usize, Instant>>>,
}

impl Mirrors {
    /// `name` is the repository as the user named it; there is at least one member.
    pub fn new(name: String, members: Vec<Repository>) -> Self {
        assert!(!members.is_empty(), "a repository is asked somewhere");
        let members = members.into_iter().map(Arc::new).collect();
        Self { members, name, distrusted: Mutex::default(), last: Mutex::default(), lame: Arc::default() }
    }

    /// Who is asked, first asked first: those that are well, then the others.
    fn order(&self, wanted: impl Fn(&Repository) -> bool) -> Vec<usize> {
        let is_well = |n: &usize| self.members[*n].known_host().is_well() && !self.is_lame(*n);
        let (well, ill): (Vec<usize>, Vec<usize>) =
            (0..self.members.len()).filter(|n| wanted(&self.members[*n])).partition(is_well);
        well.into_iter().chain(ill).collect()
    }

    async fn first_manifest(&self, selector: &str) -> Result<RawManifest> {
        let by_digest = selector.parse::<Digest>().is_ok();
        let order = self.order(|member| {
            let serves = member.endpoint().serves;
            if by_digest { serves.digests } else { serves.tags }
        });
        let mut failure = None;
        for n in order {
            match self.members[n].manifest(selector).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => failure = Some(self.failed(n, error, failure)),
            }
        }
        Err(failure.unwrap_or_else(|| self.nobody(selector)))
    }

    async fn first_range(&self, blob: Digest, range: Range<u64>, is_urgent: bool) -> Result<ByteStream> {
        let mut order = self.order(|member| member.endpoint().serves.digests);
        {
            let distrusted = self.distrusted.lock().expect("no holder of this lock panics");
            let trusted: Vec<usize> = order.iter().copied().filter(|n| !distrusted.contains(&(*n, blob))).collect();
            // Where all are distrusted, content may have been repaired meanwhile.
            order = if trusted.is_empty() { order } else { trusted };
        }
        let mut left = order.into_iter().peekable();
        let (mut asked, mut failure): (FuturesUnordered<Work<'_, _>>, _) = (FuturesUnordered::new(), None);
        let mut hedge = None;
        loop {
            let Some(next) = left.next().or_else(|| if asked.is_empty() { None } else { Some(usize::MAX) }) else {
                return Err(failure.unwrap_or_else(|| self.nobody(&blob.to_string())));
            };
            let mut patience = None;
            if next != usize::MAX {
                let host = self.members[next].known_host();
                let may_hedge = is_urgent && hedge.is_none() && left.peek().is_some();
                patience = may_hedge.then(|| host.answers_within().unwrap_or(HEDGE_UNKNOWN).max(HEDGE_FLOOR) * 3 / 2);
                asked.push(self.first_byte(next, blob, range.clone()).boxed());
            }
            let arrived = match patience {
                Some(patience) => match tokio::time::timeout(patience, asked.next()).await {
                    Ok(arrived) => arrived,
                    Err(_) => {
                        hedge = self.members[next].registry.hedges().begin();
                        if hedge.is_some() {
                            tracing::debug!("{} is late, asking the next host, too", self.members[next].endpoint());
                            continue;
                        }
                        asked.next().await
                    }
                },
                None => asked.next().await,
            };
            match arrived {
                Some((n, Ok(stream))) => {
                    self.read_from(blob, n);
                    return Ok(self.watched(n, stream));
                }
                Some((n, Err(error))) => failure = Some(self.failed(n, error, failure)),
                None => {}
            }
        }
    }

    /// Opens the range at a member and waits until something of it is here.
    async fn first_byte(&self, n: usize, blob: Digest, range: Range<u64>) -> (usize, Result<ByteStream>) {
        let (began, empty) = (Instant::now(), range.is_empty());
        let mut stream = match self.members[n].open(blob, range).await {
            Ok(stream) => stream,
            Err(error) => return (n, Err(error)),
        };
        match stream.next().await {
            Some(Ok(piece)) => {
                self.members[n].known_host().answered(began.elapsed());
                (n, Ok(Box::pin(stream::iter([Ok(piece)]).chain(stream))))
            }
            Some(Err(error)) => (n, Err(error)),
            None if empty => (n, Ok(stream)),
            None => {
                let tried = format!("reading {blob} from {}", self.members[n].endpoint());
                (n, Err(Error::new(Outcome::Unavailable, tried).because("nothing came")))
            }
        }
    }

    /// The same bytes, with less patience while another host could send them. Whoever reads goes on where this broke off.
    fn watched(&self, n: usize, stream: ByteStream) -> ByteStream {
        let lag = self.members[n].registry.options().lag;
        let others = (0..self.members.len()).any(|other| other != n && !self.is_lame(other));
        let (lame, endpoint) = (Arc::clone(&self.lame), self.members[n].endpoint().to_string());
        let pace = others.then(|| Pace::new(lag));
        Box::pin(stream::try_unfold((stream, pace), move |(mut stream, mut pace)| {
            let (lame, tried) = (Arc::clone(&lame), format!("reading from {endpoint}"));
            async move {
                let began = Instant::now();
                let next = match &mut pace {
                    None => stream.next().await,
                    Some(_) => tokio::time::timeout(lag * 2, stream.next()).await.unwrap_or_else(|_| {
                        Some(Err(Error::new(Outcome::Unavailable, &tried).because(format!("nothing came for {:?}", lag * 2))))
                    }),
                };
                let slow = match (&next, &mut pace) {
                    (Some(Ok(piece)), Some(pace)) => pace.note(began.elapsed(), piece.len()).err(),
                    _ => None,
                };
                let failed = match (next, slow) {
                    (None, _) => return Ok(None),
                    (Some(Ok(piece)), None) => return Ok(Some((piece, (stream, pace)))),
                    (Some(Err(error)), _) => error,
                    (_, Some(why)) => Error::new(Outcome::Unavailable, tried).because(why),
                };
                tracing::info!("another host is asked first for {LAME:?}: {}", failed.one_line());
                lame.lock().expect("no holder of this lock panics").insert(n, Instant::now() + LAME);
                Err(failed)
            }
        }))
    }

    fn is_lame(&self, n: usize) -> bool {
        let mut lame = self.lame.lock().expect("no holder of this lock panics");
        lame.retain(|_, until| *until > Instant::now());
        lame.contains_key(&n)
    }

    fn read_from(&self, blob: Digest, n: usize) {
        let mut last = self.last.lock().expect("no holder of this lock panics");
        last.retain(|(known, _)| *known != blob);
        if last.len() == MAX_DISTRUSTED {
            last.remove(0);
        }
        last.push((blob, n));
    }

    fn last_read(&self, blob: &Digest) -> Option<usize> {
        let last = self.last.lock().expect("no holder of this lock panics");
        last.iter().find(|(known, _)| known == blob).map(|(_, n)| *n)
    }

    /// The failure to report: that of the registry itself says more than that of a mirror.
    fn failed(&self, n: usize, error: Error, earlier: Option<Error>) -> Error {
        if n + 1 < self.members.len() {
            tracing::debug!("the mirror {} does not serve {}: {}", self.members[n].endpoint(), self.name, error.one_line());
        }
        match earlier {
            // Trying again helps where one of them may pass.
            Some(earlier) if earlier.outcome() == Outcome::Unavailable && error.outcome() != Outcome::Unavailable => earlier,
            Some(_) if n + 1 == self.members.len() => error,
            Some(earlier) => earlier,
            None => error,
        }
    }

    fn nobody(&self, what: &str) -> Error {
        Error::new(Outcome::NotFound, format!("asking for {what} of {}", self.name))
            .because("no configured host may be asked for it")
            .advise("see `towline registries` and the capabilities in hosts.toml")
    }
}

impl Source for Mirrors {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(self.first_manifest(tag_or_digest))
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(self.first_range(blob, range, false))
    }

    fn open_urgently(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(self.first_range(blob, range, true))
    }

    fn origin(&self, blob: &Digest) -> String {
        match self.last_read(blob) {
            Some(n) => format!("{} for {}", self.members[n].endpoint(), self.name),
            None => self.name.clone(),
        }
    }

    fn distrust(&self, blob: &Digest) -> bool {
        let Some(n) = self.last_read(blob) else { return false };
        if self.members.len() > 1 {
            tracing::warn!("{} has sent damaged content of {blob}; others are asked for it", self.members[n].endpoint());
        }
        let mut distrusted = self.distrusted.lock().expect("no holder of this lock panics");
        if distrusted.len() < MAX_DISTRUSTED {
            distrusted.insert((n, *blob));
        }
        let is_trusted = |n| !distrusted.contains(&(n, *blob)) && self.members[n].endpoint().serves.digests;
        (0..self.members.len()).any(is_trusted)
    }

    /// Those that the registry itself knows, and where it does not answer, a mirror.
    fn referrers<'a>(&'a self, subject: Digest, artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        Box::pin(async move {
            let mut failure = None;
            for n in self.order(|_| true).into_iter().rev() {
                match self.members[n].referrers(subject, artifact_type).await {
                    Ok(found) => return Ok(found),
                    Err(error) => failure = Some(self.failed(n, error, failure)),
                }
            }
            Err(failure.expect("there is at least one member"))
        })
    }

    fn host_of(&self, blob: &Digest) -> Option<String> {
        let last = self.last.lock().expect("no holder of this lock panics").iter().find(|(known, _)| known == blob).copied();
        last.map(|(_, n)| self.members[n].endpoint().host.clone())
    }

    fn repository(&self) -> Option<(&str, &str)> {
        self.members.last().and_then(|own| Source::repository(&**own))
    }
}
