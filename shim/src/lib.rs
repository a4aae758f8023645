//! containerd's shim for containers of `towline-oci`: one process for each pod, which containerd starts and then asks by ttrpc.
//!
//! | module | owns |
//! |---|---|
//! | [`launch`], [`group`] | how containerd starts a shim, in all its protocols; which containers share one |
//! | [`daemon`] | the process that stays |
//! | [`cgroup`] | where it is counted |
//! | [`rpc`] | ttrpc: frames, connections, failures |
//! | [`task`] | containers and their processes, and the Task API |
//! | [`reaper`] | every end of a process below the shim |
//! | [`events`] | the queue of events to containerd |
//! | [`rootfs`] | mounting what the snapshotter says |
//! | [`options`] | the runtime's options; where its binary is |
//! | [`record`], [`cleanup`] | what is left when a shim was killed, and how it goes |
//! | [`stdio`] | copying between the streams of containers and the FIFOs, files and log programs that containerd names |
//! | [`metrics`] | the figures of cgroups as containerd's protobufs |
//! | [`oom`] | noticing that a container ran out of memory |
//! | [`info`] | what the runtime can do, for containerd |
//! | [`log`] | the shim's own messages, which containerd shows among its own |
//!
//! # Threads instead of an executor
//!
//! The crate takes the messages and their codec from `containerd-shim-protos`, and neither the framework `containerd-shim` nor the servers of
//! `ttrpc`: a pod is seldom asked anything, so blocking threads with small stacks need less memory and start faster than an
//! executor, and the order of events is a matter of one queue. Nothing here is async. No lock is held while a child process or a
//! stream is waited for.

pub mod cgroup;
pub mod cleanup;
pub mod daemon;
pub mod events;
pub mod group;
pub mod info;
pub mod launch;
pub mod log;
pub mod metrics;
pub mod oom;
pub mod options;
pub mod reaper;
pub mod record;
pub mod rootfs;
pub mod rpc;
pub mod stdio;
pub mod task;

/// The stack of a thread of the shim. What is not touched takes no memory, but what was touched stays.
pub const STACK: usize = 128 << 10;
