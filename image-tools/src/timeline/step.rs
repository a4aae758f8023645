//! The steps of a timeline.

use std::time::Duration;

use serde::Serialize;
use towline_lazyfs::daemon::protocol::Progress;

/// A step and when it happened, counted from the command's start.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Time since the command's start.
    pub at: Duration,
    /// What happened.
    pub step: Step,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// The command began.
    Begin {
        /// The command.
        what: String,
    },
    /// The manifest is there.
    Manifest {
        /// Number of layers.
        layers: usize,
        /// Their compressed bytes.
        bytes: u64,
    },
    /// The indexes of all layers are there: tree and mapping table are written.
    Index {
        /// Bytes received for them.
        bytes: u64,
        /// Number of layers.
        layers: usize,
        /// Inodes of the tree.
        entries: u64,
        /// Uncompressed bytes of its files.
        content_bytes: u64,
    },
    /// The image needed no pull.
    Local {
        /// Whether all its content is local.
        complete: bool,
    },
    /// The root is mounted.
    Mounted,
    /// The runtime has made the container.
    Created,
    /// Its program runs.
    Started,
    /// It has written something.
    FirstOutput {
        /// How much had been fetched; absent where nothing had to be.
        fetched: Option<Progress>,
    },
    /// It has ended.
    Exited {
        /// Its exit code.
        code: u8,
    },
    /// All content is local, every layer verified.
    Complete {
        /// How it came.
        progress: Progress,
    },
    /// The FUSE trigger is unmounted.
    HandedOff,
    /// The daemon has left.
    DaemonGone,
    /// Something the user should know.
    Warning {
        /// One line.
        text: String,
    },
}

impl Step {
    /// Its name for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "begin",
            Self::Manifest { .. } => "manifest",
            Self::Index { .. } => "index",
            Self::Local { .. } => "image",
            Self::Mounted => "root mounted",
            Self::Created => "container created",
            Self::Started => "container started",
            Self::FirstOutput { .. } => "first output",
            Self::Exited { .. } => "container ended",
            Self::Complete { .. } => "all local",
            Self::HandedOff => "hand-off",
            Self::DaemonGone => "towlined gone",
            Self::Warning { .. } => "warning",
        }
    }

    /// More about it, for people; may be empty.
    pub fn detail(&self) -> String {
        match self {
            Self::Begin { what } => what.clone(),
            Self::Manifest { layers, bytes } => format!("{}, {} compressed", count(*layers as u64, "layer"), size(*bytes)),
            Self::Index { bytes, layers, entries, content_bytes } => format!(
                "{} for {}: {}, {} of content",
                size(*bytes),
                count(*layers as u64, "layer"),
                count(*entries, "file"),
                size(*content_bytes)
            ),
            Self::Local { complete: true } => "all its content is local".into(),
            Self::Local { complete: false } => "known, the rest of its content is fetched lazily".into(),
            Self::FirstOutput { fetched: Some(progress) } => fetched(progress),
            Self::Exited { code } => format!("exit code {code}"),
            Self::Complete { progress } => {
                format!("{} in the store, every layer verified; {} fetched", size(progress.bytes_total), size(progress.fetched()))
            }
            Self::HandedOff => "FUSE is unmounted: containers run on plain overlayfs".into(),
            Self::DaemonGone => "no process of towline serves the image any more".into(),
            Self::Warning { text } => text.clone(),
            Self::Mounted | Self::Created | Self::Started | Self::FirstOutput { fetched: None } => String::new(),
        }
    }
}

fn fetched(progress: &Progress) -> String {
    let total = progress.bytes_total.max(1);
    let percent = progress.fetched() as f64 * 100.0 / total as f64;
    format!(
        "{} fetched of {} ({percent:.1} %): {} by the profile, {} for {} on demand, {} beside them, {} in the background, {} of indexes",
        size(progress.fetched()),
        size(progress.bytes_total),
        size(progress.fetched_prefetch),
        size(progress.fetched_demand),
        count(progress.demanded_files, "file"),
        size(progress.fetched_readahead),
        size(progress.fetched_background),
        size(progress.fetched_index)
    )
}

/// A number of bytes for people, in decimal units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    // What would be shown as 1000.0 is 1.0 of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A number with its noun.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (123_456_789, "123.5 MB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn steps_read_well() {
        let progress = Progress {
            bytes_total: 1_000_000,
            bytes_local: 50_000,
            fetched_demand: 40_000,
            fetched_index: 10_000,
            demanded_files: 1,
            ..Progress::default()
        };
        assert_eq!(
            Step::FirstOutput { fetched: Some(progress) }.detail(),
            "50.0 kB fetched of 1.0 MB (5.0 %): 0 B by the profile, 40.0 kB for 1 file on demand, 0 B beside them, 0 B in the background, 10.0 kB of indexes"
        );
        assert_eq!(Step::Manifest { layers: 2, bytes: 1500 }.detail(), "2 layers, 1.5 kB compressed");
    }
}
