//! Where containers lie: the seam between applying a change list and the place it is applied to.
//!
//! [`LocalSite`](crate::local::LocalSite) is a directory of this machine. A share that is reached by a
//! protocol of ours is another, and lies outside this crate. What both promise is the same: a container
//! that was [taken](Container::take) is written by nobody else until it is dropped, and the redo log
//! beside it is durable before the first byte of the container is touched. Logs have the same name and
//! the same bytes at every site, so that whoever finds one can finish it.

use std::io;
use std::sync::Arc;

use storage::{Leaves, Loaded, RangeSet, RedoError, RedoLog, WriteAt, WriteSet};
use sync::wire::Stamp;

use crate::error::Fault;
pub use crate::platform::Access;

/// A tree of containers.
pub trait Site: Send + Sync {
    /// Opens a container by its path beneath the site's root, `/`-separated.
    ///
    /// # Errors
    /// [`Fault`], with the code that a client is told: the path leads out of the root, there is no
    /// such file, another program keeps it to itself.
    fn open(&self, path: &str, access: Access) -> Result<Box<dyn Container>, Fault>;

    /// Paths of the containers beside which a redo log lies. A site that cannot say so cheaply has
    /// none: a log is found when its container is next opened.
    fn unfinished(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An open container and the redo log beside it. Closed when dropped.
pub trait Container {
    /// The container's bytes. Written only by who has [taken](Self::take) it.
    fn storage(&self) -> Arc<dyn WriteAt>;

    /// Takes a container that was opened with [`Access::Alone`], for as long as it stays open.
    ///
    /// # Errors
    /// [`Fault`] with [`ErrorCode::InUse`](sync::wire::ErrorCode::InUse) while another program has it.
    fn take(&self) -> Result<(), Fault>;

    /// Whether nobody has asked for the container since it was taken.
    fn undisturbed(&self) -> bool;

    /// Whether the path still names the file that was opened.
    ///
    /// # Errors
    /// What the system says.
    fn is_current(&self) -> io::Result<bool>;

    /// The stamp of the open file.
    ///
    /// # Errors
    /// What the system says.
    fn stamp(&self) -> io::Result<Stamp>;

    /// The digests of all leaves: read, or known for the stamp that the file has.
    ///
    /// # Errors
    /// What the system says.
    fn leaves(&self) -> io::Result<Leaves>;

    /// The digests of all leaves after `log` was recovered: its own leaves were read and are those
    /// of its target.
    ///
    /// # Errors
    /// What the system says.
    fn leaves_after(&self, log: &RedoLog) -> io::Result<Leaves>;

    /// The container was written, is durable, and was read again as `leaves`.
    ///
    /// # Errors
    /// What the system says; nothing more is promised then than before.
    fn settled(&self, leaves: &Leaves) -> io::Result<()> {
        let _ = leaves;
        Ok(())
    }

    /// From now on `changed` is read from where it was written to, not from memory.
    fn forget_cached(&self, changed: &RangeSet);

    /// Bytes free where the container lies.
    ///
    /// # Errors
    /// What the system says.
    fn available(&self) -> io::Result<u64>;

    /// Takes the room for `growth` bytes after `len`, so that a full disk is noticed before anything
    /// is written, where the site can.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`].
    fn reserve(&self, len: u64, growth: u64) -> io::Result<()>;

    /// Whether a redo log, or what is left of one, lies beside the container.
    ///
    /// # Errors
    /// What the system says; something that is no regular file lies there.
    fn has_log(&self) -> io::Result<bool>;

    /// Reads the redo log.
    ///
    /// # Errors
    /// [`RedoError`].
    fn load_log(&self) -> Result<Loaded, RedoError>;

    /// Makes the redo log of `writes` durable beside the container, whose leaves are `leaves`.
    ///
    /// # Errors
    /// [`RedoError`]; no log is left then.
    fn write_log(&self, writes: &WriteSet, leaves: &Leaves, meta: &[u8]) -> Result<(), RedoError>;

    /// Removes the redo log, durably. Not being there is no error.
    ///
    /// # Errors
    /// [`RedoError`].
    fn drop_log(&self) -> Result<(), RedoError>;

    /// Puts the redo log out of the way under a free name, which it returns.
    ///
    /// # Errors
    /// What the system says.
    fn set_log_aside(&self) -> io::Result<String>;
}
