//! The standard streams of a container's process, between the process and the user, and its end.
//!
//! ```text
//! user's stdin  --thread--> pipe or pty --> process
//! user's stdout <--thread-- pipe or pty <-- process      (and everything that passes goes to a tap: log, first output)
//! user's stderr <--thread-- pipe        <-- process
//! main thread: waits for the process's end and for signals to pass on
//! ```
//!
//! Threads, since writing to the user may block for as long as the user likes, and nothing else may wait for that. The user's own
//! descriptors are never given to the process: a terminal among them would let it reach the user's session.

pub mod console;
pub mod keys;
pub mod process;
pub mod streams;
