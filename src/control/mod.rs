//! The control socket: how a command talks to the daemon of a drive.
//!
//! Each mounted drive has a Unix socket in the runtime directory (see [`registry`]). A request and
//! its replies are JSON lines (see [`protocol`]): one request, then events, then one answer or one
//! error, then the connection ends. [`server`] runs in the daemon over a [`DriveControl`],
//! [`client`] in the command.
//!
//! Who may ask: the directory is 0700 and the socket 0600, and beyond that the server asks the
//! kernel who is at the other end: the daemon's own user, or root. Nothing that arrives is trusted: a
//! request is bounded in bytes and time, connections are bounded in number, and a client that
//! reads slowly, or leaves, never slows the drive's work.

pub mod client;
pub mod protocol;
pub mod registry;
pub mod server;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use protocol::{
    AgentStatus, Answer, AutoSync, Binding, CacheStatus, DriveStatus, Event, Explanation,
    FileOutcome, FileReport, FileStatus, LimitStatus, LinkStatus, Measured, PartOf, PlannedFile,
    PlannedWay, Policy, Request, State, StateChange, SyncPlan, SyncReport, SyncState, TreeStatus,
    UnmountReport,
};
pub use registry::{DriveEntry, Registration, Registry};
pub use server::{Limits, Server};

use crate::error::UserError;
use crate::policy::cap::Cap;

/// Takes the events of a long operation. Never blocks: where the client reads too slowly, events
/// are dropped.
pub trait Progress: Sync {
    /// Tells the client about one step.
    fn event(&self, event: Event);
}

/// What the daemon offers to its commands. Every call may come from any thread, several at a time,
/// and has its own time limit: the server waits for it without one.
pub trait DriveControl: Send + Sync + 'static {
    /// What the drive does, and what waits. Answers from memory: never waits for the share.
    ///
    /// # Errors
    /// As the drive reports them.
    fn status(&self) -> Result<DriveStatus, UserError>;

    /// Sets the policy, for so many seconds or for good, and answers the status after it.
    ///
    /// # Errors
    /// The policy is not possible now.
    fn set_mode(&self, policy: Policy, seconds: Option<u64>) -> Result<DriveStatus, UserError>;

    /// Limits the use of the link by hand, for so many seconds or for good; `None`: as `mount` was told.
    /// Answers the status after it.
    ///
    /// # Errors
    /// As the drive reports them.
    fn set_limit(&self, limit: Option<Cap>, seconds: Option<u64>)
    -> Result<DriveStatus, UserError>;

    /// Why the drive is in its state. Answers from memory.
    ///
    /// # Errors
    /// As the drive reports them.
    fn explain(&self) -> Result<Explanation, UserError>;

    /// What is known of the link. Answers from memory.
    ///
    /// # Errors
    /// As the drive reports them.
    fn link(&self) -> Result<LinkStatus, UserError>;

    /// How what waits would be synced now. Answers from memory.
    ///
    /// # Errors
    /// As the drive reports them.
    fn plan(&self) -> Result<SyncPlan, UserError>;

    /// Syncs one file (a path relative to the drive's root, without `..`), or all with changes, to the
    /// verified end. `allow_deletes`: the user has said that mass deletes are meant.
    ///
    /// # Errors
    /// The sync could not be tried at all; the fate of single files is in the report.
    fn sync_now(
        &self,
        path: Option<&str>,
        allow_deletes: bool,
        progress: &dyn Progress,
    ) -> Result<SyncReport, UserError>;

    /// Unmounts. `now`: keeps in the journal what is not synced, and says what it is; otherwise
    /// syncs first. After `Ok` the daemon ends; after `Err` the drive is mounted as before.
    ///
    /// # Errors
    /// The drive is in use, or (without `now`) something cannot be synced.
    fn unmount(&self, now: bool, progress: &dyn Progress) -> Result<UnmountReport, UserError>;
}
