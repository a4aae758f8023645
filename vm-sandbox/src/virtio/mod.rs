//! virtio 1.2: the transport over PCI, and devices.

pub mod block;
pub mod console;
pub mod pmem;
pub mod rng;
mod transport;
pub mod vsock;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT as _};

pub use transport::{BAR_LEN, Transport};

use crate::memory::Ram;

/// A device, behind any transport.
pub trait Device: Send {
    /// Its number (virtio 1.2, chapter 5).
    fn kind(&self) -> u16;
    /// What it can do beyond what the transport offers for it.
    fn features(&self) -> u64;
    /// The longest size of each of its queues, powers of two.
    fn queues(&self) -> &'static [u16];
    /// Its configuration, which the driver reads.
    fn config(&self) -> &[u8];
    /// Works on what a driver has put into its queues, and on what the host has for it.
    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken>;
    /// A descriptor of its own that is readable when the host has something for it.
    fn host_events(&self) -> Option<RawFd> {
        None
    }
    /// The driver begins anew.
    fn reset(&mut self) {}
}

/// Why a device is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The driver has put something into this queue.
    Queue(usize),
    /// The host has something.
    Host,
}

/// A driver does what no driver does: the device needs to be reset.
#[derive(Debug)]
pub struct Broken(pub String);

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What a driver has put into a queue.
#[derive(Debug)]
pub struct Buffers<'a> {
    queue: &'a mut Queue,
    memory: &'a Ram,
    has_used: bool,
}

/// One request: buffers that the device reads, then buffers that it writes.
pub type Chain<'a> = DescriptorChain<&'a Ram>;

impl<'a> Buffers<'a> {
    /// Those of a queue.
    pub fn new(queue: &'a mut Queue, memory: &'a Ram) -> Self {
        Self { queue, memory, has_used: false }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &'a Ram {
        self.memory
    }

    /// The next request.
    pub fn take(&mut self) -> Result<Option<Chain<'a>>, Broken> {
        Ok(self.queue.iter(self.memory)?.next())
    }

    /// Gives a request back, with so many bytes written into it.
    pub fn give_back(&mut self, head: u16, written: usize) -> Result<(), Broken> {
        let written = u32::try_from(written).map_err(|_| Broken(format!("{written} bytes were written into a request")))?;
        self.queue.add_used(self.memory, head, written)?;
        self.has_used = true;
        Ok(())
    }

    /// Gives each request to `work`, which says how many bytes it has written into it, and back to the driver.
    pub fn each(&mut self, mut work: impl FnMut(Chain<'a>, &'a Ram) -> Result<usize, Broken>) -> Result<(), Broken> {
        while let Some(chain) = self.take()? {
            let head = chain.head_index();
            let written = work(chain, self.memory)?;
            self.give_back(head, written)?;
        }
        Ok(())
    }

    /// Makes the request that was taken last the next one again.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Whether there are requests.
    pub fn has_more(&self) -> Result<bool, Broken> {
        Ok(self.queue.avail_idx(self.memory, Ordering::Acquire)?.0 != self.queue.next_avail())
    }

    /// With VIRTIO_F_EVENT_IDX a driver notifies only when it passes the place that this says. Whether something came just before.
    fn listen(&mut self) -> Result<bool, Broken> {
        Ok(self.queue.enable_notification(self.memory)?)
    }

    /// Whether the driver wants to be told of what was given back.
    fn is_to_be_told(&mut self) -> Result<bool, Broken> {
        Ok(self.has_used && self.queue.needs_notification(self.memory)?)
    }
}

/// All queues of a device.
#[derive(Debug)]
pub struct Queues<'a> {
    queues: Vec<Option<Buffers<'a>>>,
    woken: Woken,
}

impl<'a> Queues<'a> {
    /// Those that a driver has set up.
    pub fn new(queues: &'a mut [Queue], memory: &'a Ram, woken: Woken) -> Self {
        let buffers = |queue: &'a mut Queue| queue.ready().then(|| Buffers::new(queue, memory));
        Self { queues: queues.iter_mut().map(buffers).collect(), woken }
    }

    /// One of them.
    pub fn at(&mut self, index: usize) -> Option<&mut Buffers<'a>> {
        self.queues.get_mut(index).and_then(Option::as_mut)
    }

    /// Why the device was woken.
    pub fn why(&self) -> Woken {
        self.woken
    }

    /// The queue that was notified, and its number.
    pub fn woken(&mut self) -> Option<(usize, &mut Buffers<'a>)> {
        match self.woken {
            Woken::Queue(index) => self.at(index).map(|queue| (index, queue)),
            Woken::Host => None,
        }
    }

    /// Has `device` work on what there is, until its driver has to notify it again. The queues whose driver wants to be told.
    fn serve(mut self, device: &mut dyn Device) -> Result<Vec<usize>, Broken> {
        loop {
            let before = self.places();
            device.process(&mut self)?;
            let mut came = None;
            for (index, queue) in self.queues.iter_mut().enumerate() {
                if let Some(queue) = queue
                    && queue.listen()?
                    // Some devices leave requests where they are.
                    && before[index] != queue.queue.next_avail()
                {
                    came = Some(index);
                }
            }
            match came {
                Some(index) => self.woken = Woken::Queue(index),
                None => break,
            }
        }
        let mut told = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && queue.is_to_be_told()?
            {
                told.push(index);
            }
        }
        Ok(told)
    }

    fn places(&self) -> Vec<u16> {
        self.queues.iter().map(|queue| queue.as_ref().map_or(0, |queue| queue.queue.next_avail())).collect()
    }
}

#[cfg(test)]
pub(crate) mod testing;
