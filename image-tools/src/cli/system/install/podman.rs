//! `towline system install podman`

use std::path::{Path, PathBuf};
use std::process::Command;

use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::store::create_private_dir;

use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::install::file;
use crate::layers::{default_dir, keeper};
use crate::podman::storage::{self, Now};
use crate::podman::{WRITTEN, drop_in, unit};

/// Where distributions keep the file that an own one replaces.
const VENDOR: &str = "/usr/share/containers/storage.conf";
/// There where systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Flags of `system install podman`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only show what would be written
    #[arg(long, conflicts_with = "undo")]
    print: bool,
    /// Take back what this command has written, and nothing else
    #[arg(long)]
    undo: bool,
    /// Make towline-oci the runtime that podman uses unless told otherwise
    #[arg(long)]
    default_runtime: bool,
    /// Write only; start nothing
    #[arg(long)]
    no_start: bool,
    /// Directory of configuration [default: /etc; for other users than root $XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Where the layer store is [default: the directory `layers` of the store]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The files in question.
struct Files {
    drop_in: PathBuf,
    storage: PathBuf,
    unit: PathBuf,
    is_root: bool,
}

/// Writes the configuration and starts the layer store, or takes that back.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let files = Files::find(args)?;
    if args.undo {
        return undo(&files, args);
    }
    let dir = match &args.dir {
        Some(dir) => crate::cli::absolute(dir.clone())?,
        None => default_dir(engine),
    };
    let towline = std::env::current_exe().map_err(|e| Error::io("finding", "this program", e))?;
    let arguments = keeper::arguments(engine);
    let unit = unit::text(&towline, arguments.iter().map(AsRef::as_ref), &dir, files.is_root);
    let drop_in = drop_in::text(&engine.runtime, args.default_runtime);
    let storage = files.storage_with(&dir)?;
    if !args.print {
        // Where it is not there every command of podman fails.
        create_private_dir(&dir)?;
    }
    let texts = [(&files.drop_in, Some(drop_in)), (&files.storage, storage), (&files.unit, Some(unit))];
    for (path, text) in &texts {
        let Some(text) = text else {
            crate::cli::print(&format!("{}: is as it has to be\n", path.display()))?;
            continue;
        };
        if args.print {
            crate::cli::print(&format!("# {}\n{text}\n", path.display()))?;
            continue;
        }
        if *path != &files.storage && !is_ours(path)? {
            let error =
                Error::new(Kind::Busy, format!("writing {}", path.display())).because("it is there, and not from this command");
            return Err(error.advise("move it away, or see with --print what would be in it").into());
        }
        file::write(path, text)?;
        crate::cli::print(&format!("{}: written\n", path.display()))?;
    }
    if args.print || args.no_start {
        return Ok(0);
    }
    start(engine, &files, &dir)?;
    crate::cli::print("`podman run` starts images lazily from now on; `towline system install podman --undo` takes it back\n")?;
    Ok(0)
}

impl Files {
    fn find(args: &Args) -> Result<Self, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        let home = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = match &args.config {
            Some(config) => Some(crate::cli::absolute(config.clone())?),
            None if is_root => Some("/etc".into()),
            None => home("XDG_CONFIG_HOME").or_else(|| Some(home("HOME")?.join(".config"))),
        };
        let config = config.ok_or_else(|| {
            let error = Error::new(Kind::BadInput, "finding a place for podman's configuration");
            error.because("neither XDG_CONFIG_HOME nor HOME is set").advise("name one with --config")
        })?;
        let units = if is_root { "systemd/system" } else { "systemd/user" };
        Ok(Self {
            drop_in: config.join("containers/containers.conf.d/towline.conf"),
            storage: config.join("containers/storage.conf"),
            unit: config.join(units).join(unit::NAME),
            is_root,
        })
    }

    /// `storage.conf` with the layer store; `None` where it has it.
    fn storage_with(&self, dir: &Path) -> Result<Option<String>, Failure> {
        let text = match file::read(&self.storage)? {
            Some(text) => text,
            // What podman would read without an own file goes on to count.
            None => match file::read(Path::new(VENDOR))?.filter(|_| self.is_root) {
                Some(vendor) => format!("{WRITTEN}{vendor}"),
                None => storage::new(&now()?),
            },
        };
        Ok(storage::add(&text, dir, &self.storage)?)
    }
}

/// What podman uses without a file that says so.
fn now() -> Result<Now, Failure> {
    const TRIED: &str = "asking podman where its storage is";
    let format = "{{.Store.GraphDriverName}}\n{{.Store.GraphRoot}}\n{{.Store.RunRoot}}";
    let done = Command::new("podman").args(["info", "--format", format]).output();
    let done = done.map_err(|e| Error::new(Kind::NotFound, TRIED).because(e).advise("install podman first"))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let [driver, graph_root, run_root] = lines[..] else {
        let why = String::from_utf8_lossy(&done.stderr).trim().replace('\n', " ");
        return Err(Error::new(Kind::Unavailable, TRIED).because(why).into());
    };
    if driver != "overlay" {
        return Err(Error::new(Kind::Unsupported, TRIED)
            .because(format!("its driver is {driver}, and only `overlay` has layer stores"))
            .advise("`podman system reset`, and driver = \"overlay\" in storage.conf")
            .into());
    }
    Ok(Now { graph_root: graph_root.to_owned(), run_root: run_root.to_owned() })
}

fn undo(files: &Files, args: &Args) -> Outcome {
    if !args.no_start && Path::new(SYSTEMD).exists() && is_there(&files.unit)? && is_ours(&files.unit)? {
        systemctl(files.is_root, &["disable", "--now", unit::NAME])?;
    }
    // First: podman must not look for a layer store that has gone.
    if let Some(text) = file::read(&files.storage)? {
        match storage::remove(&text) {
            Some(rest) if rest == text => {}
            Some(rest) => file::write(&files.storage, &rest)?,
            None => file::remove(&files.storage)?,
        }
    }
    for path in [&files.drop_in, &files.unit] {
        match (is_there(path)?, is_ours(path)?) {
            (true, true) => file::remove(path)?,
            (true, false) => crate::cli::warn(&format!("{} is not from this command and stays", path.display())),
            (false, _) => {}
        }
    }
    crate::cli::print("podman is as it was; layers that it has from towline are missing to it now: `podman rmi` them\n")?;
    Ok(0)
}

/// By systemd where it runs, else in the background.
fn start(engine: &Engine, files: &Files, dir: &Path) -> Result<(), Failure> {
    if Path::new(SYSTEMD).exists() {
        systemctl(files.is_root, &["daemon-reload"])?;
        return systemctl(files.is_root, &["enable", "--now", unit::NAME]);
    }
    match keeper::start_in_background(engine, dir) {
        Ok(pid) => crate::cli::print(&format!("{}: served (process {pid}), until the machine is booted again\n", dir.display())),
        Err(error) if error.outcome() == Kind::Busy => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn systemctl(is_root: bool, args: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new("systemctl");
    command.args((!is_root).then_some("--user")).args(args);
    let tried = || format!("systemctl {}", args.join(" "));
    let done = command.output().map_err(|e| Error::new(Kind::NotFound, tried()).because(e))?;
    if done.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&done.stderr).trim().replace('\n', " ");
    Err(Error::new(Kind::Unavailable, tried()).because(why).advise("with --no-start only the files are written").into())
}

fn is_there(path: &Path) -> Result<bool, Failure> {
    Ok(file::read(path)?.is_some())
}

/// Whether it is from this command, or not there.
fn is_ours(path: &Path) -> Result<bool, Failure> {
    Ok(file::read(path)?.is_none_or(|text| text.starts_with(WRITTEN)))
}
