//! A driver for tests of devices: one queue in a guest's memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Broken, Buffers, Device};
use crate::memory::{self, Ram};

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x1_0000;
/// Descriptor flags: there is a next one; the device writes it.
pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;

pub struct Driver {
    pub memory: Ram,
    pub queue: Queue,
    descriptors: u16,
    available: u16,
    seen: u16,
    data: u64,
}

impl Driver {
    pub fn new(size: u16) -> Self {
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Self { memory: memory::ram(2 << 20).unwrap(), queue, descriptors: 0, available: 0, seen: 0, data: DATA }
    }

    /// A descriptor; which one it is.
    pub fn descriptor(&mut self, address: u64, len: u32, flags: u16, next: u16) -> u16 {
        let index = self.descriptors;
        self.descriptors += 1;
        let bytes = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.memory.write_slice(&bytes, GuestAddress(TABLE + u64::from(index) * 16)).unwrap();
        index
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.queue.size());
        self.memory.write_obj(head.to_le(), GuestAddress(AVAILABLE + 4 + slot * 2)).unwrap();
        self.available += 1;
        self.memory.write_obj(self.available.to_le(), GuestAddress(AVAILABLE + 2)).unwrap();
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
            let index = self.descriptor(address, u32::try_from(len).unwrap(), kind | next, self.descriptors + 1);
            assert_eq!(index, head + u16::try_from(number).unwrap());
            if let Some(bytes) = readable.get(number) {
                self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            }
            addresses.push(address);
        }
        self.offer(head);
        addresses
    }

    /// Has a device work on the queue; whether the driver is to be told.
    pub fn process(&mut self, device: &mut dyn Device, index: usize) -> Result<bool, Broken> {
        Buffers::new(&mut self.queue, &self.memory).serve(device, index)
    }

    /// Up to which request the device wants no notification (`avail_event`).
    pub fn quiet_until(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 4 + 8 * u64::from(self.queue.size()))).unwrap()
    }

    /// What came back since: heads and lengths.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let end: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let word = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let found = (self.seen..end).map(|number| {
            let at = USED + 4 + u64::from(number % self.queue.size()) * 8;
            (word(at), word(at + 4))
        });
        let found = found.collect();
        self.seen = end;
        found
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
