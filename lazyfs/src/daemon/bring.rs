//! Content for whoever shows trees of the store from a process of its own ([`crate::layerstore`]): it asks over the socket, as the kernel
//! asks through the trigger.

use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::StreamExt as _;

use super::server::Daemon;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::fetch::{Caller, Group};
use crate::manifest::Document;
use crate::observe::What;
use crate::pull;
use crate::source::{RawManifest, Source};
use crate::store::big::BigData;
use crate::store::db::{ImageRow, ImageState};
use crate::table::Table;

/// How often a blob is asked for.
const ATTEMPTS: u32 = 3;

impl Daemon {
    /// [`super::protocol::Request::Bring`].
    pub(crate) async fn bring(
        self: &Arc<Self>,
        image: Digest,
        content: Digest,
        range: Option<Range<u64>>,
        caller: u32,
    ) -> Result<()> {
        if range.is_none() && self.store.cas().contains(&content) {
            return Ok(());
        }
        let row = self.attached(&image).await?;
        let Some(range) = range else {
            if row.state == ImageState::Complete {
                return Err(damaged(&row, &content));
            }
            let what = What::File(content);
            self.waiting(what, caller, async |caller| self.fetcher.demand_by(caller, &content).await).await?;
            self.ahead.arrived(content);
            return Ok(());
        };
        let (data, place) = self.place(&row, &content)?;
        let wanted = place.start.saturating_add(range.start)..place.start.saturating_add(range.end);
        if range.is_empty() || wanted.end > place.end {
            let error = Error::new(Outcome::BadInput, format!("bringing bytes {range:?} of file {content}"));
            return Err(error.because(format!("it has {} bytes", place.end - place.start)));
        }
        if data.has(wanted.clone()) {
            return Ok(());
        }
        if row.state == ImageState::Complete {
            return Err(damaged(&row, &content));
        }
        let (layer, begin) = (*data.layer(), wanted.start);
        let what = What::Data { layer, range: wanted.clone() };
        self.waiting(what, caller, async |caller| self.fetcher.demand_data_by(caller, &layer, wanted.clone()).await).await?;
        self.ahead.touched(&layer, begin);
        Ok(())
    }

    /// An image that something is asked of; goes on with one that nobody fetches at the moment.
    async fn attached(self: &Arc<Self>, image: &Digest) -> Result<ImageRow> {
        let image = *image;
        let row = self.database.with(move |db| db.image(&image)).await?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("looking up image {image}")).because("it is not in the store any more")
        })?;
        crate::store::check_startable(&row)?;
        if row.state == ImageState::Lazy && self.active.patcher(&image).is_none() {
            let patcher = self.attach_again(&row).await?;
            self.large.serve(patcher.data());
        }
        Ok(row)
    }

    async fn waiting(&self, what: What, pid: u32, work: impl AsyncFnOnce(Caller) -> Result<()>) -> Result<()> {
        let (begin, at) = (Instant::now(), SystemTime::now());
        let observer = self.fetcher.observer();
        let span = observer.begin_wait(&what, || self.fetcher.image_of(&what));
        let result = work(Caller { group: Group::of(pid), cause: span.context() }).await;
        observer.waited(span, at, begin.elapsed(), pid, what, result.as_ref().err());
        result
    }

    /// Where a large content is: the data file of a layer, and the place in it.
    fn place(&self, row: &ImageRow, content: &Digest) -> Result<(Arc<BigData>, Range<u64>)> {
        let table = Table::open(&self.store.image(&row.digest).table())?;
        let found = table.lookup(content).and_then(|record| {
            let layer = table.layers().nth(record.layer as usize)?;
            Some((layer, record.data_range()?))
        });
        let (layer, range) = found.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("bringing a part of file {content}"))
                .because("no layer of the image has it as a large file")
        })?;
        Ok((self.store.big(&layer.digest, layer.data_len)?, range))
    }

    /// [`super::protocol::Request::Blob`].
    pub(crate) async fn blob(self: &Arc<Self>, image: Digest, layer: Digest, into: PathBuf) -> Result<()> {
        let tried = || format!("reading layer {layer} of image {image}");
        let row = self.find(&image.to_string()).await.map_err(|e| e.during(tried()))?;
        let files = self.store.image(&row.digest);
        let bytes =
            files.manifest()?.ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("its manifest is not kept"))?;
        let raw = RawManifest { bytes: bytes.into(), digest: row.digest, media_type: String::new() };
        let Document::Image(manifest) = Document::parse(&raw)? else {
            return Err(Error::new(Outcome::BadInput, tried()).because("its manifest is an index"));
        };
        let size = manifest.layers.iter().find(|known| known.digest == layer).map(|known| known.size);
        let size = size.ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("the image has no such layer"))?;
        let source = pull::reopen(&self.store, &row, &self.sources)?.source;
        let mut attempt = 1;
        loop {
            match read_into(source.as_ref(), layer, size, &into).await {
                Err(error) if attempt < ATTEMPTS && error.outcome() != Outcome::NoSpace => {
                    tracing::warn!("{}", error.one_line());
                    source.distrust(&layer);
                    attempt += 1;
                }
                read => return read.map_err(|e| e.during(tried())),
            }
        }
    }
}

async fn read_into(source: &dyn Source, layer: Digest, size: u64, into: &std::path::Path) -> Result<()> {
    let failed = |e| Error::io("writing", into, e);
    let mut file = std::fs::File::options().write(true).truncate(true).open(into).map_err(failed)?;
    let mut stream = source.open(layer, 0..size).await?;
    let mut hasher = Hasher::default();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        hasher.update(&piece);
        // A page cache takes it; nobody waits for the disk.
        file.write_all(&piece).map_err(failed)?;
    }
    let found = hasher.finish();
    if found != layer {
        let error = Error::new(Outcome::Integrity, format!("verifying what {} sent", source.name()));
        return Err(error.because(format!("its digest is {found}, not {layer}")));
    }
    Ok(())
}

fn damaged(row: &ImageRow, content: &Digest) -> Error {
    Error::new(Outcome::Integrity, format!("reading file {content} of {}", row.reference))
        .because("the image was complete, and now the store does not have it")
        .advise("`towline system verify --repair` has it fetched again")
}
