//! Automatic sync: a thread that carries out the [`Schedule`], one file at a time.
//!
//! It holds the drive weakly, so that an unmounted drive ends; a sync that is cut off by the end of
//! the process goes on at the next mount, as after any stop (R11).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::schedule::{Schedule, Seen, Trigger, Wait};
use crate::control::AutoSync;
use crate::error::UserError;

/// How often is looked for what waits, and a share that does not answer is asked.
const TICK: Duration = Duration::from_secs(1);

/// What is synced by itself.
pub trait Work: Send + Sync + 'static {
    /// What waits, and whether it may be tried. May wait for the share, for the stall budget.
    fn seen(&self) -> Seen;
    /// Syncs one of the paths that wait; an error is a sentence for the user.
    ///
    /// # Errors
    /// Why it still waits.
    fn sync_one(&self, path: &str) -> Result<(), String>;
}

/// Automatic sync of one drive.
pub struct Auto {
    on: bool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    /// What is being synced.
    busy: Option<String>,
    ended: bool,
}

impl Auto {
    /// Not started yet; `on`: it will be.
    pub fn new(on: bool) -> Self {
        Self {
            on,
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins, if it is on.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start<W: Work>(self: &Arc<Self>, work: Weak<W>) -> Result<(), UserError> {
        if !self.on {
            return Ok(());
        }
        let auto = Arc::clone(self);
        std::thread::Builder::new()
            .name("auto-sync".into())
            .spawn(move || while auto.round(&work) {})
            .map(drop)
            .map_err(|e| {
                UserError::new(
                    "threads",
                    format!("no thread could be started: {e}"),
                    "try again",
                )
            })
    }

    /// One look, and a sync where one is due. `false`: it has ended.
    fn round<W: Work>(&self, work: &Weak<W>) -> bool {
        let Some(work) = work.upgrade() else {
            return false;
        };
        let seen = work.seen();
        let due = {
            let mut state = self.state();
            if state.ended {
                return false;
            }
            let due = state.schedule.look(Instant::now(), &seen);
            state.busy = due.as_ref().map(|(path, _)| path.clone());
            due
        };
        let Some((path, trigger)) = due else {
            drop(work);
            let state = self.state();
            let wait = self
                .wake
                .wait_timeout_while(state, TICK, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            return !wait.0.ended;
        };
        tracing::info!(path, ?trigger, "automatic sync");
        let result = work.sync_one(&path);
        drop(work);
        if let Err(why) = &result {
            tracing::info!(path, why, "not synced yet");
        }
        let mut state = self.state();
        state.busy = None;
        state.schedule.tried(&path, Instant::now(), result);
        !state.ended
    }

    /// Someone synced by hand: what is left is tried again soon.
    pub fn by_hand(&self) {
        self.state().schedule.pull(Trigger::Manual, Instant::now());
    }

    /// No further sync is begun.
    pub fn end(&self) {
        self.state().ended = true;
        self.wake.notify_all();
    }

    /// What it does and waits for.
    pub fn status(&self) -> AutoSync {
        let state = self.state();
        let (mut next_try, mut waits_for) = (None, None);
        match state.schedule.wait() {
            _ if state.busy.is_some() => next_try = Some(Timestamp::now()),
            Some(Wait::Until(at)) => {
                let left = at.saturating_duration_since(Instant::now());
                let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
                next_try = Timestamp::now().checked_add(left).ok();
            }
            Some(Wait::Share) => waits_for = Some("the share to answer"),
            Some(Wait::Offline) => waits_for = Some("the drive to be taken online"),
            Some(Wait::Rest) => waits_for = Some("the programs to rest"),
            Some(Wait::Nothing) | None => {}
        }
        AutoSync {
            on: self.on,
            busy: state.busy.clone(),
            next_try,
            waits_for: waits_for.map(str::to_owned),
            last_failure: state.schedule.failure().map(|(path, why)| match path {
                "" | "/" => why.to_owned(),
                path if why.contains(path) => why.to_owned(),
                path => format!("{path}: {why}"),
            }),
        }
    }
}
