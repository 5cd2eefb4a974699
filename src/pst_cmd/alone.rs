//! Having a PST for oneself while it is changed (DESIGN R8).
//!
//! [`open_alone`] sees whoever has the file open now; [`lease`] also keeps away who comes later, be it a
//! local program or the server of an SMB share.

use std::fs::{self, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use agent::{Exclusivity, NotAlone};
use storage::FileStorage;

use super::open_file;
use crate::error::UserError;

/// Takes a lease on an open file for as long as it is open; none where `exclusive` promises that nothing
/// else opens it.
///
/// # Errors
/// Somebody else has it open, or the file system has no leases.
pub(super) fn lease(path: &Path, file: &FileStorage, exclusive: bool) -> Result<(), UserError> {
    let how = if exclusive {
        Exclusivity::Promised
    } else {
        Exclusivity::Lease
    };
    how.hold(&path.display().to_string(), file.file())
        .map_err(|e| match e {
            NotAlone::InUse(message) => UserError::new(
                "in-use",
                message,
                "close it there, then run the command again",
            ),
            NotAlone::NoLease(message) => UserError::new(
                "no-lease",
                message,
                "run it as the file's owner on a local file system, or with --exclusive where no \
                 other program uses the file",
            ),
        })
}

/// Whether nobody asked for the file since its lease was taken.
pub(super) fn undisturbed(file: &FileStorage, exclusive: bool) -> bool {
    let how = if exclusive {
        Exclusivity::Promised
    } else {
        Exclusivity::Lease
    };
    how.undisturbed(file.file())
}

/// Opens the PST for writing, as long as nobody else has it open.
pub(super) fn open_alone(path: &Path) -> Result<Arc<FileStorage>, UserError> {
    // What cannot even be read is told as by the other commands.
    drop(open_file(path)?);
    let failed = |e: std::io::Error| UserError::file("write to", path, &e);
    let file = FileStorage::open(path).map_err(failed)?;
    let in_use = |by: String| {
        UserError::new(
            "in-use",
            format!("{} is in use by another program{by}", path.display()),
            "close it there, then run the command again",
        )
    };
    match file.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(String::new())),
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    match other_user(path) {
        Some(pid) => Err(in_use(format!(" (process {pid})"))),
        None => Ok(Arc::new(file)),
    }
}

/// A process, not ours, that has the file open. Programs that lock nothing are seen here, as far as this
/// user may see them; Samba holds real descriptors for its clients.
fn other_user(path: &Path) -> Option<u32> {
    let wanted = fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok());
        let Some(pid) = pid.filter(|p| *p != std::process::id()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for entry in open.flatten() {
            // The kernel tells the inode by itself; asking the file system waits as long as that
            // does not answer, and any process may hold a file of one that hangs.
            let info = process.path().join("fdinfo").join(entry.file_name());
            let inode = fs::read_to_string(info).ok().and_then(|text| {
                let line = text.lines().find_map(|l| l.strip_prefix("ino:"))?;
                line.trim().parse::<u64>().ok()
            });
            if inode == Some(wanted.1)
                && fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == wanted)
            {
                return Some(pid);
            }
        }
    }
    None
}
