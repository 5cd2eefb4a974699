//! The command's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{
    self, Answer, DriveStatus, Event, Explanation, LinkStatus, MAX_REPLY, Policy, Reply, Request,
    SyncPlan, SyncReport, UnmountReport,
};
use super::registry::DriveEntry;
use crate::error::{UserError, plain};
use crate::exit::ExitStatus;
use crate::policy::cap::Cap;

/// A daemon that says nothing for this long hangs: it sends a sign of life every two seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// Asks the daemon of one drive. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    mountpoint: PathBuf,
    silence: Duration,
}

impl Client {
    /// For a drive of the registry.
    #[must_use]
    pub fn new(drive: &DriveEntry) -> Self {
        Self {
            socket: drive.socket.clone(),
            mountpoint: drive.mountpoint.clone(),
            silence: SILENCE,
        }
    }

    /// The same with another patience for a silent daemon.
    #[must_use]
    pub const fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Whether the daemon answers: its process id and version.
    ///
    /// # Errors
    /// It does not.
    pub fn ping(&self) -> Result<(u32, String), UserError> {
        match self.ask(&Request::Ping {}, |_| {})? {
            Answer::Pong { pid, version } => Ok((pid, version)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What the drive does, and what waits.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn status(&self) -> Result<DriveStatus, UserError> {
        match self.ask(&Request::Status {}, |_| {})? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sets the policy.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn set_mode(
        &self,
        policy: Policy,
        for_seconds: Option<u64>,
    ) -> Result<DriveStatus, UserError> {
        let request = Request::SetMode {
            policy,
            for_seconds,
        };
        match self.ask(&request, |_| {})? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Limits the use of the link by hand; `None`: as `mount` was told.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn set_limit(
        &self,
        limit: Option<Cap>,
        for_seconds: Option<u64>,
    ) -> Result<DriveStatus, UserError> {
        match self.ask(&Request::SetLimit { limit, for_seconds }, |_| {})? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Why the drive is in its state.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn explain(&self) -> Result<Explanation, UserError> {
        match self.ask(&Request::Explain {}, |_| {})? {
            Answer::Explanation(explanation) => Ok(*explanation),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What is known of the link.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn link(&self) -> Result<LinkStatus, UserError> {
        match self.ask(&Request::Link {}, |_| {})? {
            Answer::Link(link) => Ok(*link),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How what waits would be synced now.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn plan(&self) -> Result<SyncPlan, UserError> {
        match self.ask(&Request::Plan {}, |_| {})? {
            Answer::Plan(plan) => Ok(plan),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Syncs a file (relative to the drive's root) or all, and waits for the verified end. `allow_deletes`
    /// lets deletes pass the guard against mass deletes.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn sync_now(
        &self,
        path: Option<String>,
        allow_deletes: bool,
        on_event: impl FnMut(Event),
    ) -> Result<SyncReport, UserError> {
        match self.ask(
            &Request::SyncNow {
                path,
                allow_deletes,
            },
            on_event,
        )? {
            Answer::Sync(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Unmounts, and waits until it is done.
    ///
    /// # Errors
    /// The daemon does not answer, or its own error.
    pub fn unmount(
        &self,
        now: bool,
        on_event: impl FnMut(Event),
    ) -> Result<UnmountReport, UserError> {
        match self.ask(&Request::Unmount { now }, on_event)? {
            Answer::Unmount(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    fn ask(&self, request: &Request, mut on_event: impl FnMut(Event)) -> Result<Answer, UserError> {
        let line = protocol::encode_request(request)?;
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| self.broken(&e))?;
        stream
            .set_read_timeout(Some(self.silence))
            .map_err(|e| self.broken(&e))?;
        stream
            .set_write_timeout(Some(self.silence))
            .map_err(|e| self.broken(&e))?;
        // A refusing server may close before it has read: its answer, if any, says more than the
        // failed write.
        let written = stream.write_all(&line);
        let mut reader = BufReader::new(stream);
        loop {
            let reply = match read_line(&mut reader) {
                Ok(line) => protocol::decode_reply(&line)?,
                Err(e) => return Err(self.broken(written.as_ref().err().unwrap_or(&e))),
            };
            match reply {
                Reply::Event(event) => on_event(event),
                Reply::Answer(answer) => return Ok(answer),
                Reply::Error(error) => return Err(error),
            }
        }
    }

    fn broken(&self, error: &io::Error) -> UserError {
        let at = self.mountpoint.display();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => UserError::new(
                "daemon-silent",
                format!("the daemon of {at} does not answer"),
                "see its log; what was flushed is in the journal, and a new mount finds it",
            ),
            io::ErrorKind::PermissionDenied => UserError::new(
                "not-your-drive",
                format!("the drive at {at} belongs to another user"),
                "run the command as that user, or as root",
            ),
            _ => UserError::new(
                "daemon-gone",
                format!("the daemon of {at} ended: {}", plain(error)),
                "mount the drive again; what was flushed is in the journal",
            ),
        }
        .with_exit(ExitStatus::Offline)
    }

    fn unexpected(&self, answer: &Answer) -> UserError {
        tracing::debug!(?answer, "unexpected answer");
        UserError::new(
            "control-protocol",
            format!(
                "the daemon of {} answered another question",
                self.mountpoint.display()
            ),
            "check that command and daemon are the same pstsyncd",
        )
    }
}

/// One reply line without its newline, bounded.
fn read_line(reader: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = MAX_REPLY as u64 + 1;
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    if line.pop() == Some(b'\n') {
        return Ok(line);
    }
    if line.len() >= MAX_REPLY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The path of a file as the drive knows it. Absolute, or below the working directory where this lies
/// in the drive; else taken as relative to the drive's root.
///
/// # Errors
/// An absolute path that lies outside the drive, or one that is not UTF-8.
pub fn path_in_drive(mountpoint: &Path, path: &Path) -> Result<String, UserError> {
    let here = super::registry::absolute(path);
    let inside = match here.strip_prefix(mountpoint) {
        Ok(inside) => inside,
        Err(_) if path.is_relative() => path,
        Err(_) => {
            return Err(UserError::new(
                "outside-drive",
                format!(
                    "{} is not in the drive at {}",
                    path.display(),
                    mountpoint.display()
                ),
                "name a file of the drive, or choose the drive with --drive",
            ));
        }
    };
    inside.to_str().map(str::to_owned).ok_or_else(|| {
        UserError::new(
            "path-not-utf8",
            format!("the path {} is not UTF-8", path.display()),
            "sync without a path: all files with changes are synced",
        )
    })
}
