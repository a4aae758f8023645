//! The one error type of this crate: an outcome a caller can branch on, what was tried, why it failed and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What kind of failure it was; the only part of an [`Error`] that code branches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The thing asked for does not exist.
    NotFound,
    /// Credentials are missing or not accepted.
    Denied,
    /// Input from outside is malformed.
    BadInput,
    /// Content does not match its digest, or an index disagrees with its layer.
    Integrity,
    /// Well-formed, but not something this version or this kernel can do.
    Unsupported,
    /// A remote side does not answer or fails; trying again may help.
    Unavailable,
    /// Somebody else holds what is needed, or this process has too much open.
    Busy,
    /// The disk or a quota is full.
    NoSpace,
    /// Any other failed system call.
    Io,
}

/// A failed operation. Displays only what was tried and on what; the cause is [`StdError::source`], as for any error.
pub struct Error {
    outcome: Outcome,
    tried: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    advice: Option<String>,
    retry_after: Option<Duration>,
}

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `tried` says what was tried and on what ("reading manifest of localhost:5000/a:1"), never the cause.
    pub fn new(outcome: Outcome, tried: impl Into<String>) -> Self {
        Self { outcome, tried: tried.into(), cause: None, advice: None, retry_after: None }
    }

    /// A failed system call `operation` on `path`; a full disk becomes [`Outcome::NoSpace`] with advice, a lack of descriptors
    /// [`Outcome::Busy`].
    pub fn io(operation: &str, path: impl AsRef<Path>, cause: impl Into<std::io::Error>) -> Self {
        let cause: std::io::Error = cause.into();
        let error = Self::new(Outcome::Io, format!("{operation} {}", path.as_ref().display()));
        match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self { outcome: Outcome::NoSpace, ..error }
                .advise("free space on that file system, or remove images with `towline images rm`"),
            std::io::ErrorKind::ReadOnlyFilesystem => error.advise(
                "make that file system writable again (`mount -o remount,rw`, after a look at the kernel's log); \
                 containers go on with what is local",
            ),
            _ if is_lack_of_files(&cause) => Self { outcome: Outcome::Busy, ..error }.advise(MORE_FILES),
            _ => error,
        }
        .because(cause)
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

    /// Adds what the user can do, unless somebody who knew more has said it.
    pub fn or_advise(self, advice: &str) -> Self {
        match self.advice {
            Some(_) => self,
            None => self.advise(advice),
        }
    }

    /// Wraps this error in a wider operation; outcome and advice stay those of the cause.
    pub fn during(self, tried: impl Into<String>) -> Self {
        Self {
            outcome: self.outcome,
            tried: tried.into(),
            advice: self.advice.clone(),
            retry_after: self.retry_after,
            cause: Some(Box::new(self)),
        }
    }

    /// Adds how long the remote side asked to be left alone (`Retry-After`).
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// How long the remote side asked to be left alone before the next try, where it said so.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The same failure for one of several waiters: `tried` is what this waiter wanted, outcome and advice are the shared cause's.
    pub fn shared(tried: impl Into<String>, cause: &Arc<Self>) -> Self {
        Self {
            outcome: cause.outcome,
            tried: tried.into(),
            advice: cause.advice.clone(),
            retry_after: cause.retry_after,
            cause: Some(Box::new(Arc::clone(cause))),
        }
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

/// What helps against [`is_lack_of_files`].
pub(crate) const MORE_FILES: &str = "allow this process more open files (`LimitNOFILE=` of a service, `ulimit -n`)";

/// Whether this process, or the machine, has no descriptors left.
pub(crate) fn is_lack_of_files(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_with_advice_last() {
        let full = Error::io("writing", "/x", rustix::io::Errno::NOSPC).during("pulling a:1");
        assert_eq!(full.outcome(), Outcome::NoSpace);
        assert_eq!(
            full.one_line(),
            "pulling a:1: writing /x: No space left on device (os error 28); \
             free space on that file system, or remove images with `towline images rm`"
        );
    }
}
