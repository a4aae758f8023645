//! The tests' slow link as a program, for the demo and the bench: `link-proxy LISTEN UPSTREAM MEGABITS ROUND_TRIP_MS`.
//!
//! Prints the address it listens on and forwards until it is killed. Answers each line on standard input with the number of bytes that
//! have come from upstream so far. 0 megabits: as fast as loopback is.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::io::Write;
use std::process::ExitCode;

use towline_integration::link::{Link, Quality};

fn main() -> ExitCode {
    match start(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(link) => {
            println!("{}", link.address());
            std::io::stdout().flush().expect("whoever started this waits for the address");
            for line in std::io::stdin().lines() {
                if line.is_err() {
                    break;
                }
                println!("{}", link.bytes_down());
                std::io::stdout().flush().expect("whoever asked reads the answer");
            }
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
    let mut quality = Quality::new(number(megabits)?, number(round_trip_ms)?);
    quality.bits_per_second = quality.bits_per_second.filter(|rate| *rate > 0);
    Link::listen(address(listen)?, address(upstream)?, quality).map_err(|error| format!("listen on {listen}: {error}"))
}
