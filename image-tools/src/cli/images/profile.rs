//! `towline images profile`

use std::io::Write as _;
use std::path::PathBuf;

use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::profile::{MAX_PROFILE, Profile};
use towline_lazyfs::store::profiles::Profiles;

use crate::cli::table;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::timeline::step::size;

/// Flags of `images profile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the profile to a file, - for standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "push"])]
    export: Option<PathBuf>,
    /// Take the profile from a file; the image need not have been pulled if it is named by its digest
    #[arg(long, value_name = "FILE", conflicts_with = "push")]
    import: Option<PathBuf>,
    /// Push the profile to the image's registry, where other machines find it when they pull the image
    #[arg(long)]
    push: bool,
    /// Image: its name, or the digest of its manifest
    #[arg(value_name = "REF")]
    image: String,
}

/// Shows, exports, imports or pushes the access profile of an image.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let (image, profiles) = (resolve(engine, &args.image)?, Profiles::of(&engine.paths.root));
    if let Some(path) = &args.import {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("reading", path, e))?;
        if meta.len() > MAX_PROFILE {
            let why = format!("it has {} bytes, at most {MAX_PROFILE} are possible", meta.len());
            return Err(Error::new(Kind::BadInput, format!("reading {}", path.display())).because(why).into());
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
        let profile = Profile::parse(&bytes).map_err(|e| e.during(format!("reading {}", path.display())))?;
        profiles.put(&image, &profile)?;
        return Ok(0);
    }
    let profile = profiles.get(&image)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("looking up the access profile of {}", args.image))
            .because("no start of it was recorded")
            .advise("run a container of it, or record one with `towline run --record-profile`")
    })?;
    if args.push {
        let artifact = engine.daemon()?.push_profile(image)?;
        crate::cli::print(&format!("{artifact}\n"))?;
        return Ok(0);
    }
    match &args.export {
        Some(path) if path.as_os_str() == "-" => {
            std::io::stdout().write_all(&profile.to_bytes()).map_err(|e| Error::io("writing to", "standard output", e))?;
        }
        Some(path) => std::fs::write(path, profile.to_bytes()).map_err(|e| Error::io("writing", path, e))?,
        None => crate::cli::print(&render(&profile))?,
    }
    Ok(0)
}

fn resolve(engine: &Engine, image: &str) -> Result<Digest, Failure> {
    if let Ok(digest) = image.parse::<Digest>() {
        return Ok(digest);
    }
    Ok(image::find(&engine.db()?, image)?.digest)
}

fn render(profile: &Profile) -> String {
    let cells: Vec<_> = profile
        .accesses()
        .iter()
        .map(|access| vec![format!("{} ms", access.at), size(access.bytes()), size(access.size), format!("/{}", access.path)])
        .collect();
    let files = profile.accesses().len();
    let all = format!("{files} files, {} in {} ms, {} starts\n", size(profile.bytes()), profile.milliseconds, profile.starts);
    table::render(&["AT", "READ", "SIZE", "PATH"], &cells) + &all
}
