//! D-Bus values: the types that systemd's interface uses, and how they are marshalled (D-Bus specification, "Marshaling").
//! Writing knows every shape that a unit property may have; reading only what systemd answers to us: basic types and variants of
//! them. Everything else in a message is skipped unread, see `message.rs`.

use super::message::Malformed;

/// A value with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `n`
    I16(i16),
    /// `q`
    U16(u16),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// `a`: the signature of the elements, which an empty array has too, and the elements.
    Array(String, Vec<Value>),
    /// `(...)`
    Struct(Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// An array of texts.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::Array("s".to_owned(), texts.into_iter().map(Self::text).collect())
    }

    /// An array of bytes.
    pub fn bytes(bytes: &[u8]) -> Self {
        Self::Array("y".to_owned(), bytes.iter().map(|byte| Self::Byte(*byte)).collect())
    }

    /// Its type as a signature.
    pub fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Bool(_) => "b".to_owned(),
            Self::I16(_) => "n".to_owned(),
            Self::U16(_) => "q".to_owned(),
            Self::I32(_) => "i".to_owned(),
            Self::U32(_) => "u".to_owned(),
            Self::I64(_) => "x".to_owned(),
            Self::U64(_) => "t".to_owned(),
            Self::Text(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => format!("({})", fields.iter().map(Self::signature).collect::<String>()),
            Self::Variant(_) => "v".to_owned(),
        }
    }

    /// The text of a text or object path.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Path(text) => Some(text),
            _ => None,
        }
    }

    /// Appends it, aligned to the start of `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => number(out, &u32::from(*value).to_le_bytes()),
            Self::I16(value) => number(out, &value.to_le_bytes()),
            Self::U16(value) => number(out, &value.to_le_bytes()),
            Self::I32(value) => number(out, &value.to_le_bytes()),
            Self::U32(value) => number(out, &value.to_le_bytes()),
            Self::I64(value) => number(out, &value.to_le_bytes()),
            Self::U64(value) => number(out, &value.to_le_bytes()),
            Self::Text(text) | Self::Path(text) => {
                number(out, &length(text.len()).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => {
                out.push(u8::try_from(text.len()).expect("signatures here have a few letters"));
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Array(element, values) => write_array(out, element, values),
            Self::Struct(fields) => {
                pad(out, 8);
                fields.iter().for_each(|field| field.write(out));
            }
            Self::Variant(value) => {
                Self::Signature(value.signature()).write(out);
                value.write(out);
            }
        }
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a configuration is far below 4 GiB")
}

/// Pads with zeros up to a multiple of `to`.
pub(super) fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

/// Numbers are aligned to their size.
fn number(out: &mut Vec<u8>, bytes: &[u8]) {
    pad(out, bytes.len());
    out.extend(bytes);
}

/// The length counts from the first element, behind the padding before it.
fn write_array(out: &mut Vec<u8>, element: &str, values: &[Value]) {
    number(out, &0u32.to_le_bytes());
    let at = out.len() - 4;
    pad(out, alignment(element));
    let start = out.len();
    values.iter().for_each(|value| value.write(out));
    let bytes = length(out.len() - start).to_le_bytes();
    out[at..at + 4].copy_from_slice(&bytes);
}

fn alignment(signature: &str) -> usize {
    match signature.bytes().next() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// Reads basic values from a part of a message, at any offset and in either byte order.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    little: bool,
}

impl<'a> Reader<'a> {
    /// `bytes` starts at a multiple of 8 in the message.
    pub(super) fn new(bytes: &'a [u8], little: bool) -> Self {
        Self { bytes, at: 0, little }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed("a length is too large"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("it ends in the middle of a value"))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.align(N);
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        if !self.little {
            bytes.reverse();
        }
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn terminated(&mut self, length: usize) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a text is not UTF-8"))?.to_owned();
        match self.take(1)? {
            [0] => Ok(text),
            _ => Err(Malformed("a text does not end with a zero byte")),
        }
    }

    pub(super) fn signature(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.take(1)?[0]);
        self.terminated(length)
    }

    /// One value of the type with the letter `kind`.
    pub(super) fn value(&mut self, kind: u8) -> Result<Value, Malformed> {
        Ok(match kind {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => match self.u32()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(Malformed("a boolean is neither 0 nor 1")),
            },
            b'n' => Value::I16(i16::from_le_bytes(self.array()?)),
            b'q' => Value::U16(u16::from_le_bytes(self.array()?)),
            b'i' => Value::I32(i32::from_le_bytes(self.array()?)),
            b'u' => Value::U32(self.u32()?),
            b'x' => Value::I64(i64::from_le_bytes(self.array()?)),
            b't' => Value::U64(u64::from_le_bytes(self.array()?)),
            b's' | b'o' => {
                let length = self.u32()? as usize;
                let text = self.terminated(length)?;
                if kind == b's' { Value::Text(text) } else { Value::Path(text) }
            }
            b'g' => Value::Signature(self.signature()?),
            b'v' => match self.signature()?.as_bytes() {
                [b'v'] => return Err(Malformed("a variant in a variant")),
                [inner] => Value::Variant(Box::new(self.value(*inner)?)),
                _ => return Err(Malformed("a variant with more than one basic value")),
            },
            _ => return Err(Malformed("a type that is not expected here")),
        })
    }
}
