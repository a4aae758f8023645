//! `towline images export --rootfs`

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tempfile::NamedTempFile;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::store::content::Contents;
use towline_lazyfs::table::Table;
use towline_lazyfs::tree::erofs::read::StoredTree;
use towline_lazyfs::tree::tar::Listing;

use crate::cli::images::progress::Bar;
use crate::cli::images::session::{Place, Session, check_parent};
use crate::cli::images::transfer::{Flags, begun};
use crate::cli::ps::Format;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::held::Held;
use crate::timeline::Timeline;
use crate::timeline::step::size;
use crate::timeline::view::View;

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// Writes the merged root file system of an image of the store as a tar; of one that is lazy, when all of it is here.
pub fn run(engine: &Engine, image: &str, to: &str, flags: &Flags) -> Outcome {
    let session = Session::open(engine, &flags.remote)?;
    let origin = block_on(session.find(image, Place::Store))??;
    let row = origin.row.expect("an image of the store has a row");
    let mut out = Target::open(to)?;

    let held = Held::begin(engine, "export-")?;
    let prepared = held.prepare(&row.digest.to_string())?;
    if prepared.lazy {
        let mut timeline = Timeline::new(Instant::now(), View::new(flags.progress, true));
        let watched = engine.daemon()?.watch(row.digest, &mut |event| timeline.event(event));
        timeline.finish();
        watched?;
    }
    let table = Table::open(&session.store().image(&row.digest).table())?;
    let tree = StoredTree::open(&prepared.tree)?;
    let contents = Contents::new(session.store(), &table);
    let listing = Listing::of(&tree)?;
    let bytes = listing.content_bytes();
    let bar = Bar::new(flags.progress);
    bar.begin(&format!("{} files and directories, {}", listing.len(), size(bytes)), bytes, &begun(bytes));
    let mut told = |written| bar.moved(row.digest, written);
    let written = listing.write(&|digest| contents.open_complete(digest), &mut out.writer(), &mut told);
    bar.finish();
    written.and_then(|()| out.finish()).map_err(|e| e.during(format!("exporting the root file system of {image} to {to}")))?;
    if to == "-" {
        return Ok(0);
    }
    let text = match flags.format {
        Format::Table => format!("{to}\n"),
        Format::Json => {
            let what =
                json!({"name": origin.name, "digest": row.digest, "file": to, "entries": listing.len(), "content_bytes": bytes});
            format!("{what:#}\n")
        }
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// Where the tar goes.
enum Target {
    /// Has another name until it is complete. Only its owner may read it, as with `docker export`: images have secrets.
    New(NamedTempFile, std::path::PathBuf),
    /// Standard output, a pipe or a device.
    Stream(File),
}

impl Target {
    fn open(to: &str) -> Result<Self, Failure> {
        if to == "-" {
            if std::io::stdout().is_terminal() {
                return Err(crate::cli::bad_flag("DST", to, "standard output is a terminal; redirect it, or name a file"));
            }
            let own = rustix::io::dup(std::io::stdout()).map_err(|e| Error::io("opening", "standard output", e))?;
            return Ok(Self::Stream(own.into()));
        }
        let path = Path::new(to);
        check_parent(path)?;
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(crate::cli::bad_flag("DST", to, "it is a directory; name a file in it")),
            Ok(there) if !there.is_file() => {
                Ok(Self::Stream(File::options().write(true).open(path).map_err(|e| Error::io("opening", path, e))?))
            }
            _ => {
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let file = tempfile::Builder::new().prefix(".towline-new-").tempfile_in(dir);
                Ok(Self::New(file.map_err(|e| Error::io("creating a file in", dir, e))?, path.to_owned()))
            }
        }
    }

    fn writer(&mut self) -> impl Write + '_ {
        let file = match self {
            Self::New(file, _) => file.as_file_mut(),
            Self::Stream(file) => file,
        };
        BufWriter::with_capacity(BUFFER, file)
    }

    /// Gives the file its name.
    fn finish(self) -> towline_lazyfs::error::Result<()> {
        let Self::New(file, path) = self else { return Ok(()) };
        file.as_file().sync_all().map_err(|e| Error::io("writing", &path, e))?;
        file.persist(&path).map(drop).map_err(|e| Error::new(Kind::Io, format!("naming {}", path.display())).because(e.error))
    }
}
