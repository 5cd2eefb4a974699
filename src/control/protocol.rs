//! What goes over the control socket: versioned JSON lines.
//!
//! A request: `{"v":1,"request":{"op":"status"}}`. The replies: any number of `{"v":1,"event":…}`,
//! then one `{"v":1,"answer":…}` or `{"v":1,"error":…}`. The version is read before the rest, so a
//! newer command and an older daemon part with a clear sentence. Unknown fields of a request are
//! refused (a daemon must not ignore what it was asked); unknown fields of a reply are ignored.

mod frame;
mod link;
mod mode;
mod plan;
mod report;
mod status;

use serde::{Deserialize, Serialize};

pub use frame::{decode_reply, decode_request, encode_reply, encode_request};
pub use link::{Explanation, LimitStatus, LinkStatus, Measured, StateChange};
pub use mode::{Policy, State};
pub use plan::{PlannedFile, PlannedWay, SyncPlan};
pub use report::{FileOutcome, FileReport, SyncReport, UnmountReport};
pub use status::{
    AgentStatus, AutoSync, Binding, CacheStatus, DriveStatus, FileStatus, PartOf, SyncState,
    TreeStatus,
};

use crate::error::UserError;
use crate::policy::cap::Cap;

/// Version of the protocol; both sides must speak the same.
pub const VERSION: u32 = 1;

/// Bound of a request line, in bytes with its newline.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Bound of a reply line, in bytes with its newline.
pub const MAX_REPLY: usize = 4 * 1024 * 1024;

/// At most this many files are named in one status or report; the rest is a number.
pub const MAX_FILES: usize = 1000;

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Is the daemon there?
    Ping {},
    /// What the drive does, and what waits.
    Status {},
    /// Set the policy.
    SetMode {
        /// The new policy.
        policy: Policy,
        /// For so many seconds; then the policy from before comes back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_seconds: Option<u64>,
    },
    /// Why is the drive in its state?
    Explain {},
    /// What is known of the link?
    Link {},
    /// Limit the use of the link by hand.
    SetLimit {
        /// Rates that are not to be exceeded; none: as `mount` was told.
        limit: Option<Cap>,
        /// For so many seconds; then as `mount` was told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_seconds: Option<u64>,
    },
    /// Sync to the verified end.
    SyncNow {
        /// A file, relative to the drive's root; none for all that have changes.
        path: Option<String>,
        /// Send deletes beyond the guard against mass deletes.
        allow_deletes: bool,
    },
    /// How would what waits be synced now?
    Plan {},
    /// Unmount, and end the daemon.
    Unmount {
        /// Keep in the journal what is not synced, without waiting.
        now: bool,
    },
}

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The operation goes on.
    Event(Event),
    /// It ended well; the last line.
    Answer(Answer),
    /// It failed; the last line.
    Error(UserError),
}

/// A step of a long operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// Nothing new, but the daemon lives: sent at intervals.
    Alive {},
    /// Work done so far in one phase.
    Progress {
        /// What is being done, as in "upload".
        phase: String,
        /// The file it is done to, relative to the drive's root.
        path: Option<String>,
        /// Done so far, in `unit`.
        done: u64,
        /// All there is to do, in `unit`, where known.
        total: Option<u64>,
        /// "bytes", "objects" or "files".
        unit: String,
    },
    /// A sentence for the user.
    Note {
        /// The sentence.
        text: String,
    },
}

/// The end of an operation that went well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To ping.
    Pong {
        /// The daemon's process id.
        pid: u32,
        /// The daemon's version of the program.
        version: String,
    },
    /// To status, set-mode and set-limit.
    Status(Box<DriveStatus>),
    /// To explain.
    Explanation(Box<Explanation>),
    /// To link.
    Link(Box<LinkStatus>),
    /// To plan.
    Plan(SyncPlan),
    /// To sync-now.
    Sync(SyncReport),
    /// To unmount.
    Unmount(UnmountReport),
}
