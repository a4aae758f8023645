//! The tests' slow link as a program, for the demo: `link-proxy LISTEN UPSTREAM MEGABITS ROUND_TRIP_MS`.
//!
//! Prints the address it listens on and forwards until it is killed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::io::Write;
use std::process::ExitCode;

use towline_integration::link::{Link, Quality};

fn main() -> ExitCode {
    match start(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(link) => {
            println!("{}", link.address());
            std::io::stdout().flush().expect("whoever started this waits for the address");
            loop {
                std::thread::park();
            }
        }
        Err(message) => {
            eprintln!("link-proxy: {message}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &[String]) -> Result<Link, String> {
    let [listen, upstream, megabits, round_trip_ms] = arguments else {
        return Err("usage: link-proxy LISTEN UPSTREAM MEGABITS ROUND_TRIP_MS".to_owned());
    };
    let address = |text: &str| text.parse().map_err(|error| format!("address '{text}': {error}"));
    let number = |text: &str| text.parse().map_err(|error| format!("number '{text}': {error}"));
    let quality = Quality::new(number(megabits)?, number(round_trip_ms)?);
    Link::listen(address(listen)?, address(upstream)?, quality).map_err(|error| format!("listen on {listen}: {error}"))
}
