//! The bytes on `/dev/fuse`, as far as the trigger speaks them: requests are parsed from, and replies encoded to, plain bytes.
//!
//! Shapes and constants are those of the kernel's FUSE protocol 7.45 (Linux 6.18, `include/uapi/linux/fuse.h`); numbers are in host
//! byte order. Everything here is pure. Whatever comes from the kernel is still checked: a request that is too short or names
//! something impossible becomes [`Malformed`], which carries what is needed to answer it with an error.

/// Major protocol version.
pub const MAJOR: u32 = 7;
/// Newest minor version that the shapes below agree with (Linux 6.18).
pub const MINOR: u32 = 45;
/// Oldest minor version that is served: Linux 6.5, whose overlayfs is the first that looks file data up lazily.
pub const OLDEST_MINOR: u32 = 38;

/// Node id of the root directory (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

/// `FUSE_ASYNC_DIO`: when a read is sent in parts, one that fails makes all of it fail (Linux 3.13). Without it the read would end
/// where the part that failed begins, and EROFS takes what is missing of a read for zeros.
pub const ASYNC_DIO: u64 = 1 << 15;
/// `FUSE_MAX_PAGES`: how long a read may be is agreed on (Linux 4.20).
pub const MAX_PAGES: u64 = 1 << 22;
/// `FUSE_PARALLEL_DIROPS`: look-ups in one directory may run at the same time (Linux 4.7).
pub const PARALLEL_DIROPS: u64 = 1 << 18;
/// `FUSE_HAS_RESEND`: the kernel sends requests again that were read and not answered, when it is told to ([`resend`]; Linux 6.9).
pub const HAS_RESEND: u64 = 1 << 39;
/// `FUSE_INIT_EXT`: the upper 32 flag bits are in use (Linux 5.17).
pub const INIT_EXT: u64 = 1 << 30;

/// Length of `fuse_in_header` (40 bytes since the first version; its last four became `total_extlen` and padding in 7.38).
pub const HEADER_LEN: usize = 40;
/// What one `read` of the device must offer at least is 8192 bytes (`FUSE_MIN_READ_BUFFER`); the longest request the trigger is ever
/// sent is a BATCH_FORGET, which the kernel cuts to the buffer.
pub const BUFFER_LEN: usize = 32 * 1024;
/// Longest name of a look-up: `FUSE_NAME_MAX`, 1024 bytes until Linux 6.14 and PATH_MAX - 1 since.
const NAME_MAX: usize = 4095;

/// The longest read that is asked for, in pages of 4096 bytes.
const READ_PAGES: u16 = 256;
/// The longest read in bytes: pages may be larger than 4096 bytes.
pub const READ_MAX: u32 = READ_PAGES as u32 * 65536;
/// Reads that may be on their way. They count as background requests, and one that would be more waits in the kernel.
const READS: u16 = 4096;

/// Seconds for which the kernel may keep what never changes: 34 years.
const FOREVER: u64 = 1 << 30;

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Names the request in its reply.
    pub unique: u64,
    /// The node it is about.
    pub node: u64,
    /// Thread that waits for the answer, in the pid namespace of the mounter; 0 where it is not visible there.
    pub pid: u32,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What a request asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// First request of a connection.
    Init(Init),
    /// Looks this name up in the directory; without the terminating NUL, never empty, never with a `/`.
    Lookup(&'a [u8]),
    /// Attributes of the node.
    GetAttr,
    /// Statistics of the file system.
    StatFs,
    /// Opens the file.
    Open,
    /// So many bytes of the file from this offset on.
    Read {
        /// Where they begin.
        offset: u64,
        /// How many.
        size: u32,
    },
    /// A file is closed, once for each descriptor or for the last one.
    Close,
    /// The caller of the request with this `unique` has a signal.
    Interrupt(u64),
    /// The kernel drops references to nodes; has no reply.
    Forget,
    /// The file system is going away.
    Destroy,
    /// Anything else, by its opcode.
    Other(u32),
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// Protocol version of the kernel.
    pub major: u32,
    /// Its minor version.
    pub minor: u32,
    /// Longest read ahead, bytes.
    pub max_readahead: u32,
    /// What it can do; the upper half is 0 below 7.36.
    pub flags: u64,
}

/// Why bytes are not a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed FUSE request: {what}")]
pub struct Malformed {
    /// The request to answer with an error, where that much could be read.
    pub unique: Option<u64>,
    /// What is wrong.
    pub what: &'static str,
}

/// Parses what one `read` of the device returned: exactly one request.
pub fn parse(bytes: &[u8]) -> Result<Request<'_>, Malformed> {
    let mut header = Fields(bytes);
    let short = Malformed { unique: None, what: "shorter than its header" };
    let (Some(len), Some(opcode), Some(unique), Some(node), Some(_owner), Some(pid), Some(extensions)) =
        (header.u32(), header.u32(), header.u64(), header.u64(), header.u64(), header.u32(), header.array::<4>())
    else {
        return Err(short);
    };
    let wrong = |what| Malformed { unique: Some(unique), what };
    if usize::try_from(len) != Ok(bytes.len()) {
        return Err(wrong("its length field is not its length"));
    }
    // total_extlen (16 bits) and padding; extensions would follow the body, but the trigger negotiates none.
    if extensions[..2] != [0, 0] {
        return Err(wrong("has extensions"));
    }
    let mut body = Fields(&bytes[HEADER_LEN..]);
    let operation = match opcode {
        1 => Operation::Lookup(name(body.0).map_err(wrong)?),
        2 | 42 => Operation::Forget,
        3 => Operation::GetAttr,
        14 => Operation::Open,
        15 => read(&mut body).ok_or_else(|| wrong("READ is too short"))?,
        17 => Operation::StatFs,
        18 | 25 => Operation::Close,
        26 => Operation::Init(init(&mut body).ok_or_else(|| wrong("INIT is too short"))?),
        36 => Operation::Interrupt(body.u64().ok_or_else(|| wrong("INTERRUPT is too short"))?),
        38 => Operation::Destroy,
        other => Operation::Other(other),
    };
    Ok(Request { unique, node, pid, operation })
}

fn name(body: &[u8]) -> Result<&[u8], &'static str> {
    match body.split_last() {
        Some((0, [])) => Err("LOOKUP of an empty name"),
        Some((0, name)) if name.len() > NAME_MAX => Err("LOOKUP of too long a name"),
        Some((0, name)) if name.contains(&0) || name.contains(&b'/') => Err("LOOKUP of a name with NUL or `/` in it"),
        Some((0, name)) => Ok(name),
        _ => Err("LOOKUP without a terminated name"),
    }
}

/// `fuse_read_in`: handle, offset, size, and what matters only for locks and O_APPEND.
fn read(body: &mut Fields<'_>) -> Option<Operation<'static>> {
    body.u64()?;
    Some(Operation::Read { offset: body.u64()?, size: body.u32()? })
}

fn init(body: &mut Fields<'_>) -> Option<Init> {
    let (major, minor, max_readahead, low) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
    let high = if u64::from(low) & INIT_EXT == 0 { 0 } else { body.u32()? };
    Some(Init { major, minor, max_readahead, flags: u64::from(low) | u64::from(high) << 32 })
}

/// The rest of a message, read from its front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }
}

/// A reply in the making: `fuse_out_header` and body.
struct Reply(Vec<u8>);

impl Reply {
    /// `error` is a positive errno, 0 for success. The kernel takes 0 to 511 only (`fuse_dev_do_write`).
    fn new(unique: u64, error: i32) -> Self {
        let mut reply = Self(Vec::with_capacity(144));
        reply.u32(0).u32((-error).cast_unsigned()).u64(unique);
        reply
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `fuse_attr` of a directory that only its owner, root, may look into.
    fn directory(&mut self, node: u64) -> &mut Self {
        self.u64(node).zeros(5 * 8); // ino; size, blocks, atime, mtime, ctime
        self.zeros(3 * 4).u32(0o40700).u32(2); // nanoseconds; mode, nlink
        self.zeros(3 * 4).u32(4096).u32(0) // uid, gid, rdev; blksize, flags
    }

    /// `fuse_attr` of a file of this length that only its owner, root, may read.
    fn file(&mut self, node: u64, len: u64) -> &mut Self {
        self.u64(node).u64(len).u64(len.div_ceil(512)).zeros(3 * 8); // ino, size, blocks; atime, mtime, ctime
        self.zeros(3 * 4).u32(0o100_400).u32(1); // nanoseconds; mode, nlink
        self.zeros(3 * 4).u32(4096).u32(0) // uid, gid, rdev; blksize, flags
    }

    fn finish(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.0);
        let len = u32::try_from(bytes.len()).expect("replies are short");
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }
}

/// The answer "failed with this errno". Numbers that the kernel would not take become EIO, and so do ECHILD and ESTALE, which make a
/// path walk start again and ask a second time.
pub fn error(unique: u64, errno: i32) -> Vec<u8> {
    let errno = if (1..512).contains(&errno) && errno != 10 && errno != 116 { errno } else { 5 };
    Reply::new(unique, errno).finish()
}

/// The notification `FUSE_NOTIFY_RESEND` (its code is 7): sends again what was read and not answered, with bit 63 set in `unique`, which
/// the answer repeats.
pub fn resend() -> Vec<u8> {
    Reply::new(0, -7).finish()
}

/// The answer "done", without a body.
pub fn done(unique: u64) -> Vec<u8> {
    Reply::new(unique, 0).finish()
}

/// The answer to INIT: `fuse_init_out`, 64 bytes.
pub fn init_reply(unique: u64, offer: &Init, flags: u64) -> Vec<u8> {
    let (low, high) = ((flags & u64::from(u32::MAX)) as u32, (flags >> 32) as u32);
    let mut reply = Reply::new(unique, 0);
    reply.u32(MAJOR).u32(offer.minor.min(MINOR)).u32(offer.max_readahead).u32(low);
    // Writes never happen; 4096 is the least max_write that the kernel takes.
    reply.u16(READS).u16(READS / 4 * 3).u32(4096).u32(1).u16(READ_PAGES).u16(0).u32(high);
    reply.zeros(4 + 2 + 22).finish()
}

/// The answer to LOOKUP: a directory, which the kernel may remember for ever. `fuse_entry_out`, 128 bytes.
pub fn directory_entry(unique: u64, node: u64) -> Vec<u8> {
    let mut reply = Reply::new(unique, 0);
    reply.u64(node).u64(0).u64(FOREVER).u64(FOREVER).zeros(8); // generation 0; no nanoseconds
    reply.directory(node).finish()
}

/// The answer to GETATTR of a directory. `fuse_attr_out`, 104 bytes.
pub fn directory_attributes(unique: u64, node: u64) -> Vec<u8> {
    let mut reply = Reply::new(unique, 0);
    reply.u64(FOREVER).zeros(8);
    reply.directory(node).finish()
}

/// The answer to LOOKUP: a file, which has to be looked up anew by whoever opens it again.
pub fn file_entry(unique: u64, node: u64, len: u64) -> Vec<u8> {
    let mut reply = Reply::new(unique, 0);
    reply.u64(node).u64(0).u64(0).u64(FOREVER).zeros(8); // generation 0; no nanoseconds
    reply.file(node, len).finish()
}

/// The answer to GETATTR of a file.
pub fn file_attributes(unique: u64, node: u64, len: u64) -> Vec<u8> {
    let mut reply = Reply::new(unique, 0);
    reply.u64(FOREVER).zeros(8);
    reply.file(node, len).finish()
}

/// The answer to OPEN: the kernel caches nothing of the file, and does not tell of each close. `fuse_open_out`, 16 bytes.
pub fn opened(unique: u64) -> Vec<u8> {
    const DIRECT_IO: u32 = 1;
    const NOFLUSH: u32 = 1 << 5;
    let mut reply = Reply::new(unique, 0);
    reply.u64(0).u32(DIRECT_IO | NOFLUSH).zeros(4).finish()
}

/// What stands before the bytes in the answer to READ.
pub fn read_header(unique: u64, len: usize) -> Vec<u8> {
    let mut header = done(unique);
    let all = u32::try_from(header.len() + len).expect("reads have a limit");
    header[..4].copy_from_slice(&all.to_ne_bytes());
    header
}

/// The answer to STATFS: nothing is stored here. `fuse_kstatfs`, 80 bytes.
pub fn statistics(unique: u64) -> Vec<u8> {
    let mut reply = Reply::new(unique, 0);
    reply.zeros(5 * 8).u32(4096).u32(255).u32(4096).zeros(4 + 24).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER_LEN + body.len()).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(ROOT.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(42u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    fn init_body(minor: u32, flags: u64) -> Vec<u8> {
        let words = [7, minor, 131_072, flags as u32, (flags >> 32) as u32];
        let mut body: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        body.resize(64, 0);
        body
    }

    #[test]
    fn requests_are_read() {
        let offer = |minor, flags| Operation::Init(Init { major: 7, minor, max_readahead: 131_072, flags });
        let cases: &[(u32, Vec<u8>, Operation<'_>)] = &[
            (1, b"ab\0".to_vec(), Operation::Lookup(b"ab")),
            (1, b"\xff\xfe\0".to_vec(), Operation::Lookup(b"\xff\xfe")),
            (2, vec![0; 8], Operation::Forget),
            (42, vec![0; 8], Operation::Forget),
            (3, vec![0; 16], Operation::GetAttr),
            (14, vec![0; 8], Operation::Open),
            (
                15,
                [&[9; 8][..], &7u64.to_ne_bytes(), &5u32.to_ne_bytes(), &[9; 20]].concat(),
                Operation::Read { offset: 7, size: 5 },
            ),
            (17, vec![], Operation::StatFs),
            (18, vec![0; 24], Operation::Close),
            (25, vec![0; 24], Operation::Close),
            (26, init_body(45, INIT_EXT | 1 << 39), offer(45, INIT_EXT | 1 << 39)),
            (26, init_body(31, 1 << 39)[..16].to_vec(), offer(31, 0)),
            (36, 99u64.to_ne_bytes().to_vec(), Operation::Interrupt(99)),
            (38, vec![], Operation::Destroy),
            (16, vec![0; 8], Operation::Other(16)),
            (u32::MAX, vec![], Operation::Other(u32::MAX)),
        ];
        for (opcode, body, operation) in cases {
            let bytes = message(*opcode, body);
            let request = parse(&bytes).unwrap();
            assert_eq!((request.unique, request.node, request.pid), (7, ROOT, 42));
            assert_eq!(request.operation, *operation);
        }
    }

    #[test]
    fn bad_requests_are_refused() {
        let long = [vec![b'a'; NAME_MAX + 1], vec![0]].concat();
        let cases: &[(u32, &[u8])] = &[
            (1, b""),
            (1, b"\0"),
            (1, b"ab"),
            (1, b"a\0b\0"),
            (1, b"../x\0"),
            (1, &long),
            (15, &[0; 19]),
            (26, &[0; 15]),
            (26, &init_body(45, INIT_EXT)[..16]),
            (36, &[0; 7]),
        ];
        for (opcode, body) in cases {
            let bytes = message(*opcode, body);
            assert_eq!(parse(&bytes).unwrap_err().unique, Some(7), "opcode {opcode}, body {body:?}");
        }
        let whole = message(1, b"ab\0");
        for cut in 0..whole.len() {
            let error = parse(&whole[..cut]).unwrap_err();
            assert_eq!(error.unique.is_some(), cut >= HEADER_LEN, "cut at {cut}");
        }
        for len in [0, 39, 42, 44, u32::MAX] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(parse(&bytes).is_err(), "length field {len}");
        }
        let mut extended = whole;
        extended[36] = 1;
        assert!(parse(&extended).is_err());
    }

    #[test]
    fn replies_have_the_kernels_shapes() {
        let offer = Init { major: 7, minor: 99, max_readahead: 131_072, flags: u64::MAX };
        for (reply, body) in [
            (error(7, 2), 0),
            (done(7), 0),
            (init_reply(7, &offer, PARALLEL_DIROPS | INIT_EXT), 64),
            (directory_entry(7, 0x100), 128),
            (directory_attributes(7, ROOT), 104),
            (file_entry(7, 9, 5), 128),
            (file_attributes(7, 9, 5), 104),
            (opened(7), 16),
            (statistics(7), 80),
        ] {
            assert_eq!(reply.len(), 16 + body);
            assert_eq!(reply[..4], u32::try_from(reply.len()).unwrap().to_ne_bytes());
            assert_eq!(reply[8..16], 7u64.to_ne_bytes());
        }
        assert_eq!(resend(), [16u32, 7, 0, 0].map(u32::to_ne_bytes).concat());
        assert_eq!(read_header(7, 100)[..8], [&116u32.to_ne_bytes()[..], &[0; 4]].concat());
        assert_eq!(file_entry(7, 9, 5)[16 + 40..16 + 56], [9u64.to_ne_bytes(), 5u64.to_ne_bytes()].concat());
        assert_eq!(error(7, 40)[4..8], (-40i32).to_ne_bytes());
        for wild in [0, -1, 10, 116, 512, i32::MAX, i32::MIN] {
            assert_eq!(error(7, wild)[4..8], (-5i32).to_ne_bytes(), "errno {wild}");
        }
        assert_eq!(init_reply(7, &offer, 0)[20..24], MINOR.to_ne_bytes());
        assert_eq!(directory_entry(7, 0x1ab)[16..24], 0x1abu64.to_ne_bytes());
        assert_eq!(directory_entry(7, 0x1ab)[16 + 40..16 + 48], 0x1abu64.to_ne_bytes());
        assert_eq!(directory_attributes(7, ROOT)[16 + 16 + 60..16 + 16 + 64], 0o40700u32.to_ne_bytes());
    }
}
