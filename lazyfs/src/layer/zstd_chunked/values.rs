//! A JSON document read value by value out of a stream, so that neither its text nor a tree of it is ever in memory as a whole. Whoever
//! reads it knows its outer structure and takes the brackets apart itself.

use std::io::{self, Read};

use serde::de::{Deserialize, DeserializeOwned};

/// How much is read at once.
const WINDOW: usize = 64 << 10;

/// Why it cannot be read on.
#[derive(Debug)]
pub(super) enum Stop {
    /// By the stream.
    Io(io::Error),
    /// It is not the expected JSON.
    Json(String),
}

/// See the module.
pub(super) struct Values<R> {
    reader: R,
    window: Vec<u8>,
    /// What of the window is done with.
    at: usize,
    /// Bytes before the window.
    passed: u64,
    /// Whether the end of the stream is in the window.
    ended: bool,
}

impl<R: Read> Values<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, window: Vec::new(), at: 0, passed: 0, ended: false }
    }

    /// Reads a value by `parse`, which is [`one`] with something to do with what it yields. It is called again with more where that was not all of
    /// it; so a number should have nothing done with it before it is returned.
    pub fn value<U>(&mut self, mut parse: impl FnMut(&[u8]) -> serde_json::Result<(U, usize)>) -> Result<U, Stop> {
        self.peek()?;
        loop {
            match parse(&self.window[self.at..]) {
                // The rest of a number may follow; everything else says itself where it ends.
                Ok((_, len)) if !self.ended && self.window[self.at..][..len].last().is_some_and(u8::is_ascii_digit) => {
                    self.more()?;
                }
                Ok((value, len)) => {
                    self.at += len;
                    return Ok(value);
                }
                Err(e) if e.is_eof() && !self.ended => self.more()?,
                Err(e) => return Err(self.wrong(&e.to_string())),
            }
        }
    }

    /// Reads a value that keeps nothing of the text.
    pub fn owned<T: DeserializeOwned>(&mut self) -> Result<T, Stop> {
        self.value(|text| one(text))
    }

    /// The next byte of the structure.
    pub fn next(&mut self) -> Result<u8, Stop> {
        let next = self.peek()?.ok_or_else(|| self.wrong("it ends too early"))?;
        self.at += 1;
        Ok(next)
    }

    /// Takes the next byte, which has to be this one.
    pub fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        match self.next()? {
            found if found == byte => Ok(()),
            found => Err(self.wrong(&format!("expected `{}`, found `{}`", byte.escape_ascii(), found.escape_ascii()))),
        }
    }

    /// Takes the next byte if it is this one.
    pub fn has(&mut self, byte: u8) -> Result<bool, Stop> {
        let has = self.peek()? == Some(byte);
        self.at += usize::from(has);
        Ok(has)
    }

    /// Nothing may follow.
    pub fn end(&mut self) -> Result<(), Stop> {
        self.peek()?.map_or(Ok(()), |_| Err(self.wrong("trailing characters")))
    }

    /// What is wrong at this place.
    pub fn wrong(&self, why: &str) -> Stop {
        // Lines and columns are those of the window.
        let why = why.split(" at line ").next().unwrap_or(why);
        Stop::Json(format!("{why} (near byte {})", self.passed + self.at as u64))
    }

    /// The next byte behind white space; `None` at the end.
    fn peek(&mut self) -> Result<Option<u8>, Stop> {
        loop {
            match self.window.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                Some(byte) => return Ok(Some(*byte)),
                None if self.ended => return Ok(None),
                None => self.more()?,
            }
        }
    }

    /// Reads on. The more is kept of a value that is not complete, the more is read, so that none is parsed often.
    fn more(&mut self) -> Result<(), Stop> {
        self.passed += self.at as u64;
        self.window.drain(..self.at);
        self.at = 0;
        let wanted = self.window.len().max(WINDOW);
        let read = self.reader.by_ref().take(wanted as u64).read_to_end(&mut self.window).map_err(Stop::Io)?;
        self.ended = read < wanted;
        Ok(())
    }
}

/// The value at the beginning of `text`, and its length.
pub(super) fn one<'t, T: Deserialize<'t>>(text: &'t [u8]) -> serde_json::Result<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter();
    let value = values.next().unwrap_or_else(|| serde_json::from_slice(b""))?;
    Ok((value, values.byte_offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Yields a few bytes at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(buffer.len()).min(self.0.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn values_across_windows_are_whole() {
        let texts: Vec<String> = (0..3_000).map(|n| format!("{n} \\ \"ü\" {}", "x".repeat(n % 97))).collect();
        let long = "y".repeat(5 * WINDOW);
        let json = serde_json::to_string(&texts.iter().chain([&long]).collect::<Vec<_>>()).unwrap();
        for step in [1, 7, WINDOW - 1, WINDOW, 1 << 30] {
            let mut values = Values::new(Drops(json.as_bytes(), step));
            values.expect(b'[').unwrap();
            let mut found = Vec::new();
            loop {
                found.push(values.owned::<String>().unwrap());
                if values.next().unwrap() == b']' {
                    break;
                }
            }
            values.end().unwrap();
            assert!(found.iter().eq(texts.iter().chain([&long])), "{step}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (json, says) in [
            ("", "ends too early (near byte 0)"),
            ("  [", "EOF while parsing a value (near byte 3)"),
            ("[1x", "trailing characters (near byte 1)"),
            ("[x", "expected value (near byte 1)"),
            ("{", "expected `[`, found `{` (near byte 1)"),
        ] {
            let mut values = Values::new(json.as_bytes());
            let stop = values.expect(b'[').and_then(|()| values.owned::<u64>()).and_then(|_| values.expect(b']')).unwrap_err();
            assert!(matches!(&stop, Stop::Json(text) if text.contains(says)), "{json}: {stop:?}");
        }
        let mut values = Values::new(&b"[] x"[..]);
        values.expect(b'[').unwrap();
        assert!(values.has(b']').unwrap());
        assert!(matches!(values.end(), Err(Stop::Json(text)) if text.contains("trailing")));
    }
}
