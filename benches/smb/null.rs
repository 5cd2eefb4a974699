//! The smallest file system over the bare client library: what FUSE and the library cost together, with the same
//! threads and request sizes as the drive, and none of its promises. No drive over this library can be faster by
//! much, so its figures are the ceiling of ours.
//!
//! One flat directory. A read is one call of the library, begun by the thread that took the request from the
//! kernel and answered where the library has the answer. A write is answered when the library has taken it, which
//! is before the server has: nothing that keeps data may do so. Files are written from their start only.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

use smb2::{FileReader, FileWriter, SmbClient, Tree};
use tokio::runtime::Runtime;

const TTL: Duration = Duration::from_secs(1);
/// As the drive's.
const MAX_IO: u32 = 1 << 20;
const THREADS: usize = 4;

struct Null {
    runtime: Runtime,
    client: tokio::sync::Mutex<SmbClient>,
    tree: Tree,
    /// By number less two: one is the directory.
    names: Mutex<Vec<String>>,
    readers: RwLock<HashMap<u64, Arc<FileReader>>>,
    writers: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Option<FileWriter>>>>>,
    next: AtomicU64,
}

/// Serves the share `share` of the server at `address` at `mountpoint` until that is unmounted; the password is
/// read from the standard input.
///
/// # Errors
/// What signing in and mounting say.
pub fn serve(address: &str, user: &str, share: &str, mountpoint: &Path) -> Result<()> {
    let mut password = String::new();
    io::stdin().read_to_string(&mut password)?;
    let runtime = Runtime::new()?;
    let (client, tree) = runtime.block_on(async {
        let mut client = smb2::connect(address, user, &password).await?;
        let tree = client.connect_share(share).await?;
        anyhow::Ok((client, tree))
    })?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("null".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let null = Null {
        runtime,
        client: tokio::sync::Mutex::new(client),
        tree,
        names: Mutex::default(),
        readers: RwLock::default(),
        writers: Mutex::default(),
        next: AtomicU64::new(1),
    };
    Ok(fuser::mount(null, mountpoint, &config)?)
}

fn attr(ino: u64, size: u64) -> FileAttr {
    let dir = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if dir {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if dir { 0o700 } else { 0o600 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Null {
    fn name(&self, ino: INodeNo) -> Option<String> {
        let names = self.names.lock().ok()?;
        names
            .get(usize::try_from(ino.0).ok()?.checked_sub(2)?)
            .cloned()
    }

    fn number(&self, name: &str) -> u64 {
        let Ok(mut names) = self.names.lock() else {
            return 0;
        };
        let at = names.iter().position(|n| n == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        at as u64 + 2
    }

    fn size(&self, name: &str) -> Option<u64> {
        let mut tree = self.tree.clone();
        let info = self
            .runtime
            .block_on(async { self.client.lock().await.stat(&mut tree, name).await });
        info.ok().map(|i| i.size)
    }

    fn add_writer(&self, name: &str) -> Option<u64> {
        let writer = self.runtime.block_on(async {
            let mut client = self.client.lock().await;
            client.create_file_writer(&self.tree, name).await.ok()
        })?;
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let writer = Arc::new(tokio::sync::Mutex::new(Some(writer)));
        self.writers.lock().ok()?.insert(fh, writer);
        Some(fh)
    }

    fn writer(&self, fh: FileHandle) -> Option<Arc<tokio::sync::Mutex<Option<FileWriter>>>> {
        self.writers.lock().ok()?.get(&fh.0).cloned()
    }
}

impl Filesystem for Null {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_readahead(MAX_IO);
        let _ = config.set_max_background(16_384);
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
        let name = name.to_string_lossy();
        match self.size(&name) {
            Some(size) => reply.entry(&TTL, &attr(self.number(&name), size), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino.0 == 1 {
            return reply.attr(&TTL, &attr(1, 0));
        }
        match self.name(ino).and_then(|name| self.size(&name)) {
            Some(size) => reply.attr(&TTL, &attr(ino.0, size)),
            None => reply.error(Errno::EIO),
        }
    }

    /// Only a cut to nothing, of a file that is written anew.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &attr(ino.0, 0));
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_string_lossy();
        match self.add_writer(&name) {
            Some(fh) => {
                let attr = attr(self.number(&name), 0);
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&TTL, &attr, Generation(0), FileHandle(fh), flags);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(name) = self.name(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let fh = if flags.acc_mode() == OpenAccMode::O_RDONLY {
            let opened = self.runtime.block_on(async {
                let mut client = self.client.lock().await;
                client.open_file_reader(&self.tree, &name).await
            });
            let (Ok(reader), Ok(mut readers)) = (opened, self.readers.write()) else {
                return reply.error(Errno::EIO);
            };
            let fh = self.next.fetch_add(1, Ordering::Relaxed);
            readers.insert(fh, Arc::new(reader));
            fh
        } else {
            let Some(fh) = self.add_writer(&name) else {
                return reply.error(Errno::EIO);
            };
            fh
        };
        reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE);
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
        let reader = self.readers.read().ok().and_then(|r| r.get(&fh.0).cloned());
        let Some(reader) = reader else {
            return reply.error(Errno::EBADF);
        };
        self.runtime.spawn(async move {
            match reader.read_at(offset, size.into()).await {
                Ok(data) => reply.data(&data),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(writer) = self.writer(fh) else {
            return reply.error(Errno::EBADF);
        };
        let taken = self.runtime.block_on(async {
            match writer.lock().await.as_mut() {
                Some(writer) => writer.write_chunk(data).await.is_ok(),
                None => false,
            }
        });
        if taken {
            reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
        } else {
            reply.error(Errno::EIO);
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(writer) = self.writer(fh) else {
            return reply.error(Errno::EBADF);
        };
        let done = self.runtime.block_on(async {
            match writer.lock().await.take() {
                Some(writer) => writer.finish().await.is_ok(),
                None => false,
            }
        });
        if done {
            reply.ok();
        } else {
            reply.error(Errno::EIO);
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
        let reader = self.readers.write().ok().and_then(|mut r| r.remove(&fh.0));
        let writer = self.writers.lock().ok().and_then(|mut w| w.remove(&fh.0));
        // Closing asks the server, which is the runtime's affair.
        self.runtime.block_on(async move { drop((reader, writer)) });
        reply.ok();
    }
}
