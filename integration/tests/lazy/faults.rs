//! A registry that misbehaves, from end to end: pulls, and programs that wait. The bytes on the wire are in the fetcher's own table.

use serde_json::{Value, json};
use towline_integration::faulty::{Fault, FaultyRegistry, Kind, On};
use towline_integration::images::{self, Layout, digest};
use towline_integration::link::{Link, Quality};
use towline_integration::registry::Registry;
use towline_integration::towline::Towline;

use crate::failure::one_clear_line;
use crate::rig::{Rig, after};
use crate::truth::Truth;

const DEMAND_ONLY: &str = "readahead=0,readbehind=0,read-window=0,ahead=0,background=off,demand-deadline=6500";

/// A rig whose link leads to the faulty registry. The other one of it is empty.
fn rig(towline: Towline, faulty: &FaultyRegistry) -> Rig {
    let link = Link::start(faulty.address(), Quality::LOOPBACK).unwrap();
    Rig { towline, link, registry: Registry::start_empty() }
}

#[test]
fn pulls_bear_what_passes_and_say_what_does_not() {
    if !images::available("faults::pulls_bear_what_passes_and_say_what_does_not") {
        return;
    }
    use Kind::{Encoded, Flipped, Half, OtherRange, Status, Storm};
    use On::{Blobs, Manifests};
    let faulty = FaultyRegistry::start(Layout::built("small"), &["zstd", "gzip"]);
    let host = faulty.address().to_string();
    let rig = rig(Towline::new().with_env("TOWLINE_FETCH", DEMAND_ONLY), &faulty);
    let manifest = digest(&Layout::built("small").manifest_bytes("zstd"));
    let by_digest = rig.image(&format!("small@{manifest}"));
    let by_tag = rig.image("small:zstd");
    let proxy = rig.link.address().to_string();
    let passing = [
        ("two 5xx for the manifest", Fault::times(2, Manifests, Storm), &by_tag),
        ("429 for a second", Fault::times(1, Manifests, Status(429, Some(1))), &by_tag),
        ("bodies that break off", Fault::times(2, Blobs, Half), &by_tag),
        // Its table of contents cannot be had, so it streams.
        ("ranges of another place", Fault::always(Blobs, OtherRange), &by_tag),
        ("two 5xx for blobs", Fault::times(2, Blobs, Storm), &by_tag),
    ];
    let lasting: [(&str, Fault, &String, &[&str]); 5] = [
        ("a storm that stays", Fault::always(Manifests, Storm), &by_tag, &["small", "50", "again"]),
        (
            "a manifest that is compressed on the way",
            Fault::always(Manifests, Encoded),
            &by_tag,
            &["small", "content-encoding: gzip"],
        ),
        ("a manifest with a flipped bit", Fault::always(Manifests, Flipped), &by_digest, &["small", "its digest is"]),
        ("blobs with a flipped bit", Fault::always(Blobs, Flipped), &by_tag, &["small", "digest", "again"]),
        ("blobs that nobody may have", Fault::always(Blobs, Status(403, None)), &by_tag, &["403", "log in"]),
    ];
    let mut flaws = Vec::new();
    for (what, fault, image, wanted) in lasting {
        faulty.set(Some(fault));
        let done = rig.towline.run(&["images", "pull", "--lazy", image]);
        flaws.extend(one_clear_line(what, &done, &[wanted, &[proxy.as_str()]].concat()).err());
        let listed = rig.towline.run(&["images", "ls"]).success().stdout;
        assert!(!listed.contains(&proxy), "{what}: the image is listed\n{listed}");
    }
    for (what, fault, image) in passing {
        faulty.set(Some(fault));
        let done = rig.towline.run(&["images", "pull", "--lazy", image]);
        if done.code() != Some(0) {
            flaws.push(format!("{what}: {}{}", done.stdout, done.stderr));
        }
        faulty.set(None);
        let read = rig.towline.run(&["run", "--rm", image, "cat", "/data/changed"]);
        assert_eq!(read.stdout, "second\n", "{what}: {}", read.stderr);
        rig.towline.run(&["images", "rm", image]).success();
    }
    assert!(flaws.is_empty(), "{host}: {}", flaws.join("\n"));
}

#[test]
fn programs_get_an_error_in_time_and_the_log_says_where() {
    if !images::available("faults::programs_get_an_error_in_time_and_the_log_says_where") {
        return;
    }
    use Kind::{Drip, Encoded, Flipped, Half, Nothing, OtherRange, Status, Storm};
    use On::Blobs;
    let faulty = FaultyRegistry::start(Layout::built("small"), &["zstd"]);
    let rig = rig(Towline::new().with_env("TOWLINE_FETCH", DEMAND_ONLY), &faulty);
    // What a file meets, what the log says, and whether it is there once the registry is well again.
    let rows: [(&str, Fault, Option<&str>, bool); 9] = [
        ("a storm that stays", Fault::always(Blobs, Storm), Some("50"), true),
        ("a body that drips", Fault::always(Blobs, Drip), Some("bytes came in"), true),
        ("no body at all", Fault::always(Blobs, Nothing), Some("body"), true),
        ("another range", Fault::always(Blobs, OtherRange), Some("sent bytes"), true),
        ("a compressed answer", Fault::always(Blobs, Encoded), Some("content-encoding"), true),
        ("a blob that is gone", Fault::always(Blobs, Status(404, None)), Some("404"), true),
        ("a flipped bit", Fault::always(Blobs, Flipped), Some("push the image again"), false),
        ("bodies that break off", Fault::times(3, Blobs, Half), None, true),
        ("a storm that passes", Fault::times(3, Blobs, Storm), None, true),
    ];
    let mut script = "probe sum /data/changed > /dev/null; echo ready; ".to_owned();
    for n in 1..=rows.len() {
        script += &format!(
            "wait_for faulty{n}; probe sum /data/many/{n}; echo met{n}; wait_for well{n}; probe sum /data/many/{n}; echo row{n}; "
        );
    }
    let container = rig.resident_script("faults", "zstd", &(script + "wait_for end"));
    container.wait_for("ready");
    let truth = Truth::of("small");
    let layers: Vec<String> = Layout::built("small").manifest("zstd")["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect();
    for (n, (what, fault, said, heals)) in rows.into_iter().enumerate() {
        let n = n + 1;
        let before = rig.towline.daemon_log().len();
        faulty.set(Some(fault));
        container.go(&format!("faulty{n}"));
        let output = container.wait_for(&format!("met{n}\n"));
        let (read, failed) = truth.compare(output.rsplit_once("row").map_or(output.as_str(), |(_, rest)| rest));
        let file = format!("/data/many/{n} errno=ELOOP");
        assert_eq!(
            (read, failed),
            if said.is_some() { (0, vec![file]) } else { (1, Vec::new()) },
            "{what}: {output}\n{}",
            rig.towline.daemon_log()
        );
        if let Some(said) = said {
            let log = rig.towline.daemon_log();
            let line = log[before..].lines().find(|line| line.contains("the program gets ELOOP")).unwrap_or_default();
            let host = rig.link.address().to_string();
            for part in ["small:zstd", "offset ", &host, said, "asked for again"] {
                assert!(line.contains(part), "{what}: no `{part}` in the log: {line}\n{}", &log[before..]);
            }
            assert!(layers.iter().any(|layer| line.contains(layer)), "{what}: no layer in the log: {line}");
        }
        faulty.set(None);
        container.go(&format!("well{n}"));
        let output = container.wait_for(&format!("row{n}\n"));
        let (read, failed) = truth.compare(after(&output, &format!("met{n}")));
        assert_eq!((read, failed.len()), if heals { (1, 0) } else { (0, 1) }, "{what}, healed: {output}");
    }
}

#[test]
fn a_tag_that_moves_never_mixes_two_images() {
    if !images::available("faults::a_tag_that_moves_never_mixes_two_images") {
        return;
    }
    let towline = Towline::new().with_env("TOWLINE_FETCH", DEMAND_ONLY);
    // A layout of its own, since a blob is added to it.
    let (built, layout) = (Layout::built("small"), Layout::empty(&towline.dir().join("layout")));
    for entry in std::fs::read_dir(built.blob_path(&digest(b"")).parent().unwrap()).unwrap().flatten() {
        std::os::unix::fs::symlink(entry.path(), towline.dir().join("layout/blobs/sha256").join(entry.file_name())).unwrap();
    }
    let two_layers = built.manifest_bytes("zstd");
    layout.tag("moving", &two_layers);
    let one_layer = first_layer_only(&built, &layout);
    let faulty = FaultyRegistry::start(layout, &["moving"]);
    let rig = rig(towline, &faulty);
    let image = rig.image("small:moving");

    // Between the manifest and the layers: what was resolved is what comes.
    faulty.move_once_asked("moving", &one_layer);
    let script = "echo ready; wait_for moved; cat /data/changed; probe sum /data/many/7; echo done; wait_for end";
    let container = rig.script("old", "moving", script);
    container.wait_for("ready");
    let named = |digest: &str| rig.towline.run(&["images", "ls", "--format", "json"]).success().stdout.contains(digest);
    assert!(named(&digest(&two_layers)) && !named(&digest(&one_layer)), "the image is not the one that the tag meant");

    // Between two pulls: the new one is another image, and a running container keeps its own.
    rig.towline.run(&["images", "pull", "--lazy", &image]).success();
    assert!(named(&digest(&one_layer)), "the tag has not moved");
    let new = rig.towline.run(&["run", "--rm", &image, "cat", "/data/changed"]);
    assert_eq!(new.stdout, "first\n", "{}", new.stderr);
    container.go("moved");
    let output = container.wait_for("done");
    assert!(after(&output, "ready").starts_with("second\n"), "{output}");
    assert_eq!(Truth::of("small").compare(&output), (1, Vec::new()), "{output}");
    rig.towline.run(&["system", "prune"]).success();
    let again = rig.towline.run(&["exec", "old", "/bin/probe", "sum", "/data/many/8"]);
    assert_eq!(Truth::of("small").compare(&again.stdout), (1, Vec::new()), "{}{}", again.stdout, again.stderr);
}

/// The image of the first layer of the small one alone: `/data/changed` is another there.
fn first_layer_only(built: &Layout, layout: &Layout) -> Vec<u8> {
    let mut manifest = built.manifest("zstd");
    let mut config: Value = serde_json::from_slice(&built.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().truncate(1);
    config["history"] = json!([]);
    manifest["layers"].as_array_mut().unwrap().truncate(1);
    manifest["config"] = layout.add("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    manifest.to_string().into_bytes()
}

#[test]
fn the_clock_of_the_machine_decides_nothing() {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let test = "faults::the_clock_of_the_machine_decides_nothing";
    if !images::available(test) {
        return;
    }
    if !std::path::Path::new(LIBRARY).exists() {
        println!("SKIP {test}: faketime is not installed");
        return;
    }
    let towline = Towline::new();
    let clock = towline.dir().join("clock");
    let set = |offset: &str| {
        // The library reads the file at every question, so it is never half there.
        std::fs::write(clock.with_extension("new"), format!("{offset}\n")).unwrap();
        std::fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set("+0");
    let clock_file = clock.display().to_string();
    let towline = [
        ("LD_PRELOAD", LIBRARY),
        ("FAKETIME_TIMESTAMP_FILE", &clock_file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
        ("TOWLINE_FETCH", DEMAND_ONLY),
    ]
    .into_iter()
    .fold(towline, |towline, (name, value)| towline.with_env(name, value));
    let faulty = FaultyRegistry::start(Layout::built("small"), &["zstd"]);
    let rig = rig(towline, &faulty);
    let script = "echo ready; for n in 1 2 3 4; do wait_for $n; probe sum /data/dir/$n; echo read$n; done; wait_for end";
    let container = rig.script("clock", "zstd", script);
    container.wait_for("ready");
    let truth = Truth::of("small");
    for (n, offset) in ["+20y", "-20y", "+1d", "-1h"].iter().enumerate() {
        set(offset);
        // One request is turned away, so that it is waited for before the next.
        faulty.set(Some(Fault::times(2, On::Blobs, Kind::Storm)));
        container.go(&(n + 1).to_string());
        let output = container.wait_for(&format!("read{}\n", n + 1));
        assert_eq!(truth.compare(&output), (n + 1, Vec::new()), "{offset}: {output}");
    }
}
