//! The whole tree of names, learned in the background, so that directories nobody opened can be listed,
//! and files made in them, while the share is away.
//!
//! A round lists every directory once, nearest to the root first. It takes the link as filling does: half
//! of the time while programs use it, and no more than the rate that was set. It stops where the link does
//! and goes on with the directories that are left; one that cannot be listed is put off and holds up no
//! other. What can be known is bounded: directories that are their own ancestors are not entered, nothing
//! is entered deeper than [`DEPTH`], and where more names are known than the drive was told to keep,
//! no further directory is listed before a program asks.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Drive, State};
use crate::error::{Error, Result};
use crate::link::Wait;
use crate::share::Kind;
use crate::tree::ROOT;

/// Directories deeper than this are left to programs.
const DEPTH: usize = 128;
/// A round is made anew after this long, for what others made on the share.
const RESCAN: Duration = Duration::from_secs(600);
/// What one name in a listing takes of the link, roughly, in bytes.
const NAME: u64 = 256;
/// Progress is made durable each time so many names were learned, at the least.
const RECORD: u64 = 20_000;
/// So many failures of the link in a row end a round's step: the rest waits for the next.
const PATIENCE: u32 = 3;

/// What is known of the share's tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeStatus {
    /// Names that are known.
    pub names: usize,
    /// Directories of which every name is known.
    pub listed: usize,
    /// Directories that are known by their name alone: they cannot be listed while the share is away.
    pub unlisted: usize,
    /// Directories that this round has still to look at; 0: the round is over.
    pub waiting: usize,
    /// Why some were not listed.
    pub trouble: Option<String>,
}

#[derive(Default)]
pub(super) struct Crawl(Mutex<Round>);

/// A round. Bounded by the directories there are.
#[derive(Default)]
struct Round {
    waiting: VecDeque<u64>,
    /// Put off, because the link failed when they were asked for.
    later: VecDeque<u64>,
    trouble: Option<String>,
    /// Names learned since the last durable progress.
    learned: u64,
    /// When it began; `None`: the next one is due.
    began: Option<Instant>,
}

impl Crawl {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next round is not to wait until this one is old.
    pub fn make_due(&self) {
        self.round().began = None;
    }
}

/// Which rounds to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounds {
    /// One that was broken off, or a new one.
    Any,
    /// A new one only where the last is old.
    Due,
}

impl Drive {
    /// Where the background stands with learning the tree.
    #[must_use]
    pub fn tree_status(&self) -> TreeStatus {
        let mut status = TreeStatus::default();
        {
            let tree = self.tree();
            for (id, node) in &tree.nodes {
                if *id == ROOT || node.linked {
                    status.names += usize::from(*id != ROOT);
                    match (
                        node.attr.kind,
                        node.known || *id != ROOT && node.share.is_none(),
                    ) {
                        (Kind::Dir, true) => status.listed += 1,
                        (Kind::Dir, false) => status.unlisted += 1,
                        _ => {}
                    }
                }
            }
        }
        let round = self.crawl.round();
        status.waiting = round.waiting.len() + round.later.len();
        status.trouble.clone_from(&round.trouble);
        status
    }

    /// Goes on with the round that was broken off, or makes a new one.
    ///
    /// # Errors
    /// The first failure, after everything else was tried that could be; the rest of the round is kept.
    pub(super) fn crawl(&self, rounds: Rounds) -> Result<()> {
        let mut first = Ok(());
        {
            let mut round = self.crawl.round();
            let young = round.began.is_some_and(|at| at.elapsed() < RESCAN);
            if round.waiting.is_empty() && (rounds == Rounds::Any || !young) {
                round.waiting.push_back(ROOT);
                round.trouble = None;
                round.began = Some(Instant::now());
            }
        }
        let mut failures = 0;
        while failures < PATIENCE && !self.is_ending() && self.state() != State::Offline {
            let Some(dir) = self.crawl.round().waiting.pop_front() else {
                break;
            };
            match self.list_ahead(dir) {
                Ok(()) => {
                    failures = 0;
                    self.go_down(dir);
                }
                // Gone meanwhile, with all that is in it.
                Err(Error::NotFound(_)) => {}
                Err(e) => {
                    let mut round = self.crawl.round();
                    round.trouble = Some(e.to_string());
                    if e.is_link() {
                        // Known before, perhaps: what is below it comes with its own turn.
                        round.later.push_back(dir);
                        failures += 1;
                    } else {
                        drop(round);
                        self.go_down(dir);
                    }
                    if first.is_ok() {
                        first = Err(e);
                    }
                }
            }
        }
        let mut round = self.crawl.round();
        let later = std::mem::take(&mut round.later);
        round.waiting.extend(later);
        if std::mem::take(&mut round.learned) > 0 {
            drop(round);
            // What was learned is to be there after a restart too.
            self.bell.want_checkpoint.store(true, Ordering::SeqCst);
        }
        first
    }

    /// Whether a round is broken off, or the next one due.
    pub(super) fn crawl_waits(&self) -> bool {
        let round = self.crawl.round();
        !round.waiting.is_empty() || round.began.is_none_or(|at| at.elapsed() >= RESCAN)
    }

    fn list_ahead(&self, dir: u64) -> Result<()> {
        let budget = self.flush_budget.max(self.stall_budget());
        let wait = Wait::until(budget, &self.ending);
        if dir == ROOT && self.tree().node(ROOT)?.attr.file_id == 0 {
            // By its identity it is known when it shows up again below.
            let attr = self.link.call_while("root", wait, |share| share.stat(""))?;
            self.tree_mut().node_mut(ROOT)?.attr = attr;
        }
        {
            let tree = self.tree();
            let node = tree.dir(dir)?;
            let told = node.listed.is_some_and(|at| at.elapsed() < self.attr_life);
            let made_here = dir != ROOT && node.share.is_none();
            if told || made_here || (node.known && self.state() != State::Online) {
                return Ok(());
            }
            // What is known is kept up to date all the same.
            if !node.known && tree.nodes.len() > self.tree_limit {
                return Err(Error::NoSpace("more names than are kept ahead of use"));
            }
        }
        let (began, calls) = (Instant::now(), self.link.calls());
        let names = self.list_from_share(dir, wait)? as u64;
        let others = self.link.calls() > calls + 1;
        let rest = self.pace.rest(names.max(1) * NAME, began.elapsed(), others);
        if !rest.is_zero() {
            self.bell.wait(rest, || self.is_ending());
        }
        let mut round = self.crawl.round();
        round.learned += names.max(1);
        if round.learned >= RECORD {
            round.learned = 0;
            drop(round);
            self.bell.want_checkpoint.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Queues the directories in one.
    fn go_down(&self, dir: u64) {
        let below: Vec<u64> = {
            let tree = self.tree();
            let Ok(node) = tree.dir(dir) else { return };
            let enter = |id: &&u64| {
                tree.nodes.get(id).is_some_and(|n| n.attr.kind == Kind::Dir)
                    && tree.leads_on(**id, DEPTH)
            };
            node.children.values().filter(enter).copied().collect()
        };
        self.crawl.round().waiting.extend(below);
    }
}
