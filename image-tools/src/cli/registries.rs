//! `towline registries`

use serde::Serialize;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::reference::Reference;
use towline_lazyfs::registry::Endpoint;

use super::images::pull::canonical;
use crate::credentials::Files;
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `registries`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As with --plain-http of `images pull`
    #[arg(long)]
    plain_http: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Image: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    reference: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Serialize)]
struct Line {
    address: String,
    tags: bool,
    digests: bool,
    tls: String,
    credentials: String,
    why: String,
}

/// Prints who is asked for an image. Nobody is asked yet.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let reference = canonical(&args.reference)?;
    let Ok(Reference::Registry(registry)) = reference.parse() else {
        return Err(Error::new(Kind::BadInput, format!("looking up the registries of {reference}"))
            .because("it is a directory of this machine")
            .into());
    };
    let files = Files::read(|name| std::env::var_os(name))?;
    let mut lines = Vec::new();
    for endpoint in engine.registries().endpoints(&registry, args.plain_http)? {
        let found = files.find(&endpoint.host, &endpoint.repository)?;
        let credentials =
            found.map_or_else(|| "none".to_owned(), |found| format!("{} from {}", found.credentials.username, found.source));
        lines.push(Line {
            address: endpoint.to_string(),
            tags: endpoint.serves.tags,
            digests: endpoint.serves.digests,
            tls: tls(&endpoint),
            credentials,
            why: endpoint.why,
        });
    }
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&lines).expect("a struct of texts") + "\n",
        Format::Text => {
            let asked_for = |line: &Line| match (line.tags, line.digests) {
                (true, true) => "tags and content",
                (true, false) => "tags",
                (false, true) => "content by digest",
                (false, false) => "nothing",
            };
            let show = |(n, line): (usize, &Line)| {
                format!(
                    "{}. {}\n   asked for    {}\n   because      {}\n   trust        {}\n   credentials  {}\n",
                    n + 1,
                    line.address,
                    asked_for(line),
                    line.why,
                    line.tls,
                    line.credentials
                )
            };
            lines.iter().enumerate().map(show).chain([format!("through {}\n", engine.settings.proxies)]).collect()
        }
    };
    super::print(&text)?;
    Ok(0)
}

fn tls(endpoint: &Endpoint) -> String {
    let mut parts = vec![match endpoint.schemes() {
        ["http"] => "no TLS".to_owned(),
        _ if endpoint.tls.skip_verify => "any certificate".to_owned(),
        _ => "the system's authorities".to_owned(),
    }];
    parts.extend(endpoint.tls.authorities.iter().map(|path| path.display().to_string()));
    parts.extend(endpoint.tls.identities.first().map(|own| format!("as {}", own.certificate.display())));
    if endpoint.schemes().len() > 1 {
        parts.push(format!("tries {}", endpoint.schemes().join(", then ")));
    }
    parts.join(", ")
}
