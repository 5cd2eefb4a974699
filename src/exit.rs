//! The exit codes of `pstsyncd`: one enum, so that scripts can rely on them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | synced: done, and nothing waits |
//! | 2 | pending: changes wait to be synced |
//! | 3 | conflicts: both sides changed, and a user has to look |
//! | 4 | offline: no link to the share, or no daemon that could be asked |
//! | 5 | error: the command was not carried out (usage errors too) |
//!
//! 1 is left free: a panic of the runtime or a shell's own failure is never taken for an answer.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// What a command ends with. Ordered: of several files the worst counts.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// Done, and nothing waits.
    #[default]
    Synced,
    /// Changes wait to be synced.
    Pending,
    /// No link to the share, or no daemon to ask.
    Offline,
    /// Both sides changed; both versions are kept, and a user has to look.
    Conflicts,
    /// The command was not carried out.
    Error,
}

impl ExitStatus {
    /// The process exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Synced => 0,
            Self::Pending => 2,
            Self::Conflicts => 3,
            Self::Offline => 4,
            Self::Error => 5,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let all = [
            (ExitStatus::Synced, 0),
            (ExitStatus::Pending, 2),
            (ExitStatus::Conflicts, 3),
            (ExitStatus::Offline, 4),
            (ExitStatus::Error, 5),
        ];
        for (status, code) in all {
            assert_eq!(status.code(), code, "{status:?}");
        }
    }

    #[test]
    fn the_worst_of_several_counts() {
        assert_eq!(
            ExitStatus::Pending.max(ExitStatus::Conflicts),
            ExitStatus::Conflicts
        );
        assert_eq!(
            ExitStatus::Offline.max(ExitStatus::Conflicts),
            ExitStatus::Conflicts
        );
        assert_eq!(
            ExitStatus::Synced.max(ExitStatus::Offline),
            ExitStatus::Offline
        );
    }
}
