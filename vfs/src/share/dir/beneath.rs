//! Opening what lies beneath the root of a share, and nothing else: no symbolic link is followed.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};

use crate::path::split;

#[cfg(target_os = "linux")]
pub(super) const PATH_ONLY: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
pub(super) const PATH_ONLY: OFlags = OFlags::RDONLY;

/// Opens `path` beneath `root` without following any symbolic link.
pub(super) fn beneath(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let path = if path.is_empty() { "." } else { path };
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::ResolveFlags;
        use rustix::io::Errno;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // A rename elsewhere raced with the resolution.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::PERM) => break,
                Err(e) => return Err(e.into()),
            }
        }
    }
    walk(root, path, flags)
}

/// The same, one component at a time.
pub(super) fn walk(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let (dirs, last) = split(path).unwrap_or(("", "."));
    let mut at = rustix::io::dup(root)?;
    let step = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW | PATH_ONLY;
    for dir in dirs.split('/').filter(|d| !d.is_empty()) {
        at = rustix::fs::openat(&at, dir, step, Mode::empty())?;
    }
    Ok(rustix::fs::openat(&at, last, flags, Mode::empty())?)
}

/// Opens a file or directory for its extended attributes; `None` for a symbolic link, which has
/// none.
pub(super) fn for_xattr(root: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    match beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Changes the mode of what cannot be opened for it: no permission, or opening would act, as on a
/// device. Not of a symbolic link, which has none.
pub(super) fn chmod_unopened(root: &OwnedFd, path: &str, mode: Mode) -> io::Result<()> {
    let fd = beneath(root, path, PATH_ONLY)?;
    let st = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(st.st_mode) == FileType::Symlink {
        return Err(io::ErrorKind::Unsupported.into());
    }
    #[cfg(target_os = "linux")]
    rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)?;
    #[cfg(not(target_os = "linux"))]
    rustix::fs::fchmod(&fd, mode)?;
    Ok(())
}
