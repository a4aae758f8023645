//! Protocol buffers: numbers and byte strings with a field number before each.

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// A number, a bool or an enum. Negative numbers of type int32 are sign-extended, as the format wants.
    pub(super) fn number(&mut self, field: u32, value: i64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value.cast_unsigned());
        self
    }

    /// `true`; `false` is the default of every bool and is left out.
    pub(super) fn flag(&mut self, field: u32, value: bool) -> &mut Self {
        if value { self.number(field, 1) } else { self }
    }

    /// A string, bytes, or a message within the message.
    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The value of a field.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Number(value) => Some(value.cast_signed()),
            Self::Bytes(_) => None,
        }
    }

    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Number(_) => None,
            Self::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        }
    }
}

/// The fields of a message in order. The error says what is wrong with the bytes.
pub(super) fn fields(mut rest: &[u8]) -> Result<Vec<(u32, Value<'_>)>, &'static str> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let field = u32::try_from(key >> 3).map_err(|_| "a field number above 32 bits")?;
        match key & 7 {
            0 => fields.push((field, Value::Number(varint(&mut rest)?))),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).map_err(|_| "a length above the machine's")?;
                let (bytes, after) = rest.split_at_checked(length).ok_or("a length beyond the end")?;
                fields.push((field, Value::Bytes(bytes)));
                rest = after;
            }
            // Fixed 64 and 32 bits: nothing we read, so it is passed over.
            1 => rest = rest.get(8..).ok_or("a number beyond the end")?,
            5 => rest = rest.get(4..).ok_or("a number beyond the end")?,
            _ => return Err("a type of field that does not exist"),
        }
    }
    Ok(fields)
}

fn varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or("a number without end")?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number of more than ten bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.number(1, 150).number(2, -1).flag(3, true).flag(4, false).bytes(1000, b"text");
        let bytes = writer.finish();
        // The first field is the example of the format's own description.
        assert_eq!(bytes[..3], [0x08, 0x96, 0x01]);
        let read = fields(&bytes).unwrap();
        assert_eq!(
            read,
            [(1, Value::Number(150)), (2, Value::Number(u64::MAX)), (3, Value::Number(1)), (1000, Value::Bytes(b"text"))]
        );
        assert_eq!(read[1].1.number(), Some(-1));
        assert_eq!(read[3].1.text().as_deref(), Some("text"));
    }

    #[test]
    fn bad_bytes_are_refused() {
        for (bytes, why) in [
            (&[0x08][..], "without end"),
            (&[0x08, 0x80], "without end"),
            (&[0x0a, 5, 1], "beyond the end"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "beyond the end"),
            (&[0x09, 1, 2, 3], "beyond the end"),
            (&[0x0d, 1], "beyond the end"),
            (&[0x0b], "does not exist"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "ten bytes"),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0], "32 bits"),
        ] {
            assert!(fields(bytes).unwrap_err().contains(why), "{bytes:?}");
        }
        assert_eq!(fields(&[0x0d, 1, 2, 3, 4, 0x08, 1]).unwrap(), [(1, Value::Number(1))]);
    }

    #[test]
    fn no_cut_of_a_message_panics() {
        let mut writer = Writer::default();
        writer.number(1, i64::MIN).bytes(2, &[0xff; 200]).number(3, 7);
        let bytes = writer.finish();
        for end in 0..bytes.len() {
            drop(fields(&bytes[..end]));
        }
    }
}
