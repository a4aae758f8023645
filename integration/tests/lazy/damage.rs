//! One byte flipped in the registry's storage: an error that names image, layer and offset, and no program ever reads it.

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;
use crate::truth::Truth;

/// The offset is a share of the blob in per mille, so that the case does not depend on what the packages weigh.
struct Case {
    what: &'static str,
    tag: &'static str,
    layer: usize,
    per_mille: u64,
}

const PAYLOADS: &[Case] = &[
    Case { what: "zstd:chunked, in a large or middle file", tag: "zstd", layer: 0, per_mille: 500 },
    Case { what: "zstd:chunked, near the end of the payload", tag: "zstd", layer: 0, per_mille: 950 },
    Case { what: "gzip, in the middle of the stream", tag: "gzip", layer: 0, per_mille: 500 },
];

impl Case {
    /// Flips the byte; the digest of its layer.
    fn apply(&self, rig: &Rig) -> String {
        let manifest = rig.registry.manifest("small", self.tag);
        let digest = manifest["layers"][self.layer]["digest"].as_str().unwrap().to_owned();
        rig.registry.damage(&digest, |bytes| {
            let at = bytes.len() * usize::try_from(self.per_mille).unwrap() / 1000;
            bytes[at] ^= 1;
        });
        digest
    }
}

fn names_image_layer_offset(text: &str, layer: &str) -> bool {
    // The layer may be shortened to its first twelve digits, as people write it.
    text.lines().any(|line| {
        line.contains("small")
            && line.contains(&layer["sha256:".len()..][..12])
            && (line.contains("offset ") || line.contains("at byte "))
    })
}

#[test]
fn a_flipped_payload_byte_is_never_read() {
    if !images::available("damage::a_flipped_payload_byte_is_never_read") {
        return;
    }
    let truth = Truth::of("small");
    for case in PAYLOADS {
        let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
        let layer = case.apply(&rig);
        let image = rig.image(&format!("small:{}", case.tag));
        let script = "find / -xdev -type f -exec probe sum {} +";
        let done = rig.towline.run(&["run", "--name", "reader", &image, "/bin/sh", "-c", script]);
        // Panics if any file came with other bytes than the layer's.
        let (read, failed) = truth.compare(&done.stdout);
        assert!(read < truth.len(), "{}: all {} files were read from a damaged layer", case.what, truth.len());
        assert!(done.code() == Some(125) || !failed.is_empty(), "{}: no error: {}\n{}", case.what, done.stdout, done.stderr);
        // The second is what a large file says.
        let is_told = |line: &String| line.ends_with("errno=ELOOP") || line.ends_with("errno=EIO");
        assert!(failed.iter().all(is_told), "{}: {failed:?}", case.what);
        let said = format!("{}\n{}", done.stderr, rig.towline.daemon_log());
        assert!(names_image_layer_offset(&said, &layer), "{}: no line names image, layer {layer} and offset: {said}", case.what);
    }
}

#[test]
fn a_full_pull_of_a_damaged_layer_fails_and_works_once_it_is_repaired() {
    if !images::available("damage::a_full_pull_of_a_damaged_layer_fails_and_works_once_it_is_repaired") {
        return;
    }
    for case in PAYLOADS {
        let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
        let layer = case.apply(&rig);
        let image = rig.image(&format!("small:{}", case.tag));
        let done = rig.towline.run(&["images", "pull", &image]);
        assert_eq!(done.code(), Some(125), "{}: {}{}", case.what, done.stdout, done.stderr);
        assert!(
            names_image_layer_offset(&done.stderr, &layer),
            "{}: layer {layer} and offset are not named: {}",
            case.what,
            done.stderr
        );
        case.apply(&rig); // flips it back
        rig.towline.run(&["images", "pull", &image]).success();
        let sums = rig.towline.run(&["run", "--rm", &image, "/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
        let (read, failed) = Truth::of("small").compare(&sums.stdout);
        assert!(failed.is_empty() && read >= 240, "{}: {read} read, {failed:?}, {}", case.what, sums.stderr);
    }
}

#[test]
fn a_flipped_byte_in_a_table_of_contents_or_manifest_ends_the_start() {
    if !images::available("damage::a_flipped_byte_in_a_table_of_contents_or_manifest_ends_the_start") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let layer = rig.registry.manifest("small", "zstd")["layers"][0].clone();
    let position = layer["annotations"]
        .as_object()
        .unwrap()
        .iter()
        .find(|(key, _)| key.ends_with("zstd-chunked.manifest-position"))
        .unwrap()
        .1;
    let offset: usize = position.as_str().unwrap().split(':').next().unwrap().parse().unwrap();
    let flip = |digest: &str, at: usize| rig.registry.damage(digest, |bytes| bytes[at] ^= 1);

    let digest = layer["digest"].as_str().unwrap();
    flip(digest, offset + 1000);
    let done = rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "true"]);
    assert_eq!(done.code(), Some(125), "table of contents: {}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains(&digest["sha256:".len()..][..12]), "table of contents: {}", done.stderr);
    flip(digest, offset + 1000);

    let manifest = rig.registry.manifest_digest("small", "zstd");
    let by_digest = rig.image(&format!("small@{manifest}"));
    // Inside the last digits of a hexadecimal digest, so that the document stays well-formed.
    let at = serde_json::to_string(&rig.registry.manifest("small", "zstd")).unwrap().find("\"size\"").unwrap() - 4;
    flip(&manifest, at);
    let done = rig.towline.run(&["run", "--rm", &by_digest, "true"]);
    assert_eq!(done.code(), Some(125), "manifest: {}{}", done.stdout, done.stderr);
    flip(&manifest, at);

    rig.towline.run(&["run", "--rm", &by_digest, "true"]).success();
}
