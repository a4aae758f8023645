//! Create: the container and its first process, which waits for its start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::topics::TASK_CREATE_EVENT_TOPIC;
use serde::Deserialize;
use towline_runtime::client::{self, Runtime};
use towline_runtime::{Error, Outcome};

use super::Tasks;
use super::container::{Container, Parts, pidfd};
use super::process::{Names, Phase, Process};
use crate::metrics::Cgroups;
use crate::record::Record;
use crate::rpc::status::{Answer, Code, Failure};
use crate::stdio::{Owner, Prepared, Role, Spec};
use crate::{log, options, rootfs};

/// Where the runtime writes the pid of the first process; `delete` of a shim that is gone reads it.
pub(crate) const PID_FILE: &str = "init.pid";
/// The longest id that is taken; containerd's are of 76 bytes at most.
const LONGEST_ID: usize = 255;

/// What the shim reads of config.json; the runtime reads the rest.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Config {
    /// Of the whole container.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Config {
    /// Reads that of a bundle.
    pub(crate) fn read(bundle: &Path) -> towline_runtime::Result<Self> {
        let path = bundle.join("config.json");
        let file = std::fs::File::open(&path).map_err(|cause| Error::io("opening", &path, cause))?;
        let read = serde_json::from_reader(std::io::BufReader::new(file));
        read.map_err(|error| Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(error))
    }

    fn has_private_pids(&self) -> bool {
        let namespaces = self.linux.as_ref().map(|linux| linux.namespaces.as_slice()).unwrap_or_default();
        namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

/// An id becomes a part of paths.
pub(super) fn check_id(id: &str) -> Answer<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-+".contains(c);
    match !id.is_empty() && id.len() <= LONGEST_ID && id != "." && id != ".." && id.chars().all(plain) {
        true => Ok(()),
        false => Err(Failure::invalid(format!("{id:.300?} is no id: letters, digits and _.-+ are"))),
    }
}

impl Tasks {
    pub(super) fn create(&self, request: &CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let container = Arc::new(self.describe(request)?);
        {
            let mut containers = self.containers();
            if containers.contains_key(&request.id) {
                return Err(Failure::new(Code::ALREADY_EXISTS, format!("there is a container {} in this shim", request.id)));
            }
            containers.insert(request.id.clone(), Arc::clone(&container));
        }
        let made = self.make(&container, request);
        if made.is_err() {
            self.containers().remove(&request.id);
            undo(&container);
        }
        let mut response = CreateTaskResponse::new();
        response.pid = made?.unsigned_abs();
        Ok(response)
    }

    /// Everything about the container that can be wrong before something is made.
    fn describe(&self, request: &CreateTaskRequest) -> Answer<Container> {
        check_id(&request.id)?;
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(Failure::invalid(format!("the bundle {:.300?} is no absolute path", request.bundle)));
        }
        let given = request.options.as_ref().map(options::read).transpose()?.flatten();
        let options = given.unwrap_or_default();
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let spec = Spec::new(&names.stdin, &names.stdout, &names.stderr, names.terminal)?;
        Ok(Container::new(Parts {
            private_pids: Config::read(&bundle)?.has_private_pids(),
            runtime: self.runtime(&options, &bundle)?,
            rootfs: (!request.rootfs.is_empty()).then(|| bundle.join("rootfs")),
            id: request.id.clone(),
            checkpoint: request.checkpoint.clone(),
            init: Process::new(names, spec, Phase::Creating),
            events: Arc::clone(&self.environment.events),
            bundle,
            options,
        }))
    }

    fn runtime(&self, options: &Options, bundle: &Path) -> Answer<Runtime> {
        let binary = self.environment.search.binary(options)?;
        let root = options::state_root(options, &self.environment.namespace);
        Record::new(binary.clone(), root.clone(), options.systemd_cgroup).write(bundle)?;
        let runtime = Runtime::new(binary, bundle).with_root(root).with_systemd_cgroup(options.systemd_cgroup);
        Ok(runtime.with_children(Arc::clone(&self.environment.reaper) as Arc<dyn client::Children>))
    }

    fn make(&self, container: &Arc<Container>, request: &CreateTaskRequest) -> Answer<i32> {
        if let Some(target) = &container.rootfs {
            std::fs::create_dir_all(target).map_err(|cause| Error::io("making", target, cause))?;
            rootfs::mount_all(&request.rootfs, target)?;
        }
        let mut event = TaskCreate::new();
        event.container_id.clone_from(&container.id);
        event.bundle.clone_from(&request.bundle);
        event.rootfs.clone_from(&request.rootfs);
        event.checkpoint.clone_from(&request.checkpoint);
        let mut io = TaskIO::new();
        (io.stdin, io.stdout, io.stderr) = (request.stdin.clone(), request.stdout.clone(), request.stderr.clone());
        io.terminal = request.terminal;
        event.io = MessageField::some(io);
        if !container.checkpoint.is_empty() {
            // Its start brings it back; until then there is no process.
            container.state().init.phase = Phase::Created;
            container.events().publish(TASK_CREATE_EVENT_TOPIC, &event);
            return Ok(0);
        }
        let window = self.environment.reaper.window();
        let create = |options: client::Options<'_>| {
            let created = container.runtime.create(&container.id, &container.bundle, options);
            created.map_err(|error| Failure::of_runtime("create", error))
        };
        let pid = self.bring_up(container, create)?;
        event.pid = pid.unsigned_abs();
        {
            let mut state = container.state();
            state.init.phase = Phase::Created;
            container.events().publish(TASK_CREATE_EVENT_TOPIC, &event);
        }
        container.watch(&self.environment.reaper, &window, "", pid);
        Ok(pid)
    }

    /// Has the runtime make the first process, with its streams.
    pub(super) fn bring_up(
        &self,
        container: &Arc<Container>,
        make: impl FnOnce(client::Options<'_>) -> Answer<()>,
    ) -> Answer<i32> {
        let spec = container.state().init.spec.clone();
        let owner = Owner { namespace: &self.environment.namespace, id: &container.id };
        let mut prepared = Prepared::open(&spec, Role::Container, owner, &self.console())?;
        prepared.give(container.options.io_uid, container.options.io_gid)?;
        let file = container.file(PID_FILE);
        let stdio = prepared.ends();
        make(client::Options {
            pid_file: Some(&file),
            console_socket: prepared.console(),
            stdio,
            no_pivot: container.options.no_pivot_root,
            no_new_keyring: container.options.no_new_keyring,
        })?;
        let pid = container.read_pid(&file)?;
        let streams = prepared.start()?;
        let pidfd = pidfd(pid)?;
        let cgroups = self.find_cgroups(container, pid);
        let mut state = container.state();
        state.init.pid = pid;
        state.init.pidfd = pidfd;
        state.init.streams = Some(Arc::new(streams));
        state.cgroups = cgroups;
        Ok(pid)
    }

    /// The cgroups of the first process, which are watched for OOM. A container goes without figures rather than not at all.
    fn find_cgroups(&self, container: &Container, pid: i32) -> Option<Cgroups> {
        let found = Cgroups::of(pid).and_then(|cgroups| {
            cgroups.memory().map_or(Ok(()), |(version, dir)| self.environment.oom.add(&container.id, version, dir))?;
            Ok(cgroups)
        });
        found.map_err(|error| log::warn(format_args!("container {}: {}", container.id, error.one_line()))).ok()
    }
}

/// Takes back what a failed create has made.
fn undo(container: &Container) {
    let deleted = container.runtime.delete(&container.id, true);
    let unmounted = container.rootfs.as_ref().map_or(Ok(()), |target| rootfs::unmount_all(target));
    for error in [deleted, unmounted].into_iter().filter_map(Result::err) {
        log::error(format_args!("after a failed create of {}: {}", container.id, error.one_line()));
    }
}
