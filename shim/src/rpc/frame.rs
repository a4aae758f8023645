//! The frame of ttrpc: ten bytes of header (length and stream, big-endian, kind, flags) and a payload.

use std::io::{self, ErrorKind, Read};

/// The longest payload, as ttrpc has it.
pub const LONGEST: usize = 4 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// The answer to it.
    Response,
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which call it belongs to; odd numbers, since clients make them.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// The encoded message.
    pub payload: Vec<u8>,
}

const HEADER: usize = 10;

impl Frame {
    /// The frame as bytes.
    ///
    /// # Errors
    /// The payload is too long.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.payload.len()).ok().filter(|length| *length as usize <= LONGEST);
        let length = length.ok_or_else(|| bad(format!("a message of {} bytes is too long", self.payload.len())))?;
        let kind = match self.kind {
            Kind::Request => 1,
            Kind::Response => 2,
        };
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(&self.payload);
        Ok(bytes)
    }

    /// Reads a frame; `None` when the peer has closed between two.
    ///
    /// # Errors
    /// The peer is gone, or sent what is no frame: there is no way to go on.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        let first = loop {
            match from.read(&mut header) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[first..])?;
        let (length, stream, kind) = parse(&header)?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(Self { stream, kind, payload }))
    }
}

fn parse(header: &[u8; HEADER]) -> io::Result<(usize, u32, Kind)> {
    let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = *header;
    let (length, stream) = (u32::from_be_bytes([l0, l1, l2, l3]) as usize, u32::from_be_bytes([s0, s1, s2, s3]));
    if length > LONGEST {
        return Err(bad(format!("a message of {length} bytes is too long")));
    }
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Response,
        _ => return Err(bad(format!("a frame of kind {kind} is neither a request nor a response"))),
    };
    Ok((length, stream, kind))
}

fn bad(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let frame = Frame { stream: 7, kind: Kind::Request, payload: b"abc".to_vec() };
        let bytes = frame.encode().unwrap();
        assert_eq!(bytes, b"\0\0\0\x03\0\0\0\x07\x01\0abc");
        let mut twice: &[u8] = &[bytes.clone(), bytes].concat();
        assert_eq!(Frame::read(&mut twice).unwrap().as_ref(), Some(&frame));
        assert_eq!(Frame::read(&mut twice).unwrap(), Some(frame));
        assert_eq!(Frame::read(&mut twice).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let whole = b"\0\0\0\x03\0\0\0\x07\x01\0abc";
        for end in 1..whole.len() {
            assert!(Frame::read(&mut &whole[..end]).is_err(), "{end} bytes");
        }
        for (bytes, why) in [
            (b"\xff\xff\xff\xff\0\0\0\x07\x01\0", "too long"),
            (b"\0\x40\0\x01\0\0\0\x07\x01\0", "too long"),
            (b"\0\0\0\0\0\0\0\x07\0\0", "kind 0"),
            (b"\0\0\0\0\0\0\0\x07\x03\0", "kind 3"),
        ] {
            let error = Frame::read(&mut &bytes[..]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let long = Frame { stream: 1, kind: Kind::Response, payload: vec![0; LONGEST + 1] };
        assert!(long.encode().is_err());
    }
}
