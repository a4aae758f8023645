//! The body of a blob request as a [`ByteStream`] that ends in time and has the right length.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::Response;

use super::pace::Pace;
use super::repository::without_query;
use crate::error::{Error, Outcome, Result};
use crate::source::ByteStream;

/// Over how much time spent waiting a body has to make progress.
const WINDOW: Duration = Duration::from_secs(5);

struct Body {
    response: Response,
    /// Bytes still to leave out: the server ignored the range.
    skip: u64,
    /// Bytes still to yield.
    left: u64,
    idle: Duration,
    url: String,
    pace: Pace,
}

/// Yields exactly `len` bytes of the response after leaving out `skip`, or an error. Waits at most `idle` for each piece; time in
/// which nobody asks does not count.
pub(super) fn stream_exactly(response: Response, skip: u64, len: u64, idle: Duration) -> ByteStream {
    let url = without_query(response.url());
    let body = Body { response, skip, left: len, idle, url, pace: Pace::new(WINDOW.min(idle * 2)) };
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
        match self.pace.note(began.elapsed(), piece.len()) {
            Ok(()) => Ok(piece),
            Err(why) => Err(failed(&self.url).because(why)),
        }
    }
}
