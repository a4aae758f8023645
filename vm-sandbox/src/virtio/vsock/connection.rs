//! One connection: a stream of the host and what was agreed on with the guest. Only the host opens connections.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::packet::{HOST, Header, NO_RECEIVE, NO_SEND, Operation};

/// Bytes that are kept for a host that does not read them at once. A guest that sends more is cut off.
pub const ROOM: u32 = 64 << 10;
/// The longest greeting: `CONNECT 4294967295` and the end of the line.
const GREETING: usize = 20;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The host has not said yet which port it wants.
    Greeting,
    /// The guest has not answered yet.
    Asked,
    Open,
}

/// What the guest is to be told, soonest first.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    reset: bool,
    request: bool,
    shutdown: u32,
    credit: bool,
}

/// What came of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    On,
    /// It is over, and can be forgotten once the guest was told what is due.
    Over,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    port: u32,
    guest_port: u32,
    stage: Stage,
    greeting: Vec<u8>,
    /// What the host has not read yet.
    out: VecDeque<u8>,
    due: Due,
    /// Bytes that went to the guest; what it has taken of them, and has room for (modulo 2^32).
    sent: u32,
    taken_by_guest: u32,
    room_of_guest: u32,
    /// Bytes that went to the host, and what the guest knows of it.
    taken: u32,
    told: u32,
    host_ended: bool,
    /// What the guest has said that it does no more.
    guest_ended: u32,
    over: bool,
    /// What it is watched for; nothing where it is not watched.
    pub watched: EventSet,
}

impl Connection {
    /// A host has connected; `port` is the number that the guest will know it by.
    pub fn new(stream: UnixStream, port: u32) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            port,
            guest_port: 0,
            stage: Stage::Greeting,
            greeting: Vec::new(),
            out: VecDeque::new(),
            due: Due::default(),
            sent: 0,
            taken_by_guest: 0,
            room_of_guest: 0,
            taken: 0,
            told: 0,
            host_ended: false,
            guest_ended: 0,
            over: false,
            watched: EventSet::empty(),
        })
    }

    /// The host's side.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The guest's port, once the host has said it.
    pub fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// Whether it is over and nothing has to be said any more.
    pub fn is_forgotten(&self) -> bool {
        self.over && !self.due.reset
    }

    /// Whether the guest is to be told something that carries no bytes.
    pub fn is_due(&self) -> bool {
        self.due.reset || !self.over && (self.due.request || self.due.shutdown != 0 || self.due.credit)
    }

    /// Whether something of the host would be taken now.
    pub fn wants_input(&self) -> bool {
        !self.over
            && match self.stage {
                Stage::Greeting => true,
                Stage::Asked => false,
                Stage::Open => !self.host_ended && self.guest_ended & NO_RECEIVE == 0 && self.credit() > 0,
            }
    }

    /// Whether there is something for the host.
    pub fn has_output(&self) -> bool {
        !self.over && !self.out.is_empty()
    }

    /// Whether bytes of the host go to the guest, rather than to the greeting.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Bytes that the guest has room for.
    pub fn credit(&self) -> u32 {
        self.room_of_guest.saturating_sub(self.sent.wrapping_sub(self.taken_by_guest))
    }

    /// Reads the host's greeting.
    pub fn greet(&mut self) {
        let mut byte = [0];
        while self.stage == Stage::Greeting && !self.over {
            match (&self.stream).read(&mut byte) {
                Ok(0) => self.over = true,
                Ok(_) if byte == *b"\n" => match port_of(&self.greeting) {
                    Some(port) => {
                        (self.guest_port, self.stage, self.due.request) = (port, Stage::Asked, true);
                    }
                    None => self.over = true,
                },
                Ok(_) if self.greeting.len() < GREETING => self.greeting.extend(byte),
                Ok(_) => self.over = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.over = true,
            }
        }
    }

    /// Reads of the host into `buffer`; 0 where there is nothing now, or never again.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let len = buffer.len().min(self.credit() as usize);
        match (&self.stream).read(&mut buffer[..len]) {
            Ok(0) if len > 0 => {
                self.host_ended = true;
                self.due.shutdown |= NO_SEND;
                0
            }
            Ok(read) => {
                self.sent = self.sent.wrapping_add(u32::try_from(read).expect("credit is 32 bits"));
                read
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.reset();
                0
            }
        }
    }

    /// Gives the host what it can take now.
    pub fn flush(&mut self) {
        while !self.out.is_empty() {
            let (first, _) = self.out.as_slices();
            match (&self.stream).write(first) {
                Ok(0) => break,
                Ok(written) => {
                    self.out.drain(..written);
                    if self.stage == Stage::Open {
                        self.taken = self.taken.wrapping_add(u32::try_from(written).expect("it was in the buffer"));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.reset(),
            }
        }
        // Half of the room is enough to go on with.
        self.due.credit |= self.taken.wrapping_sub(self.told) >= ROOM / 2;
        if self.out.is_empty() && self.guest_ended & NO_SEND != 0 {
            self.end_output();
        }
    }

    fn end_output(&mut self) {
        if self.guest_ended & NO_RECEIVE != 0 {
            self.reset();
        } else if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            tracing::debug!("ending a stream: {error}");
        }
    }

    /// Ends it, and tells the guest.
    pub fn reset(&mut self) {
        (self.over, self.due.reset) = (true, true);
    }

    /// What a packet of the guest means for it. `data` is what is behind the header.
    pub fn packet(&mut self, header: &Header, data: &[u8]) -> Next {
        if self.over {
            return Next::Over;
        }
        (self.room_of_guest, self.taken_by_guest) = (header.room, header.taken);
        match (self.stage, header.operation) {
            (Stage::Asked, Operation::Response) => {
                self.out.extend(format!("OK {}\n", self.port).into_bytes());
                self.flush();
                // Only from here on what is written counts.
                (self.stage, self.taken) = (Stage::Open, 0);
            }
            (_, Operation::Reset) => {
                self.over = true;
                return Next::Over;
            }
            (Stage::Open, Operation::Data) => {
                let fits = self.out.len() + data.len() <= ROOM as usize && self.guest_ended & NO_SEND == 0;
                if !fits {
                    self.reset();
                    return Next::Over;
                }
                self.out.extend(data);
                self.flush();
            }
            (Stage::Open, Operation::CreditRequest) => self.due.credit = true,
            (Stage::Open, Operation::CreditUpdate) => {}
            (Stage::Open, Operation::Shutdown) => {
                self.guest_ended |= header.flags & (NO_RECEIVE | NO_SEND);
                self.flush();
            }
            _ => self.reset(),
        }
        if self.over { Next::Over } else { Next::On }
    }

    /// The next packet for the guest that carries no bytes.
    pub fn take_due(&mut self, guest: u64) -> Option<Header> {
        let (operation, flags) = if self.due.reset {
            self.due = Due::default();
            (Operation::Reset, 0)
        } else if self.over {
            return None;
        } else if std::mem::take(&mut self.due.request) {
            (Operation::Request, 0)
        } else if self.due.shutdown != 0 {
            (Operation::Shutdown, std::mem::take(&mut self.due.shutdown))
        } else if std::mem::take(&mut self.due.credit) {
            (Operation::CreditUpdate, 0)
        } else {
            return None;
        };
        Some(self.header(guest, operation, flags, 0))
    }

    /// The header of bytes for the guest.
    pub fn data_header(&mut self, guest: u64, len: usize) -> Header {
        self.header(guest, Operation::Data, 0, u32::try_from(len).expect("credit is 32 bits"))
    }

    fn header(&mut self, guest: u64, operation: Operation, flags: u32, len: u32) -> Header {
        self.told = self.taken;
        let (from_port, to_port) = (self.port, self.guest_port);
        Header { from: HOST, to: guest, from_port, to_port, len, operation, flags, room: ROOM, taken: self.taken }
    }
}

/// `CONNECT PORT`
fn port_of(greeting: &[u8]) -> Option<u32> {
    let digits = greeting.strip_prefix(b"CONNECT ").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
