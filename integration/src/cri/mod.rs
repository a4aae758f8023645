//! A client of Kubernetes' Container Runtime Interface (`runtime.v1`), as a kubelet is one.
//!
//! The messages are written down by hand as far as tests need them: bindings made from the whole definition would need a protocol
//! compiler and more time to build than all of this crate.

pub mod messages;
pub mod websocket;

use std::path::{Path, PathBuf};

use prost::Message;

use crate::grpc::{self, Status};
use messages::*;

/// The CRI of a containerd.
pub struct Cri {
    socket: PathBuf,
}

impl Cri {
    /// Of the server on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Calls a method of the runtime service, which may fail.
    pub fn try_call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Status> {
        grpc::call(&self.socket, None, &format!("/runtime.v1.RuntimeService/{method}"), request)
    }

    /// Calls a method of the runtime service.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> A {
        self.try_call(method, request).unwrap_or_else(|status| panic!("{method}: {status:?}"))
    }

    /// Calls a method of the image service, which may fail.
    fn try_image<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Status> {
        grpc::call(&self.socket, None, &format!("/runtime.v1.ImageService/{method}"), request)
    }

    /// Whether the image is there.
    pub fn has_image(&self, name: &str) -> bool {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        let answer: Result<ImageStatusResponse, _> = self.try_image("ImageStatus", &request);
        answer.is_ok_and(|answer| answer.image.is_some())
    }

    /// Pulls an image, with a user and a password or none.
    pub fn pull(&self, name: &str, login: Option<(&str, &str)>) -> Result<String, Status> {
        let auth = login.map(|(user, password)| AuthConfig { username: user.to_owned(), password: password.to_owned() });
        let request = PullImageRequest { image: Some(ImageSpec { image: name.to_owned() }), auth };
        let answer: PullImageResponse = self.try_image("PullImage", &request)?;
        Ok(answer.image_ref)
    }

    /// Runs a program in a container and waits for its end.
    #[track_caller]
    pub fn exec(&self, container: &str, program: &[&str]) -> ExecSyncResponse {
        let cmd = program.iter().map(|&word| word.to_owned()).collect();
        self.call("ExecSync", &ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 120 })
    }
}
