//! The merged root file system of an image as a tar.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use towline_integration::images::{Layout, available};
use towline_integration::process::run;
use towline_integration::towline::{PATIENCE, Towline};

use crate::truth::Truth;

/// Path to all that `find` and `getfattr` say of it; names of one file say which one.
fn listing(dir: &Path) -> BTreeMap<String, String> {
    let mut find = Command::new("find");
    find.current_dir(dir).args([".", "-printf", r"%P\t%y %m %U %G %T@ %l\t%i %n\t%s\0"]);
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    let mut all = BTreeMap::new();
    let text = run(find, PATIENCE).success().stdout;
    let mut lines: Vec<&str> = text.split_terminator('\0').collect();
    lines.sort_unstable();
    for line in lines {
        let [path, what, inode, size] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        // Directories have whatever length and number of names their file system gives them.
        let file = match what.starts_with('d') {
            true => String::new(),
            false => format!("{size} as {}", first.entry(inode.to_owned()).or_insert_with(|| path.to_owned())),
        };
        all.insert(path.to_owned(), format!("{what} {file}"));
    }
    let mut attributes = Command::new("getfattr");
    attributes.current_dir(dir).args(["-R", "-h", "-d", "-m", "^(user|security)\\.", "-e", "hex", "."]);
    all.insert("\0attributes".into(), sorted(&run(attributes, PATIENCE).success().stdout));
    all
}

/// The paragraphs of `getfattr`, which come as the directory has its names.
fn sorted(text: &str) -> String {
    let mut paragraphs: Vec<&str> = text.split("\n\n").collect();
    paragraphs.sort_unstable();
    paragraphs.join("\n\n")
}

#[test]
fn a_root_file_system_is_exported_as_its_layers_make_it() {
    if !available("a_root_file_system_is_exported_as_its_layers_make_it") {
        return;
    }
    let towline = Towline::new();
    for image in ["small", "odd"] {
        let reference = Layout::built(image).reference("zstd");
        // It may still be lazy when the export begins, which then waits.
        towline.run(&["images", "pull", "--lazy", &reference]).success();
        let tar = towline.dir().join(format!("{image}.tar"));
        towline.run(&["images", "export", "--rootfs", &reference, &tar.display().to_string()]).success();
        let mut piped = towline.command(&["images", "export", "--rootfs", "--progress", "none", &reference, "-"]);
        let output = piped.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success() && output.stdout == fs::read(&tar).unwrap(), "the same bytes in both ways");

        let unpacked = towline.dir().join(format!("{image}-unpacked"));
        fs::create_dir(&unpacked).unwrap();
        let mut unpack = Command::new("tar");
        unpack.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]).arg(&tar).arg("-C").arg(&unpacked);
        let said = run(unpack, PATIENCE).success();
        assert_eq!(said.stderr, "", "GNU tar has nothing to remark");
        let mounted = towline.dir().join(format!("{image}-mounted"));
        fs::create_dir(&mounted).unwrap();
        towline.run(&["images", "mount", "--by", "fuse", &reference, &mounted.display().to_string()]).success();
        let (wanted, found) = (listing(&mounted), listing(&unpacked));
        for (path, what) in &wanted {
            assert_eq!(found.get(path), Some(what), "{image}: {path}");
        }
        assert_eq!(found.len(), wanted.len());
        towline.run(&["images", "unmount", &mounted.display().to_string()]).success();
        if image == "small" {
            assert!(Truth::of(image) == Truth::of_dir(&unpacked), "the layers, unpacked by GNU tar");
        }
    }

    let damaged =
        fs::read_dir(towline.root().join("cas")).unwrap().flatten().flat_map(|entry| fs::read_dir(entry.path()).unwrap());
    let damaged = damaged.flatten().find(|object| object.metadata().unwrap().len() > 1000).unwrap().path();
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[500] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let failures = ["small", "odd"].map(|image| {
        let file = towline.dir().join("never.tar").display().to_string();
        towline.run(&["images", "export", "--rootfs", &Layout::built(image).reference("zstd"), &file])
    });
    assert!(failures.iter().any(|done| done.code() == Some(125) && done.stderr.contains("system verify --repair")));
    assert!(failures.iter().any(|done| done.code() == Some(0)) || !towline.dir().join("never.tar").exists());
    towline.run(&["images", "rm", "--force", &Layout::built("small").reference("zstd")]).success();
}
