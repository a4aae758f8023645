//! Where programs read in large files, and how far it is worth fetching ahead of them.
//!
//! A read that goes on where the one before it ended, or where what was fetched ahead of it ends, is sequential: the window doubles with each.
//! Any other begins anew and brings nothing along. Reads of what is here are not seen, since the kernel serves them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// Readers that are remembered.
const READERS: usize = 32;
/// How far from the expected place a read still counts as going on, bytes: the kernel's own readahead asks for some of it out of order.
const SLACK: u64 = 64 << 10;
/// The first window, bytes of content.
const FIRST: u64 = 64 << 10;

/// The readers of an image's large files.
#[derive(Debug, Default)]
pub(super) struct Reads {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The latest last.
    readers: Vec<Reader>,
    /// Files that were read from, by layer and place.
    files: HashSet<(usize, u64)>,
}

#[derive(Debug)]
struct Reader {
    layer: usize,
    file: u64,
    /// Where its last read ended.
    next: u64,
    /// Up to where was fetched ahead of it.
    ahead: u64,
    window: u64,
}

impl Reads {
    /// Notes a read of `range` in the large file that begins at `file` in a layer's data file. What is to be fetched ahead of it, empty where
    /// nothing is; `max` is the largest window.
    pub fn read(&self, layer: usize, file: u64, range: &Range<u64>, max: u64) -> Range<u64> {
        let mut state = self.state();
        let goes_on = |reader: &Reader| {
            let expected = reader.next.saturating_sub(SLACK)..=reader.ahead.max(reader.next).saturating_add(SLACK);
            reader.layer == layer && reader.file == file && expected.contains(&range.start)
        };
        let known = state.readers.iter().position(goes_on).map(|at| state.readers.remove(at));
        if state.readers.len() == READERS {
            state.readers.remove(0);
        }
        let Some(mut reader) = known else {
            state.readers.push(Reader { layer, file, next: range.end, ahead: range.end, window: 0 });
            return range.end..range.end;
        };
        let mut ahead = range.end..range.end;
        // A read of what was read already says nothing.
        if range.end > reader.next {
            reader.next = range.end;
            reader.ahead = reader.ahead.max(range.end);
            // As long as half of the window is still on its way, more would only delay it.
            if reader.ahead - range.end <= reader.window / 2 {
                reader.window = (reader.window * 2).max(FIRST).min(max);
                ahead = reader.ahead..range.end.saturating_add(reader.window).max(reader.ahead);
                reader.ahead = ahead.end;
            }
        }
        state.readers.push(reader);
        ahead
    }

    /// Whether this file is read from for the first time.
    pub fn is_first(&self, layer: usize, file: u64) -> bool {
        self.state().files.insert((layer, file))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1 << 10;

    /// Reads ranges one after the other; how many bytes each fetches ahead.
    fn ahead(reads: &[Range<u64>], max: u64) -> Vec<u64> {
        let state = Reads::default();
        reads.iter().map(|range| state.read(0, 0, range, max)).map(|ahead| ahead.end - ahead.start).collect()
    }

    #[test]
    fn windows_double_while_a_program_reads_on() {
        let page = |n: u64| n * K..(n + 4) * K;
        for (name, reads, max, wanted) in [
            ("random reads", vec![page(0), page(900), page(400), page(4000)], 1 << 20, vec![0, 0, 0, 0]),
            ("one page again and again", vec![page(0); 4], 1 << 20, vec![0, 0, 0, 0]),
            (
                "each where the last window ends",
                vec![0..64 * K, 64 * K..128 * K, 192 * K..256 * K, 384 * K..448 * K],
                1 << 20,
                vec![0, 64 * K, 128 * K, 256 * K],
            ),
            ("every read is seen", vec![page(0), page(4), page(8), page(48)], 1 << 20, vec![0, 64 * K, 0, 108 * K]),
            ("up to the largest", vec![page(0), page(4), page(72), page(140)], 64 * K, vec![0, 64 * K, 64 * K, 64 * K]),
            ("not at all", vec![page(0), page(4), page(8)], 0, vec![0, 0, 0]),
        ] {
            assert_eq!(ahead(&reads, max), wanted, "{name}");
        }
    }

    #[test]
    fn readers_do_not_disturb_each_other_and_are_forgotten() {
        let state = Reads::default();
        let read = |file: u64, n: u64| {
            let ahead = state.read(1, file, &(file + n * 4 * K..file + (n + 1) * 4 * K), 1 << 20);
            ahead.end - ahead.start
        };
        assert_eq!([read(0, 0), read(1 << 30, 0), read(0, 1), read(1 << 30, 1)], [0, 0, FIRST, FIRST]);
        (0..READERS as u64).for_each(|n| assert_eq!(read(2 << 30, n * 1000), 0));
        assert_eq!(read(0, 2), 0, "it is remembered for ever");
        assert!(state.is_first(1, 0) && !state.is_first(1, 0) && state.is_first(2, 0));
    }
}
