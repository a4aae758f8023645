//! `towline diff`

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::By;

use super::ps::Format;
use crate::container::record::Record;
use crate::container::registry::{self, Dirs};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::held::Held;
use crate::spec::etc;
use crate::spec::rootdir::RootDir;

/// Flags of `diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Name or id
    container: String,
}

/// Directories in directories; each of them is open.
const MAX_DEPTH: usize = 256;

/// Shows what a container has changed (C), added (A) and deleted (D) in its image's files.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let changes = changes(engine, &record)?;
    let text = match args.format {
        Format::Table => changes.iter().map(|(kind, path)| format!("{kind} {}\n", path.display())).collect(),
        Format::Json => {
            let rows = changes.iter().map(|(kind, path)| json!({"kind": kind, "path": path.to_string_lossy()}));
            serde_json::to_string_pretty(&rows.collect::<Vec<_>>()).expect("rows have only string keys") + "\n"
        }
    };
    super::print(&text)?;
    Ok(0)
}

/// Sorted by path.
fn changes(engine: &Engine, record: &Record) -> Result<Vec<(char, PathBuf)>, Failure> {
    let upper = Dirs::of(&engine.paths, &record.id).home.join("upper");
    let opened = rustix::fs::open(&upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let opened = match opened {
        Ok(opened) => opened,
        // It has not come to writing anything.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("opening", &upper, e).into()),
    };
    let held = Held::begin(engine, "diff-")?;
    let plan = held.prepare(&record.image.to_string())?.root(None);
    if plan.by == By::Server {
        return Err(Error::new(Kind::Unsupported, format!("comparing container {} with its image", record.name))
            .because("this kernel cannot mount the image without a process that serves it")
            .into());
    }
    mount::mount(&plan, held.dir())?;
    let compared = RootDir::open(held.dir()).and_then(|image| {
        let mut walk = Walk { image, found: Vec::new() };
        walk.directory(&opened, Path::new("/"), 0)?;
        Ok(walk.found)
    });
    // Before what it is mounted on goes.
    mount::unmount(held.dir())?;
    let mut found = compared?;
    // What the runtime makes to mount something on is not the container's.
    let etc = etc::FILES.map(|name| Path::new("/etc").join(name));
    let places = ["/dev", "/proc", "/sys"].map(PathBuf::from);
    let volumes = record.settings.volumes.iter().map(|volume| &volume.destination);
    let mounted: Vec<&PathBuf> = etc.iter().chain(&places).chain(volumes).collect();
    found.retain(|(_, path)| !mounted.contains(&path));
    found.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(found)
}

struct Walk {
    image: RootDir,
    found: Vec<(char, PathBuf)>,
}

impl Walk {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> Result<(), Error> {
        let failed = |e: Errno| Error::io("reading what was written to", path, e);
        if depth >= MAX_DEPTH {
            return Err(failed(Errno::NAMETOOLONG));
        }
        for entry in Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It was removed meanwhile.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed(e)),
            };
            let inside = path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()));
            let kind = FileType::from_raw_mode(stat.st_mode);
            // How overlayfs writes down that something is deleted.
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                self.found.push(('D', inside));
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let known = match self.image.resolve(&inside, flags) {
                Ok(_) => true,
                Err(Errno::NOENT | Errno::NOTDIR) => false,
                Err(e) => return Err(Error::io("looking up in the image", &inside, e)),
            };
            self.found.push((if known { 'C' } else { 'A' }, inside.clone()));
            if kind == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?;
                self.directory(&below, &inside, depth + 1)?;
            }
        }
        Ok(())
    }
}
