//! What a sync did, and what an unmount left behind.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::UserError;
use crate::exit::ExitStatus;

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncReport {
    /// File by file; at most [`super::MAX_FILES`].
    pub files: Vec<FileReport>,
    /// How many files are not listed; all of these are synced.
    #[serde(default)]
    pub more_files: u64,
}

/// What a sync did to one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileReport {
    /// Relative to the drive's root.
    pub path: String,
    /// How it ended.
    pub outcome: FileOutcome,
    /// Objects added.
    pub added: u64,
    /// Objects updated.
    pub updated: u64,
    /// Objects moved.
    pub moved: u64,
    /// Objects deleted.
    pub deleted: u64,
    /// Objects that others changed at the far side, and that were left alone.
    #[serde(default)]
    pub drift: u64,
    /// Deletes that were not sent, because the objects were not proven to be ours to delete.
    #[serde(default)]
    pub held_deletes: u64,
    /// Bytes sent over the link, compressed.
    pub shipped_bytes: u64,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Time at which the far side, re-read after its fsync, was found as expected.
    pub verified_at: Option<Timestamp>,
    /// Why it is not synced, and what to do.
    pub error: Option<UserError>,
}

/// How the sync of one file ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOutcome {
    /// There was nothing to do, and this was verified.
    Unchanged,
    /// Synced and verified.
    Synced,
    /// Waits: for a consistent moment, the link, or another program that holds the file.
    Pending,
    /// Both sides changed.
    Conflict,
    /// No link to the share or the agent.
    Offline,
    /// Failed; changes are kept.
    Failed,
}

impl FileOutcome {
    /// How a command ends that has this outcome.
    #[must_use]
    pub const fn exit(self) -> ExitStatus {
        match self {
            Self::Unchanged | Self::Synced => ExitStatus::Synced,
            Self::Pending => ExitStatus::Pending,
            Self::Conflict => ExitStatus::Conflicts,
            Self::Offline => ExitStatus::Offline,
            Self::Failed => ExitStatus::Error,
        }
    }
}

impl SyncReport {
    /// How `sync now` ends: the worst of the files.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        self.files
            .iter()
            .map(|f| f.outcome.exit())
            .max()
            .unwrap_or_default()
    }
}

/// What an unmount left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountReport {
    /// Files whose changes are kept in the journal; at most [`super::MAX_FILES`].
    pub pending: Vec<String>,
    /// How many such files are not listed.
    #[serde(default)]
    pub more_pending: u64,
    /// Bytes that are kept in the journal.
    pub pending_bytes: u64,
    /// Where the journal is kept, for the user to know.
    pub state_dir: String,
}

impl UnmountReport {
    /// How `unmount` ends.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        if self.pending.is_empty() && self.pending_bytes == 0 {
            ExitStatus::Synced
        } else {
            ExitStatus::Pending
        }
    }
}
