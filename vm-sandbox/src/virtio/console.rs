//! A console (virtio 1.2, section 5.3): what the guest prints goes to a file; it is never answered.

use std::fmt;
use std::io::{Read as _, Write};

use super::{Broken, Device, Queues};

/// The queue of what the guest prints. The other is for what it would be answered.
const TRANSMIT: usize = 1;
/// Bytes of one request at most: what is longer comes in pieces.
const PIECE: usize = 64 << 10;

/// A console.
pub struct Console {
    out: Box<dyn Write + Send>,
    /// Bytes that may still be written.
    left: u64,
}

/// Bytes of a console at most: a guest cannot fill the host's disk with them.
pub const MOST: u64 = 16 << 20;

impl Console {
    /// What is printed goes to `out`, up to [`MOST`] bytes.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, left: MOST }
    }

    fn print(&mut self, bytes: &[u8]) {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= len as u64;
        if let Err(error) = self.out.write_all(&bytes[..len]).and_then(|()| self.out.flush()) {
            // A guest is not stopped by a full disk of the host.
            tracing::warn!("writing a guest's console: {error}");
            self.left = 0;
        }
        if self.left == 0 && len > 0 {
            tracing::warn!("the rest of a guest's console is left out");
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a console with {} bytes left", self.left)
    }
}

impl Device for Console {
    fn kind(&self) -> u16 {
        3
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> &[u8] {
        &[0; 12]
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some(queue) = queues.at(TRANSMIT) else { return Ok(()) };
        queue.each(|chain, memory| {
            let mut reader = chain.reader(memory)?;
            let mut bytes = vec![0; reader.available_bytes().min(PIECE)];
            while reader.available_bytes() > 0 {
                let len = bytes.len().min(reader.available_bytes());
                reader.read_exact(&mut bytes[..len])?;
                self.print(&bytes[..len]);
            }
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, Shared};
    use super::*;

    #[test]
    fn what_is_printed_is_kept_up_to_a_limit() {
        let (mut driver, out) = (Driver::new(16), Shared::default());
        let mut console = Console { out: Box::new(out.clone()), left: 8 };
        for text in [&b"hel"[..], b"lo, ", b"world"] {
            driver.buffers(&[text], &[]);
        }
        driver.process(&mut console, TRANSMIT).unwrap();
        assert_eq!(out.take(), b"hello, w");
        assert_eq!(driver.used().len(), 3);
        // Nothing is ever answered.
        driver.buffers(&[], &[16]);
        assert!(!driver.process(&mut console, 0).unwrap());
    }
}
