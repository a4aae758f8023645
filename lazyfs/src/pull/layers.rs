//! The index of every layer of an image, from wherever it can be had soonest: kept from an earlier pull, from the table of contents
//! in the layer, or from the layer itself.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;

use super::gate::Gate;
use super::referrers::Referrers;
use super::{Events, send};
use crate::daemon::protocol::Event;
use crate::daemon::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{UseReferrers, stream};
use crate::layer::seek::SeekIndex;
use crate::layer::spans::Spans;
use crate::layer::tar::CasSink;
use crate::layer::zstd_chunked::{self, TocLocation};
use crate::layer::{LayerIndex, LayerKind, estargz, saved};
use crate::manifest::{Compression, Descriptor, Manifest};
use crate::observe::spans::Context;
use crate::source::Source;
use crate::table::LayerSource;
use crate::task::blocking;

/// How many layers may stream past at once: each takes a connection and decompresses on a thread of its own.
const STREAMS: usize = 3;

/// How often a blob that is needed before anything can start is asked for.
const ATTEMPTS: u32 = 4;

/// How often a pull says how far a layer has streamed.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A layer and how its index can be had.
#[derive(Clone, Debug)]
pub struct Plan {
    pub digest: Digest,
    pub size: u64,
    compression: Compression,
    toc: Option<TocLocation>,
    /// Digest of the table of contents of an eStargz layer.
    table: Option<Digest>,
}

impl Plan {
    pub fn kind(&self) -> LayerKind {
        match (&self.toc, &self.table) {
            (Some(_), _) => LayerKind::ZstdChunked,
            (None, Some(_)) => LayerKind::Estargz,
            (None, None) => LayerKind::Stream,
        }
    }
}

/// A layer whose index is known.
#[derive(Debug)]
pub struct Indexed {
    digest: Digest,
    size: u64,
    pub kind: LayerKind,
    pub index: LayerIndex,
    /// Bytes that came only to know the index.
    pub index_bytes: u64,
    /// Known where the layer streamed past just now.
    diff_id: Option<Digest>,
}

impl Indexed {
    /// The layer as the mapping table records it.
    pub fn describe(&self, diff_id: Digest) -> LayerSource<'_> {
        LayerSource { digest: self.digest, diff_id, kind: self.kind, size: self.size, index: &self.index }
    }
}

/// How the index of each layer can be had.
pub fn plan(manifest: &Manifest) -> Result<Vec<Plan>> {
    let one = |layer: &crate::manifest::Layer| {
        let toc = match layer.compression {
            Compression::Zstd => TocLocation::from_annotations(&layer.digest, layer.size, &layer.annotations)?,
            Compression::Gzip | Compression::None => None,
        };
        let table = match layer.compression {
            Compression::Gzip => estargz::table_digest(&layer.digest, &layer.annotations)?,
            Compression::Zstd | Compression::None => None,
        };
        Ok(Plan { digest: layer.digest, size: layer.size, compression: layer.compression, toc, table })
    };
    manifest.layers.iter().map(one).collect()
}

/// Whether an image can start before this layer is here, for each layer.
pub fn lazy(manifest: &Manifest) -> Result<Vec<bool>> {
    Ok(plan(manifest)?.iter().map(|plan| plan.kind() != LayerKind::Stream).collect())
}

/// The indexes of all layers, fetched side by side.
pub async fn index_all(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    image: Digest,
    plans: &[Plan],
    events: &Events,
    gate: &Gate,
    trace: Option<Context>,
) -> Result<Vec<Indexed>> {
    let gate = Some(gate).filter(|_| daemon.fetcher.uses_referrers() != UseReferrers::Always);
    let (streams, referrers) = (tokio::sync::Semaphore::new(STREAMS), Referrers::new(gate));
    let ways = Ways { image, streams: &streams, referrers: &referrers, trace };
    try_join_all(plans.iter().enumerate().map(|(position, plan)| traced(daemon, source, plan, position, events, ways))).await
}

/// [`index`] as a span.
async fn traced(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    plan: &Plan,
    position: usize,
    events: &Events,
    ways: Ways<'_>,
) -> Result<Indexed> {
    let mut span = daemon.span("index", ways.trace);
    span.note("towline.layer", || plan.digest.to_string());
    span.note("towline.length", || plan.size);
    let indexed = index(daemon, source, plan, position, events, ways).await;
    if let Ok(indexed) = &indexed {
        span.note("towline.bytes", || indexed.index_bytes);
    }
    span.result(&indexed);
    indexed
}

/// What the layers of an image share while their indexes are had.
#[derive(Clone, Copy)]
struct Ways<'a> {
    image: Digest,
    streams: &'a tokio::sync::Semaphore,
    referrers: &'a Referrers<'a>,
    /// The span that they are part of.
    trace: Option<Context>,
}

async fn index(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    plan: &Plan,
    position: usize,
    events: &Events,
    ways: Ways<'_>,
) -> Result<Indexed> {
    let _alone = daemon.layer_locks.alone(&plan.digest).await;
    let indexed =
        |index, kind, index_bytes, diff_id| Indexed { digest: plan.digest, size: plan.size, kind, index, index_bytes, diff_id };
    if let Some((index, kind)) = read_kept(daemon, &plan.digest, plan.kind()).await? {
        send(events, Event::LayerIndexed { layer: position, bytes: 0 });
        return Ok(indexed(index, kind, 0, None));
    }
    if let Some(location) = &plan.toc {
        match from_toc(source.as_ref(), &plan.digest, location).await {
            Ok((index, bytes)) => {
                tracing::debug!("keeping the index of {}", plan.digest);
                let index = keep(daemon, &plan.digest, index).await?;
                tracing::debug!("{} is indexed", plan.digest);
                send(events, Event::LayerIndexed { layer: position, bytes });
                return Ok(indexed(index, LayerKind::ZstdChunked, bytes, None));
            }
            Err(error) if error.outcome() == Outcome::Unsupported => {
                send(
                    events,
                    Event::Warning { text: format!("layer {position} starts only when it is here: {}", error.one_line()) },
                );
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(digest) = &plan.table {
        match from_table(source.as_ref(), plan, digest).await {
            Ok((table, bytes)) => {
                keep_spans(daemon, &plan.digest, table.spans).await?;
                let index = keep(daemon, &plan.digest, table.index).await?;
                send(events, Event::LayerIndexed { layer: position, bytes });
                return Ok(indexed(index, LayerKind::Estargz, bytes, None));
            }
            // It is plain gzip, too.
            Err(error) if matches!(error.outcome(), Outcome::Unsupported | Outcome::BadInput) => {
                let text = format!("the table of contents of layer {position} is of no use: {}", error.one_line());
                send(events, Event::Warning { text });
            }
            Err(error) => return Err(error),
        }
    }
    if plan.compression == Compression::Gzip
        && daemon.fetcher.uses_referrers() != UseReferrers::Never
        && let Some((seek, spans, bytes)) = from_referrer(source, plan, ways).await
    {
        keep_spans(daemon, &plan.digest, spans).await?;
        let index = keep(daemon, &plan.digest, seek.index).await?;
        send(events, Event::LayerIndexed { layer: position, bytes });
        return Ok(indexed(index, LayerKind::GzipSeek, bytes, None));
    }
    let _permit = ways.streams.acquire().await.expect("the semaphore is never closed");
    let ingested = stream_past(daemon, source, plan, position, events).await?;
    let index = match ingested.seek {
        Some(seek) => {
            keep_spans(daemon, &plan.digest, seek.spans_file(true)?).await?;
            keep(daemon, &plan.digest, seek.index).await?;
            ingested.index
        }
        None => keep(daemon, &plan.digest, ingested.index).await?,
    };
    send(events, Event::LayerIndexed { layer: position, bytes: plan.size });
    Ok(indexed(index, LayerKind::Stream, 0, Some(ingested.diff_id)))
}

async fn from_toc(source: &dyn Source, layer: &Digest, location: &TocLocation) -> Result<(LayerIndex, u64)> {
    let length = location.range.end - location.range.start;
    let mut attempt = 1;
    loop {
        let compressed = read_range(source, layer, location.range.clone()).await?;
        tracing::debug!("parsing {length} bytes of the table of contents of {layer}");
        // On a thread of its own: the layers' tables are parsed side by side, and others go on arriving.
        let (digest, place) = (*layer, location.clone());
        let parsed = blocking("reading a table of contents", move || zstd_chunked::parse(&digest, &place, &compressed)).await;
        match parsed {
            Err(error) if may_be_right(source, layer, &error, true, &mut attempt) => {}
            Err(error) => return Err(at_offset(error, source, layer, location.range.start)),
            Ok(index) => return Ok((index, length)),
        }
    }
}

/// How much of the end of an eStargz layer is asked for at once: the footer, and with it most tables.
const TAIL: u64 = 128 << 10;

/// The table of contents of an eStargz layer, and how many bytes came for it.
async fn from_table(source: &dyn Source, plan: &Plan, digest: &Digest) -> Result<(estargz::Table, u64)> {
    let (layer, size) = (plan.digest, plan.size);
    let mut attempt = 1;
    loop {
        let start = size.saturating_sub(TAIL);
        let mut tail = read_range(source, &layer, start..size).await?;
        let Some(offset) = estargz::table_offset(&tail, size) else {
            let tried = format!("reading layer {layer} of {}", source.name());
            return Err(Error::new(Outcome::BadInput, tried).because("it has no footer of an eStargz layer"));
        };
        let bytes = size - offset.min(start);
        if offset < start {
            let mut member = read_range(source, &layer, offset..start).await?;
            member.append(&mut tail);
            tail = member;
        } else {
            tail.drain(..usize::try_from(offset - start).unwrap_or(usize::MAX));
        }
        let digest = *digest;
        let parsed = blocking("reading a table of contents", move || estargz::parse(&layer, &digest, size, offset, &tail)).await;
        match parsed {
            Err(error) if may_be_right(source, &layer, &error, true, &mut attempt) => {}
            Err(error) => return Err(at_offset(error, source, &layer, offset)),
            Ok(table) => return Ok((table, bytes)),
        }
    }
}

/// The seek index that was pushed beside the image, its spans as they are kept, and how many bytes came for it.
async fn from_referrer(source: &Arc<dyn Source>, plan: &Plan, ways: Ways<'_>) -> Option<(SeekIndex, Vec<u8>, u64)> {
    let packed = ways.referrers.index_of(source, &ways.image, &plan.digest).await?;
    let (layer, size, bytes) = (plan.digest, plan.size, packed.len() as u64);
    let work = move || {
        let seek = SeekIndex::decode(&layer, size, &packed)?;
        let spans = seek.spans_file(false)?;
        Ok((seek, spans, bytes))
    };
    match blocking("reading a seek index", work).await {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!("the layer streams, its index is of no use: {}", error.one_line());
            None
        }
    }
}

/// Whether it is worth asking again for content that was not right: of somebody else, where a mirror sent it and others are left; of the same
/// host only where that is `cheap`.
fn may_be_right(source: &dyn Source, blob: &Digest, error: &Error, cheap: bool, attempt: &mut u32) -> bool {
    // What is damaged may also be no archive at all any more.
    let is_damage = error.outcome() == Outcome::Integrity || (error.outcome() == Outcome::BadInput && !cheap);
    let again = is_damage && (source.distrust(blob) | cheap) && *attempt < ATTEMPTS;
    if again {
        *attempt += 1;
        tracing::warn!("asking again: {}", error.one_line());
    }
    again
}

fn at_offset(error: Error, source: &dyn Source, layer: &Digest, offset: u64) -> Error {
    error.during(format!("reading layer {layer} of {} at offset {offset}", source.name()))
}

async fn stream_past(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    plan: &Plan,
    position: usize,
    events: &Events,
) -> Result<crate::layer::stream::Ingested> {
    let mut attempt = 1;
    loop {
        match stream_once(daemon, source, plan, position, events).await {
            Err(error) if may_be_right(source.as_ref(), &plan.digest, &error, false, &mut attempt) => {}
            done => return done,
        }
    }
}

async fn stream_once(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    plan: &Plan,
    position: usize,
    events: &Events,
) -> Result<crate::layer::stream::Ingested> {
    let (digest, total, compression) = (plan.digest, plan.size, plan.compression);
    let progress = events.clone();
    let told = Mutex::new(Instant::now());
    let report = move |bytes| {
        let mut told = told.lock().expect("no holder of this lock panics");
        if told.elapsed() >= REPORT_EVERY || bytes == total {
            *told = Instant::now();
            send(&progress, Event::LayerStreaming { layer: position, bytes, total });
        }
    };
    let reader = stream::reader(source.clone(), digest, total, report);
    let store = daemon.store.clone();
    let ingested =
        tokio::task::spawn_blocking(move || crate::layer::stream::ingest(reader, compression, &mut CasSink::new(store.cas())))
            .await;
    let ingested = ingested
        .map_err(|e| Error::new(Outcome::Io, format!("reading layer {digest}")).because(e))?
        .map_err(|e| e.during(format!("reading layer {digest} of {}", source.name())))?;
    if ingested.blob_digest != digest {
        return Err(Error::new(Outcome::Integrity, format!("reading layer {digest} of {}", source.name()))
            .because(format!("its {} bytes from offset 0 have digest {}", ingested.blob_size, ingested.blob_digest))
            .advise("the registry's copy is damaged: push the image again"));
    }
    Ok(ingested)
}

/// A layer that streamed past must be the one that the configuration means; the others are checked when they are complete.
pub fn check_diff_ids(indexed: &[Indexed], diff_ids: &[Digest]) -> Result<()> {
    for (layer, expected) in indexed.iter().zip(diff_ids) {
        if let Some(found) = layer.diff_id
            && found != *expected
        {
            return Err(Error::new(Outcome::Integrity, format!("checking layer {}", layer.digest))
                .because(format!("its uncompressed digest is {found}, the image's configuration says {expected}"))
                .advise("the image is inconsistent: push it again"));
        }
    }
    Ok(())
}

/// A blob that is read as a whole, such as a configuration. Verified.
pub async fn read_blob(source: &dyn Source, blob: &Descriptor, limit: u64) -> Result<Vec<u8>> {
    let tried = || format!("reading blob {} of {}", blob.digest, source.name());
    if blob.size > limit {
        return Err(Error::new(Outcome::BadInput, tried()).because(format!("it has {} bytes, the limit is {limit}", blob.size)));
    }
    let mut attempt = 1;
    loop {
        let bytes = read_range(source, &blob.digest, 0..blob.size).await?;
        let digest = Digest::of(&bytes);
        if digest == blob.digest {
            return Ok(bytes);
        }
        let error = Error::new(Outcome::Integrity, tried())
            .because(format!("its bytes 0 to {} have digest {digest}", blob.size))
            .advise("the registry's copy is damaged: push the image again");
        if !may_be_right(source, &blob.digest, &error, false, &mut attempt) {
            return Err(error);
        }
    }
}

/// Bytes `range` of a blob, asked for again where that may help. Not verified.
pub async fn read_range(source: &dyn Source, blob: &Digest, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let mut attempt = 1;
    loop {
        match read_range_once(source, blob, range.clone()).await {
            Err(error) if error.outcome() == Outcome::Unavailable && attempt < ATTEMPTS => {
                tracing::warn!("asking again: {}", error.one_line());
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn read_range_once(source: &dyn Source, blob: &Digest, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut pieces = source.open(*blob, range).await?;
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// What an earlier pull kept of a layer, unless its content has gone since. `kind` is how the layer could be reached; one with a table
/// of contents that was of no use was streamed, and its files have no chunks.
async fn read_kept(daemon: &Arc<Daemon>, layer: &Digest, kind: LayerKind) -> Result<Option<(LayerIndex, LayerKind)>> {
    let (store, path) = (daemon.store.clone(), daemon.store.index_path(layer));
    let spans = store.spans_path(layer);
    blocking("reading a kept index", move || {
        let index = match std::fs::read(&path) {
            Ok(bytes) => match saved::load(&bytes) {
                Ok(index) => index,
                Err(error) => {
                    tracing::warn!("asking for the index of a layer again, {}: {}", path.display(), error.one_line());
                    return Ok(None);
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("reading", &path, e)),
        };
        let spans = match Spans::open(&spans) {
            Ok(spans) => Some(spans),
            Err(error) if spans.exists() => {
                tracing::warn!("asking for the index of a layer again: {}", error.one_line());
                return Ok(None);
            }
            Err(_) => None,
        };
        let random_access = index.files().all(|file| file.size == 0 || !file.chunks.is_empty());
        if kind == LayerKind::ZstdChunked && random_access {
            return Ok(Some((index, kind)));
        }
        // Without random access all content came with the index; it must still be there.
        let local = index.files().all(|file| file.size == 0 || store.cas().contains(&file.digest));
        match spans.filter(|_| random_access) {
            Some(spans) if !(local && spans.is_verified()) => {
                let kind = if kind == LayerKind::Estargz { kind } else { LayerKind::GzipSeek };
                Ok(Some((index, kind)))
            }
            _ => Ok(local.then_some((index, LayerKind::Stream))),
        }
    })
    .await
}

/// Keeps the index and gives it back.
async fn keep(daemon: &Arc<Daemon>, layer: &Digest, index: LayerIndex) -> Result<LayerIndex> {
    let path = daemon.store.index_path(layer);
    blocking("keeping an index", move || keep_file(&path, |out| saved::write(&index, out)).map(|()| index)).await
}

async fn keep_spans(daemon: &Arc<Daemon>, layer: &Digest, spans: Vec<u8>) -> Result<()> {
    let path = daemon.store.spans_path(layer);
    blocking("keeping an index", move || keep_file(&path, |out| out.write_all(&spans))).await
}

fn keep_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let dir = path.parent().expect("indexes have a directory");
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
    write(&mut new).map_err(|e| Error::io("writing", path, e))?;
    new.persist(path).map_err(|e| Error::io("naming", path, e.error))?;
    Ok(())
}
