//! The heap of the process: how the C library (glibc; with others these do nothing) keeps memory that was freed.

/// Arenas that threads share. glibc would make eight for each processor, and each keeps what its threads once needed.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;
/// From this size on, memory is mapped by itself and given back when it is freed. glibc would raise the limit to the largest that was ever
/// freed, up to 32 MiB.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 512 << 10;
/// So much may be free at the end of the heap before it is given back.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 1 << 20;

/// Makes the C library keep little memory that was freed: for a process with many threads that stays for long. To be called before there
/// are threads. Whether all of it was accepted.
pub fn keep_little() -> bool {
    #[cfg(target_env = "gnu")]
    {
        let settings = [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, MAPPED_FROM), (libc::M_TRIM_THRESHOLD, KEPT)];
        settings.into_iter().all(|(parameter, value)| {
            // SAFETY: mallopt(3) takes two numbers and changes only how memory is allocated from then on.
            unsafe { libc::mallopt(parameter, value) == 1 }
        })
    }
    #[cfg(not(target_env = "gnu"))]
    true
}

/// Gives memory that was freed back to the kernel. The C library keeps what threads free for these threads, so that a process that once needed
/// much would have it for ever. Takes some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number of bytes and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_large_is_gone_when_it_is_freed() {
        assert!(super::keep_little());
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * crate::mmap::page_size()
        };
        // Twice, since glibc would raise its limit when the first is freed.
        for _ in 0..2 {
            let large = vec![1u8; 16 << 20];
            let with = resident();
            drop(large);
            assert!(resident() + (12 << 20) < with, "{} of {with} bytes are still here", resident());
        }
    }
}
