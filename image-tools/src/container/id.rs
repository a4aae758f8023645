//! Container ids: 64 random hexadecimal digits.

use std::fmt::Write as _;
use std::io::Read;

use towline_lazyfs::error::{Error, Result};

/// Digits that are shown to people.
pub const SHORT: usize = 12;

/// A new id.
pub fn new() -> Result<String> {
    let path = "/dev/urandom";
    let mut random = [0; 32];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut random)).map_err(|e| Error::io("reading", path, e))?;
    Ok(random.iter().fold(String::with_capacity(64), |mut id, byte| {
        write!(id, "{byte:02x}").expect("writing to a String cannot fail");
        id
    }))
}

/// The beginning of an id, for people.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ_and_have_64_digits() {
        let (a, b) = (super::new().unwrap(), super::new().unwrap());
        assert!(a != b && a.len() == 64 && a.bytes().all(|c| c.is_ascii_hexdigit()), "{a} {b}");
        assert_eq!(super::short(&a).len(), super::SHORT);
    }
}
