//! A checksum over everything that the database says.
//!
//! SQLite notices damage to its structure, and in its write-ahead log; a bit that flips in a name or a digest it hands out as if it had been
//! written. So the row `checksum` of the table `state` has the digest of all other rows of all tables, renewed by every transaction. A
//! database is sealed once it has [`SEALED`] for its application id; one from before there were seals has 0, and is sealed by its next
//! transaction.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::digest::{Digest, Hasher};

/// "TLdb".
const SEALED: i64 = 0x544c_6462;
const KEY: &str = "checksum";

/// Seals what a transaction is about to write.
pub(super) fn renew(transaction: &Connection) -> rusqlite::Result<()> {
    let digest = digest(transaction)?;
    transaction.execute("INSERT OR REPLACE INTO state VALUES (?1, ?2)", params![KEY, digest.to_string()])?;
    if application(transaction)? != SEALED {
        transaction.pragma_update(None, "application_id", SEALED)?;
    }
    Ok(())
}

/// What is wrong with the database, if anything is.
pub(super) fn flaw(connection: &Connection) -> rusqlite::Result<Option<String>> {
    // One look at one state, whoever writes meanwhile.
    let look = connection.unchecked_transaction()?;
    let said: String = look.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Ok(Some(said));
    }
    let application = application(&look)?;
    let noted = look.query_row("SELECT value FROM state WHERE name = ?1", [KEY], |row| row.get::<_, String>(0)).optional()?;
    match (application, noted) {
        (0, None) => Ok(None),
        (SEALED, Some(noted)) if noted == digest(&look)?.to_string() => Ok(None),
        (SEALED, Some(_)) => Ok(Some("its rows are not those that its checksum was made of".to_owned())),
        (other, noted) => {
            Ok(Some(format!("its application id is {other}, and it has {} checksum", if noted.is_some() { "a" } else { "no" })))
        }
    }
}

fn application(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "application_id", |row| row.get(0))
}

/// Every value of every row of every table but the checksum, with its type and length.
fn digest(connection: &Connection) -> rusqlite::Result<Digest> {
    let mut hasher = Hasher::default();
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    let mut statement = connection.prepare(tables)?;
    let tables: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for table in tables {
        hasher.update(format!("table {table}\n").as_bytes());
        let but = if table == "state" { format!(" WHERE name <> '{KEY}'") } else { String::new() };
        let query = format!("SELECT * FROM \"{}\"{but} ORDER BY rowid", table.replace('"', "\"\""));
        let mut statement = connection.prepare(&query)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                let (kind, number, bytes): (u8, u64, &[u8]) = match row.get_ref(column)? {
                    ValueRef::Null => (0, 0, b""),
                    ValueRef::Integer(number) => (1, number.cast_unsigned(), b""),
                    ValueRef::Real(number) => (2, number.to_bits(), b""),
                    ValueRef::Text(text) => (3, text.len() as u64, text),
                    ValueRef::Blob(bytes) => (4, bytes.len() as u64, bytes),
                };
                hasher.update(&[kind]);
                hasher.update(&number.to_le_bytes());
                hasher.update(bytes);
            }
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::super::{Db, ImageRow, ImageState, NewImage};
    use super::*;
    use crate::error::Outcome;

    fn filled(dir: &std::path::Path) -> Vec<u8> {
        let mut db = Db::open(dir).unwrap();
        for n in 0..5u8 {
            let (digest, name) = (Digest::of(&[n]), format!("registry.example/team/app{n}:1"));
            let new = NewImage {
                digest,
                name: &name,
                reference: &name,
                state: ImageState::Complete,
                bytes_total: 1000,
                content_bytes: 3000,
                entries: 30,
            };
            db.add_image(&new).unwrap();
            db.name_image(&digest, &format!("other{n}:latest"), &name).unwrap();
            db.pin(&format!("container{n}"), &digest).unwrap();
        }
        db.set_boot("a boot").unwrap();
        drop(db);
        std::fs::read(dir.join("db")).unwrap()
    }

    type Said = (Vec<ImageRow>, Vec<(String, Digest)>, Option<String>);

    fn said(db: &Db) -> crate::error::Result<Said> {
        let mut images = db.images()?;
        images.iter_mut().for_each(|image| image.created = 0);
        Ok((images, db.all_pins()?, db.boot()?))
    }

    #[test]
    fn no_flipped_bit_changes_what_the_database_says() {
        let dir = tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
        let bytes = filled(dir.path());
        let right = said(&Db::open(dir.path()).unwrap()).unwrap();
        assert_eq!(right.0.len(), 5);
        let (mut refused, mut harmless) = (0, 0);
        // Where something is; most of a small database is empty.
        let places = (0..bytes.len()).filter(|at| *at < 100 || bytes[*at] != 0);
        for (n, at) in places.enumerate().filter(|(n, at)| *at < 100 || n % 3 == 0) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (n % 8);
            for log in ["db-wal", "db-shm"] {
                drop(std::fs::remove_file(dir.path().join(log)));
            }
            std::fs::write(dir.path().join("db"), &flipped).unwrap();
            match Db::open(dir.path()).and_then(|db| said(&db)) {
                Ok(found) => {
                    assert_eq!(found, right, "byte {at} flipped");
                    harmless += 1;
                }
                Err(error) => {
                    // The version of the schema and that of the file format.
                    let version = matches!(at, 18 | 19 | 44..48 | 60..64);
                    let known = error.outcome() == Outcome::Integrity || version;
                    assert!(known, "byte {at} flipped: {error:?}");
                    assert!(error.one_line().contains("database"), "byte {at} flipped: {error:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 400, "{refused} refused, {harmless} harmless");
    }

    #[test]
    fn a_damaged_log_leaves_what_was_committed_before_the_damage() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let before = said(&Db::open(dir.path()).unwrap()).unwrap();
        let mut db = Db::open(dir.path()).unwrap();
        db.set_boot("another boot").unwrap();
        let after = said(&db).unwrap();
        // As after a crash: the log was not brought into the file.
        let crashed = tempfile::tempdir().unwrap();
        let (file, log) = (std::fs::read(dir.path().join("db")).unwrap(), std::fs::read(dir.path().join("db-wal")).unwrap());
        for at in (0..log.len()).step_by(41) {
            let mut flipped = log.clone();
            flipped[at] ^= 0x10;
            drop(std::fs::remove_file(crashed.path().join("db-shm")));
            std::fs::write(crashed.path().join("db"), &file).unwrap();
            std::fs::write(crashed.path().join("db-wal"), &flipped).unwrap();
            let found = said(&Db::open(crashed.path()).unwrap()).unwrap();
            assert!(found == before || found == after, "byte {at} of the log flipped: {found:?}");
        }
    }

    #[test]
    fn a_database_from_before_there_were_seals_is_sealed_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let old = Connection::open(dir.path().join("db")).unwrap();
        old.execute("DELETE FROM state WHERE name = 'checksum'", []).unwrap();
        assert!(flaw(&old).unwrap().unwrap().contains("no checksum"));
        old.pragma_update(None, "application_id", 0).unwrap();
        old.execute("UPDATE name SET name = 'renamed:1' WHERE name = 'other1:latest'", []).unwrap();
        let mut db = Db::open(dir.path()).unwrap();
        db.set_boot("x").unwrap();
        assert_eq!(application(&old).unwrap(), SEALED);
        old.execute("UPDATE name SET name = 'renamed:2' WHERE name = 'renamed:1'", []).unwrap();
        let error = Db::open(dir.path()).unwrap_err();
        assert!(error.outcome() == Outcome::Integrity && error.one_line().contains("checksum"), "{error:?}");
    }
}
