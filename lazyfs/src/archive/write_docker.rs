//! Writes what `docker load` and `podman load` read: layers as plain tars, named by their diffIDs. A registry's manifest has no place in such
//! a file, so the image gets another digest when it is pushed from it; configuration and diffIDs stay.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::write_oci::TarFile;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::stream;
use crate::layer::unpack::Unpacking;
use crate::manifest::{Compression, Config, Manifest};
use crate::source::Source;

/// Told how many compressed bytes of a layer have been read: digest, bytes.
pub type LayerProgress = Arc<dyn Fn(Digest, u64) + Send + Sync>;

/// Writes one image, called `names`, into the file at `path`. Every layer is verified by both of its digests.
pub async fn write_docker(
    source: &Arc<dyn Source>,
    image: &Manifest,
    config: &[u8],
    names: &[String],
    path: &Path,
    progress: LayerProgress,
) -> Result<()> {
    let diff_ids = Config::parse(config, image.layers.len())?.diff_ids;
    let mut tar = TarFile::create(path)?;
    let mut written = HashSet::new();
    for (layer, diff_id) in image.layers.iter().zip(&diff_ids) {
        if !written.insert(*diff_id) {
            continue;
        }
        let (digest, told) = (layer.digest, progress.clone());
        let reader = stream::reader(source.clone(), digest, layer.size, move |bytes| told(digest, bytes));
        let (compression, diff_id) = (layer.compression, *diff_id);
        let work = tokio::task::spawn_blocking(move || {
            let done = write_layer(&mut tar, reader, compression, &digest, &diff_id);
            (tar, done)
        });
        let (back, done) = work.await.expect("writing does not panic");
        done.map_err(|e| e.during(format!("copying layer {digest} from {}", source.name())))?;
        tar = back;
    }
    let config_name = format!("{}.json", Digest::of(config).hex());
    tar.add(&config_name, config)?;
    let layers: Vec<String> = diff_ids.iter().map(layer_name).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": layers}]);
    tar.add("manifest.json", manifest.to_string().as_bytes())?;
    tokio::task::spawn_blocking(move || tar.finish()).await.expect("writing does not panic")
}

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}

fn write_layer(tar: &mut TarFile, reader: impl Read, compression: Compression, digest: &Digest, diff_id: &Digest) -> Result<()> {
    let mut source = Unpacking::new(reader, compression)?;
    let mut member = tar.begin();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match source.read(&mut buffer).map_err(read_failed)? {
            0 => break,
            n => member.write(&buffer[..n])?,
        }
    }
    let len = member.len;
    let found = source.finish()?;
    for (what, found, wanted) in [("blob", found.blob, digest), ("uncompressed layer", found.tar, diff_id)] {
        if found != *wanted {
            return Err(Error::new(Outcome::Integrity, format!("checking the {what}"))
                .because(format!("its digest is {found}, not {wanted}"))
                .advise("the source's copy is damaged"));
        }
    }
    tar.close(&layer_name(diff_id), len)
}

/// An error of ours that came through a reader keeps its outcome.
fn read_failed(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(other) => Error::new(Outcome::Integrity, "uncompressing it").because(other),
    }
}
