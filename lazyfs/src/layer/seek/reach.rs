//! Which bytes of its window a deflate stream (RFC 1951) refers to when it is entered between two blocks. It reads what was inflated without
//! error a moment ago, and looks at lengths and distances only: no output is made.

use towline_sys::inflate::WINDOW;

/// For each byte of a window of `window` bytes, whether one of the first [`WINDOW`] bytes of output is a copy of it; later ones cannot be.
/// `input` is what follows, of which `bits` bits of `value` are the beginning. `None` where that cannot be told: it ends too early, or is
/// malformed.
pub(super) fn reach(input: &[u8], bits: u8, value: u8, window: usize) -> Option<Vec<bool>> {
    let input = Bits { input, held: u32::from(value), count: u32::from(bits) };
    let mut stream = Stream { input, made: 0, marks: vec![false; window] };
    while stream.made < WINDOW {
        let is_last = stream.input.take(1)? == 1;
        match stream.input.take(2)? {
            0 => stream.stored()?,
            1 => stream.coded(&Code::fixed_lengths(), &Code::new(&[5; 30]))?,
            2 => {
                let (lengths, distances) = stream.codes()?;
                stream.coded(&lengths, &distances)?;
            }
            _ => return None,
        }
        if is_last {
            break;
        }
    }
    Some(stream.marks)
}

/// Takes bits off the front, the lowest of each byte first.
struct Bits<'a> {
    input: &'a [u8],
    held: u32,
    count: u32,
}

impl Bits<'_> {
    /// A number of `count` bits, 16 at most.
    fn take(&mut self, count: u32) -> Option<usize> {
        while self.count < count {
            let (byte, rest) = self.input.split_first()?;
            self.held |= u32::from(*byte) << self.count;
            (self.input, self.count) = (rest, self.count + 8);
        }
        let number = self.held & ((1 << count) - 1);
        (self.held, self.count) = (self.held >> count, self.count - count);
        Some(number as usize)
    }
}

/// A canonical Huffman code.
struct Code {
    /// How many symbols have a code of each length.
    counts: [usize; 16],
    /// The symbols, ascending by code.
    symbols: Vec<u16>,
}

impl Code {
    /// The code in which each symbol has the length that is said at its place; 0: none.
    fn new(lengths: &[u8]) -> Self {
        let mut counts = [0; 16];
        lengths.iter().filter(|len| **len > 0).for_each(|len| counts[usize::from(*len)] += 1);
        let mut symbols: Vec<u16> = (0..).zip(lengths).filter(|(_, len)| **len > 0).map(|(symbol, _)| symbol).collect();
        symbols.sort_by_key(|symbol| lengths[usize::from(*symbol)]);
        Self { counts, symbols }
    }

    fn fixed_lengths() -> Self {
        Self::new(&[&[8; 144][..], &[9; 112], &[7; 24], &[8; 8]].concat())
    }

    fn symbol(&self, input: &mut Bits<'_>) -> Option<usize> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= input.take(1)?;
            if code < first + count {
                return self.symbols.get(index + code.checked_sub(first)?).map(|symbol| usize::from(*symbol));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// What a symbol stands for: the least value, and how many bits are added to it.
const LENGTHS: [(usize, u32); 29] = {
    let mut table = steps(3, 4);
    table[28] = (258, 0);
    table
};
const DISTANCES: [(usize, u32); 30] = steps(1, 2);

/// Twice `of_each` values without a bit, then `of_each` with each number of bits.
const fn steps<const N: usize>(first: usize, of_each: usize) -> [(usize, u32); N] {
    let (mut table, mut value, mut n) = ([(0, 0); N], first, 0);
    while n < N {
        let bits = if n < 2 * of_each { 0 } else { (n / of_each - 1) as u32 };
        table[n] = (value, bits);
        value += 1 << bits;
        n += 1;
    }
    table
}

/// In which order a block tells the lengths of the codes that its code lengths are in.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

struct Stream<'a> {
    input: Bits<'a>,
    /// Bytes of output.
    made: usize,
    marks: Vec<bool>,
}

impl Stream<'_> {
    fn stored(&mut self) -> Option<()> {
        self.input.take(self.input.count % 8)?;
        let len = self.input.take(16)?;
        self.input.take(16)?;
        self.made += len;
        if self.made >= WINDOW {
            return Some(());
        }
        (0..len).try_for_each(|_| self.input.take(8).map(|_| ()))
    }

    /// The codes that a block begins with.
    fn codes(&mut self) -> Option<(Code, Code)> {
        let literals = self.input.take(5)? + 257;
        let all = literals + self.input.take(5)? + 1;
        let mut lengths = [0; 19];
        for place in &ORDER[..self.input.take(4)? + 4] {
            lengths[*place] = self.input.take(3)? as u8;
        }
        let code = Code::new(&lengths);
        let mut lengths: Vec<u8> = Vec::with_capacity(all);
        while lengths.len() < all {
            let (length, times) = match code.symbol(&mut self.input)? {
                16 => (*lengths.last()?, 3 + self.input.take(2)?),
                17 => (0, 3 + self.input.take(3)?),
                18 => (0, 11 + self.input.take(7)?),
                length => (length as u8, 1),
            };
            lengths.extend(std::iter::repeat_n(length, times));
        }
        let (literals, distances) = lengths.get(..all)?.split_at_checked(literals)?;
        Some((Code::new(literals), Code::new(distances)))
    }

    /// Content of a block, up to the last byte that can refer to the window.
    fn coded(&mut self, lengths: &Code, distances: &Code) -> Option<()> {
        while self.made < WINDOW {
            let symbol = lengths.symbol(&mut self.input)?;
            let Some(symbol) = symbol.checked_sub(256) else {
                self.made += 1;
                continue;
            };
            let Some(symbol) = symbol.checked_sub(1) else { return Some(()) };
            let (least, bits) = *LENGTHS.get(symbol)?;
            let len = least + self.input.take(bits)?;
            let (least, bits) = *DISTANCES.get(distances.symbol(&mut self.input)?)?;
            let distance = least + self.input.take(bits)?;
            if distance > self.made {
                let start = (self.marks.len() + self.made).checked_sub(distance)?;
                let end = (start + len).min(self.marks.len());
                self.marks[start..end].fill(true);
            }
            self.made += len;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::Random;

    #[test]
    fn what_cannot_be_read_is_no_answer_and_never_a_panic() {
        // A stored block of four bytes, the last one; a block of fixed codes that has one literal; nothing of the window is needed.
        let stored = [0b001, 4, 0, 0xfb, 0xff, 1, 2, 3, 4];
        for (name, input, marks) in [
            ("nothing", &[][..], None),
            ("a stored block", &stored, Some(10)),
            ("cut", &stored[..8], None),
            ("a kind of block that there is not", &[0b111], None),
            ("fixed codes", &[0b0110_0011, 0, 0], Some(10)),
        ] {
            let found = reach(input, 0, 0, 10);
            assert_eq!(found.as_ref().map(Vec::len), marks, "{name}");
            assert!(found.is_none_or(|marks| !marks.contains(&true)), "{name}");
        }
        let mut random = Random(3);
        for n in 0..5000 {
            let input: Vec<u8> = (0..random.below(300)).map(|_| random.below(256) as u8).collect();
            let window = random.below(WINDOW);
            if let Some(marks) = reach(&input, (n % 8) as u8, 0, window) {
                assert_eq!(marks.len(), window);
            }
        }
    }
}
