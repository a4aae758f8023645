//! What is kept on disk.

pub mod cas;
pub mod db;
