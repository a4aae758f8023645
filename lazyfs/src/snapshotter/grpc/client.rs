//! The client's side.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

use super::{Code, NAMESPACE, Status, framed, messages, read, unescaped};
use crate::error::{Error, Outcome, Result};

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer in bytes: a list of everything that containerd has.
const MAX_ANSWER: usize = 256 << 20;

/// A connection.
pub struct Channel {
    sender: SendRequest<Bytes>,
    peer: String,
}

impl Channel {
    /// Connects to a socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let peer = socket.display().to_string();
        let failed =
            |e: std::io::Error| Error::new(Outcome::Unavailable, format!("connecting to {}", socket.display())).because(e);
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let (sender, connection) = h2::client::handshake(stream)
            .await
            .map_err(|e| Error::new(Outcome::Unavailable, format!("speaking to {peer}")).because(e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to containerd: {error}");
            }
        });
        Ok(Self { sender, peer })
    }

    /// Calls a method; the messages of its answer.
    pub async fn call<A: Message + Default>(
        &self,
        method: &str,
        namespace: &str,
        message: &impl Message,
    ) -> Result<Vec<A>, Status> {
        let body = message.encode_to_vec();
        let answers = self.in_time(DEADLINE, method, self.exchange(method, Some(namespace), &body)).await?;
        let bad = |e| Status::new(Code::Internal, format!("reading the answer to {method} of {}: {e}", self.peer));
        answers.into_iter().map(|answer| A::decode(answer).map_err(bad)).collect()
    }

    /// Hands on a call of somebody else; the messages of its answer as they are.
    pub async fn hand_on(&self, method: &str, message: &[u8], deadline: Duration) -> Result<Vec<Bytes>, Status> {
        self.in_time(deadline, method, self.exchange(method, None, message)).await
    }

    async fn in_time<T>(
        &self,
        deadline: Duration,
        method: &str,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = || Status::new(Code::DeadlineExceeded, format!("{} has not answered {method} for {deadline:?}", self.peer));
        tokio::time::timeout(deadline, answer).await.map_err(|_| late())?
    }

    async fn exchange(&self, method: &str, namespace: Option<&str>, message: &[u8]) -> Result<Vec<Bytes>, Status> {
        let failed = |e: h2::Error| Status::new(Code::Unavailable, format!("calling {method}: {e}"));
        let mut request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(namespace) = namespace {
            request = request.header(NAMESPACE, namespace);
        }
        let request = request
            .body(())
            .map_err(|e| Status::new(Code::InvalidArgument, format!("calling {method} in namespace {namespace:?}: {e}")))?;
        let mut sender = self.sender.clone().ready().await.map_err(failed)?;
        let (response, mut stream) = sender.send_request(request, false).map_err(failed)?;
        stream.send_data(framed(message), true).map_err(failed)?;
        let (head, mut body) = response.await.map_err(failed)?.into_parts();
        if head.headers.contains_key("grpc-status") {
            return check(&head.headers).map(|()| Vec::new());
        }
        let (bytes, trailers) = read(&mut body, MAX_ANSWER).await?;
        check(&trailers.unwrap_or_default())?;
        messages(bytes)
    }
}

/// Fails with what the peer says went wrong.
fn check(headers: &HeaderMap) -> Result<(), Status> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(code) = text("grpc-status").and_then(|text| text.parse::<u32>().ok()) else {
        return Err(Status::new(Code::Unknown, "the answer has no status"));
    };
    match code {
        0 => Ok(()),
        code => Err(Status::new(Code::of(code), unescaped(text("grpc-message").unwrap_or_default()))),
    }
}
