//! The body of a blob request as a [`ByteStream`] that ends in time and has the right length.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::Response;

use crate::error::{Error, Outcome, Result};
use crate::source::ByteStream;

/// Over how much time spent waiting a body has to make progress.
const WINDOW: Duration = Duration::from_secs(20);
/// The least progress in that time, bytes: 1 KiB a second. A server that drips is as good as one that is silent.
const LEAST: u64 = 20 * 1024;

struct Body {
    response: Response,
    /// Bytes still to leave out: the server ignored the range.
    skip: u64,
    /// Bytes still to yield.
    left: u64,
    idle: Duration,
    url: String,
    waited: Duration,
    progress: u64,
}

/// Yields exactly `len` bytes of the response after leaving out `skip`, or an error. Waits at most `idle` for each piece; time in
/// which nobody asks does not count.
pub(super) fn stream_exactly(response: Response, skip: u64, len: u64, idle: Duration) -> ByteStream {
    let url = response.url().to_string();
    let body = Body { response, skip, left: len, idle, url, waited: Duration::ZERO, progress: 0 };
    Box::pin(stream::try_unfold(body, |mut body| async move {
        loop {
            if body.left == 0 {
                return Ok(None);
            }
            let mut piece = body.piece().await?;
            let skipped = body.skip.min(piece.len() as u64);
            body.skip -= skipped;
            let rest = piece.split_off(usize::try_from(skipped).expect("at most the length of the piece"));
            let wanted = rest.slice(..usize::try_from(body.left).unwrap_or(usize::MAX).min(rest.len()));
            body.left -= wanted.len() as u64;
            if !wanted.is_empty() {
                return Ok(Some((wanted, body)));
            }
        }
    }))
}

impl Body {
    async fn piece(&mut self) -> Result<Bytes> {
        let failed = |url: &str| Error::new(Outcome::Unavailable, format!("reading the body of {url}"));
        let began = Instant::now();
        let piece = match tokio::time::timeout(self.idle, self.response.chunk()).await {
            Err(_) => return Err(failed(&self.url).because(format!("nothing came for {} s", self.idle.as_secs_f32()))),
            Ok(Err(e)) => return Err(failed(&self.url).because(e.without_url())),
            Ok(Ok(None)) => return Err(failed(&self.url).because(format!("it ended {} bytes early", self.left))),
            Ok(Ok(Some(piece))) => piece,
        };
        self.waited += began.elapsed();
        self.progress += piece.len() as u64;
        if self.waited > WINDOW.min(self.idle * 2) {
            if self.progress < LEAST {
                let why = format!("only {} bytes came in {:.0} s", self.progress, self.waited.as_secs_f32());
                return Err(failed(&self.url).because(why));
            }
            (self.waited, self.progress) = (Duration::ZERO, 0);
        }
        Ok(piece)
    }
}
