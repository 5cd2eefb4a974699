//! How what waits would be synced now.

use serde::{Deserialize, Serialize};

use super::State;
use crate::exit::ExitStatus;

/// How what waits would be synced now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPlan {
    /// The drive's state.
    pub state: State,
    /// File by file; at most [`super::MAX_FILES`].
    pub files: Vec<PlannedFile>,
    /// How many files are not listed.
    #[serde(default)]
    pub more_files: u64,
}

/// How one file would be synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Relative to the drive's root.
    pub path: String,
    /// Which way it would take.
    pub way: PlannedWay,
    /// Why, as the end of a sentence.
    pub why: String,
    /// Bytes of it that the share lacks.
    pub pending_bytes: u64,
}

/// Which way a file takes to the share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedWay {
    /// Its objects, applied to the share's file from here.
    Local,
    /// Its objects, handed to the agent beside the share.
    Split,
    /// Its bytes, or a change of its name or attributes.
    Bytes,
    /// None now.
    Waits,
}

impl SyncPlan {
    /// How `sync --plan` ends.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        if self.files.is_empty() {
            ExitStatus::Synced
        } else {
            ExitStatus::Pending
        }
    }
}
