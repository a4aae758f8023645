//! Where the content of a file is cut into chunks.
//!
//! Chunks have equal lengths, but for files of which an access profile says which ranges are read: there a chunk begins and ends with each of
//! these, so that fetching them fetches nothing else.

use std::ops::Range;

/// How one file is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts<'a> {
    /// The longest chunk, bytes.
    pub chunk: u64,
    /// What is read, ascending.
    pub hot: &'a [Range<u64>],
}

impl Cuts<'_> {
    /// Length of the chunk that begins at `offset`, but for the end of the file.
    pub fn len_at(&self, offset: u64) -> u64 {
        let next = self.hot.partition_point(|range| range.end <= offset);
        let border = self.hot.get(next).map(|range| if range.start > offset { range.start } else { range.end });
        border.map_or(self.chunk, |border| self.chunk.min(border - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_where_what_is_read_begins_and_ends() {
        for (hot, wanted) in [
            (vec![], vec![0, 10, 20, 30]),
            (vec![0..4, 30..34], vec![0, 4, 14, 24, 30, 34]),
            (vec![3..5, 25..40], vec![0, 3, 5, 15, 25, 35]),
            (vec![5..10, 10..12], vec![0, 5, 10, 12, 22, 32]),
        ] {
            let cuts = Cuts { chunk: 10, hot: &hot };
            let borders = std::iter::successors(Some(0), |at| Some(at + cuts.len_at(*at)));
            assert_eq!(borders.take_while(|at| *at < 40).collect::<Vec<_>>(), wanted, "{hot:?}");
        }
    }
}
