//! The one error type of the sync engine.

use pst::PstError;

/// Result of a sync call.
pub type Result<T, E = SyncError> = std::result::Result<T, E>;

/// What can stop a sync. [`SyncError::retryable`] says whether the same call may succeed later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// A container could not be read or written by the engine.
    #[error(transparent)]
    Pst(#[from] PstError),
    /// A change list or carrier from outside is not acceptable.
    #[error("change list refused: {field}: {detail}")]
    Package {
        /// The field at fault.
        field: &'static str,
        /// What was found and what was expected.
        detail: String,
    },
    /// The target is not in the state that the change list was made for.
    #[error("the target is not the expected base: {what} {nid}: {detail}")]
    WrongBase {
        /// The kind of object.
        what: &'static str,
        /// Its NID on the target.
        nid: pst::Nid,
        /// What differs.
        detail: &'static str,
    },
    /// More deletes than `max_delete` allows (DESIGN R3).
    #[error(
        "{deletes} of {objects} objects would be deleted at the destination; \
         nothing was sent (run `pstsyncd sync now --allow-deletes` if that is meant)"
    )]
    TooManyDeletes {
        /// Deletes in the change list.
        deletes: usize,
        /// Objects at the destination before it.
        objects: usize,
    },
    /// The far side answered a digest that is not the expected one (DESIGN R5).
    #[error("the destination holds something else than was sent; it is not shown as synced")]
    NotVerified,
    /// The sync database could not be read or written.
    #[error("sync database: {0}")]
    Database(String),
    /// The destination refused or could not be reached.
    #[error("{message}")]
    Destination {
        /// One sentence for the user.
        message: String,
        /// The same call may succeed later.
        retry: bool,
        /// Nothing answered: the link or the server is down.
        offline: bool,
    },
}

impl SyncError {
    /// Whether the same call may succeed later without anyone changing anything here.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Pst(e) => e.retryable(),
            Self::Destination { retry, .. } => *retry,
            _ => false,
        }
    }

    pub(crate) fn package(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Package {
            field,
            detail: detail.into(),
        }
    }
}
