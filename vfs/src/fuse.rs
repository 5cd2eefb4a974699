//! The FUSE frontend: translation only.
//!
//! Requests are read by a few dispatch threads. What is sure to be answered from memory and local
//! files is answered there; everything else goes to an elastic pool, so that a call that waits for
//! the share blocks itself alone (R11).

mod backing;
mod dirs;
mod groups;
mod lanes;
mod locks;
mod mount;
mod translate;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

pub use mount::{MountHandle, MountOptions, mount};

use self::backing::Backings;
use self::dirs::OpenDirs;
use self::groups::is_member;
use self::lanes::Lanes;
use self::locks::Waits;
use self::translate::{
    data, empty, entry, file_attr, file_type, made_by_mknod, nanos, report, sized,
};
use crate::drive::{Drive, Unread, XattrMode, now};
use crate::error::{self, Error};
use crate::share::SetAttr;

/// How long the kernel trusts names and attributes.
const TTL: Duration = Duration::from_secs(1);

/// Largest read or write request.
const MAX_IO: u32 = 1 << 20;

struct Frontend {
    drive: Arc<Drive>,
    lanes: Lanes,
    locks: Arc<Waits>,
    dirs: Arc<OpenDirs>,
    backings: Arc<Backings>,
    reads: Arc<AtomicU64>,
    passthrough: bool,
    /// Held by the dispatch thread that flushes; `None` where there is but one.
    flushing: Option<Mutex<()>>,
}

impl Frontend {
    fn spawn(&self, work: impl FnOnce(&Arc<Drive>) + Send + 'static) {
        let drive = self.drive.clone();
        self.lanes.pool().submit(move || work(&drive));
    }

    /// For what touches the content of one file.
    fn spawn_on(&self, file: INodeNo, work: impl FnOnce(&Arc<Drive>) + Send + 'static) {
        let drive = self.drive.clone();
        self.lanes.submit(file.0, move || work(&drive));
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
        // The kernel holds back reads of every file while so many are unanswered, those of a file
        // that hangs among them.
        let _ = config.set_max_background(16_384);
        // KILLPRIV: set-ID bits are taken away here, so that the kernel need not look for file
        // capabilities before each write.
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(flag);
        }
        // Where only this machine's programs lock, the kernel does it better. (`flock` stays with it in
        // any case: which of the two kinds a lock is does not come through.)
        if self.drive.has_share_locks() {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_LOCKS);
        }
        // One level for a cache on a layered file system, as containers have it.
        if self.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(2).is_ok()
        {
            self.backings.allow();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name!(name, reply);
        self.spawn(move |d| entry(reply, "lookup", d.lookup(parent.0, &name)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.spawn(move |d| match d.getattr(ino.0) {
            Ok(n) => reply.attr(&TTL, &file_attr(&n)),
            Err(e) => reply.error(report("getattr", &e)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
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
        // The kernel says so too, but in a bit that is not handed through.
        let (privileged, gid, pid) = (req.uid() == 0, req.gid(), req.pid());
        if size.is_some() && self.backings.exposed(ino.0) {
            return reply.error(Errno::ETXTBSY);
        }
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
            let done = match done {
                Ok(()) if size.is_some() && !privileged => {
                    d.drop_privileges(ino.0, |group| is_member(pid, gid, group))
                }
                other => other,
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
        self.spawn(move |d| {
            let made = d.mkdir(parent.0, &name, mode & !umask, owner);
            entry(reply, "mkdir", made);
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (name!(name, reply), Some((req.uid(), req.gid())));
        let Ok(what) = made_by_mknod(mode, rdev) else {
            return reply.error(Errno::EINVAL);
        };
        let mode = mode & !umask;
        self.spawn(move |d| {
            let made = match what {
                Some(what) => d.make_special(parent.0, &name, what, mode, owner),
                None => d
                    .create(parent.0, &name, mode, owner)
                    .and_then(|(node, opened)| d.release(opened.handle).map(|()| node)),
            };
            entry(reply, "mknod", made);
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (name!(name, reply), Some((req.uid(), req.gid())));
        let target = name!(target, reply);
        self.spawn(move |d| {
            let made = d.symlink(parent.0, &name, &target, owner);
            entry(reply, "symlink", made);
        });
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = name!(newname, reply);
        self.spawn(move |d| entry(reply, "link", d.link(ino.0, newparent.0, &name)));
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
        let backings = self.backings.clone();
        self.spawn_on(ino, move |d| {
            let (read, write) = match flags.acc_mode() {
                OpenAccMode::O_RDONLY => (true, false),
                OpenAccMode::O_WRONLY => (false, true),
                OpenAccMode::O_RDWR => (true, true),
            };
            match d.open_file(ino.0, read, write) {
                Ok(o) => backings.answer(d, ino.0, o, write, reply),
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
        let backings = self.backings.clone();
        self.spawn(
            move |d| match d.create(parent.0, &name, mode & !umask, owner) {
                Ok((n, o)) => {
                    backings.created(n.id);
                    reply.created(
                        &TTL,
                        &file_attr(&n),
                        Generation(0),
                        FileHandle(o.handle),
                        FopenFlags::FOPEN_KEEP_CACHE,
                    );
                }
                Err(e) => reply.error(report("create", &e)),
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for part in self.drive.expect_next(fh.0, offset, size as usize) {
            self.spawn_on(ino, move |d| d.fetch_ahead(fh.0, part));
        }
        let len = size as usize;
        let range = offset..offset.saturating_add(size.into());
        if self.drive.is_local(fh.0, range.clone(), false) {
            return data(reply, self.drive.read(fh.0, offset, len));
        }
        // Whoever answers for the share answers the kernel too: no thread of ours in between.
        let (lanes, drive) = (self.lanes.clone(), self.drive.clone());
        let unread = move |reply: ReplyData, was: Unread| {
            lanes.submit(ino.0, move || {
                data(reply, drive.read_on(fh.0, offset, len, &was));
            });
        };
        let begun = self
            .drive
            .begin_read(fh.0, range, reply, move |reply, read| match read {
                Ok(data) => reply.data(&data),
                Err(was) => unread(reply, was),
            });
        if let Some(reply) = begun {
            self.spawn_on(ino, move |d| data(reply, d.read(fh.0, offset, len)));
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        fn written(reply: ReplyWrite, len: usize, done: error::Result<()>) {
            match done {
                Ok(()) => reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
                Err(e) => reply.error(report("write", &e)),
            }
        }
        let end = offset.saturating_add(data.len() as u64);
        let kill =
            flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && self.drive.has_privileges(ino.0);
        if kill {
            let (data, gid, pid) = (data.to_vec(), req.gid(), req.pid());
            self.spawn_on(ino, move |d| {
                match d.drop_privileges(ino.0, |group| is_member(pid, gid, group)) {
                    Ok(()) => written(reply, data.len(), d.write(fh.0, offset, &data)),
                    Err(e) => reply.error(report("write", &e)),
                }
            });
        } else if self.drive.is_local(fh.0, offset..end, true) {
            written(reply, data.len(), self.drive.write(fh.0, offset, data));
        } else {
            let data: Arc<[u8]> = data.into();
            self.spawn_on(ino, move |d| {
                written(reply, data.len(), d.write_shared(fh.0, offset, &data));
            });
        }
    }

    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, by: LockOwner, reply: ReplyEmpty) {
        if !self.drive.has_locks(fh.0, by.0) {
            return empty(reply, "flush", self.drive.flush(fh.0));
        }
        let locks = self.locks.clone();
        self.spawn_on(ino, move |d| {
            let done = d.unlock_all(fh.0, by.0).and_then(|()| d.flush(fh.0));
            locks.unlocked();
            empty(reply, "flush", done);
        });
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        by: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        self.locks.test(fh, (by, pid), (start, end), typ, reply);
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        by: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let thread = sleep.then(|| req.pid());
        self.locks
            .set(ino, fh, (by, pid), (start, end), typ, thread, reply);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        // One dispatch thread may wait for the disk: handing a flush on takes a good part of its time.
        if self.drive.flushes_here(fh.0)
            && let Some(flushing) = &self.flushing
            && let Ok(_turn) = flushing.try_lock()
        {
            return empty(reply, "fsync", self.drive.fsync(fh.0));
        }
        self.spawn_on(ino, move |d| empty(reply, "fsync", d.fsync(fh.0)));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.backings.closed(ino.0, fh.0);
        self.spawn(move |d| empty(reply, "release", d.release(fh.0)));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dirs = self.dirs.clone();
        self.spawn(move |d| {
            let listing = match dirs.listing(d, fh.0, ino.0, offset == 0) {
                Ok(listing) => listing,
                Err(e) => return reply.error(report("readdir", &e)),
            };
            let from = listing.partition_point(|(place, _)| *place <= offset);
            for (place, e) in listing.get(from..).unwrap_or_default() {
                if reply.add(INodeNo(e.id), *place, file_type(e.kind), &e.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.dirs.add()), FopenFlags::empty());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.dirs.remove(fh.0);
        reply.ok();
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

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name!(name, reply);
        // Asked for often, by the kernel itself: answered without a thread.
        if !name.starts_with("user.") {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.spawn(move |d| sized(reply, size, "getxattr", d.get_xattr(ino.0, &name)));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.spawn(move |d| {
            let names = d.list_xattr(ino.0).map(|names| {
                let each = names
                    .into_iter()
                    .flat_map(|n| n.into_bytes().into_iter().chain([0]));
                each.collect()
            });
            sized(reply, size, "listxattr", names);
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name!(name, reply), value.to_vec());
        // XATTR_CREATE, XATTR_REPLACE
        let mode = match flags {
            1 => XattrMode::Create,
            2 => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        self.spawn(move |d| {
            let set = d.set_xattr(ino.0, &name, Some(&value), mode);
            empty(reply, "setxattr", set);
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name!(name, reply);
        self.spawn(move |d| {
            let gone = d.set_xattr(ino.0, &name, None, XattrMode::Any);
            empty(reply, "removexattr", gone);
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 0x01;
        const PUNCH_HOLE: i32 = 0x02;
        const ZERO_RANGE: i32 = 0x10;
        let Some(end) = offset.checked_add(length) else {
            return reply.error(Errno::EFBIG);
        };
        let (range, keep) = (offset..end, mode & KEEP_SIZE != 0);
        self.spawn(move |d| {
            let done = match mode & !KEEP_SIZE {
                0 => d.allocate(fh.0, range, keep),
                PUNCH_HOLE if keep => d.zero(fh.0, range, true),
                ZERO_RANGE => d.zero(fh.0, range, keep),
                _ => Err(Error::Unsupported(format!("fallocate mode {mode:#x}"))),
            };
            empty(reply, "fallocate", done);
        });
    }
}
