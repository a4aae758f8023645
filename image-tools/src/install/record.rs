//! What an installation wrote.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::file;

/// Version of the record; one with another version is refused.
const VERSION: u32 = 1;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    files: Vec<Written>,
    changes: Vec<Change>,
}

/// A file that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    path: PathBuf,
    digest: Digest,
}

/// A line of a file that others keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// The line as it was; `None` where it was added.
    pub before: Option<String>,
    /// The line as it is now.
    pub after: String,
}

/// What undoing did, and what it could not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Files that are gone, and files that are as they were.
    pub undone: Vec<PathBuf>,
    /// What somebody has changed since, in words.
    pub left: Vec<String>,
}

impl Change {
    /// The text with the change.
    pub fn apply(&self, text: &str) -> String {
        let Self { before, after, .. } = self;
        match before {
            Some(before) => {
                lines(text).map(|line| if line.trim_end() == before { format!("{after}\n") } else { line.into() }).collect()
            }
            None => {
                // Before the first table; behind the version, which comes first by custom.
                let is_version = |line: &str| line.split('=').next().is_some_and(|key| key.trim() == "version");
                match lines(text).position(is_version) {
                    Some(at) => lines(text)
                        .enumerate()
                        .map(|(n, line)| match n == at {
                            true => format!("{}\n{after}\n", line.trim_end()),
                            false => line.to_owned(),
                        })
                        .collect(),
                    None => format!("{after}\n{text}"),
                }
            }
        }
    }

    /// The text without it; `None` where it is not there any more.
    fn revert(&self, text: &str) -> Option<String> {
        let at = lines(text).position(|line| line.trim_end() == self.after)?;
        let reverted = lines(text).enumerate().filter_map(|(n, line)| match (n == at, &self.before) {
            (true, None) => None,
            (true, Some(before)) => Some(format!("{before}\n")),
            (false, _) => Some(line.to_owned()),
        });
        Some(reverted.collect())
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
}

impl Record {
    /// Writes files and changes, and records them in `record` first, so that also what was killed half-way can be undone.
    pub fn carry_out(record: &Path, files: &[(PathBuf, String)], changes: &[Change]) -> Result<()> {
        if record.exists() {
            return Err(Error::new(Outcome::Busy, "installing")
                .because(format!("{} says that it is installed", record.display()))
                .advise("undo that first (--undo)"));
        }
        if let Some((taken, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
            return Err(Error::new(Outcome::Busy, format!("writing {}", taken.display()))
                .because("it is there, and not by this command")
                .advise("move it away, or look at what would be written with --print"));
        }
        let written = files.iter().map(|(path, text)| Written { path: path.clone(), digest: Digest::of(text.as_bytes()) });
        let made = Self { version: VERSION, files: written.collect(), changes: changes.to_vec() };
        let text = serde_json::to_string_pretty(&made).expect("it has only string keys");
        file::write(record, &text)?;
        files.iter().try_for_each(|(path, text)| file::write(path, text))?;
        changes.iter().try_for_each(|change| {
            let text = std::fs::read_to_string(&change.path).map_err(|e| Error::io("reading", &change.path, e))?;
            file::write(&change.path, &change.apply(&text))
        })
    }

    /// Undoes what was recorded.
    pub fn undo(record: &Path) -> Result<Done> {
        let tried = || format!("reading {}", record.display());
        let text = match std::fs::read(record) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(Outcome::NotFound, tried()).because("nothing was installed by this command"));
            }
            text => text.map_err(|e| Error::io("reading", record, e))?,
        };
        let made: Self = serde_json::from_slice(&text).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
        if made.version != VERSION {
            let why = format!("it has version {}, this program knows {VERSION}", made.version);
            return Err(Error::new(Outcome::Unsupported, tried())
                .because(why)
                .advise("use the version of towline that wrote it"));
        }
        let mut done = Done::default();
        for Written { path, digest } in &made.files {
            match std::fs::read(path) {
                Ok(bytes) if Digest::of(&bytes) == *digest => {
                    file::remove(path)?;
                    done.undone.push(path.clone());
                }
                Ok(_) => done.left.push(format!("{} was changed since: it stays", path.display())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("reading", path, e)),
            }
        }
        for change in &made.changes {
            match std::fs::read_to_string(&change.path).map(|text| change.revert(&text)) {
                Ok(Some(text)) => {
                    file::write(&change.path, &text)?;
                    done.undone.push(change.path.clone());
                }
                Ok(None) => {
                    done.left.push(format!("{} has no line {:?} any more: it stays", change.path.display(), change.after))
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("reading", &change.path, e)),
            }
        }
        file::remove(record)?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_undone_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let before = "# mine\nversion = 2\nimports = [\"a\"]\n[grpc]\n";
        for (change, after) in [
            (Some("imports = [\"a\"]"), "# mine\nversion = 2\nIMPORTS\n[grpc]\n"),
            (None, "# mine\nversion = 2\nIMPORTS\nimports = [\"a\"]\n[grpc]\n"),
        ] {
            std::fs::write(path("config"), before).unwrap();
            let change = Change { path: path("config"), before: change.map(str::to_owned), after: "IMPORTS".into() };
            let files = [(path("new/file"), "text".to_owned()), (path("kept"), "text".to_owned())];
            Record::carry_out(&path("record"), &files, std::slice::from_ref(&change)).unwrap();
            assert_eq!(std::fs::read_to_string(path("config")).unwrap(), after);
            assert_eq!(Record::carry_out(&path("record"), &[], &[]).unwrap_err().outcome(), Outcome::Busy);
            std::fs::write(path("kept"), "changed").unwrap();
            let done = Record::undo(&path("record")).unwrap();
            assert_eq!(std::fs::read_to_string(path("config")).unwrap(), before);
            assert!(done.undone == [path("new/file"), path("config")] && done.left.len() == 1, "{done:?}");
            assert!(path("kept").exists() && !path("new/file").exists() && !path("record").exists());
            // What is there already is nobody's to overwrite.
            assert_eq!(Record::carry_out(&path("record"), &files, &[]).unwrap_err().outcome(), Outcome::Busy);
            std::fs::remove_file(path("kept")).unwrap();
        }
        assert_eq!(Record::undo(&path("record")).unwrap_err().outcome(), Outcome::NotFound);
        std::fs::write(path("record"), "{\"version\": 9, \"files\": [], \"changes\": []}").unwrap();
        assert_eq!(Record::undo(&path("record")).unwrap_err().outcome(), Outcome::Unsupported);
    }
}
