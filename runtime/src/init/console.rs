//! The process's pseudo terminal.
//!
//! Both ends are had as descriptors that were proven to be of a devpts: an image that puts a symlink or another file system on
//! `/dev/pts` or `/dev/console` gets an error, not a mount on a file of its choice (CVE-2025-52565).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, major, minor};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::Winsize;

use super::Init;
use crate::error::{Error, Outcome, Result};
use crate::process::message::Message;
use crate::rootfs::resolve::{Kind, Root};
use crate::rootfs::tree::Detached;

/// `DEVPTS_SUPER_MAGIC` of <linux/magic.h>.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// In `create`: from the devpts beneath the new root; the terminal is also mounted on `/dev/console`.
pub fn in_new_root(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.process.terminal {
        return Ok(());
    }
    let slave = match init.root.take() {
        Some(root) => {
            let slave = open_terminal(init, &root)?;
            let target = root.ensure(Path::new("/dev/console"), Kind::File)?;
            Detached::copy_of(slave.as_fd(), false, "the terminal")?.attach(target.as_fd(), "the terminal on /dev/console")?;
            init.root = Some(root);
            slave
        }
        None => open_terminal(init, &own_root()?)?,
    };
    make_controlling(slave)
}

/// In `exec`: from the devpts of the container that was joined.
pub fn in_joined_root(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.process.terminal {
        return Ok(());
    }
    let slave = open_terminal(init, &own_root()?)?;
    make_controlling(slave)
}

fn own_root() -> Result<Root> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(Root::new)
        .map_err(|cause| Error::io("opening", "/", cause))
}

/// Makes the pair, hands the master to the runtime and returns the slave.
fn open_terminal(init: &Init<'_>, root: &Root) -> Result<OwnedFd> {
    let failed = |step: &str, cause: rustix::io::Errno| Error::sys(format!("{step} of the container's /dev/pts"), cause);
    let path = Path::new("/dev/pts/ptmx");
    // First without opening it: opening a device of an image's choice could have effects.
    let found = root.open(path, OFlags::PATH).map_err(|cause| failed("finding ptmx", cause))?;
    let magic = rustix::fs::fstatfs(&found).map_err(|cause| failed("checking ptmx", cause))?.f_type;
    if magic != DEVPTS_SUPER_MAGIC {
        return Err(Error::new(Outcome::BadInput, "checking /dev/pts/ptmx of the container")
            .because("it is not on a devpts")
            .advise("process.terminal needs a mount of type devpts on /dev/pts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root.open(path, flags).map_err(|cause| failed("opening ptmx", cause))?;
    let stat = rustix::fs::fstat(&master).map_err(|cause| failed("checking ptmx", cause))?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2);
    if !is_ptmx {
        return Err(Error::new(Outcome::BadInput, "checking /dev/pts/ptmx of the container").because("it is not device 5:2"));
    }
    unlockpt(&master).map_err(|cause| failed("unlocking a terminal", cause))?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(|cause| failed("opening a terminal", cause))?;
    if let Some((rows, columns)) = init.plan.process.console_size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).map_err(|cause| failed("setting the size of a terminal", cause))?;
    }
    let owner = rustix::fs::Uid::from_raw(init.plan.process.uid);
    match rustix::fs::fchown(&slave, Some(owner), None) {
        // A user that the namespace does not map fails later, where the user changes.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
        Err(cause) => return Err(failed("giving the user a terminal", cause)),
    }
    init.channel.send(&Message::Console, Some(master.as_fd()))?;
    Ok(slave)
}

fn make_controlling(slave: OwnedFd) -> Result<()> {
    let failed = |cause: rustix::io::Errno| Error::sys("making the terminal the process's own", cause);
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed)?;
    let dup = |result: nix::Result<()>| {
        result.map_err(|cause| Error::sys("putting the terminal on stdin, stdout and stderr", std::io::Error::from(cause)))
    };
    dup(nix::unistd::dup2_stdin(&slave))?;
    dup(nix::unistd::dup2_stdout(&slave))?;
    dup(nix::unistd::dup2_stderr(&slave))
}
