//! The governor of a drive: looks twice a second, decides by the policy, sets the drive's state, and
//! remembers why.
//!
//! What is decided is `crate::policy`'s; here are the clock, the rules file, the questions to a share
//! that is quiet or in doubt, and the history, which outlives the daemon. A drive that is offline for
//! want of a link is told "cached": it then tries the share whenever it must, fails fast, and syncs the
//! moment the link is back; offline as a wish is offline.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp, Zoned};
use vfs::Share;

use super::asked::Asked;
use super::history::History;
use super::limiter::Limiter;
use super::rules_file::RulesFile;
use crate::control::{Explanation, LinkStatus, Measured, Policy, State, StateChange};
use crate::error::UserError;
use crate::link::{Figure, LinkMeter, NetworkHints};
use crate::policy::Seen;
use crate::policy::engine::{Decision, Memory, Settings};

/// How often is looked.
const TICK: Duration = Duration::from_millis(500);
/// A link that nobody uses is asked so often whether it is there, and never when it is metered.
const IDLE: Duration = Duration::from_secs(30);
/// One that failed is asked again after this long.
const DOUBT: Duration = Duration::from_secs(1);
/// Changes that `status` shows.
const SHOWN: usize = 3;

/// Takes the states that are decided.
pub trait Governed: Send + Sync + 'static {
    /// From now on this state. May wait for the share.
    fn govern(&self, state: vfs::State);
}

/// Decides one drive's state.
pub struct Governor {
    meter: Arc<LinkMeter>,
    hints: Box<dyn NetworkHints>,
    began: Instant,
    inner: Mutex<Inner>,
    wake: Condvar,
    /// One who sets a state at a time, and in the order of the decisions.
    setting: Mutex<()>,
    asking: Arc<AtomicBool>,
    limiter: OnceLock<Arc<Limiter>>,
}

struct Inner {
    settings: Settings,
    memory: Memory,
    rules: RulesFile,
    history: History,
    asked_for: Asked<Policy>,
    seen: Seen,
    last: Option<Decision>,
    asked: Option<Instant>,
    changes: u64,
    ended: bool,
}

impl Governor {
    /// Begins with `policy`; `rules` is the file that `rules` goes by. Nothing runs yet.
    ///
    /// # Errors
    /// The policy is `rules`, and the file is not there or cannot be understood.
    pub fn new(
        policy: Policy,
        rules: Option<PathBuf>,
        history: &Path,
        meter: Arc<LinkMeter>,
        hints: Box<dyn NetworkHints>,
    ) -> Result<Self, UserError> {
        let mut rules = RulesFile::new(rules);
        let mut memory = Memory::new(policy, first_state(policy));
        let mut asked_for = Asked::beside(history, "mode-for");
        if let Some((timed, Some(left))) = asked_for.load() {
            // Without its rules it could not be followed: then the mount's policy is right.
            if timed != Policy::Rules || rules.must().is_ok() {
                memory = Memory::new(policy, first_state(timed));
                memory.resume(Duration::ZERO, timed, left);
                tracing::info!(policy = %timed, ?left, "asked for before the restart");
            } else {
                asked_for.clear();
            }
        }
        if policy == Policy::Rules {
            rules.must()?;
        }
        Ok(Self {
            meter,
            hints,
            began: Instant::now(),
            inner: Mutex::new(Inner {
                settings: Settings::default(),
                memory,
                rules,
                history: History::open(history),
                asked_for,
                seen: Seen {
                    reachable: true,
                    ..Seen::default()
                },
                last: None,
                asked: None,
                changes: 0,
                ended: false,
            }),
            wake: Condvar::new(),
            setting: Mutex::default(),
            asking: Arc::default(),
            limiter: OnceLock::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to look.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start<G: Governed>(
        self: &Arc<Self>,
        drive: Weak<G>,
        share: Arc<dyn Share>,
    ) -> Result<(), UserError> {
        let governor = Arc::clone(self);
        let run = move || {
            loop {
                let Some(drive) = drive.upgrade() else { return };
                governor.meter.heard(share.heard());
                governor.ask_share(&share);
                governor.look(&*drive);
                drop(drive);
                let inner = governor.inner();
                let wait = governor
                    .wake
                    .wait_timeout_while(inner, TICK, |inner| !inner.ended)
                    .unwrap_or_else(PoisonError::into_inner);
                if wait.0.ended {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("governor".into())
            .spawn(run)
            .map(drop)
            .map_err(|e| {
                UserError::new(
                    "threads",
                    format!("no thread could be started: {e}"),
                    "try again",
                )
            })
    }

    /// No further look.
    pub fn end(&self) {
        self.inner().ended = true;
        self.wake.notify_all();
    }

    fn look(&self, drive: &dyn Governed) {
        let now = Zoned::now();
        let minute = i32::from(now.hour()) * 60 + i32::from(now.minute());
        let mut seen = Seen {
            at: self.began.elapsed(),
            minute: u16::try_from(minute).unwrap_or(0),
            figures: self.meter.figures(),
            reachable: self.meter.reach().is_up(),
            hints: self.hints.look(),
        };
        #[cfg(debug_assertions)]
        {
            self.hints.play(&mut seen);
            if let Some(stay) = self.hints.stay() {
                let settings = &mut self.inner().settings;
                settings.stay = stay;
                settings.better = settings.better.min(stay);
            }
        }
        if let Some(limiter) = self.limiter.get() {
            limiter.look(&mut seen);
        }
        self.step(seen, drive);
    }

    /// What limits the use of the link goes by what is seen here, and is seen here: the link is no better
    /// than it may be used.
    pub fn limited_by(&self, limiter: Arc<Limiter>) {
        let _ = self.limiter.set(limiter);
    }

    /// One decision on what is seen, carried out.
    fn step(&self, seen: Seen, drive: &dyn Governed) {
        let _one = self.setting.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, changed) = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            if inner.ended {
                return;
            }
            if inner.memory.policy() == Policy::Rules {
                inner.rules.refresh();
            }
            let before = inner.last.as_ref().map(|d| (d.state, d.verdict.by_choice));
            let from = before.map_or_else(|| first_state(inner.memory.policy()), |b| b.0);
            let rules = inner.rules.rules.as_ref();
            let decision = inner.memory.step(&inner.settings, rules, &seen);
            if decision.changed {
                let change = StateChange {
                    at: Timestamp::now(),
                    from,
                    to: decision.state,
                    policy: inner.memory.policy(),
                    reason: decision.verdict.reason.clone(),
                };
                tracing::info!(from = %change.from, to = %change.to, reason = change.reason, "state");
                inner.history.add(change);
            }
            let left = inner
                .memory
                .until()
                .map(|(at, _)| at.saturating_sub(seen.at));
            match left {
                Some(left) => inner.asked_for.keep(inner.memory.policy(), Some(left)),
                // For good it is the mount's to say again.
                None => inner.asked_for.forget(),
            }
            let state = drive_state(&decision);
            let same = inner.last.as_ref().map(drive_state) == Some(state);
            inner.seen = seen;
            inner.last = Some(decision);
            (state, !same)
        };
        if changed {
            drive.govern(state);
        }
    }

    /// Asks for a policy, for a time or for good, and carries it out.
    ///
    /// # Errors
    /// `rules` without a file that can be understood.
    pub fn set(
        &self,
        policy: Policy,
        time: Option<Duration>,
        drive: &dyn Governed,
    ) -> Result<(), UserError> {
        let seen = {
            let mut inner = self.inner();
            if policy == Policy::Rules {
                inner.rules.must()?;
            }
            let at = self.began.elapsed().max(inner.seen.at);
            inner.memory.ask(at, policy, time);
            Seen {
                at,
                ..inner.seen.clone()
            }
        };
        self.step(seen, drive);
        Ok(())
    }

    /// Asks the share whether it is there, on a thread of its own, where nothing else tells.
    fn ask_share(&self, share: &Arc<dyn Share>) {
        let reach = self.meter.reach();
        let hints = self.hints.look();
        let due = {
            let mut inner = self.inner();
            let changed = std::mem::replace(&mut inner.changes, hints.changes) != hints.changes;
            let since = inner.asked.map(|at| at.elapsed());
            let wanted = inner
                .last
                .as_ref()
                .is_none_or(|d| !(d.state == State::Offline && d.verdict.by_choice));
            let pause = |pause| since.is_none_or(|since| since >= pause);
            let idle = reach.used.is_none_or(|used| used >= IDLE) && hints.metered != Some(true);
            let due = wanted
                && (changed || (reach.is_doubtful() && pause(DOUBT)) || (idle && pause(IDLE)));
            if due {
                inner.asked = Some(Instant::now());
            }
            due
        };
        if !due || self.asking.swap(true, Ordering::SeqCst) {
            return;
        }
        let (share, asking) = (Arc::clone(share), Arc::clone(&self.asking));
        let ask = move || {
            // The meter hears the answer.
            let _ = share.probe();
            asking.store(false, Ordering::SeqCst);
        };
        let spawned = std::thread::Builder::new()
            .name("link-probe".into())
            .spawn(ask);
        if spawned.is_err() {
            self.asking.store(false, Ordering::SeqCst);
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        self.inner().memory.policy()
    }

    /// The policy, the state, why, and the last changes.
    pub fn standing(&self) -> (Policy, State, String, Vec<StateChange>) {
        let inner = self.inner();
        let policy = inner.memory.policy();
        let (state, reason) = match &inner.last {
            Some(d) => (d.state, d.verdict.reason.clone()),
            None => (first_state(policy), String::new()),
        };
        (policy, state, reason, inner.history.last(SHOWN))
    }

    /// Whether the share answers, as was last seen.
    pub fn reachable(&self) -> bool {
        self.inner().seen.reachable
    }

    /// Why the drive is in its state.
    pub fn explain(&self) -> Explanation {
        let inner = self.inner();
        let policy = inner.memory.policy();
        let until = inner.memory.until().and_then(|(at, before)| {
            let left = at.saturating_sub(self.began.elapsed());
            let left = SignedDuration::try_from(left).ok()?;
            Some((Timestamp::now().checked_add(left).ok()?, before))
        });
        let state = first_state(policy);
        let mut explanation = Explanation {
            policy,
            state,
            until,
            wanted: state,
            reason: "nothing was decided yet".to_owned(),
            rule_line: None,
            figures: Vec::new(),
            held: None,
            changes: Vec::new(),
            rules_error: (policy == Policy::Rules)
                .then(|| inner.rules.error.clone())
                .flatten(),
        };
        if let Some(d) = &inner.last {
            explanation.state = d.state;
            explanation.wanted = d.verdict.state;
            explanation.reason = d.verdict.reason.clone();
            explanation.rule_line = d.verdict.rule;
            explanation.figures = d.verdict.facts.clone();
            explanation.changes = d.verdict.changes.clone();
            explanation.held = d.held.as_ref().map(|held| {
                let left = held.left.as_secs_f64().ceil();
                format!("{}; {left} s are left", held.why)
            });
        }
        explanation
    }

    /// What is known of the link.
    pub fn link(&self) -> LinkStatus {
        let figures = self.meter.figures();
        let hints = self.hints.look();
        let inner = self.inner();
        let measured = |f: Option<Figure>| {
            f.map(|f| Measured {
                value: f.value,
                confidence: f.confidence,
                age_seconds: f.age.as_secs_f64(),
            })
        };
        LinkStatus {
            reachable: inner.seen.reachable,
            up_bits_per_second: measured(figures.up),
            down_bits_per_second: measured(figures.down),
            round_trip_ms: measured(figures.round_trip),
            jitter_ms: measured(figures.jitter),
            loss: measured(figures.loss),
            metered: hints.metered,
            on_battery: hints.on_battery,
            networks: hints.networks,
            changes: inner.history.last(usize::MAX),
        }
    }
}

/// The state that a drive begins in; the first look may change it at once.
pub fn first_state(policy: Policy) -> State {
    match policy {
        Policy::Auto | Policy::Rules | Policy::Online => State::Online,
        Policy::Cached => State::Cached,
        Policy::Offline => State::Offline,
    }
}

/// As the drive is told.
fn drive_state(decision: &Decision) -> vfs::State {
    match decision.state {
        State::Online => vfs::State::Online,
        State::Cached => vfs::State::Cached,
        State::Offline if decision.verdict.by_choice => vfs::State::Offline,
        State::Offline => vfs::State::Cached,
    }
}

#[cfg(test)]
mod tests;
