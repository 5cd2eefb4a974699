//! Linux: paths resolved in the kernel beneath an open directory, and file leases.
//!
//! A write lease (`fcntl F_SETLEASE`) is granted only while nobody else has the file open, be it a local
//! program or the server of an SMB share; whoever opens it later waits in the kernel until the lease
//! is given back, or `/proc/sys/fs/lease-break-time` (45 s) has passed.
//!
//! No crate wraps this call, and this workspace has no unsafe code. A lease belongs to the open
//! file, not to the process that asked for it, so a helper that inherits the file and then ends
//! can ask: Perl, which is an essential package of Debian and there on all servers we know of.
//! That also keeps the lease-break signal (by default deadly) away from this process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Access, Identity, Refused, patiently};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// An open directory. What is done in it is done there, whatever its name is by now.
pub struct Dir(OwnedFd);

impl Dir {
    /// Opens a directory by a path of the system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Whether `path` still leads to this directory.
    pub fn is_at(&self, path: &Path) -> bool {
        let ours = rustix::fs::fstat(&self.0).map(|s| (s.st_dev, s.st_ino));
        let there = rustix::fs::stat(path).map(|s| (s.st_dev, s.st_ino));
        ours.is_ok() && ours == there
    }

    /// The directory at `path` beneath this one; `.` is itself.
    pub fn beneath(&self, path: &str) -> Result<Self, Refused> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.0, path, flags, Mode::empty(), RESOLVE)
            .map(Self)
            .map_err(refused)
    }

    /// Opens what is named `name` here. A pipe or a device that is named so is opened without waiting:
    /// the caller looks at what it got.
    ///
    /// Hardly waits either: where another program holds a lease on the file, the kernel tells it that
    /// somebody wants it, and the answer here comes after half a second.
    pub fn open_file(&self, name: &str, access: Access) -> Result<File, Refused> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::Alone => OFlags::RDWR,
        };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        patiently(|| {
            let file = rustix::fs::openat2(&self.0, name, flags, Mode::empty(), RESOLVE)?;
            Ok(File::from(file))
        })
        .map_err(|e| Errno::from_io_error(&e).map_or(Refused::Io(e), refused))
    }

    /// Whether what is named `name` is a regular file; `None` where there is nothing. Links are not
    /// followed.
    pub fn is_regular(&self, name: &str) -> io::Result<Option<bool>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
                Ok(Some(kind == rustix::fs::FileType::RegularFile))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether `name` here still stands for `file`.
    pub fn names(&self, name: &str, file: &File) -> io::Result<bool> {
        let ours = file.metadata()?;
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(stat.st_ino == ours.ino() && stat.st_dev == ours.dev()),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Makes an empty file that must not exist and that only its owner can read.
    pub fn create_private(&self, name: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(())
    }

    /// Renames to a name that must be free: else [`io::ErrorKind::AlreadyExists`].
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        Ok(rustix::fs::renameat_with(
            &self.0, from, &self.0, to, flags,
        )?)
    }

    /// Makes names here durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// A path to `name` that leads through this directory while it is open.
    pub fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

fn refused(error: Errno) -> Refused {
    match error {
        Errno::XDEV | Errno::LOOP => Refused::Outside,
        Errno::NOTDIR | Errno::NOENT => Refused::NotFound,
        Errno::ISDIR => Refused::IsDirectory,
        other => Refused::Io(other.into()),
    }
}

/// Whether another program's use of the file is what `error` is about.
pub fn is_in_use(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::WouldBlock | Kind::ResourceBusy | Kind::ExecutableFileBusy
    )
}

/// What the system says of an open file.
pub fn identity(file: &File) -> io::Result<Identity> {
    let meta = file.metadata()?;
    Ok(Identity {
        changed_ns: meta
            .ctime()
            .saturating_mul(1_000_000_000)
            .saturating_add(meta.ctime_nsec()),
        file_id: meta.ino(),
        device: meta.dev(),
    })
}

/// Bytes free where `file`, which lies in `dir`, is.
pub fn available(file: &File, _dir: &Dir) -> io::Result<u64> {
    let room = rustix::fs::fstatvfs(file)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// Takes room for `len` bytes from `at` on, without changing the file's length, so that a full disk is
/// noticed before anything is written. Not every file system can; there the writes themselves find out.
pub fn reserve(file: &File, at: u64, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Has these bytes read from the disk the next time, not from memory. Only advice: where it is not taken,
/// they come from the page cache after `fsync`.
pub fn forget_cached(file: &File, at: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    let _ = rustix::fs::fadvise(file, at, len, rustix::fs::Advice::DontNeed);
}

/// This machine's name.
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Makes `dir` and closes it to other users. `ours` tells whether one that is open and not empty is the
/// agent's own; `Ok(false)`: it is not, and was left as it is.
pub fn private_dir(dir: &Path, ours: impl FnOnce() -> bool) -> io::Result<bool> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o077 != 0 {
        if fs::read_dir(dir)?.next().is_some() && !ours() {
            return Ok(false);
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(true)
}

/// Files made with these options can be read by their owner alone.
pub fn private_file(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Makes names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Not looked up in the search path, so that nobody can put another program there.
const PERL: &str = "/usr/bin/perl";
/// `F_SETLEASE` is 1024, `F_WRLCK` is 1 on every Linux; the exit status is the errno.
const TAKE: &str = "exit(defined(fcntl(STDIN, 1024, 1)) ? 0 : $! + 0)";
/// `F_GETLEASE` is 1025. A lease that is being broken reads as what it is broken to.
const HELD: &str = "my $l = fcntl(STDIN, 1025, 0); exit(defined($l) && $l == 1 ? 0 : 1)";
const EACCES: i32 = 13;

/// Takes a file for as long as it is open, however it was opened.
///
/// # Errors
/// One that [`is_in_use`] while somebody else has it open; else why there are no leases.
pub fn take_alone(file: &File, _opened: Access) -> io::Result<()> {
    let answer = ask(TAKE, file).map_err(|e| io::Error::other(format!("{PERL}: {e}")))?;
    match answer {
        0 => Ok(()),
        EACCES => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the agent's user does not own the file",
        )),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Whether nobody has asked for a file since it was taken.
pub fn still_alone(file: &File) -> bool {
    matches!(ask(HELD, file), Ok(0))
}

/// Runs a line of Perl on the open file; its exit status.
fn ask(script: &str, file: &File) -> io::Result<i32> {
    let status = Command::new(PERL)
        .args(["-e", script])
        .env_clear()
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    status
        .code()
        .ok_or_else(|| io::Error::other("ended by a signal"))
}
