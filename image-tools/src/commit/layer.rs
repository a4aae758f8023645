//! What a container wrote, as a layer (image-spec, "Image Layer Filesystem Changeset").
//!
//! What was changed is in the upper directory of its overlay, and what that means is in the mounted root: names come from the one, owners, times,
//! attributes and content from the other, which also has the whole of what the upper directory only refers to (`metacopy`, `redirect`).
//!
//! ```text
//! character device 0,0                         .wh.NAME
//! directory with trusted.overlay.opaque=y      the directory, then .wh..wh..opq in it
//! directory with trusted.overlay.redirect      the same, and everything in it
//! file with several names                      the first of them, then hard links
//! file with holes                              as long as it is; the compressor makes nothing of zeros
//! ```

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::layer::tar::compose::Composed;
use towline_lazyfs::layer::write::{self, Options, Written, check};

/// Directories in directories; two descriptors are open for each.
const MAX_DEPTH: usize = 256;
/// Bytes of a block, and of the two blocks that end a tar.
const BLOCK: u64 = 512;
const END: [u8; 1024] = [0; 1024];
/// Bytes that are read or written at a time.
const PIECE: usize = 256 << 10;
/// The longest list of attributes, and the longest value, that Linux has, bytes.
const XATTR_MAX: usize = 64 << 10;
/// Attributes that speak of this machine.
const OF_THIS_MACHINE: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// The two views of a container's root.
#[derive(Debug)]
pub struct Views {
    /// The upper directory of the overlay, open for reading.
    pub upper: OwnedFd,
    /// The root as the container has it, open for reading.
    pub merged: OwnedFd,
    /// Absolute paths that are not the container's, since something is mounted there.
    pub mounted: Vec<String>,
}

/// Writes the layer into `blob`. Also returns what had to be left out.
pub fn write(views: &Views, options: &Options, blob: &File) -> Result<(Written, Vec<String>)> {
    let (reader, writer) = std::io::pipe().map_err(|e| Error::new(Outcome::Io, "opening a pipe").because(e))?;
    let (tar, written) = std::thread::scope(|scope| {
        let tar = scope.spawn(|| write_tar(views, writer));
        let written = write::write(reader, options, blob);
        (tar.join().expect("writing a tar does not panic"), written)
    });
    let left_out = match (tar, &written) {
        (Ok(left_out), _) => left_out,
        // It ended because nobody read it any more.
        (Err(Failed { is_unread: true, .. }), Err(_)) => Vec::new(),
        (Err(failed), _) => return Err(failed.error),
    };
    let written = written?;
    check::check(&written, blob)?;
    Ok((written, left_out))
}

/// Why the tar ended early.
struct Failed {
    error: Error,
    is_unread: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, is_unread: false }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        let is_unread = error.kind() == ErrorKind::BrokenPipe;
        Self { error: Error::io("writing", "the tar of a layer", error), is_unread }
    }
}

fn write_tar(views: &Views, out: impl Write) -> Result<Vec<String>, Failed> {
    let mut walk = Walk {
        out: BufWriter::with_capacity(PIECE, out),
        mounted: views.mounted.iter().map(|path| path.trim_start_matches('/').as_bytes().to_vec()).collect(),
        links: HashMap::new(),
        left_out: Vec::new(),
        buffer: vec![0; PIECE],
    };
    walk.changes(&views.upper, &views.merged, b"", 0)?;
    walk.out.write_all(&END)?;
    walk.out.flush()?;
    Ok(walk.left_out)
}

struct Walk<W: Write> {
    out: BufWriter<W>,
    mounted: Vec<Vec<u8>>,
    /// Names of files with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    left_out: Vec<String>,
    buffer: Vec<u8>,
}

impl<W: Write> Walk<W> {
    /// What a directory of the upper layer has, in the order of names.
    fn changes(&mut self, upper: &OwnedFd, merged: &OwnedFd, path: &[u8], depth: usize) -> Result<(), Failed> {
        for name in names(upper, path, depth)? {
            let inside = join(path, name.to_bytes());
            let Some(inside) = self.admit(inside, &name) else { continue };
            let stat = match rustix::fs::statat(upper, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It was removed meanwhile.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed("looking at", &inside, e).into()),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0 {
                self.mark(path, &[b".wh.", name.to_bytes()].concat())?;
                continue;
            }
            let Some((fd, stat)) = open(merged, &name, &inside)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.leaf(&fd, &stat, &inside)?;
                continue;
            }
            let below = list_in(upper, &name).map_err(|e| failed("opening", &inside, e))?;
            let merged = list_in(merged, &name).map_err(|e| failed("opening", &inside, e))?;
            self.head(&fd, &stat, &inside, b'5', b"", 0)?;
            let moved = attribute(&below, c"trusted.overlay.redirect", &inside)?.is_some();
            if moved || attribute(&below, c"trusted.overlay.opaque", &inside)?.is_some_and(|value| value == b"y") {
                self.mark(&inside, b".wh..wh..opq")?;
            }
            match moved {
                true => self.whole(&merged, &inside, depth + 1)?,
                false => self.changes(&below, &merged, &inside, depth + 1)?,
            }
        }
        Ok(())
    }

    /// Everything in a directory.
    fn whole(&mut self, merged: &OwnedFd, path: &[u8], depth: usize) -> Result<(), Failed> {
        for name in names(merged, path, depth)? {
            let Some(inside) = self.admit(join(path, name.to_bytes()), &name) else { continue };
            let Some((fd, stat)) = open(merged, &name, &inside)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.leaf(&fd, &stat, &inside)?;
                continue;
            }
            let below = list_in(merged, &name).map_err(|e| failed("opening", &inside, e))?;
            self.head(&fd, &stat, &inside, b'5', b"", 0)?;
            self.whole(&below, &inside, depth + 1)?;
        }
        Ok(())
    }

    /// The path, unless it is not to be in the layer.
    fn admit(&mut self, inside: Vec<u8>, name: &CStr) -> Option<Vec<u8>> {
        if name.to_bytes().starts_with(b".wh.") {
            self.left_out.push(format!("/{}: in a layer such a name means that something is deleted", inside.escape_ascii()));
            return None;
        }
        (!self.mounted.contains(&inside)).then_some(inside)
    }

    /// Anything but a directory.
    fn leaf(&mut self, fd: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), Failed> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.head(fd, stat, path, b'1', &first, 0);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(fd, stat, path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(|e| failed("reading", path, e))?;
                self.head(fd, stat, path, b'2', target.to_bytes(), 0)
            }
            FileType::CharacterDevice => self.head(fd, stat, path, b'3', b"", 0),
            FileType::BlockDevice => self.head(fd, stat, path, b'4', b"", 0),
            FileType::Fifo => self.head(fd, stat, path, b'6', b"", 0),
            _ => {
                self.left_out.push(format!("/{}: a layer has no sockets", path.escape_ascii()));
                Ok(())
            }
        }
    }

    fn file(&mut self, fd: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), Failed> {
        // This very file, whatever its name stands for by now.
        let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let opened = rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut file = File::from(opened.map_err(|e| failed("opening", path, e))?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.head(fd, stat, path, b'0', b"", size)?;
        let mut left = size;
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = match file.read(&mut self.buffer[..limit]) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("reading", shown(path), e).into()),
            };
            if n == 0 {
                return Err(Error::new(Outcome::Busy, format!("reading {}", shown(path)))
                    .because("it became shorter meanwhile")
                    .advise("leave the container paused while it is read, or stop it")
                    .into());
            }
            self.out.write_all(&self.buffer[..n])?;
            left -= n as u64;
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).expect("less than a block");
        Ok(self.out.write_all(&END[..padding])?)
    }

    /// What stands before the content of an entry.
    fn head(&mut self, fd: &OwnedFd, stat: &Stat, path: &[u8], kind: u8, link: &[u8], size: u64) -> Result<(), Failed> {
        let name = if kind == b'5' { [path, b"/"].concat() } else { path.to_vec() };
        // A hard link has no inode of its own.
        let xattrs = if kind == b'1' { Vec::new() } else { attributes(fd, path)? };
        let numbers = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let composed = Composed {
            name: &name,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            link,
            device: matches!(kind, b'3' | b'4').then(numbers),
            xattrs: &xattrs,
        };
        Ok(self.out.write_all(&composed.head())?)
    }

    /// An empty file that says something about its directory.
    fn mark(&mut self, dir: &[u8], name: &[u8]) -> Result<(), Failed> {
        let path = join(dir, name);
        let text = Composed { name: &path, ..Composed::file("", 0o600, 0) }.head();
        Ok(self.out.write_all(&text)?)
    }
}

fn names(dir: &OwnedFd, path: &[u8], depth: usize) -> Result<Vec<CString>> {
    if depth >= MAX_DEPTH {
        let error = Error::new(Outcome::Unsupported, format!("reading what is in {}", shown(path)));
        return Err(error.because(format!("it is more than {MAX_DEPTH} directories deep")));
    }
    let listing = |e: Errno| failed("listing", path, e);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn open(dir: &OwnedFd, name: &CStr, inside: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty()).and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
    match opened {
        Ok(opened) => Ok(Some(opened)),
        // It was removed meanwhile.
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(failed("opening", inside, e)),
    }
}

fn list_in(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// An attribute of overlayfs.
fn attribute(dir: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = [0; 4096];
    match rustix::fs::fgetxattr(dir, name, &mut value[..]) {
        Ok(len) => Ok(Some(value[..len].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(failed("reading an attribute of", path, e)),
    }
}

/// All attributes that are the file's own; overlayfs does not show what it keeps there for itself.
fn attributes(fd: &OwnedFd, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Attributes of a descriptor that cannot be read are reached by its name alone, which for a symbolic link means the link.
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let wrong = |e: Errno| failed("reading the attributes of", path, e);
    let mut list = vec![0; XATTR_MAX];
    let len = match rustix::fs::listxattr(&own, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(wrong(e)),
    };
    let mut found = Vec::new();
    let mut value = vec![0; if len > 0 { XATTR_MAX } else { 0 }];
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty() && !OF_THIS_MACHINE.contains(name)) {
        match rustix::fs::getxattr(&own, name, &mut value[..]) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            // It was removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(wrong(e)),
        }
    }
    found.sort();
    Ok(found)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

fn failed(operation: &str, path: &[u8], e: Errno) -> Error {
    let error = Error::io(operation, shown(path), e);
    match e {
        Errno::LOOP => error.advise("the file could not be fetched: the log of towlined says why"),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
