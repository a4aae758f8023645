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

impl Failure {
    /// A failure of the runtime while it was `doing` something to the container that the user knows as `name`. The runtime speaks
    /// of 64 digits, and twice: in its client and in itself.
    pub fn of_runtime(error: &towline_runtime::Error, doing: &str, name: &str) -> Self {
        let said = std::error::Error::source(error).map(ToString::to_string);
        let cause = match said.as_deref().map(|said| (said, said.split_once(": "))) {
            Some((_, Some((what, cause)))) if what.contains(" container ") => cause.to_owned(),
            Some((said, _)) => format!("{error}: {said}"),
            None => error.to_string(),
        };
        // What a file of a lazy image that could not be fetched looks like from outside (lazyfs::rootfs).
        let not_fetched = cause.to_lowercase().contains("too many symbolic links") || cause.contains("symbolic link loop");
        let not_fetched = not_fetched.then(|| format!("a file of the image could not be fetched: see `towline logs {name}`"));
        let advice = error.advice().map(str::to_owned).or(not_fetched).map(|advice| format!("; {advice}")).unwrap_or_default();
        Self { code: exit_code(error), line: format!("{doing} container {name}: {cause}{advice}").replace('\n', " ") }
    }
}

fn exit_code(error: &towline_runtime::Error) -> u8 {
    u8::try_from(towline_runtime::client::exit_code(error)).unwrap_or(ENGINE)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: ENGINE, line: error.one_line() }
    }
}

impl From<towline_runtime::Error> for Failure {
    fn from(error: towline_runtime::Error) -> Self {
        Self { code: exit_code(&error), line: error.one_line() }
    }
}

#[cfg(test)]
mod tests {
    use towline_runtime::{Error, Outcome};

    use super::*;

    #[test]
    fn failures_of_the_runtime_name_the_container_once() {
        let said = "creating container 3a77: finding the program: exec: \"x\": executable file not found in $PATH";
        let error = Error::new(Outcome::CommandNotFound, "create of container 3a77").because(said);
        let failure = Failure::of_runtime(&error, "starting", "web");
        let line = "starting container web: finding the program: exec: \"x\": executable file not found in $PATH";
        assert_eq!((failure.code, failure.line.as_str()), (127, line));
        let error = Error::new(Outcome::Io, "starting /x").because("No such file").advise("install it");
        assert_eq!(
            Failure::of_runtime(&error, "starting", "web").line,
            "starting container web: starting /x: No such file; install it"
        );
    }
}
