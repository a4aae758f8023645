//! One line of a log.
//!
//! ```text
//! 2026-02-28T23:59:59.000000001Z stdout F a whole line
//! 2026-02-28T23:59:59.000000001Z stderr P the beginning of a line that goes on in a later entry
//! {"log":"a whole line\n","stream":"stdout","time":"2026-02-28T23:59:59.000000001Z"}
//! ```
//!
//! A piece without a newline at its end is written at once, so nothing is lost when the monitor is killed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Driver, Stream};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339, in UTC.
    pub time: Cow<'a, str>,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line ends here.
    pub ends_line: bool,
    /// The bytes, without the newline.
    pub text: Cow<'a, [u8]>,
}

/// An entry of docker's json-file.
#[derive(Serialize, Deserialize)]
struct Json<'a> {
    log: Cow<'a, str>,
    stream: Cow<'a, str>,
    time: Cow<'a, str>,
}

/// Appends the entry of a piece that has a newline at most at its end.
pub fn format(driver: Driver, time: &str, stream: Stream, line: &[u8], entries: &mut Vec<u8>) {
    let (text, mark) = line.strip_suffix(b"\n").map_or((line, "P"), |text| (text, "F"));
    match driver {
        Driver::None => return,
        Driver::K8sFile => {
            entries.extend_from_slice(format!("{time} {} {mark} ", stream.name()).as_bytes());
            entries.extend_from_slice(text);
        }
        Driver::JsonFile => {
            let entry = Json { log: String::from_utf8_lossy(line), stream: stream.name().into(), time: time.into() };
            entries.extend(serde_json::to_vec(&entry).expect("it has only string keys"));
        }
    }
    entries.push(b'\n');
}

/// Parses one line of a log, without its newline; `None` where it is not an entry.
pub fn parse(driver: Driver, line: &[u8]) -> Option<Entry<'_>> {
    match driver {
        Driver::None => None,
        Driver::K8sFile => parse_k8s(line),
        Driver::JsonFile => parse_json(line),
    }
}

fn parse_k8s(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = stream(std::str::from_utf8(fields.next()?).ok()?)?;
    let ends_line = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Entry { time: time.into(), stream, ends_line, text: fields.next()?.into() })
}

fn parse_json(line: &[u8]) -> Option<Entry<'_>> {
    let Json { log, stream: from, time } = serde_json::from_slice(line).ok()?;
    let mut text = log.into_owned().into_bytes();
    let ends_line = text.pop_if(|last| *last == b'\n').is_some();
    Some(Entry { time: time.into_owned().into(), stream: stream(&from)?, ends_line, text: text.into() })
}

fn stream(name: &str) -> Option<Stream> {
    [Stream::Stdout, Stream::Stderr].into_iter().find(|stream| stream.name() == name)
}

/// Where the last `count` lines of output begin in a whole log.
pub fn tail_start(driver: Driver, log: &[u8], count: usize) -> usize {
    let (mut lines, mut start) = (0, log.len());
    let mut end = log.len();
    while end > 0 {
        let begin = log[..end - 1].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let line = log[begin..end].strip_suffix(b"\n").unwrap_or(&log[begin..end]);
        let ends_line = parse(driver, line).is_none_or(|entry| entry.ends_line);
        // Walking backwards, an entry that ends a line begins the next older line; an unfinished last line counts as one, too.
        if ends_line || end == log.len() {
            if lines == count {
                break;
            }
            lines += 1;
        }
        (start, end) = (begin, begin);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_back_byte_for_byte() {
        for driver in [Driver::K8sFile, Driver::JsonFile] {
            let odd: &[u8] = if driver == Driver::K8sFile { b"\xff\xfe \n" } else { "\"ü\\\u{1}\n".as_bytes() };
            let pieces: [&[u8]; 8] = [b"one\n", b"two\n", b"par", b"tial\n", b"\n", b"\n", odd, b"no newline"];
            let mut log = Vec::new();
            pieces.iter().for_each(|piece| format(driver, "t", Stream::Stderr, piece, &mut log));
            let mut back = Vec::new();
            for line in log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                let entry = parse(driver, line).unwrap();
                assert_eq!((entry.stream, &*entry.time), (Stream::Stderr, "t"));
                back.extend_from_slice(&entry.text);
                back.extend(entry.ends_line.then_some(b'\n'));
            }
            assert_eq!(back, pieces.concat(), "{driver:?}");
        }
    }

    #[test]
    fn what_is_not_an_entry_is_skipped() {
        for bad in [&b""[..], b"x", b"t stdout", b"t stdin F x", b"t stdout X y", b"t stdout F", b"\xff stdout F x"] {
            assert_eq!(parse(Driver::K8sFile, bad), None, "{bad:?}");
        }
        assert_eq!(&*parse(Driver::K8sFile, b"t stdout F ").unwrap().text, b"");
        for bad in [
            &b""[..],
            b"{",
            b"[]",
            br#"{"log":"x"}"#,
            br#"{"log":1,"stream":"stdout","time":"t"}"#,
            br#"{"log":"x","stream":"in","time":"t"}"#,
        ] {
            assert_eq!(parse(Driver::JsonFile, bad), None, "{bad:?}");
        }
        // What docker itself writes.
        let docker = br#"{"log":"hello \u003c\n","stream":"stdout","time":"2026-02-28T23:59:59.5Z"}"#;
        assert_eq!(&*parse(Driver::JsonFile, docker).unwrap().text, b"hello <");
    }

    #[test]
    fn the_tail_counts_lines_of_output() {
        let log = b"t stdout F 1\nt stdout P 2a\nt stdout F 2b\nt stdout F 3\nt stdout P 4\n";
        let tail = |count| std::str::from_utf8(&log[tail_start(Driver::K8sFile, log, count)..]).unwrap();
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "t stdout P 4\n");
        assert_eq!(tail(2), "t stdout F 3\nt stdout P 4\n");
        assert_eq!(tail(3), "t stdout P 2a\nt stdout F 2b\nt stdout F 3\nt stdout P 4\n");
        assert_eq!(tail(4).len(), log.len());
        assert_eq!(tail(100).len(), log.len());
        assert_eq!(tail_start(Driver::K8sFile, b"", 5), 0);
    }
}
