//! DOS attributes and file times as the drive's attributes, and back.
//!
//! A share has no owners and no modes of the kind that the drive shows: files are shown as the
//! user's own, and only "read-only" is carried.

use smb2::pack::FileTime;
use smb2::types::flags::FileAttributes;
use smb2::{DirectoryEntry, FileInfo};

use crate::share::{Attr, Kind};

/// What a server says of a file or directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) size: u64,
    pub(super) attributes: u32,
    pub(super) modified: FileTime,
    pub(super) accessed: FileTime,
    pub(super) changed: FileTime,
    /// Index number of the file on its volume; 0 where the server has none.
    pub(super) index: u64,
}

/// Between 1601 and 1970, in units of 100 ns.
const EPOCH: i128 = 116_444_736_000_000_000;

/// Nanoseconds since 1970; what lies beyond the range is moved to its ends.
pub(super) fn nanos(time: FileTime) -> i64 {
    let n = (i128::from(time.0) - EPOCH) * 100;
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

/// The file time nearest below. Never 0 or negative, which mean something else in a request.
pub(super) fn file_time(nanos: i64) -> FileTime {
    let t = i128::from(nanos).div_euclid(100) + EPOCH;
    FileTime(u64::try_from(t.max(1)).unwrap_or(1))
}

fn attr(facts: &Facts, kind: Kind) -> Attr {
    let read_only = facts.attributes & FileAttributes::READONLY != 0;
    let mode = match kind {
        Kind::Dir => 0o700,
        Kind::Symlink => 0o777,
        _ if read_only => 0o400,
        _ => 0o600,
    };
    let (uid, gid) = crate::own_ids();
    Attr {
        kind,
        size: if kind == Kind::Dir { 0 } else { facts.size },
        mtime: nanos(facts.modified),
        atime: nanos(facts.accessed),
        ctime: nanos(facts.changed),
        mode,
        uid,
        gid,
        file_id: facts.index,
    }
}

impl Facts {
    /// As attributes of an open file.
    pub(super) fn file(&self) -> Attr {
        attr(self, Kind::File)
    }
}

fn kind(link: bool, dir: bool) -> Kind {
    match (link, dir) {
        (true, _) => Kind::Symlink,
        (_, true) => Kind::Dir,
        _ => Kind::File,
    }
}

pub(super) fn of_info(info: &FileInfo, index: u64) -> Attr {
    let facts = Facts {
        size: info.size,
        attributes: info.attributes.bits(),
        modified: info.modified,
        accessed: info.accessed,
        changed: info.changed,
        index,
    };
    attr(&facts, kind(info.is_link(), info.is_directory))
}

/// A listing does not tell the time of last access: it is shown as that of the last change.
pub(super) fn of_entry(entry: &DirectoryEntry) -> Attr {
    let facts = Facts {
        size: entry.size,
        attributes: entry.attributes.bits(),
        modified: entry.modified,
        accessed: entry.modified,
        changed: entry.changed,
        index: entry.index_number.unwrap_or(0),
    };
    attr(&facts, kind(entry.is_link(), entry.is_directory))
}

/// The DOS attributes that carry this mode, starting from those there are.
pub(super) fn attributes(mode: u32, now: u32) -> u32 {
    if mode & 0o200 == 0 {
        now | FileAttributes::READONLY
    } else {
        now & !FileAttributes::READONLY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        for t in [
            0,
            1_700_000_000_123_456_700,
            -1_100_000_000_000_000_000,
            100,
        ] {
            assert_eq!(nanos(file_time(t)), t);
        }
        // Below the unit: the time before it.
        assert_eq!(nanos(file_time(199)), 100);
        assert_eq!(nanos(file_time(-1)), -100);
        // Beyond the range: its ends, never a time that means "leave it".
        assert_eq!(nanos(FileTime(u64::MAX)), i64::MAX);
        assert_eq!(nanos(FileTime(0)), i64::MIN);
        assert!(file_time(i64::MIN).0 > 0);
    }

    #[test]
    fn only_read_only_is_carried() {
        let hidden = FileAttributes::HIDDEN;
        assert_eq!(attributes(0o444, hidden), hidden | FileAttributes::READONLY);
        assert_eq!(attributes(0o644, hidden | 1), hidden);
    }
}
