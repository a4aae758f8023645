//! How many files a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Outcome, Result};

/// More than this nobody needs.
const MOST: u64 = 65_536;

/// Uses what the machine allows: each file that is fetched or served and each connection has a descriptor, and shells allow but 1024.
pub fn allow() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MOST).min(MOST);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
        .map_err(|e| Error::new(Outcome::Io, format!("allowing {wanted} open files")).because(e))
}
