//! The store's database: which images there are, what they are called, and which containers pin them.
//!
//! SQLite in WAL mode, since the command line reads while the daemon writes and several processes may do both. What is local is
//! decided by the files in `cas/`, never by a row; the byte counts here are what the daemon last saw.
//!
//! States of an image:
//!
//! ```text
//! (no row) --pull--> lazy --every layer verified--> complete
//!                     |  \--a layer disagrees with its index--> poisoned (pull again, or remove)
//! ```

mod seal;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::pins::Holder;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// Pages of the write-ahead log, of 4 KiB each, after which it is written into the database.
const LOG_PAGES: i64 = 256;

/// How long a statement waits for another process's transaction.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// Version of the schema below; a database with another one is refused.
const SCHEMA_VERSION: i64 = 1;

/// What becomes of a damaged database ([`super::rebuild`]).
const MADE_AGAIN: &str = "`towline system upgrade` makes it again from what else is in the store";

const SCHEMA: &str = "
CREATE TABLE image (
  digest BLOB PRIMARY KEY, reference TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
  bytes_total INTEGER NOT NULL, bytes_local INTEGER NOT NULL, content_bytes INTEGER NOT NULL, entries INTEGER NOT NULL,
  created INTEGER NOT NULL, last_used INTEGER NOT NULL) STRICT;
CREATE TABLE name (name TEXT PRIMARY KEY, image BLOB NOT NULL REFERENCES image(digest)) STRICT;
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE pin (container TEXT PRIMARY KEY, image BLOB NOT NULL REFERENCES image(digest), created INTEGER NOT NULL) STRICT;
";

/// The database of one store.
#[derive(Debug)]
pub struct Db {
    connection: Connection,
}

/// Whether an image's content is local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// Containers can start; content is fetched on demand and in the background.
    Lazy,
    /// Everything is local and every layer was verified against its diffID.
    Complete,
    /// A layer is not what its index says.
    Poisoned,
}

/// An image, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// Digest of the manifest.
    pub digest: Digest,
    /// All names, sorted.
    pub names: Vec<String>,
    /// Where it was pulled from, in canonical form.
    pub reference: String,
    /// Whether its content is local.
    pub state: ImageState,
    /// Why it is poisoned; empty otherwise.
    pub reason: String,
    /// Compressed bytes of its layers.
    pub bytes_total: u64,
    /// Compressed bytes that are local, as the daemon last saw it.
    pub bytes_local: u64,
    /// Uncompressed bytes of its files.
    pub content_bytes: u64,
    /// Inodes in its tree.
    pub entries: u64,
    /// When it was first pulled, seconds since the epoch.
    pub created: u64,
    /// When it was last pulled, or used by a container or a mount, seconds since the epoch.
    pub last_used: u64,
}

/// A new image, as [`Db::add_image`] takes it.
#[derive(Clone, Debug)]
pub struct NewImage<'a> {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Name to give it.
    pub name: &'a str,
    /// Where it was pulled from, in canonical form.
    pub reference: &'a str,
    /// Whether its content is local.
    pub state: ImageState,
    /// Compressed bytes of its layers.
    pub bytes_total: u64,
    /// Uncompressed bytes of its files.
    pub content_bytes: u64,
    /// Inodes in its tree.
    pub entries: u64,
}

impl Db {
    /// Opens the database of the store at `root`, making it where there is none.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("db");
        let opening = || format!("opening the database {}", path.display());
        let failed = |e| classified(opening(), e);
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(BUSY_DEADLINE).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        // The log counts towards the quota: by default it becomes 4 MB, and stays so.
        connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES).map_err(failed)?;
        connection.pragma_update(None, "journal_size_limit", LOG_PAGES * 4096).map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let version = |c: &Connection| c.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        if version(&connection).map_err(failed)? == 0 {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            // Another process may have made the tables since we looked.
            if version(&transaction).map_err(failed)? == 0 {
                transaction.execute_batch(SCHEMA).map_err(failed)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
            }
            transaction.commit().map_err(failed)?;
        }
        let found = version(&connection).map_err(failed)?;
        if found != SCHEMA_VERSION {
            return Err(Error::new(Outcome::Unsupported, opening())
                .because(format!("its schema has version {found}, this program knows {SCHEMA_VERSION}"))
                .advise("use the version of towline that made it, or another --root"));
        }
        match seal::flaw(&connection).map_err(failed)? {
            None => Ok(Self { connection }),
            Some(flaw) => Err(Error::new(Outcome::Integrity, opening()).because(flaw).advise(MADE_AGAIN)),
        }
    }

    /// All images, by first name.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        let query = format!("{IMAGE_QUERY} GROUP BY image.digest ORDER BY min(name.name), image.digest");
        let mut statement = self.connection.prepare(&query).map_err(|e| failed("listing images", e))?;
        let rows = statement.query_map([], image_row).map_err(|e| failed("listing images", e))?;
        rows.collect::<rusqlite::Result<_>>().map_err(|e| failed("listing images", e))
    }

    /// The image with this manifest digest.
    pub fn image(&self, digest: &Digest) -> Result<Option<ImageRow>> {
        let query = format!("{IMAGE_QUERY} WHERE image.digest = ?1 GROUP BY image.digest");
        let row = self.connection.query_row(&query, [digest.as_bytes()], image_row).optional();
        row.map_err(|e| failed("looking up an image", e))
    }

    /// The image that a name, a digest (`sha256:…`) or the beginning of its hexadecimal digits (at least 6) means.
    pub fn resolve(&self, name: &str) -> Result<Option<ImageRow>> {
        let query = "SELECT image FROM name WHERE name = ?1";
        let found = self.connection.query_row(query, [name], |row| digest_column(row, 0)).optional();
        if let Some(digest) = found.map_err(|e| failed("looking up an image", e))? {
            return self.image(&digest);
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() < 6 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut matching = self.images()?.into_iter().filter(|image| image.digest.hex().starts_with(hex));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(Error::new(Outcome::BadInput, format!("looking up image {name}"))
                .because("more than one image has a digest that begins so")
                .advise("give more digits")),
            (found, _) => Ok(found),
        }
    }

    /// Records an image and gives it a name, which may have meant another image before.
    pub fn add_image(&mut self, image: &NewImage<'_>) -> Result<()> {
        let local = if image.state == ImageState::Complete { image.bytes_total } else { 0 };
        self.write("recording an image", |transaction| {
            transaction.execute(
                "INSERT INTO image VALUES (?1, ?2, ?3, '', ?4, ?5, ?6, ?7, ?8, ?8)
                 ON CONFLICT (digest) DO UPDATE SET reference = ?2, state = ?3, reason = '', bytes_local = ?5, last_used = ?8",
                params![
                    image.digest.as_bytes(),
                    image.reference,
                    state_name(image.state),
                    signed(image.bytes_total),
                    signed(local),
                    signed(image.content_bytes),
                    signed(image.entries),
                    now()
                ],
            )?;
            transaction.execute(
                "INSERT INTO name VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET image = ?2",
                params![image.name, image.digest.as_bytes()],
            )?;
            Ok(())
        })
    }

    /// Gives an image a further name.
    pub fn name_image(&mut self, image: &Digest, name: &str, reference: &str) -> Result<()> {
        self.write("naming an image", |transaction| {
            let query = "UPDATE image SET reference = ?2, last_used = ?3 WHERE digest = ?1";
            transaction.execute(query, params![image.as_bytes(), reference, now()])?;
            let query = "INSERT INTO name VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET image = ?2";
            transaction.execute(query, params![name, image.as_bytes()]).map(drop)
        })
    }

    /// Sets how much of an image is local.
    pub fn set_local(&mut self, image: &Digest, bytes_local: u64) -> Result<()> {
        self.write("recording progress", |transaction| {
            let values = params![image.as_bytes(), signed(bytes_local)];
            transaction.execute("UPDATE image SET bytes_local = ?2 WHERE digest = ?1", values).map(drop)
        })
    }

    /// Sets the state of an image; `reason` is empty unless it is poisoned.
    pub fn set_state(&mut self, image: &Digest, state: ImageState, reason: &str) -> Result<()> {
        self.write_durably("recording an image's state", |transaction| {
            let values = params![image.as_bytes(), state_name(state), reason, state == ImageState::Complete];
            transaction
                .execute(
                    "UPDATE image SET state = ?2, reason = ?3, bytes_local = iif(?4, bytes_total, bytes_local) WHERE digest = ?1",
                    values,
                )
                .map(drop)
        })
    }

    /// Pins an image for a container.
    pub fn pin(&mut self, container: &str, image: &Digest) -> Result<()> {
        self.write("pinning an image", |transaction| {
            transaction.execute("INSERT OR REPLACE INTO pin VALUES (?1, ?2, ?3)", params![container, image.as_bytes(), now()])?;
            transaction.execute("UPDATE image SET last_used = ?2 WHERE digest = ?1", params![image.as_bytes(), now()]).map(drop)
        })
    }

    /// Ends the pin of a container, where there is one.
    pub fn unpin(&mut self, container: &str) -> Result<()> {
        self.write("releasing an image", |transaction| {
            // It was used until now.
            let query = "UPDATE image SET last_used = ?2 WHERE digest = (SELECT image FROM pin WHERE container = ?1)";
            transaction.execute(query, params![container, now()])?;
            transaction.execute("DELETE FROM pin WHERE container = ?1", [container]).map(drop)
        })
    }

    /// Gives a pin to another holder.
    pub fn rename_pin(&mut self, from: &str, to: &str) -> Result<()> {
        self.write("handing on a pin", |transaction| {
            transaction.execute("UPDATE OR REPLACE pin SET container = ?2 WHERE container = ?1", [from, to]).map(drop)
        })
    }

    /// The run of the kernel in which everything was last found to be intact.
    pub fn boot(&self) -> Result<Option<String>> {
        let query = "SELECT value FROM state WHERE name = 'boot'";
        let found = self.connection.query_row(query, [], |row| row.get(0)).optional();
        found.map_err(|e| failed("reading the last boot", e))
    }

    /// Notes that in this run of the kernel everything was found to be intact.
    pub fn set_boot(&mut self, boot: &str) -> Result<()> {
        self.write("recording a boot", |transaction| {
            transaction.execute("INSERT OR REPLACE INTO state VALUES ('boot', ?1)", [boot]).map(drop)
        })
    }

    /// Removes an image with its names and pins, whoever uses it: its files are damaged.
    pub fn forget_image(&mut self, image: &Digest) -> Result<()> {
        self.write_durably("forgetting an image", |transaction| {
            for table in ["pin", "name"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE image = ?1"), [image.as_bytes()])?;
            }
            transaction.execute("DELETE FROM image WHERE digest = ?1", [image.as_bytes()]).map(drop)
        })
    }

    /// All pins: who has one, and on which image.
    pub fn all_pins(&self) -> Result<Vec<(String, Digest)>> {
        let tried = "listing what uses images";
        let mut statement =
            self.connection.prepare("SELECT container, image FROM pin ORDER BY 1").map_err(|e| failed(tried, e))?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, digest_column(row, 1)?))).map_err(|e| failed(tried, e))?;
        rows.collect::<rusqlite::Result<_>>().map_err(|e| failed(tried, e))
    }

    /// Fails with [`Outcome::Integrity`] where the database itself is damaged.
    pub fn check(&self) -> Result<()> {
        let tried = "checking";
        match seal::flaw(&self.connection).map_err(|e| failed(tried, e))? {
            None => Ok(()),
            Some(flaw) => Err(Error::new(Outcome::Integrity, "checking the store's database").because(flaw).advise(MADE_AGAIN)),
        }
    }

    /// All images, the one first that was not used for the longest time.
    pub fn by_last_use(&self) -> Result<Vec<Digest>> {
        let tried = "listing images by their last use";
        let query = "SELECT digest FROM image ORDER BY last_used, created, digest";
        let mut statement = self.connection.prepare(query).map_err(|e| failed(tried, e))?;
        let rows = statement.query_map([], |row| digest_column(row, 0)).map_err(|e| failed(tried, e))?;
        rows.collect::<rusqlite::Result<_>>().map_err(|e| failed(tried, e))
    }

    /// The containers that pin an image.
    pub fn pins(&self, image: &Digest) -> Result<Vec<String>> {
        let tried = "listing what uses an image";
        let mut statement =
            self.connection.prepare("SELECT container FROM pin WHERE image = ?1 ORDER BY 1").map_err(|e| failed(tried, e))?;
        let rows = statement.query_map([image.as_bytes()], |row| row.get(0)).map_err(|e| failed(tried, e))?;
        rows.collect::<rusqlite::Result<_>>().map_err(|e| failed(tried, e))
    }

    /// Removes one name of an image, or all of them where it was named by digest, and the image where it has no name left.
    /// Says whether the image went. Fails with [`Outcome::Busy`] where the last name of a pinned image would go.
    pub fn remove_name(&mut self, name: &str) -> Result<(Digest, bool)> {
        let tried = format!("removing image {name}");
        let image = self.resolve(name)?.ok_or_else(|| {
            Error::new(Outcome::NotFound, tried.clone()).because("no image has that name").advise("see `towline images ls`")
        })?;
        let last = image.names.iter().all(|other| other == name) || !image.names.iter().any(|other| other == name);
        let holders: Vec<Holder> = self.pins(&image.digest)?.iter().map(|pin| Holder::of(pin)).collect();
        if last && let Some(first) = holders.first() {
            let all: Vec<String> = holders.iter().map(Holder::to_string).collect();
            return Err(Error::new(Outcome::Busy, tried).because(all.join(", ")).advise(first.advice()));
        }
        self.write_durably("removing an image", |transaction| {
            let key = image.digest.as_bytes();
            if !last {
                return transaction.execute("DELETE FROM name WHERE name = ?1", [name]).map(drop);
            }
            transaction.execute("DELETE FROM name WHERE image = ?1", [key])?;
            transaction.execute("DELETE FROM image WHERE digest = ?1", [key]).map(drop)
        })?;
        Ok((image.digest, last))
    }

    /// Removes an image with its names unless something holds it; whether it went.
    pub fn remove_unpinned(&mut self, image: &Digest) -> Result<bool> {
        let mut gone = false;
        self.write_durably("removing an image that nobody uses", |transaction| {
            let key = image.as_bytes();
            let pinned: bool =
                transaction.query_row("SELECT EXISTS (SELECT 1 FROM pin WHERE image = ?1)", [key], |row| row.get(0))?;
            if pinned {
                return Ok(());
            }
            transaction.execute("DELETE FROM name WHERE image = ?1", [key])?;
            gone = transaction.execute("DELETE FROM image WHERE digest = ?1", [key])? > 0;
            Ok(())
        })?;
        Ok(gone)
    }

    /// As [`Self::write`], and on the disk when it returns: files that the rows name are removed next, and after a power cut no row may name what
    /// is gone.
    fn write_durably(&mut self, tried: &str, statements: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<()> {
        let sync =
            |connection: &Connection, how| connection.pragma_update(None, "synchronous", how).map_err(|e| failed(tried, e));
        sync(&self.connection, "full")?;
        let written = self.write(tried, statements);
        sync(&self.connection, "normal")?;
        written
    }

    fn write(&mut self, tried: &str, statements: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| failed(tried, e))?;
        statements(&transaction).and_then(|()| seal::renew(&transaction)).map_err(|e| failed(tried, e))?;
        transaction.commit().map_err(|e| failed(tried, e))
    }
}

const IMAGE_QUERY: &str = "
SELECT image.digest, group_concat(name.name, char(10)), reference, state, reason, bytes_total, bytes_local, content_bytes, entries,
       image.created, image.last_used
FROM image LEFT JOIN name ON name.image = image.digest";

fn image_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    let names: Option<String> = row.get(1)?;
    let mut names: Vec<String> = names.map(|all| all.split('\n').map(str::to_owned).collect()).unwrap_or_default();
    names.sort();
    let state: String = row.get(3)?;
    let unsigned = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(ImageRow {
        digest: digest_column(row, 0)?,
        names,
        reference: row.get(2)?,
        state: match state.as_str() {
            "lazy" => ImageState::Lazy,
            "complete" => ImageState::Complete,
            "poisoned" => ImageState::Poisoned,
            _ => return Err(rusqlite::Error::InvalidColumnType(3, state, rusqlite::types::Type::Text)),
        },
        reason: row.get(4)?,
        bytes_total: unsigned(5)?,
        bytes_local: unsigned(6)?,
        content_bytes: unsigned(7)?,
        entries: unsigned(8)?,
        created: unsigned(9)?,
        last_used: unsigned(10)?,
    })
}

fn digest_column(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(column).map(Digest::from_bytes)
}

fn state_name(state: ImageState) -> &'static str {
    match state {
        ImageState::Lazy => "lazy",
        ImageState::Complete => "complete",
        ImageState::Poisoned => "poisoned",
    }
}

/// SQLite's integers are signed; no count of ours comes near the limit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| signed(age.as_secs()))
}

fn failed(tried: &str, cause: rusqlite::Error) -> Error {
    classified(format!("{tried} in the store's database"), cause)
}

/// What a failure of SQLite is to this crate.
pub(crate) fn classified(tried: String, cause: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{
        CannotOpen, ConstraintViolation, DatabaseBusy, DatabaseLocked, DiskFull, ReadOnly, SystemIoFailure,
    };
    let (outcome, advice) = match cause.sqlite_error_code() {
        Some(DiskFull) => (Outcome::NoSpace, "free space on that file system, or remove images with `towline images rm`"),
        Some(DatabaseBusy | DatabaseLocked) => (Outcome::Busy, "another process works with it for long; try again"),
        Some(ReadOnly | CannotOpen) => (
            Outcome::Io,
            "the store has to be writable, and this process to be allowed more open files; containers go on with what is local",
        ),
        // Of an image that was removed a moment ago.
        Some(ConstraintViolation) => (Outcome::NotFound, "it was removed a moment ago: pull it again"),
        Some(SystemIoFailure) => (Outcome::Io, "the disk failed: see the kernel's log"),
        // What is asked of it is fixed: where it does not understand, its tables are not those that were made.
        _ => (Outcome::Integrity, MADE_AGAIN),
    };
    Error::new(outcome, tried).because(cause).advise(advice)
}
