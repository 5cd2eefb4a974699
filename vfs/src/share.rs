//! The remote file tree, as the drive sees it.
//!
//! A share is reached only through [`Share`]: a directory ([`dir::DirShare`]), or an SMB server
//! ([`smb::SmbShare`]). Every call may block for as long as the network likes, so the drive never calls it
//! directly: all calls go through `Link` (a deadline and a pool), and no lock is held meanwhile
//! (R11).

#[cfg(unix)]
pub mod dir;
pub mod fault;
pub mod limited;
pub mod measured;
pub mod smb;

use std::io;
use std::ops::Range;
use std::time::Duration;

use bincode::{Decode, Encode};

use crate::path::Names;

/// What kind of thing a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link. The drive never follows it; frontends may show it.
    Symlink,
    /// A pipe, a socket or a device: a name with no content, which the system of whoever opens it
    /// gives its meaning.
    Special(Special),
}

/// Kinds of special files; numbers of devices as major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// Attributes of a file, directory or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Attr {
    /// Kind of the node.
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub mtime: i64,
    /// Last access, nanoseconds since 1970.
    pub atime: i64,
    /// Last change of content or attributes, nanoseconds since 1970.
    pub ctime: i64,
    /// POSIX permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Identity of the physical file on its share; 0 where the share has none.
    pub file_id: u64,
}

/// Attribute changes; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time, nanoseconds since 1970.
    pub atime: Option<i64>,
    /// Modification time, nanoseconds since 1970.
    pub mtime: Option<i64>,
}

impl SetAttr {
    /// Whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Applies the changes to `attr` (the change time is the caller's).
    pub fn apply(&self, attr: &mut Attr) {
        attr.mode = self.mode.unwrap_or(attr.mode);
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        attr.atime = self.atime.unwrap_or(attr.atime);
        attr.mtime = self.mtime.unwrap_or(attr.mtime);
    }
}

/// Cheap evidence that a file on the share is still the one we knew (DESIGN 2, "generation").
/// Equal stamps: treated as unchanged. A differing stamp means: look before trusting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970. (The change time would also move with a mere
    /// `chmod` or rename of ours.)
    pub mtime: i64,
    /// Identity of the physical file; 0 where the share has none.
    pub file_id: u64,
    /// BLAKE3 of the first [`HEAD`] bytes: real writers forget counters, and file times are coarse.
    pub head: [u8; 32],
}

/// How many leading bytes a stamp hashes. Covers the header of a PST (564 bytes).
pub const HEAD: usize = 1024;

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name within the directory.
    pub name: String,
    /// Its attributes.
    pub attr: Attr,
}

/// Space on a volume, in bytes and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Statfs {
    /// Total bytes.
    pub total: u64,
    /// Bytes available to us.
    pub available: u64,
    /// Total file slots.
    pub files: u64,
    /// Free file slots.
    pub files_free: u64,
}

/// What a share told of changes since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// At these paths, or in their attributes; also changes of our own.
    These(Vec<String>),
    /// More than it can say.
    Anything,
}

/// A share that tells of changes ([`Share::changes`]). It stops when dropped.
pub trait Changes: Send {
    /// What was told since the last call; answered from memory.
    ///
    /// # Errors
    /// The share tells nothing any more; whoever wants to hear must ask for a new one.
    fn heard(&mut self) -> io::Result<Changed>;
}

/// The remote file tree. Paths are those of [`crate::path`]. Calls are synchronous and may block.
pub trait Share: Send + Sync {
    /// Attributes; symbolic links are not followed.
    fn stat(&self, path: &str) -> io::Result<Attr>;
    /// All entries of a directory. A listing that cannot be read wholly is an error, never a
    /// shorter listing (R3).
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;
    /// Where a symbolic link points.
    fn read_link(&self, path: &str) -> io::Result<String>;
    /// Makes a symbolic link. A share without them answers [`io::ErrorKind::Unsupported`].
    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        let _ = (path, target);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether the share holds special files; answered from memory.
    fn has_special(&self) -> bool {
        false
    }
    /// Makes a special file with just this mode. A share without them answers
    /// [`io::ErrorKind::Unsupported`].
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        let _ = (path, what, mode);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether files on the share may have several names; answered from memory.
    fn has_links(&self) -> bool {
        false
    }
    /// Gives a file (no symbolic link is followed) another name, which must be free. A share without
    /// hard links answers [`io::ErrorKind::Unsupported`].
    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        let _ = (path, to);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Names of the extended attributes that programs may set (`user.` and what follows).
    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
    /// An extended attribute; `None`: there is none of this name.
    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        let _ = (path, name);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Sets an extended attribute; `None` removes it, and one that is not there is removed.
    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        let _ = (path, name, value);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Which names the share can hold; answered from memory.
    fn names(&self) -> Names {
        Names::Any
    }
    /// Whether its open files can be locked in parts ([`ShareFile::lock`]); answered from memory.
    fn has_locks(&self) -> bool {
        false
    }
    /// Whether it may tell of changes ([`Share::changes`]); answered from memory.
    fn may_tell(&self) -> bool {
        false
    }
    /// When the far side last sent a byte, of whatever answer; from memory. A call that takes long is no
    /// sign of a dead link while this goes on. `None`: not known.
    fn heard(&self) -> Option<std::time::Instant> {
        None
    }
    /// Begins to tell of changes. Nothing says that all changes are told of.
    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Opens an existing file.
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>>;
    /// Creates a file that must not exist, with just this mode, and opens it for reading and
    /// writing.
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>>;
    /// Renames; `replace` allows an existing target to be replaced.
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()>;
    /// Removes a file or symbolic link.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Creates a directory with just this mode.
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, path: &str) -> io::Result<()>;
    /// Changes attributes.
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()>;
    /// Space on the share.
    fn statfs(&self) -> io::Result<Statfs>;
    /// Cheap proof that the share answers.
    fn probe(&self) -> io::Result<()>;

    /// The stamp of a file.
    fn stamp(&self, path: &str) -> io::Result<Stamp> {
        self.open(path, false)?.stamp()
    }
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within {
    /// For anything to come from the share.
    pub silence: Duration,
    /// For the answer.
    pub answer: Duration,
}

/// Takes the answer to [`ShareFile::begin_read`].
pub type ReadDone = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;

/// An open file on a share. Closed when dropped.
pub trait ShareFile: Send + Sync {
    /// Attributes of the open file.
    fn stat(&self) -> io::Result<Attr>;
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Whether [`ShareFile::begin_read`] of so many bytes is to be had just now.
    fn begins_reads(&self, len: usize) -> bool {
        let _ = len;
        false
    }
    /// Begins to read up to `len` bytes without waiting: `done` gets them (fewer only at the end of the
    /// file), once, on a thread that it must not keep. [`io::ErrorKind::TimedOut`] when there is no
    /// answer `within` those times; any other error says nothing but that [`ShareFile::read_at`] is to be
    /// asked.
    fn begin_read(&self, offset: u64, len: usize, within: Within, done: ReadDone) {
        let _ = (offset, len, within);
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// Writes all of `data`.
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes everything written durable on the share.
    fn sync(&self) -> io::Result<()>;

    /// Locks a part of the file against other clients of the share, at once or not at all (`false`:
    /// another has a lock there). An exclusive lock lies over no other, not even of this handle; a
    /// shared one may lie over what this handle has. Ends with the handle.
    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        let _ = (range, exclusive);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Unlocks just what was locked by one call; the older of two that are alike.
    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The stamp of the open file.
    fn stamp(&self) -> io::Result<Stamp> {
        let attr = self.stat()?;
        let mut head = [0; HEAD];
        let mut have = 0;
        while let Some(rest) = head.get_mut(have..).filter(|r| !r.is_empty()) {
            match self.read_at(have as u64, rest)? {
                0 => break,
                n => have += n,
            }
        }
        let hash = blake3::hash(head.get(..have).unwrap_or(&head));
        Ok(Stamp {
            size: attr.size,
            mtime: attr.mtime,
            file_id: attr.file_id,
            head: *hash.as_bytes(),
        })
    }
}

impl<S: Share + ?Sized> Share for std::sync::Arc<S> {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        (**self).stat(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        (**self).list(path)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        (**self).read_link(path)
    }
    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        (**self).symlink(path, target)
    }
    fn has_special(&self) -> bool {
        (**self).has_special()
    }
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        (**self).make_special(path, what, mode)
    }
    fn has_links(&self) -> bool {
        (**self).has_links()
    }
    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        (**self).link(path, to)
    }
    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        (**self).list_xattr(path)
    }
    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        (**self).get_xattr(path, name)
    }
    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        (**self).set_xattr(path, name, value)
    }
    fn names(&self) -> Names {
        (**self).names()
    }
    fn has_locks(&self) -> bool {
        (**self).has_locks()
    }
    fn may_tell(&self) -> bool {
        (**self).may_tell()
    }
    fn heard(&self) -> Option<std::time::Instant> {
        (**self).heard()
    }
    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        (**self).changes()
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        (**self).open(path, write)
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        (**self).create(path, mode)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        (**self).rename(from, to, replace)
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        (**self).unlink(path)
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        (**self).mkdir(path, mode)
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        (**self).rmdir(path)
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        (**self).set_attr(path, set)
    }
    fn statfs(&self) -> io::Result<Statfs> {
        (**self).statfs()
    }
    fn probe(&self) -> io::Result<()> {
        (**self).probe()
    }
    fn stamp(&self, path: &str) -> io::Result<Stamp> {
        (**self).stamp(path)
    }
}
