//! Image trees that are served from user space ([`crate::treefs`]): each is pinned, and a reason for the daemon to stay.
//!
//! ```text
//! mount request --> pin "mount DIR" --> TreeMount --unmount request, or anybody's umount--> pin and stay end
//! daemon killed:    the mount is dead; the next daemon finds the pin, detaches the dead mount, and mounts it again at the same place
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use tokio::runtime::Handle;

use super::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{Caller, Fetcher};
use crate::observe::What;
use crate::store::big::BigData;
use crate::store::pins::{self, Holder};
use crate::store::{Store, check_startable};
use crate::table::Table;
use crate::tree::erofs::read::StoredTree;
use crate::treefs::{Contents, Open, Opened, Read, TreeMount, View, Wanted};

/// The trees that this daemon serves.
#[derive(Debug, Default)]
pub(crate) struct Trees(Mutex<HashMap<PathBuf, TreeMount>>);

impl Trees {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, TreeMount>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Fetches what is opened.
struct Demanded {
    runtime: Handle,
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    table: Arc<Table>,
}

impl Demanded {
    /// Where a large content is: the data file of a layer, and the place in it.
    fn place(&self, content: &Digest) -> Option<(Arc<BigData>, Range<u64>)> {
        let record = self.table.lookup(content)?;
        let layer = self.table.layers().nth(record.layer as usize)?;
        let range = record.data_range()?;
        match self.store.big(&layer.digest, layer.data_len) {
            Ok(data) => Some((data, range)),
            Err(error) => {
                tracing::error!("{}", error.one_line());
                None
            }
        }
    }
}

impl Contents for Demanded {
    fn open(&self, file: Wanted, opened: Opened) {
        let content = file.content;
        let (fetcher, store) = (self.fetcher.clone(), self.store.clone());
        if !store.cas().contains(&content) && self.place(&content).is_some() {
            return opened(Ok(Open::Parts));
        }
        self.runtime.spawn(async move {
            let what = What::File(content);
            let mut span = fetcher.observer().begin_wait(&what, || fetcher.image_of(&what));
            let fetched = fetcher.demand_by(Caller { cause: span.context(), ..Caller::default() }, &content).await;
            span.result(&fetched);
            drop(span);
            opened(fetched.and_then(|()| store.cas().get(&content)).map(Open::Whole));
        });
    }

    fn read(&self, file: Wanted, range: Range<u64>, read: Read) {
        let content = file.content;
        let Some((data, place)) = self.place(&content) else {
            return read(
                Err(Error::new(Outcome::NotFound, format!("reading {content}")).because("no layer of the image has it")),
            );
        };
        let fetcher = self.fetcher.clone();
        self.runtime.spawn(async move {
            let wanted = place.start + range.start..place.start + range.end;
            let fetched = match data.has(wanted.clone()) {
                true => Ok(()),
                false => {
                    let what = What::Data { layer: *data.layer(), range: wanted.clone() };
                    let mut span = fetcher.observer().begin_wait(&what, || fetcher.image_of(&what));
                    let caller = Caller { cause: span.context(), ..Caller::default() };
                    let fetched = fetcher.demand_data_by(caller, data.layer(), wanted.clone()).await;
                    span.result(&fetched);
                    fetched
                }
            };
            read(fetched.and_then(|()| {
                let mut bytes =
                    vec![0; usize::try_from(wanted.end - wanted.start).expect("the kernel asks for at most some megabytes")];
                data.read(wanted.start, &mut bytes).map(|()| bytes)
            }));
        });
    }
}

impl Daemon {
    /// [`super::protocol::Request::MountTree`].
    pub(crate) async fn mount_tree(self: &Arc<Self>, image: String, dir: PathBuf) -> Result<()> {
        let tried = format!("mounting {image} at {}", dir.display());
        let row = self.find(&image).await.map_err(|e| e.during(&tried))?;
        check_startable(&row)?;
        if self.trees.lock().contains_key(&dir) {
            let error = Error::new(Outcome::Busy, tried).because("an image is mounted there");
            return Err(error.advise("take another directory, or unmount that: `towline images unmount`"));
        }
        let (pin, digest) = (Holder::Mount(dir.clone()).pin(), row.digest);
        self.database.with(move |db| db.pin(&pin, &digest)).await?;
        let mounted = self.serve_tree(&digest, &row.reference, &dir).await;
        if mounted.is_err() {
            self.release_tree(&dir).await;
        }
        mounted
    }

    async fn serve_tree(self: &Arc<Self>, image: &Digest, name: &str, dir: &Path) -> Result<()> {
        let stay = self.life.stay().ok_or_else(|| {
            Error::new(Outcome::Unavailable, format!("mounting {name}")).because("towlined is leaving").advise("try again")
        })?;
        let tree = StoredTree::open(&self.store.image(image).tree())?;
        let runtime = Handle::current();
        let table = Arc::new(Table::open(&self.store.image(image).table())?);
        let contents = Demanded { runtime: runtime.clone(), fetcher: self.fetcher.clone(), store: self.store.clone(), table };
        let (daemon, place) = (self.clone(), dir.to_owned());
        let ended = move || {
            runtime.spawn(async move {
                daemon.release_tree(&place).await;
                // Dropped off the thread that it waits for.
                let mount = daemon.trees.lock().remove(&place);
                drop(mount);
                drop(stay);
            });
        };
        let (name, at) = (name.to_owned(), dir.to_owned());
        let mounting = move || TreeMount::mount(tree, Arc::new(contents), View::Image, &name, &at, ended);
        let mounted =
            tokio::task::spawn_blocking(mounting).await.map_err(|e| Error::new(Outcome::Io, "mounting").because(e))??;
        self.trees.lock().insert(dir.to_owned(), mounted);
        Ok(())
    }

    /// [`super::protocol::Request::UnmountTree`].
    pub(crate) async fn unmount_tree(self: &Arc<Self>, dir: PathBuf) -> Result<()> {
        let Some(mount) = self.trees.lock().remove(&dir) else {
            let error = Error::new(Outcome::NotFound, format!("unmounting {}", dir.display()));
            return Err(error.because("towlined serves nothing there").advise("see `towline images mount`"));
        };
        let unmount = move || {
            let unmounted = mount.unmount();
            (mount, unmounted)
        };
        let (mount, unmounted) =
            tokio::task::spawn_blocking(unmount).await.map_err(|e| Error::new(Outcome::Io, "unmounting").because(e))?;
        match &unmounted {
            Ok(()) => self.release_tree(&dir).await,
            Err(_) => drop(self.trees.lock().insert(dir, mount)),
        }
        unmounted
    }

    /// Takes away what killed commands have left.
    pub(crate) async fn sweep_dead(&self) -> Result<()> {
        let state = self.paths.state.clone();
        let swept = self.database.with(move |db| pins::sweep_dead(&state, db)).await?;
        if swept > 0 {
            tracing::info!("took away what {swept} killed commands have left mounted");
        }
        Ok(())
    }

    /// Mounts again what a daemon that was killed has served, and forgets what is gone.
    pub(crate) async fn resume_trees(self: &Arc<Self>) -> Result<()> {
        self.sweep_dead().await?;
        for (pin, image) in self.database.with(|db| db.all_pins()).await? {
            let Holder::Mount(dir) = Holder::of(&pin) else { continue };
            match rustix::fs::statfs(&dir) {
                Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                    crate::treefs::detach(&dir)?;
                    if let Err(error) = self.serve_tree(&image, &image.to_string(), &dir).await {
                        tracing::error!("{}", error.one_line());
                        self.release_tree(&dir).await;
                    }
                }
                _ if crate::fscontext::is_mount_point(&dir).unwrap_or(false) => {}
                _ => self.release_tree(&dir).await,
            }
        }
        Ok(())
    }

    /// Unmounts all of them, lazily where programs use them. With a successor they are left to die with this process, so that it finds
    /// their pins and mounts them again.
    pub(crate) async fn leave_trees(&self, to_successor: bool) {
        let mounts: Vec<(PathBuf, TreeMount)> = self.trees.lock().drain().collect();
        for (dir, mount) in mounts {
            if to_successor {
                std::mem::forget(mount);
            } else {
                drop(mount);
                self.release_tree(&dir).await;
            }
        }
    }

    async fn release_tree(&self, dir: &Path) {
        let pin = Holder::Mount(dir.to_owned()).pin();
        if let Err(error) = self.database.with(move |db| db.unpin(&pin)).await {
            tracing::error!("{}", error.one_line());
        }
    }
}
