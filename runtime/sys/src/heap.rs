//! The heap of the process.

/// Gives memory that was freed back to the kernel. The C library keeps what threads free for these threads, so that a process that once needed
/// much would have it for ever. Takes some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number of bytes and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}
