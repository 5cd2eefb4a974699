//! What a user is told when a drive cannot be opened, mounted, synced or unmounted.

use std::io;
use std::path::Path;

use crate::control::FileReport;
use crate::daemon::holders::holders;
use crate::error::UserError;

pub(super) fn not_opened(error: &vfs::Error, state: &Path) -> UserError {
    let next = match error {
        vfs::Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
            "format the volume as exFAT or with a file system of Linux, or name a directory elsewhere"
        }
        // Mounting again would meet the same damage.
        vfs::Error::Damaged { .. } => {
            "keep a copy of it, take out what can be read with `pstsyncd cache export --all --partial \
             --to DIR --cache` and this directory, then mount with another --state-dir"
        }
        _ => "see that its disk is well and no other pstsyncd uses it, then mount again",
    };
    UserError::new(
        "drive-not-opened",
        format!(
            "the drive's state in {} does not open: {error}",
            state.display()
        ),
        next,
    )
}

pub(super) fn not_mounted(mountpoint: &Path, error: &io::Error) -> UserError {
    let next = match error.kind() {
        io::ErrorKind::NotFound => "install fuse3 (apt-get install fuse3), then mount again",
        io::ErrorKind::PermissionDenied => {
            "see that you may use /dev/fuse and own the mountpoint, then mount again"
        }
        io::ErrorKind::ResourceBusy => "unmount what is there first, or choose another mountpoint",
        _ => "see `dmesg` and the log, then mount again",
    };
    UserError::new(
        "not-mounted",
        format!(
            "the drive cannot be mounted at {}: {error}",
            mountpoint.display()
        ),
        next,
    )
}

/// A file that a sync left for its user to look at.
pub(super) fn stuck(file: &FileReport) -> UserError {
    let exit = file.outcome.exit();
    let (why, next) = match &file.error {
        Some(error) => (error.message.clone(), error.next.clone()),
        None => (
            "it was changed on both sides".to_owned(),
            "see `pstsyncd status`".to_owned(),
        ),
    };
    let next = format!("{next}; `pstsyncd unmount --now` keeps it in the journal");
    UserError::new("not-synced", format!("{}: {why}", file.path), next).with_exit(exit)
}

pub(super) fn not_unmounted(mountpoint: &str, error: &io::Error) -> UserError {
    if error.kind() == io::ErrorKind::ResourceBusy {
        let by = match holders(Path::new(mountpoint)).as_slice() {
            [] => "a program has a file or folder there open".to_owned(),
            programs => format!("in use by {}", programs.join(", ")),
        };
        return UserError::new(
            "in-use",
            format!("{mountpoint} stays mounted: {by}"),
            "close the programs that use it, then unmount again",
        );
    }
    UserError::new(
        "not-unmounted",
        format!("{mountpoint} cannot be unmounted: {error}"),
        "close the programs that use it (see `fuser -m`), then unmount again",
    )
}
