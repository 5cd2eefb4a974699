//! What a drive syncs by itself, and how it tells when that may be.

use std::time::Duration;

use vfs::ContainerStatus;

use super::Mounted;
use crate::control::{Event, FileOutcome, Progress};
use crate::daemon::auto::Work;
use crate::daemon::schedule::{SETTLE, Seen};

/// The tree among the paths that wait: its changes come first, so that every file has its place.
const TREE: &str = "";
/// Changes of the tree that the share refuses: no file has such a name.
const REFUSED: &str = "/";
/// A file that is open rests when it was not written for so long.
const OPEN_RESTS: Duration = Duration::from_secs(5);

impl Work for Mounted {
    fn seen(&self) -> Seen {
        let rests = |file: &ContainerStatus| {
            let pause = if file.open_handles == 0 {
                SETTLE
            } else {
                OPEN_RESTS
            };
            file.quiet_for.is_none_or(|quiet| quiet >= pause)
        };
        let mut waiting = Vec::new();
        if self.drive.has_new_changes() {
            waiting.push((TREE.to_owned(), true));
        }
        // By itself, so that what is asked for in vain ever more rarely holds up nothing new.
        if !self.drive.refused_changes().is_empty() {
            waiting.push((REFUSED.to_owned(), true));
        }
        for file in self.waiting().iter().chain(&self.waiting_opaque()) {
            waiting.push((file.path.clone(), rests(file)));
        }
        let allowed = self.drive.state() != vfs::State::Offline;
        Seen {
            allowed,
            reachable: allowed && !waiting.is_empty() && self.drive.probe().is_ok(),
            waiting,
        }
    }

    fn sync_one(&self, path: &str) -> Result<(), String> {
        if path == TREE {
            return self.reintegrate(false, &Unwatched).map_err(|e| e.message);
        }
        if path == REFUSED {
            self.reintegrate(true, &Unwatched).map_err(|e| e.message)?;
            return match self.drive.refused_changes().first() {
                Some(still) => Err(format!("{}: {}", still.what, still.why)),
                None => Ok(()),
            };
        }
        let file = self.drive.file_status(path).map_err(|e| e.to_string())?;
        let report = if self.drive.is_container(path) {
            self.syncer.sync(&file, false, &Unwatched)
        } else {
            self.syncer.push(&file)
        };
        match report.error {
            Some(error) if report.outcome != FileOutcome::Conflict => Err(error.message),
            _ => Ok(()),
        }
    }
}

/// For a sync that nobody watches.
struct Unwatched;

impl Progress for Unwatched {
    fn event(&self, _: Event) {}
}
