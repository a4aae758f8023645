//! Inflating (RFC 1951, RFC 1952) from the middle of a stream: with stops between blocks, bits of a byte that was begun, and the window
//! that came before. `flate2` offers none of these; the crate that it decompresses with has them behind zlib's C interface.

use std::ffi::c_int;
use std::io;

use libz_rs_sys as zlib;

/// zlib's `avail_in` and `avail_out` are of 32 bits; more than this is left for the next step.
const MAX_STEP: usize = 1 << 30;
/// Bit of `data_type`: the last step ended right behind the header of a stream or behind a block.
const BETWEEN_BLOCKS: c_int = 128;
/// Bit of `data_type`: the block that is being read is the last one.
const LAST_BLOCK: c_int = 64;

/// The longest distance that a stream can refer back, bytes.
pub const WINDOW: usize = 32 << 10;

/// An inflater.
pub struct Inflate {
    /// On the heap: zlib's streams must not move.
    stream: Box<zlib::z_stream>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflated {
    /// Bytes of input that are done with.
    pub taken: usize,
    /// Bytes of output.
    pub made: usize,
    /// Where the input ended.
    pub place: Place,
}

/// Where in a stream an inflater is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the middle of a header, a block or a trailer.
    Within,
    /// Between two blocks, or between header and first block. So many bits (0 to 7) of the last byte belong to what comes.
    Between(u8),
    /// Behind the end. What follows is not of this stream.
    End,
}

impl Inflate {
    /// For a gzip stream with header and trailer, whose checksum is verified.
    pub fn gzip() -> io::Result<Self> {
        Self::new(15 + 16)
    }

    /// For a bare deflate stream.
    pub fn raw() -> io::Result<Self> {
        Self::new(-15)
    }

    /// For the middle of a deflate stream: `window` came before, and so many `bits` of the value are the first of what comes.
    pub fn resume(window: &[u8], bits: u8, value: u8) -> io::Result<Self> {
        let mut inflate = Self::raw()?;
        if bits > 0 {
            // SAFETY: the stream was initialised by `new` and is not freed before `drop`; the call has no other pointers.
            let code = unsafe { zlib::inflatePrime(&mut *inflate.stream, c_int::from(bits), c_int::from(value)) };
            succeeded(code)?;
        }
        if !window.is_empty() {
            let len = u32::try_from(window.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            // SAFETY: the stream is initialised as above, and `window` is readable for `len` bytes while the call copies from it.
            let code = unsafe { zlib::inflateSetDictionary(&mut *inflate.stream, window.as_ptr(), len) };
            succeeded(code)?;
        }
        Ok(inflate)
    }

    fn new(window_bits: c_int) -> io::Result<Self> {
        let mut stream = Box::<zlib::z_stream>::default();
        let size = c_int::try_from(size_of::<zlib::z_stream>()).expect("a small struct");
        // SAFETY: `stream` is a valid stream with no allocator of its own, which takes the default; the version is a static C string.
        let code = unsafe { zlib::inflateInit2_(&mut *stream, window_bits, zlib::zlibVersion(), size) };
        succeeded(code)?;
        Ok(Self { stream })
    }

    /// Inflates some of `input`; stops early behind each block if `blocks` says so. Wrong input is [`io::ErrorKind::InvalidData`]. A step
    /// that neither takes nor makes anything needs more input or more room.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], blocks: bool) -> io::Result<Inflated> {
        let (given, room) = (input.len().min(MAX_STEP), output.len().min(MAX_STEP));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given as u32;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room as u32;
        let flush = if blocks { zlib::Z_BLOCK } else { zlib::Z_NO_FLUSH };
        // SAFETY: the stream is initialised; `next_in` and `next_out` are those of live slices that are at least as long as `avail_in` and
        // `avail_out` say, and that do not overlap, since one is borrowed mutably.
        let code = unsafe { zlib::inflate(&mut *self.stream, flush) };
        let taken = given - self.stream.avail_in as usize;
        let made = room - self.stream.avail_out as usize;
        // No pointer outlives the borrow that it was made from.
        self.stream.next_in = std::ptr::null();
        self.stream.next_out = std::ptr::null_mut();
        let state = self.stream.data_type;
        let place = match code {
            zlib::Z_STREAM_END => Place::End,
            // The last block has only the trailer behind it.
            zlib::Z_OK | zlib::Z_BUF_ERROR if state & BETWEEN_BLOCKS != 0 && state & LAST_BLOCK == 0 => {
                Place::Between((state & 7) as u8)
            }
            zlib::Z_OK | zlib::Z_BUF_ERROR => Place::Within,
            zlib::Z_MEM_ERROR => return Err(io::ErrorKind::OutOfMemory.into()),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not valid deflate or gzip data")),
        };
        Ok(Inflated { taken, made, place })
    }
}

fn succeeded(code: c_int) -> io::Result<()> {
    match code {
        zlib::Z_OK => Ok(()),
        zlib::Z_MEM_ERROR => Err(io::ErrorKind::OutOfMemory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an inflater cannot begin like that")),
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new`, and this is the only place that ends it.
        let code = unsafe { zlib::inflateEnd(&mut *self.stream) };
        debug_assert_eq!(code, zlib::Z_OK, "an initialised stream can be ended");
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").finish_non_exhaustive()
    }
}

// SAFETY: the pointers in the stream are to memory that it alone owns, allocated by Rust's global allocator; between steps it borrows nothing.
unsafe impl Send for Inflate {}

#[cfg(test)]
mod tests {
    use super::*;

    /// "towline " 5,000 times with numbers between.
    fn text() -> Vec<u8> {
        (0..5000u32).flat_map(|n| format!("towline {} ", n.wrapping_mul(2_654_435_761)).into_bytes()).collect()
    }

    /// A gzip stream of stored blocks.
    fn stored(text: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        let blocks: Vec<&[u8]> = text.chunks(1000).collect();
        for (n, block) in blocks.iter().enumerate() {
            let len = u16::try_from(block.len()).unwrap();
            out.push(u8::from(n + 1 == blocks.len()));
            out.extend(len.to_le_bytes());
            out.extend((!len).to_le_bytes());
            out.extend_from_slice(block);
        }
        let mut crc = !0u32;
        for byte in text {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        out.extend((!crc).to_le_bytes());
        out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        out
    }

    #[test]
    fn every_stop_is_a_place_to_go_on_from() {
        let text = text();
        let gzip = stored(&text);
        let (mut inflate, mut out, mut at) = (Inflate::gzip().unwrap(), Vec::new(), 0);
        let (mut buffer, mut stops) = (vec![0; 700], Vec::new());
        loop {
            let step = inflate.step(&gzip[at..], &mut buffer, true).unwrap();
            at += step.taken;
            out.extend_from_slice(&buffer[..step.made]);
            match step.place {
                Place::Between(bits) => stops.push((at, bits, out.len())),
                Place::End => break,
                Place::Within => {}
            }
        }
        assert_eq!((out == text, at), (true, gzip.len()));
        assert!(stops.len() > 50, "{} stops", stops.len());
        for (at, bits, made) in stops {
            let value = if bits == 0 { 0 } else { gzip[at - 1] >> (8 - bits) };
            let mut inflate = Inflate::resume(&text[made.saturating_sub(WINDOW)..made], bits, value).unwrap();
            let mut rest = vec![0; text.len() + 1];
            let step = inflate.step(&gzip[at..], &mut rest, false).unwrap();
            assert_eq!((step.made, step.place), (text.len() - made, Place::End), "from {at}");
            assert_eq!(rest[..step.made], text[made..], "from {at}");
        }
    }

    #[test]
    fn wrong_input_is_an_error() {
        let mut gzip = stored(&text());
        let mut out = vec![0; 1 << 20];
        let len = gzip.len();
        gzip[len - 6] ^= 1;
        assert_eq!(Inflate::gzip().unwrap().step(&gzip, &mut out, false).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(Inflate::raw().unwrap().step(&[7], &mut out, false).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Inflate::resume(&[], 77, 1).is_err());
    }
}
