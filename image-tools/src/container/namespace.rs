//! Namespaces of containers, with containerd's rules for their names (containerd, `pkg/identifiers`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, bytes.
const MAX: usize = 76;
const DEFAULT: &str = "default";

/// A namespace: names of containers are unique in it, and commands see only what is in theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(String);

impl Namespace {
    /// Whether it is the one that is taken where nothing is said.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }

    /// Its name, which is one path component.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let between = |c: char| matches!(c, '.' | '_' | '-');
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric());
        if text.len() > MAX || !text.split(between).all(is_word) {
            return Err(format!(
                "a namespace is letters and digits, with single `.`, `_` or `-` between them, {MAX} bytes at most"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Namespace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        namespace.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_containerd_and_one_path_component() {
        for good in ["default", "k8s.io", "a-b_c.d9", "0", &"x".repeat(76)] {
            assert_eq!(good.parse::<Namespace>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "-a", "a-", "a..b", "a b", "ä", "a\0", &"x".repeat(77)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?} was taken");
            assert!(serde_json::from_value::<Namespace>(bad.into()).is_err(), "{bad:?} was read");
        }
        assert!(Namespace::default().is_default() && "default".parse::<Namespace>().unwrap().is_default());
    }
}
