//! Interrupts of a function by MSI-X (PCI 3.0, section 6.8.2).

use std::fmt;

/// Bytes of an entry: address, data, control.
const ENTRY: usize = 16;
/// Entry's control: nothing is sent.
const MASKED: u32 = 1;
/// Function's control, upper byte: all entries are masked; there are interrupts.
const ALL_MASKED: u8 = 1 << 6;
const ENABLED: u8 = 1 << 7;

/// Where messages go.
pub trait Messages: Send + Sync + fmt::Debug {
    /// Sends one: `data` to the address.
    fn send(&self, address: u64, data: u32);
}

/// The table of a function, and what could not be sent yet.
#[derive(Debug)]
pub struct Msix {
    /// As the guest sees it.
    table: Vec<[u8; ENTRY]>,
    pending: u64,
    control: u8,
    messages: std::sync::Arc<dyn Messages>,
}

impl Msix {
    /// With so many vectors, at most 64, all masked.
    pub fn new(vectors: usize, messages: std::sync::Arc<dyn Messages>) -> Self {
        assert!((1..=64).contains(&vectors), "the bits of what waits fit into a word");
        let mut entry = [0; ENTRY];
        entry[12..].copy_from_slice(&MASKED.to_le_bytes());
        Self { table: vec![entry; vectors], pending: 0, control: 0, messages }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.table.len()
    }

    /// The capability's body: the table at `table` and the bits of what waits at `waiting`, both in BAR 0.
    pub fn capability(&self, table: u32, waiting: u32) -> Vec<u8> {
        let last = u16::try_from(self.table.len() - 1).expect("few vectors");
        let mut body = last.to_le_bytes().to_vec();
        body.extend(table.to_le_bytes());
        body.extend(waiting.to_le_bytes());
        body
    }

    /// Bits of the body that the guest can write.
    pub const WRITABLE: [(usize, u8); 1] = [(1, ALL_MASKED | ENABLED)];

    /// The guest has written the upper byte of the control.
    pub fn set_control(&mut self, control: u8) {
        self.control = control & (ALL_MASKED | ENABLED);
        self.flush();
    }

    /// Fills `data` from the table. Entries are read by 4 or 8 bytes that do not cross one; anything else is nothing.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        match self.place(offset, data.len()) {
            Some((entry, at)) => data.copy_from_slice(&self.table[entry][at..at + data.len()]),
            None => data.fill(0xff),
        }
    }

    /// Changes the table.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if let Some((entry, at)) = self.place(offset, data.len()) {
            self.table[entry][at..at + data.len()].copy_from_slice(data);
            self.flush();
        }
    }

    /// The bits of what waits.
    pub fn read_waiting(&self, offset: u64, data: &mut [u8]) {
        let bits = self.pending.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| bits.get(at).copied()).unwrap_or(0);
        }
    }

    /// Sends the message of a vector, now or when it is not masked any more. A vector that there is not is "none" (virtio 1.2,
    /// section 4.1.5.1.2).
    pub fn signal(&mut self, vector: u16) {
        if usize::from(vector) < self.table.len() && self.control & ENABLED != 0 {
            self.pending |= 1 << vector;
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pending == 0 || self.control & (ENABLED | ALL_MASKED) != ENABLED {
            return;
        }
        let waiting = self.pending;
        for (vector, entry) in self.table.iter().enumerate().filter(|(vector, _)| waiting & 1 << vector != 0) {
            let (address, rest) = entry.split_at(8);
            let (data, control) = rest.split_at(4);
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            if word(control) & MASKED == 0 {
                self.pending &= !(1 << vector);
                self.messages.send(u64::from_le_bytes(address.try_into().expect("eight bytes")), word(data));
            }
        }
    }

    fn place(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let (entry, at) = (offset / ENTRY, offset % ENTRY);
        let fits = matches!(len, 4 | 8) && at.is_multiple_of(len) && entry < self.table.len();
        fits.then_some((entry, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Debug, Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);

    impl Messages for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    #[test]
    fn what_is_masked_waits() {
        let sent = Arc::new(Sent::default());
        let mut msix = Msix::new(3, sent.clone());
        let take = || std::mem::take(&mut *sent.0.lock().unwrap());
        msix.signal(1);
        assert!(take().is_empty(), "interrupts are not enabled");
        msix.set_control(0xff);
        msix.signal(1);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x41u32.to_le_bytes());
        msix.write_table(28, &0u32.to_le_bytes());
        let mut bits = [0; 8];
        msix.read_waiting(0, &mut bits);
        assert!(take().is_empty() && bits[0] == 2, "all are masked");
        msix.set_control(ENABLED);
        assert_eq!(take(), [(0xfee0_1000, 0x41)]);
        msix.signal(1);
        assert_eq!(take(), [(0xfee0_1000, 0x41)]);
        msix.signal(2);
        assert!(take().is_empty(), "this one is masked");
        msix.write_table(44, &0u32.to_le_bytes());
        assert_eq!(take(), [(0, 0)]);
        msix.signal(3);
        msix.signal(0xffff);
        assert!(take().is_empty(), "there are no such vectors");
    }

    #[test]
    fn odd_accesses_are_nothing() {
        let mut msix = Msix::new(2, Arc::new(Sent::default()));
        let mut data = [0; 8];
        for (offset, len) in [(0, 1), (0, 2), (2, 4), (12, 8), (32, 4), (u64::MAX, 4)] {
            msix.write_table(offset, &data[..len]);
            msix.read_table(offset, &mut data[..len]);
            assert_eq!(data[..len], vec![0xff; len], "{offset} {len}");
            data.fill(0);
        }
        msix.read_table(8, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0]);
        msix.read_waiting(6, &mut data);
    }
}
