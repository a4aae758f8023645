//! `spec`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use towline_runtime::container::spec::example;
use towline_runtime::{Error, Result};

#[derive(Debug, Args)]
pub struct Spec {
    /// Directory to write config.json to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a user without root's rights
    #[arg(long)]
    rootless: bool,
}

impl Spec {
    pub fn run(&self) -> Result<u8> {
        let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let config = format!("{:#}\n", example(self.rootless.then_some(ids)));
        let path = self.bundle.join("config.json");
        let failed = |cause| Error::io("writing", &path, cause);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        file.write_all(config.as_bytes()).map_err(failed)?;
        Ok(0)
    }
}
