//! What was asked by hand, for a time (`mode --for`) or for good, kept over restarts.
//!
//! Kept is the time that is left, and when that was written: at a restart the time in between is taken
//! off. A clock that was set back takes nothing off and adds nothing, so what is left never grows: the
//! worst that a clock can do is to end it early, or to keep it for as long again as was left.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// So often what is left is written down anew.
const REFRESH: Duration = Duration::from_secs(60);
/// Bound of the file, in bytes.
const MAX: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Record<T> {
    version: u8,
    written: Timestamp,
    /// None: for good.
    left_seconds: Option<f64>,
    policy: T,
}

const VERSION: u8 = 1;

/// The file of one drive.
pub struct Asked<T> {
    path: PathBuf,
    /// What it says, when it was written, and what was left then.
    said: Option<(T, Instant, Option<Duration>)>,
    /// It could not be written; said once.
    failed: bool,
}

impl<T: Copy + PartialEq + Serialize + DeserializeOwned> Asked<T> {
    /// In the directory of `file`, under this name.
    pub fn beside(file: &Path, name: &str) -> Self {
        Self {
            path: file.with_file_name(name),
            said: None,
            failed: false,
        }
    }

    /// What was asked for before a restart and is not over, and for how long.
    pub fn load(&mut self) -> Option<(T, Option<Duration>)> {
        let found = self.left_at(Timestamp::now());
        if found.is_none() {
            self.clear();
        }
        found
    }

    fn left_at(&self, now: Timestamp) -> Option<(T, Option<Duration>)> {
        let small = fs::metadata(&self.path).is_ok_and(|m| m.len() <= MAX);
        let text = small.then(|| fs::read(&self.path).ok()).flatten()?;
        let record: Record<T> = serde_json::from_slice(&text).ok()?;
        if record.version != VERSION {
            return None;
        }
        let Some(left) = record.left_seconds else {
            return Some((record.policy, None));
        };
        let left = Duration::try_from_secs_f64(left).ok()?;
        let passed = now.duration_since(record.written);
        let left = left.checked_sub(Duration::try_from(passed).unwrap_or_default())?;
        (!left.is_zero()).then_some((record.policy, Some(left)))
    }

    /// Keeps what is in force; `left`: for so long, else for good.
    pub fn keep(&mut self, asked: T, left: Option<Duration>) {
        let now = Instant::now();
        if let Some((said, at, was)) = self.said {
            let as_said = match (was, left) {
                (Some(was), Some(left)) => {
                    let passed = now - at;
                    let differs = was.saturating_sub(passed).abs_diff(left);
                    differs < Duration::from_secs(2) && passed < REFRESH
                }
                (None, None) => true,
                _ => false,
            };
            if said == asked && as_said {
                return;
            }
        }
        self.said = Some((asked, now, left));
        if let Err(error) = self.write(asked, left)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(%error, "what was asked by hand does not outlive a restart");
        }
    }

    fn write(&self, asked: T, left: Option<Duration>) -> io::Result<()> {
        let record = Record {
            version: VERSION,
            written: Timestamp::now(),
            left_seconds: left.map(|left| left.as_secs_f64()),
            policy: asked,
        };
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        serde_json::to_writer(&mut file, &record)?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        fs::rename(&fresh, &self.path)
    }

    /// Nothing is asked for any more, if something was.
    pub fn forget(&mut self) {
        if self.said.is_some() {
            self.clear();
        }
    }

    /// Nothing is asked for any more.
    pub fn clear(&mut self) {
        self.said = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what was asked by hand is not forgotten");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::control::Policy;

    #[test]
    fn what_is_left_never_grows_whatever_the_clock_does() {
        let temp = tempfile::tempdir().unwrap();
        let mut asked = Asked::<Policy>::beside(&temp.path().join("states"), "mode-for");
        assert_eq!(asked.load(), None);
        let hours = |n: i64| Timestamp::now() + SignedDuration::from_hours(n);
        let two = Duration::from_secs(7200);
        asked.keep(Policy::Offline, Some(two));
        let (policy, left) = asked.left_at(hours(1)).expect("an hour is left");
        let left = left.expect("for a time");
        assert_eq!(policy, Policy::Offline);
        assert!(left > two / 3 && left <= two / 2, "{left:?}");
        // Set back by a year: no more than there was.
        assert_eq!(
            asked.left_at(hours(-9000)),
            Some((Policy::Offline, Some(two)))
        );
        assert_eq!(asked.left_at(hours(2)), None);
        // Over: the next start finds nothing. For good: the same.
        asked.forget();
        assert_eq!(
            Asked::<Policy>::beside(&temp.path().join("states"), "mode-for").load(),
            None
        );
        // For good: whatever the clock says.
        asked.keep(Policy::Auto, None);
        assert_eq!(asked.left_at(hours(90_000)), Some((Policy::Auto, None)));
        // A file that makes no sense, or too much of it.
        for text in ["", "{}", "[1,2]", &"x".repeat(10_000)] {
            fs::write(temp.path().join("mode-for"), text).unwrap();
            let mut asked = Asked::<Policy>::beside(&temp.path().join("states"), "mode-for");
            assert_eq!(asked.load(), None, "{text:.20}");
            assert!(!temp.path().join("mode-for").exists());
        }
    }
}
