//! The mount, with layers that are not a store's.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::owners::Owners;
use super::*;
use crate::error::{Error, Outcome};
use crate::layer::Meta;
use crate::layer::sample::{file, layer};
use crate::treefs::{Open, Opened, Read, Wanted};

const REFERENCE: &str = "registry.example/app:1";
const PAGE: u64 = 4096;
/// What of the file is not here.
const ABSENT: Range<u64> = 1_000 * PAGE..1_004 * PAGE;

fn content() -> Vec<u8> {
    (0..2_000 * PAGE as u32 + 77).map(|n| (n / 251) as u8).collect()
}

/// One file, all of which is here but for [`ABSENT`].
struct Parts {
    content: Vec<u8>,
    /// How often it was asked what is here.
    looks: Mutex<u32>,
    /// What was waited for.
    waited: Mutex<Vec<Range<u64>>>,
}

impl Contents for Parts {
    fn open(&self, _: Wanted, opened: Opened) {
        opened(Ok(Open::Parts));
    }

    fn read(&self, _: Wanted, range: Range<u64>, read: Read) {
        self.waited.lock().unwrap().push(range.clone());
        let bytes = self.content[range.start as usize..range.end as usize].to_vec();
        std::thread::spawn(move || read(Ok(bytes)));
    }

    fn here(&self, _: &Wanted, range: Range<u64>) -> Vec<u8> {
        *self.looks.lock().unwrap() += 1;
        let end = if range.start < ABSENT.end { range.end.min(ABSENT.start) } else { range.end };
        self.content[range.start as usize..end.max(range.start) as usize].to_vec()
    }
}

/// One layer of one image.
struct Only(Arc<Layer>);

impl Supply for Only {
    fn find(&self, reference: &str, digest: &Digest) -> Result<Option<Arc<Layer>>> {
        Ok((reference == REFERENCE && *digest == self.0.blob).then(|| self.0.clone()))
    }

    fn used(&self, _: &str, _: &Digest, _: &Layer) -> Result<()> {
        Ok(())
    }

    fn released(&self, _: &str, _: &Digest) -> Result<bool> {
        Ok(true)
    }

    fn blob(&self, _: &Layer) -> Result<File> {
        Err(Error::new(Outcome::NotFound, "reading the blob").because("there is none"))
    }
}

struct Rig {
    parts: Arc<Parts>,
    file: PathBuf,
    mount: TreeMount,
    ended: mpsc::Receiver<()>,
    _dir: tempfile::TempDir,
}

/// `None` where FUSE cannot be used; says so.
fn rig(test: &str) -> Option<Rig> {
    if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
        println!("SKIP {test}: needs root and /dev/fuse");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let parts = Arc::new(Parts { content: content(), looks: Mutex::default(), waited: Mutex::default() });
    let index = layer(vec![file("large", &parts.content)]);
    let tree = tree::open(index, Meta { mode: 0o755, ..Meta::default() }, b"trusted.overlay.opaque", dir.path()).unwrap();
    let blob = Digest::of(b"blob");
    let shown = Layer { image: Digest::of(b"image"), blob, size: 1, info: b"{}".to_vec(), tree, contents: parts.clone() };
    let target = dir.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    let (sender, ended) = mpsc::channel();
    let mount = mount(Arc::new(Only(Arc::new(shown))), Owners::root(), &target, move || sender.send(()).unwrap()).unwrap();
    let file = target.join(BASE64.encode(REFERENCE)).join(blob.to_string()).join("diff/large");
    Some(Rig { parts, file, mount, ended, _dir: dir })
}

#[test]
fn what_is_here_comes_ahead_of_programs_and_nothing_else_does() {
    let Some(rig) = rig("what_is_here_comes_ahead_of_programs_and_nothing_else_does") else { return };
    let file = File::open(&rig.file).unwrap();
    let mut page = vec![0; PAGE as usize];
    let mut read = |offset: u64| {
        let len = file.read_at(&mut page, offset).unwrap();
        let start = offset as usize;
        assert!(len > 0 && page[..len] == rig.parts.content[start..start + len], "at {offset}");
    };
    // In order, up to what is not here: the kernel is told of more and more, and asks for little.
    for page in 0..1_000 {
        read(page * PAGE);
    }
    let looks = *rig.parts.looks.lock().unwrap();
    assert!(looks < 100, "it was asked {looks} times for 1,000 pages");
    assert_eq!(*rig.parts.waited.lock().unwrap(), [], "what nobody has read was waited for");
    // Here and there.
    for page in (1_004..2_000).rev().step_by(7) {
        read(page * PAGE);
    }
    read(2_000 * PAGE);
    assert_eq!(*rig.parts.waited.lock().unwrap(), [], "what nobody has read was waited for");
    read(1_002 * PAGE);
    let waited = rig.parts.waited.lock().unwrap().clone();
    assert!(
        matches!(waited.as_slice(), [only] if *only == (1_002 * PAGE..1_003 * PAGE)),
        "a page is waited for alone, not {waited:?}"
    );
    assert!(std::fs::read(&rig.file).unwrap() == rig.parts.content);
    drop(file);
    rig.mount.unmount().unwrap();
    rig.ended.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
}

#[test]
fn many_who_read_one_file_at_once_all_get_it() {
    let Some(rig) = rig("many_who_read_one_file_at_once_all_get_it") else { return };
    // Each begins elsewhere, so that they meet each other's reads.
    std::thread::scope(|threads| {
        for number in 0..16 {
            let (path, content) = (&rig.file, &rig.parts.content);
            threads.spawn(move || {
                let file = File::open(path).unwrap();
                let mut bytes = vec![0; 3 * PAGE as usize + 1];
                let (len, step) = (content.len(), bytes.len());
                for n in 0..len.div_ceil(step) {
                    let offset = (n * step + number * len / 16) % len;
                    let end = (offset + step).min(len);
                    file.read_exact_at(&mut bytes[..end - offset], offset as u64).unwrap();
                    assert!(bytes[..end - offset] == content[offset..end], "{number} at {offset}");
                }
            });
        }
    });
    rig.mount.unmount().unwrap();
}
