//! A blob, or a range of it, as a blocking reader: for what is read once from beginning to end.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::backoff::Backoff;
use super::transfer::ENOUGH;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::source::Source;

/// Bytes that wait for the reader.
const AHEAD: u32 = 1 << 20;
/// After so long without a byte the reader gets the error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads blob `blob` of `size` bytes; a broken connection is taken up again where it broke. `report` hears, now and then, how many
/// bytes came. To be called in a tokio runtime, and read outside of it (`spawn_blocking`). Bytes are not verified.
pub fn reader(source: Arc<dyn Source>, blob: Digest, size: u64, report: impl FnMut(u64) + Send + 'static) -> BlobReader {
    range_reader(source, blob, 0..size, Buffer { bytes: AHEAD, patience: PATIENCE }, report)
}

/// How a reader and the network go together.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// So many bytes wait for the reader at most.
    pub bytes: u32,
    /// After so long without a byte the reader gets the error.
    pub patience: Duration,
}

/// The same for bytes `range` of it.
pub fn range_reader(
    source: Arc<dyn Source>,
    blob: Digest,
    range: Range<u64>,
    buffer: Buffer,
    mut report: impl FnMut(u64) + Send + 'static,
) -> BlobReader {
    let (sender, pieces) = mpsc::unbounded_channel();
    let left = range.end - range.start;
    tokio::spawn(async move {
        let sent = pump(source.as_ref(), blob, range, buffer, &mut report, &sender).await;
        if let Err(error) = sent
            && sender.send(Err(error)).is_err()
        {
            tracing::debug!("nobody reads {blob} any more");
        }
    });
    BlobReader { pieces, piece: Bytes::new(), room: None, left }
}

/// Sends everything; ends early where the reader is gone.
async fn pump(
    source: &dyn Source,
    blob: Digest,
    range: Range<u64>,
    buffer: Buffer,
    report: &mut (impl FnMut(u64) + Send),
    sender: &mpsc::UnboundedSender<Result<(Bytes, OwnedSemaphorePermit)>>,
) -> Result<()> {
    let room = Arc::new(Semaphore::new(buffer.bytes as usize));
    let (mut position, end) = (range.start, range.end);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Some(buffer.patience));
    while position < end {
        let before = position;
        let failure = match source.open(blob, position..end).await {
            Err(error) => error,
            Ok(mut stream) => loop {
                match stream.next().await {
                    Some(Ok(piece)) => {
                        position += piece.len() as u64;
                        let wanted = u32::try_from(piece.len()).unwrap_or(u32::MAX).min(buffer.bytes);
                        let room = tokio::select! {
                            room = Arc::clone(&room).acquire_many_owned(wanted) => room.expect("it is never closed"),
                            () = sender.closed() => return Ok(()),
                        };
                        if sender.send(Ok((piece, room))).is_err() {
                            return Ok(());
                        }
                        report(position);
                    }
                    Some(Err(error)) => break error,
                    None if position == end => return Ok(()),
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
    pieces: mpsc::UnboundedReceiver<Result<(Bytes, OwnedSemaphorePermit)>>,
    piece: Bytes,
    /// Held while `piece` is.
    room: Option<OwnedSemaphorePermit>,
    left: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok((piece, room))) => {
                    self.room = Some(room);
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
