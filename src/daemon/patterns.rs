//! Which files of a drive are containers and which are kept whole, kept with its state: what was a container
//! with changes that wait must not be taken for an opaque file at the next mount.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::UserError;

/// Glob patterns, as `mount` was given them last; `None`: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patterns {
    /// Containers.
    #[serde(default)]
    pub monitor: Option<Vec<String>>,
    /// Files kept whole.
    #[serde(default)]
    pub pin: Option<Vec<String>>,
}

const FILE: &str = "patterns.json";

impl Patterns {
    /// What the drive with this state directory uses; the default where nothing was ever given.
    ///
    /// # Errors
    /// What was given cannot be read: guessing would take containers for opaque files.
    pub fn read(state_dir: &Path) -> Result<Self, UserError> {
        let at = state_dir.join(FILE);
        let failed = |e: io::Error| UserError::file("read the drive's patterns in", &at, &e);
        match fs::read(&at) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(failed(e)),
        }
    }

    /// These patterns where they are given, else those of before; kept for the next time.
    ///
    /// # Errors
    /// They cannot be kept.
    pub fn settle(self, state_dir: &Path) -> Result<Self, UserError> {
        let before = Self::read(state_dir)?;
        let now = Self {
            monitor: self.monitor.or(before.monitor.clone()),
            pin: self.pin.or(before.pin.clone()),
        };
        if now != before {
            now.write(state_dir).map_err(|e| {
                UserError::file("keep the drive's patterns in", &state_dir.join(FILE), &e)
            })?;
        }
        Ok(now)
    }

    fn write(&self, state_dir: &Path) -> io::Result<()> {
        let (at, fresh) = (state_dir.join(FILE), state_dir.join("patterns.new"));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &at)?;
        fs::File::open(state_dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_as_it_was() {
        let temp = tempfile::tempdir().unwrap();
        let given = |monitor: Option<&str>, pin: Option<&str>| Patterns {
            monitor: monitor.map(|p| vec![p.to_owned()]),
            pin: pin.map(|p| vec![p.to_owned()]),
        };
        let settle = |p: Patterns| p.settle(temp.path()).unwrap();
        assert_eq!(settle(given(None, None)), Patterns::default());
        assert_eq!(settle(given(Some("*.a"), None)), given(Some("*.a"), None));
        assert_eq!(
            settle(given(None, Some("*.b"))),
            given(Some("*.a"), Some("*.b"))
        );
        assert_eq!(settle(given(None, None)), given(Some("*.a"), Some("*.b")));
        assert_eq!(
            settle(given(Some("*.c"), None)),
            given(Some("*.c"), Some("*.b"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_the_default() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(FILE), b"{\"monitor\":[\"*.a\"").unwrap();
        assert!(Patterns::read(temp.path()).is_err());
        assert!(Patterns::default().settle(temp.path()).is_err());
    }
}
