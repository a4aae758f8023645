//! Entropy (virtio 1.2, section 5.4).

use std::io::Write as _;

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Broken, Device, Queues};

/// Bytes for one request at most: a driver that asks for more gets less.
const MOST: usize = 64 << 10;

/// The host's entropy.
#[derive(Debug)]
pub struct Rng;

impl Device for Rng {
    fn kind(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some((_, queue)) = queues.woken() else { return Ok(()) };
        queue.each(|chain, memory| {
            let mut writer = chain.writer(memory)?;
            let mut bytes = vec![0; writer.available_bytes().min(MOST)];
            let mut len = 0;
            while len < bytes.len() {
                len += getrandom(&mut bytes[len..], GetRandomFlags::empty()).map_err(std::io::Error::from)?;
            }
            writer.write_all(&bytes)?;
            Ok(bytes.len())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Driver;
    use super::*;

    #[test]
    fn what_is_asked_for_comes_up_to_a_limit() {
        let mut driver = Driver::new(16);
        let address = driver.buffers(&[], &[32, MOST + 4096]);
        let told = driver.process(&mut Rng, 0).unwrap();
        assert!(told);
        assert_eq!(driver.used(), [(0, u32::try_from(MOST).unwrap())]);
        assert!(driver.read(address[0], 32).iter().any(|byte| *byte != 0));
    }
}
