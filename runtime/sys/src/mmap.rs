//! A file mapped into memory for reading.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use rustix::fs::FileType;

/// All bytes of a regular file, mapped read-only and private.
///
/// # What the owner of the file upholds
///
/// The file is immutable while it is mapped: nobody writes to it or truncates it; a new version is a new file that takes over the
/// name; at most bytes that nobody reads here may change. Rust could not notice the change of bytes behind a shared reference, and a truncated file ends the process with SIGBUS. Files
/// that somebody else may change must be read, not mapped.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which the kernel does not map.
    start: Option<NonNull<u8>>,
    len: usize,
}

impl MappedFile {
    /// Maps the whole of `file`. Anything but a regular file is `InvalidInput`. The descriptor is not needed afterwards.
    pub fn map(file: impl AsFd) -> io::Result<Self> {
        let fd = file.as_fd();
        let stat = rustix::fs::fstat(fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let len = usize::try_from(stat.st_size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if len == 0 {
            return Ok(Self { start: None, len });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process; the result is checked. rustix
        // has mmap only as an unsafe function too.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start.cast()), len })
    }
}

impl MappedFile {
    /// Lets go of the pages that were read so far; they stay in the page cache of the file, and come back when they are read again.
    pub fn forget(&self) -> io::Result<()> {
        let Some(start) = self.start else { return Ok(()) };
        // SAFETY: `start` is a mapping of `len` bytes that lives until `drop`. It is read-only and of a file, so pages that were let go of
        // come back with the same bytes.
        match unsafe { libc::madvise(start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.start {
            None => &[],
            // SAFETY: `start` is a mapping of `len` readable bytes that lives until `drop`, and `len` is below isize::MAX because
            // the kernel could map it. The bytes do not change: see the invariant of the type.
            Some(start) => unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len) },
        }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // SAFETY: the mapping was made by `map` with this address and length, and no reference outlives `self`.
            let unmapped = unsafe { libc::munmap(start.as_ptr().cast(), self.len) };
            debug_assert_eq!(unmapped, 0, "munmap of a mapping of our own fails only for wrong arguments");
        }
    }
}

// SAFETY: the mapping is read-only memory that belongs to the process, not to a thread.
unsafe impl Send for MappedFile {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for MappedFile {}

/// Bytes of a page.
pub fn page_size() -> usize {
    // SAFETY: sysconf takes no pointers and changes nothing.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("Linux always has a page size")
}

/// Which pages of the first `len` bytes of a file are in the page cache (mincore(2)): one entry a page, where bit 0 counts. The kernel says
/// the truth to the file's owner and to whoever may write to it; for others all pages are in it. The file may change meanwhile.
pub fn resident_pages(file: impl AsFd, len: usize) -> io::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut pages = vec![0; len.div_ceil(page_size())];
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process; the result is checked, and nobody
    // gets the address to read through it.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, libc::MAP_SHARED, file.as_fd().as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `start` is the mapping of `len` bytes from above, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(start, len, pages.as_mut_ptr()) };
    let asked = if asked == 0 { Ok(pages) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the mapping was made above with this address and length, and nothing refers to it.
    let unmapped = unsafe { libc::munmap(start, len) };
    debug_assert_eq!(unmapped, 0, "munmap of a mapping of our own fails only for wrong arguments");
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_mapping_has_the_bytes_and_outlives_descriptor_and_name() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&b"towline ".repeat(10_000)).unwrap();
        let mapped = MappedFile::map(&file).unwrap();
        drop(file);
        assert_eq!(&mapped[..], b"towline ".repeat(10_000));
        mapped.forget().unwrap();
        assert_eq!(&mapped[..], b"towline ".repeat(10_000));
    }

    #[test]
    fn pages_that_were_written_are_in_the_cache() {
        let mut file = tempfile::tempfile().unwrap();
        let page = page_size();
        file.write_all(&vec![1; 3 * page + 1]).unwrap();
        let resident = resident_pages(&file, 3 * page + 1).unwrap();
        assert_eq!(resident.iter().map(|page| page & 1).collect::<Vec<_>>(), [1; 4]);
        assert!(resident_pages(&file, 0).unwrap().is_empty());
    }

    #[test]
    fn empty_files_and_other_things() {
        let file = tempfile::tempfile().unwrap();
        let empty = MappedFile::map(&file).unwrap();
        assert!(empty.is_empty());
        empty.forget().unwrap();
        let directory = std::fs::File::open("/").unwrap();
        assert_eq!(MappedFile::map(&directory).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
