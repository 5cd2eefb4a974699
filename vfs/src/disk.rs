//! The disk under the state directory, behind one small trait.
//!
//! Everything the drive keeps here (journal, cache files, metadata) goes through [`Disk`], so that a
//! disk that loses what was not flushed ([`crash`]) or fails on command ([`fault`]) slots in, and
//! the drive's promises are tested against both.
//!
//! Paths are relative to the state directory, with `/`; none of them comes from outside. Promises
//! are POSIX's and no more: bytes survive a power cut after [`WriteAt::sync`] of the file, names
//! after [`Disk::sync_dir`] of their directory, a rename is one step (but see [`crash::CrashDisk::fat`]).

pub mod crash;
pub mod fault;
pub(crate) mod owner;
pub mod read_only;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::{FileStorage, WriteAt};

/// What keeps others out while it lives.
pub type DiskLock = Box<dyn std::any::Any + Send + Sync>;

/// The state directory's file system.
pub trait Disk: Send + Sync {
    /// Name for messages.
    fn name(&self) -> String;
    /// Creates a directory that only its owner can enter; an existing one is tightened.
    fn mkdir(&self, dir: &str) -> io::Result<()>;
    /// Names in a directory, in no order.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>>;
    /// Creates a file (mode 0600) that must not exist, with room for `room` bytes: it is so long
    /// then, and reads as zeros.
    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>>;
    /// Renames within one directory, replacing what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes available to us.
    fn available(&self) -> io::Result<u64>;
    /// Takes the directory for this process; `None` while another has it.
    fn lock(&self) -> io::Result<Option<DiskLock>>;
    /// An existing file as the system knows it, for reading; `None` where there is no such thing, or others
    /// than this process may not rely on it.
    fn system_file(&self, path: &str) -> Option<io::Result<File>> {
        let _ = path;
        None
    }
    /// Names the time since which nothing that was written can have been lost by the system: empty
    /// where that is not known.
    fn boot_id(&self) -> Vec<u8>;
}

impl dyn Disk {
    /// A small file's bytes; `None` where there is no such file. More than `max` bytes are refused.
    pub(crate) fn read(&self, path: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let len = file.len()?;
        if len > max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path} is longer than {max} bytes"),
            ));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// As [`Disk::read`], of a file that is replaced and never removed.
    pub(crate) fn read_standing(&self, path: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        match self.read(path, max)? {
            // The file system took the old one away and did not come to name the new one.
            None => self.read(&format!("{path}.new"), max),
            found => Ok(found),
        }
    }

    /// Replaces a small file in one durable step, also where a rename over an existing file is none (FAT,
    /// exFAT): what is to take its place is durable before, with its name `.new`, under which
    /// [`Disk::read_standing`] finds it. Where there is nothing to replace that name is not used, so
    /// that a beginning is never taken for the whole.
    pub(crate) fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let there = match self.open(path) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        let new = format!("{path}{}", if there { ".new" } else { ".first" });
        match self.remove(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let dir = path.rsplit_once('/').map_or("", |p| p.0);
        let file = self.create(&new, 0)?;
        file.write_all_at(0, bytes)?;
        file.sync()?;
        drop(file);
        self.sync_dir(dir)?;
        self.rename(&new, path)?;
        self.sync_dir(dir)
    }
}

/// A directory of the system.
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Uses (and creates) `root`.
    ///
    /// # Errors
    /// What the file system says; [`io::ErrorKind::FileTooLarge`] on a FAT volume: a mailbox that grows there
    /// beyond 4 GiB would be stopped in the middle of a change that was acknowledged.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let disk = Self { root: root.into() };
        disk.mkdir("")?;
        #[cfg(target_os = "linux")]
        if is_fat(i128::from(rustix::fs::statfs(&disk.root)?.f_type)) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is on a FAT volume, which holds no file of 4 GiB or more",
            ));
        }
        Ok(disk)
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        }
    }
}

/// The kernel's number of FAT12, FAT16 and FAT32 in statfs(2). exFAT has another.
#[cfg(target_os = "linux")]
const fn is_fat(f_type: i128) -> bool {
    f_type == 0x4d44
}

/// Where the file system keeps no permissions (FAT, exFAT), the mount's options are all there is.
#[cfg(unix)]
fn keeps_no_modes(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
    )
}

impl Disk for RealDisk {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        let path = self.at(dir);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
            builder.mode(0o700);
            builder.create(&path)?;
            let closed = std::fs::Permissions::from_mode(0o700);
            match std::fs::set_permissions(&path, closed) {
                Err(e) if !keeps_no_modes(&e) => Err(e),
                _ => Ok(()),
            }
        }
        #[cfg(not(unix))]
        builder.create(&path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.at(dir))? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>> {
        Ok(Arc::new(FileStorage::open(self.at(path))?))
    }

    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>> {
        let at = self.at(path);
        let file = create_private_file(&at)?;
        if let Err(e) = allocate(&file, room) {
            drop(file);
            let _ = std::fs::remove_file(&at);
            return Err(e);
        }
        Ok(Arc::new(FileStorage::from(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from), self.at(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.at(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if cfg!(unix) {
            File::open(self.at(dir))?.sync_all()
        } else {
            Ok(())
        }
    }

    fn available(&self) -> io::Result<u64> {
        #[cfg(unix)]
        {
            let st = rustix::fs::statvfs(&self.root)?;
            Ok(st.f_bavail.saturating_mul(st.f_frsize.max(1)))
        }
        #[cfg(windows)]
        fs2::available_space(&self.root)
    }

    fn lock(&self) -> io::Result<Option<DiskLock>> {
        let path = self.root.join("lock");
        let lock = match create_private_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                OpenOptions::new().read(true).write(true).open(&path)?
            }
            other => other?,
        };
        match lock.try_lock() {
            Ok(()) => Ok(Some(Box::new(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn system_file(&self, path: &str) -> Option<io::Result<File>> {
        Some(File::open(self.at(path)))
    }

    fn boot_id(&self) -> Vec<u8> {
        std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
    }
}

fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            // Not every file system can; then ENOSPC shows with the write itself.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            other => return Ok(other?),
        }
    }
    file.set_len(len)
}
