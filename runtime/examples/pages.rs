//! Writes man pages and shell completions of towline-oci into a directory (`make man`). They come from the table of flags that the
//! binary parses with, and the binary carries none of this.
#![allow(missing_docs, reason = "the command line's own types say what they are by their help")]

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

#[path = "../src/cli/mod.rs"]
#[allow(dead_code, reason = "only its table is used here")]
mod cli;

const NAME: &str = "towline-oci";

fn main() -> ExitCode {
    let Some(target) = std::env::args_os().nth(1) else {
        report("usage: pages DIRECTORY");
        return ExitCode::FAILURE;
    };
    match write(Path::new(&target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            report(&format!("writing below {}: {cause}", Path::new(&target).display()));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr, reason = "this is a command")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// As they are installed below `PREFIX/share`.
fn write(target: &Path) -> std::io::Result<()> {
    let mut command = cli::Cli::command().name(NAME);
    command.build();
    let man = target.join("man/man8");
    std::fs::create_dir_all(&man)?;
    page(&man, NAME, &command)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        page(&man, &format!("{NAME}-{}", verb.get_name()), verb)?;
    }
    for (shell, folder) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        let folder = target.join(folder);
        std::fs::create_dir_all(&folder)?;
        let file = generate_to(shell, &mut command, NAME, &folder)?;
        if shell == Shell::Bash {
            // bash-completion loads the file that has the command's name.
            std::fs::rename(file, folder.join(NAME))?;
        }
    }
    Ok(())
}

fn page(folder: &Path, name: &str, command: &Command) -> std::io::Result<()> {
    // clap keeps names for as long as the program runs.
    let page = command.clone().name(&*name.to_owned().leak()).display_name(name).bin_name(name.replacen("oci-", "oci ", 1));
    let mut file = std::fs::File::create(folder.join(format!("{name}.8")))?;
    Man::new(page).section("8").manual("towline").render(&mut file)
}
