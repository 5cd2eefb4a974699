//! A file of rules that is followed while it changes.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::UserError;
use crate::policy::rules::{Outcome, Rules, Then, parse};

/// Bound of a rules file, in bytes.
const MAX_RULES: u64 = 64 << 10;

/// The user's rules, read anew when the file changes. A file that cannot be understood leaves the rules
/// from before in force.
pub struct RulesFile<T = Then> {
    path: Option<PathBuf>,
    stamp: Option<(SystemTime, u64)>,
    /// Those in force.
    pub rules: Option<Rules<T>>,
    /// What is wrong with the file, if something is.
    pub error: Option<String>,
}

impl<T: Outcome> RulesFile<T> {
    /// Nothing is read yet.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            stamp: None,
            rules: None,
            error: None,
        }
    }

    /// Reads the file, which must be there and be right.
    ///
    /// # Errors
    /// It is not.
    pub fn must(&mut self) -> Result<(), UserError> {
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

    /// Reads it anew if it changed.
    pub fn refresh(&mut self) {
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
