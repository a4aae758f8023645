//! The last steps: finding the program, its working directory, giving up privileges, execve.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid, openat2};
use rustix::io::Errno;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::plan::Plan;
use super::{Init, in_user_namespace};
use crate::error::{Error, Outcome, Result};
use crate::process::message::Message;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks for the program the way execvp(3) would, in the container. The texts are what podman maps to exit codes 127 and 126.
pub fn find_program(init: &mut Init<'_>) -> Result<()> {
    let process = &init.plan.process;
    let name = OsStr::from_bytes(process.args[0].to_bytes());
    let tried = || format!("exec: {:?}", name.to_string_lossy());
    if name.as_bytes().contains(&b'/') {
        let path = process.cwd.join(name);
        return match executable(&path) {
            Ok(true) => {
                init.program = path;
                Ok(())
            }
            Ok(false) | Err(Errno::ACCESS) => {
                Err(Error::new(Outcome::CommandNotExecutable, tried()).because("permission denied"))
            }
            Err(cause @ (Errno::NOENT | Errno::NOTDIR)) => {
                Err(Error::new(Outcome::CommandNotFound, tried()).because(lower_case(nix::Error::from_raw(cause.raw_os_error()))))
            }
            Err(cause) => Err(Error::sys(tried(), cause)),
        };
    }
    let path = variable(&process.env, b"PATH").unwrap_or(DEFAULT_PATH);
    let mut forbidden = false;
    for directory in path.split(|byte| *byte == b':') {
        let candidate = process.cwd.join(OsStr::from_bytes(directory)).join(name);
        match executable(&candidate) {
            Ok(true) => {
                init.program = candidate;
                return Ok(());
            }
            Ok(false) | Err(Errno::ACCESS) => forbidden = true,
            Err(_) => {}
        }
    }
    if forbidden {
        return Err(Error::new(Outcome::CommandNotExecutable, tried()).because("permission denied"));
    }
    Err(Error::new(Outcome::CommandNotFound, tried()).because("executable file not found in $PATH"))
}

/// Is there a regular file that somebody may execute? Whether the user may is for execve to say.
fn executable(path: &Path) -> rustix::io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0)
}

fn variable<'a>(env: &'a [CString], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().rev().find_map(|entry| entry.to_bytes().strip_prefix(name)?.strip_prefix(b"="))
}

/// Enters `process.cwd`, resolved without magic links, and proves that it lies beneath the root (CVE-2024-21626).
pub fn enter_cwd(init: &mut Init<'_>) -> Result<()> {
    let cwd = &init.plan.process.cwd;
    let failed = |cause: Errno| Error::io("entering process.cwd", cwd, cause);
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat2(&root, cwd, flags, Mode::empty(), resolve).map_err(|cause| {
        let error = failed(cause);
        if cause == Errno::LOOP {
            error.advise("a working directory may not lead through /proc/<pid>/fd and its like")
        } else {
            error
        }
    })?;
    rustix::process::fchdir(&dir).map_err(failed)?;
    let found = rustix::process::getcwd(Vec::new()).map_err(failed)?;
    if !found.to_bytes().starts_with(b"/") {
        return Err(Error::new(Outcome::Denied, format!("entering process.cwd {}", cwd.display()))
            .because("it lies outside the container's root"));
    }
    Ok(())
}

/// Everything that takes privileges away, each before what it needs is gone.
pub fn drop_privileges(init: &mut Init<'_>) -> Result<()> {
    let plan = init.plan;
    let process = &plan.process;
    security_labels(init)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|cause| Error::sys("setting no_new_privs", cause))?;
    }
    own_stdio(process.uid)?;
    reset_signals()?;
    towline_sys::close_range_on_exec(plan.preserve_fds.saturating_add(3))
        .map_err(|cause| Error::sys("closing descriptors on exec", cause))?;
    rustix::process::umask(Mode::from_raw_mode(process.umask & 0o777));
    if !process.no_new_privileges {
        // Without no_new_privs loading a filter needs CAP_SYS_ADMIN, so it cannot wait.
        load(init)?;
    }
    process.capabilities.apply_bounding()?;
    let failed = |what: String, cause: Errno| {
        let error = Error::sys(what, cause);
        if cause == Errno::INVAL { error.advise("the user namespace maps no such id") } else { error }
    };
    let groups: Vec<Gid> = process.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let set = if process.keep_groups { Ok(()) } else { set_thread_groups(&groups) };
    match set {
        Err(Errno::PERM) if groups.is_empty() && (in_user_namespace(plan) || setgroups_denied(plan)) => {}
        set => set.map_err(|cause| failed(format!("setting additional groups {:?}", process.groups), cause))?,
    }
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    set_thread_res_gid(gid, gid, gid).map_err(|cause| failed(format!("setting group {}", process.gid), cause))?;
    set_thread_res_uid(uid, uid, uid).map_err(|cause| failed(format!("setting user {}", process.uid), cause))?;
    process.capabilities.apply()?;
    if process.no_new_privileges {
        load(init)?;
    }
    Ok(())
}

/// True in a user namespace, which the runtime itself may run in, that gave up changing groups.
fn setgroups_denied(plan: &Plan) -> bool {
    plan.proc.read("self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// Loads the filter. Where it notifies, its listener has to get the descriptor before anything else is called: until then a call
/// that notifies would wait for nobody.
fn load(init: &Init<'_>) -> Result<()> {
    let Some(filter) = &init.plan.seccomp else { return Ok(()) };
    let listener = towline_sys::load_seccomp(&filter.program(), filter.flags())
        .map_err(|cause| Error::sys("loading the seccomp filter", cause))?;
    let Some(listener) = listener else { return Ok(()) };
    if init.plan.sendmsg_notifies {
        init.channel.send_by_sendmmsg(&Message::Listener, listener.as_fd())?;
    } else {
        init.channel.send(&Message::Listener, Some(listener.as_fd()))?;
    }
    init.channel.expect(&Message::ListenerTaken, "the seccomp listener to be there")
}

/// Labels that take effect with execve, through the verified procfs (CVE-2019-19921).
fn security_labels(init: &Init<'_>) -> Result<()> {
    let (process, proc) = (&init.plan.process, &init.plan.proc);
    if let Some(profile) = &process.apparmor_profile {
        let value = format!("exec {profile}");
        let result = match proc.try_write("self/attr/apparmor/exec", &value) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => proc.try_write("self/attr/exec", &value),
            result => result,
        };
        result.map_err(|cause| {
            Error::sys(format!("setting process.apparmorProfile {profile}"), cause).advise("is AppArmor enabled on this host?")
        })?;
    }
    if let Some(label) = &process.selinux_label {
        proc.try_write("self/attr/exec", label).map_err(|cause| {
            Error::sys(format!("setting process.selinuxLabel {label}"), cause).advise("is SELinux enabled on this host?")
        })?;
    }
    Ok(())
}

/// Gives pipes on stdin, stdout and stderr to the user, who could not open /dev/stdout otherwise. Nothing else is touched: a
/// caller's /dev/null, files and terminals belong to somebody.
fn own_stdio(uid: u32) -> Result<()> {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        own_pipe(fd, uid)?;
    }
    Ok(())
}

fn own_pipe(fd: BorrowedFd<'_>, uid: u32) -> Result<()> {
    let stat = match rustix::fs::fstat(fd) {
        Err(Errno::BADF) => return Ok(()),
        stat => stat.map_err(|cause| Error::sys("looking at the standard streams", cause))?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo || stat.st_uid == uid {
        return Ok(());
    }
    match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
        // An id that is not mapped, or a pipe of somebody else's: then the user has only the open descriptor.
        Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => Ok(()),
        Err(cause) => Err(Error::sys("giving the user a standard stream", cause)),
    }
}

fn reset_signals() -> Result<()> {
    towline_sys::default_sigpipe().map_err(|cause| Error::sys("resetting SIGPIPE", cause))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|cause| Error::sys("unblocking signals", std::io::Error::from(cause)))
}

/// execve. Comes back only with an error.
pub fn execute(init: &Init<'_>) -> Error {
    let process = &init.plan.process;
    let tried = format!("exec {}", init.program.display());
    let Ok(program) = CString::new(init.program.as_os_str().as_bytes()) else {
        return Error::new(Outcome::BadInput, tried).because("its path contains a NUL byte");
    };
    let home = (variable(&process.env, b"HOME").is_none()).then(|| home_of(process.uid));
    let env: Vec<&CStr> = process.env.iter().map(CString::as_c_str).chain(home.as_deref()).collect();
    let Err(cause) = nix::unistd::execve(&program, &process.args, &env);
    let outcome = match cause {
        // ENOENT here is a missing interpreter.
        nix::Error::ENOENT | nix::Error::ENOTDIR => Outcome::CommandNotFound,
        nix::Error::EACCES | nix::Error::EPERM | nix::Error::ENOEXEC | nix::Error::EISDIR => Outcome::CommandNotExecutable,
        _ => Outcome::Io,
    };
    Error::new(outcome, tried).because(lower_case(cause))
}

/// podman matches the texts of strerror in lower case, as Go prints them.
fn lower_case(cause: nix::Error) -> String {
    cause.desc().to_ascii_lowercase()
}

/// `HOME=` for a user, from the image's /etc/passwd; `/` when it does not say.
fn home_of(uid: u32) -> CString {
    const MAX_PASSWD: u64 = 1 << 20;
    let mut passwd = Vec::new();
    let read = open_image_file("/etc/passwd").and_then(|file| file.take(MAX_PASSWD).read_to_end(&mut passwd));
    let home = read.ok().and_then(|_| home_in(&passwd, uid)).unwrap_or_else(|| PathBuf::from("/"));
    let mut entry = b"HOME=".to_vec();
    entry.extend(home.into_os_string().into_vec());
    CString::new(entry).unwrap_or_else(|_| c"HOME=/".to_owned())
}

/// Opens a regular file of the image. Anything else could have effects, or keep us waiting for ever: a FIFO that nobody writes.
fn open_image_file(path: &str) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let kind = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode);
    if kind(rustix::fs::stat(path)?) != FileType::RegularFile {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if kind(rustix::fs::fstat(&file)?) == FileType::RegularFile { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

fn home_in(passwd: &[u8], uid: u32) -> Option<PathBuf> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let found: u32 = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
        let home = fields.get(5).filter(|home| home.starts_with(b"/"))?;
        (found == uid).then(|| PathBuf::from(OsStr::from_bytes(home)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_directories() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:7:7::rel:/bin/sh\nv:x:8:8::/h v:/bin/sh\n";
        assert_eq!(home_in(passwd, 0), Some("/root".into()));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), Some("/h v".into()));
        assert_eq!(home_in(passwd, 9), None);
    }

    #[test]
    fn the_last_of_equal_variables_counts() {
        let env = [c"PATH=/a".to_owned(), c"PATHS=/x".to_owned(), c"PATH=/b".to_owned()];
        assert_eq!(variable(&env, b"PATH"), Some(&b"/b"[..]));
        assert_eq!(variable(&env, b"HOME"), None);
    }
}
