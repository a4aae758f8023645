//! What failed, as data.

use std::fmt;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One failure: what was tried, why it failed, and what to do about it.
#[derive(Debug)]
pub struct Error {
    tried: String,
    cause: String,
    advice: Option<&'static str>,
}

impl Error {
    /// `tried`: what was tried, and on what.
    pub fn new(tried: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self { tried: tried.into(), cause: cause.to_string(), advice: None }
    }

    /// The same with what the user can do.
    #[must_use]
    pub fn advise(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tried, self.cause)?;
        self.advice.map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

impl std::error::Error for Error {}
