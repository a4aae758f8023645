//! `towline images diff`

use towline_lazyfs::inspect::diff::{Change, Difference, compare, tree};

use super::pull::SourceArgs;
use super::session::{Place, Session};
use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;

/// Flags of `images diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: SourceArgs,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// The image before: of the store, or elsewhere
    #[arg(value_name = "A")]
    before: String,
    /// The image after
    #[arg(value_name = "B")]
    after: String,
}

/// Prints which files two images do not have alike. Layers with a table of contents are not pulled for it.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let session = Session::open(engine, &args.remote)?;
    let found = block_on(async {
        let mut trees = Vec::new();
        for image in [&args.before, &args.after] {
            let (_, opened) = session.inspect(image, Place::Anywhere).await?;
            trees
                .push(tree(&opened, Some(session.store())).await.map_err(|e| e.during(format!("reading the files of {image}")))?);
        }
        Ok::<_, Failure>(compare(&trees[0], &trees[1]))
    })??;
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&found).expect("differences have only string keys") + "\n",
        Format::Table => found.iter().map(line).collect(),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn line(difference: &Difference) -> String {
    let path = table::cut(&difference.path, 4096);
    let sizes = |before: Option<u64>, after: Option<u64>| match (before, after) {
        (Some(a), Some(b)) if a != b => format!("  {} -> {}", size(a), size(b)),
        (Some(a), None) | (None, Some(a)) => format!("  {}", size(a)),
        _ => String::new(),
    };
    let sizes = sizes(difference.size_before, difference.size_after);
    match difference.change {
        Change::Added => format!("A {path}{sizes}\n"),
        Change::Removed => format!("D {path}{sizes}\n"),
        Change::Changed => format!("C {path}  ({}){sizes}\n", difference.what.join(", ")),
    }
}
