//! How a call fails: a code that containerd branches on, and a message that its users read.

use containerd_shim_protos::ttrpc::proto::Status;
use towline_runtime::{Error, Outcome};

pub use containerd_shim_protos::ttrpc::proto::Code;

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it was.
    pub code: Code,
    /// What was tried, on what, and why it failed.
    pub message: String,
}

/// The result of a call.
pub type Answer<T> = Result<T, Failure>;

impl Failure {
    /// A failure of a kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// There is no such container or process.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// It is there, but not in a state for this.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// The request is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// The message in a wider operation.
    pub fn during(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// As ttrpc sends it.
    pub fn status(&self) -> Status {
        let mut status = Status::new();
        status.set_code(self.code);
        status.set_message(self.message.clone());
        status
    }
}

impl Failure {
    /// The runtime's `verb` failed: what its log says, in containerd's words, which its users know.
    pub fn of_runtime(verb: &str, error: Error) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let failure = Self::from(error);
        // Nothing of ours is missing when the runtime misses something.
        let code = if failure.code == Code::NOT_FOUND { Code::UNKNOWN } else { failure.code };
        let cause = cause.unwrap_or(failure.message);
        Self::new(code, format!("OCI runtime {verb} failed: {cause}"))
    }
}

/// The one place where what a library says becomes what containerd is told.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.outcome() {
            Outcome::NotFound => Code::NOT_FOUND,
            Outcome::Exists => Code::ALREADY_EXISTS,
            Outcome::WrongState => Code::FAILED_PRECONDITION,
            Outcome::Denied => Code::PERMISSION_DENIED,
            Outcome::BadInput => Code::INVALID_ARGUMENT,
            Outcome::Unsupported => Code::UNIMPLEMENTED,
            Outcome::Busy => Code::UNAVAILABLE,
            Outcome::Timeout => Code::DEADLINE_EXCEEDED,
            Outcome::NoSpace => Code::RESOURCE_EXHAUSTED,
            // As containerd's own shim: to its callers a program that cannot be run is a failure of no known kind.
            Outcome::CommandNotFound | Outcome::CommandNotExecutable | Outcome::Io => Code::UNKNOWN,
        };
        Self::new(code, error.one_line())
    }
}
