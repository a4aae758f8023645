//! D-Bus messages: a pure writer and a pure parser with limits (D-Bus specification, "Message Protocol").

use super::value::{Reader, Value, pad};

/// Longer messages are refused; systemd's signals have some hundred bytes.
pub(super) const LIMIT: usize = 1 << 20;
/// The part of a message that says how long the rest is.
pub(super) const FIXED: usize = 16;

const VERSION: u8 = 1;
const CALL: u8 = 1;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a D-Bus message that is expected here: {0}")]
pub struct Malformed(pub(super) &'static str);

/// A method call.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The bus name of who is called.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// The arguments.
    pub arguments: Vec<Value>,
}

impl Call<'_> {
    /// The whole message.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Vec::new();
        self.arguments.iter().for_each(|argument| argument.write(&mut body));
        let mut fields = vec![
            field(1, Value::Path(self.path.to_owned())),
            field(2, Value::text(self.interface)),
            field(3, Value::text(self.member)),
            field(6, Value::text(self.destination)),
        ];
        if !self.arguments.is_empty() {
            fields.push(field(8, Value::Signature(self.arguments.iter().map(Value::signature).collect())));
        }
        let mut out = vec![b'l', CALL, 0, VERSION];
        let length = u32::try_from(body.len()).expect("a configuration is far below 4 GiB");
        Value::U32(length).write(&mut out);
        Value::U32(serial).write(&mut out);
        Value::Array("(yv)".to_owned(), fields).write(&mut out);
        pad(&mut out, 8);
        out.extend(body);
        out
    }
}

fn field(code: u8, value: Value) -> Value {
    Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))])
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody calls us: nobody has a reason to.
    Call,
    /// The answer to a call.
    Return,
    /// The refusal of a call.
    Error,
    /// A signal.
    Signal,
    /// Kinds that a later version may have are to be ignored.
    Other,
}

/// A message that was received. Its body stays as it is until somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The call that it answers.
    pub reply_to: Option<u32>,
    /// Of a signal: its interface.
    pub interface: String,
    /// Of a signal: its name.
    pub member: String,
    /// Of an error: its name.
    pub error: String,
    signature: String,
    body: Vec<u8>,
    little: bool,
}

/// How many bytes the message has that starts with `fixed`.
pub fn total_length(fixed: &[u8; FIXED]) -> Result<usize, Malformed> {
    let little = byte_order(fixed[0])?;
    if fixed[3] != VERSION {
        return Err(Malformed("another version of the protocol"));
    }
    let mut reader = Reader::new(&fixed[4..], little);
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    if body > LIMIT || fields > LIMIT || FIXED + fields.next_multiple_of(8) + body > LIMIT {
        return Err(Malformed("it is longer than 1 MiB"));
    }
    Ok(FIXED + fields.next_multiple_of(8) + body)
}

fn byte_order(mark: u8) -> Result<bool, Malformed> {
    match mark {
        b'l' => Ok(true),
        b'B' => Ok(false),
        _ => Err(Malformed("neither byte order is marked")),
    }
}

impl Message {
    /// Parses one whole message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or(Malformed("it is shorter than a header"))?;
        let little = byte_order(fixed[0])?;
        if total_length(fixed)? != bytes.len() {
            return Err(Malformed("its length is not what its header says"));
        }
        let fields = Reader::new(&fixed[12..], little).u32()? as usize;
        let body = bytes[FIXED + fields.next_multiple_of(8)..].to_vec();
        let kind = match fixed[1] {
            0 => return Err(Malformed("kind 0")),
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        let empty = String::new;
        let (interface, member, error, signature) = (empty(), empty(), empty(), empty());
        let mut message = Self { kind, reply_to: None, interface, member, error, signature, body, little };
        let mut reader = Reader::new(&bytes[FIXED..FIXED + fields], little);
        while !reader.is_at_end() {
            reader.align(8);
            let code = reader.take(1)?[0];
            let Value::Variant(value) = reader.value(b'v')? else { return Err(Malformed("a header field is no variant")) };
            match (code, *value) {
                (2, Value::Text(text)) => message.interface = text,
                (3, Value::Text(text)) => message.member = text,
                (4, Value::Text(text)) => message.error = text,
                (5, Value::U32(serial)) => message.reply_to = Some(serial),
                (8, Value::Signature(text)) => message.signature = text,
                (2..=5 | 8, _) => return Err(Malformed("a header field has the wrong type")),
                _ => {}
            }
        }
        Ok(message)
    }

    /// The values of the body: basic types, and variants of them.
    pub fn values(&self) -> Result<Vec<Value>, Malformed> {
        let mut reader = Reader::new(&self.body, self.little);
        self.signature.bytes().map(|kind| reader.value(kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_layout_of_the_specification() {
        let call = Call {
            destination: "d.e",
            path: "/a",
            interface: "b.c",
            member: "M",
            arguments: vec![Value::text("x"), Value::U64(1)],
        };
        let bytes = call.encode(7);
        let expected: Vec<u8> = [
            &b"l\x01\0\x01"[..],
            &16u32.to_le_bytes(), // body
            &7u32.to_le_bytes(),
            &72u32.to_le_bytes(), // header fields
            b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0",
            b"\x02\x01s\0\x03\0\0\0b.c\0\0\0\0\0",
            b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0d.e\0\0\0\0\0",
            b"\x08\x01g\0\x02st\0",
            b"\x01\0\0\0x\0\0\0\x01\0\0\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(bytes, expected);
        assert_eq!(total_length(bytes.first_chunk().unwrap()).unwrap(), bytes.len());
    }

    /// A message as systemd sends it, in either byte order.
    fn sent(kind: u8, little: bool, fields: &[(u8, Value)], body: &[Value]) -> Vec<u8> {
        assert!(little, "the writer is for little-endian messages; big-endian ones are spelt out below");
        let mut content = Vec::new();
        body.iter().for_each(|value| value.write(&mut content));
        let mut out = vec![b'l', kind, 1, VERSION];
        Value::U32(content.len() as u32).write(&mut out);
        Value::U32(99).write(&mut out);
        Value::Array("(yv)".to_owned(), fields.iter().map(|(code, value)| field(*code, value.clone())).collect()).write(&mut out);
        pad(&mut out, 8);
        out.extend(content);
        out
    }

    fn job_removed() -> (Vec<u8>, Vec<Value>) {
        let body = vec![Value::U32(7), Value::Path("/job/7".to_owned()), Value::text("towline-a.scope"), Value::text("done")];
        let fields = [
            (1, Value::Path("/org/freedesktop/systemd1".to_owned())),
            (2, Value::text("org.freedesktop.systemd1.Manager")),
            (3, Value::text("JobRemoved")),
            (7, Value::text(":1.0")),
            (8, Value::Signature("uoss".to_owned())),
            (42, Value::U64(1)),
        ];
        (sent(4, true, &fields, &body), body)
    }

    #[test]
    fn what_systemd_sends_is_read() {
        let (bytes, body) = job_removed();
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Signal, "JobRemoved"));
        assert_eq!(message.values().unwrap(), body);
        let version = vec![Value::Variant(Box::new(Value::text("252")))];
        let reply = sent(2, true, &[(5, Value::U32(3)), (8, Value::Signature("v".to_owned()))], &version);
        let reply = Message::decode(&reply).unwrap();
        assert_eq!((reply.kind, reply.reply_to, reply.values().unwrap()), (Kind::Return, Some(3), version));
        let big = [
            &b"B\x02\0\x01"[..],
            &4u32.to_be_bytes(),
            &1u32.to_be_bytes(),
            &15u32.to_be_bytes(),
            b"\x05\x01u\0\0\0\0\x09\x08\x01g\0\x01u\0\0\0\0\x01\0",
        ]
        .concat();
        let big = Message::decode(&big).unwrap();
        assert_eq!((big.reply_to, big.values().unwrap()), (Some(9), vec![Value::U32(256)]));
    }

    #[test]
    fn bad_messages_are_refused() {
        let (good, _) = job_removed();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let cases = [
            ("empty", vec![]),
            ("short", good[..15].to_vec()),
            ("cut", good[..good.len() - 1].to_vec()),
            ("too much", [&good[..], b"x"].concat()),
            ("byte order", with(0, b'x')),
            ("kind 0", with(1, 0)),
            ("version", with(3, 2)),
            ("a body of 4 GiB", with(7, 0xff)),
            ("fields of 4 GiB", with(15, 0xff)),
            ("a field that is not basic", with(18, b'a')),
            ("a path as interface", with(16, 2)),
        ];
        for (name, bytes) in cases {
            assert!(Message::decode(&bytes).is_err(), "{name}");
        }
        let bool_of_two = sent(2, true, &[(8, Value::Signature("b".to_owned()))], &[Value::U32(2)]);
        assert!(Message::decode(&bool_of_two).unwrap().values().is_err());
        let nested = Value::Variant(Box::new(Value::Variant(Box::new(Value::Byte(1)))));
        let nested = sent(2, true, &[(8, Value::Signature("v".to_owned()))], &[nested]);
        assert!(Message::decode(&nested).unwrap().values().is_err());
    }

    /// Every single-byte change of a message is read or refused, never a panic.
    #[test]
    fn changed_bytes_never_panic() {
        let (good, _) = job_removed();
        let (mut read, mut refused) = (0, 0);
        for at in 0..good.len() {
            for byte in 0..=u8::MAX {
                let mut bytes = good.clone();
                bytes[at] = byte;
                match Message::decode(&bytes).and_then(|message| message.values()) {
                    Ok(_) => read += 1,
                    Err(_) => refused += 1,
                }
            }
            drop(Message::decode(&good[..at]));
        }
        assert!(read > 1000 && refused > 1000, "{read} {refused}");
    }
}
