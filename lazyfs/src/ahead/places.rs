//! Where programs, interpreters and libraries are in a tree: what the shell, the kernel and the dynamic linker would find.

use super::elf::Needs;
use crate::daemon::protocol::Command;
use crate::tree::erofs::read::{FoundFile, StoredTree};

/// Directories of libraries where nothing else is said (ld.so(8), and what Debian's and Fedora's `/etc/ld.so.conf` add). `TRIPLET` stands
/// for this machine's.
const LIBRARY_DIRS: [&str; 8] =
    ["/lib/TRIPLET", "/usr/lib/TRIPLET", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib/TRIPLET", "/usr/local/lib"];

/// What the dynamic linker of glibc reads first.
const LINKER_CACHE: &[u8] = b"/etc/ld.so.cache";

/// How many arguments are looked at.
const MAX_ARGUMENTS: usize = 16;

/// The longest file that is taken for granted when a command names it, bytes: a program may read only a little of a larger one.
const MAX_ARGUMENT: u64 = 8 << 20;

/// Most bytes of a script's first line; Linux reads 256.
const MAX_LINE: usize = 256;

/// The program of a command.
pub(super) fn program(tree: &StoredTree, command: &Command) -> Option<FoundFile> {
    executable(tree, command, command.args.first()?)
}

/// A program as a shell finds it.
fn executable(tree: &StoredTree, command: &Command, name: &str) -> Option<FoundFile> {
    if name.contains('/') {
        return tree.file(join(command.cwd.as_bytes(), name.as_bytes()).as_slice());
    }
    let dirs = command.path.split(':').filter(|dir| !dir.is_empty());
    dirs.into_iter().find_map(|dir| tree.file(&join(dir.as_bytes(), name.as_bytes())))
}

/// Files that the command names by their whole path.
pub(super) fn arguments(tree: &StoredTree, command: &Command) -> Vec<FoundFile> {
    let named = command.args.iter().skip(1).take(MAX_ARGUMENTS).filter(|arg| arg.starts_with('/'));
    named.filter_map(|arg| tree.file(arg.as_bytes())).filter(|file| file.size <= MAX_ARGUMENT).collect()
}

/// What a script needs: its interpreter, and, since scripts that images begin with end in `exec "$@"`, the program behind it.
pub(super) fn of_script(tree: &StoredTree, command: &Command, beginning: &[u8]) -> Vec<FoundFile> {
    let line = beginning.split(|c| *c == b'\n').next().unwrap_or_default();
    let line = &line[..line.len().min(MAX_LINE)];
    let Some(line) = line.strip_prefix(b"#!").and_then(|line| std::str::from_utf8(line).ok()) else { return Vec::new() };
    let mut words = line.split_ascii_whitespace();
    let interpreter = words.next();
    let through_env = interpreter.filter(|path| path.ends_with("/env")).and_then(|_| words.find(|word| !word.starts_with('-')));
    let behind = command.args.get(1).filter(|word| !word.starts_with('-')).map(String::as_str);
    let names = [interpreter, through_env, behind];
    names.into_iter().flatten().filter_map(|name| executable(tree, command, name)).collect()
}

/// What an ELF file needs that is in the directory `origin`, where that is known.
pub(super) fn of_elf(tree: &StoredTree, needs: &Needs, origin: Option<&[u8]>) -> Vec<FoundFile> {
    let interpreter = needs.interpreter.as_deref();
    let cache = interpreter.map(|_| LINKER_CACHE);
    let mut found: Vec<FoundFile> = [interpreter, cache].into_iter().flatten().filter_map(|path| tree.file(path)).collect();
    found.extend(needs.libraries.iter().filter_map(|name| library(tree, name, &needs.run_path, origin)));
    found
}

fn library(tree: &StoredTree, name: &[u8], run_path: &[Vec<u8>], origin: Option<&[u8]>) -> Option<FoundFile> {
    if name.contains(&b'/') {
        return tree.file(name);
    }
    let first = run_path.iter().filter_map(|dir| expand(dir, origin));
    let usual = LIBRARY_DIRS.iter().map(|dir| dir.replace("TRIPLET", &triplet()).into_bytes());
    first.chain(usual).find_map(|dir| tree.file(&join(&dir, name)))
}

/// `$ORIGIN` at the beginning of a directory, replaced.
fn expand(dir: &[u8], origin: Option<&[u8]>) -> Option<Vec<u8>> {
    let rest = [&b"$ORIGIN"[..], b"${ORIGIN}"].iter().find_map(|variable| dir.strip_prefix(*variable));
    match (rest, origin) {
        (Some(rest), Some(origin)) => Some([origin, rest].concat()),
        (Some(_), None) => None,
        (None, _) => Some(dir.to_vec()),
    }
}

/// How Debian calls this machine in paths.
fn triplet() -> String {
    let arch = match std::env::consts::ARCH {
        "powerpc64" => "powerpc64le",
        "arm" => return "arm-linux-gnueabihf".to_owned(),
        other => other,
    };
    format!("{arch}-linux-gnu")
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match name.first() {
        Some(b'/') => name.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

/// The directory that a file is in.
pub(super) fn directory(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|c| *c == b'/').unwrap_or(0);
    [b"/", &path[..end]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{file, layer, symlink};
    use crate::tree::{erofs, merge::merge};

    fn tree() -> StoredTree {
        let library = format!("usr/lib/{}/libz.so.1", triplet());
        let entries = [
            symlink("bin", "usr/bin"),
            symlink("lib", "usr/lib"),
            symlink("lib64/ld.so", "/usr/lib/ld-2.so"),
            file("usr/lib/ld-2.so", b"ld"),
            file("etc/ld.so.cache", b"cache"),
            file(&library, b"z"),
            file("opt/app/bin/app", b"app"),
            file("opt/app/lib/libapp.so", b"libapp"),
            file("usr/bin/sh", b"sh"),
            file("usr/bin/env", b"env"),
            file("usr/bin/python3", b"python"),
            file("etc/app.conf", b"conf"),
        ];
        let stored = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(stored.path(), erofs::write(&merge(&[layer(entries)]).unwrap()).unwrap()).unwrap();
        StoredTree::open(stored.path()).unwrap()
    }

    fn command(args: &[&str]) -> Command {
        Command { args: args.iter().map(|&arg| arg.to_owned()).collect(), path: "/nowhere::/bin".into(), cwd: "/opt/app".into() }
    }

    fn paths(found: impl IntoIterator<Item = FoundFile>) -> Vec<String> {
        found.into_iter().map(|file| String::from_utf8(file.path).unwrap()).collect()
    }

    #[test]
    fn programs_and_arguments() {
        let tree = tree();
        for (args, program_path, argument_paths) in [
            (vec!["sh", "-c", "/etc/app.conf x"], vec!["usr/bin/sh"], vec![]),
            (vec!["bin/app", "/etc/app.conf", "/etc/none", "etc/app.conf"], vec!["opt/app/bin/app"], vec!["etc/app.conf"]),
            (vec!["/bin/python3", "/usr/bin/../bin/sh"], vec!["usr/bin/python3"], vec!["usr/bin/sh"]),
            (vec!["app"], vec![], vec![]),
            (vec![], vec![], vec![]),
        ] {
            let command = command(&args);
            assert_eq!(paths(program(&tree, &command)), program_path, "{args:?}");
            assert_eq!(paths(arguments(&tree, &command)), argument_paths, "{args:?}");
        }
    }

    #[test]
    fn scripts() {
        let tree = tree();
        for (beginning, args, found) in [
            ("#!/bin/sh\nset -e\n", vec!["/start"], vec!["usr/bin/sh"]),
            ("#! /usr/bin/env -S python3 -u\n", vec!["/start"], vec!["usr/bin/env", "usr/bin/python3"]),
            ("#!/bin/sh -e", vec!["/start", "python3"], vec!["usr/bin/sh", "usr/bin/python3"]),
            ("#!/bin/sh\n", vec!["/start", "-x"], vec!["usr/bin/sh"]),
            ("#!\n", vec!["/start"], vec![]),
            ("echo\n", vec!["/start", "python3"], vec![]),
        ] {
            assert_eq!(paths(of_script(&tree, &command(&args), beginning.as_bytes())), found, "{beginning}");
        }
    }

    #[test]
    fn libraries() {
        let tree = tree();
        let libz = format!("usr/lib/{}/libz.so.1", triplet());
        let needs = |interpreter: Option<&str>, libraries: &[&str], run_path: &[&str]| Needs {
            interpreter: interpreter.map(Into::into),
            libraries: libraries.iter().map(|&name| name.into()).collect(),
            run_path: run_path.iter().map(|&dir| dir.into()).collect(),
        };
        let origin = directory(b"opt/app/bin/app");
        assert_eq!(origin, b"/opt/app/bin");
        for (needs, origin, found) in [
            (needs(Some("/lib64/ld.so"), &[], &[]), None, vec!["usr/lib/ld-2.so", "etc/ld.so.cache"]),
            (needs(None, &["libz.so.1", "none.so"], &[]), None, vec![&libz[..]]),
            (needs(None, &["libapp.so"], &["$ORIGIN/../lib"]), Some(&origin[..]), vec!["opt/app/lib/libapp.so"]),
            (needs(None, &["libapp.so"], &["${ORIGIN}/../lib"]), Some(&origin[..]), vec!["opt/app/lib/libapp.so"]),
            (needs(None, &["libapp.so"], &["$ORIGIN/../lib"]), None, vec![]),
            (needs(None, &["libapp.so"], &["/opt/app/lib"]), None, vec!["opt/app/lib/libapp.so"]),
            (needs(None, &["/opt/app/lib/libapp.so"], &[]), None, vec!["opt/app/lib/libapp.so"]),
        ] {
            assert_eq!(paths(of_elf(&tree, &needs, origin)), found, "{needs:?}");
        }
        assert_eq!(directory(b"top"), b"/");
    }
}
