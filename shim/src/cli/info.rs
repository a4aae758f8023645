//! `-info`: what the runtime can do.

use towline_runtime::Result;
use towline_shim::info;

pub fn run() -> Result<()> {
    let search = super::search::search()?;
    let answer = info::answer(&super::input()?, super::REVISION, |options| search.binary(options))?;
    super::print(&answer)
}
