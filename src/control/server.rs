//! The daemon's side of the control socket.
//!
//! One thread accepts; each connection has a thread of its own, and their number is bounded. The
//! connection's thread only reads and writes: the operation runs on another, and hands its events
//! over through a bounded queue that drops when full. So a client that stops reading costs one
//! waiting thread for [`Limits::write`], and the drive's work nothing. An operation is not cancelled
//! when its client leaves.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::protocol::{self, Answer, Event, MAX_REQUEST, Reply, Request};
use super::registry::Registration;
use super::{DriveControl, Progress};
use crate::error::UserError;

/// Bounds of the server; the defaults are for use, tests take shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A request must have arrived whole after this time.
    pub read: Duration,
    /// One reply line must be taken within this time.
    pub write: Duration,
    /// A client is told at this interval that the daemon lives while its operation runs.
    pub alive: Duration,
    /// Connections at a time; more are told that the daemon is busy.
    pub connections: usize,
    /// The one user, besides root, whose requests are heard.
    pub owner: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(5),
            write: Duration::from_secs(5),
            alive: Duration::from_secs(2),
            connections: 32,
            owner: rustix::process::geteuid().as_raw(),
        }
    }
}

/// Events that wait for a slow client before more are dropped.
const EVENT_QUEUE: usize = 64;

/// A running control server. Dropped, it stops listening, waits for the answers under way, and
/// leaves the registry.
pub struct Server {
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    drive: Arc<dyn DriveControl>,
    /// After the drive, and so dropped after it: once the place is free, so is all that the drive held.
    registration: Registration,
    limits: Limits,
    stopping: AtomicBool,
    open: AtomicUsize,
    /// Connections under way; signalled at each end.
    idle: (Mutex<()>, Condvar),
    /// Called once an unmount has been carried out and answered.
    unmounted: Box<dyn Fn() + Send + Sync>,
}

impl Server {
    /// Serves `drive` on the claimed socket. `unmounted` is called after a successful unmount has been
    /// answered; it must not block.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(
        registration: Registration,
        drive: Arc<dyn DriveControl>,
        limits: Limits,
        unmounted: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            registration,
            drive,
            limits,
            stopping: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            idle: (Mutex::new(()), Condvar::new()),
            unmounted: Box::new(unmounted),
        });
        let accepting = Arc::clone(&shared);
        let accept = thread::Builder::new()
            .name("control".into())
            .spawn(move || accept_loop(&accepting))?;
        Ok(Self {
            shared,
            accept: Some(accept),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which sees the flag before it serves anyone. By the descriptor, not by
        // connecting to the path, which someone may have removed.
        let listener = self.shared.registration.listener();
        let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        if let Some(accept) = self.accept.take() {
            let _ = accept.join();
        }
        let (lock, ended) = &self.shared.idle;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer under way has at most the time to read and to write; an operation under way is
        // the drive's own to end, and not waited for.
        let patience = self.shared.limits.read + self.shared.limits.write;
        let _ = ended.wait_timeout_while(guard, patience, |()| {
            self.shared.open.load(Ordering::SeqCst) > 0
        });
        // A thread that has just answered may hold the registration a moment longer.
        self.shared.registration.withdraw();
    }
}

fn accept_loop(shared: &Arc<Shared>) {
    loop {
        let accepted = shared.registration.listener().accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => serve(shared, stream),
            Err(error) => {
                // Out of descriptors or memory: it passes, and must not turn into a busy loop.
                tracing::warn!(%error, "the control socket cannot accept");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Counts a connection while it lives.
struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        let (lock, ended) = &self.0.idle;
        drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
        ended.notify_all();
    }
}

fn serve(shared: &Arc<Shared>, stream: UnixStream) {
    let before = shared.open.fetch_add(1, Ordering::SeqCst);
    let slot = Slot(Arc::clone(shared));
    if before >= shared.limits.connections {
        // Written without waiting: this is the accepting thread.
        let busy = UserError::new(
            "control-busy",
            "the daemon answers too many commands already",
            "wait for them to end, then run the command again",
        );
        let _ = stream.set_nonblocking(true);
        let _ = send(&stream, &Reply::Error(busy));
        return;
    }
    let spawned = thread::Builder::new()
        .name("control-client".into())
        .spawn(move || {
            if let Err(error) = connection(&slot.0, &stream) {
                tracing::debug!(%error, "a control connection ended early");
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a control connection");
    }
}

fn connection(shared: &Shared, stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(shared.limits.write))?;
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let uid = peer.uid.as_raw();
    if uid != shared.limits.owner && uid != 0 {
        tracing::warn!(
            uid,
            pid = peer.pid.as_raw_nonzero().get(),
            "a control request was refused"
        );
        return send(
            stream,
            &Reply::Error(UserError::new(
                "not-your-drive",
                "this drive belongs to another user",
                "run the command as that user, or as root",
            )),
        );
    }
    let request = match read_request(stream, shared.limits.read)? {
        Ok(request) => request,
        Err(error) => return send(stream, &Reply::Error(error)),
    };
    tracing::debug!(?request, uid, "control request");
    let (reply, ends) = operate(shared, stream, &request);
    let sent = send(stream, &reply);
    if ends {
        (shared.unmounted)();
    }
    sent
}

/// One line, bounded in bytes and in time. The outer error ends the connection without an answer.
fn read_request(
    mut stream: &UnixStream,
    limit: Duration,
) -> io::Result<Result<Request, UserError>> {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(too_slow()));
        }
        stream.set_read_timeout(Some(left))?;
        let n = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Ok(Err(too_slow()));
            }
            Err(e) => return Err(e),
        };
        line.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if let Some(end) = line.iter().position(|&b| b == b'\n') {
            if end + 1 != line.len() {
                return Ok(Err(protocol_error("more than one request in a connection")));
            }
            return Ok(protocol::decode_request(
                line.get(..end).unwrap_or_default(),
            ));
        }
        if line.len() >= MAX_REQUEST {
            return Ok(Err(protocol_error("a request longer than its bound")));
        }
    }
}

fn too_slow() -> UserError {
    UserError::new(
        "control-timeout",
        "the request did not arrive in time",
        "run the command again",
    )
}

fn protocol_error(what: &str) -> UserError {
    UserError::new(
        "control-protocol",
        format!("the control socket got {what}"),
        "check that command and daemon are the same pstsyncd",
    )
}

/// Hands events to the connection's thread.
struct Queue(SyncSender<Event>);

impl Progress for Queue {
    fn event(&self, event: Event) {
        // Full or closed: the client reads too slowly, or has left.
        let _ = self.0.try_send(event);
    }
}

/// Carries out the request, streams its events, and says whether the daemon ends after the answer.
fn operate(shared: &Shared, stream: &UnixStream, request: &Request) -> (Reply, bool) {
    let (sender, events) = mpsc::sync_channel(EVENT_QUEUE);
    let mut listening = true;
    let mut tell = |event: Event| {
        listening = listening && send(stream, &Reply::Event(event)).is_ok();
    };
    let result = thread::scope(|scope| {
        let drive = &shared.drive;
        let operation = thread::Builder::new()
            .name("control-op".into())
            .spawn_scoped(scope, move || carry_out(&**drive, request, &Queue(sender)));
        let Ok(operation) = operation else {
            return Err(UserError::new(
                "no-thread",
                "the daemon has no thread for the request",
                "close other programs, then run the command again",
            ));
        };
        loop {
            match events.recv_timeout(shared.limits.alive) {
                Ok(event) => tell(event),
                Err(RecvTimeoutError::Timeout) => tell(Event::Alive {}),
                // The operation has dropped its sender: it is over.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        operation.join().unwrap_or_else(|_| {
            Err(UserError::new(
                "daemon-panic",
                "the daemon failed inside while it carried out the request",
                "see its log, and report it; what was flushed is in the journal",
            ))
        })
    });
    match result {
        Ok(answer) => {
            let ends = matches!(answer, Answer::Unmount(_));
            (Reply::Answer(answer), ends)
        }
        Err(error) => (Reply::Error(error), false),
    }
}

fn carry_out(
    drive: &dyn DriveControl,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Answer, UserError> {
    match request {
        Request::Ping {} => Ok(Answer::Pong {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
        Request::Status {} => drive.status().map(Box::new).map(Answer::Status),
        Request::SetMode {
            policy,
            for_seconds,
        } => drive
            .set_mode(*policy, *for_seconds)
            .map(Box::new)
            .map(Answer::Status),
        Request::SetLimit { limit, for_seconds } => drive
            .set_limit(*limit, *for_seconds)
            .map(Box::new)
            .map(Answer::Status),
        Request::Explain {} => drive.explain().map(Box::new).map(Answer::Explanation),
        Request::Link {} => drive.link().map(Box::new).map(Answer::Link),
        Request::Plan {} => drive.plan().map(Answer::Plan),
        Request::SyncNow {
            path,
            allow_deletes,
        } => {
            if let Some(path) = path {
                check_relative(path)?;
            }
            drive
                .sync_now(path.as_deref(), *allow_deletes, progress)
                .map(Answer::Sync)
        }
        Request::Unmount { now } => drive.unmount(*now, progress).map(Answer::Unmount),
    }
}

/// A path inside the drive: relative, of plain components only.
fn check_relative(path: &str) -> Result<(), UserError> {
    let plain = |c| matches!(c, std::path::Component::Normal(_));
    let path_ok = !path.is_empty() && std::path::Path::new(path).components().all(plain);
    if path_ok && !path.contains('\0') {
        return Ok(());
    }
    Err(UserError::new(
        "bad-path",
        format!("{path:?} is no path inside the drive"),
        "name a file relative to the drive's root, without ..",
    ))
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let line = match protocol::encode_reply(reply) {
        Ok(line) => line,
        Err(error) => protocol::encode_reply(&Reply::Error(error))
            .map_err(|e| io::Error::other(e.to_string()))?,
    };
    stream.write_all(&line)
}
