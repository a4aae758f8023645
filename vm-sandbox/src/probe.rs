//! Whether /dev/kvm can run a kernel. There are hosts where it is there and cannot: under some hypervisors the privileged code of a guest is
//! interpreted, a thousand times slower, and part of it not at all. A kernel would hang there; a loop of 20,000 rounds tells it in
//! milliseconds.

use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes as _, GuestAddress};

use crate::error::{Error, Result};
use crate::memory;
use crate::sys::Slots;

/// Rounds of the loop.
const ROUNDS: u32 = 20_000;
/// A processor takes less than a nanosecond for a round, an emulated one some tens; an interpreter a microsecond.
const SLOW: Duration = Duration::from_nanos(250);
/// The best of so many is taken, since other work takes the processor away.
const TRIES: usize = 5;
/// Where the loop is, and the port that it ends with.
const CODE: u64 = 0x1000;
const PORT: u16 = 0x10;

/// Opens /dev/kvm.
pub fn open() -> Result<Kvm> {
    Kvm::new().map_err(|e| {
        Error::new("opening /dev/kvm", e).advise(
            "microVMs need KVM: load kvm-amd or kvm-intel (on a virtual host, switch nested virtualisation on), and let this user use /dev/kvm",
        )
    })
}

/// How long privileged code of a guest takes here, for each round of a loop. [`check`] judges it.
pub fn measure() -> Result<Duration> {
    let kvm = open()?;
    let ram = memory::ram(1 << 20)?;
    ram.write_slice(&code(), GuestAddress(CODE)).map_err(|e| Error::new("writing the probe's code", e))?;
    let slots = Slots::new(&kvm, ram, Vec::new())?;
    let mut vcpu = slots.vcpu(0)?;
    let failed = |e: kvm_ioctls::Error| Error::new("running the probe's code", e);
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let mut special = vcpu.fd.get_sregs().map_err(failed)?;
        (special.cs.base, special.cs.selector) = (0, 0);
        vcpu.fd.set_sregs(&special).map_err(failed)?;
        let mut registers = vcpu.fd.get_regs().map_err(failed)?;
        (registers.rip, registers.rflags) = (CODE, 2);
        vcpu.fd.set_regs(&registers).map_err(failed)?;
        let begin = Instant::now();
        loop {
            match vcpu.fd.run() {
                Ok(VcpuExit::IoOut(PORT, _)) => break,
                Ok(other) => return Err(Error::new("running the probe's code", format!("it stopped with {other:?}"))),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(failed(error)),
            }
        }
        best = best.min(begin.elapsed());
    }
    Ok(best / ROUNDS)
}

/// Fails where a kernel would not run.
pub fn check() -> Result<()> {
    judge(measure()?)
}

fn judge(round: Duration) -> Result<()> {
    if round < SLOW {
        return Ok(());
    }
    let cause = format!("privileged code of a guest is interpreted: {} ns for two instructions", round.as_nanos());
    Err(Error::new("checking /dev/kvm", cause)
        .advise("use a host whose hypervisor offers nested virtualisation (VT-x or SVM), or run containers without isolation vm"))
}

/// Real mode: `mov ecx, ROUNDS; again: dec ecx; jnz again; out PORT, al; hlt`.
fn code() -> Vec<u8> {
    let mut code = vec![0x66, 0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xe6, u8::try_from(PORT).expect("a low port"), 0xf4]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_is_told_from_a_processor() {
        judge(Duration::from_nanos(1)).unwrap();
        judge(Duration::from_nanos(60)).unwrap();
        let error = judge(Duration::from_nanos(1200)).unwrap_err().to_string();
        assert!(error.contains("interpreted: 1200 ns") && error.contains("nested virtualisation"), "{error}");
    }

    #[test]
    fn the_loop_comes_to_its_end_here() {
        if let Err(error) = open() {
            println!("SKIP the_loop_comes_to_its_end_here: {error}");
            return;
        }
        let round = measure().unwrap();
        assert!(round > Duration::ZERO && round < Duration::from_millis(1), "{round:?}");
    }
}
