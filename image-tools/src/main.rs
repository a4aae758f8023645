//! `towline`: the command line.
fn main() {}
