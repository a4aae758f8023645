//! The Task API: which request is what. Versions 2 and 3 are the same but for their name.

use containerd_shim_protos::api::ShutdownRequest;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::empty::Empty;

use super::{Tasks, sandbox};
use crate::rpc::server::{Reply, Service};
use crate::rpc::status::{Answer, Code, Failure};

/// The names of the service.
pub const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

pub(super) fn decode<M: Message>(payload: &[u8]) -> Answer<M> {
    M::parse_from_bytes(payload).map_err(|error| Failure::invalid(format!("decoding the request: {error}")))
}

impl Service for Tasks {
    fn is_quick(&self, service: &str, method: &str) -> bool {
        match service {
            sandbox::NAME => matches!(method, "WaitSandbox" | "SandboxStatus" | "PingSandbox" | "Platform"),
            _ => NAMES.contains(&service) && matches!(method, "State" | "Wait" | "Connect" | "ResizePty" | "CloseIO" | "Exec"),
        }
    }

    fn call(&self, service: &str, method: &str, payload: &[u8], reply: Reply) {
        if service == sandbox::NAME {
            return self.call_sandbox(method, payload, reply);
        }
        if !NAMES.contains(&service) {
            let message = format!("this shim has no service {service:.100}");
            return reply.send::<Empty>(Err(Failure::new(Code::UNIMPLEMENTED, message)));
        }
        match method {
            "State" => reply.send(decode(payload).and_then(|request| self.state(&request))),
            "Create" => reply.send(decode(payload).and_then(|request| self.create(&request))),
            "Start" => reply.send(decode(payload).and_then(|request| self.start(&request))),
            "Delete" => reply.send(decode(payload).and_then(|request| self.delete(&request))),
            "Pids" => reply.send(decode(payload).and_then(|request| self.pids(&request))),
            "Pause" => reply.send(decode(payload).and_then(|request| self.pause(&request))),
            "Resume" => reply.send(decode(payload).and_then(|request| self.resume(&request))),
            "Checkpoint" => reply.send(decode(payload).and_then(|request| self.checkpoint(&request))),
            "Kill" => reply.send(decode(payload).and_then(|request| self.kill(&request))),
            "Exec" => reply.send(decode(payload).and_then(|request| self.exec(&request))),
            "ResizePty" => reply.send(decode(payload).and_then(|request| self.resize_pty(&request))),
            "CloseIO" => reply.send(decode(payload).and_then(|request| self.close_io(&request))),
            "Update" => reply.send(decode(payload).and_then(|request| self.update(&request))),
            "Stats" => reply.send(decode(payload).and_then(|request| self.stats(&request))),
            "Connect" => reply.send(decode(payload).and_then(|request| self.connect(&request))),
            "Wait" => match decode(payload) {
                Ok(request) => self.wait(&request, reply),
                Err(failure) => reply.send::<Empty>(Err(failure)),
            },
            "Shutdown" => self.shut_down(payload, reply),
            _ => reply.send::<Empty>(Err(Failure::new(Code::UNIMPLEMENTED, format!("{service} has no method {method:.100}")))),
        }
    }
}

impl Tasks {
    /// Ends the shim, if it has no container left: containerd says so after each that it deleted.
    fn shut_down(&self, payload: &[u8], reply: Reply) {
        let decoded = decode::<ShutdownRequest>(payload);
        let over = decoded.is_ok() && self.containers().is_empty();
        reply.send(decoded.map(|_| Empty::new()));
        if over {
            (self.stop)();
        }
    }
}
