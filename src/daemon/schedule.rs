//! When what waits is synced by itself: a plan without a clock, a thread or a drive of its own.
//!
//! A file is tried when it rests: its programs have closed it or have not written for a while. When
//! the share comes back everything is tried anew, after a moment, for links flap. What fails is tried
//! again later and later, each file by itself, so that one bad file never stops the others (R11).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After the share has come back, or a failed hand was lent: no try sooner.
pub const SETTLE: Duration = Duration::from_secs(2);
/// Between two syncs of one file, where it waits again at once.
const SPACING: Duration = Duration::from_secs(10);
/// A file whose programs never rest is tried after this long all the same: the engine looks for a
/// consistent moment itself.
const LONGEST: Duration = Duration::from_secs(300);
/// The first pause after a failure; it doubles with every other.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// And grows no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a sync is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// The share answers again, or may be asked again.
    LinkReturned,
    /// The file rests after writes, or was closed.
    Quiet,
    /// Someone synced by hand; this is what that left behind.
    Manual,
}

/// What the plan goes by, as of now.
pub struct Seen {
    /// The share may be used: the drive is not offline by hand.
    pub allowed: bool,
    /// The share answers. Asked only when something waits.
    pub reachable: bool,
    /// What waits, in the order in which it is to be tried, and whether it rests.
    pub waiting: Vec<(String, bool)>,
}

/// What the plan waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// For nothing: everything is synced.
    Nothing,
    /// For the user, who took the drive offline.
    Offline,
    /// For the share to answer.
    Share,
    /// For programs to rest.
    Rest,
    /// For the time of the next try.
    Until(Instant),
}

/// The plan.
#[derive(Default)]
pub struct Schedule {
    link_up: bool,
    files: HashMap<String, Tries>,
    wait: Option<Wait>,
}

struct Tries {
    trigger: Trigger,
    /// Since when it waits, or was last tried.
    since: Instant,
    /// No sooner than then.
    next: Instant,
    failures: u32,
    why: Option<String>,
}

impl Schedule {
    /// Which file is to be synced now, and why; `None`: not yet.
    pub fn look(&mut self, now: Instant, seen: &Seen) -> Option<(String, Trigger)> {
        self.files
            .retain(|path, _| seen.waiting.iter().any(|(p, _)| p == path));
        for (path, _) in &seen.waiting {
            self.files.entry(path.clone()).or_insert(Tries {
                trigger: Trigger::Quiet,
                since: now,
                next: now,
                failures: 0,
                why: None,
            });
        }
        let blocked = if seen.waiting.is_empty() {
            Some(Wait::Nothing)
        } else if !seen.allowed {
            Some(Wait::Offline)
        } else if !seen.reachable {
            Some(Wait::Share)
        } else {
            None
        };
        if let Some(wait) = blocked {
            // Where nothing waits nobody was asked: what was known stays.
            self.link_up &= wait == Wait::Nothing;
            self.wait = Some(wait);
            return None;
        }
        if !self.link_up {
            self.link_up = true;
            self.pull(Trigger::LinkReturned, now);
        }
        let mut wait = Wait::Rest;
        for (path, rests) in &seen.waiting {
            let Some(tries) = self.files.get(path) else {
                continue;
            };
            if !rests && now < tries.since + LONGEST {
                continue;
            }
            if now >= tries.next {
                self.wait = Some(Wait::Until(now));
                return Some((path.clone(), tries.trigger));
            }
            wait = match wait {
                Wait::Until(at) => Wait::Until(at.min(tries.next)),
                _ => Wait::Until(tries.next),
            };
        }
        self.wait = Some(wait);
        None
    }

    /// A try has ended: with success, or not and why.
    pub fn tried(&mut self, path: &str, now: Instant, result: Result<(), String>) {
        let Some(tries) = self.files.get_mut(path) else {
            return;
        };
        tries.since = now;
        tries.trigger = Trigger::Quiet;
        match result {
            Ok(()) => {
                tries.failures = 0;
                tries.why = None;
                tries.next = now + SPACING;
            }
            Err(why) => {
                tries.next = now + pause(tries.failures);
                tries.failures += 1;
                tries.why = Some(why);
            }
        }
    }

    /// Everything that waits is tried anew, after a moment.
    pub fn pull(&mut self, trigger: Trigger, now: Instant) {
        for tries in self.files.values_mut() {
            tries.failures = 0;
            tries.trigger = trigger;
            tries.next = now + SETTLE;
        }
    }

    /// What it waits for; `None` before the first look.
    pub fn wait(&self) -> Option<&Wait> {
        self.wait.as_ref()
    }

    /// Of the files that failed the last time: the one that was tried last, and why.
    pub fn failure(&self) -> Option<(&str, &str)> {
        let failed = self
            .files
            .iter()
            .filter_map(|(path, t)| Some((t.since, path, t.why.as_ref()?)));
        let (_, path, why) = failed.max_by_key(|(since, path, _)| (*since, *path))?;
        Some((path, why))
    }
}

/// How long to wait after so many failures before this one.
fn pause(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reachable: bool, waiting: &[(&str, bool)]) -> Seen {
        Seen {
            allowed: true,
            reachable,
            waiting: waiting.iter().map(|(p, r)| ((*p).to_owned(), *r)).collect(),
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_rests_is_synced_once_the_link_has_been_back_for_a_moment() {
        let (mut s, t) = (Schedule::default(), Instant::now());
        assert_eq!(s.look(t, &seen(false, &[("a", true)])), None);
        assert_eq!(s.wait(), Some(&Wait::Share));
        let back = t + secs(100);
        assert_eq!(s.look(back, &seen(true, &[("a", true)])), None);
        // It flaps: the moment begins anew.
        assert_eq!(s.look(back + secs(1), &seen(false, &[("a", true)])), None);
        assert_eq!(s.look(back + secs(2), &seen(true, &[("a", true)])), None);
        assert_eq!(s.look(back + secs(3), &seen(true, &[("a", true)])), None);
        assert_eq!(s.wait(), Some(&Wait::Until(back + secs(2) + SETTLE)));
        assert_eq!(
            s.look(back + secs(4), &seen(true, &[("a", true)])),
            Some(("a".into(), Trigger::LinkReturned))
        );
        s.tried("a", back + secs(5), Ok(()));
        assert_eq!(s.look(back + secs(5), &seen(true, &[])), None);
        assert_eq!(s.wait(), Some(&Wait::Nothing));
        // Written again, then left alone.
        assert_eq!(s.look(back + secs(6), &seen(true, &[("a", false)])), None);
        assert_eq!(s.wait(), Some(&Wait::Rest));
        assert_eq!(
            s.look(back + secs(7), &seen(true, &[("a", true)])),
            Some(("a".into(), Trigger::Quiet))
        );
    }

    #[test]
    fn a_file_that_fails_waits_longer_each_time_and_holds_up_no_other() {
        let (mut s, t) = (Schedule::default(), Instant::now());
        let both = seen(true, &[("bad", true), ("good", true)]);
        s.look(t, &both);
        let mut now = t + SETTLE;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(s.look(now, &both).map(|d| d.0).as_deref(), Some("bad"));
            s.tried("bad", now, Err("no".into()));
            // Now it is the other's turn, if that is due.
            if let Some((path, _)) = s.look(now, &both) {
                assert_eq!(path, "good");
                s.tried("good", now, Ok(()));
            }
            assert_eq!(s.failure(), Some(("bad", "no")));
            let alone = seen(true, &[("bad", true)]);
            assert_eq!(s.look(now, &alone), None);
            let Some(Wait::Until(at)) = s.wait().cloned() else {
                panic!("{:?}", s.wait())
            };
            pauses.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        // The link goes and comes: at once, and from the first pause on.
        let alone = |up| seen(up, &[("bad", true)]);
        s.tried("bad", now, Err("no".into()));
        assert_eq!(s.look(now, &alone(false)), None);
        assert_eq!(s.look(now, &alone(true)), None);
        assert!(s.look(now + SETTLE, &alone(true)).is_some());
        s.tried("bad", now, Err("no".into()));
        assert!(s.look(now + secs(4), &alone(true)).is_none());
        assert!(s.look(now + secs(5), &alone(true)).is_some());
    }

    #[test]
    fn a_program_that_never_rests_is_not_waited_for_without_end() {
        let (mut s, t) = (Schedule::default(), Instant::now());
        let busy = seen(true, &[("busy", false)]);
        assert_eq!(s.look(t, &busy), None);
        assert_eq!(s.look(t + LONGEST - secs(1), &busy), None);
        assert!(s.look(t + LONGEST, &busy).is_some());
        s.tried("busy", t + LONGEST, Ok(()));
        assert_eq!(s.look(t + LONGEST + secs(60), &busy), None);
    }

    #[test]
    fn offline_by_hand_nothing_is_tried_and_allowed_again_everything_is() {
        let (mut s, t) = (Schedule::default(), Instant::now());
        let up = seen(true, &[("a", true)]);
        s.look(t, &up);
        s.look(t + SETTLE, &up);
        s.tried("a", t + SETTLE, Err("no".into()));
        let off = Seen {
            allowed: false,
            ..seen(true, &[("a", true)])
        };
        assert_eq!(s.look(t + secs(1000), &off), None);
        assert_eq!(s.wait(), Some(&Wait::Offline));
        assert_eq!(s.look(t + secs(1001), &up), None);
        let due = s.look(t + secs(1001) + SETTLE, &up);
        assert_eq!(due, Some(("a".into(), Trigger::LinkReturned)));
        s.pull(Trigger::Manual, t + secs(2000));
        assert_eq!(s.look(t + secs(2000), &up), None);
        let due = s.look(t + secs(2000) + SETTLE, &up);
        assert_eq!(due, Some(("a".into(), Trigger::Manual)));
    }
}
