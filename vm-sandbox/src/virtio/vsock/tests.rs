use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::packet::{NO_RECEIVE, NO_SEND};
use super::*;
use crate::memory::{self, Ram};
use crate::virtio::testing::{NEXT, Ring, WRITABLE};
use virtio_queue::Queue;
use vm_memory::{Bytes as _, GuestAddress};

const GUEST: u32 = 3;
/// Bytes of a buffer of the guest.
const BUFFER: u64 = 4096;

/// A guest with its driver, and the host's socket.
struct Rig {
    vsock: Vsock,
    memory: Ram,
    queues: Vec<Queue>,
    received: Ring,
    transmitted: Ring,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let memory = memory::ram(4 << 20).unwrap();
        let (received, first) = Ring::new(0x1_0000, 16);
        let (transmitted, second) = Ring::new(0x2_0000, 16);
        let vsock = Vsock::new(GUEST, UnixListener::bind(&socket).unwrap()).unwrap();
        let mut rig = Self { vsock, memory, queues: vec![first, second], received, transmitted, socket, _dir: dir };
        for number in 0..16 {
            rig.offer_buffer(number);
        }
        rig
    }

    fn offer_buffer(&mut self, number: u16) {
        let address = 0x10_0000 + u64::from(number) * BUFFER;
        self.received.descriptor(&self.memory, number, address, BUFFER as u32, WRITABLE, 0);
        self.received.offer(&self.memory, number);
    }

    fn wake(&mut self, woken: Woken) -> Result<(), Broken> {
        self.vsock.process(&mut Queues::new(&mut self.queues, &self.memory, woken))
    }

    /// What came to the guest; its buffers are offered again.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.received.used(&self.memory);
        let mut packets = Vec::new();
        for (head, len) in used {
            let at = 0x10_0000 + u64::from(head) * BUFFER;
            let mut bytes = vec![0; len as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let (header, data) = bytes.split_at(packet::LEN);
            packets.push((Header::parse(header.try_into().unwrap()).unwrap(), data.to_vec()));
            self.offer_buffer(u16::try_from(head).unwrap());
        }
        packets
    }

    /// The host's side has had its say.
    fn host(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.wake(Woken::Host).unwrap();
        self.take()
    }

    /// The guest sends.
    fn send_with(&mut self, header: Header, data: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, Broken> {
        let number = self.transmitted.next();
        let address = 0x20_0000 + u64::from(number % 8) * (128 << 10);
        self.memory.write_slice(&[&header.to_bytes()[..], data].concat(), GuestAddress(address)).unwrap();
        let len = u32::try_from(packet::LEN + data.len()).unwrap();
        self.transmitted.descriptor(&self.memory, number, address, len, 0, 0);
        self.transmitted.offer(&self.memory, number);
        self.wake(Woken::Queue(TRANSMIT))?;
        Ok(self.take())
    }

    fn send(&mut self, asked: &Header, operation: Operation, flags: u32, data: &[u8]) -> Vec<(Header, Vec<u8>)> {
        self.send_with(answer(asked, operation, flags, data.len()), data).unwrap()
    }

    /// A connection that stands: the host's stream, and what the guest was asked with.
    fn connect(&mut self) -> (BufReader<UnixStream>, Header) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        let asked = self.host();
        assert_eq!((asked.len(), asked[0].0.operation, asked[0].0.to_port), (1, Operation::Request, 1024));
        assert!(self.send(&asked[0].0, Operation::Response, 0, b"").is_empty());
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", asked[0].0.from_port));
        (stream, asked[0].0)
    }
}

fn answer(asked: &Header, operation: Operation, flags: u32, len: usize) -> Header {
    Header {
        from: asked.to,
        to: asked.from,
        from_port: asked.to_port,
        to_port: asked.from_port,
        len: u32::try_from(len).unwrap(),
        operation,
        flags,
        room: 8192,
        taken: 0,
    }
}

#[test]
fn bytes_go_both_ways_and_ends_are_told() {
    let mut rig = Rig::new();
    let (mut stream, asked) = rig.connect();
    stream.get_mut().write_all(b"to the guest").unwrap();
    let came = rig.host();
    assert_eq!((came.len(), came[0].0.operation, &came[0].1[..]), (1, Operation::Data, &b"to the guest"[..]));
    rig.send(&asked, Operation::Data, 0, b"to the host");
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    // The host says no more, and still hears.
    stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let came = rig.host();
    assert_eq!((came[0].0.operation, came[0].0.flags), (Operation::Shutdown, NO_SEND));
    assert!(rig.host().is_empty(), "an end is told once");
    rig.send(&asked, Operation::Data, 0, b"late");
    let told = rig.send(&asked, Operation::Shutdown, NO_RECEIVE | NO_SEND, b"");
    assert_eq!(told[0].0.operation, Operation::Reset);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"late");
    assert!(rig.vsock.connections.is_empty());
}

#[test]
fn nobody_sends_more_than_the_other_has_room_for() {
    let mut rig = Rig::new();
    let (mut stream, asked) = rig.connect();
    // The guest has room for 8192 bytes.
    stream.get_mut().write_all(&[7; 20_000]).unwrap();
    let count = |came: &[(Header, Vec<u8>)]| came.iter().map(|(_, data)| data.len()).sum::<usize>();
    let came = rig.host();
    assert_eq!(count(&came), 8192);
    assert!(rig.host().is_empty());
    let taken = Header { taken: 8192, ..answer(&asked, Operation::CreditUpdate, 0, 0) };
    assert_eq!(count(&rig.send_with(taken, b"").unwrap()), 8192);

    // The host does not read: the guest has room for 64 KiB beside what the stream itself takes, and is cut off when it goes on.
    let mut sent = 0;
    let told = loop {
        let told =
            rig.send_with(Header { taken: 16384, ..answer(&asked, Operation::Data, 0, 32 << 10) }, &vec![1; 32 << 10]).unwrap();
        if told.iter().any(|(header, _)| header.operation == Operation::Reset) {
            break told;
        }
        sent += 32 << 10;
        assert!(sent < 4 << 20, "it is never cut off");
    };
    assert!(!told.is_empty() && rig.vsock.connections.is_empty());
}

#[test]
fn credit_is_given_when_half_of_the_room_is_free_again() {
    let mut rig = Rig::new();
    let (mut stream, asked) = rig.connect();
    assert!(rig.send(&asked, Operation::Data, 0, &[1; 1000]).is_empty());
    let told = rig.send(&asked, Operation::CreditRequest, 0, b"");
    assert_eq!((told[0].0.operation, told[0].0.taken, told[0].0.room), (Operation::CreditUpdate, 1000, connection::ROOM));
    let told = rig.send(&asked, Operation::Data, 0, &vec![1; 40_000]);
    assert_eq!((told[0].0.operation, told[0].0.taken), (Operation::CreditUpdate, 41_000));
    let mut bytes = vec![0; 41_000];
    stream.read_exact(&mut bytes).unwrap();
}

#[test]
fn a_guest_reaches_nothing_of_itself() {
    let mut rig = Rig::new();
    let asking = Header {
        from: u64::from(GUEST),
        to: HOST,
        from_port: 5,
        to_port: 22,
        len: 0,
        operation: Operation::Request,
        flags: 0,
        room: 1 << 20,
        taken: 0,
    };
    let told = rig.send_with(asking, b"").unwrap();
    assert_eq!((told[0].0.operation, told[0].0.from_port, told[0].0.to_port), (Operation::Reset, 22, 5));
    // Somebody else's packets, and refusals, are nothing.
    for wrong in [Header { from: 9, ..asking }, Header { to: 9, ..asking }, Header { operation: Operation::Reset, ..asking }] {
        assert!(rig.send_with(wrong, b"").unwrap().is_empty());
    }
    // A connection is only its own port's.
    let (stream, asked) = rig.connect();
    let told = rig.send_with(Header { from_port: 1025, ..answer(&asked, Operation::Data, 0, 1) }, b"x").unwrap();
    assert_eq!(told[0].0.operation, Operation::Reset);
    stream.get_ref().set_nonblocking(true).unwrap();
    assert!(stream.get_ref().read(&mut [0]).is_err(), "bytes came from another port");
}

#[test]
fn who_says_no_port_or_is_refused_is_let_go() {
    for greeting in ["CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "HELLO 1024\n", "CONNECT 12345678901234567890123"] {
        let mut rig = Rig::new();
        let mut stream = UnixStream::connect(&rig.socket).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        assert!(rig.host().is_empty(), "{greeting}");
        assert!(has_ended(&stream), "{greeting}");
    }
    let mut rig = Rig::new();
    let mut stream = UnixStream::connect(&rig.socket).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let asked = rig.host();
    rig.send(&asked[0].0, Operation::Reset, 0, b"");
    assert!(has_ended(&stream));
}

/// Whether nothing more comes. What was not read of it makes an end a reset.
fn has_ended(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_host_that_has_gone_wakes_nobody_again_and_again() {
    // While the guest has not answered; while it has no room; and when it has been told.
    for (is_answered, bytes) in [(false, 0), (true, 20_000), (true, 0)] {
        let mut rig = Rig::new();
        let mut stream = UnixStream::connect(&rig.socket).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        let asked = rig.host();
        if is_answered {
            rig.send(&asked[0].0, Operation::Response, 0, b"");
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        }
        stream.write_all(&vec![1; bytes]).unwrap();
        drop(stream);
        for _ in 0..20 {
            rig.host();
        }
        let waiting = rig.vsock.events.wait(0, &mut [EpollEvent::default(); 4]).unwrap();
        assert_eq!((waiting, rig.vsock.connections.len()), (0, 1), "{is_answered} {bytes}");
    }
}

#[test]
fn packets_that_lie_about_their_length_break_the_device() {
    let mut rig = Rig::new();
    let (_stream, asked) = rig.connect();
    rig.send_with(answer(&asked, Operation::Data, 0, 100), &[0; 99]).unwrap_err();
    let mut rig = Rig::new();
    let number = rig.transmitted.next();
    rig.transmitted.descriptor(&rig.memory, number, 0x20_0000, 43, 0, 0);
    rig.transmitted.offer(&rig.memory, number);
    rig.wake(Woken::Queue(TRANSMIT)).unwrap_err();
    // A chain that is a ring ends, too.
    let mut rig = Rig::new();
    let number = rig.transmitted.next();
    rig.transmitted.descriptor(&rig.memory, number, 0x20_0000, 4, NEXT, number);
    rig.transmitted.offer(&rig.memory, number);
    drop(rig.wake(Woken::Queue(TRANSMIT)));
}
