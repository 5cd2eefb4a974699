//! Deciding whether a moment in a file's journal is consistent (DESIGN 6, "Epoch").
//!
//! The drive proposes moments; what a container is and when it is whole, only the injected
//! validator knows.

use storage::{RangeSet, ReadAt};

/// A validator's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The file is a whole, consistent container.
    Consistent,
    /// The writer is in the middle of something (or the file is damaged): try a later moment.
    Wait(String),
}

/// Looks into a container.
pub trait EpochValidator: Send + Sync {
    /// Checks the frozen `file`; `written` says which bytes changed since the last accepted mark,
    /// so that only what is reachable through them needs to be looked at.
    fn check(&self, file: &dyn ReadAt, written: &RangeSet) -> Verdict;
}
