//! `towline ps`

mod engines;
mod filter;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::store::db::{ImageRow, ImageState};

use engines::Need;
use filter::{Filter, Subject};

use super::{table, template};
use crate::container::namespace::Namespace;
use crate::container::record::Record;
use crate::container::registry::Dirs;
use crate::container::status::Status;
use crate::container::{id, pause, registry, time};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::network::{Connection, Interface};

/// Flags of `ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that do not run, and images that containerd and podman use
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Only those of which it is true: id=, name=, status=, ancestor=, exited=, network= or engine=; may be given again
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Only the N newest, also those that do not run
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Only the newest, also if it does not run
    #[arg(short, long)]
    latest: bool,
    /// Whole ids, images and commands
    #[arg(long)]
    no_trunc: bool,
    /// How to print them: table, json, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    format: template::Format,
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One array of objects.
    Json,
}

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    image: String,
    image_digest: Digest,
    command: Vec<String>,
    created: u64,
    status: &'static str,
    status_text: String,
    pid: Option<i32>,
    exit_code: Option<u8>,
    /// Addresses in its networks.
    ip: Vec<IpAddr>,
    /// Ports of this machine, `0.0.0.0:8080->80/tcp`.
    ports: Vec<String>,
    networks: Vec<String>,
    /// `local`, `lazy 43%`, `poisoned`, or `removed`.
    content: String,
    /// `towline`; `containerd` or `podman` for an image that is used there, which has neither id nor name.
    engine: &'static str,
    namespace: Option<Namespace>,
    /// What uses it there: keys of snapshots, digests of layers.
    used_by: Vec<String>,
}

/// Lists containers, newest first.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let db = engine.db()?;
    let images: HashMap<Digest, ImageRow> = db.images()?.into_iter().map(|image| (image.digest, image)).collect();
    // Whoever asks for those that have ended need not ask twice.
    let shown = args.all
        || args.latest
        || args.last.is_some()
        || args.filter.iter().any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)));
    let mut rows = Vec::new();
    for id in registry::ids_in(&engine.paths, &engine.namespace)? {
        match row(engine, &id, &images) {
            Ok(Some(row)) if (shown || row.is_live()) && Filter::all(&args.filter, &row.subject()) => rows.push(row),
            Ok(_) => {}
            // One broken record must not hide the others.
            Err(failure) => super::warn(&failure.line),
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.created));
    rows.truncate(if args.latest { 1 } else { args.last.unwrap_or(usize::MAX) });
    // Ids are for who does something to containers.
    if args.all && !args.quiet && !args.latest && args.last.is_none() {
        let others = engines::needs(&db.all_pins()?, &engine.namespace).into_iter().map(|need| other(need, &images));
        rows.extend(others.filter(|row| Filter::all(&args.filter, &row.subject())));
    }
    let shown = |id: &str| if args.no_trunc { id.to_owned() } else { id::short(id).to_owned() };
    let text = match (args.quiet, &args.format) {
        (true, _) => rows.iter().map(|row| format!("{}\n", shown(&row.id))).collect(),
        (false, template::Format::Json) => serde_json::to_string_pretty(&rows).expect("rows have only string keys") + "\n",
        (false, template::Format::Table) => render(&rows, args.no_trunc),
        (false, template::Format::Template(template)) => {
            rows.iter().map(|row| template.render(&row.document(args.no_trunc))).collect::<Result<String, _>>()?
        }
    };
    super::print(&text)?;
    Ok(0)
}

impl Row {
    fn is_live(&self) -> bool {
        self.pid.is_some() || self.status == "creating"
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            id: &self.id,
            name: &self.name,
            status: self.status,
            image: &self.image,
            exit_code: self.exit_code,
            networks: &self.networks,
            engine: self.engine,
        }
    }

    /// For templates: the row with the names that docker has for its fields, too.
    fn document(&self, whole: bool) -> Value {
        let mut document = serde_json::to_value(self).expect("rows have only string keys");
        let more = json!({
            "ID": if whole { &self.id } else { id::short(&self.id) },
            "Names": self.name,
            "Image": self.image,
            "Command": self.command.join(" "),
            "CreatedAt": time::rfc3339(UNIX_EPOCH + Duration::from_secs(self.created)),
            "RunningFor": time::ago(self.created),
            "State": self.status,
            "Status": self.status_text,
            "Ports": self.ports.join(", "),
            "Networks": self.networks.join(","),
            "Content": self.content,
            "Engine": self.engine,
            "Namespace": self.namespace,
            "UsedBy": self.used_by.join(", "),
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        document
    }
}

fn row(engine: &Engine, id: &str, images: &HashMap<Digest, ImageRow>) -> Result<Option<Row>, Failure> {
    // Without a record it was just removed, or is being made.
    let Some(record) = registry::load(&engine.paths, id)? else { return Ok(None) };
    let status = Status::of(&engine.paths, &record)?;
    let dirs = Dirs::of(&engine.paths, id);
    let Connected { ip, ports, networks } = addresses(&dirs)?;
    let paused = matches!(status, Status::Running { .. }) && pause::is_paused(&dirs);
    let content = content(images.get(&record.image));
    let Record { id, name, image_name, image, created, plan, namespace, .. } = record;
    Ok(Some(Row {
        id,
        name,
        image: image_name,
        image_digest: image,
        command: plan.args,
        created,
        status: if paused { "paused" } else { status.word() },
        status_text: if paused { format!("{} (Paused)", status.text()) } else { status.text() },
        pid: if let Status::Running { init, .. } = status { Some(init.pid) } else { None },
        exit_code: if let Status::Exited(exit) = status { Some(exit.code) } else { None },
        ip,
        ports,
        networks,
        content,
        engine: engines::OWN,
        namespace: Some(namespace),
        used_by: Vec::new(),
    }))
}

/// An image that another engine uses.
fn other(need: Need, images: &HashMap<Digest, ImageRow>) -> Row {
    let image = images.get(&need.image);
    let name = need.reference.clone().or_else(|| Some(image?.names.first().unwrap_or(&image?.reference).clone()));
    Row {
        id: String::new(),
        name: String::new(),
        image: name.unwrap_or_else(|| need.image.to_string()),
        image_digest: need.image,
        command: Vec::new(),
        created: image.map_or(0, |image| image.created),
        status: "used",
        status_text: need.summary(),
        pid: None,
        exit_code: None,
        ip: Vec::new(),
        ports: Vec::new(),
        networks: Vec::new(),
        content: content(image),
        engine: need.engine,
        namespace: None,
        used_by: need.used_by,
    }
}

#[derive(Default)]
struct Connected {
    ip: Vec<IpAddr>,
    ports: Vec<String>,
    networks: Vec<String>,
}

/// Where a container is connected.
fn addresses(dirs: &Dirs) -> Result<Connected, Failure> {
    let Some(connection) = Connection::of(dirs)? else { return Ok(Connected::default()) };
    let interfaces = connection.interfaces.iter().map(Interface::connected);
    let ip = interfaces.flat_map(|interface| interface.addresses).map(|address| address.ip).collect();
    let networks = connection.interfaces.iter().map(|interface| interface.network.clone()).collect();
    Ok(Connected { ip, ports: connection.ports.iter().map(ToString::to_string).collect(), networks })
}

/// How much of an image is local, for the CONTENT column.
pub fn content(image: Option<&ImageRow>) -> String {
    match image {
        None => "removed".into(),
        Some(image) => match image.state {
            ImageState::Complete => "local".into(),
            ImageState::Poisoned => "poisoned".into(),
            ImageState::Lazy => {
                let percent = (u128::from(image.bytes_local) * 100 / u128::from(image.bytes_total.max(1))).min(99);
                format!("lazy {percent}%")
            }
        },
    }
}

fn render(rows: &[Row], whole: bool) -> String {
    let most = |most: usize| if whole { usize::MAX } else { most };
    // A column that most people never need.
    let with_ports = rows.iter().any(|row| !row.ports.is_empty());
    let with_engines = rows.iter().any(|row| row.engine != engines::OWN);
    let cells = rows.iter().map(|row| {
        let mut cells = vec![
            if whole { row.id.clone() } else { id::short(&row.id).to_owned() },
            row.name.clone(),
            table::cut(&row.image, most(48)),
            table::cut(&row.command.join(" "), most(32)),
            time::ago(row.created),
            row.status_text.clone(),
            row.content.clone(),
        ];
        if with_ports {
            cells.push(row.ports.join(", "));
        }
        if with_engines {
            cells.push(row.engine.to_owned());
        }
        cells
    });
    let mut head = vec!["CONTAINER ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "CONTENT"];
    head.extend(with_ports.then_some("PORTS"));
    head.extend(with_engines.then_some("ENGINE"));
    table::render(&head, &cells.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_column() {
        let image = |state, bytes_local| ImageRow {
            digest: Digest::of(b""),
            names: vec![],
            reference: String::new(),
            state,
            reason: String::new(),
            bytes_total: 1000,
            bytes_local,
            content_bytes: 0,
            entries: 0,
            created: 0,
            last_used: 0,
        };
        for (state, local, text) in [
            (ImageState::Lazy, 0, "lazy 0%"),
            (ImageState::Lazy, 439, "lazy 43%"),
            // Only verified layers make an image local.
            (ImageState::Lazy, 1000, "lazy 99%"),
            (ImageState::Complete, 1000, "local"),
            (ImageState::Poisoned, 10, "poisoned"),
        ] {
            assert_eq!(content(Some(&image(state, local))), text);
        }
        assert_eq!(content(None), "removed");
    }
}
