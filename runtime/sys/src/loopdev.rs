//! Loop devices: block devices that show a file (loop(4), <linux/loop.h>).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;

/// `struct loop_config`, with its `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device_inode_rdevice_offset_limit: [u64; 5],
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// The number of a loop device that shows nothing (LOOP_CTL_GET_FREE); `control` is /dev/loop-control. Another process may take it first.
pub fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Shows a file in a loop device, read-only, in blocks of `block_size` bytes, until nobody has the device open or mounted
/// (LOOP_CONFIGURE, Linux 5.8). `EBUSY`: it shows something.
pub fn set_up_loop_device(device: BorrowedFd<'_>, file: BorrowedFd<'_>, block_size: u32) -> io::Result<()> {
    let config = LoopConfig {
        // A descriptor is never negative.
        fd: file.as_raw_fd() as u32,
        block_size,
        device_inode_rdevice_offset_limit: [0; 5],
        number_and_encryption: [0; 3],
        flags: READ_ONLY | AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config`, which has this layout and lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into())?;
    Ok(())
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_loop_device_is_refused() {
        let file = File::open("/dev/null").unwrap();
        assert!(free_loop_device(file.as_fd()).is_err());
        assert!(set_up_loop_device(file.as_fd(), file.as_fd(), 4096).is_err());
    }
}
