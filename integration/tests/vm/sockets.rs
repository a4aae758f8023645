//! Connections to a guest.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::guest::DEADLINE;

/// A connection to a port of the guest; `None` where nobody listens there.
pub fn connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).expect("connect to a machine");
    stream.set_read_timeout(Some(DEADLINE)).expect("set a deadline");
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).expect("greet");
    let mut line = String::new();
    // No byte behind the line is read: nothing comes before something was sent.
    BufReader::new(&stream).read_line(&mut line).unwrap_or_default();
    line.starts_with("OK ").then_some(stream)
}

/// Sends bytes to somebody who echoes them, and checks what comes back.
pub fn echo(socket: &Path, port: u32, seed: u8, len: usize) {
    let stream = connect(socket, port).expect("somebody listens");
    let bytes: Vec<u8> = (0..len).map(|at| (at / 3) as u8 ^ seed.wrapping_mul(31) ^ (at >> 11) as u8).collect();
    let (mut writer, sent) = (stream.try_clone().expect("duplicate a stream"), bytes.clone());
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).expect("send");
        writer.shutdown(Shutdown::Write).expect("end");
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).expect("receive");
    sending.join().expect("sending ends");
    assert!(back == bytes, "{} of {len} bytes came back, and not as they were", back.len());
}
