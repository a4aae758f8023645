//! The command line, as containerd has it: Go's flags (one dash or two, a value after a blank or `=`), then `start` or `delete`.

mod delete;
mod info;
mod search;
mod start;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use towline_runtime::{Error, Outcome, Result};
use towline_shim::launch::{Flags, LONGEST};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Version,
    Help,
    Info,
    Start,
    Delete,
}

/// Does it; a failure is said on standard error, which containerd shows.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let done = parse(arguments).and_then(|(action, flags)| match action {
        Action::Version => print(version().as_bytes()),
        Action::Help => print(HELP.as_bytes()),
        Action::Info => info::run(),
        Action::Start => start::run(&flags),
        Action::Delete => delete::run(&flags),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "containerd-shim-towline-v2: {}", error.one_line()));
            ExitCode::FAILURE
        }
    }
}

const HELP: &str =
    "containerd's shim for containers of towline-oci. containerd starts it for the runtime io.containerd.towline.v2.

  containerd-shim-towline-v2 -namespace NS -id ID -address SOCKET start    prints the address of the shim of the container in .
  containerd-shim-towline-v2 -namespace NS -id ID [-bundle DIR] delete     ends what a shim that is gone has left
  containerd-shim-towline-v2 -info                                         prints what the runtime can do, as a protobuf
  containerd-shim-towline-v2 -v                                            prints the version
";

/// The commit that this was built from.
const REVISION: &str = match option_env!("TOWLINE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

fn version() -> String {
    format!("containerd-shim-towline-v2:\n  Version:  {}\n  Revision: {REVISION}\n", env!("CARGO_PKG_VERSION"))
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|cause| Error::sys("writing to standard output", cause))
}

/// Standard input to its end: nothing, if it is a terminal.
fn input() -> Result<Vec<u8>> {
    let mut input = vec![];
    let stdin = std::io::stdin();
    if std::io::IsTerminal::is_terminal(&stdin) {
        return Ok(input);
    }
    let read = stdin.lock().take(LONGEST + 1).read_to_end(&mut input);
    let failed = |cause| Error::sys("reading standard input", cause);
    match read.map_err(failed)? as u64 {
        0..=LONGEST => Ok(input),
        _ => Err(Error::new(Outcome::BadInput, "reading standard input").because(format!("it is longer than {LONGEST} bytes"))),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<(Action, Flags)> {
    let bad = |why: String| Error::new(Outcome::BadInput, "reading the command line").because(why).advise("see -help");
    let (mut flags, mut action) = (Flags::default(), None);
    let mut bundle = String::new();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let text = argument.into_string().map_err(|other| bad(format!("{other:?} is not UTF-8")))?;
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            // Go's flags end at the first that is none.
            action = action.or(Some(match text.as_str() {
                "start" => Action::Start,
                "delete" => Action::Delete,
                _ => return Err(bad(format!("{text:?} is no command"))),
            }));
            break;
        };
        let (name, mut value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut ignored = String::new();
        let target = match name {
            "v" | "version" => {
                action = Some(Action::Version);
                continue;
            }
            "info" => {
                action = Some(Action::Info);
                continue;
            }
            "h" | "help" => {
                action = Some(Action::Help);
                continue;
            }
            // There is nothing that the shim would say only then.
            "debug" => continue,
            "namespace" => &mut flags.namespace,
            "id" => &mut flags.id,
            "address" => &mut flags.address,
            "bundle" => &mut bundle,
            // Events go to containerd's own service; a socket is chosen by `start`.
            "publish-binary" | "socket" => &mut ignored,
            _ => return Err(bad(format!("there is no flag -{name}"))),
        };
        if value.is_none() {
            value = rest
                .next()
                .map(|value| value.into_string().map_err(|other| bad(format!("{other:?} is not UTF-8"))))
                .transpose()?;
        }
        *target = value.ok_or_else(|| bad(format!("-{name} needs a value")))?;
    }
    flags.bundle = match bundle.as_str() {
        "" => std::env::current_dir().map_err(|cause| Error::sys("finding the working directory", cause))?,
        dir => std::path::absolute(dir).map_err(|cause| Error::io("finding", PathBuf::from(dir), cause))?,
    };
    Ok((action.ok_or_else(|| bad("there is no command".into()))?, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(Action, Flags)> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn containerds_command_lines() {
        let (action, flags) =
            read("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 -debug -bundle /b delete")
                .unwrap();
        assert_eq!(action, Action::Delete);
        let wanted = Flags { namespace: "k8s.io".into(), id: "a1".into(), address: "/run/c.sock".into(), bundle: "/b".into() };
        assert_eq!(flags, wanted);
        assert_eq!(read("--namespace=a -id=b start").unwrap().0, Action::Start);
        assert_eq!(read("-v").unwrap().0, Action::Version);
        assert_eq!(read("-info").unwrap().0, Action::Info);
        assert_eq!(read("-help").unwrap().0, Action::Help);
    }

    #[test]
    fn others_are_refused() {
        for bad in ["", "-id", "-id x", "-x y start", "-id x stop"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
