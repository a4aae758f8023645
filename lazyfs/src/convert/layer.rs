//! One layer: read, written in the new format, checked, sent.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Annotations, Event, Events, Job, LayerReport};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::stream;
use crate::layer::unpack::{Unpacked, Unpacking};
use crate::layer::write::{self, Format, Written, check};
use crate::manifest::{Compression, Layer};
use crate::sink::{Blob, Content, Sink, Stored};
use crate::source::Source;

/// How often progress of one layer is told.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// The annotation by which a zstd:chunked layer is known to the tools of today. Debian 12's buildah wrote another, which they do not know.
const ZSTD_CHUNKED: &str = "io.github.containers.zstd-chunked.manifest-position";
/// The annotation by which an eStargz layer is known.
const ESTARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";

/// A layer at its destination.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) blob: Blob,
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
    /// Annotations of the new format; `None` where the blob is as it was, and so are its annotations.
    pub(super) annotations: Option<Annotations>,
    pub(super) report: LayerReport,
}

/// A layer to be converted.
pub(super) struct LayerJob<'a> {
    pub(super) source: &'a Arc<dyn Source>,
    pub(super) sink: &'a Arc<dyn Sink>,
    pub(super) job: &'a Job,
    pub(super) events: &'a Events,
    pub(super) layer: &'a Layer,
    pub(super) diff_id: Digest,
}

impl LayerJob<'_> {
    pub(super) async fn run(&self) -> Result<Done> {
        if self.has_format() && !self.job.rewrite_all {
            return self.copy().await;
        }
        let scratch = &self.job.scratch;
        let unnamed = || tempfile::tempfile_in(scratch).map_err(|e| Error::io("creating a file in", scratch, e));
        let file = Arc::new(unnamed()?);
        let tar = self.job.hot.as_ref().map(|_| unnamed()).transpose()?;
        let written = self.write(Arc::clone(&file), tar).await?;
        let blob = Blob { digest: written.digest, size: written.size };
        let stored = self.send(blob, &Content::File(file, scratch.join("(a layer's blob)"))).await?;
        Ok(Done {
            blob,
            diff_id: written.diff_id,
            compression: written.format.compression(),
            annotations: Some(written.annotations),
            report: LayerReport {
                format: Some(written.format),
                hot_bytes: written.hot_bytes,
                note: written.note,
                ..self.report(blob, stored)
            },
        })
    }

    /// Whether the layer is what it is to become.
    fn has_format(&self) -> bool {
        let has = |key: &str| self.layer.annotations.contains_key(key);
        match (self.job.options.format(), self.layer.compression) {
            (Format::Gzip, Compression::Gzip) | (Format::Zstd, Compression::Zstd) => true,
            (Format::ZstdChunked, Compression::Zstd) => has(ZSTD_CHUNKED),
            (Format::Estargz, Compression::Gzip) => has(ESTARGZ),
            _ => false,
        }
    }

    async fn copy(&self) -> Result<Done> {
        let blob = Blob { digest: self.layer.digest, size: self.layer.size };
        let stored = self.send(blob, &Content::Blob(Arc::clone(self.source), blob.digest)).await?;
        let report = self.report(blob, stored);
        Ok(Done { blob, diff_id: self.diff_id, compression: self.layer.compression, annotations: None, report })
    }

    fn report(&self, blob: Blob, stored: Stored) -> LayerReport {
        LayerReport {
            from: self.layer.digest,
            from_size: self.layer.size,
            to: blob.digest,
            to_size: blob.size,
            format: None,
            existed: stored == Stored::Existed,
            hot_bytes: 0,
            note: None,
        }
    }

    async fn send(&self, blob: Blob, content: &Content) -> Result<Stored> {
        let (layer, total) = (self.layer.digest, blob.size);
        let paced = Paced::new();
        let progress = |bytes| {
            if paced.is_due(bytes == total) {
                (self.events)(Event::Sending { layer, bytes, total });
            }
        };
        self.sink.put_blob(blob, content, &progress).await
    }

    /// Writes the layer into `blob`, and reads it back.
    async fn write(&self, blob: Arc<File>, tar_file: Option<File>) -> Result<Written> {
        let (layer, total, compression) = (self.layer.digest, self.layer.size, self.layer.compression);
        let (events, paced) = (Arc::clone(self.events), Paced::new());
        let report = move |bytes| {
            if paced.is_due(bytes == total) {
                events(Event::Reading { layer, bytes, total });
            }
        };
        let reader = stream::reader(Arc::clone(self.source), layer, total, report);
        let (options, hot) = (self.job.options.clone(), self.job.hot.clone().unwrap_or_default());
        let expected = Expected { blob: layer, tar: self.diff_id, name: self.source.name() };
        let work = move || {
            let mut source = Unpacking::new(reader, compression)?;
            let written = match &tar_file {
                Some(tar_file) => write::write_ordered(&mut source, &options, &hot, tar_file, &blob)?,
                None => write::write(&mut source, &options, &blob)?,
            };
            expected.check(source)?;
            check::check(&written, &blob)?;
            Ok(written)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::new(Outcome::Io, "writing a layer").because(e))?
    }
}

/// What the source has to send.
struct Expected {
    blob: Digest,
    tar: Digest,
    name: String,
}

impl Expected {
    fn check(&self, source: Unpacking<stream::BlobReader>) -> Result<()> {
        let Unpacked { blob, tar } = source.finish()?;
        let wrong = |what: &str, found: Digest, wanted: Digest, advice: &str| {
            let tried = format!("reading layer {} of {}", self.blob, self.name);
            Err(Error::new(Outcome::Integrity, tried).because(format!("its {what} is {found}, not {wanted}")).advise(advice))
        };
        if blob != self.blob {
            return wrong("digest", blob, self.blob, "the source's copy is damaged: push the image again");
        }
        if tar != self.tar {
            return wrong("uncompressed digest", tar, self.tar, "the image is inconsistent: build or push it again");
        }
        Ok(())
    }
}

/// Lets through some of many reports.
struct Paced(Mutex<Option<Instant>>);

impl Paced {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn is_due(&self, is_last: bool) -> bool {
        let mut told = self.0.lock().expect("no holder of this lock panics");
        let is_due = is_last || told.is_none_or(|told| told.elapsed() >= REPORT_EVERY);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}
