//! Opening containers beneath the root, and nowhere else.
//!
//! On Linux every path is resolved by `openat2` with `RESOLVE_BENEATH` and no symbolic links, in
//! the kernel, so that no rename can make it lead elsewhere. Files are then handled relative to
//! the directory that was opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sync::wire::{self, ErrorCode, REDO_SUFFIX};

use crate::error::{AgentError, Fault};

/// A lease of our own lasts until the last copy of its open file is closed, and a process that is
/// just being started holds copies for a moment: what is refused is asked for again a few times.
fn patiently<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut wait = Duration::from_millis(10);
    loop {
        match open() {
            Err(Errno::AGAIN) if wait < Duration::from_millis(300) => {
                std::thread::sleep(wait);
                wait *= 2;
            }
            answer => return answer,
        }
    }
}

/// The directory whose containers are served.
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// A container that was found: its open file and the directory it lies in.
pub struct Place {
    /// The open file.
    pub file: File,
    /// Path beneath the root, as the client wrote it.
    pub path: String,
    dir: OwnedFd,
    name: String,
}

impl Root {
    /// Opens the root.
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        let fail = |source: io::Error| AgentError::Root {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        // A directory that may be opened but not listed would hide redo sidecars.
        std::fs::read_dir(path).map_err(fail)?;
        Ok(Self {
            dir,
            path: path.to_owned(),
        })
    }

    /// Opens a container.
    ///
    /// Hardly waits: where another program holds a lease on the file, the kernel tells it that
    /// somebody wants it, and the answer here is [`ErrorCode::InUse`] after half a second.
    pub fn container(&self, path: &str, write: bool) -> Result<Place, Fault> {
        wire::check_path(path)
            .map_err(|e| Fault::new(ErrorCode::BadPath, format!("{path}: {e}")))?;
        self.check_in_place()?;
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = self
            .beneath(parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| refused(path, e))?;
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = patiently(|| rustix::fs::openat2(&dir, name, flags, Mode::empty(), RESOLVE))
            .map_err(|e| refused(path, e))?;
        let file = File::from(file);
        if !file.metadata().map_err(|e| Fault::io(path, &e))?.is_file() {
            let message = format!("{path} is not a regular file");
            return Err(Fault::new(ErrorCode::NotAContainer, message));
        }
        Ok(Place {
            file,
            path: path.to_owned(),
            dir,
            name: name.to_owned(),
        })
    }

    /// Refuses to work on a directory that was moved away or mounted over since it was opened:
    /// nobody would find there what is called synced.
    fn check_in_place(&self) -> Result<(), Fault> {
        let ours = rustix::fs::fstat(&self.dir).map(|s| (s.st_dev, s.st_ino));
        let there = rustix::fs::stat(&self.path).map(|s| (s.st_dev, s.st_ino));
        if ours.is_ok() && ours == there {
            return Ok(());
        }
        let message = format!(
            "{} is not the directory any more that it was at the start",
            self.path.display()
        );
        let mut fault = Fault::new(ErrorCode::Storage, message);
        fault.next = "put it back, or start again with the right one";
        Err(fault)
    }

    fn beneath(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat2(
            &self.dir,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            RESOLVE,
        )
    }

    /// Paths of all containers with a redo sidecar beside them. What cannot be read is logged and
    /// passed over: its sidecars are found when the container is next asked for.
    pub fn unfinished(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![(String::new(), 0u32)];
        while let Some((dir, depth)) = todo.pop() {
            let listed = match std::fs::read_dir(self.path.join(&dir)) {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(dir, %error, "not searched for unfinished changes");
                    continue;
                }
            };
            for entry in listed.flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let path = if dir.is_empty() {
                    name
                } else {
                    format!("{dir}/{name}")
                };
                // `file_type` does not follow symbolic links.
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if kind.is_dir() && depth < MAX_DEPTH {
                    todo.push((path, depth + 1));
                } else if kind.is_file() {
                    let log = path.strip_suffix(".tmp").unwrap_or(&path);
                    if let Some(container) = log.strip_suffix(REDO_SUFFIX) {
                        found.push(container.to_owned());
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
const MAX_DEPTH: u32 = 64;

impl Place {
    /// Where the redo sidecar goes. It leads through the directory that was opened, whatever its
    /// name is by now.
    pub fn sidecar(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/self/fd/{}/{}{REDO_SUFFIX}",
            self.dir.as_raw_fd(),
            self.name
        ))
    }

    /// Whether a sidecar, or the beginning of one, is there.
    pub fn has_sidecar(&self) -> io::Result<bool> {
        for suffix in [REDO_SUFFIX, REDO_TEMP_SUFFIX] {
            let name = format!("{}{suffix}", self.name);
            match rustix::fs::statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    // Not ours: we make regular files only. Reading a pipe or what a link leads to
                    // is how a share's user would have us do their work.
                    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
                    if kind != rustix::fs::FileType::RegularFile {
                        return Err(io::Error::other(format!("{name} is not a regular file")));
                    }
                    return Ok(true);
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }

    /// Prepares the file that the sidecar is written to: private like a mailbox must be, and
    /// surely new, so that no link planted there is followed.
    pub fn prepare_sidecar(&self) -> io::Result<()> {
        let name = format!("{}{REDO_TEMP_SUFFIX}", self.name);
        match rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(())
    }

    /// Puts the sidecar out of the way under a free name, which it returns.
    pub fn set_sidecar_aside(&self) -> io::Result<String> {
        let from = format!("{}{REDO_SUFFIX}", self.name);
        for n in 1..10_000u32 {
            let to = format!("{}.pstsyncd-aside-{n}", self.name);
            match rustix::fs::renameat_with(
                &self.dir,
                &from,
                &self.dir,
                &to,
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Ok(()) => {
                    rustix::fs::fsync(&self.dir)?;
                    return Ok(to);
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::other("too many sidecars set aside; remove some"))
    }

    /// Whether the path still names the file that was opened.
    pub fn is_current(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let ours = self.file.metadata()?;
        match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(stat.st_ino == ours.ino() && stat.st_dev == ours.dev()),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// Where a log is written before it gets its name (see [`storage::RedoLog::load`]).
const REDO_TEMP_SUFFIX: &str = ".pstsyncd-redo.tmp";

fn refused(path: &str, error: Errno) -> Fault {
    match error {
        Errno::XDEV | Errno::LOOP => {
            let message = format!("{path} leads out of the root, or through a symbolic link");
            Fault::new(ErrorCode::BadPath, message)
        }
        Errno::NOTDIR | Errno::NOENT => Fault::new(
            ErrorCode::NotFound,
            format!("there is no {path} beneath the root"),
        ),
        Errno::ISDIR => Fault::new(ErrorCode::NotAContainer, format!("{path} is a directory")),
        other => Fault::io(path, &other.into()),
    }
}
