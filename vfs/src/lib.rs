//! The virtual network drive: frontends, router, cache and journal.
//!
//! ```text
//! frontend (FUSE, WinFsp) -> Drive -> router -> share            (online, attached)
//!                                           \-> cache + journal  (else)
//! ```
//!
//! [`Drive`] is the whole behaviour, without a word of any platform's file system interface;
//! frontends translate. It knows nothing of what is inside a container: an injected
//! [`EpochValidator`] judges, and the sync engine is handed a [`Snapshot`].
//!
//! What the drive promises, in short (DESIGN 4): a handle never sees two physical files (R1); an
//! acknowledged flush survives (R2); "unknown" is not "absent" (R3); dirty data is never dropped
//! (R4); no lock that others need is held across share I/O or a flush (R11); for a fully cached
//! file a dead link is no error (R12).

mod bucket;
pub(crate) mod cache;
pub mod disk;
mod drive;
pub mod epoch;
pub mod error;
pub(crate) mod file;
#[cfg(target_os = "linux")]
pub mod fuse;
pub mod inspect;
pub mod journal;
pub mod limit;
pub mod link;
mod lock;
pub mod path;
pub mod share;
pub mod snapshot;
mod tree;
pub mod unwritten;

pub use disk::owner::Removable;
pub use drive::{
    AheadCount, CacheStatus, ContainerStatus, DirEntry, Drive, DriveConfig, DriveStatus, Event,
    Exclusive, Filling, HeldLock, Incomplete, KnownLeaves, LockOwner, NodeAttr, OnChange, Opened,
    PushOutcome, RefusedChange, Reintegrated, ReintegratedOutcome, State, TreeStatus, Unread,
    XattrMode,
};
pub use epoch::{EpochValidator, Verdict};
pub use error::{Error, Result};
pub use share::{Attr, Kind, SetAttr, Share, ShareFile, Special, Stamp, Statfs};
pub use snapshot::Snapshot;
pub use tree::ROOT;

/// The user and group this process runs as.
pub(crate) fn own_ids() -> (u32, u32) {
    #[cfg(unix)]
    {
        use std::sync::OnceLock;
        static IDS: OnceLock<(u32, u32)> = OnceLock::new();
        *IDS.get_or_init(|| {
            (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            )
        })
    }
    #[cfg(not(unix))]
    {
        (0, 0)
    }
}
