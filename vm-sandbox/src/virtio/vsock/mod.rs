//! Sockets between host and guest (virtio 1.2, section 5.10). Only the host connects, so that a guest reaches nothing: what it asks for is
//! refused.
//!
//! A program of the host connects to the machine's Unix socket, writes `CONNECT PORT` and a newline, and reads `OK N` and a newline once
//! somebody in the guest listens there; where nobody does, the connection ends. From then on the stream is the guest's.

mod connection;
mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixListener;

use connection::Connection;
use packet::{HOST, Header, Operation};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Broken, Device, Queues, Woken};
use crate::error::{Error, Result};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Connections of the host at most.
const MOST: usize = 128;
/// Refusals that wait for room in the guest's queue; what is over is left out: the guest's connections time out then.
const REFUSALS: usize = 64;
/// Bytes of a packet that is read of the guest at most.
const LONGEST: usize = 64 << 10;
/// Bytes that go to the guest in one packet at most.
const PIECE: usize = 32 << 10;
/// The number that the listener has among events; ports of the host begin above it.
const LISTENER: u64 = 0;
const FIRST_PORT: u32 = 1 << 30;

/// Sockets of a machine.
#[derive(Debug)]
pub struct Vsock {
    guest: u64,
    config: [u8; 8],
    listener: UnixListener,
    /// What of the host has something to say; it becomes readable itself.
    events: Epoll,
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    /// Whose bytes went last: the others come first.
    served: u32,
    refusals: VecDeque<Header>,
}

impl Vsock {
    /// Sockets of the guest with the context id `guest`; hosts connect to `listener`.
    pub fn new(guest: u32, listener: UnixListener) -> Result<Self> {
        let failed = |e: std::io::Error| Error::new("making the sockets of a machine", e);
        listener.set_nonblocking(true).map_err(failed)?;
        let events = Epoll::new().map_err(failed)?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        events.ctl(ControlOperation::Add, listener.as_raw_fd(), event).map_err(failed)?;
        let guest = u64::from(guest);
        Ok(Self {
            guest,
            config: guest.to_le_bytes(),
            listener,
            events,
            connections: BTreeMap::new(),
            next_port: FIRST_PORT,
            served: FIRST_PORT,
            refusals: VecDeque::new(),
        })
    }

    /// Takes up what the host has.
    fn take_host_events(&mut self) -> Result<(), Broken> {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.events.wait(0, &mut events) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept();
            } else if let Some(connection) = u32::try_from(event.data()).ok().and_then(|port| self.connections.get_mut(&port)) {
                if event.event_set().contains(EventSet::OUT) {
                    connection.flush();
                }
                if !connection.is_open() {
                    connection.greet();
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= MOST {
                tracing::warn!("a machine has {MOST} connections; one more is refused");
                continue;
            }
            while self.connections.contains_key(&self.next_port) || self.next_port < FIRST_PORT {
                self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            }
            let port = self.next_port;
            self.next_port = port.wrapping_add(1);
            match Connection::new(stream, port) {
                Ok(mut connection) => {
                    connection.greet();
                    self.connections.insert(port, connection);
                }
                Err(error) => tracing::warn!("taking a connection to a machine: {error}"),
            }
        }
    }

    /// Reads what the guest sends.
    fn take_packets(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some(queue) = queues.at(TRANSMIT) else { return Ok(()) };
        queue.each(|chain, memory| {
            let mut reader = chain.reader(memory)?;
            let mut bytes = [0; packet::LEN];
            reader.read_exact(&mut bytes)?;
            let len = reader.available_bytes();
            if let Some(header) = Header::parse(&bytes) {
                if header.len as usize > len || header.len as usize > LONGEST {
                    return Err(Broken(format!("a packet says {} bytes and has {len}", header.len)));
                }
                let mut data = vec![0; header.len as usize];
                reader.read_exact(&mut data)?;
                self.packet(&header, &data);
            }
            Ok(0)
        })
    }

    fn packet(&mut self, header: &Header, data: &[u8]) {
        if header.from != self.guest || header.to != HOST {
            return;
        }
        match self.connections.get_mut(&header.to_port).filter(|connection| connection.guest_port() == header.from_port) {
            Some(connection) => {
                connection.packet(header, data);
            }
            // Whoever asks is told that nobody is here; a refusal is not refused in turn.
            None if header.operation != Operation::Reset && self.refusals.len() < REFUSALS => {
                let (from_port, to_port) = (header.to_port, header.from_port);
                let (from, to, operation) = (HOST, self.guest, Operation::Reset);
                self.refusals.push_back(Header { from, to, from_port, to_port, len: 0, operation, flags: 0, room: 0, taken: 0 });
            }
            None => {}
        }
    }

    /// Puts what the guest is to be told into its buffers, as long as there are some.
    fn give_packets(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some(queue) = queues.at(RECEIVE) else { return Ok(()) };
        let memory = queue.memory();
        while self.has_packets() {
            let Some(chain) = queue.take()? else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(memory)?;
            let room = writer.available_bytes().checked_sub(packet::LEN);
            let room = room.ok_or_else(|| Broken("a buffer is shorter than a packet's header".into()))?;
            let written = match self.next_packet(room) {
                Some((header, data)) => {
                    writer.write_all(&header.to_bytes())?;
                    writer.write_all(&data)?;
                    packet::LEN + data.len()
                }
                None => {
                    queue.put_back();
                    break;
                }
            };
            queue.give_back(head, written)?;
        }
        Ok(())
    }

    /// Whether there may be a packet: for bytes of the host that is known when they are read.
    fn has_packets(&self) -> bool {
        !self.refusals.is_empty()
            || self.connections.values().any(|connection| connection.is_due() || connection.is_open() && connection.wants_input())
    }

    fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(header) = self.refusals.pop_front() {
            return Some((header, Vec::new()));
        }
        let guest = self.guest;
        for connection in self.connections.values_mut() {
            if let Some(header) = connection.take_due(guest) {
                return Some((header, Vec::new()));
            }
        }
        let after = self.served.wrapping_add(1);
        let ports: Vec<u32> =
            self.connections.range(after..).chain(self.connections.range(..after)).map(|(port, _)| *port).collect();
        for port in ports {
            let Some(connection) =
                self.connections.get_mut(&port).filter(|connection| connection.is_open() && connection.wants_input())
            else {
                continue;
            };
            let mut data = vec![0; room.min(PIECE)];
            let len = connection.read(&mut data);
            data.truncate(len);
            self.served = port;
            if len > 0 {
                return Some((connection.data_header(guest, len), data));
            }
            // Its end.
            if let Some(header) = connection.take_due(guest) {
                return Some((header, Vec::new()));
            }
        }
        None
    }

    /// Forgets what is over, and watches the rest for what would be taken. One of which nothing is wanted is not watched at all: epoll would
    /// go on saying that its host has gone.
    fn watch(&mut self, has_buffers: bool) {
        let events = &self.events;
        self.connections.retain(|port, connection| {
            if connection.is_forgotten() {
                return false;
            }
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, connection.wants_input() && (has_buffers || !connection.is_open()));
            wanted.set(EventSet::OUT, connection.has_output());
            let how = match (connection.watched.is_empty(), wanted.is_empty()) {
                _ if wanted == connection.watched => return true,
                (true, _) => ControlOperation::Add,
                (false, true) => ControlOperation::Delete,
                (false, false) => ControlOperation::Modify,
            };
            let event = EpollEvent::new(wanted, u64::from(*port));
            if let Err(error) = events.ctl(how, connection.stream().as_raw_fd(), event) {
                tracing::warn!("watching a connection to a machine: {error}");
                connection.reset();
            }
            connection.watched = wanted;
            true
        });
    }
}

impl Device for Vsock {
    fn kind(&self) -> u16 {
        19
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        // Received, transmitted, events.
        &[128, 128, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        if queues.why() == Woken::Host {
            self.take_host_events()?;
        }
        self.take_packets(queues)?;
        self.give_packets(queues)?;
        let has_buffers = queues.at(RECEIVE).map_or(Ok(false), |queue| queue.has_more())?;
        self.watch(has_buffers);
        Ok(())
    }

    fn host_events(&self) -> Option<RawFd> {
        Some(self.events.as_raw_fd())
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.refusals.clear();
    }
}

#[cfg(test)]
mod tests;
