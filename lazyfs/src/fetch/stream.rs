//! A whole blob as a blocking reader: for layers without random access, which are read once from beginning to end.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::transfer::ENOUGH;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::source::Source;

/// Pieces that wait for the reader; a piece is what one read from the network gave, some tens of kilobytes.
const AHEAD: usize = 16;
/// After so long without a byte the reader gets the error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads blob `blob` of `size` bytes; a broken connection is taken up again where it broke. `report` hears, now and then, how many
/// bytes came. To be called in a tokio runtime, and read outside of it (`spawn_blocking`). Bytes are not verified.
pub fn reader(source: Arc<dyn Source>, blob: Digest, size: u64, report: impl FnMut(u64) + Send + 'static) -> BlobReader {
    let (sender, pieces) = mpsc::channel(AHEAD);
    let mut report = report;
    tokio::spawn(async move {
        let sent = pump(source.as_ref(), blob, size, &mut report, &sender).await;
        if let Err(error) = sent
            && sender.send(Err(error)).await.is_err()
        {
            tracing::debug!("nobody reads {blob} any more");
        }
    });
    BlobReader { pieces, piece: Bytes::new(), left: size }
}

/// Sends everything; ends early where the reader is gone.
async fn pump(
    source: &dyn Source,
    blob: Digest,
    size: u64,
    report: &mut (impl FnMut(u64) + Send),
    sender: &mpsc::Sender<Result<Bytes>>,
) -> Result<()> {
    let mut position = 0;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Some(PATIENCE));
    while position < size {
        let before = position;
        let failure = match source.open(blob, position..size).await {
            Err(error) => error,
            Ok(mut stream) => loop {
                match stream.next().await {
                    Some(Ok(piece)) => {
                        position += piece.len() as u64;
                        if sender.send(Ok(piece)).await.is_err() {
                            return Ok(());
                        }
                        report(position);
                    }
                    Some(Err(error)) => break error,
                    None if position == size => return Ok(()),
                    None => break Error::new(Outcome::Unavailable, format!("reading {blob}")).because("it ended early"),
                }
            },
        };
        if position - before >= ENOUGH {
            backoff.reset();
        }
        // The reader's caller names the blob.
        backoff.pause(failure).await.map_err(|e| e.during(format!("asking for it from byte {position}")))?;
    }
    Ok(())
}

/// The reader.
#[derive(Debug)]
pub struct BlobReader {
    pieces: mpsc::Receiver<Result<Bytes>>,
    piece: Bytes,
    left: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => {
                    self.left = self.left.saturating_sub(piece.len() as u64);
                    self.piece = piece;
                }
                // Error is not lost in io::Error: it is its source, which Error::io and one_line show.
                Some(Err(error)) => return Err(io::Error::other(error)),
                None if self.left == 0 => return Ok(0),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was stopped")),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
