//! The server's side.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{UnixListener, UnixStream};

use super::{Code, MAX_MESSAGE, NAMESPACE, Status, framed, messages, read};
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
    /// The request.
    pub message: Bytes,
}

/// Whoever answers calls.
pub trait Service: Send + Sync + 'static {
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

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, service: Arc<impl Service>) {
    let (head, mut body) = request.into_parts();
    let method = head.uri.path().to_owned();
    let namespace = head.headers.get(NAMESPACE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let result = match one(&mut body).await {
        Ok(message) => service.call(Call { method: method.clone(), namespace, message }).await,
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

/// Percent-encoded (gRPC over HTTP/2, "Status-Message").
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => write!(out, "%{byte:02X}").expect("writing into a string does not fail"),
            _ => out.push(char::from(byte)),
        }
        out
    })
}
