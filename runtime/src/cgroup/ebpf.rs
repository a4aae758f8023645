//! Device rules on cgroup v2: an eBPF program that the kernel runs for each mknod and open of a device.
//!
//! Later rules win. The program therefore walks the rules from the last to the first and keeps, in a register, the access bits
//! that no rule has decided yet: an allowing rule takes its bits out, a denying rule that still finds one of its bits ends in
//! "no", and when nothing is left the answer is "yes". What no rule decides is denied.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode as FileMode, OFlags};
use towline_sys::bpf;

use super::devices::{ALL, Kind, Rule};
use crate::error::{Error, Outcome, Result};

/// Puts `rules` in force on the cgroup directory `dir`, in place of the rules that were there.
pub(super) fn apply(dir: &Path, rules: &[Rule]) -> Result<()> {
    let what = |step: &str| format!("{step} the eBPF device program of {}", dir.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir, flags, FileMode::empty()).map_err(|cause| Error::io("opening", dir, cause))?;
    let failed = |step: &str| {
        let tried = what(step);
        move |cause: std::io::Error| {
            let advice = "device rules on cgroup v2 need CAP_BPF or CAP_SYS_ADMIN in the initial user namespace";
            match cause.kind() {
                std::io::ErrorKind::PermissionDenied => Error::new(Outcome::Denied, tried).advise(advice),
                _ => Error::new(Outcome::Io, tried),
            }
            .because(cause)
        }
    };
    let old = bpf::cgroup_device_programs(cgroup.as_fd()).map_err(failed("listing"))?;
    let new = bpf::load_cgroup_device(&program(rules)).map_err(failed("loading"))?;
    // The new one first: in between both must agree, so nothing is allowed that either forbids.
    bpf::attach_cgroup_device(cgroup.as_fd(), new.as_fd()).map_err(failed("attaching"))?;
    for program in old {
        bpf::detach_cgroup_device(cgroup.as_fd(), program.as_fd()).map_err(failed("detaching"))?;
    }
    Ok(())
}

// Registers: the context comes in R1 and is not needed after the loads.
const R0: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND_IMM: u8 = 0x57;
const SHIFT_RIGHT_IMM: u8 = 0x77;
const JUMP_EQ_IMM: u8 = 0x15;
const JUMP_NE_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;

fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = imm.to_le_bytes();
    u64::from_le_bytes([opcode, (src << 4) | dst, low, high, a, b, c, d])
}

/// The program for `rules`, without attaching it.
fn program(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, 1, 0, 0),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
        // access_type is (access << 16) | type.
        instruction(MOV_REG, UNDECIDED, KIND, 0, 0),
        instruction(SHIFT_RIGHT_IMM, UNDECIDED, 0, 0, 16),
        instruction(AND_IMM, KIND, 0, 0, 0xffff),
    ];
    for rule in rules.iter().rev() {
        code.extend(block(rule));
        if rule.is_total() {
            // Nothing gets past this rule, and the verifier refuses unreachable instructions.
            return code;
        }
    }
    code.extend(answer(false));
    code
}

fn answer(allow: bool) -> [u64; 2] {
    [instruction(MOV_IMM, R0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// One rule: the conditions jump behind the block when they do not hold.
fn block(rule: &Rule) -> Vec<u64> {
    let decide = decision(rule);
    let mut conditions = Vec::new();
    match rule.kind {
        Kind::Any => {}
        Kind::Block => conditions.push((KIND, DEV_BLOCK)),
        Kind::Char => conditions.push((KIND, DEV_CHAR)),
    }
    // `devices::check` has limited the numbers to what fits an immediate operand.
    conditions.extend(rule.major.map(|major| (MAJOR, major.cast_signed())));
    conditions.extend(rule.minor.map(|minor| (MINOR, minor.cast_signed())));
    let count = conditions.len();
    let mut code = Vec::with_capacity(count + decide.len());
    for (index, (register, value)) in conditions.into_iter().enumerate() {
        let behind = i16::try_from(count - index - 1 + decide.len()).expect("a block has less than 10 instructions");
        code.push(instruction(JUMP_NE_IMM, register, 0, behind, value));
    }
    code.extend(decide);
    code
}

fn decision(rule: &Rule) -> Vec<u64> {
    let access = i32::from(rule.access);
    let mut code = match (rule.allow, rule.access) {
        (_, ALL) => vec![],
        (true, _) => vec![instruction(AND_IMM, UNDECIDED, 0, 0, !access), instruction(JUMP_NE_IMM, UNDECIDED, 0, 2, 0)],
        (false, _) => vec![
            instruction(MOV_REG, SCRATCH, UNDECIDED, 0, 0),
            instruction(AND_IMM, SCRATCH, 0, 0, access),
            instruction(JUMP_EQ_IMM, SCRATCH, 0, 2, 0),
        ],
    };
    code.extend(answer(rule.allow));
    code
}

#[cfg(test)]
mod tests {
    use super::super::devices::{MKNOD, READ, WRITE, checked, with_defaults};
    use super::*;

    /// Runs a program as the kernel does (the subset of instructions used here).
    fn run(code: &[u64], kind: i32, access: u8, major: u32, minor: u32) -> bool {
        let context = [(u32::from(access) << 16) | kind.cast_unsigned(), major, minor];
        let mut registers = [0u64; 6];
        let mut at = 0;
        loop {
            let [opcode, both, low, high, a, b, c, d] = code[at].to_le_bytes();
            at += 1;
            let (dst, src) = (usize::from(both & 15), usize::from(both >> 4));
            let offset = i16::from_le_bytes([low, high]);
            let imm = i64::from(i32::from_le_bytes([a, b, c, d])).cast_unsigned();
            let jumps = match opcode {
                LOAD_WORD => {
                    registers[dst] = u64::from(context[offset as usize / 4]);
                    false
                }
                MOV_IMM => {
                    registers[dst] = imm;
                    false
                }
                MOV_REG => {
                    registers[dst] = registers[src];
                    false
                }
                AND_IMM => {
                    registers[dst] &= imm;
                    false
                }
                SHIFT_RIGHT_IMM => {
                    registers[dst] >>= imm;
                    false
                }
                JUMP_EQ_IMM => registers[dst] == imm,
                JUMP_NE_IMM => registers[dst] != imm,
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            };
            if jumps {
                at += offset as usize;
            }
        }
    }

    #[test]
    fn later_rules_win_for_each_access_bit() {
        let rules =
            |value: serde_json::Value| with_defaults(&checked(&serde_json::from_value::<Vec<_>>(value).unwrap()).unwrap());
        let deny_all = serde_json::json!({ "allow": false, "access": "rwm" });
        let allow_all = serde_json::json!({ "allow": true });
        let sda = |allow: bool, access: &str| serde_json::json!({ "allow": allow, "type": "b", "major": 8, "minor": 0, "access": access });
        let disks = serde_json::json!({ "allow": true, "type": "b", "major": 8, "access": "r" });
        let cases = [
            // (rules, kind, major, minor, access, allowed)
            (vec![], DEV_CHAR, 1, 3, READ | WRITE, true),
            (vec![], DEV_CHAR, 1, 11, READ, false),
            (vec![], DEV_BLOCK, 8, 0, READ, false),
            (vec![], DEV_BLOCK, 8, 0, MKNOD, true),
            (vec![], DEV_BLOCK, 8, 0, MKNOD | READ, false),
            (vec![], DEV_CHAR, 136, 77, ALL, true),
            (vec![deny_all.clone()], DEV_CHAR, 5, 2, ALL, true),
            (vec![allow_all.clone()], DEV_BLOCK, 8, 0, ALL, true),
            (vec![allow_all, sda(false, "w")], DEV_BLOCK, 8, 0, WRITE, false),
            (vec![deny_all.clone(), sda(true, "r")], DEV_BLOCK, 8, 0, READ, true),
            (vec![deny_all.clone(), sda(true, "r")], DEV_BLOCK, 8, 0, READ | WRITE, false),
            (vec![deny_all.clone(), sda(true, "r"), sda(true, "w")], DEV_BLOCK, 8, 0, READ | WRITE, true),
            (vec![sda(true, "rw"), deny_all.clone()], DEV_BLOCK, 8, 0, READ, false),
            (vec![sda(true, "rw"), sda(false, "w")], DEV_BLOCK, 8, 0, READ, true),
            (vec![sda(true, "rw"), sda(false, "w")], DEV_BLOCK, 8, 0, WRITE, false),
            (vec![disks.clone()], DEV_BLOCK, 8, 17, READ, true),
            (vec![disks.clone()], DEV_CHAR, 8, 17, READ, false),
            (vec![disks], DEV_BLOCK, 9, 0, READ, false),
        ];
        for (list, kind, major, minor, access, allowed) in cases {
            let text = format!("{list:?}");
            let code = program(&rules(serde_json::Value::Array(list)));
            assert_eq!(run(&code, kind, access, major, minor), allowed, "{text} {kind} {major}:{minor} {access}");
        }
    }
}
