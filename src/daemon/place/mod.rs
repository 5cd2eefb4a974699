//! Local placement on a share that is reached by a protocol of ours (DESIGN 6): the drive applies change
//! lists to the containers there itself, as an agent beside them would.
//!
//! The share keeps other programs away while a container is written: opening it for writing denies that to
//! others ([`vfs::share::smb::SmbConfig::alone`]). Only little goes over the link: what is known of a
//! container ([`known`]) and the drive's own copy of it stand in for reading it ([`bytes`]), and of a change
//! just its writes are sent, after its redo log ([`log`]).

mod bytes;
mod choice;
mod known;
mod log;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use agent::{Access, Container, Fault, Site};
use storage::{Digest, Leaves, Loaded, RangeSet, ReadAt, RedoError, RedoLog, WriteAt, WriteSet};
use sync::wire::{self, ErrorCode};
use vfs::share::{Kind, SetAttr, Share, Stamp};

pub use self::bytes::MayAsk;
use self::bytes::{FarStorage, Sources};
pub use self::choice::{Choice, Placed, Placement, Way};
use self::known::Begun;
pub use self::known::Known;
use self::log::FarLog;

/// The drive's own copy of the container that is worked on, frozen.
#[derive(Clone)]
pub struct OwnCopy {
    /// The container's path on the share.
    pub container: String,
    /// The copy.
    pub reader: Arc<dyn ReadAt>,
    /// What programs wrote to it since it was last synced.
    pub written: RangeSet,
    /// Where the share's file, while it has this stamp, is the same as the copy but for some ranges.
    pub same_as: Option<(Stamp, RangeSet)>,
}

/// The containers of a share.
pub struct ShareSite {
    share: Arc<dyn Share>,
    known: Arc<Known>,
    own: Arc<Mutex<Option<OwnCopy>>>,
    may: MayAsk,
}

impl ShareSite {
    /// The containers of `share`, which keeps others away from files that are open for writing. What is
    /// known of them is kept in `known`; the drive's own copy of one is taken from `own` where it is there;
    /// `may` says whether the share may be asked.
    pub fn new(
        share: Arc<dyn Share>,
        known: Arc<Known>,
        own: Arc<Mutex<Option<OwnCopy>>>,
        may: MayAsk,
    ) -> Self {
        Self {
            share,
            known,
            own,
            may,
        }
    }
}

impl vfs::KnownLeaves for Known {
    fn leaves(&self, path: &str, stamp: &Stamp) -> Option<Leaves> {
        Self::leaves(self, path, stamp)
    }
}

impl Site for ShareSite {
    fn open(&self, path: &str, access: Access) -> Result<Box<dyn Container>, Fault> {
        let refused = |e: &io::Error| match e.kind() {
            io::ErrorKind::IsADirectory => Fault::new(
                ErrorCode::NotAContainer,
                format!("{path} is a directory on the share"),
            ),
            _ => Fault::io(path, e),
        };
        let own = {
            let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.clone().filter(|own| own.container == path)
        };
        let file = self
            .share
            .open(path, matches!(access, Access::Alone))
            .map_err(|e| refused(&e))?;
        let sources = Sources {
            local: own.as_ref().map(|own| Arc::clone(&own.reader)),
            written: own
                .as_ref()
                .map(|own| own.written.clone())
                .unwrap_or_default(),
            fetched: self.known.fetched(path),
        };
        let storage =
            FarStorage::new(file, sources, Arc::clone(&self.may)).map_err(|e| refused(&e))?;
        let stamp = storage.file().stamp().map_err(|e| refused(&e))?;
        if let Some(leaves) = self.known.leaves(path, &stamp) {
            storage.set_digests(leaves);
        }
        Ok(Box::new(ShareContainer {
            share: Arc::clone(&self.share),
            may: Arc::clone(&self.may),
            known: Arc::clone(&self.known),
            path: path.to_owned(),
            storage: Arc::new(storage),
            same_as: own.and_then(|own| own.same_as),
            resumed: AtomicBool::new(false),
        }))
    }
}

struct ShareContainer {
    share: Arc<dyn Share>,
    may: MayAsk,
    known: Arc<Known>,
    path: String,
    storage: Arc<FarStorage>,
    same_as: Option<(Stamp, RangeSet)>,
    /// A change is finished that we began, and nobody else wrote the file since.
    resumed: AtomicBool,
}

impl ShareContainer {
    fn log(&self) -> FarLog<'_> {
        let file = |what| -> PathBuf { self.known.file(&self.path, what) };
        FarLog::new(
            &*self.share,
            &self.path,
            file("redo"),
            file("sent"),
            &self.may,
        )
    }

    fn now(&self) -> io::Result<Stamp> {
        self.storage.file().stamp()
    }

    /// From now on this is known of the file, while it has this stamp. That it could not be kept only costs
    /// time.
    fn learn(&self, stamp: Stamp, leaves: &Leaves) {
        self.storage.set_digests(leaves.clone());
        if let Err(error) = self.known.keep(&self.path, stamp, leaves) {
            tracing::warn!(container = self.path, %error, "what is known of a container was not kept");
        }
    }

    /// Gives the file a time of its own, before it is written. A time that was set through a handle stays
    /// as it is whatever is written through that: so it tells us later whether anybody else wrote the file,
    /// and others that somebody did.
    fn set_time(&self, mtime: i64) -> io::Result<()> {
        let set = SetAttr {
            mtime: Some(mtime),
            ..SetAttr::default()
        };
        self.share.set_attr(&self.path, &set)
    }

    /// A time that the file did not have yet, in whole microseconds: what every server can hold.
    fn new_time(&self) -> io::Result<i64> {
        let before = self.storage.file().stat()?.mtime;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.ok().and_then(|d| i64::try_from(d.as_nanos()).ok());
        Ok(now
            .unwrap_or_default()
            .max(before.saturating_add(1_000_000))
            / 1000
            * 1000)
    }

    fn begin(&self, log: &RedoLog) -> io::Result<()> {
        let begun = Begun {
            base: log.base().into(),
            target: log.target().into(),
            mtime: self.new_time()?,
        };
        self.known.begin(&self.path, &begun)?;
        self.set_time(begun.mtime)
    }

    /// Whether the change of `log` was begun by us, and nobody else wrote the file since. Then just what the
    /// change covers is not known of it.
    fn resume(&self, log: &RedoLog) -> io::Result<()> {
        let begun = self
            .known
            .begun(&self.path)
            .filter(|begun| begun.base == log.base().into() && begun.target == log.target().into());
        let base = self.known.last(&self.path).map(|(_, leaves)| leaves);
        let base = base.filter(|base| base.generation() == log.base());
        if let (Some(begun), Some(base)) = (begun, base)
            && begun.mtime == self.storage.file().stat()?.mtime
        {
            // Also what is written through this handle leaves the time alone.
            self.set_time(begun.mtime)?;
            self.storage.set_digests(base);
            let mut touched = log.change().covered();
            let (old, new) = (log.change().base_len, log.change().target_len);
            touched.insert(old.min(new)..old.max(new));
            self.storage.forget(&touched);
            tracing::info!(
                container = self.path,
                "a change goes on that was begun here"
            );
            self.resumed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads the file while it has this stamp; what an earlier attempt read is not read again.
    fn read(&self, stamp: &Stamp) -> io::Result<Leaves> {
        let done = self.known.part(&self.path, stamp);
        let part = |digests: &[Digest]| self.known.keep_part(&self.path, *stamp, digests);
        self.storage.hash(&self.same(stamp), done, &part)
    }

    /// In which bytes the drive's own copy and the file are the same.
    fn same(&self, stamp: &Stamp) -> RangeSet {
        let mut same = RangeSet::new();
        if let Some((known, but)) = &self.same_as
            && known == stamp
        {
            same.insert(0..stamp.size);
            for run in but.iter() {
                same.remove(run);
            }
        }
        same
    }
}

impl Drop for ShareContainer {
    fn drop(&mut self) {
        if self.storage.is_belied() {
            // Else the same stamp would vouch for the same digests for ever.
            self.known.forget(&self.path);
        }
        let (read, written) = self.storage.carried();
        tracing::debug!(container = self.path, read, written, "bytes over the link");
    }
}

impl Container for ShareContainer {
    fn storage(&self) -> Arc<dyn WriteAt> {
        Arc::clone(&self.storage) as Arc<dyn WriteAt>
    }

    // Opening it was taking it.
    fn take(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn undisturbed(&self) -> bool {
        true
    }

    fn is_current(&self) -> io::Result<bool> {
        let open = self.storage.file().stat()?;
        match self.share.stat(&self.path) {
            Ok(named) => Ok(named.kind == Kind::File && named.file_id == open.file_id),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn stamp(&self) -> io::Result<wire::Stamp> {
        let stamp = self.now()?;
        Ok(wire::Stamp {
            len: stamp.size,
            changed_ns: stamp.mtime,
            file_id: stamp.file_id,
            device: 0,
            header: stamp.head,
        })
    }

    fn leaves(&self) -> io::Result<Leaves> {
        if let Some(leaves) = self.storage.digests() {
            return Ok(leaves);
        }
        let stamp = self.now()?;
        let leaves = self.read(&stamp)?;
        if self.now()? == stamp {
            self.learn(stamp, &leaves);
        }
        Ok(leaves)
    }

    fn leaves_after(&self, log: &RedoLog) -> io::Result<Leaves> {
        let before = self.known.last(&self.path).map(|(_, leaves)| leaves);
        if self.resumed.load(Ordering::Relaxed)
            && let Some(mut leaves) = before
        {
            leaves.rehash(&*self.storage, &log.change().covered())?;
            if leaves.generation() == log.target() {
                return Ok(leaves);
            }
        }
        self.read(&self.now()?)
    }

    fn settled(&self, leaves: &Leaves) -> io::Result<()> {
        let begun = self.known.begun(&self.path).map(|begun| begun.mtime);
        // A server that moves the time all the same might do so once more when the file is closed.
        if begun != Some(self.storage.file().stat()?.mtime) {
            self.set_time(self.new_time()?)?;
        }
        self.learn(self.now()?, leaves);
        Ok(())
    }

    fn forget_cached(&self, changed: &RangeSet) {
        self.storage.forget(changed);
    }

    fn available(&self) -> io::Result<u64> {
        Ok(self.share.statfs()?.available)
    }

    // A share takes no room ahead: one that is full says so at the first write that grows the file, and
    // the log finishes the change once there is room.
    fn reserve(&self, _len: u64, _growth: u64) -> io::Result<()> {
        Ok(())
    }

    fn has_log(&self) -> io::Result<bool> {
        self.log().is_there()
    }

    fn load_log(&self) -> Result<Loaded, RedoError> {
        let loaded = self.log().load()?;
        if let Loaded::Complete(log) = &loaded {
            self.resume(log).map_err(|e| self.log().failed(e))?;
        }
        Ok(loaded)
    }

    fn write_log(&self, writes: &WriteSet, leaves: &Leaves, meta: &[u8]) -> Result<(), RedoError> {
        let log = self.log().write(writes, &*self.storage, leaves, meta)?;
        self.begin(&log).map_err(|e| self.log().failed(e))
    }

    fn drop_log(&self) -> Result<(), RedoError> {
        self.log().remove()
    }

    fn set_log_aside(&self) -> io::Result<String> {
        self.log().set_aside()
    }
}
