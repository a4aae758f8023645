//! The one error type of this crate: an outcome a caller can branch on, what was tried, why it failed and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What kind of failure it was; the only part of an [`Error`] that code branches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The container, file or controller asked for does not exist.
    NotFound,
    /// The id is taken already.
    Exists,
    /// The container is in a state that does not allow the operation.
    WrongState,
    /// The kernel or a policy refuses.
    Denied,
    /// `config.json`, a process description or an argument is malformed.
    BadInput,
    /// Well-formed, but not something this version or this kernel can do.
    Unsupported,
    /// Somebody else holds what is needed.
    Busy,
    /// A wait passed its deadline.
    Timeout,
    /// The disk or a quota is full.
    NoSpace,
    /// The program to run is not there (shell convention: exit code 127).
    CommandNotFound,
    /// The program to run is there and cannot be executed (shell convention: exit code 126).
    CommandNotExecutable,
    /// Any other failed system call.
    Io,
}

impl Outcome {
    /// The outcome as one byte, for the message between init and the runtime.
    pub(crate) fn to_byte(self) -> u8 {
        self as u8
    }

    /// The inverse of `to_byte`.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Outcome; 12] = [
            Outcome::NotFound,
            Outcome::Exists,
            Outcome::WrongState,
            Outcome::Denied,
            Outcome::BadInput,
            Outcome::Unsupported,
            Outcome::Busy,
            Outcome::Timeout,
            Outcome::NoSpace,
            Outcome::CommandNotFound,
            Outcome::CommandNotExecutable,
            Outcome::Io,
        ];
        ALL.get(usize::from(byte)).copied()
    }
}

/// A failed operation. Displays only what was tried and on what; the cause is [`StdError::source`], as for any error.
pub struct Error {
    outcome: Outcome,
    tried: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    advice: Option<String>,
}

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `tried` says what was tried and on what ("mounting proc on /proc"), never the cause.
    pub fn new(outcome: Outcome, tried: impl Into<String>) -> Self {
        Self { outcome, tried: tried.into(), cause: None, advice: None }
    }

    /// A failed system call; `tried` names operation and object. The outcome follows from the errno.
    pub fn sys(tried: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        let cause: std::io::Error = cause.into();
        let outcome = match cause.kind() {
            std::io::ErrorKind::NotFound => Outcome::NotFound,
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Outcome::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Outcome::NoSpace,
            std::io::ErrorKind::ResourceBusy => Outcome::Busy,
            std::io::ErrorKind::TimedOut => Outcome::Timeout,
            _ => Outcome::Io,
        };
        Self::new(outcome, tried).because(cause)
    }

    /// A failed system call `operation` on `path`.
    pub fn io(operation: &str, path: impl AsRef<Path>, cause: impl Into<std::io::Error>) -> Self {
        Self::sys(format!("{operation} {}", path.as_ref().display()), cause)
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds what the user can do.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Wraps this error in a wider operation; outcome and advice stay those of the cause.
    pub fn during(self, tried: impl Into<String>) -> Self {
        Self { outcome: self.outcome, tried: tried.into(), advice: self.advice.clone(), cause: Some(Box::new(self)) }
    }

    /// The kind of failure.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What the user can do, where that is known.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// The whole chain on one line: what was tried, each cause, and the advice.
    pub fn one_line(&self) -> String {
        let mut line = self.tried.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        if let Some(advice) = &self.advice {
            line = format!("{line}; {advice}");
        }
        line.replace('\n', " ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tried)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.outcome, self.one_line())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_with_advice_last() {
        let full = Error::io("opening", "/x", rustix::io::Errno::ACCESS).advise("look at its mode").during("creating c1");
        assert_eq!(full.outcome(), Outcome::Denied);
        assert_eq!(full.one_line(), "creating c1: opening /x: Permission denied (os error 13); look at its mode");
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for byte in 0..=u8::MAX {
            if let Some(outcome) = Outcome::from_byte(byte) {
                assert_eq!(outcome.to_byte(), byte);
            }
        }
        assert_eq!(Outcome::from_byte(Outcome::Io.to_byte()), Some(Outcome::Io));
        assert_eq!(Outcome::from_byte(Outcome::Io.to_byte() + 1), None);
    }
}
