//! What limits the use of the link: a rate that `mount` was given, rules that say when which holds, and what was
//! asked by hand, which goes first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use vfs::limit::Limit;

use super::asked::Asked;
use super::rules_file::RulesFile;
use crate::control::LimitStatus;
use crate::error::UserError;
use crate::policy::Seen;
use crate::policy::cap::Cap;

/// Sets the limit of one drive.
pub struct Limiter {
    limit: Arc<Limit>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What `mount` was given.
    own: Cap,
    rules: Option<RulesFile<Cap>>,
    /// Asked by hand, and until when.
    by_hand: Option<(Cap, Option<Instant>)>,
    kept: Asked<Cap>,
    seen: Seen,
    now: Cap,
    by: String,
}

impl Limiter {
    /// By `own`, or the rules in a file; beside `file` is kept what is asked by hand.
    ///
    /// # Errors
    /// The rules cannot be understood.
    pub fn new(own: Cap, rules: Option<PathBuf>, file: &Path) -> Result<Self, UserError> {
        let mut rules = rules.map(|path| RulesFile::new(Some(path)));
        if let Some(rules) = &mut rules {
            rules.must()?;
        }
        let mut kept = Asked::beside(file, "limit");
        let by_hand = kept
            .load()
            .map(|(cap, left)| (cap, left.map(|left| Instant::now() + left)));
        let limiter = Self {
            limit: Arc::default(),
            inner: Mutex::new(Inner {
                own,
                rules,
                by_hand,
                kept,
                seen: Seen::default(),
                now: Cap::NONE,
                by: String::new(),
            }),
        };
        limiter.inner().decide(&limiter.limit);
        Ok(limiter)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit itself, for all who use the link.
    pub fn limit(&self) -> Arc<Limit> {
        Arc::clone(&self.limit)
    }

    /// Decides by what is seen now, and makes the link look no better than it may be used.
    pub fn look(&self, seen: &mut Seen) {
        let mut inner = self.inner();
        inner.seen = seen.clone();
        inner.decide(&self.limit);
        let cap = inner.now;
        let figures = [
            (&mut seen.figures.up, cap.up),
            (&mut seen.figures.down, cap.down),
        ];
        for (figure, cap) in figures {
            if let (Some(figure), Some(cap)) = (figure, cap) {
                figure.value = figure.value.min(cap as f64);
            }
        }
    }

    /// Asks by hand, for a time or for good; `None`: for nothing any more.
    pub fn set(&self, cap: Option<Cap>, time: Option<Duration>) {
        let mut inner = self.inner();
        inner.by_hand = cap.map(|cap| (cap, time.map(|time| Instant::now() + time)));
        match cap {
            Some(cap) => inner.kept.keep(cap, time),
            None => inner.kept.clear(),
        }
        inner.decide(&self.limit);
    }

    /// The limit in force, and why.
    pub fn status(&self) -> LimitStatus {
        let inner = self.inner();
        let left = inner.by_hand.and_then(|(_, until)| until);
        let left = left.map(|until| until.saturating_duration_since(Instant::now()));
        let until = left.and_then(|left| {
            let left = SignedDuration::try_from(left).ok()?;
            Timestamp::now().checked_add(left).ok()
        });
        LimitStatus {
            up_bits_per_second: inner.now.up,
            down_bits_per_second: inner.now.down,
            by: inner.by.clone(),
            until,
            rules_error: inner.rules.as_ref().and_then(|r| r.error.clone()),
        }
    }
}

impl Inner {
    fn decide(&mut self, limit: &Limit) {
        if let Some((cap, Some(until))) = self.by_hand {
            match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => self.kept.keep(cap, Some(left)),
                _ => {
                    self.by_hand = None;
                    self.kept.clear();
                }
            }
        }
        let (cap, by) = match (&self.by_hand, &mut self.rules) {
            (Some((cap, _)), _) => (*cap, "by hand".to_owned()),
            (None, Some(file)) => {
                file.refresh();
                let found = file.rules.as_ref().and_then(|r| r.first(&self.seen).rule);
                match found {
                    Some(rule) => (rule.then, format!("line {}: {}", rule.line, rule.text)),
                    None => (self.own, "no rule holds".to_owned()),
                }
            }
            (None, None) if self.own == Cap::NONE => (Cap::NONE, String::new()),
            (None, None) => (self.own, "by mount --limit".to_owned()),
        };
        if cap != self.now {
            tracing::info!(limit = %cap, by, "limit of the link");
        }
        limit.set(cap.rates());
        self.now = cap;
        self.by = by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(minute: u16) -> Seen {
        Seen {
            minute,
            ..Seen::default()
        }
    }

    #[test]
    fn by_hand_goes_before_the_rules_and_outlives_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let (file, rules) = (temp.path().join("states"), temp.path().join("limits"));
        std::fs::write(&rules, "when time 09:00-17:00 then 500k\notherwise up 2M").unwrap();
        let open = || Limiter::new(Cap::NONE, Some(rules.clone()), &file).unwrap();
        let limiter = open();
        limiter.look(&mut seen(10 * 60));
        assert_eq!(limiter.status().down_bits_per_second, Some(500_000));
        assert_eq!(limiter.limit().rates().up, Some(62_500));
        limiter.look(&mut seen(17 * 60));
        let status = limiter.status();
        assert_eq!(
            (status.up_bits_per_second, status.down_bits_per_second),
            (Some(2_000_000), None)
        );
        assert_eq!(status.by, "line 2: otherwise up 2M");
        limiter.set("1M".parse().ok(), Some(Duration::from_secs(3600)));
        limiter.look(&mut seen(10 * 60));
        assert_eq!(limiter.status().by, "by hand");
        assert!(limiter.status().until.is_some());
        drop(limiter);
        let limiter = open();
        assert_eq!(limiter.status().up_bits_per_second, Some(1_000_000));
        // For good; then back to the rules.
        limiter.set(Some(Cap::NONE), None);
        assert_eq!(open().status().up_bits_per_second, None);
        limiter.set(None, None);
        drop(limiter);
        let limiter = open();
        limiter.look(&mut seen(10 * 60));
        assert_eq!(limiter.status().up_bits_per_second, Some(500_000));
        // Over: the rules again, without a word from anybody.
        limiter.set("1M".parse().ok(), Some(Duration::from_millis(50)));
        std::thread::sleep(Duration::from_millis(60));
        limiter.look(&mut seen(10 * 60));
        assert_eq!(limiter.status().up_bits_per_second, Some(500_000));
        // A file that no longer makes sense leaves what was in force.
        std::fs::write(&rules, "when").unwrap();
        limiter.look(&mut seen(10 * 60));
        assert_eq!(limiter.status().up_bits_per_second, Some(500_000));
        assert!(limiter.status().rules_error.is_some());
    }
}
