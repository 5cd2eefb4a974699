//! The platform-neutral drive: what frontends call, and what the daemon steers.
//!
//! Frontends (FUSE, WinFsp) translate; all behaviour is here. The pieces: `names` and `change` (the
//! tree), `content` (open files), `route` (which physical file a handle sees, R1), `fill` (filling the
//! cache), `room` (what it may take), `checkpoint`, `desk` (what the sync engine needs), `reintegrate` (bringing changes made
//! here to the share).
//!
//! No lock that another file's operation needs is held across a share call or a flush (R11).

mod ahead;
mod attributes;
mod beside;
mod bring_rename;
mod change;
mod checkpoint;
mod content;
mod crawl;
mod desk;
mod fill;
mod held;
mod known;
mod links;
mod locks;
mod make;
mod names;
mod notify;
mod optimise;
mod passthrough;
mod push;
mod read;
mod recover;
mod reintegrate;
mod renew;
mod room;
mod route;
mod shorten;
mod space;
mod watch;
mod write;
mod xattr;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cache::{MetaBytes, StateDir};
use crate::disk::Disk;
use crate::disk::owner::Removable;
use crate::epoch::EpochValidator;
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::Journal;
use crate::journal::record::{MetaRecord, Record};
use crate::link::{InDoubt, Link};
use crate::lock::{self, Ranked};
use crate::path::Patterns;
use crate::share::Share;
use crate::tree::Tree;

pub use ahead::AheadCount;
pub use content::Opened;
pub use crawl::TreeStatus;
pub use desk::{ContainerStatus, DriveStatus, Exclusive};
pub use held::RefusedChange;
pub(crate) use locks::Locks;
pub use locks::{HeldLock, LockOwner};
pub use names::{DirEntry, NodeAttr};
pub use push::PushOutcome;
pub use read::Unread;
pub use reintegrate::{Reintegrated, ReintegratedOutcome};
pub use renew::KnownLeaves;
pub use room::{CacheStatus, Filling, Incomplete};
pub use watch::OnChange;
pub use xattr::XattrMode;

/// What the drive may use of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Pass through to the share.
    Online = 0,
    /// The link is poor: serve from the cache, journal, fetch only what is missing.
    Cached = 1,
    /// No link: never touch the share.
    Offline = 2,
}

/// Something the daemon may want to react to. Paths are those at the time of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An application flushed a container: a candidate epoch.
    Flushed(String),
    /// The last handle on a container was closed: a candidate epoch, and the time to apply what
    /// waits.
    Closed(String),
    /// A file left the share for the cache under open handles (R12).
    Flipped(String),
    /// A container is now fully cached.
    Cached(String),
    /// The state was set.
    State(State),
}

/// How to open a drive.
pub struct DriveConfig {
    /// The share.
    pub share: Arc<dyn Share>,
    /// Where cache and journal live.
    pub state_dir: PathBuf,
    /// Glob patterns of containers, without regard to case.
    pub containers: Vec<String>,
    /// State to begin in.
    pub state: State,
    /// Longest wait for one share call.
    pub stall_budget: Duration,
    /// Longest wait for a flush on the share.
    pub flush_budget: Duration,
    /// How long attributes from the share are trusted.
    pub attr_life: Duration,
    /// Length of a journal segment, in bytes.
    pub segment_len: u64,
    /// Journaled bytes that may wait for a checkpoint before writers wait for it too.
    pub unwritten_limit: u64,
    /// Appends of at least this many bytes go to the cache file directly.
    pub direct_append: usize,
    /// Bytes left free on the state directory's volume, to finish what was accepted.
    pub reserve: u64,
    /// Bytes available on that volume; `None`: ask the system.
    pub available: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    /// Bytes of the share's files that may be kept here, pinned ones included; `None`: as many as
    /// the volume takes.
    pub cache_size: Option<u64>,
    /// Glob patterns of files that are kept here whole; `None`: the containers.
    pub pins: Option<Vec<String>>,
    /// Bytes a second that filling the cache may take from the link; `None`: what programs leave.
    pub fill_rate: Option<u64>,
    /// How many names are learned ahead of use, so that they are known while the share is away. Some
    /// 700 bytes of memory each.
    pub tree_limit: usize,
    /// How long a detached container is left alone after its last use before it is compared with the
    /// share's file, and passed through again.
    pub attach_after: Duration,
    /// The state directory may be unplugged, and go on at another host.
    pub removable: Option<Removable>,
    /// The disk that the state directory is; `None`: the directory `state_dir` of the system.
    pub disk: Option<Arc<dyn Disk>>,
    /// Run the background threads (checkpoints, filling the cache). Without them, call
    /// [`Drive::checkpoint`] and [`Drive::fill`].
    pub background: bool,
    /// Judges epochs of containers.
    pub validator: Option<Arc<dyn EpochValidator>>,
    /// Knows leaves of files on the share, so that a copy that falls behind them need not read all.
    pub leaves: Option<Arc<dyn KnownLeaves>>,
}

impl DriveConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(share: Arc<dyn Share>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            share,
            state_dir: state_dir.into(),
            containers: vec!["**/*.pst".to_owned()],
            state: State::Online,
            stall_budget: Duration::from_secs(2),
            flush_budget: Duration::from_secs(10),
            attr_life: Duration::from_secs(1),
            segment_len: 16 << 20,
            unwritten_limit: 64 << 20,
            direct_append: 256 << 10,
            reserve: 64 << 20,
            available: None,
            cache_size: None,
            pins: None,
            fill_rate: None,
            tree_limit: 250_000,
            attach_after: Duration::from_secs(30),
            removable: None,
            disk: None,
            background: true,
            validator: None,
            leaves: None,
        }
    }
}

/// An open handle.
pub(crate) struct Handle {
    pub node: u64,
    pub file: Arc<FileNode>,
    pub read: bool,
    pub write: bool,
    pub ahead: ahead::Ahead,
}

/// The drive. Shared by frontend, daemon and background threads.
pub struct Drive {
    pub(crate) link: Link,
    pub(crate) dir: StateDir,
    pub(crate) journal: Journal,
    pub(crate) tree: Ranked<Tree>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    state: AtomicU8,
    containers: Patterns,
    flush_budget: Duration,
    attr_life: Duration,
    direct_append: usize,
    validator: Option<Arc<dyn EpochValidator>>,
    leaves: Option<Arc<dyn KnownLeaves>>,
    /// Which files are kept here whole.
    pins: Patterns,
    space: room::Space,
    pace: fill::Pace,
    crawl: crawl::Crawl,
    tree_limit: usize,
    attach_after: Duration,
    /// The drive is being given up: the background asks the share for nothing more.
    ending: AtomicBool,
    /// Records through this one have their bytes in the cache files, of all files.
    data_lsn: AtomicU64,
    /// Bytes in all overlays.
    pub(crate) unwritten: AtomicU64,
    unwritten_limit: u64,
    /// Bytes written directly to cache files since the last checkpoint.
    direct: AtomicU64,
    /// Held during a checkpoint, which puts its metadata together there.
    checkpoint: Mutex<MetaBytes>,
    /// How often metadata was put together.
    checkpoints: AtomicU64,
    /// Held while pending changes are brought to the share.
    reintegrating: Mutex<()>,
    /// Changes of the tree whose share calls were left behind.
    tree_doubt: InDoubt,
    ahead: ahead::Counters,
    tell: Mutex<Option<Arc<OnChange>>>,
    /// Listening to the share.
    told: Mutex<notify::Told>,
    bell: Arc<Bell>,
    /// Where programs see the drive.
    mounted: OnceLock<String>,
    listeners: Mutex<Vec<mpsc::Sender<Event>>>,
}

/// Wakes background threads and those who wait for them.
#[derive(Default)]
pub(crate) struct Bell {
    ring: Mutex<u64>,
    cv: Condvar,
    pub want_checkpoint: AtomicBool,
    pub want_fill: AtomicBool,
}

impl Bell {
    pub fn ring(&self) {
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.cv.notify_all();
    }

    /// Waits for a ring or the timeout.
    pub fn wait(&self, timeout: Duration, ready: impl Fn() -> bool) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *ring;
        let _ = self
            .cv
            .wait_timeout_while(ring, timeout, |now| *now == was && !ready());
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Drive {
    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Online,
            1 => State::Cached,
            _ => State::Offline,
        }
    }

    /// Programs see the drive at this absolute path, its first one: links that begin with it stay on
    /// the drive.
    pub fn set_mounted(&self, at: &str) {
        self.mounted
            .get_or_init(|| at.trim_end_matches('/').to_owned());
    }

    pub(crate) fn mounted(&self) -> Option<&str> {
        self.mounted.get().map(String::as_str)
    }

    /// Sets the state.
    ///
    /// Leaving `Online`, open files that are fully cached move to the cache (R1's one exception);
    /// what they passed through is flushed on the share first, if it answers. The others go on
    /// as they are bound, and fail while offline. Going online changes nothing for open files.
    pub fn set_state(&self, state: State) {
        let old = self.state();
        if old == State::Online && state != State::Online {
            self.leave_share();
        }
        self.state.store(state as u8, Ordering::SeqCst);
        if old == State::Online && state != State::Online {
            // Files opened while the first round ran.
            self.leave_share();
        }
        if state != State::Offline {
            self.crawl.make_due();
            self.bell.want_fill.store(true, Ordering::SeqCst);
        }
        self.bell.ring();
        self.emit(&Event::State(state));
    }

    /// Events from now on. A receiver that is dropped is forgotten.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (tx, rx) = mpsc::channel();
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(tx);
        rx
    }

    pub(crate) fn emit(&self, event: &Event) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|l| l.send(event.clone()).is_ok());
    }

    pub(crate) fn tree(&self) -> lock::Read<'_, Tree> {
        self.tree.read()
    }

    pub(crate) fn tree_mut(&self) -> lock::Write<'_, Tree> {
        self.tree.write()
    }

    pub(crate) fn log(&self, record: MetaRecord) -> Result<u64> {
        self.journal.append(&Record::Meta(record))
    }

    /// Whether the path is a container's.
    #[must_use]
    pub fn is_container(&self, path: &str) -> bool {
        self.containers.matches(path)
    }

    /// Whether the share may be asked.
    pub(crate) fn may_ask(&self) -> bool {
        self.state() != State::Offline
    }

    pub(crate) fn handle(&self, handle: u64) -> Result<Arc<Handle>> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.get(&handle).cloned().ok_or(Error::BadHandle)
    }

    fn add_handle(&self, handle: Handle) -> u64 {
        let id = self.next_handle.fetch_add(1, Ordering::SeqCst);
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        handles.insert(id, Arc::new(handle));
        id
    }

    fn take_handle(&self, handle: u64) -> Result<Arc<Handle>> {
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        handles.remove(&handle).ok_or(Error::BadHandle)
    }

    /// Open handles on the whole drive.
    pub(crate) fn open_handles(&self) -> usize {
        self.handles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Makes everything journaled so far durable.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn sync_all(&self) -> Result<()> {
        self.journal.sync(self.journal.last())
    }

    /// Ends what the background does with the share: soon, also where an answer is awaited.
    pub fn end_background(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Flushes everything and brings the cache files up to date: the drive can then be dropped
    /// and opened again without replay. What the share lacks stays recorded (R4). The background
    /// asks the share for nothing more.
    ///
    /// # Errors
    /// What could not be flushed.
    pub fn shutdown(&self) -> Result<()> {
        self.end_background();
        self.flush_passed_through();
        self.sync_all()?;
        self.checkpoint()?;
        // A second time: now nothing is left to write, and the journal empties.
        self.checkpoint()
    }
}
