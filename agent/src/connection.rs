//! Bounds on connections: how many there are, and how long one may leave an answer lying.

use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Admits connections while there are fewer than the bound.
#[derive(Clone, Debug)]
pub struct Bounded {
    free: Arc<Semaphore>,
    idle: Duration,
}

impl Bounded {
    /// At most `most` connections; one whose client takes no byte of an answer for `idle` is
    /// closed.
    pub fn new(most: usize, idle: Duration) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            idle,
        }
    }
}

impl<S> Accept<TcpStream, S> for Bounded {
    type Stream = Connection;
    type Service = S;
    type Future = Ready<io::Result<(Connection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let admit = || -> io::Result<Connection> {
            let permit = Arc::clone(&self.free)
                .try_acquire_owned()
                .map_err(|_| io::Error::other("too many connections"))?;
            stream.set_nodelay(true)?;
            let stalled = Box::pin(sleep(self.idle));
            Ok(Connection {
                stream,
                idle: self.idle,
                stalled,
                waiting: false,
                _permit: permit,
            })
        };
        ready(admit().map(|connection| (connection, service)))
    }
}

/// A connection that gives up on a client that does not read.
pub struct Connection {
    stream: TcpStream,
    idle: Duration,
    stalled: Pin<Box<Sleep>>,
    /// A write is waiting since `stalled` was set.
    waiting: bool,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = false;
            return polled;
        }
        if !self.waiting {
            self.waiting = true;
            self.stalled.as_mut().reset(Instant::now() + self.idle);
        }
        match self.stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bound(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bound(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.bound(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bound(cx, polled)
    }
}
