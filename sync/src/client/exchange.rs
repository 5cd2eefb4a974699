//! One request and its answer, in pieces: counted, and within a limit where there is one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::wire;

/// Bytes handed to the network at once: what progress is counted in.
const PIECE: usize = 32 << 10;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the agent.
    Up,
    /// From it.
    Down,
}

/// A limit on what may go over the link.
pub trait Throttle: Send + Sync {
    /// How many of `want` bytes may go now, or how long until some may. Must not wait.
    ///
    /// # Errors
    /// The time after which to ask again.
    fn take(&self, way: Way, want: u64) -> Result<u64, Duration>;
}

/// How an exchange goes.
pub(super) enum Event {
    /// The limit holds the next piece back: the agent is not at fault.
    Held,
    /// So many bytes of the body have been handed to the network.
    Sent(u64),
    /// Some of the answer has arrived.
    Received,
    Done(Result<(u16, Vec<u8>), Failure>),
}

/// Why it ended without an answer.
pub(super) enum Failure {
    Http(reqwest::Error),
    TooLong(usize),
}

/// Sends a request and takes its whole answer.
pub(super) async fn exchange(
    request: reqwest::RequestBuilder,
    events: &mpsc::Sender<Event>,
    throttle: Option<&dyn Throttle>,
) -> Result<(u16, Vec<u8>), Failure> {
    let mut response = request.send().await.map_err(Failure::Http)?;
    let status = response.status().as_u16();
    let limit = if status == 200 {
        wire::MAX_BODY
    } else {
        wire::MAX_ERROR
    };
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(Failure::Http)? {
        let _ = events.send(Event::Received);
        if bytes.len() + piece.len() > limit {
            return Err(Failure::TooLong(limit));
        }
        bytes.extend_from_slice(&piece);
        // What is not read is not sent: the agent's side fills, and waits.
        let mut left = piece.len() as u64;
        while let (Some(throttle), 1..) = (throttle, left) {
            match throttle.take(Way::Down, left) {
                Ok(granted) => left -= granted.clamp(1, left),
                Err(time) => {
                    let _ = events.send(Event::Received);
                    tokio::time::sleep(time).await;
                }
            }
        }
    }
    Ok((status, bytes))
}

/// A body that tells how far it has gone.
pub(super) struct CountedBody {
    data: Bytes,
    sent: u64,
    events: mpsc::Sender<Event>,
    throttle: Option<Arc<dyn Throttle>>,
    /// Until the next piece may go.
    rest: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl CountedBody {
    pub fn new(
        data: Bytes,
        events: mpsc::Sender<Event>,
        throttle: Option<Arc<dyn Throttle>>,
    ) -> Self {
        Self {
            data,
            sent: 0,
            events,
            throttle,
            rest: None,
        }
    }

    /// How many bytes go next, once they may.
    fn next_piece(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let most = self.data.len().min(PIECE);
        let Some(throttle) = self.throttle.clone() else {
            return Poll::Ready(most);
        };
        loop {
            if let Some(rest) = &mut self.rest {
                if rest.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.rest = None;
            }
            match throttle.take(Way::Up, most as u64) {
                Ok(granted) => {
                    let granted = usize::try_from(granted).unwrap_or(most);
                    return Poll::Ready(granted.clamp(1, most));
                }
                Err(time) => {
                    let _ = self.events.send(Event::Held);
                    self.rest = Some(Box::pin(tokio::time::sleep(time)));
                }
            }
        }
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let size = match self.next_piece(context) {
            Poll::Ready(size) => size,
            Poll::Pending => return Poll::Pending,
        };
        let piece = self.data.split_to(size);
        self.sent += size as u64;
        let _ = self.events.send(Event::Sent(self.sent));
        Poll::Ready(Some(Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.data.len() as u64)
    }
}
