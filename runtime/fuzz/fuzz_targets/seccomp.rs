//! Kept filters as bytes, and profiles as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_runtime::seccomp;

fuzz_target!(|bytes: &[u8]| {
    drop(seccomp::format::decode(bytes, None));
    if let Ok(profile) = serde_json::from_slice(bytes) {
        drop(seccomp::compile(&profile));
    }
});
