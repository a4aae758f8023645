//! Persistent memory (virtio 1.2, section 5.19): a file that the guest sees in its memory. It is read-only here, so there is nothing to flush.

use super::{Broken, Device, Queues};

/// `VIRTIO_PMEM_RESP_TYPE_OK`.
const DONE: u32 = 0;

/// A pmem device.
#[derive(Debug)]
pub struct Pmem {
    config: [u8; 16],
}

impl Pmem {
    /// For what the guest has at `start`, of `len` bytes.
    pub fn new(start: u64, len: u64) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&len.to_le_bytes());
        Self { config }
    }
}

impl Device for Pmem {
    fn kind(&self) -> u16 {
        27
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some((_, queue)) = queues.woken() else { return Ok(()) };
        queue.each(|chain, memory| {
            chain.writer(memory)?.write_obj(DONE)?;
            Ok(size_of_val(&DONE))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Driver;
    use super::*;

    #[test]
    fn a_flush_is_done_and_one_without_room_for_the_answer_is_no_request() {
        let (mut driver, mut pmem) = (Driver::new(16), Pmem::new(1 << 32, 2 << 20));
        assert_eq!(pmem.config()[8..], (2u64 << 20).to_le_bytes());
        driver.buffers(&[&[0; 4]], &[4]);
        driver.process(&mut pmem, 0).unwrap();
        assert_eq!(driver.used(), [(0, 4)]);
        driver.buffers(&[&[0; 4]], &[]);
        driver.process(&mut pmem, 0).unwrap_err();
    }
}
