//! Which drives are mounted by this user, and where their sockets are.
//!
//! The runtime directory holds two files a drive, named by a hash of the mountpoint (a socket's path
//! must be short): `ID.lock`, which holds the drive's description as JSON and is locked by the daemon
//! as long as it lives, and `ID.sock`. The kernel drops the lock with the process, however it ends; so
//! an unlocked entry is a dead one, and whoever finds it removes it. A lock file is removed only under
//! its lock, and a lock taken on a file that is no longer the named one does not count.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::UserError;
use crate::exit::ExitStatus;

/// Bound of a lock file's description, in bytes.
const MAX_ENTRY: u64 = 64 * 1024;

/// How often a lock is tried again whose file was removed at the same moment.
const RETRIES: usize = 16;

/// A mounted drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveEntry {
    /// Where it is mounted: absolute.
    pub mountpoint: PathBuf,
    /// The share under it.
    pub share: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When it was mounted.
    pub since: Timestamp,
    /// Its control socket; known from where the entry was found.
    #[serde(skip)]
    pub socket: PathBuf,
}

/// The runtime directory of one user.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

/// A drive's place in the registry, held by its daemon. Dropped, the drive is no longer listed.
pub struct Registration {
    listener: UnixListener,
    socket: PathBuf,
    lock_path: PathBuf,
    withdrawn: AtomicBool,
    /// Locked while this lives.
    _lock: File,
}

impl Registry {
    /// The registry in `dir`, which is made (0700) where it is missing.
    ///
    /// # Errors
    /// The directory cannot be made, belongs to another user, or is open to others.
    pub fn open(dir: &Path) -> Result<Self, UserError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| UserError::file("make the runtime directory", dir, &e))?;
        let meta = fs::symlink_metadata(dir)
            .map_err(|e| UserError::file("look at the runtime directory", dir, &e))?;
        let ours = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_dir() || !ours || meta.mode() & 0o077 != 0 {
            return Err(UserError::new(
                "runtime-dir-unsafe",
                format!(
                    "the runtime directory {} is not private to you",
                    dir.display()
                ),
                "make it a directory that you own with mode 0700, or name another in \
                 PSTSYNCD_RUNTIME_DIR",
            ));
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Takes the place of a drive at `mountpoint` (absolute) and listens on its socket.
    ///
    /// # Errors
    /// Another daemon serves this mountpoint, or the files cannot be made.
    pub fn claim(&self, mountpoint: &Path, share: &str) -> Result<Registration, UserError> {
        let (lock_path, socket) = self.paths(mountpoint);
        let failed = |e: &io::Error| UserError::file("register the drive in", &self.dir, e);
        let mut lock = lock_named(&lock_path, true).map_err(|e| failed(&e))?;
        for _ in 0..RETRIES {
            // A lister that looks whether the entry is dead holds the lock for a moment.
            if lock.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            lock = lock_named(&lock_path, true).map_err(|e| failed(&e))?;
        }
        let Some(mut lock) = lock else {
            return Err(UserError::new(
                "already-mounted",
                format!("a drive is already mounted at {}", mountpoint.display()),
                format!(
                    "use it, or unmount it first: pstsyncd unmount {}",
                    mountpoint.display()
                ),
            ));
        };
        let entry = DriveEntry {
            mountpoint: mountpoint.to_owned(),
            share: share.to_owned(),
            pid: std::process::id(),
            since: Timestamp::now(),
            socket: PathBuf::new(),
        };
        let text = serde_json::to_vec(&entry).map_err(|_| {
            UserError::new(
                "path-not-utf8",
                format!("the mountpoint {} is not UTF-8", mountpoint.display()),
                "choose a mountpoint whose path is UTF-8",
            )
        })?;
        let listener = (|| {
            remove_if_there(&socket)?;
            let listener = UnixListener::bind(&socket)?;
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
            lock.set_len(0)?;
            lock.write_all(&text)?;
            Ok(listener)
        })()
        .map_err(|e| failed(&e))?;
        Ok(Registration {
            listener,
            socket,
            lock_path,
            withdrawn: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// All mounted drives, by mountpoint. Entries of dead daemons are removed on the way.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<DriveEntry>, UserError> {
        let failed = |e: io::Error| UserError::file("read the runtime directory", &self.dir, &e);
        let mut drives = Vec::new();
        for item in fs::read_dir(&self.dir).map_err(failed)? {
            let path = item.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == "lock")
                && let Ok(Some(entry)) = read_live(&path)
            {
                drives.push(entry);
            }
        }
        drives.sort_by(|a: &DriveEntry, b| a.mountpoint.cmp(&b.mountpoint));
        Ok(drives)
    }

    /// The drive that is meant: the one mounted at `mountpoint`, or else the only one.
    ///
    /// # Errors
    /// There is none, or there are several and none is named.
    pub fn find(&self, mountpoint: Option<&Path>) -> Result<DriveEntry, UserError> {
        let mut drives = self.list()?;
        if let Some(wanted) = mountpoint {
            let wanted = absolute(wanted);
            if let Some(at) = drives.iter().position(|d| d.mountpoint == wanted) {
                return Ok(drives.swap_remove(at));
            }
            return Err(UserError::new(
                "no-such-drive",
                format!("no drive of yours is mounted at {}", wanted.display()),
                match names(&drives) {
                    names if names.is_empty() => {
                        "mount one: pstsyncd mount --share DIR MOUNTPOINT".to_owned()
                    }
                    names => format!("name one of: {names}"),
                },
            )
            .with_exit(ExitStatus::Offline));
        }
        if drives.len() > 1 {
            return Err(UserError::new(
                "which-drive",
                format!("{} drives are mounted", drives.len()),
                format!("name one of: {}", names(&drives)),
            ));
        }
        drives.pop().ok_or_else(|| {
            UserError::new(
                "no-drive",
                "no drive of yours is mounted",
                "mount one: pstsyncd mount --share DIR MOUNTPOINT",
            )
            .with_exit(ExitStatus::Offline)
        })
    }

    /// Waits until this daemon has given its place up, which it does last; says whether it has.
    #[must_use]
    pub fn wait_gone(&self, drive: &DriveEntry, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let listed = self.list().unwrap_or_default();
            let there = |d: &DriveEntry| d.mountpoint == drive.mountpoint && d.pid == drive.pid;
            if !listed.iter().any(there) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn paths(&self, mountpoint: &Path) -> (PathBuf, PathBuf) {
        use std::os::unix::ffi::OsStrExt;
        let hash = blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex();
        let id: String = hash.chars().take(16).collect();
        (
            self.dir.join(format!("{id}.lock")),
            self.dir.join(format!("{id}.sock")),
        )
    }
}

impl Registration {
    /// The socket that commands connect to.
    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Takes the drive off the list, for whoever knows its end before the last thread that holds this is
    /// gone.
    pub fn withdraw(&self) {
        if self.withdrawn.swap(true, Ordering::SeqCst) {
            // What is there now may be a successor's.
            return;
        }
        // Under the lock, so that no successor's files are removed.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock_path);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Mountpoints as a command line would take them.
fn names(drives: &[DriveEntry]) -> String {
    let names: Vec<_> = drives
        .iter()
        .map(|d| d.mountpoint.display().to_string())
        .collect();
    names.join(", ")
}

/// The path without links and dots where its parent can be asked. The last component is never asked: it
/// may be a mountpoint whose daemon hangs.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(_) => path,
        },
        _ => path,
    }
}

/// Locks the file that has this name. `None`: a live daemon holds it.
fn lock_named(path: &Path, create: bool) -> io::Result<Option<File>> {
    for _ in 0..RETRIES {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let (held, named) = (file.metadata()?, fs::symlink_metadata(path));
        match named {
            Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => {
                return Ok(Some(file));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// The entry of a live daemon; a dead one's files are removed.
fn read_live(lock_path: &Path) -> io::Result<Option<DriveEntry>> {
    let socket = lock_path.with_extension("sock");
    if let Some(_dead) = lock_named(lock_path, false)? {
        remove_if_there(&socket)?;
        remove_if_there(lock_path)?;
        return Ok(None);
    }
    let mut text = Vec::new();
    File::open(lock_path)?
        .take(MAX_ENTRY)
        .read_to_end(&mut text)?;
    // A daemon that has just taken its lock has not written its entry yet: it is not there yet.
    let Ok(mut entry) = serde_json::from_slice::<DriveEntry>(&text) else {
        return Ok(None);
    };
    entry.socket = socket;
    Ok(Some(entry))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::open(&temp.path().join("run")).unwrap();
        (temp, registry)
    }

    #[test]
    fn a_claim_is_private_listed_unique_and_gone_when_dropped() {
        let (_temp, registry) = registry();
        let claim = registry.claim(Path::new("/mnt/mail"), "/share").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&registry.dir), 0o700);
        assert_eq!(mode(claim.socket()), 0o600);
        let drives = registry.list().unwrap();
        assert_eq!(drives.len(), 1);
        assert_eq!(drives[0].mountpoint, Path::new("/mnt/mail"));
        assert_eq!(drives[0].pid, std::process::id());
        assert_eq!(drives[0].socket, claim.socket());
        let twice = registry
            .claim(Path::new("/mnt/mail"), "/other")
            .err()
            .unwrap();
        assert_eq!(twice.code, "already-mounted");
        drop(claim);
        assert!(registry.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(&registry.dir).unwrap().count(), 0);
        registry.claim(Path::new("/mnt/mail"), "/share").unwrap();
    }

    #[test]
    fn a_dead_daemons_files_are_cleaned_and_its_place_taken() {
        let (_temp, registry) = registry();
        let (lock, socket) = registry.paths(Path::new("/mnt/mail"));
        // What SIGKILL leaves: both files, no lock.
        fs::write(
            &lock,
            r#"{"mountpoint":"/mnt/mail","share":"s","pid":1,"since":"2026-01-01T00:00:00Z"}"#,
        )
        .unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
        let claim = registry.claim(Path::new("/mnt/mail"), "/share").unwrap();
        drop(claim);
        fs::write(&lock, "not even JSON").unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        assert!(registry.list().unwrap().is_empty());
        assert!(!lock.exists() && !socket.exists());
    }

    #[test]
    fn one_drive_is_the_default_and_several_must_be_named() {
        let (_temp, registry) = registry();
        let none = registry.find(None).unwrap_err();
        assert_eq!(
            (none.code.as_str(), none.exit),
            ("no-drive", ExitStatus::Offline)
        );
        let _a = registry.claim(Path::new("/mnt/a"), "s").unwrap();
        assert_eq!(registry.find(None).unwrap().mountpoint, Path::new("/mnt/a"));
        let _b = registry.claim(Path::new("/mnt/b"), "s").unwrap();
        let several = registry.find(None).unwrap_err();
        assert_eq!(several.code, "which-drive");
        assert!(several.next.contains("/mnt/a, /mnt/b"), "{}", several.next);
        let found = registry.find(Some(Path::new("/mnt/../mnt/b"))).unwrap();
        assert_eq!(found.mountpoint, Path::new("/mnt/b"));
        assert_eq!(
            registry.find(Some(Path::new("/mnt/c"))).unwrap_err().code,
            "no-such-drive"
        );
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("open");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Registry::open(&dir).unwrap_err().code, "runtime-dir-unsafe");
        let link = temp.path().join("link");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert_eq!(
            Registry::open(&link).unwrap_err().code,
            "runtime-dir-unsafe"
        );
        Registry::open(&dir).unwrap();
    }

    #[test]
    fn many_threads_claim_one_mountpoint_and_one_wins() {
        let (_temp, registry) = registry();
        for _ in 0..50 {
            let claims: Vec<_> = std::thread::scope(|scope| {
                let claim = || registry.claim(Path::new("/mnt/mail"), "s");
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
                threads
                    .into_iter()
                    .filter_map(|t| t.join().unwrap().ok())
                    .collect()
            });
            assert_eq!(claims.len(), 1);
        }
    }
}
