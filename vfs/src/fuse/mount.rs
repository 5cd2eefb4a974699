//! Mounting the drive through FUSE, and unmounting it without losing anything.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, INodeNo, MountOption, SessionACL};

use super::Frontend;
use super::backing::Backings;
use super::lanes::Lanes;
use super::locks::Waits;
use crate::drive::Drive;
use crate::link::Pool;

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Let other users in (needs `user_allow_other` in /etc/fuse.conf unless root mounts).
    pub allow_other: bool,
    /// Let the kernel check permission bits.
    pub default_permissions: bool,
    /// Name shown in mount tables.
    pub name: String,
    /// Threads that read requests.
    pub threads: usize,
    /// Let the kernel read wholly cached opaque files by itself, where it takes that from us (root). While
    /// a program reads one so, none can open it for writing.
    pub passthrough: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: false,
            default_permissions: false,
            name: "pstsyncd".to_owned(),
            threads: 4,
            passthrough: false,
        }
    }
}

/// [`detach`], tried again for a moment: a program that was just closed, or that another one is just
/// starting, holds its files a little longer.
fn detach_soon(mountpoint: &Path) -> io::Result<()> {
    const TRIES: u32 = 20;
    let mut result = detach(mountpoint);
    for _ in 1..TRIES {
        match &result {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(25));
                result = detach(mountpoint);
            }
            _ => break,
        }
    }
    result
}

/// Unmounts, or says why not; a drive that is in use stays.
fn detach(mountpoint: &Path) -> io::Result<()> {
    use rustix::io::Errno as E;
    match rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::empty()) {
        // Not mounted any more: someone else was first.
        Ok(()) | Err(E::INVAL | E::NOENT) => Ok(()),
        Err(E::PERM) => fusermount(mountpoint),
        Err(e) => Err(e.into()),
    }
}

/// Whoever is not root may unmount through the setuid helper only.
fn fusermount(mountpoint: &Path) -> io::Result<()> {
    let mut said = io::Error::from(io::ErrorKind::NotFound);
    for helper in ["fusermount3", "fusermount"] {
        match Command::new(helper)
            .args(["-u", "--"])
            .arg(mountpoint)
            .env("LC_ALL", "C")
            .output()
        {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let kind = if text.contains("busy") {
                    io::ErrorKind::ResourceBusy
                } else {
                    io::ErrorKind::Other
                };
                return Err(io::Error::new(kind, text.trim().to_owned()));
            }
            Err(e) => said = e,
        }
    }
    Err(said)
}

/// Calls that may wait at once, each on a thread of its own.
const MAX_CALLS: usize = 2048;

/// A mounted drive. Dropping it unmounts.
pub struct MountHandle {
    session: Option<BackgroundSession>,
    drive: Arc<Drive>,
    backings: Arc<Backings>,
    reads: Arc<AtomicU64>,
    mountpoint: PathBuf,
}

/// Mounts `drive` at `mountpoint`: as root directly, else through `fusermount3`.
///
/// # Errors
/// What mounting says (no /dev/fuse, no fusermount3, a mountpoint that is busy or missing).
pub fn mount(
    drive: Arc<Drive>,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<MountHandle> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.name.clone()),
        MountOption::Subtype("pstsyncd".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    if options.default_permissions {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    let backings: Arc<Backings> = Arc::default();
    let reads: Arc<AtomicU64> = Arc::default();
    let lanes = Lanes::new(Pool::new("drive-call", MAX_CALLS));
    let frontend = Frontend {
        drive: drive.clone(),
        locks: Waits::new(drive.clone(), lanes.clone()),
        lanes,
        dirs: Arc::default(),
        backings: backings.clone(),
        reads: reads.clone(),
        passthrough: options.passthrough,
        flushing: (options.threads > 1).then(Mutex::default),
    };
    if let Some(at) = mountpoint
        .canonicalize()
        .ok()
        .and_then(|at| at.to_str().map(str::to_owned))
    {
        drive.set_mounted(&at);
    }
    let session = fuser::spawn_mount(frontend, mountpoint, &config)?;
    let notifier = session.notifier();
    drive.on_change(Some(Box::new(move |node| {
        // All pages, and the attributes.
        if let Err(error) = notifier.inval_inode(INodeNo(node), 0, 0) {
            tracing::debug!(%error, "the kernel was not told of a change");
        }
    })));
    Ok(MountHandle {
        session: Some(session),
        drive,
        backings,
        reads,
        mountpoint: mountpoint.to_owned(),
    })
}

impl MountHandle {
    /// Where the drive is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts, then flushes everything (R4: what the share lacks stays recorded).
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] while a program uses the drive, which then stays mounted and
    /// goes on as before; what could not be flushed.
    pub fn unmount(&mut self) -> io::Result<()> {
        if let Some(session) = &self.session {
            if !session.guard.is_finished() {
                // Never lazily: a program would go on with a drive that nobody can see, and its end
                // could not be waited for. fuser's own unmount gives up the session even where
                // the system refuses, and is lazy for other users than root.
                detach_soon(&self.mountpoint)?;
            }
            if let Some(session) = self.session.take() {
                self.drive.on_change(None);
                ended(session.join())?;
            }
        }
        self.drive.shutdown().map_err(io::Error::from)
    }

    /// Waits until someone unmounts the drive, then flushes everything.
    ///
    /// # Errors
    /// What ended the session; what could not be flushed.
    pub fn wait(mut self) -> io::Result<()> {
        if let Some(session) = self.session.take() {
            ended(session.join())?;
        }
        self.drive.shutdown().map_err(io::Error::from)
    }

    /// Requests to read that the kernel sent: what it had in its pages, or read by itself, is not among
    /// them.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Opens that the kernel was given the cache file for.
    #[must_use]
    pub fn passed_to_kernel(&self) -> u64 {
        self.backings.given()
    }

    /// Whether the session still runs.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|s| !s.guard.is_finished())
    }
}

/// How a session ended whose mount is gone: a thread that still asks for requests may be told that the
/// connection was aborted instead of that there is no device any more, which is the same.
fn ended(session: io::Result<()>) -> io::Result<()> {
    match session {
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        other => other,
    }
}
