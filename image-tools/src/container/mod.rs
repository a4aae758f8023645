//! Containers on disk: what is recorded of each, and whether what was recorded is still true.
//!
//! ```text
//! ROOT/containers/by-name/NAME     symbolic link to ../ID; making it is what makes a name unique
//! ROOT/containers/ID/
//!     container.json               the record: image, process, settings; written before anything runs, and by `rename`, `update`, `start`
//!     upper/ work/                 the writable layer
//!     etc/                         hosts, hostname and resolv.conf, bind-mounted
//!     network.json                 what its network consists of, until that was taken back (crate::network)
//!     config.json                  the OCI bundle (its root is below STATE)
//!     exit.previous                the one before, of a container that was started once more
//!     log log.1 … log.lock         what the container wrote (log)
//!     monitor.log                  what its monitor had to say
//!     exit                         code and time; written once, when init has ended
//! STATE/containers/ID/
//!     paused                       is there while it is paused
//!     state.json                   monitor and init processes, rewritten atomically
//!     rootfs/                      the mounted root
//!     netns                        its network namespace, where plugins connected it
//! STATE/oci/                       the OCI runtime's own state
//! ```
//!
//! Life of a container, with the ways out:
//!
//! ```text
//! record written --monitor: mount, create, start--> running --init ends--> exited --rm--> gone
//!       |                   |                          |
//!       |                   | fails: all undone, the   | monitor killed: init goes on; `ps` says so,
//!       |                   v CLI gets the reason      v `rm -f` cleans up
//!       \-- CLI killed: "dead", rm removes it
//! ```
//!
//! `start` runs a container that has exited once more, with its writable layer and its log; when that fails it has exited again.
//!
//! A process is always recorded with its start time, so that a recycled pid is never taken for it.

pub mod id;
pub mod log;
pub mod names;
pub mod namespace;
pub mod pause;
pub mod process;
pub mod record;
pub mod registry;
pub mod status;
pub mod time;
pub mod undo;
