//! The last changes of a drive's state, with their reasons, kept over restarts.
//!
//! One JSON line a change, written anew as a whole beside the old file and then renamed, so that a cut
//! leaves one or the other. It is for people: that it cannot be read or written is no reason to stop.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::control::StateChange;

/// So many changes are kept.
const KEPT: usize = 100;
/// Bound of the file, in bytes.
const MAX: u64 = 1 << 20;

/// The changes, the newest last.
pub struct History {
    path: PathBuf,
    changes: Vec<StateChange>,
}

impl History {
    /// What the file holds; lines that make no sense are left out.
    pub fn open(path: &Path) -> Self {
        let small = fs::metadata(path).is_ok_and(|m| m.len() <= MAX);
        let text = small
            .then(|| fs::read_to_string(path).ok())
            .flatten()
            .unwrap_or_default();
        let mut changes: Vec<StateChange> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        changes.drain(..changes.len().saturating_sub(KEPT));
        Self {
            path: path.to_owned(),
            changes,
        }
    }

    /// One more.
    pub fn add(&mut self, change: StateChange) {
        self.changes.push(change);
        let over = self.changes.len().saturating_sub(KEPT);
        self.changes.drain(..over);
        if let Err(error) = self.save() {
            tracing::warn!(%error, "the history of states is not kept");
        }
    }

    fn save(&self) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        for change in &self.changes {
            serde_json::to_writer(&mut file, change)?;
            file.write_all(b"\n")?;
        }
        file.sync_data()?;
        fs::rename(&fresh, &self.path)
    }

    /// The last so many, the newest last.
    pub fn last(&self, count: usize) -> Vec<StateChange> {
        let from = self.changes.len().saturating_sub(count);
        self.changes.get(from..).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::control::{Policy, State};

    #[test]
    fn the_last_hundred_are_there_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("history");
        let mut history = History::open(&path);
        for n in 0..120 {
            history.add(StateChange {
                at: Timestamp::from_second(n).unwrap(),
                from: State::Online,
                to: State::Cached,
                policy: Policy::Auto,
                reason: format!("reason {n}"),
            });
        }
        let mut again = History::open(&path);
        assert_eq!(again.last(usize::MAX).len(), KEPT);
        assert_eq!(again.last(1)[0].reason, "reason 119");
        assert_eq!(again.last(usize::MAX)[0].reason, "reason 20");
        // A torn or foreign line costs itself alone.
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"at\":\"nonsense\n");
        fs::write(&path, text).unwrap();
        again = History::open(&path);
        assert_eq!(again.last(usize::MAX).len(), KEPT);
    }
}
