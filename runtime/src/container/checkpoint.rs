//! `checkpoint`: a running container as files, by CRIU. What `restore` needs to know of it is here too.
//!
//! ```text
//! running ----- dump ----> deleted (as runc does), its images stay
//!     |         dump --leave-running, or --pre-dump: it goes on running
//!     +-- failed: criu lets every process go on
//! ```

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::delete::destroy;
use super::prepare::linux;
use super::{Container, Context};
use crate::bundle::Bundle;
use crate::cgroup::{CgroupManager, CgroupMount, Source};
use crate::client::Status;
use crate::criu::rpc::{CgroupMode, Kind as Request, Options};
use crate::criu::session::{Notification, Session, explain};
use crate::criu::{self, CONFIG_ANNOTATION};
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::process::namespaces::Kind;

/// Names of what the program's standard streams were: a pipe among them is the caller's at restore. As runc writes it.
pub(super) const DESCRIPTORS: &str = "descriptors.json";

/// Settings for all containers, where the container has no annotation.
const CONFIG_FILE: &str = "/etc/criu/towline.conf";

/// What masked files are.
pub(super) const NULL: &str = "/dev/null";

const LOG: &str = "dump.log";

/// What `checkpoint` and `restore` are told alike.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "criu(8) describes them by these names")]
pub struct CriuOptions {
    /// Where the images are.
    pub image_path: PathBuf,
    /// Where criu's logs go; by default beside the images.
    pub work_path: Option<PathBuf>,
    pub tcp_established: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    pub cgroup_mode: CgroupMode,
}

/// What only `checkpoint` is told.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// The common part.
    pub criu: CriuOptions,
    /// Images of an earlier pre-dump, relative to the image path.
    pub parent_path: Option<PathBuf>,
    /// The container goes on running.
    pub leave_running: bool,
    /// Memory only; the container goes on running.
    pub pre_dump: bool,
    /// Leave connections out that are being made.
    pub tcp_skip_in_flight: bool,
    /// Address and port of a page server.
    pub page_server: Option<(String, u16)>,
    /// Gets a NUL byte when the pages can be asked for.
    pub status_fd: Option<i32>,
}

/// Saves container `id`.
pub fn checkpoint(context: &Context, id: &ContainerId, options: &CheckpointOptions) -> Result<()> {
    let container = context.load(id)?;
    match container.status(context)? {
        Status::Running | Status::Paused => {}
        status => {
            let why = format!("container cannot be checkpointed in {} state", status.as_str());
            return Err(container.wrong_state("checkpointing", &why));
        }
    }
    criu::find()?;
    let dirs = Directories::open(&options.criu)?;
    check_parent(options)?;
    let bundle = Bundle::parse(container.record.bundle.clone(), container.dir.load_config()?)?;
    let request = request(context, &container, &bundle.spec, options, &dirs)?;
    if !options.pre_dump {
        save_descriptors(context, &container, dirs.images.as_fd())?;
    }
    if options.pre_dump || options.lazy_pages() {
        check_features(options)?;
    }
    let kind = if options.pre_dump { Request::PreDump } else { Request::Dump };
    let mut session = Session::start(false, &[])?;
    let mut status_fd = options.status_fd;
    let mut notified = |event: Notification<'_>| {
        context.step(&format!("criu: {}", event.name));
        pages_ready(&event, &mut status_fd)
    };
    session
        .talk(kind, Some(&request), &mut notified)
        .and_then(|_| session.end())
        .map_err(|error| explain(error, &dirs.log(LOG)).during(format!("checkpointing container {id}")))?;
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    destroy(context, &container.dir, &container.record)
}

impl CheckpointOptions {
    fn lazy_pages(&self) -> bool {
        self.criu.lazy_pages
    }
}

fn request(
    context: &Context,
    container: &Container,
    spec: &Spec,
    options: &CheckpointOptions,
    dirs: &Directories,
) -> Result<Options> {
    let cgroup = container.record.cgroup.as_ref();
    let mut request = dirs.request(&options.criu, spec, LOG);
    request.pid = Some(container.record.init_process_pid);
    request.root = container.record.rootfs.display().to_string();
    request.leave_running = options.leave_running;
    request.tcp_skip_in_flight = options.tcp_skip_in_flight;
    request.page_server = options.page_server.clone();
    request.parent_image = options.parent_path.as_ref().map(|path| path.display().to_string());
    request.freeze_cgroup = cgroup.and_then(CgroupManager::freezer_dir).map(|dir| dir.display().to_string());
    request.external = external_namespaces(context, container, spec)?;
    if !options.pre_dump {
        let outside = external_mounts(spec, cgroup)?;
        request.external_mounts = outside.into_iter().map(|(inside, _)| (inside.clone(), inside)).collect();
        request.external_mounts.extend(masked_files(context, container, spec)?);
    }
    Ok(request)
}

/// Namespaces that the container joined are not saved; a restored one joins them again under this name.
pub(super) fn external_name(kind: LinuxNamespaceType) -> Option<&'static str> {
    match kind {
        LinuxNamespaceType::Network => Some("extRootNetNS"),
        LinuxNamespaceType::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

fn external_namespaces(context: &Context, container: &Container, spec: &Spec) -> Result<Vec<String>> {
    let mut external = Vec::new();
    for (kind, _) in joined(spec) {
        let Some(name) = external_name(kind) else { continue };
        // As the container's first process has it: the configured path may lead elsewhere by now.
        let short = if kind == LinuxNamespaceType::Network { "net" } else { "pid" };
        let link = format!("{}/ns/{short}", container.record.init_process_pid);
        let target = context.proc.read_link(&link).map_err(|cause| Error::sys(format!("reading /proc/{link}"), cause))?;
        let inode = target.trim_start_matches(|c: char| c != '[').trim_matches(['[', ']']);
        external.push(format!("{short}[{inode}]:{name}"));
    }
    Ok(external)
}

/// The namespaces of the configuration that have a path.
pub(super) fn joined(spec: &Spec) -> Vec<(LinuxNamespaceType, PathBuf)> {
    let list = linux(spec).namespaces().iter().flatten();
    list.filter_map(|entry| Some((entry.typ(), entry.path().clone()?))).filter(|(_, path)| !path.as_os_str().is_empty()).collect()
}

/// Mounts whose content is not the container's: where they are in it, and where their content is on the host.
pub(super) fn external_mounts(spec: &Spec, cgroup: Option<&CgroupManager>) -> Result<Vec<(String, String)>> {
    let mut outside = Vec::new();
    let own = |kind: LinuxNamespaceType| linux(spec).namespaces().iter().flatten().any(|entry| entry.typ() == kind);
    for mount in spec.mounts().iter().flatten() {
        let destination = mount.destination().display().to_string();
        let options = mount.options().as_deref().unwrap_or_default();
        let is_bind =
            mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind");
        if is_bind {
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            outside.push((destination, source.display().to_string()));
        } else if mount.typ().as_deref().is_some_and(|kind| kind.starts_with("cgroup"))
            && let Some(cgroup) = cgroup
        {
            cgroup_mounts(&destination, &cgroup.mount_parts(own(LinuxNamespaceType::Cgroup)), &mut outside);
        }
    }
    if own(LinuxNamespaceType::User) {
        // There device nodes are bind mounts of the host's.
        let devices = crate::rootfs::devices::Device::defaults().map(|device| device.path().display().to_string());
        outside.extend(devices.map(|path| (path.clone(), path)));
    }
    Ok(outside)
}

/// Masked files are the host's /dev/null, and all go by its name; masked directories are file systems of the container's own.
fn masked_files(context: &Context, container: &Container, spec: &Spec) -> Result<Vec<(String, String)>> {
    let path = format!("{}/mountinfo", container.record.init_process_pid);
    let mounts = context.proc.read(&path).map_err(|cause| Error::sys(format!("reading /proc/{path}"), cause))?;
    // Fields 4 and 5 of proc_pid_mountinfo(5): what of the file system is mounted, and where.
    let is_file = |masked: &&String| {
        let mut here = mounts.lines().filter_map(|line| line.split(' ').nth(3).zip(line.split(' ').nth(4)));
        here.rfind(|(_, place)| place == masked).is_some_and(|(part, _)| part != "/")
    };
    let masked = linux(spec).masked_paths().iter().flatten().filter(is_file);
    Ok(masked.map(|path| (path.clone(), NULL.to_owned())).collect())
}

/// Without a cgroup namespace the view is made of bind mounts.
fn cgroup_mounts(destination: &str, view: &CgroupMount, outside: &mut Vec<(String, String)>) {
    let mut add = |path: String, source: &Source| {
        if let Source::Bind(dir) = source {
            outside.push((path, dir.display().to_string()));
        }
    };
    match view {
        CgroupMount::Unified(source) => add(destination.to_owned(), source),
        CgroupMount::Split { entries, .. } => {
            entries.iter().for_each(|entry| add(format!("{destination}/{}", entry.name), &entry.source));
        }
    }
}

fn save_descriptors(context: &Context, container: &Container, images: BorrowedFd<'_>) -> Result<()> {
    let pid = container.record.init_process_pid;
    // A stream that is closed has no name.
    let names: Vec<String> = (0..3).map(|fd| context.proc.read_link(&format!("{pid}/fd/{fd}")).unwrap_or_default()).collect();
    let failed = |cause: std::io::Error| Error::sys(format!("writing {DESCRIPTORS} beside the images"), cause);
    let json = serde_json::to_vec(&names).map_err(|cause| failed(cause.into()))?;
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(images, DESCRIPTORS, flags, Mode::from_raw_mode(0o600)).map_err(|cause| failed(cause.into()))?;
    File::from(file).write_all(&json).map_err(failed)
}

fn check_features(options: &CheckpointOptions) -> Result<()> {
    let (memory, lazy) = Session::start(false, &[])?.ask(Request::FeatureCheck, None)?.features;
    for (wanted, there, flag, what) in [
        (options.pre_dump, memory, "--pre-dump", "tracking changes of memory (CONFIG_MEM_SOFT_DIRTY)"),
        (options.lazy_pages(), lazy, "--lazy-pages", "userfaultfd"),
    ] {
        if wanted && !there {
            return Err(Error::new(Outcome::Unsupported, format!("checking {flag}"))
                .because(format!("criu says that this kernel is not capable of {what}")));
        }
    }
    Ok(())
}

fn check_parent(options: &CheckpointOptions) -> Result<()> {
    let Some(parent) = &options.parent_path else { return Ok(()) };
    let bad = |why: String| Err(Error::new(Outcome::BadInput, "checking --parent-path").because(why));
    if parent.is_absolute() {
        return bad(format!("{} is not relative to the image path", parent.display()));
    }
    let whole = options.criu.image_path.join(parent);
    if whole.is_dir() { Ok(()) } else { bad(format!("{} is not a directory", whole.display())) }
}

/// `--status-fd` and lazy pages: from now on the pages can be asked for.
fn pages_ready(event: &Notification<'_>, status_fd: &mut Option<i32>) -> Result<()> {
    if event.name != "status-ready" {
        return Ok(());
    }
    let Some(number) = status_fd.take() else { return Ok(()) };
    // Opened again rather than taken over: the number is the caller's word.
    let path = format!("/proc/self/fd/{number}");
    let mut file = File::options().write(true).open(&path).map_err(|cause| Error::io("opening --status-fd", &path, cause))?;
    file.write_all(&[0]).map_err(|cause| Error::io("writing to --status-fd", &path, cause))
}

/// The directories that criu works in.
#[derive(Debug)]
pub(super) struct Directories {
    pub(super) images: OwnedFd,
    work: Option<OwnedFd>,
    log_dir: PathBuf,
}

impl Directories {
    /// Opens them, and makes those that are missing for their owner alone: images hold the memory of the container.
    pub(super) fn open(options: &CriuOptions) -> Result<Self> {
        let images = open_dir("--image-path", &options.image_path)?;
        let work = options.work_path.as_deref().map(|path| open_dir("--work-path", path)).transpose()?;
        let log_dir = options.work_path.clone().unwrap_or_else(|| options.image_path.clone());
        Ok(Self { images, work, log_dir })
    }

    /// Where criu's log is.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.log_dir.join(name)
    }

    /// The part of a request that dump and restore share.
    pub(super) fn request(&self, options: &CriuOptions, spec: &Spec, log_file: &'static str) -> Options {
        let annotation = spec.annotations().as_ref().and_then(|all| all.get(CONFIG_ANNOTATION).cloned());
        Options {
            images_dir: self.images.as_raw_fd(),
            work_dir: self.work.as_ref().map(AsRawFd::as_raw_fd),
            log_file,
            ext_unix_sk: options.ext_unix_sk,
            tcp_established: options.tcp_established,
            shell_job: options.shell_job,
            file_locks: options.file_locks,
            auto_dedup: options.auto_dedup,
            lazy_pages: options.lazy_pages,
            cgroup_mode: options.cgroup_mode,
            // Devices and addresses of a network namespace are the business of whoever made them.
            empty_namespaces: Kind::NET.flag() as u32,
            config_file: Some(annotation.unwrap_or_else(|| CONFIG_FILE.to_owned())).filter(|path| !path.is_empty()),
            ..Options::default()
        }
    }
}

fn open_dir(flag: &str, path: &Path) -> Result<OwnedFd> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| Error::io(&format!("making {flag}"), path, cause))?;
    let dir = File::open(path).map_err(|cause| Error::io(&format!("opening {flag}"), path, cause))?;
    let data = dir.metadata().map_err(|cause| Error::io(&format!("looking at {flag}"), path, cause))?;
    if !data.is_dir() {
        return Err(Error::new(Outcome::BadInput, format!("opening {flag} {}", path.display())).because("it is not a directory"));
    }
    Ok(dir.into())
}
