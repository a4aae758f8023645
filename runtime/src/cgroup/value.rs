//! Values that become part of a file name or of a control line, and the ones both cgroup versions write alike.

use std::io;

use oci_spec::runtime::LinuxResources;

use super::file::Files;
use crate::error::{Error, Outcome, Result};

/// `2MB`, `1GB`: what the kernel calls a huge page size in file names.
pub(super) fn page_size(text: &str) -> Result<&str> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if number && ["KB", "MB", "GB"].contains(&&text[digits.len()..]) {
        return Ok(text);
    }
    Err(Error::new(Outcome::BadInput, format!("linux.resources.hugepageLimits[].pageSize {text:?}"))
        .because("it is a number followed by KB, MB or GB"))
}

/// A device or interface name: one word, so that it cannot start a second command in a control file.
pub(super) fn plain_name<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    if !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0') {
        return Ok(text);
    }
    Err(Error::new(Outcome::BadInput, format!("{field} {text:?}")).because("it must be one word without a slash"))
}

/// `rdma.max` has one format in both versions.
pub(super) fn rdma(files: &Files, resources: &LinuxResources) -> Result<()> {
    for (device, limit) in resources.rdma().iter().flatten() {
        let number = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
        let device = plain_name("linux.resources.rdma", device)?;
        let line = format!("{device} hca_handle={} hca_object={}", number(limit.hca_handles()), number(limit.hca_objects()));
        files.write("rdma.max", &line)?;
    }
    Ok(())
}

/// The CPU burst, which may not be above the quota after each single write: before the quota changes, or behind it where the
/// kernel refuses that.
pub(super) fn ascending(files: &Files, file: &str, burst: Option<u64>, quota: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(burst) = burst.filter(|&burst| burst != 0 || files.has(file)).map(|burst| burst.to_string()) else {
        return quota();
    };
    match files.write_raw(file, &burst) {
        Ok(()) => quota(),
        Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => {
            quota()?;
            files.write(file, &burst)
        }
        Err(cause) => Err(files.refused(file, &burst, cause)),
    }
}

/// v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100), through the three points minimum, default
/// and maximum of both scales. runc 1.3.2 and crun 1.23 use the same curve; the older straight line gave 1024 shares a weight
/// of 39, so that a container lost against everything that runs at the default.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// v1 block I/O weight (10 to 1000) as a v2 `io.weight` (1 to 10000).
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9_999 / 990
}

/// The value of `memory.swap.max`: v1 counts memory and swap together, v2 swap alone. `None`: nothing to write.
pub(super) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    let bad = |why: &'static str| {
        Err(Error::new(Outcome::BadInput, format!("linux.resources.memory.swap {}", swap.unwrap_or(0))).because(why))
    };
    match (limit.filter(|&value| value != 0), swap.filter(|&value| value != 0)) {
        (Some(-1), None) => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some("max".to_owned())),
        (None | Some(-1), Some(_)) => bad("it counts memory and swap together and needs a memory.limit beside it"),
        (Some(limit), Some(swap)) if swap < limit => bad("it counts memory and swap together and is below memory.limit"),
        (Some(limit), Some(swap)) => Ok(Some((swap - limit).to_string())),
    }
}
