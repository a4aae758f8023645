//! Scheduling, memory placement and execution domain of the calling thread.

use std::io;

use crate::check;

/// What [`sched_setattr`] sets (`struct sched_attr` of include/uapi/linux/sched/types.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds, as the two that follow.
    pub runtime: u64,
    /// See `runtime`.
    pub deadline: u64,
    /// See `runtime`.
    pub period: u64,
}

/// The kernel's struct as of Linux 5.3.
#[repr(C)]
struct RawSchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// sched_setattr(2) for the calling thread.
pub fn sched_setattr(attr: &SchedAttr) -> io::Result<()> {
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period } = *attr;
    let size = size_of::<RawSchedAttr>() as u32;
    let raw = RawSchedAttr { size, policy, flags, nice, priority, runtime, deadline, period, util_min: 0, util_max: 0 };
    // SAFETY: `raw` outlives the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) })?;
    Ok(())
}

/// ioprio_set(2) for the calling thread: class (`IOPRIO_CLASS_*`) and level in it.
pub fn ioprio_set(class: u8, level: u8) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = i32::from(class) << CLASS_SHIFT | i32::from(level);
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// personality(2): sets the execution domain.
pub fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: takes an integer only.
    check(unsafe { libc::personality(persona.into()) }.into())?;
    Ok(())
}

/// set_mempolicy(2): `mode` with its flags, and the nodes as a bit mask (empty: none).
pub fn set_mempolicy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // The kernel reads one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits, which are the words of `nodes`; a null mask comes with no bits.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_process_may_set() {
        sched_setattr(&SchedAttr { policy: libc::SCHED_BATCH as u32, ..SchedAttr::default() }).unwrap();
        ioprio_set(3, 0).unwrap();
        personality(0).unwrap();
        set_mempolicy(0, &[]).unwrap();
    }

    #[test]
    fn what_no_kernel_takes() {
        let bad = SchedAttr { policy: 99, ..SchedAttr::default() };
        assert_eq!(sched_setattr(&bad).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(ioprio_set(7, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        // MPOL_DEFAULT takes no nodes.
        assert_eq!(set_mempolicy(0, &[1]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
