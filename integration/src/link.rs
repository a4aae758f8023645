//! A slow and breakable link: a TCP proxy on loopback with a rate, a round-trip time and a switch.
//!
//! ```text
//!  client --> [reader] -- (deliver at, bytes) --> [writer] --> upstream        and the same the other way
//!                 |
//!                 +-- the direction's line, shared by all connections: a chunk of n bytes occupies it for n*8/rate
//! ```
//!
//! A byte that is sent at time t leaves the line at max(t, line free) + size/rate and arrives RTT/2 later. A connection counts as
//! open one RTT after `accept`, as a handshake takes; bytes sent before leave then. What this does not model: slow start and loss
//! (the delay is above TCP), so many short connections look cheaper than on a real path.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that travel as one unit: 1.3 ms at 100 Mbit/s.
const CHUNK: usize = 16 * 1024;
/// Chunks between reader and writer: more than the bandwidth-delay product of any link the tests use (4 MiB).
const IN_FLIGHT: usize = 256;

/// How far the line may be booked ahead: more than a sleep overshoots.
const AHEAD: Duration = Duration::from_millis(4);

/// What the link is like.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Bits per second in each direction, shared by all connections. `None`: as fast as loopback is.
    pub bits_per_second: Option<u64>,
    /// Round-trip time.
    pub round_trip: Duration,
}

impl Quality {
    /// No limit and no delay.
    pub const LOOPBACK: Self = Self { bits_per_second: None, round_trip: Duration::ZERO };

    /// The link that the project's promises are given for: 100 Mbit/s, 10 ms.
    pub const PROMISE: Self = Self { bits_per_second: Some(100_000_000), round_trip: Duration::from_millis(10) };

    /// `megabits` per second and a round-trip time in milliseconds.
    pub const fn new(megabits: u64, round_trip_ms: u64) -> Self {
        Self { bits_per_second: Some(megabits * 1_000_000), round_trip: Duration::from_millis(round_trip_ms) }
    }
}

/// One direction's line: when it is free again, and what has passed.
struct Line {
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Line {
    fn new() -> Self {
        Self { free_at: Mutex::new(Instant::now()), bytes: AtomicU64::new(0) }
    }

    /// Puts `size` bytes, sent at `sent`, on the line; the time when the last of them has left the sender.
    fn transmit(&self, size: usize, sent: Instant, quality: Quality) -> Instant {
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
        let Some(rate) = quality.bits_per_second else { return sent };
        let takes = Duration::from_nanos(size as u64 * 8 * 1_000_000_000 / rate);
        let mut free_at = self.free_at.lock().expect("no holder of this lock panics");
        *free_at = (*free_at).max(sent) + takes;
        *free_at
    }
}

struct Shared {
    upstream: SocketAddr,
    quality: Mutex<Quality>,
    up: Line,
    down: Line,
    cut: AtomicBool,
    stopping: AtomicBool,
    connections: AtomicU64,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
}

/// A running proxy; ends with all its connections on drop.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Link {
    /// Listens on a free loopback port and forwards to `upstream`.
    ///
    /// # Errors
    /// What binding the port gives.
    pub fn start(upstream: SocketAddr, quality: Quality) -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, quality)
    }

    /// Listens on `address` and forwards to `upstream`.
    ///
    /// # Errors
    /// What binding the address gives.
    pub fn listen(address: SocketAddr, upstream: SocketAddr, quality: Quality) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            quality: Mutex::new(quality),
            up: Line::new(),
            down: Line::new(),
            cut: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            open: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept_all(&listener, &accepting));
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes rate and delay for everything sent from now on.
    pub fn set_quality(&self, quality: Quality) {
        *self.shared.quality.lock().expect("no holder of this lock panics") = quality;
    }

    /// Resets every connection, and every new one until [`Link::restore`].
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.reset_open();
    }

    /// Lets new connections through again.
    pub fn restore(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// TCP payload bytes that went from upstream to clients.
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.bytes.load(Ordering::Relaxed)
    }

    /// TCP payload bytes that went from clients to upstream.
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.bytes.load(Ordering::Relaxed)
    }

    /// Connections accepted so far, those that were reset by a cut included.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    fn reset_open(&self) {
        for (client, server) in self.shared.open.lock().expect("no holder of this lock panics").drain(..) {
            for stream in [client, server] {
                // Connecting to nowhere is how a socket that other threads wait in sends a reset; fails when it is closed already.
                rustix::net::connect_unspec(stream).ok();
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; when this fails the listener is gone already.
        TcpStream::connect(self.address).ok();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
        self.reset_open();
    }
}

fn reset_on_close(stream: &TcpStream) {
    // Fails only for a socket that is dead already.
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        if shared.cut.load(Ordering::SeqCst) {
            reset_on_close(&client);
            continue;
        }
        if carry(client, shared).is_err() {
            // Upstream refused, and dropping the client's socket has told it so.
            continue;
        }
    }
}

/// Starts the two directions of one connection.
fn carry(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let round_trip = shared.quality.lock().expect("no holder of this lock panics").round_trip;
    let opened = Instant::now() + round_trip;
    let server = TcpStream::connect(shared.upstream)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let mut open = shared.open.lock().expect("no holder of this lock panics");
        // Sockets whose both ends have gone are only kept until the next connection comes.
        open.retain(|(client, _)| client.take_error().is_ok() && client.peer_addr().is_ok());
        open.push((client.try_clone()?, server.try_clone()?));
    }
    direct(client.try_clone()?, server.try_clone()?, Arc::clone(shared), |shared| &shared.up, opened);
    direct(server, client, Arc::clone(shared), |shared| &shared.down, opened);
    Ok(())
}

fn direct(from: TcpStream, to: TcpStream, shared: Arc<Shared>, line: fn(&Shared) -> &Line, opened: Instant) {
    let (sender, receiver) = sync_channel(IN_FLIGHT);
    std::thread::spawn(move || read_side(from, &shared, line, opened, &sender));
    std::thread::spawn(move || write_side(to, &receiver));
}

fn read_side(
    mut from: TcpStream,
    shared: &Shared,
    line: fn(&Shared) -> &Line,
    opened: Instant,
    out: &SyncSender<(Instant, Vec<u8>)>,
) {
    let mut buffer = vec![0; CHUNK];
    // An error here is a connection that was reset: for the other side the same as its end.
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let quality = *shared.quality.lock().expect("no holder of this lock panics");
        let left = line(shared).transmit(n, Instant::now().max(opened), quality);
        if out.send((left + quality.round_trip / 2, buffer[..n].to_vec())).is_err() {
            return;
        }
        // Not to read far ahead of the line is what makes the sender feel the rate; a little, so that it never runs idle.
        sleep_until(left - AHEAD);
    }
}

fn write_side(mut to: TcpStream, chunks: &Receiver<(Instant, Vec<u8>)>) {
    for (deliver_at, bytes) in chunks {
        sleep_until(deliver_at);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // Fails when the peer has closed already.
    to.shutdown(Shutdown::Write).ok();
}

fn sleep_until(time: Instant) {
    let wait = time.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
}

#[cfg(test)]
mod tests;
