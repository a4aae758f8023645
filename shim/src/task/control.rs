//! What changes processes that are there.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, KillRequest, PauseRequest, ResizePtyRequest, ResumeRequest, UpdateTaskRequest,
};
use containerd_shim_protos::events::task::{TaskCheckpointed, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::topics::{TASK_CHECKPOINTED_EVENT_TOPIC, TASK_PAUSED_EVENT_TOPIC, TASK_RESUMED_EVENT_TOPIC};
use containerd_shim_protos::types::empty::Empty;
use towline_runtime::client::{Images, Save};
use towline_runtime::{Error, Outcome};

use super::Tasks;
use super::container::Container;
use super::process::Phase;
use crate::options;
use crate::rpc::status::{Answer, Failure};
use crate::stdio::Streams;

impl Tasks {
    pub(super) fn kill(&self, request: &KillRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let signal = i32::try_from(request.signal).map_err(|_| Failure::invalid(format!("{} is no signal", request.signal)))?;
        let what = || format!("sending signal {signal} to {}/{}", container.id, request.exec_id);
        let (pidfd, phase, ended) = {
            let mut state = container.state();
            let process = state.process(&container.id, &request.exec_id)?;
            (process.pidfd.clone(), process.phase, process.exit.is_some())
        };
        let over = || Failure::not_found(format!("{}: process already finished", what()));
        if request.all && request.exec_id.is_empty() {
            container.runtime.kill(&container.id, &signal.to_string(), true)?;
            return Ok(Empty::new());
        }
        let Some(pidfd) = pidfd else {
            // containerd waits for the end of what it is told has ended; what never ran has none.
            return Err(if ended { over() } else { Failure::precondition(format!("{}: it was not started", what())) });
        };
        if phase == Phase::Paused {
            // Frozen processes take a signal only when the runtime lets them.
            container.runtime.kill(&container.id, &signal.to_string(), false)?;
            return Ok(Empty::new());
        }
        match towline_sys::pidfd_send_signal(std::os::fd::AsFd::as_fd(&*pidfd), signal) {
            Ok(()) => Ok(Empty::new()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(over()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Failure::invalid(format!("{}: {error}", what()))),
            Err(cause) => Err(Error::sys(what(), cause).into()),
        }
    }

    pub(super) fn pause(&self, request: &PauseRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        freeze(&container, Phase::Running, Phase::Paused, || container.runtime.pause(&container.id))?;
        let mut event = TaskPaused::new();
        event.container_id.clone_from(&container.id);
        container.events().publish(TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    pub(super) fn resume(&self, request: &ResumeRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        freeze(&container, Phase::Paused, Phase::Running, || container.runtime.resume(&container.id))?;
        let mut event = TaskResumed::new();
        event.container_id.clone_from(&container.id);
        container.events().publish(TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    pub(super) fn update(&self, request: &UpdateTaskRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let resources = request.resources.as_ref().ok_or_else(|| Failure::invalid("the request has no resources"))?;
        container.runtime.update(&container.id, &resources.value)?;
        Ok(Empty::new())
    }

    pub(super) fn checkpoint(&self, request: &CheckpointTaskRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let given = match request.options.as_ref() {
            Some(any) if options::name(any) == "containerd.runc.v1.CheckpointOptions" => {
                let parsed = CheckpointOptions::parse_from_bytes(&any.value);
                parsed.map_err(|error| Failure::invalid(format!("reading the options of a checkpoint: {error}")))?
            }
            _ => CheckpointOptions::new(),
        };
        let path = if given.image_path.is_empty() { &request.path } else { &given.image_path };
        if path.is_empty() {
            return Err(Failure::invalid("a checkpoint needs a directory"));
        }
        let images = Images {
            path: Path::new(path),
            work: (!given.work_path.is_empty()).then(|| Path::new(&given.work_path)),
            tcp_established: given.open_tcp,
            external_unix_sockets: given.external_unix_sockets,
            shell_job: given.terminal,
            file_locks: given.file_locks,
            cgroups_mode: &given.cgroups_mode,
        };
        let save = Save { images, leave_running: !given.exit, empty_namespaces: &given.empty_namespaces };
        container.runtime.checkpoint(&container.id, &save)?;
        let mut event = TaskCheckpointed::new();
        event.container_id.clone_from(&container.id);
        event.checkpoint.clone_from(path);
        container.events().publish(TASK_CHECKPOINTED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    pub(super) fn resize_pty(&self, request: &ResizePtyRequest) -> Answer<Empty> {
        let size =
            |number: u32| u16::try_from(number).map_err(|_| Failure::invalid(format!("a terminal of {number} columns or rows")));
        let (columns, rows) = (size(request.width)?, size(request.height)?);
        self.streams(&request.id, &request.exec_id)?.resize(columns, rows)?;
        Ok(Empty::new())
    }

    pub(super) fn close_io(&self, request: &CloseIORequest) -> Answer<Empty> {
        if request.stdin {
            self.streams(&request.id, &request.exec_id)?.close_stdin();
        }
        Ok(Empty::new())
    }

    fn streams(&self, id: &str, exec: &str) -> Answer<Arc<Streams>> {
        let container = self.container(id)?;
        let streams = container.state().process(id, exec)?.streams.clone();
        streams.ok_or_else(|| Failure::precondition(format!("the process {id}/{exec} has no streams before it is started")))
    }
}

/// Has the runtime freeze or thaw; the phase follows, unless the container has ended meanwhile.
fn freeze(container: &Container, from: Phase, to: Phase, act: impl FnOnce() -> Result<(), Error>) -> Answer<()> {
    let phase = container.state().init.phase;
    if phase != from {
        let message = format!("container {} is {}, and must be {}", container.id, phase.name(), from.name());
        return Err(Failure::precondition(message));
    }
    match act() {
        // Somebody else did the same at the same time.
        Err(error) if error.outcome() == Outcome::WrongState && container.state().init.phase == to => {}
        other => other?,
    }
    let mut state = container.state();
    if state.init.phase == from {
        state.init.phase = to;
    }
    Ok(())
}
