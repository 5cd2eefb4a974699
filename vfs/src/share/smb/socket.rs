//! The TCP connection of a session, one system call for what the library's own makes two of.
//!
//! A message goes out with its length in one piece. Sent in two, the first of 4 bytes, it wakes a server that then
//! has to wait for the second; of a small request that is a good part of the whole exchange. What comes in is read
//! as far as it is there, so that a small answer takes one call too.
//!
//! A name may stand for several addresses, of which some may be silent: the next one is tried beside the others
//! ([`connect`]).

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use smb2::Error;
use smb2::transport::{ConnectAttempt, ReceiveProgress, TransportReceive, TransportSend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// MS-SMB2 2.1: a zero byte, then the message's length in three, the highest first.
const PREFIX: usize = 4;
/// The longest message that a prefix can tell of.
const LONGEST: usize = (1 << 24) - 1;
/// What is read beyond what is needed: a small answer and its prefix. Of larger ones no more than this is copied.
const SPARE: usize = 8 << 10;

/// How long one address is tried alone (RFC 8305, 5).
const ALONE: Duration = Duration::from_millis(250);
/// Most addresses of a name that are tried.
const ADDRESSES: usize = 8;

/// A connected socket.
pub(super) struct Socket {
    incoming: Mutex<Incoming>,
    outgoing: Mutex<OwnedWriteHalf>,
    progress: Arc<ReceiveProgress>,
}

/// What was read, and not asked for yet: `spare[from..to]`.
struct Incoming {
    half: OwnedReadHalf,
    spare: Box<[u8]>,
    from: usize,
    to: usize,
}

/// Connects to `host:port` within a time.
pub(super) async fn connect(endpoint: &str, within: Duration) -> smb2::Result<Socket> {
    let until = Instant::now() + within;
    let found = timeout_at(until, tokio::net::lookup_host(endpoint)).await;
    let found = found.map_err(|_| Error::Timeout)?.map_err(Error::Io)?;
    let stream = first_of(endpoint, alternating(found), until).await?;
    stream.set_nodelay(true).map_err(Error::Io)?;
    Ok(Socket::new(stream))
}

/// The two kinds of addresses in turn: where one of them leads nowhere, it is not tried up to its end first.
fn alternating(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv6);
    let most = six.len().max(four.len());
    let mut all: Vec<SocketAddr> = (0..most)
        .flat_map(|i| [six.get(i), four.get(i)])
        .flatten()
        .copied()
        .collect();
    all.truncate(ADDRESSES);
    all
}

/// The first connection that is made; the next address is tried when those before it had their time, or failed.
async fn first_of(host: &str, all: Vec<SocketAddr>, until: Instant) -> smb2::Result<TcpStream> {
    let mut attempts: Vec<_> = all
        .iter()
        .map(|addr| ConnectAttempt {
            addr: *addr,
            error_kind: None,
        })
        .collect();
    let mut tried = JoinSet::new();
    let mut next = all.into_iter().enumerate();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = match next.next() {
            Some((i, addr)) if !left.is_zero() => {
                tried.spawn(async move { (i, TcpStream::connect(addr).await) });
                ALONE.min(left)
            }
            _ => left,
        };
        match timeout(wait, tried.join_next()).await {
            Ok(Some(Ok((_, Ok(stream))))) => return Ok(stream),
            Ok(Some(Ok((i, Err(e))))) => {
                if let Some(attempt) = attempts.get_mut(i) {
                    attempt.error_kind = Some(e.kind());
                }
            }
            // The time of the last one is over.
            _ => {}
        }
        let over = Instant::now() >= until;
        if over || (tried.is_empty() && next.len() == 0) {
            let host = host.to_owned();
            return Err(Error::ConnectFailed { host, attempts });
        }
    }
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        let (half, outgoing) = stream.into_split();
        Self {
            incoming: Mutex::new(Incoming {
                half,
                spare: vec![0; SPARE].into(),
                from: 0,
                to: 0,
            }),
            outgoing: Mutex::new(outgoing),
            progress: Arc::new(ReceiveProgress::new()),
        }
    }
}

impl Incoming {
    /// Reads until so many bytes are there, of which there is room for.
    async fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.spare.len() - self.from < wanted {
            self.spare.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        while self.to - self.from < wanted {
            let room = self.spare.get_mut(self.to..).unwrap_or_default();
            match self.half.read(room).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.to += n,
            }
        }
        Ok(())
    }

    /// Takes at most so many of the bytes that are there.
    fn take(&mut self, most: usize) -> &[u8] {
        let from = self.from;
        self.from = self.to.min(from + most);
        self.spare.get(from..self.from).unwrap_or_default()
    }

    async fn message(&mut self, progress: &ReceiveProgress) -> smb2::Result<Vec<u8>> {
        self.fill(PREFIX).await.map_err(gone)?;
        let [zero, high, middle, low] =
            *self.take(PREFIX).first_chunk().ok_or(Error::Disconnected)?;
        if zero != 0 {
            return Err(Error::InvalidData {
                message: format!("a message begins with {zero:#04x} where its length should be"),
            });
        }
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        progress.begin_frame(len);
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(self.take(len));
        progress.record(message.len());
        while message.len() < len {
            let rest = (len - message.len()) as u64;
            match (&mut self.half).take(rest).read_buf(&mut message).await {
                Ok(0) => return Err(Error::Disconnected),
                Ok(n) => progress.record(n),
                Err(e) => return Err(gone(e)),
            }
        }
        Ok(message)
    }
}

/// A server that hangs up is one that is not there any more.
fn gone(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::Disconnected,
        _ => Error::Io(e),
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = smb2::Result<T>> + Send + 'a>>;

impl TransportSend for Socket {
    fn send<'a, 'b, 'c>(&'a self, data: &'b [u8]) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let len = data.len();
            if len > LONGEST {
                return Err(Error::InvalidData {
                    message: format!("a message of {len} bytes"),
                });
            }
            let [.., high, middle, low] = len.to_be_bytes();
            let prefix = [0, high, middle, low];
            let mut parts = [IoSlice::new(&prefix), IoSlice::new(data)];
            let mut left = parts.as_mut_slice();
            let mut out = self.outgoing.lock().await;
            while !left.is_empty() {
                match out.write_vectored(left).await {
                    Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
                    Ok(n) => IoSlice::advance_slices(&mut left, n),
                    Err(e) => return Err(Error::Io(e)),
                }
            }
            Ok(())
        })
    }
}

impl TransportReceive for Socket {
    fn receive<'a, 'c>(&'a self) -> Answer<'c, Vec<u8>>
    where
        'a: 'c,
    {
        Box::pin(async move {
            let mut incoming = self.incoming.lock().await;
            let message = incoming.message(&self.progress).await;
            self.progress.end_frame();
            message
        })
    }

    fn receive_progress(&self) -> Option<Arc<ReceiveProgress>> {
        Some(self.progress.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work)
    }

    /// A socket and its other end.
    async fn pair() -> (Socket, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let here = connect(&at, Duration::from_secs(10)).await.unwrap();
        (here, listener.accept().await.unwrap().0)
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let [.., a, b, c] = message.len().to_be_bytes();
        [&[0, a, b, c], message].concat()
    }

    fn message(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        run(async {
            // Around what is read at once, and around prefixes that are split.
            let lens = [
                0,
                1,
                3,
                SPARE - 5,
                SPARE - 4,
                SPARE - 3,
                SPARE,
                3 * SPARE,
                300_000,
                2,
            ];
            for cut in [997, 5_003, SPARE - 1, SPARE + 1, 70_000, 1 << 20] {
                let (here, mut there) = pair().await;
                let all: Vec<u8> = lens.iter().flat_map(|n| framed(&message(*n))).collect();
                let sender = tokio::spawn(async move {
                    for part in all.chunks(cut) {
                        there.write_all(part).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    there
                });
                for len in lens {
                    assert!(
                        here.receive().await.unwrap() == message(len),
                        "{len} by {cut}"
                    );
                }
                let bytes: usize = lens.iter().sum();
                let seen = here.receive_progress().unwrap().snapshot();
                assert_eq!((seen.bytes, seen.frame), (bytes as u64, None));
                drop(sender.await.unwrap());
                assert!(matches!(here.receive().await, Err(Error::Disconnected)));
            }
        });
    }

    #[test]
    fn a_message_goes_out_whole_behind_its_length() {
        run(async {
            let (here, mut there) = pair().await;
            // More than the kernel takes at once: the rest goes out when there is room.
            let sent = message(6_000_000);
            let expected = framed(&sent);
            let mut got = vec![0; expected.len()];
            let reads = tokio::spawn(async move {
                there.read_exact(&mut got).await.unwrap();
                got
            });
            here.send(&sent).await.unwrap();
            assert!(reads.await.unwrap() == expected);
            assert!(here.send(&vec![0; LONGEST + 1]).await.is_err());
        });
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        run(async {
            let (here, mut there) = pair().await;
            there.write_all(b"HTTP/1.1 302 Found\r\n").await.unwrap();
            assert!(matches!(
                here.receive().await,
                Err(Error::InvalidData { .. })
            ));
            // Cut off in the middle.
            let (here, mut there) = pair().await;
            there.write_all(&framed(&message(100))[..50]).await.unwrap();
            drop(there);
            assert!(matches!(here.receive().await, Err(Error::Disconnected)));
        });
    }

    #[test]
    fn a_silent_address_does_not_keep_the_next_one() {
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let well = listener.local_addr().unwrap();
            let refusing = {
                let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                other.local_addr().unwrap()
            };
            let until = || Instant::now() + Duration::from_secs(20);
            first_of("host", vec![refusing, well], until())
                .await
                .unwrap();
            match first_of("host", vec![refusing, refusing], until()).await {
                Err(Error::ConnectFailed { attempts, .. }) => {
                    assert!(
                        attempts
                            .iter()
                            .all(|a| { a.error_kind == Some(io::ErrorKind::ConnectionRefused) })
                    );
                }
                other => panic!("{:?}", other.map(drop)),
            }
            let none = first_of("host", Vec::new(), until()).await;
            assert!(matches!(none, Err(Error::ConnectFailed { .. })));
            let six: SocketAddr = "[::1]:1".parse().unwrap();
            let order = alternating([well, refusing, six].into_iter());
            assert_eq!(order, [six, well, refusing]);
        });
    }
}
