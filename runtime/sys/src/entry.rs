//! The start of a program that is executed so often that what Rust's standard library does at a start counts: some 20 system calls,
//! among them reading `/proc/self/maps` to know where the stack ends.
//!
//! What is left out is the message at a stack overflow (the kernel's signal ends the program all the same). What a program must not
//! lose is done here: SIGPIPE stays ignored, and standard descriptors that are closed are opened, so that no other file takes
//! their numbers.

use std::io::{Error, Result};

/// How much the heap grows at a time, in bytes. What is not touched takes no memory.
const HEAP_STEP: libc::c_int = 1 << 20;

/// How much has to be free at its end before it shrinks: a program of a few milliseconds need not give memory back.
const HEAP_TRIM: libc::c_int = 1 << 28;

/// Makes a function `fn() -> u8`, the exit code, the program's `main`. The crate needs `#![no_main]`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[allow(unsafe_code, reason = "the symbol that the C library calls; no other crate of the program defines it")]
        #[unsafe(no_mangle)]
        extern "C" fn main() -> ::std::ffi::c_int {
            let code = match $crate::prepare_process() {
                Ok(()) => $main(),
                Err(_) => 1,
            };
            // Flushes standard output.
            ::std::process::exit(code.into())
        }
    };
}

/// Puts the process into the state in which the standard library would start `main`.
///
/// # Errors
/// A closed standard descriptor could not be opened.
pub fn prepare_process() -> Result<()> {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // SAFETY: mallopt takes two integers; nothing else runs yet.
    unsafe { libc::mallopt(libc::M_TOP_PAD, HEAP_STEP) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, HEAP_TRIM) };
    let mut fds = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: `fds` is an array of three that outlives the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 3, 0) } < 0 {
        return Err(Error::last_os_error());
    }
    for closed in fds.iter().filter(|fd| fd.revents & libc::POLLNVAL != 0) {
        // The lowest free number is this one, since the lower ones are open.
        // SAFETY: the path is NUL-terminated.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != closed.fd {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}
