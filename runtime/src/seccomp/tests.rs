use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccomp};
use serde_json::{Value, json};

use super::enosys::{RET_ERRNO, X32_BIT, native};
use super::*;
use crate::error::Outcome;

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// Runs a filter as the kernel does (the subset of classic BPF that libseccomp emits).
fn run(filter: &Filter, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (mut at, mut acc) = (0, 0u32);
    loop {
        let (code, jt, jf, k) = filter.program[at];
        at += 1;
        let taken = match code {
            0x20 => {
                acc = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                acc &= k;
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x06 => return k,
            0x15 => acc == k,
            0x25 => acc > k,
            0x35 => acc >= k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if taken { jt } else { jf });
    }
}

const X86_64: u32 = 0xc000_003e;
const ALLOW: u32 = 0x7fff_0000;

fn errno(value: i32) -> u32 {
    RET_ERRNO | value.cast_unsigned()
}

fn number(name: &str) -> u32 {
    ScmpSyscall::from_name(name).unwrap().as_raw_syscall().cast_unsigned()
}

#[test]
fn actions_and_arguments_decide_as_the_profile_says() {
    if native() != Some(Arch::ScmpArchX86_64) {
        println!("SKIP actions_and_arguments_decide_as_the_profile_says: numbers are those of x86-64");
        return;
    }
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["read", "write", "no_such_call", "renameat2"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["gettid"], "action": "SCMP_ACT_KILL" },
            { "names": ["getuid"], "action": "SCMP_ACT_TRAP" },
            { "names": ["getgid"], "action": "SCMP_ACT_LOG" },
            { "names": ["geteuid"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 },
            { "names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 5, "op": "SCMP_CMP_GE" }] },
            { "names": ["dup"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 1, "value": 2, "op": "SCMP_CMP_NE" }] },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] }
        ]
    })))
    .unwrap();
    let a = |first: u64, second: u64| [first, second, 0, 0, 0, 0];
    let cases = [
        ("read", a(0, 0), ALLOW),
        ("open", a(0, 0), errno(13)),
        ("getpid", a(0, 0), errno(38)),
        ("kill", a(0, 0), 0x8000_0000),
        ("gettid", a(0, 0), 0),
        ("getuid", a(0, 0), 0x0003_0000),
        ("getgid", a(0, 0), 0x7ffc_0000),
        ("geteuid", a(0, 0), 0x7ff0_0007),
        ("close", a(5, 0), ALLOW),
        ("close", a(4, 0), errno(13)),
        ("dup", a(0x1f, 0), ALLOW),
        ("dup", a(0x2f, 0), errno(13)),
        ("socket", a(1, 1), ALLOW),
        ("socket", a(1, 2), errno(13)),
        ("socket", a(2, 1), errno(13)),
        ("personality", a(0, 0), ALLOW),
        ("personality", a(8, 0), ALLOW),
        ("personality", a(1, 0), errno(13)),
        // Numbers up to the highest that is named get the default, newer ones ENOSYS.
        ("seccomp", a(0, 0), errno(38)),
        ("clone3", a(0, 0), errno(38)),
    ];
    for (name, args, wanted) in cases {
        assert_eq!(run(&filter, X86_64, number(name), args), wanted, "{name}{args:?}");
    }
    assert_eq!(run(&filter, 0x4000_0003, 3, a(0, 0)), ALLOW, "i386 read");
    assert_eq!(run(&filter, 0x4000_0003, 500, a(0, 0)), errno(38), "an i386 call of the future");
    assert_eq!(run(&filter, X86_64, X32_BIT, a(0, 0)), ALLOW, "x32 read");
    assert_eq!(run(&filter, X86_64, X32_BIT | 2, a(0, 0)), errno(13), "x32 open");
    assert_eq!(run(&filter, X86_64, X32_BIT | 900, a(0, 0)), errno(38), "an x32 call of the future");
    assert_eq!(run(&filter, 0xc000_00b7, 63, a(0, 0)), 0, "a foreign architecture is killed");
}

#[test]
fn newer_calls_keep_a_default_that_lets_them_through() {
    for (default, wanted) in [
        ("SCMP_ACT_ALLOW", ALLOW),
        ("SCMP_ACT_LOG", 0x7ffc_0000),
        ("SCMP_ACT_TRACE", 0x7ff0_0001),
        ("SCMP_ACT_KILL_PROCESS", errno(38)),
        ("SCMP_ACT_KILL_THREAD", errno(38)),
        ("SCMP_ACT_ERRNO", errno(38)),
    ] {
        let rule = json!([{ "names": ["getpid"], "action": "SCMP_ACT_TRAP" }]);
        let filter = compile(&profile(json!({ "defaultAction": default, "syscalls": rule }))).unwrap();
        assert_eq!(run(&filter, native().unwrap() as u32, number("clone3"), [0; 6]), wanted, "{default}");
    }
}

#[test]
fn flags_follow_the_profile() {
    let notify = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]);
    let cases = [
        (json!({ "defaultAction": "SCMP_ACT_ALLOW" }), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        (json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": [] }), 0),
        (json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"] }), libc::SECCOMP_FILTER_FLAG_LOG),
        (json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] }), 0),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"], "syscalls": notify }),
            libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        ),
    ];
    for (value, wanted) in cases {
        let filter = compile(&profile(value.clone())).unwrap();
        assert_eq!(filter.flags(), wanted, "{value}");
        assert_eq!(filter.wants_listener(), value.get("syscalls").is_some(), "{value}");
    }
}

#[test]
fn bad_profiles_are_refused_and_named() {
    let with = |rule: Value| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    let cases = [
        (json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "defaultAction"),
        (json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096 }), "defaultAction: errno 4096"),
        (with(json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536 })), "syscalls[0]: errno 65536"),
        (
            with(
                json!({ "names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }),
            ),
            "syscalls[0].args index 6",
        ),
    ];
    for (value, named) in cases {
        let error = compile(&profile(value.clone())).unwrap_err();
        assert_eq!(error.outcome(), Outcome::BadInput, "{value}");
        assert!(error.one_line().contains(named), "{value}: {}", error.one_line());
    }
}

/// runtime-spec 1.3, config-linux.md, "Seccomp", `architectures`.
#[test]
fn every_architecture_compiles_or_is_named() {
    let all = "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC \
               PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB";
    for name in all.split_ascii_whitespace().map(|name| format!("SCMP_ARCH_{name}")) {
        let compiled = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": [name],
            "syscalls": [{ "names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW" }]
        })));
        // This libseccomp may be older than the architecture.
        if let Err(error) = compiled {
            assert!(error.outcome() == Outcome::Unsupported && error.one_line().contains(&name), "{name}: {error:?}");
        }
    }
}
