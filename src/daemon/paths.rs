//! Where things are kept: the runtime directory, and the state directory of each drive.
//!
//! The only place of the program that reads the environment for directories.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::Registry;
use crate::error::UserError;

/// Bound of the description of a state directory, in bytes.
const MAX_LABEL: u64 = 64 * 1024;

/// The registry of this user's drives: `PSTSYNCD_RUNTIME_DIR`, or `pstsyncd` in `XDG_RUNTIME_DIR`, or
/// `run` in the state directory.
///
/// # Errors
/// None of them is known, or the directory is not private.
pub fn registry() -> Result<Registry, UserError> {
    let dir = match (var("PSTSYNCD_RUNTIME_DIR"), var("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => dir,
        (None, Some(dir)) => dir.join("pstsyncd"),
        (None, None) => state_base()?.join("run"),
    };
    Registry::open(&dir)
}

/// The default place for state: `pstsyncd` in `XDG_STATE_HOME` or `~/.local/state`.
///
/// # Errors
/// Neither that nor a home is known.
pub fn state_base() -> Result<PathBuf, UserError> {
    if let Some(dir) = var("XDG_STATE_HOME") {
        return Ok(dir.join("pstsyncd"));
    }
    match var("HOME") {
        Some(home) => Ok(home.join(".local/state/pstsyncd")),
        None => Err(UserError::new(
            "no-home",
            "neither HOME nor XDG_STATE_HOME is set, so there is no place for state",
            "set one of them, or name the directory with --state-dir",
        )),
    }
}

/// Where the user's own settings are: `pstsyncd` in `XDG_CONFIG_HOME` or `~/.config`.
#[must_use]
pub fn config_base() -> Option<PathBuf> {
    let base = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")));
    base.map(|dir| dir.join("pstsyncd"))
}

/// An absolute path from the environment; others are to be ignored (XDG base directories).
fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
}

/// What a state directory is for; kept in it, so that it is never used for another share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    /// "drive" or "agent".
    role: String,
    /// The share of the drive, or the root of the agent.
    of: PathBuf,
    /// The process that used it last.
    pid: u32,
}

/// A state directory that this process alone uses.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Locked while this lives; the kernel drops it with the process.
    _lock: File,
}

impl StateDir {
    /// Where the state for `of` is kept: the given directory, or one named by `role` and a hash of `of`. By
    /// share and not by mountpoint, so that what waits in a journal is found again wherever the share
    /// is mounted next.
    ///
    /// # Errors
    /// No default place is known.
    pub fn locate(given: Option<&Path>, role: &str, of: &Path) -> Result<PathBuf, UserError> {
        use std::os::unix::ffi::OsStrExt;
        if let Some(dir) = given {
            return Ok(crate::control::registry::absolute(dir));
        }
        let name = of
            .file_name()
            .unwrap_or(OsStr::new("root"))
            .to_string_lossy();
        let hash = blake3::hash(of.as_os_str().as_bytes()).to_hex();
        let short: String = hash.chars().take(12).collect();
        Ok(state_base()?
            .join(format!("{role}s"))
            .join(format!("{name}-{short}")))
    }

    /// Makes the directory (0700) where it is missing and takes it for this process.
    ///
    /// # Errors
    /// Another process uses it, it belongs to another share, or it cannot be written.
    pub fn take(path: &Path, role: &str, of: &Path) -> Result<Self, UserError> {
        private_dir(path)?;
        Self::take_made(path, role, of)
    }

    /// As [`StateDir::take`], on a volume that may keep no permissions (FAT, exFAT): there the
    /// mount's options decide who can read it, and a warning is all that can be done.
    ///
    /// # Errors
    /// As [`StateDir::take`].
    pub fn take_removable(path: &Path, role: &str, of: &Path) -> Result<Self, UserError> {
        match private_dir(path) {
            Err(e) if e.code == "state-dir-foreign" => return Err(e),
            Err(e) if fs::metadata(path).is_err() => return Err(e),
            Err(_) => {
                let closed = fs::Permissions::from_mode(0o700);
                let _ = fs::set_permissions(path, closed);
                if fs::metadata(path).is_ok_and(|m| m.mode() & 0o077 != 0) {
                    tracing::warn!(
                        dir = %path.display(),
                        "this volume keeps no permissions: others may be able to read your mail on it"
                    );
                }
            }
            Ok(()) => {}
        }
        Self::take_made(path, role, of)
    }

    fn take_made(path: &Path, role: &str, of: &Path) -> Result<Self, UserError> {
        let failed = |e| UserError::file("use the state directory", path, &e);
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed)?;
        let mut text = Vec::new();
        (&lock)
            .take(MAX_LABEL)
            .read_to_end(&mut text)
            .map_err(failed)?;
        let label = serde_json::from_slice::<Label>(&text).ok();
        // A daemon that was told to end a moment ago may be at its last steps.
        let mut held = lock.try_lock();
        for _ in 0..50 {
            if !matches!(held, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            held = lock.try_lock();
        }
        match held {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let by = label.map_or(String::new(), |l| format!(" (process {})", l.pid));
                return Err(UserError::new(
                    "state-dir-in-use",
                    format!("the state directory {} is in use{by}", path.display()),
                    "unmount the drive or stop the agent that uses it, or name another with \
                     --state-dir",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        if let Some(label) = label
            && (label.role != role || label.of != of)
        {
            return Err(UserError::new(
                "state-dir-of-other",
                format!(
                    "the state directory {} is that of another {}: {}",
                    path.display(),
                    label.role,
                    label.of.display()
                ),
                "name another directory with --state-dir",
            ));
        }
        let label = Label {
            role: role.to_owned(),
            of: of.to_owned(),
            pid: std::process::id(),
        };
        let text = serde_json::to_vec(&label).map_err(|_| {
            UserError::new(
                "path-not-utf8",
                format!("the path {} is not UTF-8", of.display()),
                "give it a name that is UTF-8",
            )
        })?;
        lock.seek(SeekFrom::Start(0)).map_err(failed)?;
        lock.write_all(&text).map_err(failed)?;
        lock.set_len(text.len() as u64).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a directory for state (0700), or takes one that is there: ours, and private or still empty.
/// What lies in it is mail.
///
/// # Errors
/// It belongs to another user, is open to others and not empty, or cannot be made.
pub fn private_dir(path: &Path) -> Result<(), UserError> {
    let failed = |e| UserError::file("use the state directory", path, &e);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let meta = fs::metadata(path).map_err(failed)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(UserError::new(
            "state-dir-foreign",
            format!(
                "the state directory {} belongs to another user",
                path.display()
            ),
            "name a directory of your own with --state-dir",
        ));
    }
    if meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    if fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Err(UserError::new(
            "state-dir-unsafe",
            format!(
                "the state directory {} is open to other users",
                path.display()
            ),
            format!(
                "close it with chmod 700 {}, or name another",
                path.display()
            ),
        ));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_directory_is_closed_while_it_is_empty_and_refused_when_not() {
        let temp = tempfile::tempdir().unwrap();
        let open =
            |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let dir = temp.path().join("state");
        fs::create_dir(&dir).unwrap();
        open(&dir);
        private_dir(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        fs::write(dir.join("x"), "x").unwrap();
        private_dir(&dir).unwrap();
        open(&dir);
        assert_eq!(private_dir(&dir).unwrap_err().code, "state-dir-unsafe");
    }

    #[test]
    fn a_state_directory_serves_one_process_and_one_share() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let held = StateDir::take(&dir, "drive", Path::new("/share")).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let second = StateDir::take(&dir, "drive", Path::new("/share")).unwrap_err();
        assert_eq!(second.code, "state-dir-in-use");
        drop(held);
        let other = StateDir::take(&dir, "drive", Path::new("/other")).unwrap_err();
        assert_eq!(other.code, "state-dir-of-other");
        let other = StateDir::take(&dir, "agent", Path::new("/share")).unwrap_err();
        assert_eq!(other.code, "state-dir-of-other");
        StateDir::take(&dir, "drive", Path::new("/share")).unwrap();
    }

    #[test]
    fn the_default_place_depends_on_the_share_only() {
        let of = |share: &str| {
            StateDir::locate(None, "drive", Path::new(share)).map(|p| p.display().to_string())
        };
        if std::env::var_os("HOME").is_some() {
            assert_eq!(of("/srv/mail").unwrap(), of("/srv/mail").unwrap());
            assert_ne!(of("/srv/mail").unwrap(), of("/srv2/mail").unwrap());
            assert!(of("/srv/mail").unwrap().contains("/drives/mail-"));
        }
    }
}
