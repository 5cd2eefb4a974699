//! Changes that the share tells of, where it does.
//!
//! What is told of is asked about again at its next use instead of when its time is over, and what
//! programs have open is looked at once. That is all: nothing is believed that was not asked, and
//! everything is asked as often as without it (servers do not tell of everything), so a share that
//! tells too little, too much or of what never happened costs time only.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Drive, State};
use crate::link::let_go;
use crate::share::{Changed, Changes};
use crate::tree::ROOT;

/// After a share did not want to tell, or the way to it was lost, this long until it is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Listening to the share.
#[derive(Default)]
pub(super) struct Told {
    by: Option<Box<dyn Changes>>,
    again: Option<Instant>,
}

impl Drive {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the share tells of changes now. If not, they are found by asking alone.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told().by.is_some()
    }

    /// Listens to the share, and takes note. Returns how many changes were told of.
    pub fn listen(&self) -> usize {
        if !self.link.may_tell() {
            return 0;
        }
        if self.state() != State::Online || !self.link.is_up() || self.is_ending() {
            self.told_nothing();
            return 0;
        }
        if !self.is_told() {
            if self.told().again.is_some_and(|at| Instant::now() < at) {
                return 0;
            }
            match self
                .link
                .call("listening for changes", |share| share.changes())
            {
                Ok(changes) => {
                    tracing::debug!("the share tells of changes");
                    self.told().by = Some(changes);
                    // What came before is not told.
                    self.doubt_all();
                }
                Err(error) => {
                    tracing::debug!(%error, "the share does not tell of changes");
                    self.told().again = Some(Instant::now() + AGAIN);
                    return 0;
                }
            }
        }
        let heard = {
            let mut told = self.told();
            match told.by.as_mut() {
                Some(changes) => changes.heard(),
                None => return 0,
            }
        };
        match heard {
            Ok(Changed::These(paths)) => {
                let mut open = false;
                for path in &paths {
                    open |= self.doubt(path);
                }
                if open {
                    self.watch();
                }
                paths.len()
            }
            Ok(Changed::Anything) => {
                self.doubt_all();
                self.watch();
                1
            }
            Err(error) => {
                tracing::debug!(%error, "the share no longer tells of changes");
                self.told_nothing();
                0
            }
        }
    }

    pub(super) fn listen_in_background(&self) {
        self.listen();
    }

    fn told_nothing(&self) {
        let old = self.told().by.take();
        if old.is_some() {
            self.told().again = Some(Instant::now() + AGAIN);
            // Closing is a share call.
            let_go(old);
        }
    }

    /// What is known of a path, and of its directory, is old. Whether programs have it open.
    fn doubt(&self, path: &str) -> bool {
        let mut tree = self.tree_mut();
        let (mut dir, mut found) = (ROOT, Some(ROOT));
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let Some(at) = found else { break };
            dir = at;
            found = tree.child(at, name);
        }
        if let Ok(dir) = tree.node_mut(dir) {
            dir.listed = None;
        }
        let Some(found) = found else {
            return false;
        };
        let ids = [found, tree.content_of(found)];
        for id in ids {
            if let Ok(node) = tree.node_mut(id) {
                node.fresh = None;
                node.listed = None;
            }
        }
        tree.file_behind(found).is_some_and(|f| f.read().opens > 0)
    }

    fn doubt_all(&self) {
        for node in self.tree_mut().nodes.values_mut() {
            node.fresh = None;
            node.listed = None;
        }
    }
}
