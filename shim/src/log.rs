//! The shim's own messages: lines in the FIFO `log` of the bundle, which containerd copies to its own log.
//!
//! Nobody waits for the log: a line that does not fit into the FIFO, since containerd is not running, is dropped.

use std::fmt::{Arguments, Write as _};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

static SINK: OnceLock<std::fs::File> = OnceLock::new();

/// Where lines go from now on: a descriptor that does not block. The first one stays.
pub fn write_to(fd: OwnedFd) {
    let _first_stays = SINK.set(fd.into());
}

/// Something went wrong that nobody who asked is told of.
pub fn error(message: Arguments<'_>) {
    line("error", message);
}

/// Something is odd, or went wrong and did no harm.
pub fn warn(message: Arguments<'_>) {
    line("warning", message);
}

fn line(level: &str, message: Arguments<'_>) {
    let Some(mut sink) = SINK.get() else { return };
    let text = format_line(level, &message.to_string());
    // See above: a line nobody reads is dropped, and there is nowhere to tell of that.
    drop(sink.write_all(text.as_bytes()));
}

/// logfmt, as containerd's own lines are: a message is one line, whatever is in it.
fn format_line(level: &str, message: &str) -> String {
    let mut text = format!("level={level} msg=\"");
    for character in message.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            _ if character.is_control() => drop(write!(text, "\\x{:02x}", character as u32)),
            _ => text.push(character),
        }
    }
    text.push_str("\" runtime=towline\n");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_message_is_one_line() {
        let line = super::format_line("warning", "a \"b\"\nc\\d\u{1b}");
        assert_eq!(line, "level=warning msg=\"a \\\"b\\\"\\nc\\\\d\\x1b\" runtime=towline\n");
    }
}
