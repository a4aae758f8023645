//! Pages and completions of one program.

use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// Writes them as they are installed below `PREFIX/share`.
pub fn program(target: &Path, name: &str, section: &str, command: Command) -> std::io::Result<()> {
    let mut command = command.name(kept(name));
    command.build();
    let man = target.join(format!("man/man{section}"));
    std::fs::create_dir_all(&man)?;
    pages(&man, name, name, section, &command)?;
    for (shell, folder) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        let folder = target.join(folder);
        std::fs::create_dir_all(&folder)?;
        let file = generate_to(shell, &mut command, name, &folder)?;
        if shell == Shell::Bash {
            // bash-completion loads the file that has the command's name.
            std::fs::rename(file, folder.join(name))?;
        }
    }
    Ok(())
}

/// A page for the command `line`, and one for each command below it.
fn pages(folder: &Path, name: &str, line: &str, section: &str, command: &Command) -> std::io::Result<()> {
    let page = command.clone().name(kept(name)).display_name(name.to_owned()).bin_name(line.to_owned());
    let mut file = std::fs::File::create(folder.join(format!("{name}.{section}")))?;
    Man::new(page).section(section).manual("towline").render(&mut file)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        let verb_name = verb.get_name();
        pages(folder, &format!("{name}-{verb_name}"), &format!("{line} {verb_name}"), section, verb)?;
    }
    Ok(())
}

/// clap takes no names that go: they stay for as long as this program runs.
fn kept(name: &str) -> &'static str {
    name.to_owned().leak()
}
