//! The estimate: rate, round trip, jitter and loss out of begins and ends of calls. Pure: times come
//! from the caller, as durations since any fixed moment, and equal calls give equal figures.
//!
//! A small question that had the link to itself shows the round trip, and the least of several is the
//! one with the least waiting and thinking in it. Large ones show the rate (`lane`). A call
//! that the link failed counts as lost.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use vfs::share::measured::{Ended, Payload, Use};

use super::lane::Lane;
use super::{Figure, Figures, Reach};

/// From so many bytes on a transfer shows the rate.
const LARGE: u64 = 32 << 10;
/// Up to so many bytes a question shows the round trip.
const SMALL: u64 = 1 << 10;
/// A round trip is the least of those of this time, in seconds.
const WINDOW: f64 = 8.0;
/// So many questions in a row, over so many seconds, of which each took so much longer than the least
/// before: the link has changed.
const STEP_QUESTIONS: usize = 6;
const STEP_TIME: f64 = 1.0;
const STEP: f64 = 1.4;
/// What a question and its answer carry besides their payload: headers, in bytes each.
const HEADER: f64 = 160.0;
/// Bound of the questions remembered.
const QUESTIONS: usize = 512;
/// Time after which a call counts e times less for the loss, in seconds.
const LOSS_MEMORY: f64 = 15.0;
/// Age at which half of a figure's confidence is left, in seconds.
const FADES: f64 = 60.0;
/// Without a question that waits as well, silence counts for no more than this, in seconds.
const CONFIRMS: f64 = 2.0;
/// Taken for the rate where none is known, in bytes a second.
const UNKNOWN: f64 = 125_000.0;
/// A link may be full for so long at most without a word, in seconds.
const FILLED: f64 = 15.0;
/// Bound of the calls under way that are kept.
const CALLS: usize = 4096;

/// What is known of one link.
#[derive(Clone, Debug, Default)]
pub struct Estimator {
    running: BTreeMap<u64, Running>,
    next: u64,
    /// When a call last began beside another.
    overlapped: Option<f64>,
    /// Undisturbed questions of one exchange, of several, and disturbed ones.
    clean: Questions,
    several: Questions,
    crowded: Questions,
    jitter: (f64, u32),
    up: Lane,
    down: Lane,
    /// Calls that failed, and all, each counting less with time; as of a moment.
    lost: (f64, f64, f64),
    failures: u32,
    failing_since: Option<f64>,
    failed_last: Option<f64>,
    answered: Option<f64>,
    /// When the far side was last heard of at all.
    heard: Option<f64>,
    /// Whether the share tells that.
    hears: bool,
    /// When the link was last seen dead.
    dead: Option<f64>,
    used: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    began: f64,
    with: Payload,
    how: Use,
    first: bool,
}

#[derive(Clone, Debug, Default)]
struct Questions(VecDeque<(f64, f64)>);

impl Questions {
    fn add(&mut self, now: f64, took: f64) {
        if self.0.len() >= QUESTIONS {
            self.0.pop_front();
        }
        self.0.push_back((now, took));
        while self.0.front().is_some_and(|(at, _)| now - at > WINDOW) && self.0.len() > 3 {
            self.0.pop_front();
        }
        // All of the last ones much longer than the least: that was another link.
        let before = self.0.len().saturating_sub(STEP_QUESTIONS);
        let least = |of: &mut dyn Iterator<Item = &(f64, f64)>| {
            of.map(|q| q.1).fold(f64::INFINITY, f64::min)
        };
        let (old, new) = (
            least(&mut self.0.iter().take(before)),
            least(&mut self.0.iter().skip(before)),
        );
        let begun = self.0.get(before).map_or(now, |q| q.0);
        if before > 0 && new > old * STEP && now - begun >= STEP_TIME {
            self.0.drain(..before);
        }
    }

    /// The least of the last seconds (of the last three at all, where there was nothing since), when
    /// it was last measured, and how many it is the least of.
    fn least(&self) -> Option<(f64, f64, u32)> {
        let last = self.0.back()?.0;
        let recent = self.0.iter().filter(|(at, _)| last - at <= WINDOW);
        let n = recent.clone().count();
        let least = recent.map(|q| q.1).fold(f64::INFINITY, f64::min);
        Some((least, last, u32::try_from(n).unwrap_or(u32::MAX)))
    }
}

impl Estimator {
    /// A call begins. The answer names it in [`Estimator::end`].
    pub fn begin(&mut self, now: Duration, with: Payload, how: Use) -> u64 {
        let now = now.as_secs_f64();
        let first = self.running.is_empty();
        if !first {
            self.overlapped = Some(now);
        }
        self.next += 1;
        self.used = Some(now);
        if self.running.len() < CALLS {
            let call = Running {
                began: now,
                with,
                how,
                first,
            };
            self.running.insert(self.next, call);
            if with.up >= LARGE {
                self.up.begin(now, with.up);
            }
            if with.down >= LARGE {
                self.down.begin(now, with.down);
            }
        }
        self.next
    }

    /// It ended.
    pub fn end(&mut self, now: Duration, call: u64, carried: Payload, how: Ended) {
        let now = now.as_secs_f64();
        // Before it counts as ended: by what waits the link is judged.
        if !self.reach(Duration::from_secs_f64(now)).is_up() {
            self.died(now);
        }
        let Some(was) = self.running.remove(&call) else {
            return;
        };
        self.used = Some(now);
        let took = (now - was.began).max(0.0);
        let alone = was.first && self.overlapped.is_none_or(|at| at <= was.began);
        let answered = how == Ended::Answered;
        self.count(now, !answered);
        if answered {
            self.answered = Some(now);
            (self.failures, self.failing_since) = (0, None);
        } else {
            self.failures = self.failures.saturating_add(1);
            self.failed_last = Some(now);
            self.failing_since.get_or_insert(now);
        }
        let round_trip = self.round_trip();
        let span = (was.began, now);
        // What waited through a dead link tells nothing about the rate of a living one.
        let through = self.dead.is_some_and(|at| was.began <= at);
        let alone = alone && !through;
        let some = |carried: u64| if answered && !through { carried } else { 0 };
        if was.with.up >= LARGE {
            let bytes = (was.with.up, some(carried.up));
            self.up.end(span, bytes, alone, round_trip);
        }
        if was.with.down >= LARGE {
            let bytes = (was.with.down, some(carried.down));
            self.down.end(span, bytes, alone, round_trip);
        }
        let small = carried.up + carried.down <= SMALL;
        if answered && small && !through && was.with.up.max(was.with.down) < LARGE {
            match was.how {
                Use::Exchange if alone => {
                    if let Some((_, before)) = self.clean.0.back() {
                        let (mean, n) = &mut self.jitter;
                        *n = n.saturating_add(1);
                        *mean += ((took - before).abs() - *mean) / f64::from((*n).min(16));
                    }
                    self.clean.add(now, took);
                }
                Use::Exchange => self.crowded.add(now, took),
                Use::Several if alone => self.several.add(now, took),
                Use::Several | Use::Work => {}
            }
        }
    }

    fn count(&mut self, now: f64, lost: bool) {
        let (failed, all, at) = self.lost;
        let keep = (-(now - at).max(0.0) / LOSS_MEMORY).exp();
        let one = if lost { 1.0 } else { 0.0 };
        self.lost = (failed * keep + one, all * keep + 1.0, now);
    }

    /// The best that is known of it, in seconds; 0 for nothing.
    fn round_trip(&self) -> f64 {
        self.best_question().map_or(0.0, |q| q.0)
    }

    /// A question that had the link for itself says most; one that did not is an upper bound.
    fn best_question(&self) -> Option<(f64, f64, u32)> {
        let (clean, rest) = (self.clean.least(), [&self.crowded, &self.several]);
        let bounds = rest.into_iter().filter_map(Questions::least);
        let bound = bounds.min_by(|a, b| a.0.total_cmp(&b.0));
        match (clean, bound) {
            (Some(clean), Some(bound)) if bound.0 < clean.0 && bound.1 > clean.1 - WINDOW => {
                Some((bound.0, clean.1.max(bound.1), clean.2))
            }
            // What is known is old, and what is new is no more than a bound.
            (Some(clean), Some(bound)) if bound.1 - clean.1 > 2.0 * WINDOW => Some(bound),
            (Some(clean), _) => Some(clean),
            (None, bound) => bound.map(|(least, at, n)| (least, at, n.min(2))),
        }
    }

    /// What is known now.
    #[must_use]
    pub fn figures(&self, now: Duration) -> Figures {
        let now = now.as_secs_f64();
        let round_trip = self.round_trip();
        // On a slow link the headers alone take milliseconds; those are the rate's.
        let headers = [&self.up, &self.down]
            .into_iter()
            .filter_map(|lane| lane.rate(now, round_trip))
            .map(|(rate, ..)| HEADER / rate)
            .sum::<f64>();
        let figure = |value: f64, at: f64, n: u32| {
            let age = (now - at).max(0.0);
            let n = f64::from(n);
            Figure {
                value,
                confidence: n / (n + 2.0) * (-age / FADES * std::f64::consts::LN_2).exp(),
                age: Duration::from_secs_f64(age),
            }
        };
        // A dead link has no rate: what is shown is the last one that was known, and its age. What is on
        // its way is a bound of a living one only.
        let dead = !self.reach(Duration::from_secs_f64(now)).is_up();
        let rate = |lane: &Lane, other: &Lane| {
            let (bytes, at, n) = if dead {
                lane.known()?
            } else {
                lane.rate(now, round_trip)?
            };
            let mut figure = figure(bytes * 8.0, at, n);
            if other.rose().is_some_and(|rose| rose > at) {
                // The other way the link was found much faster since: this is from another link.
                figure.confidence = 0.0;
            }
            Some(figure)
        };
        let question = self.best_question();
        let (failed, all, at) = self.lost;
        Figures {
            up: rate(&self.up, &self.down),
            down: rate(&self.down, &self.up),
            round_trip: question
                .map(|(least, at, n)| figure((least - headers).max(least / 2.0) * 1e3, at, n)),
            jitter: self
                .clean
                .least()
                .filter(|_| self.jitter.1 > 0)
                .map(|(_, at, _)| figure(self.jitter.0 * 1e3, at, self.jitter.1)),
            loss: (all > 0.0).then(|| figure(failed / all, at, all.round() as u32)),
        }
    }

    /// The far side sent something at this time, be it a part of an answer.
    pub fn heard(&mut self, at: Duration) {
        let at = at.as_secs_f64();
        self.hears = true;
        if self.heard.is_none_or(|before| before < at) {
            self.heard = Some(at);
            if self.failed_last.is_some_and(|failed| failed < at) {
                (self.failures, self.failing_since) = (0, None);
            }
        }
    }

    /// How long the link may be busy with what is under way, at the rate that is known, so that nothing
    /// else is answered meanwhile; in seconds. What comes is seen coming where the share tells.
    fn filled(&self) -> f64 {
        let takes = |lane: &Lane| {
            let rate = lane.known().map_or(UNKNOWN, |(rate, ..)| rate);
            lane.flying() as f64 / rate.max(1.0)
        };
        let down = if self.hears { 0.0 } else { takes(&self.down) };
        (takes(&self.up) + down).min(FILLED)
    }

    /// The link is dead: what begins after this is measured anew.
    fn died(&mut self, now: f64) {
        self.dead = Some(now);
        self.up.cut(now);
        self.down.cut(now);
    }

    /// Whether the far side answers.
    #[must_use]
    pub fn reach(&self, now: Duration) -> Reach {
        let now = now.as_secs_f64();
        let ago = |at: f64| Duration::from_secs_f64((now - at).max(0.0));
        // The server's own work takes what it takes.
        let asked = self.running.values().filter(|r| r.how != Use::Work);
        let oldest = |small: bool| {
            asked
                .clone()
                .filter(|r| !small || r.with.up.max(r.with.down) < LARGE)
                .map(|r| r.began)
                .fold(f64::INFINITY, f64::min)
        };
        let (any, question) = (oldest(false), oldest(true));
        let last = self.answered.into_iter().chain(self.heard);
        let since = last.fold(any, f64::max);
        let quiet = (now - since - self.filled()).max(0.0);
        // A question has waited too: one large transfer alone may hang for a reason of its own.
        let waited = (now - question).max(0.0) + CONFIRMS;
        let silent = quiet.min(if question.is_finite() {
            waited
        } else {
            CONFIRMS
        });
        Reach {
            failures: self.failures,
            failing_for: self.failing_since.map(ago),
            silent_for: any.is_finite().then(|| Duration::from_secs_f64(silent)),
            answered: self.answered.map(ago),
            used: if self.running.is_empty() {
                self.used.map(ago)
            } else {
                Some(Duration::ZERO)
            },
        }
    }
}
