//! Noticing that a container ran out of memory.
