//! `towline ps`

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Serialize;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::store::db::{ImageRow, ImageState};

use super::table;
use crate::container::record::Record;
use crate::container::registry::Dirs;
use crate::container::status::Status;
use crate::container::{id, registry, time};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::network::{Connection, Interface};

/// Flags of `ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
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
    /// `local`, `lazy 43%`, `poisoned`, or `removed`.
    content: String,
}

/// Lists containers, newest first.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let images: HashMap<Digest, ImageRow> = engine.db()?.images()?.into_iter().map(|image| (image.digest, image)).collect();
    let mut rows = Vec::new();
    for id in registry::ids(&engine.paths)? {
        match row(engine, &id, &images) {
            Ok(Some(row)) if args.all || row.pid.is_some() || row.status == "creating" => rows.push(row),
            Ok(_) => {}
            // One broken record must not hide the others.
            Err(failure) => super::warn(&failure.line),
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.created));
    let text = match (args.quiet, args.format) {
        (true, _) => rows.iter().map(|row| format!("{}\n", id::short(&row.id))).collect(),
        (false, Format::Json) => serde_json::to_string_pretty(&rows).expect("rows have only string keys") + "\n",
        (false, Format::Table) => render(&rows),
    };
    super::print(&text)?;
    Ok(0)
}

fn row(engine: &Engine, id: &str, images: &HashMap<Digest, ImageRow>) -> Result<Option<Row>, Failure> {
    // Without a record it was just removed, or is being made.
    let Some(record) = registry::load(&engine.paths, id)? else { return Ok(None) };
    let status = Status::of(&engine.paths, &record)?;
    let (ip, ports) = addresses(&Dirs::of(&engine.paths, id))?;
    let content = content(images.get(&record.image));
    let Record { id, name, image_name, image, created, plan, .. } = record;
    Ok(Some(Row {
        id,
        name,
        image: image_name,
        image_digest: image,
        command: plan.args,
        created,
        status: status.word(),
        status_text: status.text(),
        pid: if let Status::Running { init, .. } = status { Some(init.pid) } else { None },
        exit_code: if let Status::Exited(exit) = status { Some(exit.code) } else { None },
        ip,
        ports,
        content,
    }))
}

/// Addresses and ports of a container that is connected.
fn addresses(dirs: &Dirs) -> Result<(Vec<IpAddr>, Vec<String>), Failure> {
    let Some(connection) = Connection::of(dirs)? else { return Ok(Default::default()) };
    let interfaces = connection.interfaces.iter().map(Interface::connected);
    let ip = interfaces.flat_map(|interface| interface.addresses).map(|address| address.ip).collect();
    Ok((ip, connection.ports.iter().map(ToString::to_string).collect()))
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

fn render(rows: &[Row]) -> String {
    // A column that most people never need.
    let with_ports = rows.iter().any(|row| !row.ports.is_empty());
    let cells = rows.iter().map(|row| {
        let mut cells = vec![
            id::short(&row.id).to_owned(),
            row.name.clone(),
            table::cut(&row.image, 48),
            table::cut(&row.command.join(" "), 32),
            time::ago(row.created),
            row.status_text.clone(),
            row.content.clone(),
        ];
        if with_ports {
            cells.push(row.ports.join(", "));
        }
        cells
    });
    let head = ["CONTAINER ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "CONTENT", "PORTS"];
    let head = if with_ports { &head[..] } else { &head[..head.len() - 1] };
    table::render(head, &cells.collect::<Vec<_>>())
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
