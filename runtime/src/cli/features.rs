//! `features`.

use clap::Args;
use towline_runtime::{Result, features};

use super::output;

#[derive(Debug, Args)]
pub struct Features {}

impl Features {
    pub fn run(&self) -> Result<u8> {
        output::pretty(&features::features()).map(|()| 0)
    }
}
