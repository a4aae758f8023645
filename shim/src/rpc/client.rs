//! Calls, one after another.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Code, Request, Response};

use super::frame::{Frame, Kind};
use super::status::Failure;

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    next: u32,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum CallError {
    /// The connection is of no more use.
    Broken(io::Error),
    /// The server refuses.
    Refused(Failure),
}

impl Client {
    /// Connects to the socket of a server that answers each call within `patience`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, next: 1, patience })
    }

    /// Calls `method` of `service` and waits for the answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<M: Message>(&mut self, service: &str, method: &str, message: &impl Message) -> Result<M, CallError> {
        let payload = self.exchange(service, method, message).map_err(CallError::Broken)?.map_err(CallError::Refused)?;
        M::parse_from_bytes(&payload).map_err(|error| CallError::Broken(io::Error::new(ErrorKind::InvalidData, error)))
    }

    fn exchange(&mut self, service: &str, method: &str, message: &impl Message) -> io::Result<Result<Vec<u8>, Failure>> {
        let mut request = Request::new();
        service.clone_into(&mut request.service);
        method.clone_into(&mut request.method);
        request.payload = message.write_to_bytes().map_err(io::Error::other)?;
        request.timeout_nano = i64::try_from(self.patience.as_nanos()).unwrap_or(i64::MAX);
        let (stream, payload) = (self.next, request.write_to_bytes().map_err(io::Error::other)?);
        self.next = self.next.wrapping_add(2);
        self.stream.write_all(&Frame { stream, kind: Kind::Request, payload }.encode()?)?;
        let frame = Frame::read(&mut self.stream)?.ok_or(ErrorKind::UnexpectedEof)?;
        if frame.kind != Kind::Response || frame.stream != stream {
            return Err(io::Error::new(ErrorKind::InvalidData, "this is not the answer to the call"));
        }
        let mut response =
            Response::parse_from_bytes(&frame.payload).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        let status = response.status.take().unwrap_or_default();
        Ok(match status.code() {
            Code::OK => Ok(response.payload),
            code => Err(Failure::new(code, status.message)),
        })
    }
}
