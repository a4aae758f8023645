//! What a program opens before its own first instruction, fetched before it asks: the dynamic linker opens the interpreter and one library
//! after the other, and each would cost a round trip.
//!
//! ```text
//! command of a container ──► its program, files that it names ─┐
//! file that a program waited for has come ─────────────────────┤
//!                                                              ▼
//!             in the store? ── no ──► fetched like a demand, a few at a time; of a large file only what tells what it needs
//!                  │ yes                          │
//!                  ▼                              ▼
//!        #! script: interpreter      ELF: interpreter, DT_NEEDED      (looked up in the image's stored tree) ──► the same again
//! ```
//!
//! | module | what |
//! |---|---|
//! | elf | what an ELF file needs (pure) |
//! | places | where that is in a tree |
//!
//! A guess that is wrong costs bytes, never correctness: nothing here makes a file visible that the fetcher has not verified. The
//! one lock is held for a look; each command and each file has a task of its own.

mod elf;
mod places;
#[cfg(test)]
mod sample;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use towline_sys::mmap::MappedFile;

use crate::daemon::protocol::Command;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{Fetcher, LargeFile};
use crate::store::Store;
use crate::task::blocking;
use crate::tree::erofs::read::{FoundFile, StoredTree};

/// How many files one program or library may bring along.
const MAX_FILES: usize = 256;

/// Up to this length a large program or library is fetched as a whole: bytes of content. It is some seconds of round trips otherwise.
const WHOLE: u64 = 8 << 20;

/// How often something is fetched to learn what one large file needs.
const MAX_READS: usize = 64;

/// Bytes that tell what a file is.
const BEGINNING: u64 = 256;

/// Fetches ahead for the images of one store.
pub struct Ahead {
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    /// Large files that were looked at.
    touched: Mutex<HashSet<Digest>>,
}

/// Whose needs are looked up.
struct Case {
    store: Arc<Store>,
    tree: StoredTree,
    /// What the container runs, where that is known.
    command: Option<Command>,
}

impl Ahead {
    /// Fetches with `fetcher` into `store`.
    pub fn new(fetcher: Arc<Fetcher>, store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { fetcher, store, touched: Mutex::default() })
    }

    /// A container of `image` is about to run `command`. Returns at once. To be called in a tokio runtime, as everything here.
    pub fn command(self: &Arc<Self>, image: Digest, command: Command) -> Result<()> {
        let tree = StoredTree::open(&self.store.image(&image).tree())?;
        let mut roots = places::arguments(&tree, &command);
        roots.extend(places::program(&tree, &command));
        let case = Arc::new(Case { store: self.store.clone(), tree, command: Some(command) });
        tokio::spawn(self.clone().bring_all(case, roots));
        Ok(())
    }

    /// Somebody is about to read these files of `image`. Returns at once.
    pub fn files(self: &Arc<Self>, image: Digest, paths: &[&str]) -> Result<()> {
        let tree = StoredTree::open(&self.store.image(&image).tree())?;
        let found = paths.iter().filter_map(|path| tree.file(path.as_bytes())).collect();
        tokio::spawn(self.clone().bring_all(Arc::new(Case { store: self.store.clone(), tree, command: None }), found));
        Ok(())
    }

    /// A file that a program waited for is in the store now: the libraries that it needs are what the program opens next.
    pub fn arrived(self: &Arc<Self>, file: Digest) {
        let this = self.clone();
        tokio::spawn(async move {
            let looked = this.clone();
            let found = blocking("looking for libraries", move || {
                Thing::open(&looked.store, &file)?.elf_needs().map_or(Ok(None), |needs| looked.needs_of(&file, &needs))
            });
            let found = found.await;
            this.bring_found(found).await;
        });
    }

    /// Programs have begun to read a large file: the libraries that it needs are what they open next.
    pub fn touched(self: &Arc<Self>, layer: &Digest, offset: u64) {
        let Some(file) = self.fetcher.large_file_at(layer, offset) else { return };
        if !self.touched.lock().expect("no holder of this lock panics").insert(file) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let Some(large) = this.fetcher.large_file(&file) else { return };
            let Some(Looked { needs: Some(needs), .. }) = look(&large).await else { return };
            bring_rest(large);
            let found = this.needs_of(&file, &needs);
            this.bring_found(found).await;
        });
    }

    async fn bring_found(self: Arc<Self>, found: Result<Option<(Case, Vec<FoundFile>)>>) {
        match found {
            Ok(Some((case, needed))) => self.bring_all(Arc::new(case), needed).await,
            Ok(None) => {}
            Err(error) => tracing::debug!("{}", error.one_line()),
        }
    }

    fn needs_of(&self, file: &Digest, needs: &elf::Needs) -> Result<Option<(Case, Vec<FoundFile>)>> {
        if needs.libraries.is_empty() && needs.interpreter.is_none() {
            return Ok(None);
        }
        let Some(image) = self.fetcher.image_with(file) else { return Ok(None) };
        let tree = StoredTree::open(&self.store.image(&image).tree())?;
        let needed = places::of_elf(&tree, needs, None);
        Ok(Some((Case { store: self.store.clone(), tree, command: None }, needed)))
    }

    /// Brings files and what they need, and what that needs.
    async fn bring_all(self: Arc<Self>, case: Arc<Case>, roots: Vec<FoundFile>) {
        let mut seen = HashSet::new();
        let mut tasks = JoinSet::new();
        let mut found = roots;
        loop {
            for file in found.drain(..) {
                if seen.len() < MAX_FILES && seen.insert(file.digest) {
                    tasks.spawn(self.clone().bring(case.clone(), file));
                }
            }
            match tasks.join_next().await {
                None => return,
                Some(Ok(needed)) => found = needed,
                Some(Err(error)) => tracing::debug!("fetching ahead: {error}"),
            }
        }
    }

    /// Brings one file; yields what it needs. Nothing where it could not be had: whoever really opens it hears why.
    async fn bring(self: Arc<Self>, case: Arc<Case>, file: FoundFile) -> Vec<FoundFile> {
        if file.large {
            let Some(large) = self.fetcher.large_file(&file.digest) else { return Vec::new() };
            let Some(looked) = look(&large).await else { return Vec::new() };
            let needed = case.places(&file, &looked);
            if looked.needs.is_some() {
                bring_rest(large);
            }
            return needed;
        }
        if !self.fetcher.ahead(&file.digest).await {
            return Vec::new();
        }
        let needed = blocking("looking for libraries", move || case.needs(&file)).await;
        needed.unwrap_or_else(|error| {
            tracing::debug!("{}", error.one_line());
            Vec::new()
        })
    }
}

/// Has the rest of a program brought, beside what it needs. A program's pages are touched all over: each of them would cost a round trip. What
/// is too much for that, or not needed by the word of a profile, comes as the first that nobody waits for.
fn bring_rest(program: LargeFile) {
    let len = program.size();
    if len <= WHOLE && !program.is_foretold() {
        tokio::spawn(async move { program.bring(0, len as usize).await });
    } else {
        program.bring_later();
    }
}

impl Case {
    fn needs(&self, file: &FoundFile) -> Result<Vec<FoundFile>> {
        let thing = Thing::open(&self.store, &file.digest)?;
        let needs = thing.elf_needs();
        Ok(self.places(file, &Looked { beginning: thing.beginning, needs }))
    }

    fn places(&self, file: &FoundFile, looked: &Looked) -> Vec<FoundFile> {
        if let Some(needs) = &looked.needs {
            return places::of_elf(&self.tree, needs, Some(&places::directory(&file.path)));
        }
        self.command.as_ref().map(|command| places::of_script(&self.tree, command, &looked.beginning)).unwrap_or_default()
    }
}

/// What was seen of a file.
struct Looked {
    beginning: Vec<u8>,
    /// Of an ELF file.
    needs: Option<elf::Needs>,
}

/// Looks at a large file, and brings only what is needed for it. `None` where that could not be had.
async fn look(large: &LargeFile) -> Option<Looked> {
    for _ in 0..MAX_READS {
        match look_once(large) {
            Ok(looked) => return Some(looked),
            Err((offset, len)) if large.bring(offset, len).await => {}
            Err(_) => return None,
        }
    }
    None
}

/// Looks at what is here of a large file; the first place and length that is missing for it.
fn look_once(large: &LargeFile) -> Result<Looked, (u64, usize)> {
    let missing = Cell::new(None);
    let read = |offset: u64, len: usize| {
        let bytes = large.read(offset, len);
        if bytes.is_none() && missing.get().is_none() {
            missing.set(Some((offset, len)));
        }
        bytes
    };
    let beginning = read(0, BEGINNING as usize).unwrap_or_default();
    let needs = elf::is_elf(&beginning).then(|| elf::needs(&read));
    missing.get().map_or(Ok(Looked { beginning, needs }), Err)
}

/// An object of the store, looked at.
struct Thing {
    beginning: Vec<u8>,
    /// All of it, where it is an ELF file. Objects do not change.
    elf: Option<MappedFile>,
}

impl Thing {
    fn open(store: &Store, digest: &Digest) -> Result<Self> {
        let file = store.cas().get(digest)?;
        let failed = |e| Error::io("reading", store.cas().objects_dir().join(digest.object_path()), e);
        let mut beginning = Vec::new();
        (&file).take(BEGINNING).read_to_end(&mut beginning).map_err(failed)?;
        let elf = elf::is_elf(&beginning).then(|| MappedFile::map(&file)).transpose().map_err(failed)?;
        Ok(Self { beginning, elf })
    }

    fn elf_needs(&self) -> Option<elf::Needs> {
        let bytes = self.elf.as_ref()?;
        Some(elf::needs(&|offset, len| {
            let rest = bytes.get(usize::try_from(offset).ok()?..)?;
            Some(rest[..len.min(rest.len())].to_vec())
        }))
    }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("fetcher", &self.fetcher).finish_non_exhaustive()
    }
}
