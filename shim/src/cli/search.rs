//! Where this program was installed, and what else is.

use std::path::Path;

use towline_runtime::{Error, Result};
use towline_shim::options::Search;

/// Where the runtime's binary may be.
pub fn search() -> Result<Search> {
    let own = std::env::current_exe().map_err(|cause| Error::sys("finding the shim's own binary", cause))?;
    let beside = own.parent().map(Path::to_owned).unwrap_or_default();
    let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    Ok(Search { beside, path })
}
