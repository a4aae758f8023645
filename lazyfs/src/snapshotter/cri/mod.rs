//! The kubelet's image service, handed on to containerd: so that what the kubelet sends with a pull (imagePullSecrets, credential providers)
//! reaches the snapshotter, which containerd does not tell.
//!
//! ```text
//! kubelet --image-service-endpoint--> towlined (this) --the same bytes--> containerd --Prepare--> towlined (snapshotter)
//! ```
//!
//! All calls go on byte for byte, and so do the answers; only the credentials of `PullImage` are looked at. While the pull goes on they
//! are lent to the snapshotter ([`logins`]), which containerd asks for a layer only once it has got manifest and configuration with them. Once
//! such a layer is pulled, or the whole call has succeeded, they are kept for that repository as those that `towline` brings
//! along are: in the state directory, readable by its owner, for the bytes that are still to come. Those of a pull that fails are forgotten.
//!
//! | module | what it is |
//! |---|---|
//! | [`auth`] | from the kubelet's words to credentials |
//! | [`logins`] | which pulls go on, and with which credentials |
//! | [`messages`] | the little that is read of what goes by |

pub mod auth;
pub mod logins;
#[allow(missing_docs, reason = "fields are called as Kubernetes calls them")]
pub mod messages;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

use super::grpc::client::Channel;
use super::grpc::server::{Call, Service, serve};
use super::grpc::{Code, Status};
use crate::daemon::server::{Daemon, listen};
use crate::error::{Error, Result};
use crate::source::BoxFuture;
use logins::{Lent, Logins};
use messages::PullImageRequest;

/// The image service in its two versions, whose messages are the same.
const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"];

/// How long a call may take whose caller sets no end of its own, as the kubelet does for pulls.
const DEADLINE: Duration = Duration::from_secs(6 * 60 * 60);

/// See the module.
struct ImageService {
    daemon: Arc<Daemon>,
    containerd: PathBuf,
    logins: Arc<Logins>,
}

/// Serves in the background, until the process ends.
pub(super) fn start(daemon: &Arc<Daemon>, socket: &Path, containerd: PathBuf, logins: Arc<Logins>) -> Result<()> {
    let tried = || format!("serving the kubelet's image service at {}", socket.display());
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::io("creating", parent, e))?;
    }
    let listener = listen(socket).map_err(|e| e.during(tried()))?;
    tracing::info!("serving the kubelet's image service at {}", socket.display());
    tokio::spawn(serve(listener, Arc::new(ImageService { daemon: daemon.clone(), containerd, logins })));
    Ok(())
}

impl Service for ImageService {
    /// A kubelet that gives up a pull takes away what containerd works on.
    const ENDS_WITH_CALLER: bool = true;

    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            let Some(method) = SERVICES.iter().find_map(|service| call.method.strip_prefix(service)) else {
                let why =
                    format!("{} is not of the image service, which is all that towlined hands on to containerd", call.method);
                return Err(Status::new(Code::Unimplemented, why));
            };
            let lent = if method == "PullImage" { self.lend(&call)? } else { None };
            let answers = self.hand_on(&call).await?;
            if let Some(lent) = lent {
                self.daemon.sources.keep(&[lent.login().clone()])?;
            }
            Ok(answers)
        })
    }
}

impl ImageService {
    fn lend(&self, call: &Call) -> Result<Option<Lent>, Status> {
        let request = PullImageRequest::decode(call.message.clone())
            .map_err(|e| Status::new(Code::InvalidArgument, format!("reading what the kubelet sent: {e}")))?;
        let image = request.image.unwrap_or_default().image;
        let login = request.auth.map(|sent| auth::login(&image, &sent)).transpose()?.flatten();
        Ok(login.map(|login| self.logins.lend(login)))
    }

    async fn hand_on(&self, call: &Call) -> Result<Vec<Vec<u8>>, Status> {
        let channel = Channel::connect(&self.containerd).await?;
        let deadline = call.timeout.unwrap_or(DEADLINE).min(DEADLINE);
        let answers = channel.hand_on(&call.method, &call.message, deadline).await?;
        Ok(answers.iter().map(|answer| answer.to_vec()).collect())
    }
}
