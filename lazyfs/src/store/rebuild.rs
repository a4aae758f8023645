//! The database again, where it is damaged: from what images and containers say of themselves.
//!
//! ```text
//! db, db-wal     -> db.damaged-N, db.damaged-N-wal: kept for whoever wants to look
//! images/*/      -> images with the name that they were pulled by; lazy, so that every layer is looked at again
//! containers/*/  -> pins
//! ```
//!
//! Of the damaged database only what is harmless if it is wrong is believed: its pins, and that nothing has to be checked after a boot where it
//! names this boot. Names that were given later are told, for the user to give them again.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};

use super::Store;
use super::boot;
use super::db::{Db, ImageState, NewImage};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerKind;
use crate::table::Table;
use crate::tree::erofs::read::StoredTree;

/// The boot in which everything was last found to be intact, beside the database.
const BOOT: &str = "checked-boot";

/// What became of a damaged database.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// What was wrong.
    pub why: String,
    /// Where the damaged one is.
    pub kept: PathBuf,
    /// Images that are in the new one.
    pub images: usize,
    /// Images whose own files are damaged, too; they have to be pulled again.
    pub lost: Vec<String>,
    /// Pins that are in the new one.
    pub pins: usize,
    /// Names that only the damaged one had.
    pub names: Vec<String>,
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, kept, images, lost, pins, names } = self;
        write!(f, "the store's database was damaged and is made again: {why}; {images} images and {pins} pins are in it, ")?;
        write!(f, "the damaged one is {}", kept.display())?;
        if !lost.is_empty() {
            write!(f, "; damaged themselves, to be pulled again: {}", lost.join(", "))?;
        }
        if !names.is_empty() {
            write!(f, "; give these names again where they are right (`towline images tag`): {}", names.join(", "))?;
        }
        Ok(())
    }
}

/// Opens the database of a store, and makes it again where it is damaged. Only for the one daemon of a store.
pub fn open(store: &Store) -> Result<(Db, Option<Rebuilt>)> {
    match Db::open(store.root()) {
        Err(error) if error.outcome() == Outcome::Integrity => {
            let (db, rebuilt) = rebuild(store, &error).map_err(|e| e.during("making the store's database again"))?;
            Ok((db, Some(rebuilt)))
        }
        opened => opened.map(|db| (db, None)),
    }
}

/// Notes beside the database that everything was found to be intact in this boot.
pub(super) fn note_boot(root: &Path, boot: &str) -> Result<()> {
    let path = root.join(BOOT);
    std::fs::write(&path, boot).map_err(|e| Error::io("writing", &path, e))
}

fn rebuild(store: &Store, why: &Error) -> Result<(Db, Rebuilt)> {
    let kept = set_aside(store.root())?;
    let salvaged = Salvaged::of(&kept);
    let mut rebuilt = Rebuilt { why: why.one_line(), kept, ..Rebuilt::default() };
    let mut db = Db::open(store.root())?;
    let boot = boot::current()?;
    // Otherwise everything that is not durable is looked at, and large files of running containers would be forgotten.
    let noted = std::fs::read_to_string(store.root().join(BOOT)).is_ok_and(|noted| noted == boot);
    let is_checked = noted || salvaged.boot.as_deref() == Some(boot.as_str());
    let mut known = BTreeSet::new();
    for image in by_age(store)? {
        match add(store, &mut db, &image, is_checked) {
            Ok(()) => drop(known.insert(image)),
            Err(error) => rebuilt.lost.push(format!("{image} ({})", error.one_line())),
        }
    }
    rebuilt.images = known.len();
    let pins: BTreeSet<(String, Digest)> = containers(store.root())?.into_iter().chain(salvaged.pins).collect();
    for (holder, image) in pins.iter().filter(|(_, image)| known.contains(image)) {
        db.pin(holder, image)?;
        rebuilt.pins += 1;
    }
    let names: BTreeSet<String> = db.images()?.into_iter().flat_map(|row| row.names).collect();
    let is_lost = |name: &String| rebuilt.lost.iter().any(|lost| lost.contains(name));
    rebuilt.names = salvaged.names.into_iter().filter(|name| !names.contains(name) && !is_lost(name)).collect();
    if is_checked {
        db.set_boot(&boot)?;
    }
    Ok((db, rebuilt))
}

/// Gives the damaged database another name. First its log, which would be taken for that of the new one.
fn set_aside(root: &Path) -> Result<PathBuf> {
    let free = |n: &usize| !root.join(format!("db.damaged-{n}")).exists();
    let kept = root.join(format!("db.damaged-{}", (1..).find(free).expect("there is always another number")));
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (root.join(format!("db{suffix}")), PathBuf::from(format!("{}{suffix}", kept.display())));
        match std::fs::rename(&from, to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("renaming", from, e)),
            _ => {}
        }
    }
    Ok(kept)
}

/// What a damaged database still says.
#[derive(Default)]
struct Salvaged {
    pins: Vec<(String, Digest)>,
    names: Vec<String>,
    boot: Option<String>,
}

impl Salvaged {
    fn of(path: &Path) -> Self {
        // It is damaged: that it cannot be read is no news.
        let Ok(connection) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE) else { return Self::default() };
        let pins = rows(&connection, "SELECT container, image FROM pin", |row| {
            Ok((row.get::<_, String>(0)?, Digest::from_bytes(row.get::<_, [u8; 32]>(1)?)))
        });
        let names = rows(&connection, "SELECT name FROM name", |row| row.get(0));
        let boot = rows(&connection, "SELECT value FROM state WHERE name = 'boot'", |row| row.get(0)).pop();
        Self { pins, names, boot }
    }
}

/// The rows that can be read.
fn rows<T>(connection: &Connection, query: &str, read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
    let Ok(mut statement) = connection.prepare(query) else { return Vec::new() };
    match statement.query_map([], read) {
        Ok(rows) => rows.map_while(rusqlite::Result::ok).collect(),
        Err(_) => Vec::new(),
    }
}

/// All images, the oldest first: of two that were pulled by one name the later one has it.
fn by_age(store: &Store) -> Result<Vec<Digest>> {
    let mut images = Vec::new();
    for image in super::image::list_and_tidy(store.root())? {
        // One that lacks its record is told of when it is read.
        let age = std::fs::metadata(store.image(&image).record_path()).and_then(|meta| meta.modified());
        images.push((age.unwrap_or(SystemTime::UNIX_EPOCH), image));
    }
    images.sort_unstable();
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// `is_checked`: what is here has not been through a power cut since it was written.
fn add(store: &Store, db: &mut Db, image: &Digest, is_checked: bool) -> Result<()> {
    let files = store.image(image);
    let record = files.record()?;
    if !files.are_intact() {
        let tried = format!("reading the tree and the table of {}", record.reference);
        return Err(Error::new(Outcome::Integrity, tried).because("they are not what was written"));
    }
    let table = Table::open(&files.table())?;
    let streamed = table.layers().all(|layer| layer.kind == LayerKind::Stream);
    // Layers that streamed past were verified then, but nothing says whether they were durable.
    let state = if is_checked && streamed && store.is_local(&table) { ImageState::Complete } else { ImageState::Lazy };
    let name = &record.reference;
    db.add_image(&NewImage {
        digest: *image,
        name,
        reference: name,
        state,
        bytes_total: table.blob_bytes(),
        content_bytes: table.content_bytes(),
        // But for the root.
        entries: StoredTree::open(&files.tree())?.inodes().saturating_sub(1),
    })
}

/// Which container uses which image, by their own records.
fn containers(root: &Path) -> Result<Vec<(String, Digest)>> {
    #[derive(serde::Deserialize)]
    struct Record {
        id: String,
        image: Digest,
    }
    let dir = root.join("containers");
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io("listing", &dir, e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("listing", &dir, e))?.path().join("container.json");
        match std::fs::read(&path) {
            // Not a container, or one that was about to be made or removed.
            Err(_) => {}
            Ok(text) => match serde_json::from_slice::<Record>(&text) {
                Ok(Record { id, image }) => found.push((id, image)),
                Err(error) => tracing::warn!("{} is damaged, and its image is not pinned by it: {error}", path.display()),
            },
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::image::ImageRecord;
    use super::*;
    use crate::layer::sample::{file, layer};
    use crate::table::{LayerSource, build};
    use crate::tree::{erofs, merge::merge};

    /// An image in the store, and in the database.
    fn image(store: &Store, db: &mut Db, name: &str) -> Digest {
        let index = layer([file("small", name.as_bytes())]);
        let blob = Digest::of(name.as_bytes());
        let source = LayerSource { digest: blob, diff_id: blob, size: 100, kind: LayerKind::Stream, index: &index };
        let (table, tree) = (build(&[source]).unwrap(), erofs::write(&merge(std::slice::from_ref(&index)).unwrap()).unwrap());
        let image = Digest::of(format!("manifest of {name}").as_bytes());
        store.image(&image).write(&tree, &table, ImageRecord::new(name.into(), false, "{}".into())).unwrap();
        let mut writer = store.cas().writer().unwrap();
        writer.write(name.as_bytes()).unwrap();
        writer.finish().unwrap();
        let state = ImageState::Complete;
        let entries = merge(&[index]).unwrap().counts().entries;
        let content_bytes = name.len() as u64;
        db.add_image(&NewImage { digest: image, name, reference: name, state, bytes_total: 100, content_bytes, entries })
            .unwrap();
        image
    }

    #[test]
    fn images_and_pins_are_found_again_and_nothing_is_believed_that_may_be_wrong() {
        // What is damaged, and whether the damaged database can still be read in part.
        type Harm = fn(&mut Vec<u8>);
        let harms: [(&str, Harm, bool); 3] = [
            ("no database", |bytes| bytes.fill(7), false),
            ("cut off", |bytes| bytes.truncate(5000), false),
            (
                "a name",
                |bytes| {
                    let at = bytes.windows(7).position(|seven| seven == b"other:1").unwrap();
                    bytes[at] ^= 1;
                },
                true,
            ),
        ];
        for (what, harm, readable) in harms {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let mut db = Db::open(dir.path()).unwrap();
            let (one, two) = (image(&store, &mut db, "host/one:1"), image(&store, &mut db, "host/two:1"));
            let lost = image(&store, &mut db, "host/lost:1");
            std::fs::write(store.image(&lost).table(), b"damaged").unwrap();
            db.name_image(&one, "other:1", "host/one:1").unwrap();
            db.pin("container", &one).unwrap();
            db.pin("user pinned", &two).unwrap();
            db.set_boot(&boot::current().unwrap()).unwrap();
            let before = db.images().unwrap();
            drop(db);
            for (name, text) in [("c1", format!(r#"{{"id":"container","image":"{one}","more":1}}"#)), ("c2", "{".to_owned())] {
                std::fs::create_dir_all(dir.path().join("containers").join(name)).unwrap();
                std::fs::write(dir.path().join("containers").join(name).join("container.json"), text).unwrap();
            }
            let mut bytes = std::fs::read(dir.path().join("db")).unwrap();
            harm(&mut bytes);
            std::fs::write(dir.path().join("db"), &bytes).unwrap();

            let error = Db::open(dir.path()).unwrap_err();
            assert_eq!(error.outcome(), Outcome::Integrity, "{what}: {error:?}");
            assert!(error.one_line().contains("towline system upgrade"), "{what}: {error:?}");
            let (db, rebuilt) = open(&store).unwrap();
            let rebuilt = rebuilt.expect(what);
            assert_eq!((rebuilt.images, rebuilt.lost.len()), (2, 1), "{what}: {rebuilt}");
            assert!(rebuilt.lost[0].contains(&lost.to_string()), "{what}: {rebuilt}");
            let mut expected = before.clone();
            expected.retain(|row| row.digest != lost);
            for row in &mut expected {
                row.names.retain(|name| name != "other:1");
                (row.created, row.last_used) = (0, 0);
                if !readable {
                    // Nothing says any more that this boot was checked, so that what streamed past may be damaged.
                    (row.state, row.bytes_local) = (ImageState::Lazy, 0);
                }
            }
            let mut found = db.images().unwrap();
            // Times are those of the rebuilding.
            found.iter_mut().for_each(|row| (row.created, row.last_used) = (0, 0));
            assert_eq!(found, expected, "{what}");
            let pins: Vec<String> = db.all_pins().unwrap().into_iter().map(|(holder, _)| holder).collect();
            assert_eq!(pins.contains(&"user pinned".to_owned()), readable, "{what}");
            assert!(pins.contains(&"container".to_owned()), "{what}");
            assert_eq!(rebuilt.names.len(), usize::from(readable), "{what}: {rebuilt}");
            assert_eq!(db.boot().unwrap().is_some(), readable, "{what}");
            assert!(std::fs::read(&rebuilt.kept).unwrap() == bytes || readable, "{what}: the damaged one is not kept");
            drop(db);
            assert!(open(&store).unwrap().1.is_none(), "{what}: it is made again once more");
        }
    }
}
