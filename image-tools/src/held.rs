//! An image that this command holds for as long as it reads it.

use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::daemon::protocol::Prepared;
use towline_lazyfs::error::{Error, Result};
use towline_lazyfs::store::pins;

use crate::engine::Engine;
use crate::image;

/// A pin of this command, and a directory of its own. Released when this is dropped; after kill -9 the next command that has to do with it, or
/// the daemon, does that ([`pins::sweep_dead`]).
pub struct Held<'a> {
    engine: &'a Engine,
    dir: PathBuf,
    pin: String,
    _command: pins::Command,
}

impl<'a> Held<'a> {
    /// Begins, with nothing held yet. `what` is how the name of the directory begins.
    pub fn begin(engine: &'a Engine, what: &str) -> Result<Self> {
        pins::sweep_dead(&engine.paths.state, &mut engine.db()?)?;
        let command = pins::Command::begin(&engine.paths.state)?;
        let made = tempfile::Builder::new().prefix(what).tempdir_in(&engine.paths.state);
        let dir = made.map_err(|e| Error::io("creating a directory in", &engine.paths.state, e))?.keep();
        Ok(Self { engine, pin: command.reading(&dir).pin(), dir, _command: command })
    }

    /// Pins an image (a name or digest that is in the store), and says what its root consists of.
    pub fn prepare(&self, image: &str) -> Result<Prepared> {
        image::prepare(self.engine, image, &self.pin)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn clear(&self) -> Result<()> {
        std::fs::remove_dir(&self.dir).map_err(|e| Error::io("removing", &self.dir, e))?;
        match Client::connect(&self.engine.paths)? {
            Some(mut daemon) => daemon.release(&self.pin),
            None => self.engine.db()?.unpin(&self.pin),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            crate::cli::warn(&error.one_line());
        }
    }
}
