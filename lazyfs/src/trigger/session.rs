//! One connection to the kernel: requests in, replies out.
//!
//! A session lives from a negotiated device to its close. It needs only the device, not the mount, so that it can also be made from a
//! descriptor that somebody else kept open.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::data::{self, DataFile, DataFiles};
use super::interrupt::{WATCH_INTERVAL, is_killed};
use super::wire::{self, Operation};
use super::{ReadTicket, Resolver, Ticket};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// Threads that read requests. None of them ever waits for a fetch; the second one keeps look-ups going while the first is in
/// [`Resolver::resolve`].
const READERS: usize = 2;

/// How long the kernel may take to send INIT: it is queued by the mount itself.
const INIT_DEADLINE: Duration = Duration::from_secs(5);

/// Node id of the directory `00`; `ff` has the id 255 above it. Ids are computed, so any later session agrees with the kernel's cache.
const FIRST_DIRECTORY: u64 = 0x100;

/// A connection that was negotiated.
pub(super) struct Session {
    device: OwnedFd,
    /// The kernel can be asked to send requests again.
    resend: bool,
    /// Readable when the threads should end.
    stop: OwnedFd,
    resolver: Arc<dyn Resolver>,
    state: Mutex<State>,
    /// Signalled when a request begins to be watched, when the session closes, and when a thread ends.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Look-ups and reads that have a ticket, by `unique`. Whoever removes one writes its reply.
    waiting: HashMap<u64, Waiting>,
    /// Set once: no more tickets.
    closed: bool,
    /// Set with `closed` where another session goes on with the device: nothing is answered any more.
    left: bool,
    /// Threads that have not ended.
    threads: usize,
    data: DataFiles,
}

struct Waiting {
    pid: u32,
    /// An object, or the layer of a read.
    digest: Digest,
    /// Its caller got a signal.
    watched: bool,
    /// Dropped with this: whoever holds the ticket may stop.
    _gone: oneshot::Sender<()>,
}

/// Opens the FUSE device, for [`Session::negotiate`].
pub(super) fn open_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|errno| {
        let tried = "opening /dev/fuse";
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Error::new(Outcome::Unsupported, tried)
                .advise("load the FUSE module (`modprobe fuse`); in a container, pass the device in (`--device /dev/fuse`)"),
            Errno::PERM | Errno::ACCESS => Error::new(Outcome::Denied, tried)
                .advise("run as root; in a container, pass the device in (`--device /dev/fuse`)"),
            _ => Error::new(Outcome::Io, tried),
        }
        .because(errno)
    })
}

impl Session {
    /// Answers INIT on a device whose file system has just been created.
    pub fn negotiate(device: OwnedFd, resolver: Arc<dyn Resolver>) -> Result<Arc<Self>> {
        let failed = |cause: &dyn std::fmt::Display| {
            Error::new(Outcome::Unsupported, "agreeing with the kernel on a FUSE protocol").because(cause.to_string())
        };
        let mut buffer = vec![0; wire::BUFFER_LEN];
        let deadline = Instant::now() + INIT_DEADLINE;
        let bytes = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a few seconds");
            match rustix::event::poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(failed(&format!("no INIT within {INIT_DEADLINE:?}"))),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(&e)),
            }
            match rustix::io::read(&device, &mut buffer[..]) {
                Ok(n) => break &buffer[..n],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(failed(&e)),
            }
        };
        let request = wire::parse(bytes).map_err(|e| failed(&e))?;
        let Operation::Init(offer) = request.operation else {
            return Err(failed(&format!("first request is {:?}", request.operation)));
        };
        if offer.major != wire::MAJOR || offer.minor < wire::OLDEST_MINOR {
            let kernel = format!("the kernel speaks {}.{}", offer.major, offer.minor);
            return Err(failed(&kernel).advise("a kernel of 6.12 or later is needed"));
        }
        if offer.flags & wire::ASYNC_DIO == 0 {
            return Err(failed(&"the kernel has no asynchronous direct reads").advise("a kernel of 6.12 or later is needed"));
        }
        let wanted = wire::ASYNC_DIO | wire::MAX_PAGES | wire::PARALLEL_DIROPS | wire::INIT_EXT | wire::HAS_RESEND;
        let flags = offer.flags & wanted;
        rustix::io::write(&device, &wire::init_reply(request.unique, &offer, flags)).map_err(|e| failed(&e))?;
        Self::over(device, flags & wire::HAS_RESEND != 0, resolver)
    }

    /// Goes on with a device that an earlier session negotiated, whose kernel has RESEND.
    pub fn adopt(device: OwnedFd, resolver: Arc<dyn Resolver>) -> Result<Arc<Self>> {
        Self::over(device, true, resolver)
    }

    fn over(device: OwnedFd, resend: bool, resolver: Arc<dyn Resolver>) -> Result<Arc<Self>> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::new(Outcome::Io, "creating an eventfd").because(e))?;
        Ok(Arc::new(Self { device, resend, stop, resolver, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// The device, for whoever keeps it.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Whether the kernel has RESEND.
    pub fn has_resend(&self) -> bool {
        self.resend
    }

    /// Makes the kernel send again what an earlier session has read and not answered.
    pub fn resend(&self) -> Result<()> {
        rustix::io::write(&self.device, &wire::resend()).map(drop).map_err(|e| {
            Error::new(Outcome::Unsupported, "asking the kernel to send FUSE requests again (6.9 or later can)").because(e)
        })
    }

    /// Starts the threads: the readers, and the one that watches signalled callers.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        for number in 0..READERS {
            self.spawn(format!("trigger-{number}"), Self::read_requests)?;
        }
        self.spawn("trigger-watch".to_owned(), |session| session.watch_signalled())
    }

    fn spawn(self: &Arc<Self>, name: String, body: fn(&Arc<Self>)) -> Result<()> {
        self.lock().threads += 1;
        let ended = Ended(Arc::clone(self));
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || body(&ended.0));
        thread.map(drop).map_err(|e| Error::new(Outcome::Io, format!("starting thread {name}")).because(e))
    }

    /// Fails every waiting look-up, and every later one at once.
    pub fn refuse(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        self.changed.notify_all();
        for unique in waiting.into_keys() {
            self.reply(&wire::error(unique, Errno::IO.raw_os_error()));
        }
    }

    /// Ends the threads. Says how many have not ended when the deadline came.
    pub fn stop(&self, deadline: Duration) -> usize {
        self.refuse();
        if let Err(e) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::warn!("cannot wake the threads of the FUSE trigger: {e}");
        }
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), deadline, |state| state.threads > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.threads
    }

    /// Ends the threads and answers nothing: what waits is left to whoever adopts the device.
    pub fn leave(&self, deadline: Duration) -> usize {
        {
            let mut state = self.lock();
            (state.closed, state.left) = (true, true);
            state.waiting.clear();
        }
        self.stop(deadline)
    }

    /// Look-ups that wait for their ticket.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether requests still arrive: false once the kernel has ended the connection.
    pub fn is_connected(&self) -> bool {
        !self.lock().closed
    }

    /// Answers a look-up, unless that has happened.
    pub fn answer(&self, unique: u64, errno: Errno) {
        if self.lock().waiting.remove(&unique).is_some() {
            self.reply(&wire::error(unique, errno.raw_os_error()));
        }
    }

    /// Answers a read, unless that has happened.
    pub fn answer_read(&self, unique: u64, bytes: &[u8]) {
        if self.lock().waiting.remove(&unique).is_some() {
            let header = wire::read_header(unique, bytes.len());
            self.sent(rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(bytes)]));
        }
    }

    /// The lock is never held over a system call or a call of the resolver, so a poisoned one guards consistent data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, bytes: &[u8]) {
        self.sent(rustix::io::write(&self.device, bytes));
    }

    fn sent(&self, written: rustix::io::Result<usize>) {
        match written {
            // ENOENT: the request is gone, its caller was killed. ENODEV, EPERM: the connection is gone, and all requests with it.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::PERM) => {}
            Err(e) => tracing::warn!("cannot answer a FUSE request: {e}"),
        }
    }

    fn read_requests(self: &Arc<Self>) {
        let mut buffer = vec![0; wire::BUFFER_LEN];
        loop {
            let mut ready = [PollFd::new(&self.device, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return self.lost("polling", e),
            }
            match rustix::io::read(&self.device, &mut buffer[..]) {
                Ok(n) => self.serve(&buffer[..n]),
                // EAGAIN: another reader has it. ENOENT: its caller went away while it was being copied.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
                Err(e) => return self.lost("reading", e),
            }
        }
    }

    /// The regular end of a connection is [`Self::refuse`]; this one came from outside: unmounted and no longer used, or aborted.
    fn lost(&self, what: &str, errno: Errno) {
        if self.is_connected() {
            tracing::warn!("the FUSE trigger has lost its connection: {what} /dev/fuse: {errno}");
            self.refuse();
        }
    }

    fn serve(self: &Arc<Self>, bytes: &[u8]) {
        let request = match wire::parse(bytes) {
            Ok(request) => request,
            Err(malformed) => {
                tracing::warn!("{malformed}");
                return malformed
                    .unique
                    .into_iter()
                    .for_each(|unique| self.reply(&wire::error(unique, Errno::IO.raw_os_error())));
            }
        };
        let unique = request.unique;
        match request.operation {
            Operation::Lookup(name) => self.look_up(unique, request.node, name, request.pid),
            Operation::GetAttr if data::is_node(request.node) => self.reply(&match self.data_file(request.node) {
                Some(file) => wire::file_attributes(unique, request.node, file.len),
                None => wire::error(unique, Errno::IO.raw_os_error()),
            }),
            Operation::GetAttr => self.reply(&wire::directory_attributes(unique, request.node)),
            Operation::Open => self.reply(&match self.data_file(request.node) {
                Some(_) => wire::opened(unique),
                None => wire::error(unique, Errno::IO.raw_os_error()),
            }),
            Operation::Read { offset, size } => self.read(unique, request.node, offset, size, request.pid),
            Operation::Close => self.reply(&wire::done(unique)),
            Operation::StatFs => self.reply(&wire::statistics(unique)),
            Operation::Interrupt(target) => self.interrupt(unique, target),
            Operation::Forget => {}
            Operation::Destroy => self.reply(&wire::done(unique)),
            Operation::Init(_) => self.reply(&wire::error(unique, Errno::IO.raw_os_error())),
            Operation::Other(opcode) => {
                tracing::debug!("FUSE opcode {opcode} is not served");
                self.reply(&wire::error(unique, Errno::NOSYS.raw_os_error()));
            }
        }
    }

    fn look_up(self: &Arc<Self>, unique: u64, parent: u64, name: &[u8], pid: u32) {
        match target(parent, name) {
            Target::Directory(node) => self.reply(&wire::directory_entry(unique, node)),
            Target::Nothing => self.reply(&wire::error(unique, Errno::NOENT.raw_os_error())),
            Target::Data(node) => self.reply(&match self.served(node) {
                Some(file) => wire::file_entry(unique, node, file.len),
                None => wire::error(unique, Errno::NOENT.raw_os_error()),
            }),
            Target::Object(digest) => {
                if let Some(gone) = self.register(unique, pid, digest) {
                    let session = Arc::downgrade(self);
                    self.resolver.resolve(digest, Ticket { digest, unique, pid, session, gone, answered: false });
                }
            }
        }
    }

    fn read(self: &Arc<Self>, unique: u64, node: u64, offset: u64, size: u32, pid: u32) {
        let Some(file) = self.data_file(node).filter(|_| size <= wire::READ_MAX) else {
            return self.reply(&wire::error(unique, Errno::IO.raw_os_error()));
        };
        let range = offset.min(file.len)..offset.saturating_add(u64::from(size)).min(file.len);
        let len = range.end - range.start;
        if len == 0 {
            return self.reply(&wire::read_header(unique, 0));
        }
        if let Some(gone) = self.register(unique, pid, file.layer) {
            self.resolver.read(
                file.layer,
                range,
                ReadTicket { pid, len, unique, session: Arc::downgrade(self), gone, answered: false },
            );
        }
    }

    /// Notes a request that gets a ticket. Nothing where the session is closed: it was failed then, or is left to the next session.
    fn register(&self, unique: u64, pid: u32, digest: Digest) -> Option<oneshot::Receiver<()>> {
        let (sender, gone) = oneshot::channel();
        let (closed, left) = {
            let mut state = self.lock();
            if !state.closed {
                state.waiting.insert(unique, Waiting { pid, digest, watched: false, _gone: sender });
            }
            (state.closed, state.left)
        };
        if closed && !left {
            self.reply(&wire::error(unique, Errno::IO.raw_os_error()));
        }
        (!closed).then_some(gone)
    }

    /// The file with this number, as the kernel knows it.
    fn data_file(&self, node: u64) -> Option<DataFile> {
        let known = self.lock().data.get(node);
        known.or_else(|| self.served(node))
    }

    /// The file with this number, if it can be read now.
    fn served(&self, node: u64) -> Option<DataFile> {
        let served = self.resolver.data();
        self.lock().data.find(node, &served)
    }

    /// The caller of `target` got a signal.
    fn interrupt(&self, unique: u64, target: u64) {
        let pid = self.lock().waiting.get(&target).map(|request| request.pid);
        match pid {
            // Read by the other reader and not registered yet, or answered by now: the kernel asks again in the former case and
            // has forgotten the request in the latter (FUSE_INTERRUPT in Documentation/filesystems/fuse.rst).
            None => self.reply(&wire::error(unique, Errno::AGAIN.raw_os_error())),
            Some(pid) if is_killed(pid) => self.answer(target, Errno::INTR),
            Some(_) => {
                if let Some(request) = self.lock().waiting.get_mut(&target) {
                    request.watched = true;
                }
                self.changed.notify_all();
            }
        }
    }

    fn watch_signalled(&self) {
        let idle = |state: &mut State| !state.closed && !state.waiting.values().any(|request| request.watched);
        loop {
            let signalled: Vec<_> = {
                let state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
                if state.closed {
                    return;
                }
                state
                    .waiting
                    .iter()
                    .filter(|(_, request)| request.watched)
                    .map(|(unique, request)| (*unique, request.pid))
                    .collect()
            };
            for (unique, pid) in signalled {
                if is_killed(pid) {
                    self.answer(unique, Errno::INTR);
                }
            }
            let closing = self.changed.wait_timeout_while(self.lock(), WATCH_INTERVAL, |state| !state.closed);
            drop(closing.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digests: Vec<_> = self.lock().waiting.values().map(|request| request.digest).collect();
        f.debug_struct("Session").field("waiting", &digests).finish_non_exhaustive()
    }
}

/// Counts a thread out, also when it panics.
struct Ended(Arc<Session>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.changed.notify_all();
    }
}

/// What a name in a directory is.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Directory(u64),
    Object(Digest),
    /// The file of a layer, by its number.
    Data(u64),
    Nothing,
}

/// The root has the files of layers and the directories `00` to `ff`; these have every name that completes a digest.
fn target(parent: u64, name: &[u8]) -> Target {
    let found = || {
        let name = str::from_utf8(name).ok()?;
        if parent == wire::ROOT {
            if let Some(layer) = data::layer(name.as_bytes()) {
                return Some(Target::Data(data::node(&layer)));
            }
            let [_, _] = name.as_bytes() else { return None };
            let digest = Digest::from_hex(&format!("{name}{:062}", 0)).ok()?;
            return Some(Target::Directory(FIRST_DIRECTORY + u64::from(digest.as_bytes()[0])));
        }
        let byte = u8::try_from(parent.checked_sub(FIRST_DIRECTORY)?).ok()?;
        Digest::from_hex(&format!("{byte:02x}{name}")).ok().map(Target::Object)
    };
    found().unwrap_or(Target::Nothing)
}

pub(super) type WeakSession = Weak<Session>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_object_paths_have_a_target() {
        let digest = Digest::of(b"towline");
        let path = digest.object_path();
        let (directory, file) = path.split_once('/').unwrap();
        let node = FIRST_DIRECTORY + u64::from(digest.as_bytes()[0]);
        assert_eq!(target(wire::ROOT, directory.as_bytes()), Target::Directory(node));
        assert_eq!(target(node, file.as_bytes()), Target::Object(digest));

        let (long, upper) = (format!("{file}0"), file.to_uppercase());
        let cases: &[(u64, &[u8])] = &[
            (wire::ROOT, b"a"),
            (wire::ROOT, b"abc"),
            (wire::ROOT, b"AB"),
            (wire::ROOT, b"zz"),
            (wire::ROOT, b"\xc3\xa4"),
            (wire::ROOT, b"\xff\xff"),
            (node, b"x"),
            (node, &file.as_bytes()[1..]),
            (node, long.as_bytes()),
            (node, upper.as_bytes()),
            (0, file.as_bytes()),
            (2, file.as_bytes()),
            (FIRST_DIRECTORY + 256, file.as_bytes()),
            (u64::MAX, file.as_bytes()),
        ];
        for (parent, name) in cases {
            assert_eq!(target(*parent, name), Target::Nothing, "{parent} {name:?}");
        }
    }
}
