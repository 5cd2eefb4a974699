//! Which way a change list takes to the share: applied from here (local placement), or handed to the agent
//! beside it (split placement). Decided anew for each piece.
//!
//! A piece that was handed to the agent and not answered is the agent's (R7): it is asked again, until it
//! answers or the container is seen to be another than the piece was made for, which no late apply gets
//! past. Only the user's word, `--placement local`, takes it back unseen. A piece that was begun from here
//! needs no such care: its redo log lies beside the container, and whoever comes next finishes it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use clap::ValueEnum;
use sync::{ApplyAnswer, ApplyJob, Destination, RemoteInventory, SyncError, hex, record};

use super::known::private;

/// So long the agent is asked first where a container could not be written from here.
const REFUSED: Duration = Duration::from_secs(600);

const VERSION: u8 = 1;
const MAX_RECORD: usize = 64 * 1024;

/// Which way change lists take, as the user wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Placement {
    /// Over a good link from here, over a poor one by the agent
    #[default]
    Auto,
    /// From here
    Local,
    /// By the agent
    Split,
}

/// A way to the share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Applied from here.
    Local,
    /// Handed to the agent.
    Split,
}

/// A way, and why it is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The way.
    pub way: Way,
    /// Why, as the end of a sentence.
    pub why: &'static str,
}

/// Whether the drive passes through to the share now.
pub type IsOnline = Arc<dyn Fn() -> bool + Send + Sync>;

/// A share as a destination, with the ways that lead there.
pub struct Placed {
    name: String,
    placement: Placement,
    local: Option<Box<dyn Destination>>,
    agent: Option<Box<dyn Destination>>,
    /// What the share itself does to keep other programs away from a container that is written from here.
    guarded: bool,
    online: IsOnline,
    handed: Handed,
    /// Containers that could not be written from here, and when that was found.
    refused: Mutex<HashMap<String, Instant>>,
}

impl Placed {
    /// The share as the destination `name`. At least one way must be there. `guarded`: the share itself
    /// keeps others away from a container that is written from here. `handed` is a directory for what was
    /// handed to the agent.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(
        name: String,
        placement: Placement,
        local: Option<Box<dyn Destination>>,
        agent: Option<Box<dyn Destination>>,
        guarded: bool,
        online: IsOnline,
        handed: PathBuf,
    ) -> io::Result<Self> {
        sync::kv::create_private_dir(&handed)?;
        Ok(Self {
            name,
            placement,
            local,
            agent,
            guarded,
            online,
            handed: Handed(handed),
            refused: Mutex::default(),
        })
    }

    /// The way that the next piece of this container takes.
    pub fn choose(&self, container: &str) -> Choice {
        let (way, why) = match (self.placement, &self.local, &self.agent) {
            (_, _, None) => (Way::Local, "there is no agent"),
            (_, None, _) => (Way::Split, "only the agent can write there"),
            (Placement::Local, ..) => (Way::Local, "the drive was mounted with --placement local"),
            (Placement::Split, ..) => (Way::Split, "the drive was mounted with --placement split"),
            _ if self.handed.get(container).is_some() => (
                Way::Split,
                "the agent was handed a piece and has not answered yet",
            ),
            _ if !self.guarded => (
                Way::Split,
                "a directory does not keep other programs away from the file",
            ),
            _ if self.is_refused(container) => {
                (Way::Split, "it could not be written from here a moment ago")
            }
            _ if (self.online)() => (Way::Local, "the drive is online"),
            _ => (Way::Split, "the drive is not online"),
        };
        Choice { way, why }
    }

    fn is_refused(&self, container: &str) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, since| since.elapsed() < REFUSED);
        refused.contains_key(container)
    }

    fn by(&self, way: Way) -> sync::Result<&dyn Destination> {
        let found = match way {
            Way::Local => &self.local,
            Way::Split => &self.agent,
        };
        found.as_deref().ok_or_else(|| SyncError::Destination {
            message: "there is no way to the share".to_owned(),
            retry: false,
            offline: false,
        })
    }

    fn by_agent(
        &self,
        job: &ApplyJob<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> sync::Result<ApplyAnswer> {
        let (container, sequence) = (job.container, job.sequence);
        self.handed
            .put(container, sequence)
            .map_err(|e| SyncError::Database(format!("what is handed to the agent: {e}")))?;
        let answer = self.by(Way::Split)?.apply(job, progress)?;
        // Busy and refused are answers too; what failed inside may still have been done.
        if !matches!(answer, ApplyAnswer::Failed(_)) {
            self.handed.drop(container);
        }
        Ok(answer)
    }

    /// A piece that the agent may have, while it does not answer, over a way that is open.
    fn taken_back(&self, job: &ApplyJob<'_>, error: SyncError) -> sync::Result<ApplyAnswer> {
        if let Some(local) = &self.local
            && self.guarded
            && (self.online)()
            && local.inventory(job.container)?.generation != job.base
        {
            // Done or not, it cannot be done any more: it was made for other bytes.
            self.handed.drop(job.container);
            return Ok(ApplyAnswer::WrongBase);
        }
        Err(error)
    }
}

impl Destination for Placed {
    fn name(&self) -> &str {
        &self.name
    }

    fn inventory(&self, container: &str) -> sync::Result<RemoteInventory> {
        self.by(self.choose(container).way)?.inventory(container)
    }

    fn apply(
        &self,
        job: &ApplyJob<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> sync::Result<ApplyAnswer> {
        let choice = self.choose(job.container);
        let (container, sequence) = (job.container, job.sequence);
        tracing::info!(container, sequence, way = ?choice.way, why = choice.why, "a piece goes to the share");
        match choice.way {
            Way::Split => {
                let unanswered = self.handed.get(container) == Some(sequence);
                match self.by_agent(job, progress) {
                    Err(error) if unanswered && error.retryable() => self.taken_back(job, error),
                    answer => answer,
                }
            }
            Way::Local => {
                let answer = self.by(Way::Local)?.apply(job, progress);
                match &answer {
                    Ok(_) => self.handed.drop(container),
                    // Whatever it began, the agent can finish.
                    Err(SyncError::Destination { offline: false, .. }) => {
                        let mut refused =
                            self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                        refused.insert(container.to_owned(), Instant::now());
                    }
                    Err(_) => {}
                }
                answer
            }
        }
    }
}

/// What was handed to the agent and not answered: a file for each container, durable before anything is
/// sent.
struct Handed(PathBuf);

#[derive(Encode, Decode)]
struct Piece {
    container: String,
    sequence: u64,
}

impl Handed {
    fn file(&self, container: &str) -> PathBuf {
        let key = blake3::hash(container.as_bytes());
        self.0
            .join(hex::encode(key.as_bytes().get(..16).unwrap_or_default()))
    }

    fn get(&self, container: &str) -> Option<u64> {
        let bytes = fs::read(self.file(container)).ok()?;
        match record::decode::<Piece, MAX_RECORD>(VERSION, &bytes) {
            Ok(piece) => (piece.container == container).then_some(piece.sequence),
            // Something was handed over: what is not known of it is the worst.
            Err(_) => Some(0),
        }
    }

    fn put(&self, container: &str, sequence: u64) -> io::Result<()> {
        if self.get(container) == Some(sequence) {
            return Ok(());
        }
        let piece = Piece {
            container: container.to_owned(),
            sequence,
        };
        let bytes = record::encode(VERSION, &piece).map_err(io::Error::other)?;
        let path = self.file(container);
        let fresh = path.with_extension("new");
        let mut file = private(&fresh, true)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        sync_dir(&self.0)
    }

    /// Not made durable: asked once more, the agent says the same.
    fn drop(&self, container: &str) {
        match fs::remove_file(self.file(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(container, %error, "what was handed to the agent is kept in mind");
            }
            _ => {}
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
