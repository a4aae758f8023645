//! Events, to containerd's event service: in the order in which they were published, each until it arrived.
//!
//! Publishing only puts an event at the end of a queue, so it may be done under a lock, which is what gives events of one container their
//! order. One thread sends; while containerd is away, the queue waits for it, up to [`MOST`] events. What containerd refuses again and
//! again is dropped, for the sake of those behind it.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::types::empty::Empty;

use crate::rpc::client::{CallError, Client};
use crate::{STACK, log};

/// So many events wait at most; then the oldest go. A pod makes some ten in its life.
const MOST: usize = 4096;
/// How long containerd may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one is offered that containerd refuses.
const ATTEMPTS: u32 = 5;
/// How long to wait before trying again, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// The queue.
#[derive(Debug)]
pub struct Events {
    namespace: String,
    socket: PathBuf,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Envelope>,
    sending: bool,
    closed: bool,
}

/// A point in time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    timestamp.nanos = since.subsec_nanos() as i32;
    timestamp
}

impl Events {
    /// Starts the thread that sends events of `namespace` to the service at `socket`.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(namespace: &str, socket: PathBuf) -> io::Result<Arc<Self>> {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let events = Arc::new(Self { namespace: namespace.to_owned(), socket, queue, changed });
        let own = Arc::clone(&events);
        std::thread::Builder::new().stack_size(STACK).spawn(move || own.send_all())?;
        Ok(events)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes `event`, one of containerd's task events.
    pub fn publish<M: Message>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return log::error(format_args!("encoding an event for {topic}: {error}")),
        };
        let any = Any { type_url: format!("containerd.events.{}", M::NAME), value, ..Any::default() };
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(timestamp(SystemTime::now()));
        envelope.namespace.clone_from(&self.namespace);
        topic.clone_into(&mut envelope.topic);
        envelope.event = MessageField::some(any);
        let mut queue = self.queue();
        if queue.waiting.len() >= MOST
            && let Some(oldest) = queue.waiting.pop_front()
        {
            log::error(format_args!("an event for {} is dropped: {MOST} wait for containerd", oldest.topic));
        }
        queue.waiting.push_back(envelope);
        self.changed.notify_all();
    }

    /// Waits until all events were sent, for so long. Whether they were.
    pub fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut queue = self.queue();
        while !queue.waiting.is_empty() || queue.sending {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends the thread, whatever waits.
    pub fn close(&self) {
        self.queue().closed = true;
        self.changed.notify_all();
    }

    fn send_all(&self) {
        let mut client = None;
        while let Some(envelope) = self.next() {
            self.send(&mut client, envelope);
            self.queue().sending = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Envelope> {
        let mut queue = self.queue();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(envelope) = queue.waiting.pop_front() {
                queue.sending = true;
                return Some(envelope);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, client: &mut Option<Client>, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let mut request = ForwardRequest::new();
        request.envelope = MessageField::some(envelope);
        let (mut pause, mut refused) = (PAUSE.0, 0);
        loop {
            match self.offer(client, &request) {
                Ok(()) => return,
                Err(CallError::Refused(failure)) => {
                    refused += 1;
                    if refused == ATTEMPTS {
                        return log::error(format_args!("an event for {topic} is dropped: {}", failure.message));
                    }
                }
                // containerd is away, and comes back.
                Err(CallError::Broken(_)) => *client = None,
            }
            if self.is_closed_after(pause) {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn offer(&self, client: &mut Option<Client>, request: &ForwardRequest) -> Result<(), CallError> {
        let connected = match client.take() {
            Some(connected) => connected,
            None => Client::connect(&self.socket, PATIENCE).map_err(CallError::Broken)?,
        };
        client.insert(connected).call::<Empty>(SERVICE, "Forward", request).map(drop)
    }

    fn is_closed_after(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut queue = self.queue();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if queue.closed || left.is_zero() {
                return queue.closed;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
