//! What a drive does, and what waits.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{LimitStatus, Policy, State, StateChange};
use crate::exit::ExitStatus;

/// What a drive does, and what waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriveStatus {
    /// Where the drive is mounted.
    pub mountpoint: String,
    /// The share under it.
    pub share: String,
    /// What the user asked for.
    pub policy: Policy,
    /// What is done.
    pub state: State,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The last changes of state, the newest last; `link` has more.
    #[serde(default)]
    pub changes: Vec<StateChange>,
    /// What the link may be used.
    #[serde(default)]
    pub limit: LimitStatus,
    /// Whether the share could be reached when last used.
    pub share_reachable: bool,
    /// The agent, where one is configured.
    pub agent: Option<AgentStatus>,
    /// Bytes of the journal's segments that are in use.
    #[serde(default)]
    pub journal_bytes: u64,
    /// Bytes in the journal that wait to be synced.
    pub pending_bytes: u64,
    /// What is kept of the share, and what is not safe yet.
    #[serde(default)]
    pub cache: CacheStatus,
    /// What is synced by itself, and when.
    #[serde(default)]
    pub auto_sync: AutoSync,
    /// Files that are of interest: containers, and every file that is not synced. At most [`super::MAX_FILES`].
    pub files: Vec<FileStatus>,
    /// How many files of interest are not listed.
    #[serde(default)]
    pub more_files: u64,
}

/// What a drive does to sync by itself what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoSync {
    /// Whether it does.
    pub on: bool,
    /// The file that is being synced, relative to the drive's root; empty for the tree itself.
    pub busy: Option<String>,
    /// When something is tried next; none where it depends on something else than the time.
    pub next_try: Option<Timestamp>,
    /// On what it depends.
    pub waits_for: Option<String>,
    /// What still waits because its last try failed, and why.
    pub last_failure: Option<String>,
}

/// What a drive keeps of its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// The quota in bytes; none: the volume is the limit.
    pub limit: Option<u64>,
    /// Bytes of the share's files that are here.
    pub used: u64,
    /// How many of them belong to pinned files.
    pub pinned: u64,
    /// Pinned files.
    pub pinned_files: u64,
    /// Pinned files that could not be used in full if the link went now. At most [`super::MAX_FILES`].
    pub incomplete: Vec<PartOf>,
    /// How many of these are not listed.
    pub more_incomplete: u64,
    /// What is being fetched ahead.
    pub filling: Option<PartOf>,
    /// Why fetching ahead did not end well the last time.
    pub trouble: Option<String>,
    /// Name of the volume, where the cache may be unplugged.
    pub volume: Option<String>,
    /// What is known of the share's names.
    #[serde(default)]
    pub tree: TreeStatus,
}

/// What is known of the share's names, and so can be listed without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStatus {
    /// Names that are known.
    pub names: u64,
    /// Directories of which every name is known.
    pub listed: u64,
    /// Directories of which nothing but the name is known.
    pub unlisted: u64,
    /// Directories that are still to be looked at, now or when the link is back.
    pub waiting: u64,
    /// Why some were not listed.
    pub trouble: Option<String>,
}

/// A file that is here in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartOf {
    /// Relative to the drive's root.
    pub path: String,
    /// Bytes that are here.
    pub cached: u64,
    /// Its size, in bytes.
    pub size: u64,
}

/// The agent of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its address.
    pub url: String,
    /// Whether it answered when last asked; none before the first time.
    pub reachable: Option<bool>,
}

/// One file of a drive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Relative to the drive's root.
    pub path: String,
    /// Whether its inside is understood; otherwise it is opaque.
    pub container: bool,
    /// Which physical file handles see.
    pub binding: Binding,
    /// Where its sync stands.
    pub sync: SyncState,
    /// Its size on the drive, in bytes.
    pub size: u64,
    /// Whether all of it is in the cache, so that it can be used without a link.
    pub fully_cached: bool,
    /// Bytes in the journal that wait to be synced.
    pub pending_bytes: u64,
    /// Time of the last sync whose far side was re-read and verified.
    pub verified_at: Option<Timestamp>,
    /// What the user should know, as in "no consistent moment found yet".
    pub note: Option<String>,
}

/// Which physical file the handles of a file see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// The share's.
    Share,
    /// The cache's.
    Cache,
}

/// Where the sync of one file stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncState {
    /// Nothing waits, and the far side is as expected.
    Synced,
    /// Changes wait, or are on their way.
    Pending,
    /// Both sides changed, and a user has to look.
    Conflict,
    /// The last sync failed; the note says why. Changes are kept.
    Failed,
}

impl DriveStatus {
    /// How `status` ends: the worst of the files, and offline where there is no link by no choice
    /// of the user.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        let files = self.files.iter().map(|f| match f.sync {
            SyncState::Synced => ExitStatus::Synced,
            SyncState::Pending => ExitStatus::Pending,
            SyncState::Conflict => ExitStatus::Conflicts,
            SyncState::Failed => ExitStatus::Error,
        });
        let link = if self.state == State::Offline || !self.share_reachable {
            ExitStatus::Offline
        } else if self.pending_bytes > 0 {
            ExitStatus::Pending
        } else {
            ExitStatus::Synced
        };
        files.max().unwrap_or_default().max(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_file_decides_the_exit() {
        let file = |sync| FileStatus {
            path: "a.pst".into(),
            container: true,
            binding: Binding::Cache,
            sync,
            size: 1,
            fully_cached: true,
            pending_bytes: 0,
            verified_at: None,
            note: None,
        };
        let mut status = DriveStatus {
            mountpoint: "/m".into(),
            share: "/s".into(),
            policy: Policy::Online,
            state: State::Online,
            reason: String::new(),
            changes: Vec::new(),
            share_reachable: true,
            agent: None,
            journal_bytes: 0,
            pending_bytes: 0,
            cache: Default::default(),
            auto_sync: Default::default(),
            limit: Default::default(),
            files: vec![file(SyncState::Synced)],
            more_files: 0,
        };
        assert_eq!(status.exit(), ExitStatus::Synced);
        status.files.push(file(SyncState::Pending));
        assert_eq!(status.exit(), ExitStatus::Pending);
        status.files.push(file(SyncState::Conflict));
        assert_eq!(status.exit(), ExitStatus::Conflicts);
        status.files.clear();
        status.state = State::Offline;
        assert_eq!(status.exit(), ExitStatus::Offline);
    }
}
