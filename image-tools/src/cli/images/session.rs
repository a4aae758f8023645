//! What the commands work with that look into images or write them: sources and destinations, in this process and not in the daemon.
//!
//! A reference means the image of the store that has this name or digest, where there is one, else what is at the place that it
//! names. With `--platform` an image of the store counts only if it is for that platform.

use std::path::Path;
use std::sync::Arc;

use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::inspect::{self, Opened};
use towline_lazyfs::local::LocalImage;
use towline_lazyfs::manifest::Platform;
use towline_lazyfs::pull::{Sources, resolve_all};
use towline_lazyfs::reference::Reference;
use towline_lazyfs::sink::Sink;
use towline_lazyfs::source::Source;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::db::ImageRow;

use super::pull::{SourceArgs, canonical};
use crate::engine::Engine;
use crate::failure::Failure;
use crate::image;
use crate::policy;

/// Sources, destinations and the store.
pub struct Session<'a> {
    engine: &'a Engine,
    remote: &'a SourceArgs,
    sources: Sources,
    store: Store,
}

/// An image that was found.
pub struct Origin {
    /// As the user knows it.
    pub name: String,
    /// Where its bytes come from.
    pub source: Arc<dyn Source>,
    /// What the source calls it.
    pub selector: String,
    /// Its row, where it is in the store.
    pub row: Option<ImageRow>,
}

/// Where an image may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the store, else where the reference says.
    Anywhere,
    /// Only in the store.
    Store,
    /// Only where the reference says.
    Remote,
}

impl<'a> Session<'a> {
    /// Opens the store; no registry is asked yet.
    pub fn open(engine: &'a Engine, remote: &'a SourceArgs) -> Result<Self, Failure> {
        let sources = Sources::open(&engine.paths.root, &engine.paths.state, engine.sources())?;
        let store = Store::open(&engine.paths.root)?;
        Ok(Self { engine, remote, sources, store })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The platform that was asked for, or this machine's.
    pub fn platform(&self) -> Result<Platform, Failure> {
        Ok(self.remote.platform()?.unwrap_or_else(Platform::host))
    }

    /// Finds an image.
    pub async fn find(&self, text: &str, place: Place) -> Result<Origin, Failure> {
        if place != Place::Remote
            && let Some(row) = self.row(text)?
        {
            let image = LocalImage::open(&self.store, &row, &self.sources).await?;
            let (name, selector) = (text.to_owned(), row.digest.to_string());
            return Ok(Origin { name, source: Arc::new(image), selector, row: Some(row) });
        }
        if place == Place::Store {
            // Says so where it is not there for another platform, too.
            return Err(match image::find(&self.engine.db()?, text) {
                Err(error) => error.into(),
                Ok(_) => Error::new(Kind::NotFound, format!("looking up image {text}"))
                    .because(format!("the store has it for another platform than {}", self.platform()?))
                    .advise("pull it with --platform, or leave that out")
                    .into(),
            });
        }
        let reference = reference(text)?;
        self.log_in(text, &reference)?;
        let source = self.sources.source(&reference, self.remote.plain_http())?;
        Ok(Origin { name: reference.to_string(), source, selector: reference.selector(), row: None })
    }

    /// Finds an image that is to be written elsewhere, and fails where the signature policy refuses it: what is passed on has been let
    /// in before, as with `skopeo copy`. What is read from then on is what was decided about, also where its tag moves meanwhile.
    ///
    /// Of an index that is taken as a whole the index itself must be signed; with `--platform` it may be the image instead.
    pub async fn admitted(&self, text: &str, place: Place) -> Result<Origin, Failure> {
        let mut origin = self.find(text, place).await?;
        if let Some(row) = &origin.row {
            policy::admit(self.engine, row)?;
            return Ok(origin);
        }
        let reference = reference(&origin.name)?;
        let Some(rule) = policy::rule(self.engine, &reference)? else { return Ok(origin) };
        // Before anybody is asked.
        rule.check_possible()?;
        if rule.needs_signatures() {
            let source = origin.source.as_ref();
            let digests = match self.remote.platform()? {
                Some(platform) => resolve_all(source, &origin.selector, &platform).await?.digests,
                None => vec![source.manifest(&origin.selector).await?.digest],
            };
            policy::admit_remote(self.engine, &reference, source, &digests).await?;
            origin.selector = digests[0].to_string();
        }
        Ok(origin)
    }

    /// Finds an image and reads its manifest and configuration.
    pub async fn inspect(&self, text: &str, place: Place) -> Result<(Origin, Opened), Failure> {
        let origin = self.find(text, place).await?;
        let opened = inspect::open(&origin.source, &origin.selector, &self.platform()?).await;
        let opened = opened.map_err(|e| e.during(format!("reading image {text}")))?;
        Ok((origin, opened))
    }

    /// Opens a destination.
    pub fn sink(&self, reference: &Reference) -> Result<Arc<dyn Sink>, Failure> {
        self.log_in(&reference.to_string(), reference)?;
        Ok(self.sources.sink(reference, self.remote.plain_http())?)
    }

    fn row(&self, text: &str) -> Result<Option<ImageRow>, Failure> {
        let found = image::lookup(&self.engine.db()?, text)?;
        let Some(row) = found.filter(|row| self.store.image(&row.digest).exist()) else { return Ok(None) };
        let Some(wanted) = self.remote.platform()? else { return Ok(Some(row)) };
        let config = self.store.image(&row.digest).record()?.config;
        let platform: Platform = serde_json::from_str(&config)
            .map_err(|e| Error::new(Kind::Integrity, format!("reading the configuration of {text}")).because(e))?;
        Ok((platform.os == wanted.os && platform.architecture == wanted.architecture).then_some(row))
    }

    /// Uses what the user gave, and what login tools keep.
    fn log_in(&self, text: &str, reference: &Reference) -> Result<(), Failure> {
        if let Reference::Registry(registry) = reference {
            let given = self.remote.credentials()?;
            self.sources.keep(&self.remote.logins(self.engine, given.as_ref(), text, registry)?)?;
        }
        Ok(())
    }
}

/// A reference; what is relative in it is relative to this command's working directory.
pub fn reference(text: &str) -> Result<Reference, Failure> {
    let text = canonical(text)?;
    text.parse().map_err(|e| Error::new(Kind::BadInput, format!("reading image reference {text}")).because(e).into())
}

/// The parent of a file that is to be written must be there; anything else would fail only after everything was read.
pub fn check_parent(file: &Path) -> Result<(), Failure> {
    match file.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        Some(dir) => Err(Error::new(Kind::NotFound, format!("writing {}", file.display()))
            .because(format!("there is no directory {}", dir.display()))
            .advise("make it first")
            .into()),
        None => Ok(()),
    }
}
