//! Runs: programs that open one file after the other of the same directory. What else is in it is fetched ahead, the more the more of it
//! was opened.
//!
//! Nearness in the blob does not say it: the files of a directory have its subdirectories between them, and programs open them in no order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::tree::erofs::read::{StoredTree, VisitedFile};

/// Number of a directory; 0 stands for none.
type Directory = u32;

/// How many files of a directory must have been waited for: one is chance.
const EVIDENCE: u32 = 2;
/// What may be fetched ahead in a directory for the first file that is evidence, bytes; doubles with each that follows.
const FIRST: u64 = 256 << 10;
/// How often it doubles.
const DOUBLINGS: u32 = 2;

/// The directories of an image, and in which of them programs wait.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// For each layer the directory of each of its pieces that is a whole file; known some time after the image was attached.
    directories: OnceLock<Vec<Vec<Directory>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waited: HashMap<Directory, u32>,
    /// What is to be fetched, the latest last.
    open: Vec<Run>,
}

/// A directory that is worth being fetched further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub layer: usize,
    pub directory: Directory,
    /// Where to go on in the blob.
    pub from: u64,
    /// Bytes that may still be fetched.
    pub left: u64,
    /// Whether the part before the first file that was waited for is being looked at.
    pub wrapped: bool,
}

impl Runs {
    /// Learns in which directory each file is. `number` gives layer and number in the layer of the piece that a file is.
    pub fn learn(&self, tree: &StoredTree, files: &[usize], mut number: impl FnMut(&VisitedFile) -> Option<(usize, usize)>) {
        let mut directories: Vec<Vec<Directory>> = files.iter().map(|count| vec![0; *count]).collect();
        tree.for_each_file(&mut |visited| {
            if let Some((layer, file)) = number(&visited) {
                directories[layer][file] = visited.directory;
            }
        });
        // Learnt already where the image was attached twice: it is the same then.
        drop(self.directories.set(directories));
    }

    /// Notes that a program waited for a file, which ends at `end` in the blob. Whether there is a run now.
    pub fn waited(&self, layer: usize, file: usize, end: u64) -> bool {
        let Some(directory) = self.directory(layer, file) else { return false };
        let mut state = self.state();
        let count = state.waited.entry(directory).or_default();
        *count += 1;
        let Some(more) = count.checked_sub(EVIDENCE) else { return false };
        let more = FIRST << more.min(DOUBLINGS);
        let known = state.open.iter().position(|run| (run.layer, run.directory) == (layer, directory));
        let left = known.map_or(0, |at| state.open.remove(at).left);
        state.open.push(Run { layer, directory, from: end, left: left + more, wrapped: false });
        true
    }

    /// The run to be fetched next.
    pub fn latest(&self) -> Option<Run> {
        self.state().open.last().copied()
    }

    /// Notes that a run was fetched over `range`, or that nothing is left of it from `run.from` on.
    pub fn advance(&self, run: Run, range: Option<Range<u64>>) {
        let mut state = self.state();
        let Some(at) = state.open.iter().position(|open| (open.layer, open.directory) == (run.layer, run.directory)) else {
            return;
        };
        let open = &mut state.open[at];
        match range {
            // A program may have waited elsewhere in it meanwhile: then that is where it goes on.
            Some(range) => {
                open.left = open.left.saturating_sub(range.end - range.start);
                if open.from == run.from {
                    open.from = range.end;
                }
            }
            None if run.wrapped => open.left = 0,
            None => (open.from, open.wrapped) = (0, true),
        }
        if open.left == 0 {
            state.open.remove(at);
        }
    }

    /// Whether a file belongs to a run.
    pub fn has(&self, run: &Run, file: usize) -> bool {
        self.directory(run.layer, file) == Some(run.directory)
    }

    fn directory(&self, layer: usize, file: usize) -> Option<Directory> {
        self.directories.get()?.get(layer)?.get(file).copied().filter(|directory| *directory != 0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::sample::{file, layer};
    use crate::tree::{erofs, merge::merge};

    fn name(n: usize) -> String {
        format!("file {n}")
    }

    /// Files 0 to 9 in directory a, 10 to 19 in b, all in layer 0.
    fn runs() -> Runs {
        let path = |n: usize| format!("{}/{n}", if n < 10 { "a" } else { "b" });
        let entries: Vec<_> = (0..20).map(|n| file(&path(n), name(n).as_bytes())).collect();
        let stored = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(stored.path(), erofs::write(&merge(&[layer(entries)]).unwrap()).unwrap()).unwrap();
        let runs = Runs::default();
        let known: HashMap<Digest, usize> = (0..20).map(|n| (Digest::of(name(n).as_bytes()), n)).collect();
        runs.learn(&StoredTree::open(stored.path()).unwrap(), &[20], |file| Some((0, *known.get(&file.digest)?)));
        runs
    }

    #[test]
    fn a_second_file_makes_a_run_of_its_directory() {
        let runs = runs();
        assert!(!runs.waited(0, 3, 400) && !runs.waited(0, 12, 1300), "one file each is no run");
        assert_eq!(runs.latest(), None);
        assert!(runs.waited(0, 5, 600));
        let run = runs.latest().unwrap();
        assert_eq!((run.from, run.left, run.wrapped), (600, FIRST, false));
        let members: Vec<usize> = (0..20).filter(|n| runs.has(&run, *n)).collect();
        assert_eq!(members, (0..10).collect::<Vec<_>>());

        runs.advance(run, Some(700..1000));
        let next = runs.latest().unwrap();
        assert_eq!((next.from, next.left), (1000, FIRST - 300));
        assert!(runs.waited(0, 13, 1400), "the other directory is a run, too");
        assert_eq!(runs.latest().unwrap().from, 1400);
        let other = runs.latest().unwrap();
        runs.advance(other, None);
        let other = runs.latest().unwrap();
        assert_eq!((other.from, other.wrapped), (0, true));
        runs.advance(other, None);
        assert_eq!(runs.latest(), Some(next), "what is fetched makes place for the one before");
        runs.advance(next, Some(1000..1000 + FIRST));
        assert_eq!(runs.latest(), None);
    }

    #[test]
    fn nothing_is_a_run_before_the_directories_are_known() {
        let runs = Runs::default();
        assert!((0..5).all(|n| !runs.waited(0, n, 100)));
        assert_eq!(runs.latest(), None);
    }
}
