//! The smallest honest pass-through file system: what FUSE itself costs, with the same library, threads and
//! request sizes as the drive, and no promise beyond the directory below it.
//!
//! One flat directory of files. Every request is answered on the thread that read it, each by one system call.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

const TTL: Duration = Duration::from_secs(1);
/// As the drive's.
const MAX_IO: u32 = 1 << 20;
const THREADS: usize = 4;

struct Bare {
    source: PathBuf,
    paths: Mutex<HashMap<u64, PathBuf>>,
    files: RwLock<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

/// Serves `source` at `mountpoint` until it is unmounted.
///
/// # Errors
/// What mounting says.
pub fn serve(source: &Path, mountpoint: &Path) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("bare".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let bare = Bare {
        source: source.to_owned(),
        paths: Mutex::default(),
        files: RwLock::default(),
        next: AtomicU64::new(1),
    };
    fuser::mount(bare, mountpoint, &config)
}

impl Bare {
    fn file(&self, fh: FileHandle) -> Result<Arc<File>, Errno> {
        let files = self.files.read().map_err(|_| Errno::EIO)?;
        files.get(&fh.0).cloned().ok_or(Errno::EBADF)
    }

    fn path(&self, ino: INodeNo) -> PathBuf {
        let known = self.paths.lock().ok();
        known
            .and_then(|k| k.get(&ino.0).cloned())
            .unwrap_or_else(|| self.source.clone())
    }
}

fn attr(ino: u64, m: &Metadata) -> FileAttr {
    let time = |s: i64, n: i64| {
        SystemTime::UNIX_EPOCH + Duration::new(s.unsigned_abs(), n.unsigned_abs() as u32)
    };
    FileAttr {
        ino: INodeNo(ino),
        size: m.size(),
        blocks: m.blocks(),
        atime: time(m.atime(), m.atime_nsec()),
        mtime: time(m.mtime(), m.mtime_nsec()),
        ctime: time(m.ctime(), m.ctime_nsec()),
        crtime: time(m.mtime(), m.mtime_nsec()),
        kind: if m.is_dir() {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: (m.mode() & 0o7777) as u16,
        nlink: 1,
        uid: m.uid(),
        gid: m.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_readahead(MAX_IO);
        let _ = config.set_max_background(64);
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.source.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(m) => {
                if let Ok(mut paths) = self.paths.lock() {
                    paths.insert(m.ino(), path);
                }
                reply.entry(&TTL, &attr(m.ino(), &m), Generation(0));
            }
            Err(_) => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match std::fs::symlink_metadata(self.path(ino)) {
            Ok(m) => reply.attr(&TTL, &attr(ino.0, &m)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(ino));
        match (opened, self.files.write()) {
            (Ok(file), Ok(mut files)) => {
                let fh = self.next.fetch_add(1, Ordering::Relaxed);
                files.insert(fh, Arc::new(file));
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE);
            }
            (Err(e), _) => reply.error(e.into()),
            (_, Err(_)) => reply.error(Errno::EIO),
        }
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
        let mut buf = vec![0; size as usize];
        match self.file(fh).map(|f| f.read_at(&mut buf, offset)) {
            Ok(Ok(n)) => reply.data(buf.get(..n).unwrap_or_default()),
            Ok(Err(e)) => reply.error(e.into()),
            Err(e) => reply.error(e),
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
        match self.file(fh).map(|f| f.write_at(data, offset)) {
            Ok(Ok(n)) => reply.written(n as u32),
            Ok(Err(e)) => reply.error(e.into()),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        let sync = |f: Arc<File>| if data { f.sync_data() } else { f.sync_all() };
        match self.file(fh).map(sync) {
            Ok(Ok(())) => reply.ok(),
            Ok(Err(e)) => reply.error(e.into()),
            Err(e) => reply.error(e),
        }
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
        if let Ok(mut files) = self.files.write() {
            files.remove(&fh.0);
        }
        reply.ok();
    }
}
