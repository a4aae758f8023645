//! The root file system of a container: what containerd's snapshotter says is to be mounted on the bundle's `rootfs`.
//!
//! Options reach mount(2) in one page, in which the paths of some forty layers have room. An overlay with more gets its options one by one
//! (fsconfig(2); several lower layers in `lowerdir+`, since Linux 6.8), each of at most 255 bytes; older kernels refuse, and say so.

mod options;

use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, mount, mount_change, mount_remount, move_mount, unmount,
};
use towline_runtime::{Error, Outcome, Result};

use crate::log;
use options::Parsed;

/// What mount(2) takes of options, with the NUL.
const PAGE: usize = 4096;

/// Mounts all of `mounts` on `target`, one on the other; if one fails, those before it are taken away.
///
/// # Errors
/// One cannot be mounted.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for each in mounts {
        if let Err(error) = mount_one(each, target) {
            unmount_all(target)?;
            return Err(error.during(format!("mounting the root file system on {}", target.display())));
        }
    }
    Ok(())
}

/// Takes away everything that is mounted on `target` itself; no error if there is nothing, or no such directory.
///
/// # Errors
/// Something cannot be unmounted.
pub fn unmount_all(target: &Path) -> Result<()> {
    loop {
        let done = match unmount(target, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                log::warn(format_args!("{} is in use: it goes when its last user does", target.display()));
                unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            }
            other => other,
        };
        match done {
            Ok(()) => {}
            // It is no mount, or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(cause) => return Err(Error::io("unmounting", target, cause)),
        }
    }
}

fn mount_one(each: &Mount, target: &Path) -> Result<()> {
    let target = match each.target.as_str() {
        "" | "/" => target.to_owned(),
        below => options::beneath(target, below)?,
    };
    let parsed = Parsed::new(&each.options)?;
    let failed = |cause| Error::sys(format!("mounting {} ({}) on {}", each.source, each.type_, target.display()), cause);
    let data = parsed.data.join(",");
    if parsed.flags.contains(MountFlags::BIND) || each.type_ == "bind" || each.type_ == "rbind" {
        bind(each, &parsed, &target).map_err(failed)?;
    } else if data.len() < PAGE {
        let text = std::ffi::CString::new(data).map_err(|_| failed(Errno::INVAL))?;
        mount(each.source.as_str(), &target, each.type_.as_str(), parsed.flags, Some(text.as_c_str())).map_err(failed)?;
    } else {
        in_parts(each, &parsed, &target)?;
    }
    for propagation in &parsed.propagation {
        mount_change(&target, *propagation).map_err(failed)?;
    }
    Ok(())
}

fn bind(each: &Mount, parsed: &Parsed, target: &Path) -> rustix::io::Result<()> {
    let recursive = parsed.flags.contains(MountFlags::REC) || each.type_ == "rbind";
    let flags = MountFlags::BIND | if recursive { MountFlags::REC } else { MountFlags::empty() };
    mount(each.source.as_str(), target, "", flags, None)?;
    // A bind mount takes its attributes only when it is changed.
    let attributes = parsed.flags.difference(MountFlags::BIND | MountFlags::REC);
    if attributes.is_empty() { Ok(()) } else { mount_remount(target, MountFlags::BIND | attributes, "") }
}

/// For options that are longer than a page.
fn in_parts(each: &Mount, parsed: &Parsed, target: &Path) -> Result<()> {
    let attributes = options::attributes(parsed.flags).ok_or_else(|| {
        let tried = format!("mounting {} on {} with more than {PAGE} bytes of options", each.type_, target.display());
        Error::new(Outcome::Unsupported, tried).because("one of its flags cannot be given together with so many")
    })?;
    let failed = |what: &str, cause: Errno| {
        let error = Error::sys(format!("mounting {} on {}: {what:.300}", each.type_, target.display()), cause);
        error.advise("so many layers need Linux 6.8, and paths of at most 255 bytes")
    };
    let context = fsopen(each.type_.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(|cause| failed("opening", cause))?;
    fsconfig_set_string(&context, "source", each.source.as_str()).map_err(|cause| failed("source", cause))?;
    if parsed.flags.contains(MountFlags::RDONLY) {
        fsconfig_set_flag(&context, "ro").map_err(|cause| failed("ro", cause))?;
    }
    for option in &parsed.data {
        let set = match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                options::layers(layers).iter().try_for_each(|(key, layer)| fsconfig_set_string(&context, *key, layer.as_str()))
            }
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        };
        set.map_err(|cause| failed(option, cause))?;
    }
    fsconfig_create(&context).map_err(|cause| failed("creating the file system", cause))?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|cause| failed("mounting", cause))?;
    move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|cause| failed("attaching", cause))
}

#[cfg(test)]
mod tests;
