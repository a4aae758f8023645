use super::*;
use crate::layer::Meta;
use crate::layer::sample::{Golden, Random, file, golden};
use crate::layer::stream::ingest;
use crate::layer::tar::CasSink;
use crate::manifest::Compression;
use crate::store::cas::Cas;

fn open(cas: &Cas, file: &Digest) -> Result<Content> {
    Content::of_object(*file, cas.get(file)?)
}

fn gaps_of(index: &LayerIndex, tar_end: u64) -> Result<Vec<Range<u64>>> {
    gap_ranges(index.entries.iter().map(Ok), tar_end)
}

struct Layer {
    golden: Golden,
    _dir: tempfile::TempDir,
    cas: Cas,
}

/// A layer of buildah's with all its files in a store.
fn complete(number: usize) -> Layer {
    let golden = golden().into_iter().nth(number).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cas = Cas::open(dir.path()).unwrap();
    for entry in &golden.index().entries {
        let EntryKind::File(content) = &entry.kind else { continue };
        let mut writer = cas.writer().unwrap();
        for chunk in &content.chunks {
            writer
                .write(&zstd::decode_all(&golden.blob[chunk.blob_offset as usize..][..chunk.blob_len as usize]).unwrap())
                .unwrap();
        }
        writer.finish_as(&content.digest).unwrap();
    }
    Layer { golden, _dir: dir, cas }
}

impl Layer {
    fn verify(&self, index: &LayerIndex, blob: &[u8]) -> Result<()> {
        let tar_end = self.golden.location().tar_end;
        verify(index, tar_end, &self.golden.diff_id, &|file| open(&self.cas, file), |range| {
            Ok(blob[range.start as usize..range.end as usize].to_vec())
        })
    }
}

#[test]
fn gaps_and_payloads_of_buildah_make_up_the_tar() {
    for number in 0..2 {
        let layer = complete(number);
        layer.verify(&layer.golden.index(), layer.golden.blob).unwrap();
        // The same blob as a stream: one parser, one result, and the table of contents is not part of the tar.
        let streamed = ingest(layer.golden.blob, Compression::Zstd, &mut CasSink::new(&layer.cas)).unwrap();
        assert_eq!(streamed.diff_id, layer.golden.diff_id);
        assert_eq!(streamed.blob_digest, Digest::of(layer.golden.blob));
        compare(&layer.golden.index(), &streamed.index).unwrap();
    }
    let index = golden()[0].index();
    let gaps = gaps_of(&index, golden()[0].location().tar_end).unwrap();
    assert_eq!(gaps.len(), files(&index).count() + 1);
    assert_eq!((gaps[0].clone(), gaps[1].clone(), gaps.last().unwrap().clone()), (0..240, 2540..2935, 4346..4371));
}

#[test]
fn an_index_that_lies_is_named_with_path_and_field() {
    let layer = complete(0);
    let index = layer.golden.index();
    let at = |path: &str| index.entries.iter().position(|entry| entry.path == path.as_bytes()).unwrap();
    type Lie = (&'static str, Box<dyn Fn(&mut Entry)>, &'static str);
    let meta = |path, lie: fn(&mut Meta), says| -> Lie { (path, Box::new(move |entry: &mut Entry| lie(&mut entry.meta)), says) };
    let kind =
        |path, kind: EntryKind, says| -> Lie { (path, Box::new(move |entry: &mut Entry| entry.kind = kind.clone()), says) };
    let lies: Vec<Lie> = vec![
        meta("etc/passwd", |meta| meta.mode = 0o4755, "`etc/passwd`: field `mode` is 2541 in the index, but 420 in the layer"),
        meta("etc/passwd", |meta| meta.uid = 0, "field `uid`"),
        meta("etc/passwd", |meta| meta.gid = 0, "field `gid`"),
        meta("etc", |meta| meta.mtime += 1, "`etc`: field `mtime`"),
        meta("etc", |meta| meta.mtime_nanos += 1, "field `mtime`"),
        meta("bin/other", |meta| meta.xattrs.clear(), "`bin/other`: field `xattrs`"),
        kind("bin/link", EntryKind::Symlink(b"other".into()), "`bin/link`: field `type`"),
        kind("bin/tool", EntryKind::Hardlink(b"bin/link".into()), "`bin/tool`: field `type`"),
        kind("dev/null", EntryKind::CharDevice(1, 5), "`dev/null`: field `type`"),
        kind("dev/fifo", EntryKind::Directory, "`dev/fifo`: field `type`"),
        ("gone", Box::new(|entry| entry.path = b"here".into()), "`here`: the index has it where the layer has `gone`"),
    ];
    for (path, lie, says) in lies {
        let mut lying = index.clone();
        lie(&mut lying.entries[at(path)]);
        let error = layer.verify(&lying, layer.golden.blob).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Integrity, "{says}");
        assert!(error.one_line().contains(says), "{says}: {}", error.one_line());
    }

    // Contents that are in the store, but are not what the layer has there: of another length, and of the same.
    let mut writer = layer.cas.writer().unwrap();
    writer.write(b"NEW").unwrap();
    writer.finish().unwrap();
    for (content, says) in [(&b"gone"[..], "field `size` is 4 in the index, but 3 in the layer"), (b"NEW", "configuration says")]
    {
        let mut lying = index.clone();
        if let EntryKind::File(old) = &mut lying.entries[at("etc/old")].kind {
            (old.digest, old.size) = (Digest::of(content), content.len() as u64);
        }
        let error = layer.verify(&lying, layer.golden.blob).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Integrity);
        assert!(error.one_line().contains(says), "{says}: {}", error.one_line());
    }

    let mut missing = index.clone();
    missing.entries.pop();
    assert_eq!(layer.verify(&missing, layer.golden.blob).unwrap_err().outcome(), Outcome::Integrity);
    let mut more = index;
    more.entries.push(file("etc/extra", b""));
    let error = layer.verify(&more, layer.golden.blob).unwrap_err();
    assert!(error.one_line().contains("`etc/extra`: is the first entry too many"), "{}", error.one_line());
}

#[test]
fn a_blob_that_is_damaged_in_a_gap_is_found() {
    let layer = complete(0);
    let index = layer.golden.index();
    let gaps = gaps_of(&index, layer.golden.location().tar_end).unwrap();
    let mut random = Random(77);
    for _ in 0..100 {
        let gap = &gaps[random.below(gaps.len())];
        let at = gap.start as usize + random.below((gap.end - gap.start) as usize);
        let mut blob = layer.golden.blob.to_vec();
        blob[at] ^= 1 << random.below(8);
        // A few bits of a frame mean nothing (the window size of a small frame): what counts is the tar.
        if let Err(error) = layer.verify(&index, &blob) {
            assert_eq!(error.outcome(), Outcome::Integrity, "byte {at}: {}", error.one_line());
        } else {
            assert_eq!(zstd::decode_all(&blob[..]).unwrap(), zstd::decode_all(layer.golden.blob).unwrap(), "byte {at}");
        }
    }
}

#[test]
fn what_is_not_the_layers_fault_keeps_its_outcome() {
    let layer = complete(0);
    let (index, location) = (layer.golden.index(), layer.golden.location());
    let gone = verify(&index, location.tar_end, &layer.golden.diff_id, &|file| open(&layer.cas, file), |_| {
        Err(Error::new(Outcome::Unavailable, "fetching bytes"))
    });
    assert_eq!(gone.unwrap_err().outcome(), Outcome::Unavailable);
    let short = verify(&index, location.tar_end, &layer.golden.diff_id, &|file| open(&layer.cas, file), |_| Ok(Vec::new()));
    assert_eq!(short.unwrap_err().outcome(), Outcome::Unavailable);
    let wrong = verify(&index, location.tar_end, &Digest::of(b"other"), &|file| open(&layer.cas, file), |range| {
        Ok(layer.golden.blob[range.start as usize..range.end as usize].to_vec())
    });
    let wrong = wrong.unwrap_err();
    assert!(wrong.outcome() == Outcome::Integrity && wrong.one_line().contains("configuration says"), "{}", wrong.one_line());
    let EntryKind::File(content) = &index.entries.iter().find(|entry| entry.path == b"etc/old").unwrap().kind else { panic!() };
    layer.cas.remove(&content.digest).unwrap();
    assert_eq!(layer.verify(&index, layer.golden.blob).unwrap_err().outcome(), Outcome::NotFound);
}

#[test]
fn payloads_that_overlap_or_leave_the_tar_are_refused() {
    let golden = &golden()[0];
    let index = golden.index();
    let tar_end = golden.location().tar_end;
    assert!(gaps_of(&index, 4345).is_err());
    let mut overlapping = index;
    overlapping.entries.reverse();
    assert_eq!(gaps_of(&overlapping, tar_end).unwrap_err().outcome(), Outcome::Integrity);
    assert_eq!(gaps_of(&LayerIndex::default(), 7).unwrap(), std::slice::from_ref(&(0..7)));
}
