//! mountinfo and cgroup files of /proc, divided by the first NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_runtime::cgroup::Host;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (mountinfo, own) = text.split_once('\0').unwrap_or((&text, ""));
    drop(Host::parse(mountinfo, own));
});
