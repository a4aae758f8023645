//! config.json: parsing, and everything that is checked before anything exists.
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use towline_runtime::bundle::Bundle;
use towline_runtime::init::plan::{ProcessPlan, sysctls, time_offsets};
use towline_runtime::process::namespaces::Namespaces;
use towline_runtime::rootfs::mounts::MountPlan;

fuzz_target!(|bytes: &[u8]| {
    let Ok(bundle) = Bundle::parse(PathBuf::from("/b"), bytes.to_vec()) else { return };
    if let Some(process) = bundle.spec.process() {
        drop(ProcessPlan::new(process));
    }
    for mount in bundle.spec.mounts().iter().flatten() {
        drop(MountPlan::new(mount, Path::new("/b")));
    }
    let Some(linux) = bundle.spec.linux() else { return };
    if let Ok(namespaces) = Namespaces::from_config(linux.namespaces().as_deref().unwrap_or_default()) {
        drop(sysctls(linux.sysctl().as_ref(), &namespaces));
        drop(time_offsets(linux.time_offsets().as_ref(), &namespaces));
    }
});
