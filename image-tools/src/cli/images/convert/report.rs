//! What a conversion did, for people.

use towline_lazyfs::convert::{LayerReport, Report};
use towline_lazyfs::reference::Reference;

use crate::cli::table;
use crate::timeline::step::size;

/// A table of the layers, and the new image.
pub fn render(to: &Reference, report: &Report) -> String {
    let mut text = String::new();
    for image in &report.images {
        let cells: Vec<Vec<String>> = image.layers.iter().map(cells).collect();
        text.push_str(&table::render(&["LAYER", "SIZE", "BECAME", "SIZE", "FORMAT", "STATE"], &cells));
        let diff_ids = if image.same_diff_ids { "the same diffIDs" } else { "new diffIDs" };
        text.push_str(&format!("{} {}, {diff_ids}\n", image.platform, image.to));
    }
    text.push_str(&format!("{to}@{}\n", report.digest));
    text
}

fn cells(layer: &LayerReport) -> Vec<String> {
    let format = layer.format.map_or_else(|| "as it was".to_owned(), |format| format.to_string());
    let mut state = if layer.existed { "was there".to_owned() } else { "written".to_owned() };
    if layer.hot_bytes > 0 {
        state.push_str(&format!(", {} needed first", size(layer.hot_bytes)));
    }
    if let Some(note) = &layer.note {
        state.push_str(&format!("; {note}"));
    }
    vec![layer.from.short(), size(layer.from_size), layer.to.short(), size(layer.to_size), format, state]
}

#[cfg(test)]
mod tests {
    use towline_lazyfs::convert::ImageReport;
    use towline_lazyfs::digest::Digest;
    use towline_lazyfs::layer::write::Format;

    use super::*;

    #[test]
    fn layers_say_what_became_of_them() {
        let digest = Digest::of(b"x");
        let layer = LayerReport {
            from: digest,
            from_size: 2_000_000,
            to: digest,
            to_size: 1_000_000,
            format: Some(Format::Zstd),
            existed: false,
            hot_bytes: 1000,
            note: Some("its entry `x` is there twice".into()),
        };
        let copied = LayerReport { format: None, existed: true, hot_bytes: 0, note: None, ..layer.clone() };
        let image = ImageReport {
            platform: "linux/amd64".into(),
            from: digest,
            to: digest,
            same_diff_ids: true,
            layers: vec![layer, copied],
        };
        let report = Report { digest, images: vec![image], notes: Vec::new() };
        let text = render(&"oci:/d:t".parse().unwrap(), &report);
        for says in
            ["zstd", "written, 1.0 kB needed first; its entry", "as it was", "was there", "the same diffIDs", "oci:/d:t@sha256:"]
        {
            assert!(text.contains(says), "{says}: {text}");
        }
    }
}
