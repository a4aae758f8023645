//! What ends a command: one line for the user and the exit code that users of a container CLI expect.

use towline_lazyfs::error::Error;

/// Exit code of a failure of towline itself, as other container CLIs have it.
pub const ENGINE: u8 = 125;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Exit code: 125, or 126 and 127 where the container's program cannot be run.
    pub code: u8,
    /// What was tried on what, the causes, and the advice.
    pub line: String,
}

/// The result of a command: its exit code.
pub type Outcome = Result<u8, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: ENGINE, line: error.one_line() }
    }
}

impl From<towline_runtime::Error> for Failure {
    fn from(error: towline_runtime::Error) -> Self {
        let code = u8::try_from(towline_runtime::client::exit_code(&error)).unwrap_or(ENGINE);
        Self { code, line: error.one_line() }
    }
}
