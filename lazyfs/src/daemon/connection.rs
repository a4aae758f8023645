//! One client of the daemon: its requests one after the other, each with its events and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

use super::active::End;
use super::life::Stay;
use super::protocol::{Event, Hello, MAX_LINE, Message, Reply, Request, VERSION};
use super::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::pull;
use crate::store::db::ImageState;

/// How often a watcher hears of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long a client may take to read a message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Connection {
    daemon: Arc<Daemon>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Given up when the client only watches.
    stay: Option<Stay>,
}

impl Connection {
    pub(super) fn new(daemon: Arc<Daemon>, stream: UnixStream, stay: Stay) -> Self {
        let (reader, writer) = stream.into_split();
        Self { daemon, reader: BufReader::new(reader), writer, stay: Some(stay) }
    }

    /// Serves until the client closes the connection or the daemon leaves.
    pub(super) async fn serve(mut self) -> Result<()> {
        let Some(line) = self.line().await? else { return Ok(()) };
        let hello: Hello = serde_json::from_slice(&line).map_err(bad_request)?;
        self.send(&Message::Welcome { version: VERSION, pid: std::process::id() }).await?;
        if hello.replace {
            return self.replace().await;
        }
        if hello.version != VERSION {
            return Ok(());
        }
        let mut farewell = self.daemon.farewell.subscribe();
        loop {
            let line = tokio::select! {
                line = self.line() => line?,
                event = said(&mut farewell) => return self.send(&Message::Event(event)).await,
            };
            let Some(line) = line else { return Ok(()) };
            let answer = match serde_json::from_slice(&line) {
                Ok(request) => self.handle(request).await?,
                Err(error) => Err(bad_request(error)),
            };
            let message = match answer {
                Ok(reply) => Message::Done(reply),
                Err(error) => Message::Failed((&error).into()),
            };
            self.send(&message).await?;
        }
    }

    /// A successor is about to start.
    async fn replace(mut self) -> Result<()> {
        let message = match self.daemon.hand_over().await {
            Ok(()) => Message::Done(Reply::Ok),
            Err(error) => Message::Failed((&error).into()),
        };
        self.send(&message).await
    }

    /// The outer result is the connection's, the inner the request's.
    async fn handle(&mut self, request: Request) -> Result<Result<Reply>> {
        let daemon = self.daemon.clone();
        match request {
            Request::Pull(request) => {
                let (events, received) = mpsc::unbounded_channel();
                self.while_sending(received, pull::pull(&daemon, request, events)).await
            }
            Request::Prepare { image, container } => Ok(daemon.prepare(image, container).await.map(Reply::Prepared)),
            Request::Ahead { image, command, trace } => {
                daemon.fetcher.observer().tracer().follow(image, trace);
                Ok(daemon.ahead.command(image, command).map(|()| Reply::Ok))
            }
            Request::Waits => Ok(Ok(Reply::Waits { waits: daemon.fetcher.observer().waits(|_| true) })),
            Request::MountTree { image, dir } => Ok(daemon.mount_tree(image, dir).await.map(|()| Reply::Ok)),
            Request::UnmountTree { dir } => Ok(daemon.unmount_tree(dir).await.map(|()| Reply::Ok)),
            Request::Bring { image, content, range, caller } => {
                let (_quiet, received) = mpsc::unbounded_channel();
                let bringing = daemon.bring(image, content, range, caller);
                Ok(self.while_sending(received, bringing).await?.map(|()| Reply::Ok))
            }
            Request::Blob { image, layer, into } => {
                let (_quiet, received) = mpsc::unbounded_channel();
                Ok(self.while_sending(received, daemon.blob(image, layer, into)).await?.map(|()| Reply::Ok))
            }
            Request::PushProfile { image } => {
                Ok(pull::profiles::push_of(&daemon, image).await.map(|artifact| Reply::Pushed { artifact }))
            }
            Request::Release { container } => Ok(daemon.database.with(move |db| db.unpin(&container)).await.map(|()| Reply::Ok)),
            Request::Watch { image } => {
                self.stay = None;
                let (events, received) = mpsc::unbounded_channel();
                self.while_sending(received, watch_image(&daemon, image, events)).await
            }
            Request::Prune => Ok(daemon.prune().await),
            Request::Verify { repair } => Ok(daemon.verify(repair).await.map(Reply::Verified)),
            Request::RemoveImage { image } => Ok(daemon.remove_image(image).await),
        }
    }

    /// Runs `work`, sends its events as they come, and gives it up when the client goes away.
    async fn while_sending<T>(
        &mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Result<T>> {
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => send(&mut self.writer, &Message::Event(event)).await?,
                result = &mut work => break result,
                gone = self.reader.fill_buf() => {
                    let data = gone.map_err(|e| Error::io("reading from", "a client", e))?;
                    let why = if data.is_empty() { "it went away" } else { "it spoke before its request was answered" };
                    return Err(Error::new(Outcome::Unavailable, "serving a client").because(why));
                }
            }
        };
        while let Ok(event) = events.try_recv() {
            self.send(&Message::Event(event)).await?;
        }
        Ok(result)
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(MAX_LINE as u64);
        limited.read_until(b'\n', &mut line).await.map_err(|e| Error::io("reading from", "a client", e))?;
        Ok((line.last() == Some(&b'\n')).then_some(line))
    }

    async fn send(&mut self, message: &Message) -> Result<()> {
        send(&mut self.writer, message).await
    }
}

async fn send(writer: &mut OwnedWriteHalf, message: &Message) -> Result<()> {
    let mut line = serde_json::to_vec(message).expect("protocol types have only string keys");
    line.push(b'\n');
    match tokio::time::timeout(SEND_DEADLINE, writer.write_all(&line)).await {
        Ok(sent) => sent.map_err(|e| Error::io("writing to", "a client", e)),
        Err(_) => {
            Err(Error::new(Outcome::Unavailable, "writing to a client")
                .because(format!("it reads nothing for {SEND_DEADLINE:?}")))
        }
    }
}

/// What the daemon says when it leaves.
async fn said(farewell: &mut watch::Receiver<Option<Event>>) -> Event {
    let event = farewell.wait_for(Option::is_some).await.map(|event| event.clone());
    // The daemon keeps the sender as long as it lives, and the clients' tasks do not outlive it.
    event.ok().flatten().expect("it was waited for")
}

/// [`Request::Watch`].
async fn watch_image(daemon: &Daemon, image: Digest, events: mpsc::UnboundedSender<Event>) -> Result<Reply> {
    let Some(mut view) = daemon.active.view(&image) else { return watch_ended(daemon, image).await };
    let send = |event| drop(events.send(event));
    let mut farewell = daemon.farewell.subscribe();
    loop {
        if let Some(end) = view.end.borrow_and_update().clone() {
            let progress = view.progress.borrow().clone();
            return match end {
                End::Complete => {
                    send(Event::Complete(progress));
                    Ok(Reply::Ok)
                }
                End::Poisoned(reason) => Err(Error::new(Outcome::Integrity, format!("completing image {image}")).because(reason)),
                End::Removed => Err(Error::new(Outcome::NotFound, format!("completing image {image}")).because("it was removed")),
            };
        }
        send(Event::Progress(view.progress.borrow_and_update().clone()));
        view.new_obstacle().into_iter().for_each(send);
        tokio::select! {
            _ = view.end.changed() => {}
            event @ Event::Replaced = said(&mut farewell) => {
                send(event);
                return Err(Error::new(Outcome::Unavailable, format!("watching image {image}")).because("towlined is being replaced"));
            }
            Ok(()) = view.obstacle.changed() => {}
            () = async {
                tokio::time::sleep(PROGRESS_EVERY).await;
                // A fetcher that dropped the image leaves the last value; the end follows.
                if view.progress.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } => {}
        }
    }
}

async fn watch_ended(daemon: &Daemon, image: Digest) -> Result<Reply> {
    let tried = || format!("watching image {image}");
    let row = daemon.database.with(move |db| db.image(&image)).await?;
    match row {
        Some(row) if row.state == ImageState::Complete => Ok(Reply::Ok),
        Some(row) => Err(Error::new(Outcome::Integrity, tried()).because(if row.reason.is_empty() {
            "it is not being completed; see the daemon's log".to_owned()
        } else {
            row.reason
        })),
        None => Err(Error::new(Outcome::NotFound, tried()).because("it was not pulled")),
    }
}

fn bad_request(error: serde_json::Error) -> Error {
    Error::new(Outcome::BadInput, "reading a client's request").because(error)
}
