//! The FUSE frontend: translation only.
//!
//! Requests are read by a few dispatch threads. What is sure to be answered from memory and local
//! files is answered there; everything else goes to an elastic pool, so that a call that waits for
//! the share blocks itself alone (R11).

mod mount;

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

pub use mount::{MountHandle, MountOptions, mount};

use crate::drive::{DirEntry, Drive, NodeAttr, now};
use crate::error::Error;
use crate::link::Pool;
use crate::share::{Kind, SetAttr};

/// How long the kernel trusts names and attributes.
const TTL: Duration = Duration::from_secs(1);

/// Largest read or write request.
const MAX_IO: u32 = 1 << 20;

/// The answer to an application for each error of ours: the one place where they meet.
fn errno(e: &Error) -> Errno {
    match e {
        Error::NotFound(_) => Errno::ENOENT,
        Error::Exists(_) => Errno::EEXIST,
        Error::NotDir(_) => Errno::ENOTDIR,
        Error::IsDir(_) => Errno::EISDIR,
        Error::NotEmpty(_) => Errno::ENOTEMPTY,
        Error::Access(_) => Errno::EACCES,
        Error::Invalid(_) => Errno::EINVAL,
        Error::BadName(_) => Errno::EILSEQ,
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
        Error::Io { source, .. } => source.raw_os_error().map_or(Errno::EIO, Errno::from_i32),
    }
}

fn report(what: &str, e: &Error) -> Errno {
    match e {
        Error::NotFound(_) | Error::Exists(_) | Error::NotEmpty(_) => {}
        _ => tracing::debug!(what, error = %e, "refused"),
    }
    errno(e)
}

fn time(nanos: i64) -> SystemTime {
    let abs = Duration::from_nanos(nanos.unsigned_abs());
    let at = if nanos < 0 {
        UNIX_EPOCH.checked_sub(abs)
    } else {
        UNIX_EPOCH.checked_add(abs)
    };
    at.unwrap_or(UNIX_EPOCH)
}

fn nanos(t: SystemTime) -> i64 {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(n: &NodeAttr) -> FileAttr {
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
        nlink: if a.kind == Kind::Dir { 2 } else { 1 },
        uid: a.uid,
        gid: a.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Frontend {
    drive: Arc<Drive>,
    pool: Pool,
}

impl Frontend {
    fn spawn(&self, work: impl FnOnce(&Arc<Drive>) + Send + 'static) {
        let drive = self.drive.clone();
        self.pool.submit(move || work(&drive));
    }
}

/// A name as the drive takes it, or the answer that it cannot be one.
macro_rules! name {
    ($name:expr, $reply:expr) => {
        match $name.to_str() {
            Some(name) => name.to_owned(),
            None => return $reply.error(Errno::EILSEQ),
        }
    };
}

impl Filesystem for Frontend {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_readahead(MAX_IO);
        let _ = config.set_max_background(64);
        for flag in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_DIO] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name!(name, reply);
        self.spawn(move |d| match d.lookup(parent.0, &name) {
            Ok(n) => reply.entry(&TTL, &file_attr(&n), Generation(0)),
            Err(e) => reply.error(report("lookup", &e)),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.spawn(move |d| match d.getattr(ino.0) {
            Ok(n) => reply.attr(&TTL, &file_attr(&n)),
            Err(e) => reply.error(report("getattr", &e)),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let stamp = |t: TimeOrNow| match t {
            TimeOrNow::SpecificTime(t) => nanos(t),
            TimeOrNow::Now => now(),
        };
        let set = SetAttr {
            mode,
            uid,
            gid,
            atime: atime.map(stamp),
            mtime: mtime.map(stamp),
        };
        self.spawn(move |d| {
            let done = match (size, fh) {
                // Through the open handle, where there is one: it may write what its owner now
                // could not open.
                (Some(size), Some(fh)) => match d.truncate_handle(fh.0, size) {
                    Err(Error::BadHandle) => d.truncate(ino.0, size),
                    other => other,
                },
                (Some(size), None) => d.truncate(ino.0, size),
                (None, _) => Ok(()),
            };
            match done.and_then(|()| d.set_attr(ino.0, &set)) {
                Ok(n) => reply.attr(&TTL, &file_attr(&n)),
                Err(e) => reply.error(report("setattr", &e)),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.spawn(move |d| match d.readlink(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(report("readlink", &e)),
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (name!(name, reply), Some((req.uid(), req.gid())));
        self.spawn(
            move |d| match d.mkdir(parent.0, &name, mode & !umask, owner) {
                Ok(n) => reply.entry(&TTL, &file_attr(&n), Generation(0)),
                Err(e) => reply.error(report("mkdir", &e)),
            },
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name!(name, reply);
        self.spawn(move |d| empty(reply, "unlink", d.unlink(parent.0, &name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name!(name, reply);
        self.spawn(move |d| empty(reply, "rmdir", d.rmdir(parent.0, &name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (name!(name, reply), name!(newname, reply));
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !flags.difference(RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        self.spawn(move |d| {
            empty(
                reply,
                "rename",
                d.rename(parent.0, &from, newparent.0, &to, replace),
            );
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.spawn(move |d| {
            let (read, write) = match flags.acc_mode() {
                OpenAccMode::O_RDONLY => (true, false),
                OpenAccMode::O_WRONLY => (false, true),
                OpenAccMode::O_RDWR => (true, true),
            };
            match d.open_file(ino.0, read, write) {
                Ok(o) => {
                    let keep = if o.keep_cache {
                        FopenFlags::FOPEN_KEEP_CACHE
                    } else {
                        FopenFlags::empty()
                    };
                    reply.opened(FileHandle(o.handle), keep);
                }
                Err(e) => reply.error(report("open", &e)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let (name, owner) = (name!(name, reply), Some((req.uid(), req.gid())));
        self.spawn(
            move |d| match d.create(parent.0, &name, mode & !umask, owner) {
                Ok((n, o)) => reply.created(
                    &TTL,
                    &file_attr(&n),
                    Generation(0),
                    FileHandle(o.handle),
                    FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(e) => reply.error(report("create", &e)),
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |d: &Arc<Drive>| match d.read(fh.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(e) => reply.error(report("read", &e)),
        };
        if self
            .drive
            .is_local(fh.0, offset..offset.saturating_add(size.into()), false)
        {
            work(&self.drive);
        } else {
            self.spawn(work);
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        fn answer(d: &Drive, fh: FileHandle, offset: u64, data: &[u8], reply: ReplyWrite) {
            match d.write(fh.0, offset, data) {
                Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
                Err(e) => reply.error(report("write", &e)),
            }
        }
        let end = offset.saturating_add(data.len() as u64);
        if self.drive.is_local(fh.0, offset..end, true) {
            answer(&self.drive, fh, offset, data, reply);
        } else {
            let data = data.to_vec();
            self.spawn(move |d| answer(d, fh, offset, &data, reply));
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        empty(reply, "flush", self.drive.flush(fh.0));
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.spawn(move |d| empty(reply, "fsync", d.fsync(fh.0)));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.spawn(move |d| empty(reply, "release", d.release(fh.0)));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.spawn(move |d| {
            let listed = d.readdir(ino.0).and_then(|all| Ok((all, d.parent(ino.0)?)));
            let (entries, parent) = match listed {
                Ok(listed) => listed,
                Err(e) => return reply.error(report("readdir", &e)),
            };
            let dots = [(".", ino.0), ("..", parent)].map(|(name, id)| DirEntry {
                name: name.to_owned(),
                id,
                kind: Kind::Dir,
            });
            // An entry's place is its node's number, which stays while others come and go.
            let mut all: Vec<DirEntry> = entries;
            all.sort_by_key(|e| e.id);
            let places = dots.into_iter().zip(1..).chain(all.into_iter().map(|e| {
                let place = e.id + 2;
                (e, place)
            }));
            for (e, place) in places.filter(|(_, place)| *place > offset) {
                if reply.add(INodeNo(e.id), place, file_type(e.kind), &e.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.spawn(move |d| empty(reply, "fsyncdir", d.fsync_dir()));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.spawn(move |d| match d.statfs() {
            Ok(s) => {
                let unit = 4096;
                let (blocks, free) = (s.total / unit, s.available / unit);
                reply.statfs(blocks, free, free, s.files, s.files_free, 4096, 255, 4096);
            }
            Err(e) => reply.error(report("statfs", &e)),
        });
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOTSUP);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 {
            reply.size(0);
        } else {
            reply.data(&[]);
        }
    }
}

fn empty(reply: ReplyEmpty, what: &str, done: crate::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(report(what, &e)),
    }
}
