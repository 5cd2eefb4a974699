//! What a user is told when something fails: one clear sentence, and the next step.
//!
//! Libraries have typed errors; the binary turns each into a [`UserError`]. It travels over the
//! control socket unchanged, so a failure in the daemon reads the same as one in the command.
//!
//! Where it goes: always to standard error, as its last line or lines. Without `--json`:
//!
//! ```text
//! error: the share /mnt/mail does not exist
//!  next: mount the share there, or name another directory with --share
//! ```
//!
//! With `--json` as one line: `{"error":{"code":…,"message":…,"next":…,"exit":…}}`. Standard output
//! holds results only, so a program that reads it never takes an error for an object.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::exit::ExitStatus;

/// Result of a command: how the process ends, or what to tell the user.
pub type Outcome = Result<ExitStatus, UserError>;

/// A failure as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserError {
    /// Stable name of the failure for programs, in kebab case (`share-missing`).
    pub code: String,
    /// One sentence that says what is wrong, naming the file or address. No full stop.
    pub message: String,
    /// What to do next, as an imperative. No full stop.
    pub next: String,
    /// How the process ends.
    pub exit: ExitStatus,
}

impl UserError {
    /// Code of the error that is not printed: the reader of our output went away.
    pub const OUTPUT_CLOSED: &'static str = "output-closed";

    /// A failure that ends with [`ExitStatus::Error`].
    pub fn new(
        code: impl Into<String>,
        message: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            next: next.into(),
            exit: ExitStatus::Error,
        }
    }

    /// The same with another exit status.
    #[must_use]
    pub fn with_exit(mut self, exit: ExitStatus) -> Self {
        self.exit = exit;
        self
    }

    /// A feature that the interface knows and this version lacks; `instead` says what to use.
    pub fn not_in_this_version(what: &str, instead: impl Into<String>) -> Self {
        Self::new(
            "not-in-this-version",
            format!("{what} is not in this version"),
            instead,
        )
    }

    /// An operation on a file or directory that failed: `doing` as in "open the log file".
    #[must_use]
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        let (code, next) = match error.kind() {
            io::ErrorKind::NotFound => ("not-found", "check the path".to_owned()),
            io::ErrorKind::PermissionDenied => (
                "no-permission",
                "check the owner and mode, or run as the user that owns it".to_owned(),
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                "disk-full",
                "free space there, then run the command again".to_owned(),
            ),
            _ => (
                "io",
                "check the disk or the link, then run the command again".to_owned(),
            ),
        };
        Self::new(
            code,
            format!("cannot {doing} {}: {}", path.display(), plain(error)),
            next,
        )
    }

    /// A failed write to our own standard output. A closed pipe is no fault worth a message.
    #[must_use]
    pub fn output(error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OUTPUT_CLOSED,
            _ => "output",
        };
        Self::new(
            code,
            format!("cannot write the output: {}", plain(error)),
            "check where it is redirected to",
        )
    }
}

/// An I/O error in words, without Rust's "(os error N)".
#[must_use]
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text.get(..at).unwrap_or(&text).to_lowercase(),
        None => text,
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.next)
    }
}

impl std::error::Error for UserError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_read_as_words() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(plain(&error), "no such file or directory");
        let user = UserError::file("open", Path::new("/x"), &error);
        assert_eq!(user.message, "cannot open /x: no such file or directory");
        assert_eq!(user.code, "not-found");
    }

    #[test]
    fn travels_as_json() {
        let error = UserError::new("a", "b", "c").with_exit(ExitStatus::Offline);
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"code":"a","message":"b","next":"c","exit":"offline"}"#
        );
        assert_eq!(serde_json::from_str::<UserError>(&text).unwrap(), error);
    }
}
