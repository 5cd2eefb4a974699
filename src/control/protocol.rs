//! What goes over the control socket: versioned JSON lines.
//!
//! A request: `{"v":1,"request":{"op":"status"}}`. The replies: any number of `{"v":1,"event":…}`,
//! then one `{"v":1,"answer":…}` or `{"v":1,"error":…}`. The version is read before the rest, so a
//! newer command and an older daemon part with a clear sentence. Unknown fields of a request are
//! refused (a daemon must not ignore what it was asked); unknown fields of a reply are ignored.

use std::fmt;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::UserError;
use crate::exit::ExitStatus;

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
    },
    /// Sync to the verified end.
    SyncNow {
        /// A file, relative to the drive's root; none for all that have changes.
        path: Option<String>,
        /// Send deletes beyond the guard against mass deletes.
        allow_deletes: bool,
    },
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
    /// To status and set-mode.
    Status(Box<DriveStatus>),
    /// To sync-now.
    Sync(SyncReport),
    /// To unmount.
    Unmount(UnmountReport),
}

/// Mode policy: what the user asked for. Only the last three are carried out in this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By the measured link
    Auto,
    /// By the user's rules
    Rules,
    /// Pass through to the share
    Online,
    /// Journal, and ship change lists
    Cached,
    /// Journal, and leave the share alone
    Offline,
}

impl Policy {
    /// This policy, if it is one that is set by hand: the others are not in this version.
    ///
    /// # Errors
    /// It is not; what to use instead.
    pub fn by_hand(self) -> Result<Self, UserError> {
        match self {
            Self::Online | Self::Cached | Self::Offline => Ok(self),
            Self::Auto | Self::Rules => Err(UserError::not_in_this_version(
                &format!("the policy '{self}'"),
                "set the mode by hand: online, cached or offline",
            )),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Rules => "rules",
            Self::Online => "online",
            Self::Cached => "cached",
            Self::Offline => "offline",
        })
    }
}

/// Effective state of a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Passes through to the share.
    Online,
    /// Journals, and ships change lists.
    Cached,
    /// Journals; no link, or told to leave it alone.
    Offline,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Cached => "cached",
            Self::Offline => "offline",
        })
    }
}

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
    /// Files that are of interest: containers, and every file that is not synced. At most [`MAX_FILES`].
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
    /// Pinned files that could not be used in full if the link went now. At most [`MAX_FILES`].
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

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncReport {
    /// File by file; at most [`MAX_FILES`].
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
    /// Files whose changes are kept in the journal; at most [`MAX_FILES`].
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

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFrame {
    v: u32,
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct ReplyFrame {
    v: u32,
    #[serde(flatten)]
    reply: Reply,
}

/// The request as a line with its newline.
///
/// # Errors
/// It is longer than [`MAX_REQUEST`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, UserError> {
    line(
        &RequestFrame {
            v: VERSION,
            request: request.clone(),
        },
        MAX_REQUEST,
    )
}

/// The reply as a line with its newline.
///
/// # Errors
/// It is longer than [`MAX_REPLY`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, UserError> {
    line(
        &ReplyFrame {
            v: VERSION,
            reply: reply.clone(),
        },
        MAX_REPLY,
    )
}

fn line(frame: &impl Serialize, limit: usize) -> Result<Vec<u8>, UserError> {
    let mut bytes = serde_json::to_vec(frame).map_err(|e| bad(&e.to_string()))?;
    bytes.push(b'\n');
    if bytes.len() > limit {
        return Err(bad(&format!("{} bytes are more than {limit}", bytes.len())));
    }
    Ok(bytes)
}

/// Reads a request line.
///
/// # Errors
/// It is no request of this version.
pub fn decode_request(line: &[u8]) -> Result<Request, UserError> {
    check_version(line)?;
    let frame: RequestFrame = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    Ok(frame.request)
}

/// Reads a reply line.
///
/// # Errors
/// It is no reply of this version.
pub fn decode_reply(line: &[u8]) -> Result<Reply, UserError> {
    check_version(line)?;
    let frame: ReplyFrame = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    Ok(frame.reply)
}

fn check_version(line: &[u8]) -> Result<(), UserError> {
    let Versioned { v } = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
    if v == VERSION {
        return Ok(());
    }
    Err(UserError::new(
        "control-version",
        format!("the command and the daemon are of different versions ({VERSION} and {v})"),
        "unmount and mount again, so that both are the same pstsyncd",
    ))
}

fn bad(detail: &str) -> UserError {
    UserError::new(
        "control-protocol",
        format!("the control socket carried a message that makes no sense: {detail}"),
        "check that command and daemon are the same pstsyncd",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_documented_ones() {
        let line = encode_request(&Request::Status {}).unwrap();
        assert_eq!(line, b"{\"v\":1,\"request\":{\"op\":\"status\"}}\n");
        let line = encode_reply(&Reply::Event(Event::Alive {})).unwrap();
        assert_eq!(line, b"{\"v\":1,\"event\":{\"kind\":\"alive\"}}\n");
        let error = UserError::new("a", "b", "c");
        let reply = Reply::Error(error);
        assert_eq!(decode_reply(&encode_reply(&reply).unwrap()).unwrap(), reply);
    }

    #[test]
    fn every_request_comes_back() {
        let all = [
            Request::Ping {},
            Request::Status {},
            Request::SetMode {
                policy: Policy::Cached,
            },
            Request::SyncNow {
                path: None,
                allow_deletes: false,
            },
            Request::SyncNow {
                path: Some("a/b.pst".into()),
                allow_deletes: true,
            },
            Request::Unmount { now: true },
        ];
        for request in all {
            let line = encode_request(&request).unwrap();
            assert_eq!(decode_request(&line).unwrap(), request);
        }
    }

    #[test]
    fn other_versions_and_unknown_fields_are_refused() {
        let other = decode_request(br#"{"v":2,"request":{"op":"fly"},"new":1}"#).unwrap_err();
        assert_eq!(other.code, "control-version");
        for line in [
            &br#"{"v":1,"request":{"op":"status","deep":true}}"#[..],
            br#"{"v":1,"request":{"op":"fly"}}"#,
            br#"{"v":1,"request":{"op":"ping"},"also":1}"#,
            br#"{"v":1}"#,
            br#"{"request":{"op":"ping"}}"#,
            b"\xff\xfe",
            b"",
        ] {
            assert_eq!(decode_request(line).unwrap_err().code, "control-protocol");
        }
    }

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
            share_reachable: true,
            agent: None,
            journal_bytes: 0,
            pending_bytes: 0,
            cache: Default::default(),
            auto_sync: Default::default(),
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
