//! `towline-oci`: the command line of the OCI runtime.

#![cfg_attr(not(test), no_main)]

mod cli;

#[cfg(not(test))]
towline_sys::entry!(cli::main);

/// Tests bring a `main` of their own.
#[cfg(test)]
const _: fn() -> u8 = cli::main;
