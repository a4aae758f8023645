//! From a reference to an image that containers can start from.
//!
//! ```text
//! reference -> manifest -> { configuration, index of every layer } -> tree + mapping table -> row in the database -> attached
//!                                                    |
//!            table of contents in the layer, or the whole layer as it streams past (layers::index)
//! ```
//!
//! Nothing has a name before it is complete: a pull that fails or is killed leaves at most content under right digests, which the
//! next garbage collection removes and the next pull of the same image uses.

mod cut;
pub mod gate;
pub mod indexing;
mod layers;
mod locks;
mod made;
mod packs;
pub mod profiles;
pub mod referrers;
mod resolved;
pub mod sources;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use crate::daemon::active::End;
use crate::daemon::protocol::{Event, LayerSummary, PullPolicy, PullRequest, PullUntil, Reply};
use crate::daemon::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{Fetcher, ImageContent, Pack, UseReferrers};
use crate::layer::LayerKind;
use crate::manifest::{self, Config, Manifest, Platform};
use crate::observe::spans::Kind;
use crate::profile::Profile;
use crate::reference::Reference;
use crate::source::{RawManifest, Source};
use crate::store::Store;
use crate::store::db::{ImageRow, ImageState, NewImage};
use crate::store::image::ImageRecord;
use crate::store::patch::TreePatcher;
use crate::table::{self, Table};
use crate::task::blocking;
use crate::tree::erofs::devices::LargeFiles;
use crate::tree::erofs::read::StoredTree;
use crate::tree::{erofs, merge};

pub(crate) use cut::cut;
use gate::Gate;
pub use layers::{lazy, read_blob, read_range};
pub use locks::Locks;
use resolved::at_hand;
pub use resolved::{Resolved, resolve, resolve_all};
pub use sources::Sources;

/// The events of one pull. Nobody listening is no reason to stop.
type Events = UnboundedSender<Event>;

/// Serves [`crate::daemon::protocol::Request::Pull`].
pub async fn pull(daemon: &Arc<Daemon>, request: PullRequest, events: Events) -> Result<Reply> {
    pull_known(daemon, request, None, events).await
}

/// The same where the manifest that the request names may be at hand already.
pub async fn pull_known(
    daemon: &Arc<Daemon>,
    mut request: PullRequest,
    manifest: Option<RawManifest>,
    events: Events,
) -> Result<Reply> {
    let tried = format!("pulling {}", request.reference);
    let mut span = daemon.fetcher.observer().tracer().begin("pull", Kind::Internal, request.trace);
    span.note("towline.image.name", || request.reference.as_str());
    // What follows is a part of this span.
    request.trace = span.context();
    let result = serve(daemon, request, manifest, events).await;
    if let Ok(Reply::Pulled { image, .. }) = &result {
        span.note("towline.image", || image.to_string());
    }
    span.result(&result);
    drop(span);
    if let Err(error) = &result
        && error.outcome() != Outcome::Unavailable
    {
        // What a failed pull stored is of no use; what a broken connection interrupted is.
        daemon.collect_garbage_if_alone().await;
    }
    result.map_err(|error| advised(error).during(tried))
}

/// What a user can do about an image that is wrong, where nobody who knew more has said it.
fn advised(error: Error) -> Error {
    match error.outcome() {
        Outcome::BadInput => error.or_advise("the image is malformed: build or push it again"),
        Outcome::Integrity => error.or_advise("the image is damaged or inconsistent: push it again, or pull it from elsewhere"),
        Outcome::Unsupported => error.or_advise(
            "is this an image of containers? If so, build it again with a current tool, or ask for another --platform",
        ),
        Outcome::NotFound => error.or_advise("is the reference spelled right? If so, push the image again"),
        Outcome::Denied | Outcome::Unavailable | Outcome::Busy | Outcome::NoSpace | Outcome::Io => error,
    }
}

async fn serve(daemon: &Arc<Daemon>, request: PullRequest, manifest: Option<RawManifest>, events: Events) -> Result<Reply> {
    let reference: Reference = request.reference.parse().map_err(|e| {
        Error::new(Outcome::BadInput, "reading the reference")
            .because(e)
            .advise("write HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG")
    })?;
    let name = match request.manifest {
        Some(manifest) => format!("{reference}@{manifest}"),
        None => reference.to_string(),
    };
    let policy = gate::policy(request.settings.signature_policy.as_deref())?;
    if request.policy == PullPolicy::Missing
        && let Some(row) = known(daemon, &name).await?
        && let Some((_pulled, row)) = daemon.hold(row).await?
    {
        match gate::check_kept(policy.as_ref(), &daemon.store, &row) {
            Ok(()) => {
                let profile = tokio::spawn(profiles::find(daemon.clone(), None, row.digest));
                let until = proven(daemon, &Gate::of_row(policy.as_ref(), &row)?, &row, request.until, &events)?;
                return finish(daemon, row, name, until, Received::default(), profile, &events).await;
            }
            // Its registry may have signatures that nobody asked for when it was pulled, or those that a power cut has damaged here.
            Err(error) if matches!(error.outcome(), Outcome::Denied | Outcome::Integrity) && row.reference == name => {
                tracing::info!("asking for the image again: {}", error.one_line());
            }
            Err(error) => return Err(error),
        }
    }
    let gate = Gate::of(policy.as_ref(), &reference)?;
    if let Some(text) = daemon.sources.differs(&request.settings) {
        send(&events, Event::Warning { text });
    }
    daemon.sources.keep(&request.credentials)?;
    let source = daemon.sources.source(&reference, request.plain_http)?;
    let platform = match &request.platform {
        Some(text) => text.parse()?,
        None => Platform::host(),
    };
    let resolved = async {
        let mut span = daemon.span("manifest", request.trace);
        let resolved = match at_hand(manifest, request.manifest.or(reference.digest())) {
            Some(resolved) => Ok(resolved),
            None => {
                let selector = request.manifest.map_or_else(|| reference.selector(), |manifest| manifest.to_string());
                resolve_all(source.as_ref(), &selector, &platform).await
            }
        };
        span.result(&resolved);
        resolved
    };
    let Resolved { raw, manifest, digests } = resolved.await?;
    let vouched = gate.admit(source.as_ref(), &digests).await?;
    let _pulled = daemon.keeper.pull(&raw.digest);
    daemon.admit(need(daemon, &manifest)).await?;
    let pulling = daemon.pulling().await;
    // Two that make the same image would take its directory from under each other.
    let mut alone = daemon.image_locks.alone(&raw.digest).await;
    let manifest_bytes = raw.bytes.len() as u64;
    let annotated = Some((source.clone(), manifest.annotations.clone()));
    let profile = tokio::spawn(profiles::find(daemon.clone(), annotated, raw.digest));
    let known = daemon.database.with(move |db| db.image(&raw.digest)).await?;
    let intact = match &known {
        // Of many that pull at once only the first looks.
        Some(row) => (*alone && row.state != ImageState::Poisoned) || is_intact(daemon, row).await?,
        None => false,
    };
    let mut packs = Vec::new();
    let (row, index_bytes) = match known {
        Some(row) if intact => {
            keep_manifest(daemon, &raw)?;
            let (digest, name, reference) = (row.digest, name.clone(), reference.to_string());
            daemon.database.with(move |db| db.name_image(&digest, &name, &reference)).await?;
            (row, 0)
        }
        known => {
            if known.is_some_and(|row| row.state == ImageState::Complete) {
                // What replaces its files is not durable at first.
                daemon.database.with(move |db| db.set_state(&raw.digest, ImageState::Lazy, "")).await?;
            }
            if request.until == PullUntil::Startable {
                packs = packs::begin(&source, manifest.layers.iter().filter(|layer| is_new(daemon, layer)));
            }
            let named = Named { image: raw.digest, name: &name };
            let added = add(daemon, &source, named, &manifest, &request, &gate, &events).await?;
            keep_manifest(daemon, &raw)?;
            added
        }
    };
    if let Some(vouched) = vouched {
        daemon.store.image(&row.digest).keep_signatures(&vouched.to_bytes())?;
    }
    *alone = true;
    drop((alone, pulling));
    let until = proven(daemon, &gate, &row, request.until, &events)?;
    let received = Received { index_bytes: Some(manifest_bytes + index_bytes), packs };
    let finished = finish(daemon, row, name, until, received, profile, &events).await;
    if let Err(error) = daemon.trim().await {
        tracing::error!("{}", error.one_line());
    }
    finished
}

/// Whether an image that is known need not be made again. Whoever was told that something of it is damaged pulls again.
async fn is_intact(daemon: &Daemon, row: &ImageRow) -> Result<bool> {
    let (store, image, state) = (daemon.store.clone(), row.digest, row.state);
    let look = move || match state {
        ImageState::Poisoned => Ok(false),
        ImageState::Complete => Ok(store.image(&image).are_intact()),
        ImageState::Lazy => Ok(store.can_go_on(&image)),
    };
    blocking("reading an image's files", look).await
}

/// How many bytes of layers come at least.
fn need(daemon: &Daemon, manifest: &Manifest) -> u64 {
    manifest.layers.iter().filter(|layer| is_new(daemon, layer)).map(|layer| layer.size).fold(0, u64::saturating_add)
}

fn is_new(daemon: &Daemon, layer: &manifest::Layer) -> bool {
    !daemon.store.index_path(&layer.digest).exists()
}

/// Keeps the manifest byte for byte, so that the image can be pushed as what it is.
fn keep_manifest(daemon: &Daemon, raw: &RawManifest) -> Result<()> {
    let files = daemon.store.image(&raw.digest);
    match files.manifest()? {
        Some(_) => Ok(()),
        None => files.keep_manifest(&raw.bytes),
    }
}

async fn known(daemon: &Arc<Daemon>, name: &str) -> Result<Option<ImageRow>> {
    let name = name.to_owned();
    let row = daemon.database.with(move |db| db.resolve(&name)).await?;
    Ok(row.filter(|row| row.state != ImageState::Poisoned && daemon.store.image(&row.digest).exist()))
}

/// How long a pull has to last: containers of an image that is trusted more than its repository do not start while what they read
/// is only what a referrer says.
fn proven(daemon: &Daemon, gate: &Gate, row: &ImageRow, until: PullUntil, events: &Events) -> Result<PullUntil> {
    let fine = until == PullUntil::Complete || row.state == ImageState::Complete || !gate.is_strict();
    if fine || daemon.fetcher.uses_referrers() == UseReferrers::Always || !gate::is_unproven(&daemon.store, row)? {
        return Ok(until);
    }
    let text = "it starts when it is complete: it is lazy by an index that nothing vouches for".to_owned();
    tracing::warn!("{}: {text}", row.reference);
    send(events, Event::Warning { text });
    Ok(PullUntil::Complete)
}

/// What a new image is called.
#[derive(Clone, Copy, Debug)]
struct Named<'a> {
    image: Digest,
    name: &'a str,
}

/// Makes a new image of a manifest: everything but its content. Returns how many bytes that took, too.
async fn add(
    daemon: &Arc<Daemon>,
    source: &Arc<dyn Source>,
    Named { image, name }: Named<'_>,
    manifest: &Manifest,
    request: &PullRequest,
    gate: &Gate,
    events: &Events,
) -> Result<(ImageRow, u64)> {
    let (plans, reference) = (layers::plan(manifest)?, gate.reference());
    let summary = |plan: &layers::Plan| LayerSummary { digest: plan.digest, size: plan.size, kind: plan.kind() };
    send(events, Event::Resolved { image, layers: plans.iter().map(summary).collect() });
    let config = layers::read_blob(source.as_ref(), &manifest.config, manifest::MAX_CONFIG);
    let mut span = daemon.span("indexes", request.trace);
    let indexes = layers::index_all(daemon, source, image, &plans, events, gate, span.context());
    let both = async { tokio::try_join!(config, indexes) }.await;
    span.result(&both);
    drop(span);
    let (config, indexed) = both?;
    let checked = Config::parse(&config, plans.len())?;
    let text = String::from_utf8(config.to_vec())
        .map_err(|e| Error::new(Outcome::BadInput, format!("reading configuration {}", manifest.config.digest)).because(e))?;
    layers::check_diff_ids(&indexed, &checked.diff_ids)?;

    let record = ImageRecord::new(reference.to_string(), request.plain_http, text);
    let index_bytes = config.len() as u64 + indexed.iter().map(|layer| layer.index_bytes).sum::<u64>();
    let kinds: Vec<LayerKind> = indexed.iter().map(|layer| layer.kind).collect();
    let store = daemon.store.clone();
    let mut span = daemon.span("tree", request.trace);
    let built = tokio::task::spawn_blocking(move || build(&store, image, indexed, &checked.diff_ids, record)).await;
    let built = built.map_err(|e| Error::new(Outcome::Io, "building the image's tree").because(e))?;
    span.result(&built);
    drop(span);
    let (entries, content_bytes) = built?;
    // What was only needed to build it; nobody waits for that.
    tokio::task::spawn_blocking(towline_sys::heap::give_back);

    // Streamed layers are local and verified; the others still have to be.
    let complete = kinds.iter().all(|kind| *kind == LayerKind::Stream);
    let state = if complete { ImageState::Complete } else { ImageState::Lazy };
    let bytes_total = plans.iter().map(|plan| plan.size).sum();
    let (name, reference) = (name.to_owned(), reference.to_string());
    if complete {
        daemon.sync().await?;
    }
    let recorded = daemon
        .database
        .with(move |db| {
            let reference = &reference;
            db.add_image(&NewImage { digest: image, name: &name, reference, state, bytes_total, content_bytes, entries })?;
            db.image(&image)
        })
        .await?;
    send(events, Event::Startable { entries, content_bytes });
    let gone = || Error::new(Outcome::NotFound, format!("recording image {image}")).because("it was removed at once");
    Ok((recorded.ok_or_else(gone)?, index_bytes))
}

/// Makes tree and mapping table, and stores them. Returns the number of inodes and the bytes of all files.
fn build(
    store: &Store,
    image: Digest,
    indexed: Vec<layers::Indexed>,
    diff_ids: &[Digest],
    record: ImageRecord,
) -> Result<(u64, u64)> {
    let layers: Vec<_> = indexed.iter().zip(diff_ids).map(|(layer, diff_id)| layer.describe(*diff_id)).collect();
    tracing::debug!("building tree and mapping table of {image} from {} layers", layers.len());
    // Both are made of the same indexes, and somebody waits.
    let (table, tree) = std::thread::scope(|scope| {
        let table = scope.spawn(|| table::build(&layers).and_then(Table::from_bytes));
        let tree = merge::merge(indexed.iter().map(|layer| &layer.index));
        (table.join().expect("building a table does not panic"), tree)
    });
    let (table, tree) = (table?, tree?);
    // They are larger than what was made of them.
    drop(layers);
    drop(indexed);
    tracing::debug!("writing the tree");
    // A large file that is here as a whole stays an object, with the page cache that it has.
    let large = LargeFiles::of(&table, |file| store.cas().contains(file));
    let (counts, writer) = (tree.counts(), erofs::Writer::plan(&tree, &large)?);
    store.image(&image).write_with(|out| writer.write(out), table.as_bytes(), record)?;
    tracing::debug!("{image} is built");
    Ok((counts.entries, counts.bytes))
}

/// What a pull got of the image's source.
#[derive(Debug, Default)]
struct Received {
    /// Bytes of manifests and indexes; `None` where no source was asked.
    index_bytes: Option<u64>,
    /// What is on its way already.
    packs: Vec<Pack>,
}

/// Attaches an image that is not complete, and waits until it is where that was asked for; gives that up, and not the image, where
/// something is in the way that does not pass.
async fn finish(
    daemon: &Arc<Daemon>,
    row: ImageRow,
    name: String,
    until: PullUntil,
    received: Received,
    profile: JoinHandle<Option<Profile>>,
    events: &Events,
) -> Result<Reply> {
    let image = row.digest;
    let pulled = |complete| Ok(Reply::Pulled { name: name.clone(), image, complete, fetched: received.index_bytes.is_some() });
    if row.state == ImageState::Complete {
        return pulled(true);
    }
    let stay =
        daemon.life.stay().ok_or_else(|| Error::new(Outcome::Unavailable, "serving a pull").because("towlined is leaving"))?;
    let content =
        ImageContent { index_bytes: received.index_bytes.unwrap_or(0), ..reopen(&daemon.store, &row, &daemon.sources)? };
    let (mut begin, mut collections) = (Instant::now(), daemon.keeper.collections());
    let patcher = patcher(daemon, &row, &content).await?;
    let mut view = daemon.active.attach(content, patcher, stay);
    if until == PullUntil::Startable {
        tokio::spawn(prefetch(daemon.fetcher.clone(), image, received.packs, profile));
        return pulled(false);
    }
    loop {
        if let Some(end) = view.end.borrow_and_update().clone() {
            return match end {
                End::Complete => {
                    send(events, Event::Complete(view.progress.borrow().clone()));
                    pulled(true)
                }
                End::Poisoned(reason) => Err(Error::new(Outcome::Integrity, format!("completing {name}")).because(reason)),
                End::Removed => Err(Error::new(Outcome::NotFound, format!("completing {name}")).because("it was removed")),
            };
        }
        send(events, Event::Progress(view.progress.borrow_and_update().clone()));
        let met = view.obstacle.borrow().clone().filter(|met| met.is_final(begin, daemon.active.patience()));
        if let Some(obstacle) = met {
            let is_over = daemon.store.meter().is_over();
            if is_over && daemon.trim().await? || daemon.keeper.collections() > collections {
                // There is room now: what was met before does not count.
                (begin, collections) = (Instant::now(), daemon.keeper.collections());
                daemon.fetcher.try_again(&image);
                continue;
            }
            let tried = format!("completing {name} (it can start, and what is missing is asked for again in the background)");
            return Err(Error::shared(tried, &obstacle.error));
        }
        view.new_obstacle().into_iter().for_each(|warning| send(events, warning));
        tokio::select! {
            _ = view.end.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

/// Stores what packs bring, and then fetches what else the profile names.
async fn prefetch(fetcher: Arc<Fetcher>, image: Digest, packs: Vec<Pack>, profile: JoinHandle<Option<Profile>>) {
    fetcher.unpack(&image, packs).await;
    match profile.await {
        Ok(Some(profile)) => fetcher.prefetch(&image, &profile).await,
        Ok(None) => {}
        Err(error) => tracing::warn!("looking for the access profile of {image}: {error}"),
    }
}

/// What the fetcher needs of an image that is in the store.
pub fn reopen(store: &Store, row: &ImageRow, sources: &Sources) -> Result<ImageContent> {
    let files = store.image(&row.digest);
    let record = files.record()?;
    let reference: Reference =
        record.reference.parse().map_err(|e| Error::new(Outcome::Integrity, "reading an image's record").because(e))?;
    Ok(ImageContent {
        image: row.digest,
        name: reference.to_string(),
        table: Arc::new(Table::open(&files.table())?),
        tree: Some(Arc::new(StoredTree::open(&files.tree())?)),
        source: sources.source(&reference, record.plain_http)?,
        index_bytes: 0,
    })
}

/// Brings the tree of an image in line with what is here, and keeps it so.
pub async fn patcher(daemon: &Daemon, row: &ImageRow, content: &ImageContent) -> Result<Arc<TreePatcher>> {
    if let Some(patcher) = daemon.active.patcher(&row.digest) {
        return Ok(patcher);
    }
    let (store, tree, table) = (daemon.store.clone(), daemon.store.image(&row.digest).tree(), content.table.clone());
    let length = move |layer: &Digest| table.layers().find(|known| known.digest == *layer).map(|known| known.data_len);
    tokio::task::spawn_blocking(move || TreePatcher::attach(&store, &tree, length))
        .await
        .map_err(|e| Error::new(Outcome::Io, "preparing an image's large files").because(e))?
}

/// How an image is called in the database; text that is no reference (such as a digest) stays as it is.
pub fn canonical_name(text: &str) -> String {
    match text.parse::<Reference>() {
        Ok(reference) if !looks_like_digest(text) => reference.to_string(),
        _ => text.to_owned(),
    }
}

fn looks_like_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    (6..=64).contains(&hex.len()) && hex.bytes().all(|c| c.is_ascii_hexdigit())
}

fn send(events: &Events, event: Event) {
    // A closed channel means that the client has gone; the connection gives the pull up.
    drop(events.send(event));
}
