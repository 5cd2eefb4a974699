//! The governor of a drive: looks twice a second, decides by the policy, sets the drive's state, and
//! remembers why.
//!
//! What is decided is `crate::policy`'s; here are the clock, the rules file, the questions to a share
//! that is quiet or in doubt, and the history, which outlives the daemon. A drive that is offline for
//! want of a link is told "cached": it then tries the share whenever it must, fails fast, and syncs the
//! moment the link is back; offline as a wish is offline.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp, Zoned};
use vfs::Share;

use super::asked::Asked;
use super::history::History;
use crate::control::{Explanation, LinkStatus, Measured, Policy, State, StateChange};
use crate::error::UserError;
use crate::link::{Figure, LinkMeter, NetworkHints};
use crate::policy::Seen;
use crate::policy::engine::{Decision, Memory, Settings};
use crate::policy::rules::{Rules, parse};

/// How often is looked.
const TICK: Duration = Duration::from_millis(500);
/// A link that nobody uses is asked so often whether it is there, and never when it is metered.
const IDLE: Duration = Duration::from_secs(30);
/// One that failed is asked again after this long.
const DOUBT: Duration = Duration::from_secs(1);
/// Bound of a rules file, in bytes.
const MAX_RULES: u64 = 64 << 10;
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
}

struct Inner {
    settings: Settings,
    memory: Memory,
    rules: RulesFile,
    history: History,
    asked_for: Asked,
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
        let mut asked_for = Asked::beside(history);
        if let Some((timed, left)) = asked_for.load() {
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
        #[cfg_attr(not(debug_assertions), expect(unused_mut))]
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
        self.step(seen, drive);
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
            inner.asked_for.keep(inner.memory.policy(), left);
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

/// The user's rules, read anew when the file changes. A file that cannot be understood leaves the rules
/// from before in force.
struct RulesFile {
    path: Option<PathBuf>,
    stamp: Option<(SystemTime, u64)>,
    rules: Option<Rules>,
    error: Option<String>,
}

impl RulesFile {
    fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            stamp: None,
            rules: None,
            error: None,
        }
    }

    /// Reads the file, which must be there and be right.
    fn must(&mut self) -> Result<(), UserError> {
        self.stamp = None;
        self.refresh();
        match (&self.path, &self.error) {
            (None, _) => Err(UserError::new(
                "no-rules",
                "the policy `rules` needs a file with rules",
                "name it with mount --rules FILE, or use `auto`",
            )),
            (Some(_), Some(error)) => Err(UserError::new(
                "bad-rules",
                error.clone(),
                "mend the rules (docs/RULES.md says how they are written), or use `auto`",
            )),
            (Some(_), None) => Ok(()),
        }
    }

    fn refresh(&mut self) {
        let Some(path) = &self.path else { return };
        let read = fs::metadata(path).and_then(|meta| {
            let stamp = (meta.modified()?, meta.len());
            if Some(stamp) == self.stamp {
                return Ok(None);
            }
            if meta.len() > MAX_RULES {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            Ok(Some((stamp, fs::read_to_string(path)?)))
        });
        let error = match read {
            Ok(None) => return,
            Ok(Some((stamp, text))) => {
                self.stamp = Some(stamp);
                match parse(&text) {
                    Ok(rules) => {
                        self.rules = Some(rules);
                        self.error = None;
                        return;
                    }
                    Err(e) => format!("{}: {e}", path.display()),
                }
            }
            Err(e) => format!(
                "{} cannot be read: {}",
                path.display(),
                crate::error::plain(&e)
            ),
        };
        if self.error.as_ref() != Some(&error) {
            tracing::warn!(error, "the rules from before hold on");
        }
        self.error = Some(error);
    }
}

#[cfg(test)]
mod tests;
