//! What snapshots there are: a database of its own beside the directories of their layers, `ROOT/snapshots/db`.
//!
//! ```text
//!            prepare                 commit
//! (no row) ----------> active/view ----------> committed
//!     \-- prepare with a remote layer -------> committed, and remote: its content is an image of the store
//! ```
//!
//! containerd's own database is durable after each step, so this one is, too. A layer's directory is made before its row is, and removed
//! after it: a directory without a row is what a killed daemon has left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};

use super::grpc::{Code, Status};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::db::classified;

/// Version of the schema below; a database with another one is refused.
const SCHEMA_VERSION: i64 = 1;

/// How long a statement waits for another process's transaction.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

const RECORDING: &str = "recording a snapshot";

const SCHEMA: &str = "
CREATE TABLE snapshot (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, parent INTEGER REFERENCES snapshot(id), kind INTEGER NOT NULL,
  created INTEGER NOT NULL, updated INTEGER NOT NULL, labels TEXT NOT NULL, size INTEGER NOT NULL, inodes INTEGER NOT NULL) STRICT;
CREATE INDEX child ON snapshot(parent);
CREATE TABLE remote (
  snapshot INTEGER PRIMARY KEY REFERENCES snapshot(id) ON DELETE CASCADE, image BLOB NOT NULL, layers INTEGER NOT NULL,
  total INTEGER NOT NULL, reference TEXT NOT NULL) STRICT;
CREATE TABLE image (digest BLOB PRIMARY KEY, name TEXT NOT NULL) STRICT;
";

/// What a snapshot is; the numbers are containerd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To look at.
    View = 1,
    /// To write into.
    Active = 2,
    /// To stand on.
    Committed = 3,
}

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk.
    pub size: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// The lowest layers of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The image.
    pub image: Digest,
    /// How many of its layers.
    pub layers: u32,
    /// How many it has.
    pub total: u32,
    /// Where it is pulled from if it is gone.
    pub reference: String,
}

impl Remote {
    /// Whether it is all of the image.
    pub fn is_whole(&self) -> bool {
        self.layers == self.total
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Names its directory.
    pub id: i64,
    /// As containerd calls it.
    pub name: String,
    /// The snapshot that it stands on; empty for none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Nanoseconds since the epoch.
    pub updated: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What was used when it was committed.
    pub usage: Usage,
    /// What is in it, where that is of an image of the store.
    pub remote: Option<Remote>,
}

/// A new snapshot.
#[derive(Debug)]
pub struct New {
    /// As containerd calls it.
    pub name: String,
    /// The snapshot that it stands on; empty for none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is in it, where that is of an image of the store.
    pub remote: Option<Remote>,
}

/// The database.
#[derive(Debug)]
pub struct Records {
    connection: Connection,
}

impl Records {
    /// Opens the database in the directory of snapshots, making it where there is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("db");
        let opening = || format!("opening the database of snapshots {}", path.display());
        let failed = |e| classified(opening(), e);
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(BUSY_DEADLINE).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "full").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let version = |c: &Connection| c.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        if version(&connection).map_err(failed)? == 0 {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            transaction.execute_batch(SCHEMA).map_err(failed)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        match version(&connection).map_err(failed)? {
            SCHEMA_VERSION => Ok(Self { connection }),
            found => Err(Error::new(Outcome::Unsupported, opening())
                .because(format!("its schema has version {found}, this program knows {SCHEMA_VERSION}"))
                .advise("use the version of towline that made it")),
        }
    }

    /// A snapshot by its name.
    pub fn get(&self, name: &str) -> Result<Record, Status> {
        self.find("name = ?1", params![name])?.ok_or_else(|| not_found(name))
    }

    /// All snapshots, each after its parent.
    pub fn all(&self) -> Result<Vec<Record>> {
        self.select("1 ORDER BY snapshot.id", params![])
    }

    /// A snapshot and those below it, down to the lowest.
    pub fn chain(&self, name: &str) -> Result<Vec<Record>, Status> {
        let mut chain = Vec::new();
        let mut next = name.to_owned();
        while !next.is_empty() {
            let record = self.get(&next)?;
            next.clone_from(&record.parent);
            chain.push(record);
        }
        Ok(chain)
    }

    /// The remote layer that is called `target` among containerd's clients, on this parent.
    pub fn remote(&self, target: &str, parent: &str) -> Result<Option<Record>> {
        let has =
            |record: &Record| record.remote.is_some() && record.labels.get(super::TARGET).map(String::as_str) == Some(target);
        let found = match parent {
            "" => self.select("snapshot.parent IS NULL", params![])?,
            parent => self.select("parent.name = ?1", params![parent])?,
        };
        Ok(found.into_iter().find(has))
    }

    /// Adds a snapshot. `make` makes what its number names; nothing is recorded where that fails.
    pub fn add(&mut self, new: &New, make: impl FnOnce(i64) -> Result<()>) -> Result<Record, Status> {
        let transaction = begin(&mut self.connection, RECORDING)?;
        make(insert(&transaction, new)?)?;
        transaction.commit().map_err(|e| failed(RECORDING, e))?;
        self.get(&new.name)
    }

    /// Adds remote layers, each on the one before it: all or none, and the disk is waited for once.
    pub fn add_layers(&mut self, layers: &[New]) -> Result<(), Status> {
        let transaction = begin(&mut self.connection, RECORDING)?;
        for layer in layers {
            insert(&transaction, layer)?;
        }
        transaction.commit().map_err(|e| failed(RECORDING, e).into())
    }

    /// Makes a committed snapshot of an active one.
    pub fn commit(&mut self, key: &str, name: &str, labels: &BTreeMap<String, String>, usage: Usage) -> Result<(), Status> {
        let tried = "committing a snapshot";
        let record = self.get(key)?;
        if record.kind != Kind::Active {
            return Err(Status::new(Code::FailedPrecondition, format!("committing {key}: it is not active")));
        }
        let transaction = begin(&mut self.connection, tried)?;
        if id_of(&transaction, name)?.is_some() {
            return Err(Status::new(Code::AlreadyExists, format!("snapshot {name} exists")));
        }
        let labels = serde_json::to_string(labels).expect("the keys are strings");
        let query = "UPDATE snapshot SET name = ?2, kind = ?3, updated = ?4, labels = ?5, size = ?6, inodes = ?7 WHERE id = ?1";
        let values = params![record.id, name, Kind::Committed as i64, now(), labels, signed(usage.size), signed(usage.inodes)];
        transaction.execute(query, values).map_err(|e| failed(tried, e))?;
        transaction.commit().map_err(|e| failed(tried, e).into())
    }

    /// Removes a snapshot on which none stands.
    pub fn remove(&mut self, name: &str) -> Result<Record, Status> {
        let tried = "removing a snapshot";
        let record = self.get(name)?;
        let transaction = begin(&mut self.connection, tried)?;
        let query = "SELECT name FROM snapshot WHERE parent = ?1 LIMIT 1";
        let child: Option<String> =
            transaction.query_row(query, [record.id], |row| row.get(0)).optional().map_err(|e| failed(tried, e))?;
        if let Some(child) = child {
            return Err(Status::new(Code::FailedPrecondition, format!("removing snapshot {name}: {child} stands on it")));
        }
        transaction.execute("DELETE FROM snapshot WHERE id = ?1", [record.id]).map_err(|e| failed(tried, e))?;
        transaction.commit().map_err(|e| failed(tried, e))?;
        Ok(record)
    }

    /// Replaces the labels of a snapshot.
    pub fn set_labels(&mut self, name: &str, labels: &BTreeMap<String, String>) -> Result<Record, Status> {
        let labels = serde_json::to_string(labels).expect("the keys are strings");
        let query = "UPDATE snapshot SET labels = ?2, updated = ?3 WHERE name = ?1";
        self.connection.execute(query, params![name, labels, now()]).map_err(|e| failed("changing a snapshot's labels", e))?;
        self.get(name)
    }

    /// A remote layer is of another image from now on, which has the same layers up to it.
    pub fn set_remote(&mut self, id: i64, remote: &Remote) -> Result<()> {
        let Remote { image, total, reference, .. } = remote;
        let query = "UPDATE remote SET image = ?2, total = ?3, reference = ?4 WHERE snapshot = ?1";
        let done = self.connection.execute(query, params![id, image.as_bytes(), total, reference]);
        done.map(drop).map_err(|e| failed("moving a remote layer", e))
    }

    /// Notes that an image has this name only since snapshots need it.
    pub fn own(&mut self, image: &Digest, name: &str) -> Result<()> {
        let done = self.connection.execute("INSERT OR REPLACE INTO image VALUES (?1, ?2)", params![image.as_bytes(), name]);
        done.map(drop).map_err(|e| failed("recording an image", e))
    }

    /// It has gone.
    pub fn disown(&mut self, image: &Digest) -> Result<()> {
        let done = self.connection.execute("DELETE FROM image WHERE digest = ?1", [image.as_bytes()]);
        done.map(drop).map_err(|e| failed("forgetting an image", e))
    }

    /// The images that are there for snapshots only.
    pub fn owned(&self) -> Result<Vec<(Digest, String)>> {
        let tried = "listing images of snapshots";
        let mut statement = self.connection.prepare("SELECT digest, name FROM image").map_err(|e| failed(tried, e))?;
        let rows = statement.query_map([], |row| Ok((Digest::from_bytes(row.get::<_, [u8; 32]>(0)?), row.get(1)?)));
        rows.and_then(Iterator::collect).map_err(|e| failed(tried, e))
    }

    /// The numbers of all snapshots.
    pub fn ids(&self) -> Result<BTreeSet<i64>> {
        let tried = "listing snapshots";
        let mut statement = self.connection.prepare("SELECT id FROM snapshot").map_err(|e| failed(tried, e))?;
        let rows = statement.query_map([], |row| row.get(0));
        rows.and_then(Iterator::collect).map_err(|e| failed(tried, e))
    }

    fn find(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Option<Record>> {
        Ok(self.select(&format!("snapshot.{condition}"), values)?.pop())
    }

    fn select(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Record>> {
        let tried = "looking up snapshots";
        let query = format!(
            "SELECT snapshot.id, snapshot.name, parent.name, snapshot.kind, snapshot.created, snapshot.updated, snapshot.labels,
                    snapshot.size, snapshot.inodes, image, layers, total, reference
             FROM snapshot LEFT JOIN snapshot AS parent ON parent.id = snapshot.parent
             LEFT JOIN remote ON remote.snapshot = snapshot.id WHERE {condition}"
        );
        let mut statement = self.connection.prepare(&query).map_err(|e| failed(tried, e))?;
        let rows = statement.query_map(values, record);
        rows.and_then(Iterator::collect).map_err(|e| failed(tried, e))
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let wrong = |column, why: String| rusqlite::Error::InvalidColumnType(column, why, rusqlite::types::Type::Text);
    let unsigned = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let labels: String = row.get(6)?;
    let remote = match row.get::<_, Option<[u8; 32]>>(9)? {
        Some(image) => {
            Some(Remote { image: Digest::from_bytes(image), layers: row.get(10)?, total: row.get(11)?, reference: row.get(12)? })
        }
        None => None,
    };
    Ok(Record {
        id: row.get(0)?,
        name: row.get(1)?,
        parent: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        kind: match row.get::<_, i64>(3)? {
            1 => Kind::View,
            2 => Kind::Active,
            3 => Kind::Committed,
            other => return Err(wrong(3, format!("kind {other}"))),
        },
        created: row.get(4)?,
        updated: row.get(5)?,
        labels: serde_json::from_str(&labels).map_err(|e| wrong(6, e.to_string()))?,
        usage: Usage { size: unsigned(7)?, inodes: unsigned(8)? },
        remote,
    })
}

/// The number of a new snapshot.
fn insert(transaction: &Connection, new: &New) -> Result<i64, Status> {
    let parent = match new.parent.as_str() {
        "" => None,
        parent => Some(committed(transaction, parent)?),
    };
    if id_of(transaction, &new.name)?.is_some() {
        return Err(Status::new(Code::AlreadyExists, format!("snapshot {} exists", new.name)));
    }
    let labels = serde_json::to_string(&new.labels).expect("the keys are strings");
    let query =
        "INSERT INTO snapshot (name, parent, kind, created, updated, labels, size, inodes) VALUES (?1, ?2, ?3, ?4, ?4, ?5, 0, 0)";
    transaction.execute(query, params![new.name, parent, new.kind as i64, now(), labels]).map_err(|e| failed(RECORDING, e))?;
    let id = transaction.last_insert_rowid();
    if let Some(Remote { image, layers, total, reference }) = &new.remote {
        let values = params![id, image.as_bytes(), layers, total, reference];
        transaction.execute("INSERT INTO remote VALUES (?1, ?2, ?3, ?4, ?5)", values).map_err(|e| failed(RECORDING, e))?;
    }
    Ok(id)
}

fn begin<'a>(connection: &'a mut Connection, tried: &str) -> Result<rusqlite::Transaction<'a>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| failed(tried, e))
}

fn id_of(connection: &Connection, name: &str) -> Result<Option<i64>> {
    let found = connection.query_row("SELECT id FROM snapshot WHERE name = ?1", [name], |row| row.get(0)).optional();
    found.map_err(|e| failed("looking up a snapshot", e))
}

fn committed(connection: &Connection, name: &str) -> Result<i64, Status> {
    let query = "SELECT id, kind FROM snapshot WHERE name = ?1";
    let found = connection.query_row(query, [name], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).optional();
    match found.map_err(|e| failed("looking up a snapshot", e))? {
        Some((id, kind)) if kind == Kind::Committed as i64 => Ok(id),
        Some(_) => Err(Status::new(Code::InvalidArgument, format!("parent snapshot {name} is not committed"))),
        None => Err(Status::new(Code::NotFound, format!("parent snapshot {name} does not exist"))),
    }
}

fn not_found(name: &str) -> Status {
    Status::new(Code::NotFound, format!("snapshot {name} does not exist"))
}

fn failed(tried: &str, cause: rusqlite::Error) -> Error {
    classified(format!("{tried} in the database of snapshots"), cause)
}

/// SQLite's integers are signed; no count of ours comes near the limit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, parent: &str, kind: Kind) -> New {
        New { name: name.into(), parent: parent.into(), kind, labels: BTreeMap::new(), remote: None }
    }

    #[test]
    fn snapshots_follow_their_states_and_are_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Records::open(dir.path()).unwrap();
        let none = |_| Ok(());
        let remote = Remote { image: Digest::of(b"image"), layers: 1, total: 2, reference: "host/a:1".into() };
        let labels = BTreeMap::from([(super::super::TARGET.to_owned(), "sha256:ab".to_owned())]);
        let base = New { labels: labels.clone(), remote: Some(remote.clone()), ..new("base", "", Kind::Committed) };
        records.add(&base, none).unwrap();
        let active = records.add(&new("a", "base", Kind::Active), none).unwrap();
        let code = |status: Status| status.code;
        for (again, wanted) in [
            (new("a", "base", Kind::Active), Code::AlreadyExists),
            (new("b", "none", Kind::Active), Code::NotFound),
            (new("b", "a", Kind::Active), Code::InvalidArgument),
        ] {
            assert_eq!(records.add(&again, none).map_err(code), Err(wanted), "{again:?}");
        }
        let failing = |_| Err(Error::new(Outcome::NoSpace, "making a directory"));
        assert_eq!(records.add(&new("b", "", Kind::Active), failing).map_err(code), Err(Code::ResourceExhausted));
        assert_eq!(records.get("b").map_err(code), Err(Code::NotFound));

        assert_eq!(records.remove("base").map_err(code), Err(Code::FailedPrecondition));
        let usage = Usage { size: 7, inodes: 2 };
        assert_eq!(records.commit("base", "c", &labels, usage).map_err(code), Err(Code::FailedPrecondition));
        assert_eq!(records.commit("a", "base", &labels, usage).map_err(code), Err(Code::AlreadyExists));
        records.commit("a", "c", &labels, usage).unwrap();
        records.own(&remote.image, "host/a:1").unwrap();
        drop(records);

        let mut records = Records::open(dir.path()).unwrap();
        let chain = records.chain("c").unwrap();
        assert_eq!(chain.iter().map(|r| (r.name.as_str(), r.id)).collect::<Vec<_>>(), [("c", active.id), ("base", 1)]);
        assert_eq!((chain[0].kind, chain[0].usage, &chain[1].remote), (Kind::Committed, usage, &Some(remote.clone())));
        // A layer that was unpacked is none that anybody else may have.
        assert_eq!(records.remote("sha256:ab", "").unwrap().unwrap().name, "base");
        assert_eq!(records.remote("sha256:ab", "base").unwrap(), None);
        assert_eq!(records.owned().unwrap(), [(remote.image, "host/a:1".to_owned())]);
        assert_eq!(records.set_labels("c", &BTreeMap::new()).unwrap().labels, BTreeMap::new());
        records.remove("c").unwrap();
        records.remove("base").unwrap();
        assert!(records.ids().unwrap().is_empty() && records.all().unwrap().is_empty());
    }

    #[test]
    fn layers_of_an_image_are_added_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Records::open(dir.path()).unwrap();
        let layer = |name: &str, parent: &str| new(name, parent, Kind::Committed);
        records.add_layers(&[layer("1", ""), layer("2", "1")]).unwrap();
        let code = records.add_layers(&[layer("3", "2"), layer("4", "none")]).map_err(|status| status.code);
        assert_eq!(code, Err(Code::NotFound));
        let names: Vec<_> = records.all().unwrap().into_iter().map(|record| (record.name, record.parent)).collect();
        assert_eq!(names, [("1".to_owned(), String::new()), ("2".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn a_database_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Records::open(dir.path()).unwrap());
        Connection::open(dir.path().join("db")).unwrap().pragma_update(None, "user_version", 9).unwrap();
        assert_eq!(Records::open(dir.path()).unwrap_err().outcome(), Outcome::Unsupported);
    }
}
