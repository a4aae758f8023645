//! Credentials that clients brought along, kept so that a daemon that was killed can go on where it stood.
//!
//! They live in the state directory, which does not outlive a reboot, in a file that only its owner may read.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::protocol::Credentials;
use crate::error::{Error, Result};

/// Credentials by `HOST[:PORT][/PATH]`.
pub struct CredentialStore {
    path: PathBuf,
    known: Mutex<HashMap<String, Credentials>>,
}

impl std::fmt::Debug for CredentialStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CredentialStore({})", self.path.display())
    }
}

impl CredentialStore {
    /// Reads what an earlier daemon kept below `state`.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join("credentials.json");
        let known = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::io("reading", &path, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(e) => return Err(Error::io("reading", &path, e)),
        };
        Ok(Self { path, known: Mutex::new(known) })
    }

    /// What is known for a repository: that of the longest path.
    pub fn get(&self, host: &str, repository: &str) -> Option<Credentials> {
        let known = self.known.lock().expect("no holder of this lock panics");
        let full = format!("{host}/{repository}");
        let mut scope = full.as_str();
        loop {
            if let Some(credentials) = known.get(scope) {
                return Some(credentials.clone());
            }
            scope = &scope[..scope.rfind('/')?];
        }
    }

    /// Keeps credentials for a host or a part of it.
    pub fn keep(&self, scope: &str, credentials: Credentials) -> Result<()> {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.insert(scope.to_owned(), credentials);
        let dir = self.path.parent().expect("the file is in the state directory");
        // Temporary files are made with mode 0600.
        let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
        let text = serde_json::to_vec(&*known).expect("the keys are strings");
        new.write_all(&text).map_err(|e| Error::io("writing", &self.path, e))?;
        new.persist(&self.path).map_err(|e| Error::io("naming", &self.path, e.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn kept_for_the_next_daemon_and_for_nobody_else() {
        let state = tempfile::tempdir().unwrap();
        let credentials = Credentials { username: "u".into(), secret: "s3cret".into() };
        CredentialStore::open(state.path()).unwrap().keep("localhost:5000", credentials.clone()).unwrap();
        let again = CredentialStore::open(state.path()).unwrap();
        let narrow = Credentials { username: "u".into(), secret: "other".into() };
        again.keep("localhost:5000/team/a", narrow).unwrap();
        for (host, repository, wanted) in [
            ("localhost:5000", "x", Some("s3cret")),
            ("localhost:5000", "team/b", Some("s3cret")),
            ("localhost:5000", "team/a", Some("other")),
            ("localhost:5000", "team/a/b", Some("other")),
            ("localhost:5001", "x", None),
        ] {
            assert_eq!(again.get(host, repository).map(|found| found.secret).as_deref(), wanted, "{host}/{repository}");
        }
        let mode = std::fs::metadata(state.path().join("credentials.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{credentials:?} {again:?}").contains("s3cret"));
    }
}
