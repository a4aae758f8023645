//! What containers/storage wants to know of a layer before it is here: the fields of its own record of layers (`layers.go`, `Layer`).

use serde::Serialize;

use crate::digest::Digest;
use crate::layer::{EntryKind, LayerIndex};
use crate::manifest::{Compression, Layer};

/// Annotations whose value is the digest of a layer's table of contents; it names the layer to podman 5.
const TABLES: [&str; 2] = ["io.github.containers.zstd-chunked.manifest-checksum", "containerd.io/snapshot/stargz/toc.digest"];

/// Block of a tar.
const BLOCK: u64 = 512;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    compressed_diff_digest: Digest,
    compressed_size: u64,
    diff_digest: Digest,
    diff_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    toc_digest: Option<Digest>,
    /// The numbers of `archive.Compression`.
    compression: u8,
}

/// The JSON document about a layer.
pub fn of(layer: &Layer, diff_id: Digest, index: &LayerIndex) -> Vec<u8> {
    let compression = match layer.compression {
        Compression::None => 0,
        Compression::Gzip => 2,
        Compression::Zstd => 4,
    };
    let info = Info {
        compressed_diff_digest: layer.digest,
        compressed_size: layer.size,
        diff_digest: diff_id,
        diff_size: unpacked(index),
        toc_digest: table(layer),
        compression,
    };
    serde_json::to_vec(&info).expect("numbers and digests")
}

/// The layer of an image that has this digest, or whose table of contents has it.
pub fn find<'a>(layers: &'a [Layer], digest: &Digest) -> Option<&'a Layer> {
    layers
        .iter()
        .find(|layer| layer.digest == *digest)
        .or_else(|| layers.iter().find(|layer| table(layer).as_ref() == Some(digest)))
}

fn table(layer: &Layer) -> Option<Digest> {
    TABLES.iter().find_map(|key| layer.annotations.get(*key)?.parse().ok())
}

/// Length of the tar, without what long names and attributes need: podman adds these up for the size of an image.
fn unpacked(index: &LayerIndex) -> u64 {
    let one = |kind: &EntryKind| match kind {
        EntryKind::File(content) => content.size.next_multiple_of(BLOCK).saturating_add(BLOCK),
        _ => BLOCK,
    };
    index.entries.iter().map(|entry| one(&entry.kind)).fold(2 * BLOCK, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{dir, file, layer};

    #[test]
    fn the_fields_are_those_of_containers_storage() {
        let (blob, table, diff_id) = (Digest::of(b"blob"), Digest::of(b"table"), Digest::of(b"diff"));
        let annotations = [(TABLES[0].to_owned(), table.to_string())].into();
        let described = Layer { digest: blob, size: 77, compression: Compression::Zstd, annotations };
        let index = layer(vec![dir("d"), file("d/f", &[1; 513]), file("empty", b"")]);
        let text: serde_json::Value = serde_json::from_slice(&of(&described, diff_id, &index)).unwrap();
        let wanted = serde_json::json!({
            "compressed-diff-digest": blob, "compressed-size": 77, "diff-digest": diff_id, "diff-size": 512 * 7, "toc-digest": table,
            "compression": 4
        });
        assert_eq!(text, wanted);
        let layers = [Layer { annotations: [].into(), digest: table, ..described.clone() }, described];
        for (digest, wanted) in [(&blob, Some(1)), (&table, Some(0)), (&diff_id, None)] {
            let found = find(&layers, digest).map(|found| layers.iter().position(|one| one == found).unwrap());
            assert_eq!(found, wanted, "{digest}");
        }
    }
}
