//! A driver for tests of devices: one queue in a guest's memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Broken, Device, Queues, Woken};
use crate::memory::{self, Ram};

const RING: u64 = 0x1000;
const DATA: u64 = 0x1_0000;
/// Descriptor flags: there is a next one; the device writes it.
pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;

/// The driver's side of a queue: table, available ring and used ring, a page each.
pub struct Ring {
    base: u64,
    size: u16,
    available: u16,
    seen: u16,
}

impl Ring {
    /// At an address, and the device's side.
    pub fn new(base: u64, size: u16) -> (Self, Queue) {
        let mut queue = Queue::new(size).unwrap();
        let low = |page: u64| Some(u32::try_from(base + page * 0x1000).unwrap());
        queue.set_desc_table_address(low(0), Some(0));
        queue.set_avail_ring_address(low(1), Some(0));
        queue.set_used_ring_address(low(2), Some(0));
        queue.set_ready(true);
        (Self { base, size, available: 0, seen: 0 }, queue)
    }

    pub fn descriptor(&self, memory: &Ram, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        memory.write_slice(&bytes, GuestAddress(self.base + u64::from(index) * 16)).unwrap();
    }

    /// A descriptor that can be used for the request that is offered next.
    pub fn next(&self) -> u16 {
        self.available % self.size
    }

    /// Makes a chain available.
    pub fn offer(&mut self, memory: &Ram, head: u16) {
        let ring = self.base + 0x1000;
        memory.write_obj(head, GuestAddress(ring + 4 + u64::from(self.next()) * 2)).unwrap();
        self.available += 1;
        memory.write_obj(self.available, GuestAddress(ring + 2)).unwrap();
    }

    /// What came back since: heads and lengths.
    pub fn used(&mut self, memory: &Ram) -> Vec<(u32, u32)> {
        let ring = self.base + 0x2000;
        let end: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let word = |at| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let found = (self.seen..end).map(|number| {
            let at = ring + 4 + u64::from(number % self.size) * 8;
            (word(at), word(at + 4))
        });
        let found = found.collect();
        self.seen = end;
        found
    }

    /// Up to which request the device wants no notification (`avail_event`).
    pub fn quiet_until(&self, memory: &Ram) -> u16 {
        memory.read_obj(GuestAddress(self.base + 0x2000 + 4 + 8 * u64::from(self.size))).unwrap()
    }
}

/// A driver with one queue, for devices that answer requests.
pub struct Driver {
    pub memory: Ram,
    pub queue: Queue,
    ring: Ring,
    descriptors: u16,
    data: u64,
}

impl Driver {
    pub fn new(size: u16) -> Self {
        let (ring, queue) = Ring::new(RING, size);
        Self { memory: memory::ram(2 << 20).unwrap(), queue, ring, descriptors: 0, data: DATA }
    }

    /// A descriptor; which one it is.
    pub fn descriptor(&mut self, address: u64, len: u32, flags: u16, next: u16) -> u16 {
        let index = self.descriptors;
        self.descriptors += 1;
        self.ring.descriptor(&self.memory, index, address, len, flags, next);
        index
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        self.ring.offer(&self.memory, head);
    }

    /// A request of these bytes and of room for so many; where each buffer is.
    pub fn buffers(&mut self, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
        let count = readable.len() + writable.len();
        let mut addresses = Vec::new();
        let head = self.descriptors;
        let lens = readable.iter().map(|bytes| (bytes.len(), 0)).chain(writable.iter().map(|len| (*len, WRITABLE)));
        for (number, (len, kind)) in lens.enumerate() {
            let address = self.data;
            self.data += len as u64;
            let next = if number + 1 < count { NEXT } else { 0 };
            self.descriptor(address, u32::try_from(len).unwrap(), kind | next, self.descriptors + 1);
            if let Some(bytes) = readable.get(number) {
                self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            }
            addresses.push(address);
        }
        self.offer(head);
        addresses
    }

    /// Has a device work on the queue, as its queue `index`; whether the driver is to be told.
    pub fn process(&mut self, device: &mut dyn Device, index: usize) -> Result<bool, Broken> {
        let mut queues: Vec<Queue> = (0..index).map(|_| Queue::new(16).unwrap()).collect();
        queues.push(std::mem::replace(&mut self.queue, Queue::new(16).unwrap()));
        let told = Queues::new(&mut queues, &self.memory, Woken::Queue(index)).serve(device);
        self.queue = queues.pop().unwrap();
        Ok(!told?.is_empty())
    }

    /// As [`Ring::quiet_until`].
    pub fn quiet_until(&self) -> u16 {
        self.ring.quiet_until(&self.memory)
    }

    /// As [`Ring::used`].
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        self.ring.used(&self.memory)
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// What was written, for whoever looks.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
