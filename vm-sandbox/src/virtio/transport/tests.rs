use super::super::testing::Driver;
use super::*;
use crate::memory;
use std::sync::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

const BAR: u32 = 0xc000_0000;

#[derive(Debug, Default)]
struct Sent(Mutex<Vec<u32>>);

impl Messages for Sent {
    fn send(&self, _: u64, data: u32) {
        self.0.lock().unwrap().push(data);
    }
}

/// Gives every request back; one of more than 100 bytes makes no sense to it.
struct Echo;

impl Device for Echo {
    fn kind(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        1 << 3
    }

    fn queues(&self) -> &'static [u16] {
        &[16, 8]
    }

    fn config(&self) -> &[u8] {
        b"config"
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some((_, queue)) = queues.woken() else { return Ok(()) };
        queue.each(|chain, memory| match chain.reader(memory)?.available_bytes() {
            0..=100 => Ok(0),
            _ => Err(Broken("too long".into())),
        })
    }
}

struct Guest {
    transport: Transport,
    driver: Driver,
    sent: Arc<Sent>,
}

impl Guest {
    fn new() -> Self {
        let (driver, sent) = (Driver::new(16), Arc::new(Sent::default()));
        let transport = Transport::new("echo".into(), Box::new(Echo), driver.memory.clone(), BAR, sent.clone()).unwrap();
        Self { transport, driver, sent }
    }

    fn write(&self, at: u64, len: usize, value: u64) {
        self.transport.write(at, &value.to_le_bytes()[..len]);
    }

    fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.transport.read(at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    /// As a driver should (section 3.1.1), with these features.
    fn begin(&self, features: u64) -> u64 {
        self.write(20, 1, 1 | 2);
        for (half, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(8, 4, half);
            self.write(12, 4, bits);
        }
        self.write(20, 1, 1 | 2 | 8);
        self.set_up_queue();
        self.write(20, 1, 1 | 2 | 8 | 4);
        self.read(20, 1)
    }

    fn set_up_queue(&self) {
        self.write(22, 2, 0);
        self.write(26, 2, 1);
        self.write(16, 2, 0);
        for (at, address) in [(32, 0x1000), (40, 0x2000), (48, 0x3000)] {
            self.write(at, 8, address);
        }
        self.write(28, 2, 1);
    }

    /// Enables interrupts: entry N sends N + 40.
    fn enable_interrupts(&self) {
        for entry in 0..3 {
            self.write(0x4000 + entry * 16 + 8, 4, entry + 40);
            self.write(0x4000 + entry * 16 + 12, 4, 0);
        }
        self.transport.write_config(self.transport.msix_control - 1, &0x8000u16.to_le_bytes());
    }

    fn sent(&self) -> Vec<u32> {
        std::mem::take(&mut self.sent.0.lock().unwrap())
    }
}

#[test]
fn a_driver_finds_the_device_and_works_with_it() {
    let mut guest = Guest::new();
    let mut id = [0; 4];
    guest.transport.read_config(0, &mut id);
    assert_eq!(id, [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!((guest.read(18, 2), guest.read(24, 2), guest.read(0x2000, 6)), (2, 16, u64::from_le_bytes(*b"config\0\0")));
    guest.write(0, 4, 1);
    assert_eq!(guest.read(4, 4), VERSION_1 >> 32);
    guest.enable_interrupts();
    assert_eq!(guest.begin(VERSION_1), 15);
    guest.driver.buffers(&[b"a request"], &[]);
    guest.transport.serve(Woken::Queue(0));
    assert_eq!((guest.driver.used().len(), guest.sent()), (1, vec![41]));
    // Nothing new, nothing told; a queue that there is not.
    guest.transport.serve(Woken::Queue(0));
    guest.transport.serve(Woken::Queue(1));
    guest.transport.serve(Woken::Queue(9));
    assert!(guest.sent().is_empty());
}

#[test]
fn a_device_says_from_which_request_on_it_is_to_be_notified() {
    let mut guest = Guest::new();
    assert_eq!(guest.begin(VERSION_1 | EVENT_IDX), 15);
    for number in 1..=3 {
        guest.driver.buffers(&[b"a request"], &[]);
        guest.transport.serve(Woken::Queue(0));
        assert_eq!((guest.driver.used().len(), guest.driver.quiet_until()), (1, number));
    }
}

#[test]
fn features_that_were_not_offered_are_not_agreed_on() {
    for (features, expected) in [(VERSION_1 | 1 << 3, 15), (VERSION_1 | 1 << 4, 3), (0, 3), (1 << 3, 3), (VERSION_1 | 1 << 60, 3)]
    {
        assert_eq!(Guest::new().begin(features), expected, "{features:x}");
    }
}

#[test]
fn nothing_changes_while_the_device_works() {
    let guest = Guest::new();
    guest.begin(VERSION_1);
    guest.write(22, 2, 0);
    for (at, len, value) in [(24, 2, 4), (32, 8, 0x7000), (40, 8, 0x7000), (48, 4, 0x7000), (28, 2, 0), (12, 4, 7)] {
        let before = guest.read(at, len);
        guest.write(at, len, value);
        assert_eq!(guest.read(at, len), before, "{at}");
    }
    // Queues beyond the last one, and accesses that no driver makes.
    guest.write(22, 2, 77);
    assert_eq!((guest.read(24, 2), guest.read(26, 2), guest.read(32, 8)), (0, 0xffff, 0));
    for (at, len) in
        [(0, 1), (21, 4), (32, 3), (59, 8), (0xff8, 8), (0x1000, 4), (0x2ffe, 8), (0x3ffc, 4), (0x5010, 8), (0x7ff8, 8)]
    {
        guest.write(at, len, u64::MAX);
        guest.read(at, len);
    }
    assert_eq!(guest.read(20, 1), 15);
}

#[test]
fn a_queue_outside_of_memory_is_never_ready() {
    for (at, address) in [(32, 2 << 20), (40, u64::MAX - 1), (48, 0xffff_fff0), (32, 0x1001)] {
        let guest = Guest::new();
        guest.write(22, 2, 0);
        for (at, address) in [(32, 0x1000), (40, 0x2000), (48, 0x3000), (at, address)] {
            guest.write(at, 8, address);
        }
        guest.write(28, 2, 1);
        // An address that is not aligned was not taken at all.
        let is_ready = guest.read(28, 2) == 1;
        assert!(!is_ready || guest.read(at, 8) != address, "{at} {address:x}");
        guest.transport.serve(Woken::Queue(0));
    }
}

#[test]
fn what_makes_no_sense_stops_the_device_until_it_is_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.begin(VERSION_1);
    guest.driver.buffers(&[&[0; 101]], &[]);
    guest.transport.serve(Woken::Queue(0));
    assert_eq!((guest.read(20, 1), guest.sent()), (15 | 64, vec![40]));
    guest.driver.buffers(&[b"fine"], &[]);
    guest.transport.serve(Woken::Queue(0));
    assert!(guest.driver.used().is_empty());
    guest.write(20, 1, 15);
    assert_eq!(guest.read(20, 1), 15 | 64, "only a reset mends it");
    guest.write(20, 1, 0);
    assert_eq!((guest.read(20, 1), guest.read(28, 2), guest.read(32, 8)), (0, 0, 0));
}

#[test]
fn hostile_rings_end_the_device_or_nothing() {
    /// Each puts something into the guest's memory that no driver would.
    type Harm = fn(&mut Driver);
    let harms: [(&str, Harm); 6] = [
        ("more requests than the ring has places", |driver| {
            driver.memory.write_obj(1000u16, GuestAddress(0x2002)).unwrap();
        }),
        ("a head beyond the table", |driver| {
            driver.memory.write_obj(99u16, GuestAddress(0x2004)).unwrap();
            driver.memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
        }),
        ("a chain that is a ring", |driver| {
            let head = driver.descriptor(0x1_0000, 4, 1, 1);
            driver.descriptor(0x1_0000, 4, 1, 0);
            driver.offer(head);
        }),
        ("a buffer outside of memory", |driver| {
            let head = driver.descriptor(1 << 40, 4, 0, 0);
            driver.offer(head);
        }),
        ("a buffer over the end", |driver| {
            let head = driver.descriptor((2 << 20) - 4, 1 << 20, 0, 0);
            driver.offer(head);
        }),
        ("an indirect table in a direct one", |driver| {
            let head = driver.descriptor(0x1_0000, 16, 4 | 1, 1);
            driver.descriptor(0x1_0000, 16, 4, 0);
            driver.offer(head);
        }),
    ];
    for (name, harm) in harms {
        let mut guest = Guest::new();
        guest.begin(VERSION_1);
        harm(&mut guest.driver);
        guest.transport.serve(Woken::Queue(0));
        // It came to an end, and the device can be had again.
        guest.write(20, 1, 0);
        assert_eq!(guest.read(20, 1), 0, "{name}");
    }
}

#[test]
fn devices_have_as_many_queues_as_they_say() {
    let memory = memory::ram(2 << 20).unwrap();
    let transport = Transport::new("echo".into(), Box::new(Echo), memory, BAR, Arc::new(Sent::default())).unwrap();
    assert_eq!(transport.events().map(|(_, at)| at).collect::<Vec<_>>(), [0x3000, 0x3004]);
}
