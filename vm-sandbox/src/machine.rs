//! A machine that runs: a thread for each vCPU, and one for all devices.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VmFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use crate::boot::{acpi, pvh};
use crate::bus::Bus;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::{self, FileRegion};
use crate::pci::{self, Messages};
use crate::platform::{Cmos, EarlyConsole, Keyboard, Power};
use crate::sys::{Slots, Vcpu};
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::{BAR_LEN, Device, Transport, Woken};
use crate::{cpu, layout};

/// How long it is waited until a vCPU notices that it is to end.
const STOP: Duration = Duration::from_secs(5);
/// How often it is told.
const NUDGE: Duration = Duration::from_millis(1);

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered it off.
    PoweredOff,
    /// The guest reset it, or its kernel panicked.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// It cannot go on.
    Failed(String),
}

/// Whether and how a machine has ended. The first reason stays.
#[derive(Clone, Debug, Default)]
pub struct Ended(Arc<(Mutex<Option<End>>, Condvar)>);

impl Ended {
    /// It has.
    pub fn set(&self, end: End) {
        let (place, changed) = &*self.0;
        place.lock().expect("no holder of this lock panics").get_or_insert(end);
        changed.notify_all();
    }

    /// How, if it has.
    pub fn get(&self) -> Option<End> {
        self.0.0.lock().expect("no holder of this lock panics").clone()
    }

    /// Waits for it; `None` when the deadline comes first.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        let (place, changed) = &*self.0;
        let mut end = place.lock().expect("no holder of this lock panics");
        while end.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            end = match left {
                Some(left) => changed.wait_timeout(end, left).expect("no holder of this lock panics").0,
                None => changed.wait(end).expect("no holder of this lock panics"),
            };
        }
        end.clone()
    }
}

/// A machine that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    ended: Ended,
    vcpus: Vec<JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl Machine {
    /// Starts one.
    pub fn start(config: &Config) -> Result<Self> {
        let kvm = crate::probe::open()?;
        let ranges = layout::ram(config.memory_mib << 20);
        let ram = memory::ram(config.memory_mib << 20)?;
        let files = map_files(config, layout::behind(&ranges))?;
        let slots = Slots::new(&kvm, ram, files.iter().map(|file| file.region.clone()).collect())?;
        let console = create(&config.console)?;
        let payload = pvh::Payload {
            kernel: (&config.kernel.to_string_lossy(), open(&config.kernel, false)?),
            initrd: (&config.initrd.to_string_lossy(), open(&config.initrd, false)?),
            command_line: &config.full_command_line(),
        };
        let entry = pvh::load(slots.ram(), &ranges, payload)?;
        acpi::write(slots.ram(), config.vcpus)?;
        cpu::write_segments(slots.ram())?;

        let ended = Ended::default();
        let devices = devices(config, &files, &console)?;
        let transports = transports(&slots, devices)?;
        let buses = Arc::new(Buses::new(&transports, &ended, &console)?);
        let vcpus = vcpus(&kvm, &slots, config.vcpus, entry)?;
        run(vcpus, transports, buses, ended)
    }

    /// Waits for its end; `None` when the deadline comes first.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        self.ended.wait(deadline)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.set(End::Stopped);
        if let Err(error) = self.stop.write(1) {
            tracing::warn!("stopping the devices of a machine: {error}");
        }
        let begin = Instant::now();
        for vcpu in self.vcpus.drain(..) {
            // A signal that comes just before KVM is entered is lost: again, then.
            while !vcpu.is_finished() && begin.elapsed() < STOP {
                if let Err(error) = vcpu.kill(SIGRTMIN()) {
                    tracing::debug!("nudging a vCPU: {error}");
                }
                std::thread::sleep(NUDGE);
            }
            match vcpu.is_finished() {
                true => drop(vcpu.join()),
                false => tracing::warn!("a vCPU does not end; it ends with this process"),
            }
        }
        drop(self.worker.take().map(JoinHandle::join));
    }
}

fn open(path: &Path, writable: bool) -> Result<File> {
    let opened = File::options().read(true).write(writable).open(path);
    opened.map_err(|e| Error::new(format!("opening {}", path.display()), e))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| Error::new(format!("making {}", path.display()), e))
}

/// A socket at a path where none is.
fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).map_err(|e| Error::new(format!("listening at {}", path.display()), e))
}

fn map_files(config: &Config, mut start: u64) -> Result<Vec<FileRegion>> {
    let map = |path: &std::path::PathBuf| {
        let region = FileRegion::map(&path.to_string_lossy(), open(path, false)?, start)?;
        start = (region.start + region.len).next_multiple_of(layout::SECTION);
        Ok(region)
    };
    config.pmem.iter().map(map).collect()
}

fn duplicate(file: &File) -> Result<Box<dyn Write + Send>> {
    let file = file.try_clone().map_err(|e| Error::new("duplicating the console's file", e))?;
    Ok(Box::new(file))
}

/// In the order in which the guest finds them.
fn devices(config: &Config, files: &[FileRegion], console: &File) -> Result<Vec<(String, Box<dyn Device>)>> {
    let mut devices: Vec<(String, Box<dyn Device>)> =
        vec![("console".into(), Box::new(Console::new(duplicate(console)?))), ("rng".into(), Box::new(Rng))];
    if let Some(sockets) = &config.vsock {
        devices.push(("vsock".into(), Box::new(Vsock::new(sockets.guest, listen(&sockets.socket)?)?)));
    }
    for (number, disk) in config.disks.iter().enumerate() {
        let file = open(&disk.path, !disk.read_only)?;
        let block = Block::new(&disk.path.to_string_lossy(), file, disk.read_only)?;
        devices.push((format!("disk {number}"), Box::new(block)));
    }
    for (number, file) in files.iter().enumerate() {
        devices.push((format!("pmem {number}"), Box::new(Pmem::new(file.start, file.len))));
    }
    Ok(devices)
}

/// Sends messages as KVM does.
#[derive(Debug)]
struct ByKvm(Arc<VmFd>);

impl Messages for ByKvm {
    fn send(&self, address: u64, data: u32) {
        let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
        // An address or vector that the guest has made up is none of our business.
        if let Err(error) = self.0.signal_msi(kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() }) {
            tracing::debug!("an interrupt to {address:x} with {data:x}: {error}");
        }
    }
}

/// Where the BAR of a device is.
fn bar(number: usize) -> u32 {
    let start = u32::try_from(layout::BARS.start).expect("it is below 4 GiB");
    start + u32::try_from(number).expect("few devices") * BAR_LEN
}

fn transports(slots: &Slots, devices: Vec<(String, Box<dyn Device>)>) -> Result<Vec<Arc<Transport>>> {
    let messages = Arc::new(ByKvm(slots.vm().clone()));
    let transport = |(number, (name, device)): (usize, (String, Box<dyn Device>))| {
        let transport = Transport::new(name, device, slots.ram().clone(), bar(number), messages.clone())?;
        for (event, at) in transport.events() {
            let address = IoEventAddress::Mmio(u64::from(bar(number)) + at);
            let registered = slots.vm().register_ioevent(event, &address, NoDatamatch);
            registered.map_err(|e| Error::new(format!("having KVM notify {transport:?}"), e))?;
        }
        Ok(Arc::new(transport))
    };
    devices.into_iter().enumerate().map(transport).collect()
}

/// What vCPUs reach beside memory.
#[derive(Debug)]
struct Buses {
    memory: Bus,
    ports: Bus,
}

impl Buses {
    fn new(transports: &[Arc<Transport>], ended: &Ended, console: &File) -> Result<Self> {
        let (mut memory, mut ports) = (Bus::default(), Bus::default());
        let functions = transports.iter().map(|transport| transport.clone() as Arc<dyn pci::Function>);
        memory.insert(layout::ECAM, Arc::new(pci::Bus::new(functions.collect())));
        for (number, transport) in transports.iter().enumerate() {
            let start = u64::from(bar(number));
            memory.insert(start..start + u64::from(BAR_LEN), transport.clone());
        }
        let wide = |range: std::ops::Range<u16>| u64::from(range.start)..u64::from(range.end);
        ports.insert(wide(layout::SERIAL), Arc::new(EarlyConsole::new(duplicate(console)?)));
        ports.insert(wide(layout::POWER), Arc::new(Power(ended.clone())));
        ports.insert(0x64..0x65, Arc::new(Keyboard(ended.clone())));
        ports.insert(0x70..0x72, Arc::new(Cmos));
        Ok(Self { memory, ports })
    }
}

fn vcpus(kvm: &Kvm, slots: &Slots, count: u8, entry: u64) -> Result<Vec<Vcpu>> {
    let supported = cpu::supported(kvm)?;
    let vcpu = |id| {
        let vcpu = slots.vcpu(id)?;
        let cpuid = cpu::of_vcpu(&supported, id, count);
        vcpu.fd.set_cpuid2(&cpuid).map_err(|e| Error::new(format!("setting CPUID of vCPU {id}"), e))?;
        if id == 0 {
            cpu::start(&vcpu.fd, entry)?;
        }
        Ok(vcpu)
    };
    (0..count).map(vcpu).collect()
}

/// Only there to interrupt KVM_RUN.
extern "C" fn nudged(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run(vcpus: Vec<Vcpu>, transports: Vec<Arc<Transport>>, buses: Arc<Buses>, ended: Ended) -> Result<Machine> {
    register_signal_handler(SIGRTMIN(), nudged).map_err(|e| Error::new("making vCPUs interruptible", e))?;
    let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|e| Error::new("making an event", e))?;
    let waiting = watch(&transports, &stop).map_err(|e| Error::new("watching the devices of a machine", e))?;
    let thread = |name: String, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name).spawn(work).map_err(|e| Error::new("starting a thread of a machine", e))
    };
    // From here on whatever fails ends what was started.
    let mut machine = Machine { ended: ended.clone(), vcpus: Vec::new(), worker: None, stop };
    let of_worker = ended.clone();
    machine.worker = Some(thread("devices".into(), Box::new(move || work(&waiting, &transports, &of_worker)))?);
    for (number, vcpu) in vcpus.into_iter().enumerate() {
        let (buses, ended) = (buses.clone(), ended.clone());
        machine.vcpus.push(thread(format!("vcpu {number}"), Box::new(move || run_vcpu(vcpu, &buses, &ended)))?);
    }
    Ok(machine)
}

/// Queues of a device at most, in the number of an event.
const QUEUES: u64 = 256;
/// The number, instead of a queue's, of what the host has for a device.
const HOST: u64 = QUEUES - 1;
/// The number of the event that ends it all.
const STOPPED: u64 = u64::MAX;

fn watch(transports: &[Arc<Transport>], stop: &EventFd) -> std::io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd, number| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, number));
    for (device, transport) in (0..).zip(transports) {
        for (queue, (event, _)) in (0..).zip(transport.events()) {
            add(event.as_raw_fd(), device * QUEUES + queue)?;
        }
        if let Some(fd) = transport.host_events() {
            add(fd, device * QUEUES + HOST)?;
        }
    }
    add(stop.as_raw_fd(), STOPPED)?;
    Ok(epoll)
}

/// Works on queues as they are notified.
fn work(epoll: &Epoll, transports: &[Arc<Transport>], ended: &Ended) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return ended.set(End::Failed(format!("waiting for devices: {error}"))),
        };
        for event in &events[..count] {
            if event.data() == STOPPED {
                return;
            }
            let transport = &transports[usize::try_from(event.data() / QUEUES).expect("few devices")];
            if event.data() % QUEUES == HOST {
                transport.serve(Woken::Host);
                continue;
            }
            let queue = usize::try_from(event.data() % QUEUES).expect("few queues");
            let event = transport.events().nth(queue).map(|(event, _)| event);
            // Read before the queue is: what comes meanwhile is a further event.
            if let Some(Err(error)) = event.map(EventFd::read) {
                tracing::debug!("{transport:?}: reading an event: {error}");
            }
            transport.serve(Woken::Queue(queue));
        }
    }
}

fn run_vcpu(mut vcpu: Vcpu, buses: &Buses, ended: &Ended) {
    while ended.get().is_none() {
        match vcpu.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(u64::from(port), data),
            Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(u64::from(port), data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.memory.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.memory.write(address, data),
            // A triple fault, which is how a kernel without any other way resets.
            Ok(VcpuExit::Shutdown) => ended.set(End::Reset),
            Ok(other) => ended.set(End::Failed(format!("a vCPU stopped: {other:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => ended.set(End::Failed(format!("running a vCPU: {error}"))),
        }
    }
}
