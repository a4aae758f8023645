use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::layer::sample::Random;

/// A tar whose headers the tests can bend.
#[derive(Default)]
pub(crate) struct Made(pub(crate) Vec<u8>);

impl Made {
    /// An entry with these bytes put over its ustar header before the checksum is made.
    pub(crate) fn entry(mut self, kind: u8, name: &str, link: &str, content: &[u8], bend: &[(usize, &[u8])]) -> Self {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        for (at, bytes) in bend {
            put(*at, bytes);
        }
        put(148, b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn simple(self, kind: u8, name: &str, link: &str) -> Self {
        self.entry(kind, name, link, b"", &[])
    }

    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut content = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let len = (rest.len()..).find(|len| len.to_string().len() + rest.len() == *len).unwrap();
            content.push_str(&format!("{len}{rest}"));
        }
        self.entry(b'x', "PaxHeaders/x", "", content.as_bytes(), &[])
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * BLOCK]);
        self.0
    }

    fn read(self) -> Result<LayerIndex> {
        read(&self.end()[..], &mut HashSink::default())
    }
}

fn one(made: Made) -> Entry {
    let index = made.read().unwrap();
    assert_eq!(index.entries.len(), 1, "{index:?}");
    index.entries.into_iter().next().unwrap()
}

#[test]
fn types_and_numbers() {
    assert_eq!(one(Made::default().simple(b'5', "./d/", "")).path, b"d");
    assert_eq!(one(Made::default().simple(0, "d/", "")).kind, EntryKind::Directory);
    assert_eq!(one(Made::default().simple(b'2', "l", "../t")).kind, EntryKind::Symlink(b"../t".into()));
    assert_eq!(one(Made::default().simple(b'1', "h", "./t")).kind, EntryKind::Hardlink(b"t".into()));
    assert_eq!(one(Made::default().simple(b'6', "p", "")).kind, EntryKind::Fifo);
    let device: &[(usize, &[u8])] = &[(329, b"0000454\0"), (337, b"0210560\0")];
    assert_eq!(one(Made::default().entry(b'3', "c", "", b"", device)).kind, EntryKind::CharDevice(300, 70_000));
    assert_eq!(one(Made::default().entry(b'4', "b", "", b"", device)).kind, EntryKind::BlockDevice(300, 70_000));
    assert_eq!(one(Made::default().simple(b'0', "a/.wh.x", "")).kind, EntryKind::Whiteout);
    let prefixed = one(Made::default().entry(b'0', "name", "", b"", &[(345, b"a/long/prefix")]));
    assert_eq!(prefixed.path, b"a/long/prefix/name");
    let gnu: &[(usize, &[u8])] = &[(257, b"ustar  \0"), (108, b"\x80\0\0\0\x80\0\0\x01"), (136, &[0xff; 12]), (345, b"times")];
    let binary = one(Made::default().entry(b'0', "name", "", b"", gnu));
    assert_eq!((&binary.path[..], binary.meta.uid, binary.meta.mtime), (&b"name"[..], 0x8000_0001, -1));
    // A directory or link of some size has no content all the same; Go reads it so.
    let sized = Made::default().entry(b'5', "d", "", b"", &[(124, b"00000001000\0")]).simple(b'0', "f", "");
    assert_eq!(sized.read().unwrap().entries.len(), 2);
    // A global pax header has no effect, and neither have the books of aufs.
    let global = Made::default().entry(b'g', "g", "", b"12 path=xyz\n", &[]).entry(b'0', ".wh..wh.plnk", "", b"x", &[]);
    assert_eq!(one(global.simple(b'0', "f", "")).path, b"f");
}

#[test]
fn extensions() {
    let long = "d/".repeat(200) + "name";
    let records = [
        ("path", &long[..]),
        ("mtime", "1.5"),
        ("uid", "3000000000"),
        ("SCHILY.xattr.user.b", "2"),
        ("SCHILY.xattr.user.a", "1"),
    ];
    let entry = one(Made::default().pax(&records).entry(b'0', "short", "", b"content", &[]));
    assert_eq!(entry.path, long.as_bytes());
    let Meta { uid, mtime, mtime_nanos, xattrs, .. } = entry.meta;
    assert_eq!((uid, mtime, mtime_nanos), (3_000_000_000, 1, 500_000_000));
    assert_eq!(xattrs, [(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"2".to_vec())]);

    let link = "t".repeat(300);
    let gnu = Made::default().entry(b'L', "././@LongLink", "", format!("{long}\0").as_bytes(), &[]);
    let entry = one(gnu.entry(b'K', "././@LongLink", "", format!("{link}\0").as_bytes(), &[]).simple(b'2', "short", "short"));
    assert_eq!((&entry.path[..], entry.kind), (long.as_bytes(), EntryKind::Symlink(link.into())));

    // The size in a pax header is the one that counts, for content and for what follows.
    let sized =
        Made::default().pax(&[("size", "7")]).entry(b'0', "f", "", b"content", &[(124, b"00000000000\0")]).simple(b'5', "d", "");
    let index = sized.read().unwrap();
    assert_eq!(index.entries[0].kind, EntryKind::File(FileContent { size: 7, digest: Digest::of(b"content"), chunks: vec![] }));
    assert_eq!(index.entries[1].path, b"d");
}

/// SECURITY.md, row 20: what a layer must not reach. Names are always inside of the root, or the layer is refused.
#[test]
fn escapes_are_refused_or_end_inside_of_the_root() {
    use crate::layer::sample::layer;
    use crate::tree::merge::merge;
    let refused: &[(Made, &str)] = &[
        (Made::default().simple(b'0', "../escape", ""), "entry `../escape` at byte 0: field `name` contains `..`"),
        (Made::default().simple(b'5', "a/../../b", ""), "contains `..`"),
        (Made::default().simple(b'1', "h", "../../etc/shadow"), "field `linkname` contains `..`"),
        (Made::default().simple(b'0', "", ""), "field `name` is empty"),
        (Made::default().simple(b'0', "/", ""), "must be a directory"),
        (Made::default().simple(b'0', ".wh...", ""), "whiteout of nothing"),
        (Made::default().simple(b'1', "h", ""), "field `linkname` is empty"),
        (Made::default().simple(b'2', "l", ""), "field `linkname` is empty"),
        (Made::default().pax(&[("path", "a\0b")]).simple(b'0', "f", ""), "contains a NUL"),
        (Made::default().pax(&[("path", "../x")]).simple(b'0', "f", ""), "contains `..`"),
    ];
    for (made, says) in refused {
        let error = read(&made.0[..], &mut HashSink::default()).unwrap_err();
        assert!(error.outcome() == Outcome::BadInput && error.one_line().contains(says), "{says}: {}", error.one_line());
    }

    let absolute = Made::default().simple(b'0', "/etc/passwd", "").simple(b'1', "/h", "/etc/passwd").read().unwrap();
    assert_eq!(absolute.entries[0].path, b"etc/passwd");
    let tree = merge([&absolute]).unwrap();
    assert_eq!(tree.lookup(b"h"), tree.lookup(b"etc/passwd"));
    // A link out of the root, and then a file beneath it: the file is in the root.
    let beneath = Made::default().simple(b'2', "l", "../../tmp").entry(b'0', "l/f", "", b"x", &[]).read().unwrap();
    let tree = merge([&beneath]).unwrap();
    assert!(tree.lookup(b"tmp/f").is_some());
    // The later of two entries counts; a hard link to what the layer does not have is refused.
    let twice = Made::default().entry(b'0', "f", "", b"1", &[]).entry(b'0', "f", "", b"22", &[]).read().unwrap();
    let tree = merge([&twice]).unwrap();
    assert_eq!(tree.counts().bytes, 2);
    let dangling = Made::default().simple(b'1', "h", "etc/shadow").read().unwrap();
    assert_eq!(merge([&dangling]).unwrap_err().outcome(), Outcome::BadInput);
    // The same index from a table of contents would be the same entries, so one merge decides both.
    assert_eq!(absolute, layer(absolute.entries.clone()));
}

#[test]
fn malformed_tars_are_refused() {
    use Outcome::{BadInput, Unsupported};
    let file = || Made::default().entry(b'0', "f", "", b"content", &[]);
    let cases: Vec<(Vec<u8>, Outcome, &str)> = vec![
        (b"not a tar".to_vec(), BadInput, "ends inside of an entry"),
        (vec![b'x'; 4096], BadInput, "field `chksum` is not a number"),
        (file().0[..515].to_vec(), BadInput, "ends inside of an entry"),
        (file().0[..1000].to_vec(), BadInput, "ends inside of an entry"),
        ([&file().0[..], b"x"].concat(), BadInput, "ends inside of an entry"),
        (Made::default().pax(&[("path", "x")]).end(), BadInput, "is only a long name or a pax header"),
        (Made::default().entry(b'x', "x", "", b"7 x=1\n", &[]).simple(b'0', "f", "").0, BadInput, "malformed record"),
        (Made::default().pax(&[("size", "x")]).simple(b'0', "f", "").0, BadInput, "malformed `size`"),
        (Made::default().pax(&[("GNU.sparse.major", "1")]).simple(b'0', "f", "").0, Unsupported, "sparse"),
        (Made::default().simple(b'S', "f", "").0, Unsupported, "sparse"),
        (Made::default().simple(b'V', "label", "").0, Unsupported, "type `V`"),
        (Made::default().entry(b'0', "f", "", b"", &[(124, b"zz")]).0, BadInput, "field `size` is not a number"),
        (Made::default().entry(b'0', "f", "", b"", &[(124, &[0xff; 12])]).0, BadInput, "field `size` is -1"),
        (Made::default().entry(b'0', "f", "", b"", &[(108, b"9")]).0, BadInput, "field `uid` is not a number"),
        (Made::default().pax(&[("gid", "-1")]).simple(b'0', "f", "").0, BadInput, "field `gid` is -1"),
        (Made::default().entry(b'3', "c", "", b"", &[(329, b"-")]).0, BadInput, "field `devmajor` is not a number"),
        (Made::default().entry(b'L', "l", "", b"", &[(124, b"00077777777\0")]).0, BadInput, "the limit is 1048576"),
        (Made::default().entry(b'0', "f", "", b"", &[(124, b"\x80\0\0\0\x70\0\0\0\0\0\0\0")]).0, BadInput, "field `size`"),
        (
            Made::default().pax(&[(&format!("SCHILY.xattr.{}", "n".repeat(256)), "1")]).simple(b'0', "f", "").0,
            BadInput,
            "longer than 255",
        ),
    ];
    for (bytes, outcome, says) in cases {
        let error = read(&bytes[..], &mut HashSink::default()).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{says}: {}", error.one_line());
        assert!(error.one_line().contains(says), "{says}: {}", error.one_line());
    }
    // No end mark is as good as one, for Go too.
    assert_eq!(read(&file().0[..], &mut HashSink::default()).unwrap().entries.len(), 1);
}

/// GNU tar writes, we read, and the result is what was on disk.
#[test]
fn what_gnu_tar_writes_in_each_of_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let deep = format!("{}/{}", "d".repeat(90), "e".repeat(90));
    std::fs::create_dir_all(root.join(&deep)).unwrap();
    std::fs::write(root.join(&deep).join("file"), b"deep").unwrap();
    std::fs::write(root.join("large"), vec![9; 100_000]).unwrap();
    std::os::unix::fs::symlink("s".repeat(150), root.join("link")).unwrap();
    std::fs::hard_link(root.join("large"), root.join("other")).unwrap();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let output = Command::new("tar")
            .args(["--format", format, "--sort=name", "--mtime=@1700000000", "-C"])
            .arg(root)
            .args(["-cf", "-", "."])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let index = read(&output.stdout[..], &mut HashSink::default()).unwrap();
        let find = |path: &str| index.entries.iter().find(|entry| entry.path == path.as_bytes());
        assert_eq!(find("large").unwrap().meta.mtime, 1_700_000_000, "{format}");
        assert_eq!(find("other").unwrap().kind, EntryKind::Hardlink(b"large".into()), "{format}");
        // v7 and ustar leave out what does not fit.
        if !matches!(format, "v7" | "ustar") {
            assert_eq!(find("link").unwrap().kind, EntryKind::Symlink("s".repeat(150).into()), "{format}");
        }
        if format != "v7" {
            let EntryKind::File(content) = &find(&format!("{deep}/file")).unwrap().kind else { panic!("{format}") };
            assert_eq!(content.digest, Digest::of(b"deep"), "{format}");
        }
    }
}

#[test]
fn damaged_tars_never_panic() {
    let long = "d/".repeat(100);
    let original = Made::default()
        .pax(&[("path", &long), ("SCHILY.xattr.user.a", "1"), ("mtime", "-1.5"), ("size", "7")])
        .entry(b'0', "f", "", b"content", &[])
        .entry(b'L', "l", "", long.as_bytes(), &[])
        .simple(b'2', "l", "target")
        .end();
    let mut random = Random(4711);
    for _ in 0..5_000 {
        let mut damaged = random.damage(&original);
        // Make the checksums right again, or only they would be tested.
        for block in damaged.as_chunks_mut::<BLOCK>().0 {
            if &block[257..262] == b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                write!(&mut block[148..156], "{sum:06o}\0 ").unwrap();
            }
        }
        if let Ok(index) = read(&damaged[..], &mut HashSink::default()) {
            assert!(index.entries.iter().all(|entry| !entry.path.split(|&c| c == b'/').any(|name| name == b"..")));
        }
    }
}
