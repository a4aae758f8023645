//! `towline info`

use serde::Serialize;
use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::rootfs::plan::By;
use towline_lazyfs::rootfs::probe::{Features, Mode};
use towline_lazyfs::store::db::ImageState;

use crate::container::registry;
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Serialize)]
struct Info {
    root: String,
    state: String,
    runtime: String,
    towlined: String,
    towlined_pid: Option<u32>,
    kernel: String,
    /// How images are mounted here; unknown until a daemon has tried.
    mode: Option<Mode>,
    /// Why not by the kernel.
    why: String,
    /// How roots of containers are mounted whose image is complete.
    complete: Option<By>,
    /// Why not by the kernel.
    why_complete: String,
    images: usize,
    lazy_images: usize,
    containers: usize,
}

/// Prints where everything is.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let images = engine.db()?.images()?;
    let features = Features::read(&engine.paths.state)?;
    let info = Info {
        root: engine.paths.root.display().to_string(),
        state: engine.paths.state.display().to_string(),
        runtime: engine.runtime.display().to_string(),
        towlined: engine.towlined.display().to_string(),
        towlined_pid: Client::connect(&engine.paths)?.map(|daemon| daemon.daemon_pid()),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        mode: features.as_ref().map(|features| features.mode),
        complete: features.as_ref().map(|features| features.complete),
        why: features.as_ref().map(|features| features.why.clone()).unwrap_or_default(),
        why_complete: features.map(|features| features.why_complete).unwrap_or_default(),
        images: images.len(),
        lazy_images: images.iter().filter(|image| image.state == ImageState::Lazy).count(),
        containers: registry::ids(&engine.paths)?.len(),
    };
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&info).expect("a struct of texts and numbers") + "\n",
        Format::Text => {
            let daemon =
                info.towlined_pid.map_or_else(|| "does not run: nothing needs it".into(), |pid| format!("process {pid}"));
            let mode = match info.mode {
                Some(Mode::Overlay) => "EROFS and overlayfs in the kernel, FUSE for what is missing".into(),
                Some(Mode::Tree) => {
                    let complete = match info.complete {
                        Some(By::Server) => format!("by FUSE too, since {}", info.why_complete),
                        _ => "EROFS through loop devices, and overlayfs".into(),
                    };
                    format!("whole trees by FUSE, since {}\ncomplete    {complete}", info.why)
                }
                None => "found out when towlined starts".to_owned(),
            };
            format!(
                "store       {}\nstate       {}\nruntime     {}\ntowlined    {} ({daemon})\nkernel      {}\nmounts      {mode}\nimages      {} ({} lazy)\ncontainers  {}\n",
                info.root, info.state, info.runtime, info.towlined, info.kernel, info.images, info.lazy_images, info.containers
            )
        }
    };
    super::print(&text)?;
    Ok(0)
}
