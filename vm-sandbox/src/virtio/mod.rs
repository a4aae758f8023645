//! virtio 1.2: the transport over PCI, and devices.

pub mod block;
pub mod console;
pub mod pmem;
pub mod rng;
mod transport;

use std::io;

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
    /// Works on what a driver has put into a queue, until it is empty.
    fn process(&mut self, index: usize, queue: &mut Buffers<'_>) -> Result<(), Broken>;
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

    /// Has `device` work on what there is, until the driver has to notify it again. Whether the driver wants to be told.
    fn serve(mut self, device: &mut dyn Device, index: usize) -> Result<bool, Broken> {
        loop {
            let before = self.queue.next_avail();
            device.process(index, &mut self)?;
            // With VIRTIO_F_EVENT_IDX a driver notifies only when it passes the place that this says; what came just before is seen here.
            // Some devices leave requests where they are.
            if !self.queue.enable_notification(self.memory)? || self.queue.next_avail() == before {
                break;
            }
        }
        Ok(self.has_used && self.queue.needs_notification(self.memory)?)
    }
}

#[cfg(test)]
pub(crate) mod testing;
