//! virtio over PCI (virtio 1.2, section 4.1): one function a device, whose BAR has, each in a page of its own,
//!
//! ```text
//! 0x0000  common configuration: features, status, queues
//! 0x1000  interrupt status: always 0, interrupts are MSI-X
//! 0x2000  the device's configuration
//! 0x3000  notifications: 4 bytes a queue; KVM turns a write into an event without asking us
//! 0x4000  MSI-X table
//! 0x5000  MSI-X bits of what waits
//! ```
//!
//! A driver that does things in another order than section 3.1.1 has them is not followed: queues cannot be changed while the device works
//! on them, features not after they were agreed on.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Broken, Device, Queues, Woken};
use crate::bus::Responder;
use crate::error::{Error, Result};
use crate::memory::Ram;
use crate::pci::{Function, Header, Messages, Msix};

/// Bytes of the BAR.
pub const BAR_LEN: u32 = 0x8000;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const INTERRUPT_STATUS: u64 = 1;
const DEVICE: u64 = 2;
const NOTIFY: u64 = 3;
const TABLE: u64 = 4;
const WAITING: u64 = 5;
/// Bytes of the common configuration.
const COMMON_LEN: usize = 60;
/// Bytes between the places where queues are notified.
const NOTIFY_STEP: u32 = 4;

/// Red Hat's, and what a kind of device begins at.
const VENDOR: u16 = 0x1af4;
const FIRST_ID: u16 = 0x1040;
/// Class "other".
const CLASS: u32 = 0xff_0000;
/// Capability: vendor specific; MSI-X.
const VENDOR_CAPABILITY: u8 = 9;
const MSIX_CAPABILITY: u8 = 0x11;
/// `VIRTIO_F_VERSION_1`: without it a driver would speak as before 1.0.
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
/// No interrupt (`VIRTIO_MSI_NO_VECTOR`).
const NO_VECTOR: u16 = 0xffff;

/// `device_status`
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

/// A device as a PCI function.
pub struct Transport {
    name: String,
    state: Mutex<State>,
    memory: Ram,
    /// Written when a queue was notified, one each.
    events: Vec<EventFd>,
    /// Where the capability of MSI-X has the upper byte of its control.
    msix_control: usize,
    config: Vec<u8>,
}

struct State {
    header: Header,
    msix: Msix,
    device: Box<dyn Device>,
    queues: Vec<Queue>,
    vectors: Vec<u16>,
    config_vector: u16,
    status: u8,
    offered: u64,
    accepted: u64,
    /// Which half of the features is seen, offered and accepted.
    offered_half: u32,
    accepted_half: u32,
    selected: u16,
}

impl Transport {
    /// A device whose BAR is at `bar`. `name` is for messages.
    pub fn new(name: String, device: Box<dyn Device>, memory: Ram, bar: u32, messages: Arc<dyn Messages>) -> Result<Self> {
        let tried = || format!("making the device {name}");
        let kind = device.kind();
        let mut header = Header::new(VENDOR, FIRST_ID + kind, CLASS, FIRST_ID + kind);
        header.set_bar(bar, BAR_LEN);
        for (kind, page, len, more) in [
            (1, COMMON, COMMON_LEN as u32, None),
            (3, INTERRUPT_STATUS, 4, None),
            (4, DEVICE, PAGE as u32, None),
            (2, NOTIFY, PAGE as u32, Some(NOTIFY_STEP)),
        ] {
            header.add_capability(VENDOR_CAPABILITY, &capability(kind, page, len, more), &[]);
        }
        let sizes = device.queues();
        // One for the configuration, one for each queue.
        let msix = Msix::new(sizes.len() + 1, messages);
        let at = |page: u64| u32::try_from(page * PAGE).expect("it is in the BAR");
        let body = header.add_capability(MSIX_CAPABILITY, &msix.capability(at(TABLE), at(WAITING)), &Msix::WRITABLE);
        let queues =
            sizes.iter().map(|size| Queue::new(*size)).collect::<Result<Vec<_>, _>>().map_err(|e| Error::new(tried(), e))?;
        let events = sizes.iter().map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC));
        let events = events.collect::<Result<Vec<_>, _>>().map_err(|e| Error::new(tried(), e))?;
        let state = State {
            header,
            msix,
            vectors: vec![NO_VECTOR; queues.len()],
            queues,
            config_vector: NO_VECTOR,
            status: 0,
            offered: device.features() | VERSION_1 | EVENT_IDX,
            accepted: 0,
            offered_half: 0,
            accepted_half: 0,
            selected: 0,
            device,
        };
        let config = state.device.config().to_vec();
        Ok(Self { name, state: Mutex::new(state), memory, events, msix_control: body + 1, config })
    }

    /// For each queue: what is written when the guest notifies it, and the offset in the BAR at which it does.
    pub fn events(&self) -> impl Iterator<Item = (&EventFd, u64)> {
        self.events.iter().zip(0u64..).map(|(event, queue)| (event, NOTIFY * PAGE + queue * u64::from(NOTIFY_STEP)))
    }

    /// Readable when the host has something for the device.
    pub fn host_events(&self) -> Option<RawFd> {
        self.lock().device.host_events()
    }

    /// Has the device work.
    pub fn serve(&self, woken: Woken) {
        let state = &mut *self.lock();
        if state.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return;
        }
        match Queues::new(&mut state.queues, &self.memory, woken).serve(&mut *state.device) {
            Ok(told) => told.into_iter().for_each(|index| state.msix.signal(state.vectors[index])),
            Err(Broken(why)) => {
                tracing::warn!("{}: {woken:?} makes no sense, the device stops until it is reset: {why}", self.name);
                state.status |= NEEDS_RESET;
                state.msix.signal(state.config_vector);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "virtio device {}", self.name)
    }
}

/// `struct virtio_pci_cap` behind its first two bytes: what is in which page of BAR 0.
fn capability(kind: u8, page: u64, len: u32, more: Option<u32>) -> Vec<u8> {
    let whole = if more.is_some() { 20 } else { 16 };
    let mut body = vec![whole, kind, 0, 0, 0, 0];
    body.extend(u32::try_from(page * PAGE).expect("it is in the BAR").to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more.map(u32::to_le_bytes).iter().flatten());
    body
}

impl Function for Transport {
    fn read_config(&self, register: usize, data: &mut [u8]) {
        self.lock().header.read(register, data);
    }

    fn write_config(&self, register: usize, data: &[u8]) {
        let mut state = self.lock();
        state.header.write(register, data);
        if (register..register.saturating_add(data.len())).contains(&self.msix_control) {
            let mut control = [0];
            state.header.read(self.msix_control, &mut control);
            state.msix.set_control(control[0]);
        }
    }
}

impl Responder for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let at = offset % PAGE;
        match offset / PAGE {
            COMMON => copy(&self.lock().common(), at, data),
            DEVICE => copy(&self.config, at, data),
            TABLE => self.lock().msix.read_table(at, data),
            WAITING => self.lock().msix.read_waiting(at, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = offset % PAGE;
        match offset / PAGE {
            COMMON => self.lock().write_common(at, data, &self.memory),
            TABLE => self.lock().msix.write_table(at, data),
            // KVM has taken those that are where they belong.
            NOTIFY => {
                let queue = usize::try_from(at / u64::from(NOTIFY_STEP)).expect("it is in a page");
                if let Some(Err(error)) = self.events.get(queue).map(|event| event.write(1)) {
                    tracing::debug!("{}: notifying queue {queue}: {error}", self.name);
                }
            }
            _ => {}
        }
    }
}

/// Bytes from `at` on; zeros behind the end.
fn copy(from: &[u8], at: u64, to: &mut [u8]) {
    for (at, byte) in (at..).zip(to) {
        *byte = usize::try_from(at).ok().and_then(|at| from.get(at).copied()).unwrap_or(0);
    }
}

impl State {
    /// `struct virtio_pci_common_cfg`.
    fn common(&self) -> [u8; COMMON_LEN] {
        let half = |features: u64, half: u32| match half {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let queue = self.queues.get(usize::from(self.selected));
        let vector = self.vectors.get(usize::from(self.selected)).copied().unwrap_or(NO_VECTOR);
        let mut out = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.offered_half.to_le_bytes());
        put(4, &half(self.offered, self.offered_half).to_le_bytes());
        put(8, &self.accepted_half.to_le_bytes());
        put(12, &half(self.accepted, self.accepted_half).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &u16::try_from(self.queues.len()).expect("few queues").to_le_bytes());
        put(20, &[self.status, 0]);
        put(22, &self.selected.to_le_bytes());
        // A size of 0 says that there is no such queue.
        put(24, &queue.map_or(0, QueueT::size).to_le_bytes());
        put(26, &vector.to_le_bytes());
        put(28, &u16::from(queue.is_some_and(QueueT::ready)).to_le_bytes());
        put(30, &self.selected.to_le_bytes());
        put(32, &queue.map_or(0, QueueT::desc_table).to_le_bytes());
        put(40, &queue.map_or(0, QueueT::avail_ring).to_le_bytes());
        put(48, &queue.map_or(0, QueueT::used_ring).to_le_bytes());
        out
    }

    fn write_common(&mut self, at: u64, data: &[u8], memory: &Ram) {
        match *data {
            [byte] if at == 20 => self.set_status(byte),
            [a, b] => self.write_half(at, u16::from_le_bytes([a, b]), memory),
            [a, b, c, d] => self.write_word(at, u32::from_le_bytes([a, b, c, d])),
            // Addresses of queues may be written at once.
            [a, b, c, d, e, f, g, h] if matches!(at, 32 | 40 | 48) => {
                self.write_word(at, u32::from_le_bytes([a, b, c, d]));
                self.write_word(at + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn write_half(&mut self, at: u64, value: u16, memory: &Ram) {
        let is_vector = |vectors: usize| usize::from(value) < vectors;
        let vector = if is_vector(self.msix.vectors()) { value } else { NO_VECTOR };
        let selected = usize::from(self.selected);
        match at {
            16 => self.config_vector = vector,
            22 => self.selected = value,
            26 => {
                if let Some(place) = self.vectors.get_mut(selected) {
                    *place = vector;
                }
            }
            24 => self.change_queue(|queue| queue.set_size(value)),
            28 if value == 1 => self.change_queue(|queue| {
                queue.set_ready(true);
                // What is not in memory is never looked at.
                let is_valid = queue.is_valid(memory);
                queue.set_ready(is_valid);
            }),
            _ => {}
        }
    }

    fn write_word(&mut self, at: u64, value: u32) {
        match at {
            0 => self.offered_half = value,
            8 => self.accepted_half = value,
            12 if self.status & FEATURES_OK == 0 => match self.accepted_half {
                0 => self.accepted = self.accepted >> 32 << 32 | u64::from(value),
                1 => self.accepted = u64::from(value) << 32 | self.accepted & u64::from(u32::MAX),
                _ => {}
            },
            32 => self.change_queue(|queue| queue.set_desc_table_address(Some(value), None)),
            36 => self.change_queue(|queue| queue.set_desc_table_address(None, Some(value))),
            40 => self.change_queue(|queue| queue.set_avail_ring_address(Some(value), None)),
            44 => self.change_queue(|queue| queue.set_avail_ring_address(None, Some(value))),
            48 => self.change_queue(|queue| queue.set_used_ring_address(Some(value), None)),
            52 => self.change_queue(|queue| queue.set_used_ring_address(None, Some(value))),
            _ => {}
        }
    }

    /// Changes the selected queue, unless the device works on it.
    fn change_queue(&mut self, change: impl FnOnce(&mut Queue)) {
        if self.status & DRIVER_OK == 0
            && let Some(queue) = self.queues.get_mut(usize::from(self.selected)).filter(|queue| !queue.ready())
        {
            change(queue);
        }
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            return self.reset();
        }
        let mut status = status & !NEEDS_RESET | self.status & NEEDS_RESET;
        // Features that were not offered, or an old driver: the bit does not stay set, which tells the driver.
        if self.accepted & !self.offered != 0 || self.accepted & VERSION_1 == 0 {
            status &= !(FEATURES_OK | DRIVER_OK);
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        let begins = status & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = status;
        if begins {
            let has_event_idx = self.accepted & EVENT_IDX != 0;
            self.queues.iter_mut().for_each(|queue| queue.set_event_idx(has_event_idx));
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueT::reset);
        self.vectors.fill(NO_VECTOR);
        self.config_vector = NO_VECTOR;
        (self.status, self.accepted, self.offered_half, self.accepted_half, self.selected) = (0, 0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests;
