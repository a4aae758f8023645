//! PCI: one bus, found through its memory-mapped configuration space (PCI Express 5.0, section 7.2.2). Every device has one function, one
//! BAR, and interrupts by MSI-X alone.

mod header;
mod msix;

use std::sync::Arc;

pub use header::Header;
pub use msix::{Messages, Msix};

use crate::bus::Responder;

/// Bytes of a function's configuration space.
const SPACE: u64 = 4096;
/// Functions of a device.
const FUNCTIONS: u64 = 8;
/// Devices of a bus.
pub const DEVICES: usize = 32;

/// A function of a device, as its configuration space shows it.
pub trait Function: Send + Sync {
    /// Fills `data` with what is at `register`, a byte's number.
    fn read_config(&self, register: usize, data: &mut [u8]);
    /// Takes what was written there.
    fn write_config(&self, register: usize, data: &[u8]);
}

/// The bus.
pub struct Bus {
    devices: Vec<Arc<dyn Function>>,
}

impl Bus {
    /// A bus with a host bridge as device 0, and these behind it.
    ///
    /// # Panics
    /// With more devices than a bus takes.
    pub fn new(devices: Vec<Arc<dyn Function>>) -> Self {
        let bridge: Arc<dyn Function> = Arc::new(HostBridge(Header::host_bridge()));
        let devices: Vec<_> = std::iter::once(bridge).chain(devices).collect();
        assert!(devices.len() <= DEVICES, "a bus has {DEVICES} devices");
        Self { devices }
    }

    fn find(&self, offset: u64) -> Option<(&dyn Function, usize)> {
        let (place, register) = (offset / SPACE, offset % SPACE);
        let device = usize::try_from(place / FUNCTIONS).ok().filter(|_| place.is_multiple_of(FUNCTIONS))?;
        Some((&**self.devices.get(device)?, usize::try_from(register).ok()?))
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a PCI bus of {} devices", self.devices.len())
    }
}

impl Responder for Bus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, register)) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.find(offset) {
            function.write_config(register, data);
        }
    }
}

struct HostBridge(Header);

impl Function for HostBridge {
    fn read_config(&self, register: usize, data: &mut [u8]) {
        self.0.read(register, data);
    }

    fn write_config(&self, _: usize, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_answers() {
        let bus = Bus::new(vec![Arc::new(HostBridge(Header::new(0x1234, 0x5678, 0xff_0000, 0)))]);
        let read = |device: u64, function: u64, register: u64| {
            let mut data = [0; 4];
            bus.read(device << 15 | function << 12 | register, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(1, 0, 0), 0x5678_1234);
        assert_eq!(read(0, 0, 8) >> 8, 0x06_0000);
        assert_eq!((read(0, 1, 0), read(2, 0, 0), read(31, 7, 0)), (u32::MAX, u32::MAX, u32::MAX));
        // No extended capability, and nothing behind the end.
        assert_eq!((read(1, 0, 0x100), read(1, 0, 0xffc)), (0, 0));
    }
}
