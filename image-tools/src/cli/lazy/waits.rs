//! The waits of one container's image, with the paths of files.

use std::ops::Range;

use serde::Serialize;
use towline_lazyfs::observe::Wait;
use towline_lazyfs::observe::names::{Known, Names};

/// One wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Microseconds since 1970.
    pub begin_us: u64,
    /// Microseconds.
    pub waited_us: u64,
    /// Name of the program that waited.
    pub program: String,
    /// Thread that waited.
    pub pid: u32,
    /// A path of the file in the image.
    pub path: String,
    /// Bytes of it, for a large file.
    pub range: Option<Range<u64>>,
    /// Why it did not come.
    pub error: Option<String>,
}

impl Named {
    /// The wait with the file's path; `None` where the image has nothing of the kind.
    pub fn of(names: &Names, wait: &Wait) -> Option<Self> {
        let Known { path, range } = names.resolve(&wait.what)?;
        let Wait { begin_us, waited_us, pid, program, error, .. } = wait.clone();
        Some(Self { begin_us, waited_us, program, pid, path, range, error })
    }
}
