//! Connections, and their requests.
//!
//! Each connection has a thread that reads it. A request that is answered from memory is answered there; any other gets a thread of its own;
//! and one that waits for something keeps only its [`Reply`], which costs no thread. Answers of one connection are written under its lock, by
//! which nothing but the socket is waited for, and no longer than [`SEND`].

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Request, Response};

use super::frame::{Frame, Kind};
use super::status::{Answer, Code, Failure};
use crate::{STACK, log};

/// How long a peer may take to read an answer before it is given up.
const SEND: Duration = Duration::from_secs(10);

/// So many requests are worked on at a time; more are refused. containerd asks one thing of a container at a time.
const MOST: usize = 512;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Whether the method only looks something up, so that it is called on the thread of the connection.
    fn is_quick(&self, service: &str, method: &str) -> bool;

    /// Answers, now or later.
    fn call(&self, service: &str, method: &str, payload: &[u8], reply: Reply);
}

/// Where an answer goes. Dropped without one, the caller is told so.
#[derive(Debug)]
pub struct Reply {
    peer: Option<Peer>,
    stream: u32,
}

type Peer = Arc<Mutex<UnixStream>>;

impl Reply {
    /// Answers.
    pub fn send<M: Message>(self, answer: Answer<M>) {
        let encoded = answer.and_then(|message| {
            message.write_to_bytes().map_err(|error| Failure::new(Code::INTERNAL, format!("encoding the answer: {error}")))
        });
        self.finish(encoded);
    }

    fn finish(mut self, answer: Answer<Vec<u8>>) {
        if let Some(peer) = self.peer.take() {
            respond(&peer, self.stream, answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(peer) = self.peer.take() {
            respond(&peer, self.stream, Err(Failure::new(Code::INTERNAL, "the shim gave the request up")));
        }
    }
}

fn respond(peer: &Peer, stream: u32, answer: Answer<Vec<u8>>) {
    let mut response = Response::new();
    match answer {
        Ok(payload) => response.payload = payload,
        Err(failure) => response.set_status(failure.status()),
    }
    let frame = response.write_to_bytes().map_err(io::Error::other);
    let frame = frame.and_then(|payload| Frame { stream, kind: Kind::Response, payload }.encode());
    let sent = frame.and_then(|bytes| peer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes));
    match sent {
        // The caller has gone: nobody misses the answer.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        Err(error) => log::warn(format_args!("sending an answer: {error}")),
        Ok(()) => {}
    }
}

/// Takes connections until the listener is shut down.
///
/// # Errors
/// Connections cannot be taken any more.
pub fn serve(listener: &UnixListener, service: &Arc<dyn Service>) -> io::Result<()> {
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What accept(2) says of a socket that was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            Err(error) => return Err(error),
        };
        let (service, busy) = (Arc::clone(service), Arc::clone(&busy));
        let connection = move || {
            if let Err(error) = converse(stream, &service, &busy) {
                log::warn(format_args!("a connection ends: {error}"));
            }
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(connection) {
            log::error(format_args!("a connection is refused, there is no thread for it: {error}"));
        }
    }
}

fn converse(mut stream: UnixStream, service: &Arc<dyn Service>, busy: &Arc<AtomicUsize>) -> io::Result<()> {
    stream.set_write_timeout(Some(SEND))?;
    let peer = Arc::new(Mutex::new(stream.try_clone()?));
    loop {
        let frame = match Frame::read(&mut stream) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        if frame.kind != Kind::Request {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer of a server sent a response"));
        }
        let reply = Reply { peer: Some(Arc::clone(&peer)), stream: frame.stream };
        match Request::parse_from_bytes(&frame.payload) {
            Ok(request) => dispatch(request, reply, service, busy),
            Err(error) => reply.finish(Err(Failure::invalid(format!("decoding the request: {error}")))),
        }
    }
}

fn dispatch(request: Request, reply: Reply, service: &Arc<dyn Service>, busy: &Arc<AtomicUsize>) {
    if service.is_quick(&request.service, &request.method) {
        return service.call(&request.service, &request.method, &request.payload, reply);
    }
    let place = Place(Arc::clone(busy));
    if busy.fetch_add(1, Ordering::Relaxed) >= MOST {
        return reply.finish(Err(Failure::new(Code::RESOURCE_EXHAUSTED, format!("{MOST} requests are being worked on"))));
    }
    let service = Arc::clone(service);
    let work = move || {
        service.call(&request.service, &request.method, &request.payload, reply);
        drop(place);
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
        // The reply was dropped with the closure, which answered.
        log::error(format_args!("a request is refused, there is no thread for it: {error}"));
    }
}

/// A place among those that are worked on.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
