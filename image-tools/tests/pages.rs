//! The man pages and completions that `make man` makes: everything has a text, and a page.

use std::path::Path;

use clap::{Command, CommandFactory as _};

#[path = "../../lazyfs/src/cli.rs"]
#[allow(dead_code, reason = "only its table is used here")]
mod towlined;
#[path = "../examples/pages/write.rs"]
mod write;

fn programs() -> [(&'static str, &'static str, Command); 2] {
    [("towline", "1", towline_image_tools::command()), ("towlined", "8", towlined::Arguments::command())]
}

/// Calls `see` with each command that people see, and the words that lead to it.
fn walk(command: &Command, words: &str, see: &mut dyn FnMut(&str, &Command)) {
    see(words, command);
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        walk(verb, &format!("{words} {}", verb.get_name()), see);
    }
}

#[test]
fn every_command_and_every_argument_says_what_it_is() {
    let mut silent = Vec::new();
    for (name, _, command) in programs() {
        walk(&command, name, &mut |words, command| {
            if command.get_about().is_none_or(|about| about.to_string().trim().is_empty()) {
                silent.push(words.to_owned());
            }
            let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_help().is_none());
            silent.extend(arguments.map(|argument| format!("{words}: {}", argument.get_id())));
        });
    }
    assert!(silent.is_empty(), "without a text: {silent:?}");
}

#[test]
fn every_command_has_a_page_with_its_flags_and_each_shell_completes_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, section, command) in programs() {
        write::program(dir.path(), name, section, command.clone()).unwrap();
        walk(&command, name, &mut |words, command| {
            let page = dir.path().join(format!("man/man{section}/{}.{section}", words.replace(' ', "-")));
            let text = read(&page).replace("\\*(Aq", "'").replace('\\', "");
            let about = command.get_about().unwrap().to_string();
            assert!(text.contains(&words.replace(' ', "-")) && text.contains(&about), "{}: {text}", page.display());
            let flags =
                command.get_arguments().filter(|argument| !argument.is_hide_set()).filter_map(|argument| argument.get_long());
            flags.for_each(|flag| assert!(text.contains(&format!("--{flag}")), "{} does not name --{flag}", page.display()));
        });
        for file in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/site-functions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            let text = read(&dir.path().join(file));
            command.get_subcommands().filter(|verb| !verb.is_hide_set()).for_each(|verb| assert!(text.contains(verb.get_name())));
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
