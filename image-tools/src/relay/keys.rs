//! The keys that leave a container's terminal without ending it.

/// Looks for the keys in what a user types.
#[derive(Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed last.
    typed: usize,
}

impl DetachKeys {
    /// Parses `ctrl-p,ctrl-q`; an empty text is none. Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = |name: &str| match (name.strip_prefix("ctrl-"), name.as_bytes()) {
            (Some(letter), _) => match letter.as_bytes() {
                [letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Ok(letter & 0x1f),
                _ => Err(format!("`{name}` is not ctrl- and a letter or one of @[\\]^_")),
            },
            (None, [letter]) if letter.is_ascii_graphic() => Ok(*letter),
            _ => Err(format!("`{name}` is neither a character nor ctrl- and one")),
        };
        let keys = if text.is_empty() { Vec::new() } else { text.split(',').map(key).collect::<Result<_, _>>()? };
        Ok(Self { keys, typed: 0 })
    }

    /// What of some input is for the container, and whether the keys came after it. A beginning of them is held back until it is known.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (input.to_owned(), false);
        }
        let mut passed = Vec::with_capacity(input.len());
        for byte in input {
            if *byte != self.keys[self.typed] {
                passed.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if *byte == self.keys[self.typed] {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (passed, true);
                }
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_wherever_input_is_cut() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c\x10\x10"), (b"\x10c\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(DetachKeys::parse("").unwrap().filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert_eq!(DetachKeys::parse("a,ctrl-[").unwrap().filter(b"xa\x1b"), (b"x".to_vec(), true));
        for bad in ["ctrl-", "ctrl-1", "ctrl-pp", "ab", ",", "a,", "ü"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad} was taken");
        }
    }
}
