//! `towline patch`

use towline_lazyfs::daemon::protocol::{PullPolicy, PullUntil, Reply};
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::images::pull::{SourceArgs, unexpected};
use super::table;
use crate::container::record::Record;
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::time;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::patch::image::MountedImage;
use crate::patch::root::Root;
use crate::patch::{Patch, Patches, is_changed, normal};

/// Flags of `patch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image to take the files from; it is pulled where it is not known, and only these files of it are fetched
    #[arg(long, value_name = "REF", required_unless_present_any = ["list", "revert"], conflicts_with_all = ["list", "revert"])]
    from: Option<String>,
    /// List what is patched
    #[arg(long, conflicts_with = "revert")]
    list: bool,
    /// Bring the container's own image's files back; without paths, all of them
    #[arg(long)]
    revert: bool,
    /// Also where the container has changed the file itself
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    source: SourceArgs,
    /// How to print the list
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// A running container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Absolute paths of files
    #[arg(value_name = "PATH", required_unless_present_any = ["list", "revert"])]
    paths: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Puts files of another image into a running container, lists them, or takes them back.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let dirs = Dirs::of(&engine.paths, &record.id);
    match &args.from {
        Some(from) => patch(engine, args, &record, &dirs, from),
        None if args.revert => revert(engine, args, &record, &dirs),
        None => list(&Patches::load(&dirs)?, args.format),
    }
}

fn list(patches: &Patches, format: Format) -> Outcome {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&patches.patches).expect("patches have only string keys") + "\n",
        Format::Text => {
            let rows: Vec<_> =
                patches.patches.iter().map(|patch| vec![patch.path.clone(), patch.from.clone(), time::ago(patch.time)]).collect();
            table::render(&["PATH", "FROM", "PATCHED"], &rows)
        }
    };
    super::print(&text)?;
    Ok(0)
}

fn patch(engine: &Engine, args: &Args, record: &Record, dirs: &Dirs, from: &str) -> Outcome {
    let root = running(engine, record)?;
    let paths = args.paths.iter().map(|path| normal(path)).collect::<Result<Vec<_>, _>>()?;
    let mut patches = Patches::load(dirs)?;
    for path in &paths {
        check_unchanged(&root, dirs, &patches, path, args.force)?;
    }
    let request = args.source.request(engine, from, PullUntil::Startable, PullPolicy::Missing)?;
    let (name, image) = match engine.daemon()?.pull(request, &mut |_| {})? {
        Reply::Pulled { name, image, .. } => (name, image),
        other => return Err(unexpected(from, &other)),
    };
    let mounted = MountedImage::mount(engine, &image.to_string())?;
    let source = Root::at(mounted.dir(), name.clone())?;
    // All of them before the first is put: a path that is wrong must not leave half of a change.
    let mut files = Vec::new();
    for path in paths {
        let file = source.file(&path)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("patching {path}"))
                .because(format!("{name} has no such file"))
                .advise("nothing was changed")
        })?;
        files.push((path, file));
    }
    for (path, mut file) in files {
        let content = root.put(&path, &mut file)?;
        patches.put(Patch { path: path.clone(), from: name.clone(), image, content, time: time::now() });
        patches.store(dirs)?;
        super::print(&format!("{path}: {name}\n"))?;
    }
    Ok(0)
}

fn revert(engine: &Engine, args: &Args, record: &Record, dirs: &Dirs) -> Outcome {
    let root = running(engine, record)?;
    let mut patches = Patches::load(dirs)?;
    let paths = match args.paths.is_empty() {
        true => patches.patches.iter().map(|patch| patch.path.clone()).collect(),
        false => args.paths.iter().map(|path| normal(path)).collect::<Result<Vec<_>, _>>()?,
    };
    for path in &paths {
        if patches.of(path).is_none() {
            let error = Error::new(Kind::NotFound, format!("reverting {path} of {}", record.name));
            return Err(error.because("it is not patched").advise("see `towline patch --list`").into());
        }
        check_unchanged(&root, dirs, &patches, path, args.force)?;
    }
    if paths.is_empty() {
        return Ok(0);
    }
    let mounted = MountedImage::mount(engine, &record.image.to_string())?;
    let own = Root::at(mounted.dir(), record.image_name.clone())?;
    for path in paths {
        match own.file(&path)? {
            Some(mut file) => drop(root.put(&path, &mut file)?),
            None => root.remove(&path)?,
        }
        patches.forget(&path);
        patches.store(dirs)?;
        super::print(&format!("{path}: {}\n", record.image_name))?;
    }
    Ok(0)
}

/// The root of the container's first process.
fn running(engine: &Engine, record: &Record) -> Result<Root, Failure> {
    match Status::of(&engine.paths, record)? {
        Status::Running { init, .. } => {
            let root = Root::of_process(init.pid)?;
            // The number may have become another process's between the two.
            match init.is_alive() {
                true => Ok(root),
                false => Err(not_running(record)),
            }
        }
        _ => Err(not_running(record)),
    }
}

fn not_running(record: &Record) -> Failure {
    Error::new(Kind::NotFound, format!("patching container {}", record.name))
        .because("it does not run")
        .advise("see `towline ps -a`")
        .into()
}

/// Refuses a path that the container has changed by itself: that would be lost.
fn check_unchanged(root: &Root, dirs: &Dirs, patches: &Patches, path: &str, force: bool) -> Result<(), Failure> {
    if force || !is_changed(&dirs.home.join("upper"), path)? {
        return Ok(());
    }
    let now = root.digest(path)?;
    if patches.of(path).is_some_and(|patch| Some(patch.content) == now) {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, format!("patching {path}"))
        .because("the container has changed that file itself")
        .advise("its version is lost with --force")
        .into())
}
