//! What is mounted.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::grpc::{Code, Status};
use super::messages::Mount;
use super::operations::base_pin;
use super::records::{Kind, Record, Remote};
use super::{Snapshotter, check_path};
use crate::daemon::active::End;
use crate::daemon::protocol::{Command, Prepared};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::Config;
use crate::pull;
use crate::rootfs::plan::By;
use crate::rootfs::shared::SharedTree;
use crate::store::pins::Holder;
use crate::task::blocking;
use crate::tree::erofs::read::StoredTree;

/// Longest options of a mount in bytes: the kernel reads one page.
const MAX_OPTIONS: usize = 4095;

/// What is searched for programs where an image does not say it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What containerd reads of a container's root before it starts it.
const USER_FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// The layers that a snapshot stands on.
struct Below {
    /// Unpacked ones, the highest first.
    layers: Vec<PathBuf>,
    /// The remote one under them.
    remote: Option<Remote>,
}

/// Owner and mode of a root directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Snapshotter {
    async fn below(&self, parent: &str) -> Result<Below, Status> {
        let chain = match parent {
            "" => Vec::new(),
            parent => {
                let parent = parent.to_owned();
                self.with(move |records| records.chain(&parent)).await?
            }
        };
        let mut layers = Vec::new();
        for record in chain {
            match record.remote {
                // It has everything that is below it, too.
                Some(remote) => return Ok(Below { layers, remote: Some(remote) }),
                None => layers.push(self.layer_of(record.id)),
            }
        }
        Ok(Below { layers, remote: None })
    }

    /// Owner and mode of the root directory of a committed snapshot.
    pub(super) async fn root_of(self: &Arc<Self>, name: &str) -> Result<Root, Status> {
        let below = self.below(name).await?;
        if let Some(layer) = below.layers.into_iter().next() {
            let stat = std::fs::metadata(&layer).map_err(|e| Error::io("looking at", &layer, e))?;
            return Ok(Root { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid() });
        }
        let Some(remote) = below.remote else {
            return Err(Status::new(Code::NotFound, format!("parent snapshot {name} does not exist")));
        };
        let image = self.whole(&remote).await?;
        let path = self.daemon.store.image(&image).tree();
        let stat = blocking("reading a tree", move || {
            let tree = StoredTree::open(&path)?;
            tree.stat(tree.root()).ok_or_else(|| {
                Error::new(Outcome::Integrity, format!("reading the root of {}", path.display())).because("it has none")
            })
        });
        let stat = stat.await?;
        Ok(Root { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid })
    }

    /// The mounts of a snapshot.
    pub(super) async fn mounts_of(self: &Arc<Self>, record: &Record) -> Result<Vec<Mount>, Status> {
        let below = self.below(&record.parent).await?;
        let own = (record.kind == Kind::Active).then(|| self.dir_of(record.id));
        if record.kind == Kind::Committed {
            return Err(Status::new(Code::FailedPrecondition, format!("mounting {}: it is committed", record.name)));
        }
        let Below { layers, remote } = below;
        let mut options = Vec::new();
        if let Some(dir) = &own {
            options.push(format!("workdir={}", dir.join("work").display()));
            options.push(format!("upperdir={}", dir.join("fs").display()));
        }
        match remote {
            None => match (own, layers.as_slice()) {
                (Some(dir), []) => return Ok(vec![bind(&dir.join("fs"), "rw")]),
                (None, [only]) => return Ok(vec![bind(only, "ro")]),
                (None, []) => {
                    return Err(Status::new(Code::InvalidArgument, format!("viewing {}: it has no parent", record.name)));
                }
                (_, layers) => {
                    let layers: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
                    options.push(format!("lowerdir={}", layers.join(":")));
                }
            },
            Some(remote) => {
                let (prepared, tree) = self.tree(&remote, &record.name).await?;
                options.extend(layers.iter().map(|layer| format!("lowerdir+={}", layer.display())));
                options.push(format!("lowerdir+={}", tree.path().display()));
                options.extend(prepared.data.iter().map(|data| format!("datadir+={}", data.display())));
                if record.kind == Kind::Active && remote.is_whole() && layers.is_empty() && prepared.lazy {
                    self.guess(prepared.image, &prepared.config, &remote);
                }
                self.keep(&record.name, tree).await?;
            }
        }
        if options.iter().map(|option| option.len() + 1).sum::<usize>() > MAX_OPTIONS {
            return Err(Status::new(Code::FailedPrecondition, format!("mounting {}: it has too many layers", record.name)));
        }
        // A layer may be mounted again whatever it was mounted over before.
        if std::path::Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        Ok(vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }

    /// The tree of a remote layer, mounted; the snapshot `name` holds its image from now on.
    async fn tree(self: &Arc<Self>, remote: &Remote, name: &str) -> Result<(Prepared, SharedTree)> {
        let _unused = self.images.read().await;
        let pin = Holder::Snapshot(name.to_owned()).pin();
        let image = match remote.is_whole() {
            true => self.whole(remote).await?,
            false => self.lowest(remote).await?,
        };
        let pin = if remote.is_whole() { pin } else { base_pin(name) };
        let prepared = self.daemon.prepare(image.to_string(), pin).await?;
        if prepared.by != By::File {
            return Err(Error::new(Outcome::Unsupported, format!("mounting {image} for containerd"))
                .because("this kernel cannot mount a lazy image from its file")
                .advise("a kernel of 6.12 or later is needed; `towline info` says what is missing"));
        }
        let (state, plan, lazy) = (self.daemon.paths.state.clone(), prepared.root(None), prepared.lazy);
        plan.data.iter().try_for_each(|path| check_path(path))?;
        let tree = blocking("mounting an image's tree", move || SharedTree::enter(&state, &plan, lazy)).await?;
        if lazy {
            self.read_ahead_when_complete(image, &tree);
        }
        Ok((prepared, tree))
    }

    /// The image itself, pulled again where it is gone.
    pub(super) async fn whole(self: &Arc<Self>, remote: &Remote) -> Result<Digest> {
        let digest = remote.image;
        if self.daemon.database.with(move |db| db.image(&digest)).await?.is_none() {
            tracing::warn!("{} is needed by a snapshot, but is not in the store: pulling it again", remote.reference);
            let (reference, manifest) = (remote.reference.clone(), digest);
            self.pull(&super::chain::Origin { reference, manifest }, None).await?;
        }
        Ok(digest)
    }

    /// The image of its lowest layers.
    async fn lowest(self: &Arc<Self>, remote: &Remote) -> Result<Digest> {
        let whole = self.whole(remote).await?;
        let row = self.daemon.find(&whole.to_string()).await?;
        let made = pull::cut(&self.daemon, &row, remote.layers as usize).await?;
        if let Some(name) = made.names.first().cloned() {
            self.with(move |records| records.own(&made.digest, &name)).await?;
        }
        Ok(made.digest)
    }

    /// Keeps a tree mounted as long as a snapshot is there. One that was mounted for it before is left.
    async fn keep(&self, name: &str, tree: SharedTree) -> Result<()> {
        let before = self.trees.lock().expect("no holder of this lock panics").insert(name.to_owned(), tree);
        match before {
            Some(tree) => blocking("leaving a tree", move || tree.leave()).await,
            None => Ok(()),
        }
    }

    /// Once everything is local nothing is saved by reading little.
    fn read_ahead_when_complete(&self, image: Digest, tree: &SharedTree) {
        let (Some(switch), Some(mut view)) = (tree.readahead(), self.daemon.active.view(&image)) else { return };
        tokio::spawn(async move {
            let ended = view.end.wait_for(Option::is_some).await.map(|end| end.clone());
            if let Ok(Some(End::Complete)) = ended
                && let Err(error) = switch.turn_on()
            {
                tracing::debug!("{}", error.one_line());
            }
        });
    }

    /// What a container of the image will need is fetched while containerd makes it. What it will run is not known here, but most run what
    /// their image says; and containerd looks its user up first.
    pub(super) fn guess(&self, image: Digest, config: &str, remote: &Remote) {
        let started = Config::parse(config.as_bytes(), remote.total as usize).and_then(|config| {
            self.daemon.ahead.files(image, &USER_FILES)?;
            let path = config.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH).to_owned();
            let cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir };
            let command = Command { args: [config.entrypoint, config.cmd].concat(), path, cwd };
            if command.args.is_empty() { Ok(()) } else { self.daemon.ahead.command(image, command) }
        });
        if let Err(error) = started {
            tracing::debug!("{}", error.one_line());
        }
    }
}

fn bind(source: &std::path::Path, how: &str) -> Mount {
    let options = vec![how.to_owned(), "rbind".to_owned()];
    Mount { kind: "bind".into(), source: source.display().to_string(), target: String::new(), options }
}
