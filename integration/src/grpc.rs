//! Unary gRPC calls over a unix socket: HTTP/2 of the crate h2, messages of prost. One connection a call; each has a deadline.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// Longer than any call that ends takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// gRPC's number; 2 (unknown) for what went wrong on the way.
    pub code: u32,
    /// The server's message, percent encoding and all.
    pub message: String,
}

impl Status {
    fn of(message: impl ToString) -> Self {
        Self { code: 2, message: message.to_string() }
    }
}

/// Calls `method` (`/package.Service/Method`) of the server that listens on `socket`. Where `namespace` names one of containerd's
/// namespaces, that is meant.
pub fn call<A: Message + Default>(
    socket: &Path,
    namespace: Option<&str>,
    method: &str,
    request: &impl Message,
) -> Result<A, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Status::of)?;
    runtime.block_on(async {
        let late = |_| Status::of(format!("no answer to {method} for {DEADLINE:?}"));
        tokio::time::timeout(DEADLINE, exchange(socket, namespace, method, request.encode_to_vec())).await.map_err(late)?
    })
}

async fn exchange<A: Message + Default>(
    socket: &Path,
    namespace: Option<&str>,
    method: &str,
    message: Vec<u8>,
) -> Result<A, Status> {
    let stream = UnixStream::connect(socket).await.map_err(Status::of)?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(Status::of)?;
    // Ends with the runtime; what fails is seen by the call itself.
    let _driver = tokio::spawn(connection);
    let mut sender = sender.ready().await.map_err(Status::of)?;
    let mut request =
        Request::post(format!("http://localhost{method}")).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(namespace) = namespace {
        request = request.header("containerd-namespace", namespace);
    }
    let request = request.body(()).map_err(Status::of)?;
    let (response, mut body) = sender.send_request(request, false).map_err(Status::of)?;
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(Status::of)?);
    frame.extend_from_slice(&message);
    body.send_data(frame.freeze(), true).map_err(Status::of)?;
    let (head, stream) = response.await.map_err(Status::of)?.into_parts();
    let (data, trailers) = receive(stream).await?;
    // A server that only fails says so in the head.
    check(&trailers).and_then(|known| if known { Ok(()) } else { check(&head.headers).map(drop) })?;
    let payload = data.get(5..).ok_or_else(|| Status::of("the answer has no message"))?;
    A::decode(payload).map_err(Status::of)
}

async fn receive(mut stream: RecvStream) -> Result<(Bytes, HeaderMap), Status> {
    let mut data = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.map_err(Status::of)?;
        stream.flow_control().release_capacity(chunk.len()).map_err(Status::of)?;
        data.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await.map_err(Status::of)?.unwrap_or_default();
    Ok((data.freeze(), trailers))
}

/// Whether there is a status; an error if it is one.
fn check(headers: &HeaderMap) -> Result<bool, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|code| code.parse().unwrap_or(2)) {
        None => Ok(false),
        Some(0) => Ok(true),
        Some(code) => Err(Status { code, message: text("grpc-message").unwrap_or_default().to_owned() }),
    }
}
