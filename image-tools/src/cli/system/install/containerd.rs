//! `towline system install containerd`

use std::path::{Path, PathBuf};
use std::process::Command;

use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::cli::{absolute, print, warn};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::install::containerd::{Format, Machine};
use crate::install::{Record, file};

/// Flags of `system install containerd`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only show what would be written
    #[arg(long, conflicts_with = "undo")]
    print: bool,
    /// Take away what this command has written
    #[arg(long)]
    undo: bool,
    /// Leave CRI with the snapshotter that it has: only `ctr`, nerdctl and others that name `towline` use it
    #[arg(long)]
    no_cri: bool,
    /// containerd's version, such as 1.7 or 2.1 [default: what `containerd --version` says]
    #[arg(long = "for", value_name = "VERSION")]
    version: Option<Format>,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    config: PathBuf,
    /// The systemd unit of towlined
    #[arg(long, value_name = "FILE", default_value = "/etc/systemd/system/towlined.service")]
    unit: PathBuf,
}

/// Writes, prints or undoes it.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = engine.paths.root.join("installed-containerd.json");
    if args.undo {
        let done = Record::undo(&record)?;
        done.undone.iter().try_for_each(|path| print(&format!("{} is as it was\n", path.display())))?;
        done.left.iter().for_each(|line| warn(line));
        print("then: systemctl daemon-reload; systemctl stop towlined; systemctl restart containerd\n")?;
        return Ok(u8::from(!done.left.is_empty()));
    }
    let machine = machine(engine, args)?;
    let main = file::read(&machine.config)?;
    let mut files = vec![
        (machine.drop_in(), machine.drop_in_text(main.as_deref().unwrap_or_default())?),
        (absolute(args.unit.clone())?, machine.unit_text()),
    ];
    let change = match &main {
        Some(main) => machine.import(main)?,
        None => {
            files.push((machine.config.clone(), machine.main_text()));
            None
        }
    };
    if args.print {
        files.iter().try_for_each(|(path, text)| print(&format!("# {}\n{text}\n", path.display())))?;
        return match change {
            Some(change) => print(&format!("# in {}\n{}\n", change.path.display(), change.after)).map(|()| 0),
            None => Ok(0),
        };
    }
    Record::carry_out(&record, &files, change.as_slice())?;
    let changed = change.iter().map(|change| &change.path);
    files.iter().map(|(path, _)| path).chain(changed).try_for_each(|path| print(&format!("{} is written\n", path.display())))?;
    print("then: systemctl daemon-reload; systemctl enable --now towlined; systemctl restart containerd\n")?;
    Ok(0)
}

fn machine(engine: &Engine, args: &Args) -> Result<Machine, Failure> {
    let format = match args.version {
        Some(format) => format,
        None => installed()?,
    };
    Ok(Machine {
        config: absolute(args.config.clone())?,
        format,
        socket: engine.paths.state.join("snapshotter.sock"),
        root: engine.paths.root.clone(),
        state: engine.paths.state.clone(),
        towlined: found(&engine.towlined)?,
        runtime: found(&engine.runtime)?,
        has_shim: found(Path::new("containerd-shim-towline-v2")).is_ok(),
        cri: !args.no_cri,
    })
}

fn installed() -> Result<Format, Failure> {
    let tried = || Error::new(Kind::NotFound, "asking for containerd's version");
    let advice = "say it with --for";
    let said = Command::new("containerd").arg("--version").output().map_err(|e| tried().because(e).advise(advice))?;
    let parsed = String::from_utf8_lossy(&said.stdout).parse();
    Ok(parsed.map_err(|why: String| tried().because(why).advise(advice))?)
}

/// The absolute path of a program, which is looked for in PATH where it has none.
fn found(program: &Path) -> Result<PathBuf, Failure> {
    if program.is_absolute() {
        return Ok(program.to_owned());
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&dirs).map(|dir| dir.join(program));
    let found = places.find(|path| path.is_absolute() && path.is_file());
    Ok(found
        .ok_or_else(|| Error::new(Kind::NotFound, format!("looking for {}", program.display())).because("it is not in PATH"))?)
}
