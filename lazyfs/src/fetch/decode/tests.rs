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
        self.segments.push(Segment::Piece(plan(&content, chunks)));
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
            Segment::Piece(plan) => &mut Arc::get_mut(&mut plan.chunks).unwrap()[chunk],
            Segment::Gap(_) => panic!("a gap has no chunks"),
        }
    }

    /// Feeds everything in pieces of `step` bytes.
    fn decode(&self, store: &Store, step: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut decoder = Decoder::new(store, LayerKind::ZstdChunked, self.segments.clone()).unwrap();
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

fn plan(content: &[u8], chunks: Vec<Chunk>) -> PiecePlan {
    let file = Digest::of(content);
    PiecePlan { id: PieceId::Object(file), file, chunks: chunks.into(), to: Destination::Object }
}

fn store() -> (tempfile::TempDir, Store) {
    // A store has hundreds of directories: in memory, where there is such a file system, the tests do not wait for the disk.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// The output of a frame that fills the decoder's buffer to the last byte: there may be more of it, but there is not.
#[test]
fn chunks_as_long_as_the_output_buffer_are_complete() {
    let (_dir, store) = store();
    for len in [OUT - 1, OUT, OUT + 1, 2 * OUT] {
        let content = noise(len, 3);
        // With its length in the header and in one go, as writers of small chunks make them.
        let frame = zstd::bulk::compress(&content, 3).unwrap();
        let chunk = Chunk {
            file_offset: 0,
            len: len as u64,
            blob_offset: 0,
            blob_len: frame.len() as u64,
            digest: Digest::of(&content),
            zeros: false,
        };
        let segments = vec![Segment::Piece(plan(&content, vec![chunk]))];
        let blob = Blob { bytes: frame, segments };
        for step in [7, blob.bytes.len()] {
            let events = blob.decode(&store, step);
            assert!(matches!(events.as_slice(), [Event::Stored(_)]), "{len} bytes, {step} at a time: {events:?}");
        }
    }
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
        let (_dir, store) = store();
        let sparse = [zeros.clone(), tail.clone(), zeros.clone()].concat();
        let stored = |content: &[u8]| Event::Stored(PieceId::Object(Digest::of(content)));
        let gap = |n: usize| blob.segments[n].range().start;
        assert_eq!(
            blob.decode(&store, step),
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
            let path = store.cas().objects_dir().join(Digest::of(content).object_path());
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
        let (_dir, store) = store();
        let mut blob = whole();
        spoil(&mut blob);
        let events = blob.decode(&store, 999);
        let offset = blob.chunk(1, 1).blob_offset;
        assert_eq!(events.len(), 4, "{name}: {events:?}");
        assert_eq!(events[0], Event::Stored(PieceId::Object(Digest::of(b"first"))), "{name}");
        assert!(matches!(&events[1], Event::Damaged(d) if d.why.contains(why) && d.offset == offset), "{name}: {events:?}");
        assert_eq!(events[3], Event::Stored(PieceId::Object(Digest::of(b"last"))), "{name}");
        assert!(!store.cas().contains(&Digest::of(&large)), "{name}: stored in spite of it");
    }

    // A single chunk is checked by the file's digest, and chunks that are right do not make a file that is right.
    for spoil in
        [|plan: &mut PiecePlan| plan.file = Digest::of(b"other"), |plan: &mut PiecePlan| plan.chunks = plan.chunks[..1].into()]
    {
        let (_dir, store) = store();
        let mut blob = whole();
        let Segment::Piece(plan) = &mut blob.segments[1] else { panic!("not a file") };
        spoil(plan);
        let events = blob.decode(&store, 999);
        assert!(matches!(&events[1], Event::Damaged(d) if d.why.contains("their digest is")), "{events:?}");
    }
}

fn flip(blob: &mut Blob, segment: usize, chunk: usize, at: usize) {
    let offset = blob.chunk(segment, chunk).blob_offset as usize + at;
    blob.bytes[offset] ^= 0x10;
}

#[test]
fn a_bomb_is_stopped_early() {
    let (_dir, store) = store();
    let mut blob = Blob::default().file(&[&vec![1; 100 << 20]]);
    blob.chunk(0, 0).len = 1000;
    let events = blob.decode(&store, 1 << 20);
    assert!(matches!(&events[..], [Event::Damaged(d)] if d.why.contains("more than 1000 bytes")), "{events:?}");
}

/// A file as pieces of one chunk each, in the data file of a layer.
#[test]
fn chunks_of_large_files_are_kept_once_they_are_right() {
    let layer = Digest::of(b"layer");
    let (content, zeros) = (noise(150_000, 9), vec![0; 50_000]);
    let blob = || {
        let mut blob = Blob::default().hole(b"x").file(&[&content[..100_000], &zeros, &content[100_000..]]).gap(b"gap");
        let Segment::Piece(whole) = blob.segments.remove(0) else { panic!("not a piece") };
        let pieces = whole.chunks.chunks(2).map(|chunks| {
            let id = PieceId::Data { layer, offset: 16384 + chunks[0].file_offset };
            let to = Destination::Data { len: 1 << 20, file: 16384 };
            Segment::Piece(PiecePlan { id, file: whole.file, chunks: chunks.into(), to })
        });
        blob.segments = pieces.chain(blob.segments.drain(..)).collect();
        blob
    };
    let (first, second) = (PieceId::Data { layer, offset: 16384 }, PieceId::Data { layer, offset: 16384 + 150_000 });
    for (name, spoil, damaged) in
        [("all is right", None, None), ("the first chunk", Some(0), Some(first)), ("the last chunk", Some(1), Some(second))]
    {
        let (_dir, store) = store();
        let big = store.big(&layer, 1 << 20).unwrap();
        let mut blob = blob();
        if let Some(piece) = spoil {
            flip(&mut blob, piece, 0, 5_000);
        }
        let events = blob.decode(&store, 999);
        let wanted = [first, second].map(|piece| match damaged == Some(piece) {
            true => None,
            false => Some(Event::Stored(piece)),
        });
        assert_eq!(events.len(), 3, "{name}: {events:?}");
        for (event, wanted) in events.iter().zip(wanted) {
            match wanted {
                Some(wanted) => assert_eq!(*event, wanted, "{name}"),
                None => assert!(matches!(event, Event::Damaged(d) if Some(d.piece) == damaged), "{name}: {event:?}"),
            }
        }
        let whole = [&content[..100_000], &zeros, &content[100_000..]].concat();
        let ranges = [0..150_000, 150_000..200_000];
        for (piece, range) in [first, second].iter().zip(ranges) {
            let (at, mut found) = (16384 + range.start as u64, vec![1; range.len()]);
            match damaged == Some(*piece) {
                true => assert!(!big.has(at..at + 1), "{name}: kept in spite of it"),
                false => {
                    big.read(at, &mut found).unwrap();
                    assert!(found == whole[range], "{name}");
                }
            }
        }
        assert!(!store.cas().contains(&Digest::of(&whole)));
    }
}
