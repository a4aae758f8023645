use super::*;
use crate::digest::Digest;
use crate::layer::sample::{chunked, dir, entry, file, golden, hardlink, layer, meta, opaque, symlink, whiteout};

/// The tree as lines: path, and `/` for a directory, `=` and the content's first hexadecimal digits, or `->` and the target.
fn shape(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: InodeId, path: &str, lines: &mut Vec<String>) {
        match &tree.inode(id).kind {
            InodeKind::Directory(names) => {
                lines.push(format!("{path}/"));
                for (name, child) in names {
                    walk(tree, *child, &format!("{path}/{}", String::from_utf8_lossy(name)), lines);
                }
            }
            InodeKind::File { digest, .. } => lines.push(format!("{path}={}", &digest.short()[..4])),
            InodeKind::Symlink(target) => lines.push(format!("{path}->{}", String::from_utf8_lossy(target))),
            other => lines.push(format!("{path} {other:?}")),
        }
    }
    let mut lines = Vec::new();
    walk(tree, InodeId::ROOT, "", &mut lines);
    lines
}

fn content(text: &str) -> String {
    Digest::of(text.as_bytes()).short()[..4].to_owned()
}

fn merged(layers: &[LayerIndex]) -> Vec<String> {
    shape(&merge(layers).unwrap())
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = layer([file("a", b"1"), file("d/x", b"1"), file("d/y/z", b"1"), dir("keep")]);
    let expected = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let new = format!("/d/new={}", content("2"));
    for (upper, tree) in [
        (vec![whiteout("a"), whiteout("d")], expected(&["/", "/keep/"])),
        (vec![whiteout("nothing"), whiteout("no/thing"), whiteout("a"), whiteout("d")], expected(&["/", "/keep/"])),
        // The layer's own content stays, wherever in the layer the marker stands.
        (vec![whiteout("a"), file("d/new", b"2"), whiteout("d")], expected(&["/", "/d/", &new, "/keep/"])),
        (vec![whiteout("a"), whiteout("d"), file("d/new", b"2")], expected(&["/", "/d/", &new, "/keep/"])),
        (vec![whiteout("a"), dir("d"), opaque("d"), file("d/new", b"2")], expected(&["/", "/d/", &new, "/keep/"])),
        (vec![whiteout("a"), dir("d"), file("d/new", b"2"), opaque("d")], expected(&["/", "/d/", &new, "/keep/"])),
        (vec![opaque(""), file("d/new", b"2")], expected(&["/", "/d/", &new])),
        (vec![whiteout("a"), dir("keep"), whiteout("keep"), whiteout("d")], expected(&["/", "/keep/"])),
    ] {
        assert_eq!(merged(&[lower.clone(), layer(upper.clone())]), tree, "{upper:?}");
    }
    // In the layer above, all of it is lower.
    let third = merged(&[lower, layer([whiteout("d"), file("d/new", b"2")]), layer([whiteout("d"), opaque("keep")])]);
    assert_eq!(third, ["/".into(), format!("/a={}", content("1")), "/keep/".into()]);
}

#[test]
fn entries_replace_what_is_there() {
    let lower = layer([file("f", b"1"), dir("d"), file("d/x", b"1"), symlink("l", "d")]);
    let mut changed = dir("d");
    changed.meta = meta(0o700);
    let tree = merge(&[
        lower.clone(),
        layer([dir("f"), file("f/inner", b"2"), changed, file("l", b"2"), file("twice", b"1"), file("twice", b"2")]),
    ])
    .unwrap();
    let (one, two) = (content("1"), content("2"));
    assert_eq!(
        shape(&tree),
        [
            "/".into(),
            "/d/".into(),
            format!("/d/x={one}"),
            "/f/".into(),
            format!("/f/inner={two}"),
            format!("/l={two}"),
            format!("/twice={two}")
        ]
    );
    assert_eq!(tree.inode(tree.lookup(b"d").unwrap()).meta.mode, 0o700);
    // A file on a directory takes away what was in it.
    assert_eq!(merged(&[lower, layer([file("d", b"2"), whiteout("f"), whiteout("l")])]), ["/".into(), format!("/d={two}")]);
}

#[test]
fn parents_are_made_and_links_to_them_followed_inside_the_root() {
    let one = content("1");
    let tree = merge(&[layer([file("a/b/c", b"1")])]).unwrap();
    let b = tree.inode(tree.lookup(b"a/b").unwrap());
    assert_eq!((b.meta.mode, b.meta.uid, b.meta.mtime), (0o755, 0, 0));

    // As in images whose /lib is a link: the file of a higher layer is where a program that opens lib/x looks.
    for target in ["usr/lib", "/usr/lib", "../../../usr/lib", "./usr//lib/.", "/usr/../usr/lib"] {
        let lines = merged(&[layer([dir("usr/lib"), symlink("lib", target)]), layer([file("lib/x", b"1")])]);
        assert_eq!(
            lines,
            ["/".into(), format!("/lib->{target}"), "/usr/".into(), "/usr/lib/".into(), format!("/usr/lib/x={one}")]
        );
    }
    // A dangling link's target is made. A directory's own entry replaces a link.
    assert_eq!(
        merged(&[layer([symlink("l", "/new/dir"), file("l/x", b"1")])]),
        ["/".into(), "/l->/new/dir".into(), "/new/".into(), "/new/dir/".into(), format!("/new/dir/x={one}")]
    );
    assert_eq!(
        merged(&[layer([symlink("l", "/d"), dir("l"), file("l/x", b"1")])]),
        ["/".into(), "/l/".into(), format!("/l/x={one}")]
    );
    // What a link leads to is hidden, not the link.
    assert_eq!(merged(&[layer([file("d/x", b"1"), symlink("l", "d")]), layer([whiteout("l/x")])]), ["/", "/d/", "/l->d"]);
    // The parent that was looked up last may have become another.
    let entries = [file("p/x", b"1"), symlink("p", "q"), file("p/x", b"1")];
    assert_eq!(merged(&[layer(entries)]), ["/".into(), "/p->q".into(), "/q/".into(), format!("/q/x={one}")]);
}

#[test]
fn hard_links_share_an_inode_across_layers() {
    let tree = merge(&[layer([file("a", b"1"), hardlink("b", "a")]), layer([hardlink("d/c", "b"), whiteout("a")])]).unwrap();
    let (b, c) = (tree.lookup(b"b").unwrap(), tree.lookup(b"d/c").unwrap());
    assert_eq!(b, c);
    assert_eq!(tree.inode(b).links, 2);
    assert_eq!(tree.inode(InodeId::ROOT).links, 3);
    // Replacing one name leaves the others.
    let tree = merge(&[layer([file("a", b"1"), hardlink("b", "a")]), layer([file("a", b"2")])]).unwrap();
    assert_ne!(tree.lookup(b"a"), tree.lookup(b"b"));
    assert_eq!(tree.inode(tree.lookup(b"b").unwrap()).links, 1);
}

#[test]
fn counts_and_lookups() {
    let tree =
        merge(&[layer([file("a/1", b"one"), hardlink("a/2", "a/1"), file("b", b"one"), file("empty", b""), symlink("l", "a")])])
            .unwrap();
    assert_eq!(tree.counts(), crate::tree::Counts { entries: 6, files: 2, bytes: 6 });
    assert_eq!(tree.lookup(b""), Some(InodeId::ROOT));
    assert_eq!(tree.lookup(b"l/1"), None);
    assert_eq!(tree.lookup(b"b/1"), None);
    let (path, digest) = tree.known_file().unwrap();
    assert_eq!((tree.lookup(&path), digest), (tree.lookup(b"b"), Digest::of(b"one")));
    assert_eq!(merge(&[layer([file("x/y/z", b"deep"), file("e", b"")])]).unwrap().known_file().unwrap().0, b"x/y/z");
    assert_eq!(merge(&[]).unwrap().known_file(), None);
}

#[test]
fn root_metadata_and_foreign_attributes() {
    assert_eq!(merge(&[]).unwrap().inode(InodeId::ROOT).meta.mode, 0o755);
    let mut root = dir("");
    root.meta.mode = 0o1700;
    let mut marked = file("f", b"1");
    marked.meta.xattrs = ["com.apple.quarantine", "user.", "user.kept"].map(|name| (name.into(), b"x".to_vec())).into();
    let tree = merge(&[layer([root, marked])]).unwrap();
    assert_eq!(tree.inode(InodeId::ROOT).meta.mode, 0o1700);
    assert_eq!(tree.ignored_xattrs(), 2);
    assert_eq!(tree.inode(tree.lookup(b"f").unwrap()).meta.xattrs, [(b"user.kept".to_vec(), b"x".to_vec())]);
}

#[test]
fn what_cannot_be_merged_names_layer_and_entry() {
    let mut heavy = file("f", b"1");
    heavy.meta.xattrs = vec![(b"user.x".to_vec(), vec![0; 64 * 1024])];
    let mut long = file("f", b"1");
    long.meta.xattrs = vec![([&b"trusted.overlay."[..], &[b'x'; 232]].concat(), Vec::new())];
    let mut huge = file("f", b"1");
    if let EntryKind::File(content) = &mut huge.kind {
        content.size = (1 << 43) + 1;
    }
    let looping = [symlink("a", "b"), symlink("b", "a"), file("a/x", b"1")];
    for (entries, says) in [
        (vec![file("f", b"1"), file("f/x", b"1")], "`f` on the way to it is not a directory"),
        (vec![hardlink("h", "absent")], "entry `h`: is a hard link to `absent`, which does not exist"),
        (vec![dir("d"), hardlink("h", "d")], "which is a directory"),
        (vec![hardlink("h", "")], "does not exist"),
        (looping.to_vec(), "more than 40 symbolic links"),
        (vec![heavy], "65543 bytes"),
        (vec![long], "too long to be escaped"),
        (vec![huge], "files of more than"),
        (vec![entry("c", EntryKind::CharDevice(4096, 0))], "device number 4096:0"),
        (vec![entry("c", EntryKind::BlockDevice(0, 1 << 20))], "device number 0:1048576"),
        (vec![symlink("l", &format!("{}/x", "n".repeat(256))), file("l/y", b"1")], "name of more than 255 bytes"),
    ] {
        let error = merge(&[layer([]), layer(entries)]).unwrap_err();
        assert!(error.one_line().contains("merging layer 1: entry `"), "{}", error.one_line());
        assert!(error.one_line().contains(says), "{says}: {}", error.one_line());
    }
}

#[test]
fn links_cannot_make_a_tree_deeper_than_a_path_reaches() {
    // Each entry goes 1000 directories further down through the link that the one before has made.
    let down = ["d"; 1000].join("/");
    let mut entries = Vec::new();
    for n in 0..4 {
        let base = if n == 0 { String::new() } else { format!("l{n}/") };
        entries.push(dir(&format!("{base}{down}")));
        entries.push(symlink(&format!("l{}", n + 1), &format!("{base}{down}")));
    }
    let error = merge(&[layer(entries)]).unwrap_err();
    assert!(error.one_line().contains("inside of more than 2048 directories"), "{}", error.one_line());
}

#[test]
fn the_image_that_buildah_wrote() {
    let [first, second] = golden();
    let tree = merge(&[first.index(), second.index()]).unwrap();
    let lines = shape(&tree);
    let gone: Vec<_> = lines.iter().filter(|line| line.starts_with("/gone")).collect();
    assert_eq!(gone, ["/gone/", &format!("/gone/new={}", content("new\n"))]);
    assert!(tree.lookup(b"dir with space").is_none() && tree.lookup(b"etc/old").is_none());
    assert_eq!(tree.lookup(b"bin/tool"), tree.lookup(b"bin/other"));
    assert_eq!(tree.inode(tree.lookup(b"etc/passwd-").unwrap()).kind, tree_file(b"changed\n"));
    // Chunks play no part in the tree.
    assert_eq!(merged(&[layer([chunked("f", b"1", 7)])]), merged(&[layer([file("f", b"1")])]));
}

fn tree_file(content: &[u8]) -> InodeKind {
    InodeKind::File { size: content.len() as u64, digest: Digest::of(content) }
}
