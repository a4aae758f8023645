//! gRPC over HTTP/2 on Unix sockets, as much of it as containerd's snapshot and content services and the kubelet's image service need: a request
//! of one message, an answer of some. The crate h2 is here anyway for registries; tonic would bring a second server stack into a process that should stay small.
//!
//! ```text
//! POST /package.Service/Method       headers: content-type application/grpc, te trailers, containerd-namespace
//! 0 LLLL message                     one byte "not compressed", length big-endian
//!                                    trailers: grpc-status, grpc-message
//! ```

pub mod client;
pub mod server;

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h2::RecvStream;
use http::HeaderMap;

use crate::error::{Error, Outcome};

/// The header that names containerd's namespace.
pub const NAMESPACE: &str = "containerd-namespace";

/// Longest message in bytes that is read: what containerd sends at most.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Bytes before each message.
const PREFIX: usize = 5;

/// How a call ended, other than well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What kind of failure it was.
    pub code: Code,
    /// For the user, on one line.
    pub message: String,
}

/// The codes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are gRPC's own, and mean what it says")]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// By its number. What gRPC does not know is unknown.
    fn of(number: u32) -> Self {
        const ALL: [Code; 16] = [
            Code::Cancelled,
            Code::Unknown,
            Code::InvalidArgument,
            Code::DeadlineExceeded,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
        ];
        ALL.into_iter().find(|code| *code as u32 == number).unwrap_or(Self::Unknown)
    }
}

impl Status {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The one place where outcomes become codes.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.outcome() {
            Outcome::NotFound => Code::NotFound,
            Outcome::Denied => Code::PermissionDenied,
            Outcome::BadInput => Code::InvalidArgument,
            Outcome::Integrity => Code::DataLoss,
            Outcome::Unsupported => Code::FailedPrecondition,
            Outcome::Unavailable | Outcome::Busy => Code::Unavailable,
            Outcome::NoSpace => Code::ResourceExhausted,
            Outcome::Io => Code::Internal,
        };
        Self::new(code, error.one_line())
    }
}

/// The text of a status as it is sent, percent-encoded (gRPC over HTTP/2, "Status-Message").
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => write!(out, "%{byte:02X}").expect("writing into a string does not fail"),
            _ => out.push(char::from(byte)),
        }
        out
    })
}

/// The text that was meant; what is no escape stands for itself.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let escape = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = escape.filter(|hex| !hex.starts_with('+')).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How long a caller waits (gRPC over HTTP/2, "Timeout"); `None` for what says nothing.
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages are small");
    let mut framed = Vec::with_capacity(PREFIX + message.len());
    framed.push(0);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// Takes a body apart.
fn messages(mut body: Bytes) -> Result<Vec<Bytes>, Status> {
    let bad = |why: &str| Status::new(Code::Internal, format!("reading a gRPC message: {why}"));
    let mut found = Vec::new();
    while !body.is_empty() {
        if body.len() < PREFIX {
            return Err(bad("its prefix is cut off"));
        }
        if body.get_u8() != 0 {
            return Err(Status::new(Code::Unimplemented, "reading a gRPC message: it is compressed, which was not agreed"));
        }
        let length = body.get_u32() as usize;
        if length > body.len() {
            return Err(bad("it is cut off"));
        }
        found.push(body.split_to(length));
    }
    Ok(found)
}

/// The whole body, and its trailers.
async fn read(body: &mut RecvStream, limit: usize) -> Result<(Bytes, Option<HeaderMap>), Status> {
    let failed = |e: h2::Error| Status::new(Code::Unavailable, format!("reading a gRPC message: {e}"));
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(failed)?;
        if bytes.len() + piece.len() > limit {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("reading a gRPC message: more than {limit} bytes are not accepted"),
            ));
        }
        bytes.extend_from_slice(&piece);
        body.flow_control().release_capacity(piece.len()).map_err(failed)?;
    }
    Ok((bytes.into(), body.trailers().await.map_err(failed)?))
}

#[cfg(test)]
mod tests;
