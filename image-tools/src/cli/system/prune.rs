//! `towline system prune`

use serde_json::json;
use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::daemon::protocol::Reply;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::store::Store;
use towline_lazyfs::store::quota::bytes;
use towline_lazyfs::store::usage;

use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;

/// Flags of `system prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also remove images that no container uses
    #[arg(long)]
    all: bool,
    /// Remove images that no container uses, those first that were not used for the longest time, until the store has no more than this
    /// many bytes (K, M, G, T: powers of 1000)
    #[arg(long, value_name = "BYTES", conflicts_with = "all", value_parser = bytes)]
    to: Option<u64>,
    /// How to print what was done
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Removes what nobody needs.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let mut daemon = engine.daemon()?;
    let mut freed = freed(daemon.prune()?)?;
    let mut images = 0;
    if args.all || args.to.is_some() {
        let store = Store::open(&engine.paths.root)?;
        for image in engine.db()?.by_last_use()? {
            let db = engine.db()?;
            if let Some(most) = args.to
                && usage::usage(&store, &db)?.total() <= most
            {
                break;
            }
            // Asked again by whoever removes it: a container may be started meanwhile.
            if db.pins(&image)?.is_empty()
                && let Some(bytes) = remove(&mut daemon, &image.to_string())?
            {
                images += 1;
                freed += bytes;
            }
        }
    }
    let text = match args.format {
        Format::Table => format!("{images} images removed, {} became free\n", size(freed)),
        Format::Json => format!("{:#}\n", json!({"images_removed": images, "bytes_freed": freed})),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// Removes an image; `None` where somebody began to use it.
fn remove(daemon: &mut Client, image: &str) -> Result<Option<u64>, Failure> {
    match daemon.remove_image(image) {
        Ok(reply) => freed(reply).map(Some),
        Err(e) if matches!(e.outcome(), Kind::Busy | Kind::NotFound) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn freed(reply: Reply) -> Result<u64, Failure> {
    match reply {
        Reply::Removed { bytes_freed, .. } => Ok(bytes_freed),
        other => Err(Error::new(Kind::BadInput, "pruning the store").because(format!("towlined answered {other:?}")).into()),
    }
}
