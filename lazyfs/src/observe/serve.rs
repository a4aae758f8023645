//! `GET /metrics` over HTTP/1.1, on a Unix socket of the state directory or where the user wants it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::error::{Error, Outcome, Result};

/// How long a request and its answer may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest request that is read, bytes.
const MAX_REQUEST: usize = 8 * 1024;
/// Requests that are served at the same time.
const CLIENTS: usize = 8;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket that only the owner may connect to.
    Unix(PathBuf),
    /// A TCP address; whoever reaches it may read.
    Tcp(SocketAddr),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err("the path of a Unix socket has to be absolute: unix:/DIR/NAME".into()),
            None => text.parse().map(Self::Tcp).map_err(|_| "write ADDRESS:PORT, or unix:/DIR/NAME".into()),
        }
    }
}

/// Listens, and serves on tasks of the runtime until the process ends. `render` gives the text of each answer.
pub async fn listen<R, F>(place: &Place, render: R) -> Result<()>
where
    R: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send,
{
    let render = Arc::new(render);
    let clients = Arc::new(Semaphore::new(CLIENTS));
    match place {
        Place::Tcp(address) => {
            let failed =
                |e| Error::io("listening on", address.to_string(), e).advise("is the port free, and the address this machine's?");
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => answer(stream, &render, &clients).await,
                        Err(error) => rest(&error).await,
                    }
                }
            });
        }
        Place::Unix(path) => {
            let listener = bind(path)?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => answer(stream, &render, &clients).await,
                        Err(error) => rest(&error).await,
                    }
                }
            });
        }
    }
    Ok(())
}

/// Out of descriptors, most likely.
async fn rest(error: &std::io::Error) {
    tracing::warn!("accepting a reader of metrics: {error}");
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// Only in a directory that others may not enter would a socket be safe without this order: bound under another name until its mode is right.
fn bind(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    };
    if std::fs::symlink_metadata(path).is_ok_and(|found| !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())) {
        let error = Error::new(Outcome::Busy, format!("listening on {}", path.display()));
        return Err(error.because("there is something that is not a socket").advise("take another path"));
    }
    let new = path.with_extension("new");
    remove(&new)?;
    let listener = UnixListener::bind(&new).map_err(|e| Error::io("listening on", &new, e))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(|e| Error::io("protecting", &new, e))?;
    std::fs::rename(&new, path).map_err(|e| Error::io("naming", path, e))?;
    Ok(listener)
}

async fn answer<S, R, F>(stream: S, render: &Arc<R>, clients: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send,
{
    let permit = Arc::clone(clients).acquire_owned().await.expect("the semaphore is never closed");
    let render = Arc::clone(render);
    tokio::spawn(async move {
        match tokio::time::timeout(DEADLINE, one(stream, &*render)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("a reader of metrics: {error}"),
            Err(_) => tracing::debug!("a reader of metrics took longer than {DEADLINE:?}"),
        }
        drop(permit);
    });
}

/// One request; the connection closes behind the answer.
async fn one<S, R, F>(mut stream: S, render: &R) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn() -> F,
    F: Future<Output = String>,
{
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return reply(&mut stream, "400 Bad Request", "the request has no end\n").await;
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    match line.split(|&byte| byte == b' ').collect::<Vec<_>>()[..] {
        [b"GET", path, _] if path == b"/metrics" || path == b"/" => reply(&mut stream, "200 OK", &render().await).await,
        [b"GET", ..] => reply(&mut stream, "404 Not Found", "metrics are at /metrics\n").await,
        _ => reply(&mut stream, "405 Method Not Allowed", "only GET is served\n").await,
    }
}

async fn reply(stream: &mut (impl AsyncWrite + Unpin), status: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_are_read_over_both_kinds_of_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for place in [Place::Unix(path.clone()), Place::Unix(path.clone()), Place::Tcp(free)] {
            listen(&place, || async { "towline_x 1\n".to_owned() }).await.unwrap();
            for (request, status, body) in [
                ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK", "towline_x 1\n"),
                ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found", "metrics are at /metrics\n"),
                ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "only GET is served\n"),
                ("\r\n\r\n", "405 Method Not Allowed", "only GET is served\n"),
            ] {
                let answer = match &place {
                    Place::Unix(path) => ask(tokio::net::UnixStream::connect(path).await.unwrap(), request).await,
                    Place::Tcp(address) => ask(tokio::net::TcpStream::connect(address).await.unwrap(), request).await,
                };
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with(body), "{request}: {answer}");
            }
        }
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let refused = listen(&Place::Unix(dir.path().join("file")), || async { String::new() }).await.unwrap_err();
        assert_eq!(refused.outcome(), Outcome::Busy);
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn places_are_read() {
        assert_eq!("unix:/run/x".parse(), Ok(Place::Unix("/run/x".into())));
        assert_eq!("127.0.0.1:9".parse(), Ok(Place::Tcp(([127, 0, 0, 1], 9).into())));
        for wrong in ["unix:x", "9090", "localhost:9090", ""] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
