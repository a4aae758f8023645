//! Planning: which parts of a blob one request covers. Pure functions over sorted extents.

use std::ops::Range;

/// A part of a blob: a piece, or a gap between files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The piece with this number in the layer.
    Piece(usize),
    /// The gap with this number.
    Gap(usize),
}

impl Part {
    /// Its number among those of its kind.
    pub fn number(self) -> usize {
        match self {
            Self::Piece(n) | Self::Gap(n) => n,
        }
    }
}

/// How large a span may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of blob from the first to the last byte. The first part is taken whatever its size.
    pub budget: u64,
    /// Bytes between two wanted parts that are fetched along.
    pub hole: u64,
    /// Parts may overlap: several are decompressed from the same bytes.
    pub shared: bool,
}

/// The next span at or behind `from`: wanted parts in blob order, close enough for one request. `pieces` and `gaps` are extents in
/// the blob, each list ascending by start. Empty where nothing is wanted any more.
///
/// Parts that overlap (elsewhere only a hostile index has them) end up in different spans, or, where they are shared, in the same one as far
/// as they begin within the budget.
pub(super) fn plan(
    pieces: &[Range<u64>],
    gaps: &[Range<u64>],
    from: u64,
    limits: Limits,
    mut wanted: impl FnMut(Part) -> bool,
) -> Vec<Part> {
    let (mut piece, mut gap) = (first_at(pieces, from), first_at(gaps, from));
    let mut span: Vec<Part> = Vec::new();
    let (mut start, mut end) = (from, from);
    loop {
        let (part, range) = match (pieces.get(piece), gaps.get(gap)) {
            (Some(p), Some(g)) if g.start < p.start => (Part::Gap(gap), g),
            (Some(p), _) => (Part::Piece(piece), p),
            (None, Some(g)) => (Part::Gap(gap), g),
            (None, None) => return span,
        };
        match part {
            Part::Piece(_) => piece += 1,
            Part::Gap(_) => gap += 1,
        }
        if span.is_empty() {
            if wanted(part) {
                span.push(part);
                (start, end) = (range.start, range.end);
            }
            continue;
        }
        if range.start > end + limits.hole || range.start >= start + limits.budget {
            return span;
        }
        let overlaps = range.start < end;
        let fits = if limits.shared && overlaps { true } else { !overlaps && range.end - start <= limits.budget };
        if !fits || !wanted(part) {
            continue;
        }
        span.push(part);
        end = end.max(range.end);
    }
}

/// Number of the first extent that starts at or behind `offset`.
pub(super) fn first_at(extents: &[Range<u64>], offset: u64) -> usize {
    extents.partition_point(|extent| extent.start < offset)
}

/// Where a span that makes room for somebody else ends: behind the last extent that starts within `grace` of `position`, so that
/// what is nearly here still comes. `extents` are those of its pieces, ascending.
pub(super) fn cut(extents: &[Range<u64>], position: u64, grace: u64, end: u64) -> u64 {
    let started = extents.iter().take_while(|extent| extent.start < position + grace);
    started.map(|extent| extent.end).max().unwrap_or(position).clamp(position, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: usize) -> Part {
        Part::Piece(n)
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list with one extent")]
    fn spans_are_cut_where_a_new_request_is_cheaper() {
        let files = [100..200, 210..300, 305..1000, 1010..1020, 5000..5010];
        let gaps = [0..100, 200..210, 300..305, 1000..1010];
        let limits = |budget, hole| Limits { budget, hole, shared: false };
        let all = |_| true;
        type Case = (&'static str, u64, Limits, fn(Part) -> bool, Vec<Part>);
        let cases: [Case; 10] = [
            ("one part", 100, limits(0, 0), all, vec![file(0)]),
            ("up to the budget", 100, limits(205, 0), all, vec![file(0), Part::Gap(1), file(1), Part::Gap(2)]),
            (
                "a large part does not stop small ones before the budget's end",
                210,
                limits(96, 0),
                all,
                vec![file(1), Part::Gap(2)],
            ),
            ("from the middle of a part", 101, limits(10, 0), all, vec![Part::Gap(1)]),
            ("all but what is far away", 0, limits(1 << 20, 16), all, (0..4).flat_map(|n| [Part::Gap(n), file(n)]).collect()),
            (
                "over a hole",
                100,
                limits(1000, 10),
                |p| p != Part::Gap(1),
                vec![file(0), file(1), Part::Gap(2), file(2), Part::Gap(3), file(3)],
            ),
            ("not over a large hole", 100, limits(1000, 9), |p| p != Part::Gap(1), vec![file(0)]),
            ("local parts are left out", 0, limits(1 << 20, 16), |p| p == file(3), vec![file(3)]),
            ("the last", 2000, limits(1, 1), all, vec![file(4)]),
            ("nothing", 5001, limits(1, 1), all, vec![]),
        ];
        for (name, from, limits, wanted, span) in cases {
            assert_eq!(plan(&files, &gaps, from, limits, wanted), span, "{name}");
        }
        let overlapping = [0..100, 50..150, 100..120];
        assert_eq!(plan(&overlapping, &[], 0, limits(1000, 1000), all), [file(0), file(2)]);
        assert_eq!(plan(&overlapping, &[], 1, limits(1000, 1000), |p| p == file(1)), [file(1)]);
        assert_eq!(plan(&[], &[3..4], 0, limits(1, 1), all), [Part::Gap(0)]);

        let shared = |budget| Limits { budget, hole: 0, shared: true };
        let (pieces, gaps) = ([0..100, 0..100, 0..200, 100..200, 200..300], [0..100, 100..200, 200..300]);
        let first = [file(0), file(1), file(2), Part::Gap(0)];
        assert_eq!(plan(&pieces, &gaps, 0, shared(1), all), first, "all of one place, and what begins there");
        assert_eq!(plan(&pieces, &gaps, 0, shared(101), all), [&first[..], &[file(3), Part::Gap(1)]].concat());
        assert_eq!(plan(&pieces, &gaps, 1, shared(100), all), [file(3), Part::Gap(1)]);
    }

    #[test]
    fn a_span_that_yields_keeps_what_is_nearly_here() {
        let extents = [0..100, 100..200, 200..10_000, 10_000..10_100];
        for (position, grace, wanted) in
            [(0, 0, 0), (10, 0, 100), (150, 40, 200), (150, 60, 10_000), (9_000, 64, 10_000), (9_990, 64, 10_050)]
        {
            assert_eq!(cut(&extents, position, grace, 10_050), wanted, "at {position} with {grace}");
        }
    }
}
