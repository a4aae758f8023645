//! The configuration space of a function (PCI 3.0, section 6.1): what it says, and which bits of it can be written.

/// Bytes of it that are kept. Behind them are the extended capabilities, of which there are none: zeros.
const LEN: usize = 256;
/// Where the list of capabilities begins.
const CAPABILITIES: usize = 0x34;
/// `Status`: there is such a list.
const HAS_CAPABILITIES: u8 = 1 << 4;
/// The one BAR.
const BAR: usize = 0x10;

/// Configuration space of type 0.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    /// Where the next capability goes.
    end: usize,
    /// Where the pointer to it is.
    link: usize,
}

impl Header {
    /// `class`: class, subclass and interface, 24 bits.
    pub fn new(vendor: u16, device: u16, class: u32, subsystem: u16) -> Self {
        let mut this = Self { bytes: [0; LEN], writable: [0; LEN], end: 0x40, link: CAPABILITIES };
        this.put(0x00, &vendor.to_le_bytes());
        this.put(0x02, &device.to_le_bytes());
        this.put(0x08, &(class << 8 | 1).to_le_bytes());
        this.put(0x2c, &vendor.to_le_bytes());
        this.put(0x2e, &subsystem.to_le_bytes());
        // Command: memory space, bus master, interrupt disable.
        this.writable[0x04..0x06].copy_from_slice(&(1u16 << 1 | 1 << 2 | 1 << 10).to_le_bytes());
        this
    }

    /// That of QEMU's generic PCI Express host bridge, which no driver asks for.
    pub fn host_bridge() -> Self {
        Self::new(0x1b36, 0x0008, 0x06_0000, 0)
    }

    /// Gives it a BAR of `len` bytes, a power of two, at `address`. It answers there whatever the guest writes to it: nobody but the guest would
    /// be hurt by a device at another place, and nobody has reason to move it.
    pub fn set_bar(&mut self, address: u32, len: u32) {
        assert!(len.is_power_of_two() && len >= 16 && address.is_multiple_of(len), "a BAR of {len} bytes at {address:x}");
        self.put(BAR, &address.to_le_bytes());
        self.writable[BAR..BAR + 4].copy_from_slice(&(!(len - 1)).to_le_bytes());
    }

    /// Adds a capability: its bytes behind `id` and the pointer, and which bits of them can be written. Returns where `body` is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[(usize, u8)]) -> usize {
        let start = self.end;
        let at = start + 2;
        self.end = (at + body.len()).next_multiple_of(4);
        assert!(self.end <= LEN, "there is no room for all capabilities");
        self.bytes[0x06] |= HAS_CAPABILITIES;
        self.bytes[self.link] = u8::try_from(start).expect("it is below 256");
        self.link = start + 1;
        self.bytes[start] = id;
        self.put(at, body);
        for (offset, bits) in writable {
            self.writable[at + offset] = *bits;
        }
        at
    }

    /// Fills `data` from `register` on.
    pub fn read(&self, register: usize, data: &mut [u8]) {
        for (at, byte) in (register..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Takes what can be written.
    pub fn write(&mut self, register: usize, data: &[u8]) {
        for (at, byte) in (register..LEN).zip(data) {
            let bits = self.writable[at];
            self.bytes[at] = self.bytes[at] & !bits | byte & bits;
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(header: &Header, at: usize) -> u32 {
        let mut data = [0; 4];
        header.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_says_how_long_it_is() {
        let mut header = Header::new(1, 2, 3, 4);
        header.set_bar(0xc000_8000, 0x8000);
        assert_eq!(word(&header, BAR), 0xc000_8000);
        header.write(BAR, &[0xff; 4]);
        assert_eq!(word(&header, BAR), 0xffff_8000);
        header.write(BAR, &0xc000_8000u32.to_le_bytes());
        assert_eq!(word(&header, BAR), 0xc000_8000);
        header.write(BAR + 4, &[0xff; 4]);
        assert_eq!(word(&header, BAR + 4), 0);
    }

    #[test]
    fn capabilities_are_a_list_and_only_some_bits_are_the_guests() {
        let mut header = Header::new(1, 2, 3, 4);
        let first = header.add_capability(9, &[1, 2, 3], &[]);
        let second = header.add_capability(0x11, &[0, 0, 7, 7], &[(1, 0xc0)]);
        assert_eq!((first, second), (0x42, 0x4a));
        assert_eq!(word(&header, CAPABILITIES) & 0xff, 0x40);
        assert_eq!(word(&header, 0x40), 0x0201_4809);
        assert_eq!(word(&header, 0x48), 0x0000_0011);
        header.write(0x48, &[0xff; 8]);
        assert_eq!((word(&header, 0x48), word(&header, 0x4c)), (0xc000_0011, 0x0000_0707));
        // Identity and status stay; of the command three bits do not.
        header.write(0, &[0xff; 8]);
        assert_eq!((word(&header, 0), word(&header, 4)), (0x0002_0001, 0x0010_0406));
        header.write(LEN - 2, &[1; 8]);
        header.write(usize::MAX - 1, &[1; 4]);
    }
}
