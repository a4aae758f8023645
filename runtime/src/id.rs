//! Container ids: one pattern, checked once, before the id becomes part of any path.

use std::fmt;

use crate::error::{Error, Outcome, Result};

/// A checked container id: 1 to 1024 bytes of `A-Z a-z 0-9 _ + - .`, and neither `.` nor `..` (runc's pattern), so that it is
/// always exactly one path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

/// The longest id, in bytes.
pub const MAX_LEN: usize = 1024;

/// Ids name a directory, and no common file system takes a longer component.
const MAX_COMPONENT: usize = 255;

impl ContainerId {
    /// Checks `id`; the error names the rule that it breaks.
    pub fn new(id: &str) -> Result<Self> {
        let refuse = |why: &'static str| {
            let shown: String = id.chars().take(64).collect();
            Err(Error::new(Outcome::BadInput, format!("checking container id {shown:?}")).because(why))
        };
        if id.is_empty() {
            return refuse("it is empty");
        }
        if id.len() > MAX_LEN {
            return refuse("it is longer than 1024 bytes");
        }
        if id.len() > MAX_COMPONENT {
            return refuse("it is longer than the 255 bytes a directory name can have");
        }
        if id == "." || id == ".." {
            return refuse("it names a directory entry");
        }
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte)) {
            return refuse("only letters, digits, and the characters _ + - . are allowed");
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ContainerId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self> {
        Self::new(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_runc_accepts() {
        for good in ["a", "A_b+c-d.e", "0", "...", "a..b", &"x".repeat(255)] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn refuses_what_could_leave_the_state_directory() {
        for bad in ["", ".", "..", "a/b", "/a", "../a", "a\0b", "a b", "ä", "a\n", &"x".repeat(256), &"x".repeat(1025)] {
            let error = ContainerId::new(bad).unwrap_err();
            assert_eq!(error.outcome(), Outcome::BadInput, "{bad:?}");
        }
    }
}
