use super::*;

/// A blob made of frames, and the files in it.
#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

impl Blob {
    fn file(mut self, pieces: &[&[u8]]) -> Self {
        let content = pieces.concat();
        let (mut chunks, mut file_offset) = (Vec::new(), 0);
        for piece in pieces {
            let frame = zstd::encode_all(*piece, 3).unwrap();
            chunks.push(Chunk {
                file_offset,
                len: piece.len() as u64,
                blob_offset: self.bytes.len() as u64,
                blob_len: frame.len() as u64,
                digest: Digest::of(piece),
                zeros: piece.iter().all(|b| *b == 0),
            });
            file_offset += piece.len() as u64;
            self.bytes.extend(frame);
        }
        self.segments.push(Segment::File(FilePlan { digest: Digest::of(&content), chunks }));
        self
    }

    fn gap(mut self, bytes: &[u8]) -> Self {
        let start = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.segments.push(Segment::Gap(start..self.bytes.len() as u64));
        self
    }

    fn hole(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn chunk(&mut self, segment: usize, chunk: usize) -> &mut Chunk {
        match &mut self.segments[segment] {
            Segment::File(plan) => &mut plan.chunks[chunk],
            Segment::Gap(_) => panic!("a gap has no chunks"),
        }
    }

    /// Feeds everything in pieces of `step` bytes.
    fn decode(&self, cas: &Cas, step: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut decoder = Decoder::new(cas, self.segments.clone()).unwrap();
        let start = decoder.position() as usize;
        for piece in self.bytes[start..].chunks(step) {
            decoder.push(piece, &mut |event| events.push(event)).unwrap();
        }
        assert_eq!(decoder.position(), self.bytes.len() as u64);
        events
    }
}

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

fn store() -> (tempfile::TempDir, Cas) {
    let dir = tempfile::tempdir().unwrap();
    let cas = Cas::open(dir.path()).unwrap();
    (dir, cas)
}

#[test]
fn files_gaps_and_holes_come_out_for_any_size_of_piece() {
    let (large, compressible) = (noise(300_000, 1), vec![7; 1_000_000]);
    let (zeros, tail) = (vec![0; 10_000], noise(5_000, 2));
    let blob = Blob::default()
        .hole(b"before")
        .file(&[b"hello"])
        .gap(b"header")
        .file(&[&large[..100_000], &large[100_000..]])
        .hole(&noise(1000, 3))
        .file(&[&compressible])
        .file(&[&zeros, &tail, &zeros])
        .gap(b"end");
    for step in [1 << 20, 65_536, 1000, 7] {
        let (_dir, cas) = store();
        let sparse = [zeros.clone(), tail.clone(), zeros.clone()].concat();
        let stored = |content: &[u8]| Event::Stored(Digest::of(content));
        let gap = |n: usize| blob.segments[n].range().start;
        assert_eq!(
            blob.decode(&cas, step),
            [
                stored(b"hello"),
                Event::Gap(gap(1), b"header".to_vec()),
                stored(&large),
                stored(&compressible),
                stored(&sparse),
                Event::Gap(gap(5), b"end".to_vec()),
            ],
            "in steps of {step}"
        );
        for content in [&b"hello"[..], &large, &compressible, &sparse] {
            let path = cas.objects_dir().join(Digest::of(content).object_path());
            assert_eq!(std::fs::read(path).unwrap(), content);
        }
    }
}

#[test]
fn damage_names_its_chunk_and_spares_the_neighbours() {
    let large = noise(50_000, 1);
    let whole = || Blob::default().file(&[b"first"]).file(&[&large[..20_000], &large[20_000..]]).gap(b"gap").file(&[b"last"]);
    type Spoil = fn(&mut Blob);
    let cases: [(&str, Spoil, &str); 6] = [
        ("a flipped byte in stored data", |b| flip(b, 1, 1, 5_000), "its digest is"),
        ("a broken frame header", |b| flip(b, 1, 1, 0), "not valid zstd"),
        ("a chunk that is longer than said", |b| b.chunk(1, 1).len -= 1, "more than 29999 bytes"),
        ("a chunk that is shorter than said", |b| b.chunk(1, 1).len += 1, "30000 bytes, not 30001"),
        ("a frame that is cut off", |b| b.chunk(1, 1).blob_len -= 9, "bytes, not 30000"),
        ("a wrong chunk digest", |b| b.chunk(1, 1).digest = Digest::of(b"x"), "its digest is"),
    ];
    for (name, spoil, why) in cases {
        let (_dir, cas) = store();
        let mut blob = whole();
        spoil(&mut blob);
        let events = blob.decode(&cas, 999);
        let offset = blob.chunk(1, 1).blob_offset;
        assert_eq!(events.len(), 4, "{name}: {events:?}");
        assert_eq!(events[0], Event::Stored(Digest::of(b"first")), "{name}");
        assert!(matches!(&events[1], Event::Damaged(d) if d.why.contains(why) && d.offset == offset), "{name}: {events:?}");
        assert_eq!(events[3], Event::Stored(Digest::of(b"last")), "{name}");
        assert!(!cas.contains(&Digest::of(&large)), "{name}: stored in spite of it");
    }

    // A single chunk is checked by the file's digest, and chunks that are right do not make a file that is right.
    for spoil in [|plan: &mut FilePlan| plan.digest = Digest::of(b"other"), |plan: &mut FilePlan| plan.chunks.truncate(1)] {
        let (_dir, cas) = store();
        let mut blob = whole();
        let Segment::File(plan) = &mut blob.segments[1] else { panic!("not a file") };
        spoil(plan);
        let events = blob.decode(&cas, 999);
        assert!(matches!(&events[1], Event::Damaged(d) if d.why.contains("their digest is")), "{events:?}");
    }
}

fn flip(blob: &mut Blob, segment: usize, chunk: usize, at: usize) {
    let offset = blob.chunk(segment, chunk).blob_offset as usize + at;
    blob.bytes[offset] ^= 0x10;
}

#[test]
fn a_bomb_is_stopped_early() {
    let (_dir, cas) = store();
    let mut blob = Blob::default().file(&[&vec![1; 100 << 20]]);
    blob.chunk(0, 0).len = 1000;
    let events = blob.decode(&cas, 1 << 20);
    assert!(matches!(&events[..], [Event::Damaged(d)] if d.why.contains("more than 1000 bytes")), "{events:?}");
}
