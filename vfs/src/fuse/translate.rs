//! What one side calls something, in the other's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyData, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::TTL;
use crate::drive::NodeAttr;
use crate::error::{self, Error};
use crate::share::{Kind, Special};

/// The answer to an application for each error of ours: the one place where they meet.
fn errno(e: &Error) -> Errno {
    match e {
        Error::NotFound(_) => Errno::ENOENT,
        Error::Exists(_) => Errno::EEXIST,
        Error::NotDir(_) => Errno::ENOTDIR,
        Error::IsDir(_) => Errno::EISDIR,
        Error::NotEmpty(_) => Errno::ENOTEMPTY,
        Error::Access(_) => Errno::EACCES,
        Error::NotPermitted(_) => Errno::EPERM,
        Error::Unsupported(_) => Errno::EOPNOTSUPP,
        Error::NoAttribute(_) => Errno::ENODATA,
        Error::TooLarge(_) => Errno::E2BIG,
        Error::Invalid(_) | Error::ForbiddenName(_) => Errno::EINVAL,
        Error::BadName(_) => Errno::EILSEQ,
        Error::TooManyNames(_) => Errno::EMLINK,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::BadHandle => Errno::EBADF,
        Error::NoSpace(_) => Errno::ENOSPC,
        Error::Busy(_) => Errno::EBUSY,
        Error::NotCached(_) => Errno::ENETUNREACH,
        Error::ShareChanged(_) => Errno::ESTALE,
        Error::Link(_)
        | Error::Poisoned(_)
        | Error::Damaged { .. }
        | Error::Newer { .. }
        | Error::Locked(_) => Errno::EIO,
        Error::Io { source, .. } | Error::Refused { source, .. } => {
            source.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
        }
    }
}

pub(super) fn report(what: &str, e: &Error) -> Errno {
    match e {
        Error::NotFound(_) | Error::Exists(_) | Error::NotEmpty(_) | Error::NoAttribute(_) => {}
        _ => tracing::debug!(what, error = %e, "refused"),
    }
    errno(e)
}

pub(super) fn time(nanos: i64) -> SystemTime {
    let abs = Duration::from_nanos(nanos.unsigned_abs());
    let at = if nanos < 0 {
        UNIX_EPOCH.checked_sub(abs)
    } else {
        UNIX_EPOCH.checked_add(abs)
    };
    at.unwrap_or(UNIX_EPOCH)
}

pub(super) fn nanos(t: SystemTime) -> i64 {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Special(Special::Fifo) => FileType::NamedPipe,
        Kind::Special(Special::Socket) => FileType::Socket,
        Kind::Special(Special::Char(..)) => FileType::CharDevice,
        Kind::Special(Special::Block(..)) => FileType::BlockDevice,
    }
}

/// What mknod(2) is to make of a mode and a device number; `None`: a regular file.
pub(super) fn made_by_mknod(mode: u32, rdev: u32) -> Result<Option<Special>, Errno> {
    let (major, minor) = (
        (rdev >> 8) & 0xFFF,
        (rdev & 0xFF) | ((rdev >> 12) & 0xF_FF00),
    );
    match mode & 0o170_000 {
        0 | 0o100_000 => Ok(None),
        0o010_000 => Ok(Some(Special::Fifo)),
        0o140_000 => Ok(Some(Special::Socket)),
        0o020_000 => Ok(Some(Special::Char(major, minor))),
        0o060_000 => Ok(Some(Special::Block(major, minor))),
        _ => Err(Errno::EINVAL),
    }
}

/// The device number in the 32 bits of the protocol: as Linux packs it, 12 for the major and 20 for
/// the minor number.
fn rdev(kind: Kind) -> u32 {
    match kind {
        Kind::Special(Special::Char(major, minor) | Special::Block(major, minor)) => {
            (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xF_FF00) << 12)
        }
        _ => 0,
    }
}

pub(super) fn file_attr(n: &NodeAttr) -> FileAttr {
    let a = &n.attr;
    FileAttr {
        ino: INodeNo(n.id),
        size: a.size,
        blocks: a.size.div_ceil(512),
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: time(a.mtime),
        kind: file_type(a.kind),
        perm: (a.mode & 0o7777) as u16,
        nlink: n.links,
        uid: a.uid,
        gid: a.gid,
        rdev: rdev(a.kind),
        blksize: 4096,
        flags: 0,
    }
}

/// Answers a read.
pub(super) fn data(reply: ReplyData, read: error::Result<Vec<u8>>) {
    match read {
        Ok(data) => reply.data(&data),
        Err(e) => reply.error(report("read", &e)),
    }
}

pub(super) fn empty(reply: ReplyEmpty, what: &str, done: crate::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(report(what, &e)),
    }
}

pub(super) fn entry(reply: ReplyEntry, what: &str, done: crate::Result<NodeAttr>) {
    match done {
        Ok(n) => reply.entry(&TTL, &file_attr(&n), fuser::Generation(0)),
        Err(e) => reply.error(report(what, &e)),
    }
}

/// An answer whose length is asked for first, or that must fit `size` bytes.
pub(super) fn sized(reply: ReplyXattr, size: u32, what: &str, done: crate::Result<Vec<u8>>) {
    match done {
        Ok(data) => match u32::try_from(data.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&data),
            _ => reply.error(Errno::ERANGE),
        },
        Err(e) => reply.error(report(what, &e)),
    }
}
