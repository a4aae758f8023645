//! The server's side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{UnixListener, UnixStream};

use super::{Code, MAX_MESSAGE, NAMESPACE, Status, escaped, framed, messages, read, timeout};
use crate::source::BoxFuture;

/// Calls of one client that are worked on side by side.
const CONCURRENT: u32 = 256;

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `/package.Service/Method`.
    pub method: String,
    /// containerd's namespace, where one was named.
    pub namespace: Option<String>,
    /// How long the caller waits, where it says so.
    pub timeout: Option<Duration>,
    /// The request.
    pub message: Bytes,
}

/// Whoever answers calls.
pub trait Service: Send + Sync + 'static {
    /// Whether a call is given up when its caller is gone, wherever it stands. Otherwise what was begun is done.
    const ENDS_WITH_CALLER: bool = false;

    /// The messages of the answer.
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>>;
}

/// Serves whoever connects, until it is dropped.
pub async fn serve(listener: UnixListener, service: Arc<impl Service>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, service.clone()))),
            Err(error) => {
                tracing::warn!("containerd waits until it can be accepted: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, service: Arc<impl Service>) {
    let served = async {
        let mut connection = h2::server::Builder::new().max_concurrent_streams(CONCURRENT).handshake(stream).await?;
        while let Some(request) = connection.accept().await {
            let (request, respond) = request?;
            tokio::spawn(answer(request, respond, service.clone()));
        }
        Ok::<_, h2::Error>(())
    };
    if let Err(error) = served.await {
        tracing::debug!("a connection of containerd: {error}");
    }
}

async fn answer<S: Service>(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, service: Arc<S>) {
    let (head, mut body) = request.into_parts();
    let method = head.uri.path().to_owned();
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let (namespace, timeout) = (header(NAMESPACE).map(str::to_owned), header("grpc-timeout").and_then(timeout));
    let result = match one(&mut body).await {
        Ok(message) => {
            let working = service.call(Call { method: method.clone(), namespace, timeout, message });
            let Some(result) = unless_gone(working, &mut respond, S::ENDS_WITH_CALLER).await else {
                tracing::debug!("{method}: given up with its caller");
                return;
            };
            result
        }
        Err(status) => Err(status),
    };
    let (answers, status) = match result {
        Ok(answers) => (answers, None),
        Err(status) => (Vec::new(), Some(status)),
    };
    let sent = (|| {
        let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a constant head");
        let mut stream = respond.send_response(head, false)?;
        answers.iter().try_for_each(|answer| stream.send_data(framed(answer), false))?;
        stream.send_trailers(trailers(status.as_ref()))
    })();
    if let Err(error) = sent {
        // It has gone; what was done for it stays done.
        tracing::debug!("answering {method}: {error}");
    }
}

/// `None` where the caller has gone before the end, if that counts.
async fn unless_gone<T>(working: impl Future<Output = T>, respond: &mut SendResponse<Bytes>, counts: bool) -> Option<T> {
    tokio::select! {
        result = working => Some(result),
        _ = std::future::poll_fn(|context| respond.poll_reset(context)), if counts => None,
    }
}

async fn one(body: &mut h2::RecvStream) -> Result<Bytes, Status> {
    let (bytes, _) = read(body, MAX_MESSAGE).await?;
    match <[Bytes; 1]>::try_from(messages(bytes)?) {
        Ok([message]) => Ok(message),
        Err(other) => Err(Status::new(Code::InvalidArgument, format!("a call has one message, not {}", other.len()))),
    }
}

fn trailers(status: Option<&Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = status.map_or(0, |status| status.code as u16);
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Some(status) = status {
        let text = HeaderValue::from_str(&escaped(&status.message)).expect("everything else is escaped");
        trailers.insert("grpc-message", text);
    }
    trailers
}
