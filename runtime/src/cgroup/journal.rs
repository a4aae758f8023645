//! What an update has written, so that one that fails half-way leaves the old limits.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::file;
use crate::error::Error;

/// The changes so far, in their order.
#[derive(Debug, Default)]
pub(super) struct Journal(RefCell<Vec<Change>>);

#[derive(Debug)]
struct Change {
    dir: PathBuf,
    file: String,
    back: String,
}

impl Journal {
    /// `written` went to `file`, which held `old` before. A file that shows nothing of what it holds cannot be brought back.
    pub(super) fn note(&self, dir: &Path, file: &str, old: &str, written: &str) {
        if let Some(back) = line_back(file, old, written) {
            self.0.borrow_mut().push(Change { dir: dir.to_owned(), file: file.to_owned(), back });
        }
    }

    /// Brings back what was there, last change first: each order of writes that the kernel took is one that it takes backwards.
    pub(super) fn undo(self) -> Vec<Error> {
        let changes = self.0.into_inner();
        changes.iter().rev().filter_map(|change| file::write(&change.dir, &change.file, &change.back).err()).collect()
    }
}

/// What to write to `file` so that it holds `old` again after `written`.
fn line_back(file: &str, old: &str, written: &str) -> Option<String> {
    let mut words = written.split_whitespace();
    let (key, more) = (words.next().unwrap_or_default(), words.next().is_some());
    if more && let Some(neutral) = neutral(file) {
        let line = old.lines().find(|line| line.split_whitespace().next() == Some(key));
        return Some(line.map_or_else(|| format!("{key} {neutral}"), str::to_owned));
    }
    match file {
        "memory.oom_control" => old.lines().find_map(|line| line.strip_prefix("oom_kill_disable ")).map(str::to_owned),
        // One write(2) of nothing is no write: an empty list is a newline.
        _ => Some(old.lines().next().filter(|line| !line.is_empty()).unwrap_or("\n").to_owned()),
    }
}

/// For a file with a line for each device: what a device has that is not listed. `None`: a file of one line.
fn neutral(file: &str) -> Option<&'static str> {
    match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        "rdma.max" => Some("hca_handle=max hca_object=max"),
        "net_prio.ifpriomap" => Some("0"),
        _ if file.starts_with("blkio.throttle.") => Some("0"),
        _ if file.starts_with("blkio.") && file.ends_with("_device") => Some("default"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_gets_its_old_content_in_the_form_it_takes() {
        let cases = [
            ("memory.max", "max", "4096", Some("max")),
            ("cpu.max", "max 100000", "5000 10000", Some("max 100000")),
            ("cpuset.cpus", "", "0", Some("\n")),
            ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0", "0", Some("1")),
            ("memory.oom_control", "under_oom 0", "0", None),
            ("io.weight", "default 100\n8:0 200", "300", Some("default 100")),
            ("io.weight", "default 100\n8:0 200", "8:0 300", Some("8:0 200")),
            ("io.weight", "default 100", "8:0 300", Some("8:0 default")),
            ("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max", "8:0 wbps=7", Some("8:0 rbps=1 wbps=max riops=max wiops=max")),
            ("io.max", "8:0 rbps=1", "8:16 wbps=7", Some("8:16 rbps=max wbps=max riops=max wiops=max")),
            ("blkio.throttle.read_bps_device", "", "8:0 9", Some("8:0 0")),
            ("blkio.bfq.weight_device", "", "8:0 9", Some("8:0 default")),
            ("net_prio.ifpriomap", "lo 0\neth0 3", "eth0 5", Some("eth0 3")),
            ("rdma.max", "mlx hca_handle=2 hca_object=max", "mlx hca_handle=9", Some("mlx hca_handle=2 hca_object=max")),
        ];
        for (file, old, written, back) in cases {
            assert_eq!(line_back(file, old, written).as_deref(), back, "{file} {old:?} {written:?}");
        }
    }

    #[test]
    fn changes_are_undone_last_first() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::default();
        std::fs::write(dir.path().join("pids.max"), "x").unwrap();
        for (old, written) in [("1", "2"), ("2", "3")] {
            journal.note(dir.path(), "pids.max", old, written);
        }
        journal.note(dir.path(), "gone", "1", "2");
        let failed = journal.undo();
        assert_eq!(std::fs::read_to_string(dir.path().join("pids.max")).unwrap(), "1");
        assert!(failed.len() == 1 && failed[0].one_line().contains("gone"), "{failed:?}");
    }
}
