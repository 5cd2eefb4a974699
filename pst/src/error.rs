//! The one error type of the engine.

use std::io;

/// Result of an engine call.
pub type Result<T, E = PstError> = std::result::Result<T, E>;

/// What can go wrong with a PST. Every variant says whether trying again can help
/// ([`PstError::retryable`]); the caller adds the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PstError {
    /// The storage below failed.
    #[error("reading or writing at offset {offset:#x} failed: {source}")]
    Io {
        /// File offset of the failed access, in bytes.
        offset: u64,
        /// The storage's own error.
        #[source]
        source: io::Error,
    },
    /// The file is not a PST at all.
    #[error("not a PST file: {0}")]
    NotPst(&'static str),
    /// A PST of a format that this version does not handle.
    #[error("unsupported PST format: {0}")]
    Unsupported(String),
    /// A field contradicts the format or the rest of the file.
    #[error("damaged PST: {field} at offset {offset:#x}: {detail}")]
    Corrupt {
        /// The field, in [MS-PST]'s own name.
        field: &'static str,
        /// File offset of the structure, in bytes.
        offset: u64,
        /// What was found, and what was expected.
        detail: String,
    },
    /// A bound of this engine was exceeded (depth, count, size).
    #[error("PST exceeds the limit for {what}: {found} > {limit}")]
    Limit {
        /// What is bounded.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// An object that the caller named does not exist.
    #[error("no {what} {id}")]
    NotFound {
        /// The kind of object.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The requested edit is not possible on this file.
    #[error("edit refused: {0}")]
    Refused(String),
}

impl PstError {
    /// Builds a [`PstError::Corrupt`].
    pub fn corrupt(field: &'static str, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt {
            field,
            offset,
            detail: detail.into(),
        }
    }

    /// Whether the same call may succeed later without anyone changing the file.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock))
    }
}
