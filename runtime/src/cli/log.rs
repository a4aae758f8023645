//! The log: text for people, JSON lines for podman and containerd, which show the last line at level error.
#![allow(clippy::print_stderr, reason = "this is where the command line reports")]

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::ValueEnum;
use towline_runtime::client::LogLine;
use towline_runtime::{Error, Outcome, Result, time};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Where messages go.
pub struct Log {
    file: Option<RefCell<File>>,
    format: Format,
    debug: bool,
}

impl Log {
    /// The file is appended to: callers give the same one to several calls.
    pub fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self> {
        let file = match path {
            None => None,
            Some(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
                Some(RefCell::new(opened.map_err(|cause| Error::io("opening log", path, cause))?))
            }
        };
        Ok(Self { file, format, debug })
    }

    /// Text on standard error, for failures before the flags are read.
    pub fn stderr() -> Self {
        Self { file: None, format: Format::Text, debug: false }
    }

    /// Reports a failed verb.
    pub fn fail(&self, error: &Error) {
        let text = error.one_line();
        self.write("error", &text, Some(error.outcome()));
        if self.file.is_some() {
            // Whoever started us by hand with a log file still wants to see it, as with runc. podman 4 shows this instead of the
            // log when the log has more than one line, and puts our name before it.
            eprintln!("{text}");
        }
    }

    pub fn warn(&self, text: &str) {
        self.write("warning", text, None);
    }

    pub fn debug(&self, text: &str) {
        if self.debug {
            self.write("debug", text, None);
        }
    }

    fn write(&self, level: &str, text: &str, outcome: Option<Outcome>) {
        let line = match self.format {
            Format::Text if self.file.is_none() && level == "error" => format!("towline-oci: {text}"),
            Format::Text if self.file.is_none() && level != "debug" => format!("towline-oci: {level}: {text}"),
            Format::Text => format!("{} {level}: {text}", time::now_rfc3339()),
            Format::Json => {
                let line = LogLine { level: level.to_owned(), msg: text.to_owned(), time: time::now_rfc3339(), outcome };
                serde_json::to_string(&line).expect("strings are always valid JSON")
            }
        };
        match &self.file {
            None => eprintln!("{line}"),
            Some(file) => {
                if let Err(cause) = file.borrow_mut().write_all(format!("{line}\n").as_bytes()) {
                    eprintln!("towline-oci: writing the log: {cause}\n{line}");
                }
            }
        }
    }
}
