//! `towlined`: the daemon of the lazy store.
fn main() {}
