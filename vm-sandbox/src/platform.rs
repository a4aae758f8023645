//! The little that is no PCI device.

use std::io::Write;
use std::sync::Mutex;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::Responder;
use crate::machine::{End, Ended};

/// What a guest writes to the port for ACPI's sleep control to power off: state 5 (as `\_S5` says) and `SLP_EN` (ACPI 6.5, section 4.8.3.7).
const SLEEP_5: u8 = 5 << 2 | 1 << 5;
/// What it writes to the next port to reset (`RESET_VALUE`).
pub const RESET: u8 = 1;

/// Powering off, and resetting.
#[derive(Debug)]
pub struct Power(pub Ended);

impl Responder for Power {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [SLEEP_5]) => self.0.set(End::PoweredOff),
            (1, [RESET]) => self.0.set(End::Reset),
            _ => {}
        }
    }
}

/// The keyboard controller of old: it is not there, and nobody waits for it; its reset line works.
#[derive(Debug)]
pub struct Keyboard(pub Ended);

impl Responder for Keyboard {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data == [0xfe] {
            self.0.set(End::Reset);
        }
    }
}

/// The clock of old: zeros are a time that Linux passes over at once; ones it waits 4 s for.
#[derive(Debug)]
pub struct Cmos;

impl Responder for Cmos {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

/// No interrupt: what is written here is written by polling.
struct Silent;

impl Trigger for Silent {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A serial line for what a kernel says before it has its console (`earlyprintk=serial`). It takes and never gives.
pub struct EarlyConsole(Mutex<Serial<Silent, NoEvents, Box<dyn Write + Send>>>);

impl EarlyConsole {
    /// What is written goes to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(Serial::new(Silent, out)))
    }
}

impl Responder for EarlyConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [byte]) => *byte = self.0.lock().expect("no holder of this lock panics").read(offset),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = self.0.lock().expect("no holder of this lock panics").write(offset, *byte)
        {
            tracing::debug!("the early console: {error:?}");
        }
    }
}
