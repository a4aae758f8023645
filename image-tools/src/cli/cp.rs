//! `towline cp`

use std::path::Path;

use towline_lazyfs::error::{Error, Outcome as Kind};

use super::bad_flag;
use super::mounted::with_mounted;
use crate::container::record::Record;
use crate::container::registry;
use crate::container::status::Status;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::spec::copy::{Options, copy};
use crate::spec::rootdir::RootDir;

/// Flags of `cp`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep owners, and the bits that let programs run as them
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to, where the source is one
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// CONTAINER:PATH, or a path of this machine
    source: String,
    /// CONTAINER:PATH, or a path of this machine
    target: String,
}

/// Copies files and directories into a container or out of it, whether it runs or not.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let (container, outward) = match (inside(&args.source), inside(&args.target)) {
        (Some(container), None) => (container, true),
        (None, Some(container)) => (container, false),
        _ => return Err(bad_flag("CONTAINER:PATH", &args.target, "one of the two is in a container, the other is not")),
    };
    let here = if outward { &args.target } else { &args.source };
    if here == "-" {
        return Err(bad_flag("PATH", here, "tar streams are not supported: use `towline exec CONTAINER tar`"));
    }
    let here = local(here)?;
    let (name, path) = container;
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    let options = Options { archive: args.archive, follow: args.follow_link, keep_set_id: !outward };
    with_root(engine, &record, |root| {
        let host = RootDir::open(Path::new("/"))?;
        let (source, target) =
            if outward { ((root, path), (&host, here.as_str())) } else { ((&host, here.as_str()), (root, path)) };
        copy(source, target, options, &mut |line| super::warn(line)).map_err(Failure::from)
    })?;
    Ok(0)
}

/// Container and path; none for a path of this machine, which has a slash or a dot in front of any colon.
fn inside(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/') && !name.starts_with('.'))
}

/// An absolute path that still ends as it did: a slash or a dot there means something.
fn local(text: &str) -> Result<String, Failure> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let here = std::env::current_dir().map_err(|e| Error::io("reading", "the working directory", e))?;
    match here.to_str() {
        Some(here) => Ok(format!("{here}/{text}")),
        None => Err(bad_flag("PATH", text, "the working directory is no text: give an absolute path")),
    }
}

/// Works on the root of a container: as its processes see it, or mounted for this.
fn with_root(engine: &Engine, record: &Record, work: impl FnOnce(&RootDir) -> Result<(), Failure>) -> Result<(), Failure> {
    if let Status::Running { init, .. } = Status::of(&engine.paths, record)? {
        let root = RootDir::open(Path::new(&format!("/proc/{}/root", init.pid)))?;
        // What was opened is the container's only if the process was still the same afterwards.
        if !init.is_alive() {
            return Err(Error::new(Kind::Unavailable, format!("opening the root of container {}", record.name))
                .because("it has just ended")
                .advise("try again")
                .into());
        }
        return work(&root);
    }
    with_mounted(engine, record, "cp-", |root| work(&RootDir::open(root)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_paths_are_told_apart() {
        assert_eq!(inside("web:/etc/hosts"), Some(("web", "/etc/hosts")));
        assert_eq!(inside("web:"), Some(("web", "")));
        for local in ["/a:b", "./a:b", "a/b:c", "file", ":x", "-"] {
            assert_eq!(inside(local), None, "{local}");
        }
    }
}
