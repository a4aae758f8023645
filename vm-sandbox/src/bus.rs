//! From an address to a device.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What answers reads and writes of the guest. Called by vCPUs, several at once.
pub trait Responder: Send + Sync {
    /// Fills `data` with what is at `offset` of it.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest has written to `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Devices by their addresses. Where none is, reads are all ones and writes have no effect, as on hardware.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<dyn Responder>)>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|(start, (end, _))| start..end)).finish()
    }
}

impl Bus {
    /// Puts a device at `range`.
    ///
    /// # Panics
    /// Where another is.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<dyn Responder>) {
        let before = self.ranges.range(..range.end).next_back();
        assert!(before.is_none_or(|(_, (end, _))| *end <= range.start), "two devices at {range:x?}");
        self.ranges.insert(range.start, (range.end, device));
    }

    /// The guest reads.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(&dyn Responder, u64)> {
        let (start, (end, device)) = self.ranges.range(..=address).next_back()?;
        let last = address.checked_add(len as u64)?;
        (last <= *end).then_some((&**device, address - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Responder for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn what_is_nowhere_reads_as_ones_and_what_crosses_an_end_is_nowhere() {
        let (mut bus, echo) = (Bus::default(), Arc::new(Echo::default()));
        bus.insert(0x1000..0x1010, echo.clone());
        bus.insert(0x1010..0x1020, echo.clone());
        let read = |address, len| {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x1004, 2), [4, 4]);
        assert_eq!(read(0x1011, 1), [1]);
        for (address, len) in [(0xfff, 1), (0x1020, 1), (0x100f, 2), (u64::MAX, 1), (u64::MAX - 1, 8)] {
            assert_eq!(read(address, len), vec![0xff; len], "{address:x}");
            bus.write(address, &vec![1; len]);
        }
        bus.write(0x1018, &[7]);
        assert_eq!(*echo.0.lock().unwrap(), [(8, vec![7])]);
    }
}
