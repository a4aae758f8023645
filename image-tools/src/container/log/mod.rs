//! What a container wrote, in files that it is appended to: `log`, and `log.1`, `log.2`, … for what is older where its size is limited.
//!
//! | module | does |
//! |---|---|
//! | [`entry`] | one line of a file, in two shapes |
//! | [`writer`] | appends, and begins a new file |
//! | [`reader`] | all files as one, also while they are written |
//!
//! Whoever renames files holds `log.lock` alone, whoever opens them all holds it together with others: so a reader sees each file once. The writer never waits for a
//! reader: it goes on in the old file and tries again.

pub mod entry;
pub mod reader;
pub mod writer;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which output it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all output of a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where output is kept, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Lines of Kubernetes' CRI, bytes as they came
    #[default]
    K8sFile,
    /// Lines of docker's driver; what is not UTF-8 becomes U+FFFD
    JsonFile,
    /// Nowhere
    None,
}

/// How output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keeping {
    /// The shape.
    pub driver: Driver,
    /// Bytes after which another file is begun.
    pub max_size: Option<u64>,
    /// Number of files, at least one.
    pub max_file: u32,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { driver: Driver::default(), max_size: None, max_file: 1 }
    }
}

/// Most files.
pub const MAX_FILES: u32 = 1000;

/// The file that is the `n`th oldest; 0 is the one that is written.
fn file(log: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return log.to_owned();
    }
    let mut path = log.as_os_str().to_owned();
    path.push(format!(".{n}"));
    path.into()
}

fn lock_file(log: &Path) -> PathBuf {
    log.with_extension("lock")
}
