//! What the agent asks of the engine that understands containers.
//!
//! The agent keeps files whole and changes durable; what an object is, it does not know. This
//! seam keeps the two apart, and lets the agent be tested with containers of a few bytes.

use std::sync::Arc;

use storage::{ReadAt, WriteSet};

/// The inventory of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryAnswer {
    /// Encoded rows.
    pub rows: Vec<u8>,
    /// Digest of the inventory.
    pub digest: [u8; 32],
}

/// What applying a package comes to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The ordered writes; each cut leaves a valid container (DESIGN R8).
    pub write_set: WriteSet,
    /// Added objects that got another NID: (proposed, given).
    pub nid_map: Vec<(u32, u32)>,
}

/// Why the engine could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file is not a container, or a damaged one.
    #[error("{0}")]
    NotAContainer(String),
    /// The package is not acceptable.
    #[error("{0}")]
    Refused(String),
    /// The container is not in the state that the package was made for.
    #[error("{0}")]
    WrongBase(String),
    /// The file could not be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Understands containers. Both calls are pure functions of their arguments (DESIGN R6).
pub trait Engine: Send + Sync + 'static {
    /// Reads the inventory. `previous` holds the rows of an earlier state of the same lineage,
    /// from which unchanged objects may be taken.
    ///
    /// # Errors
    /// [`EngineError::NotAContainer`], [`EngineError::Io`].
    fn inventory(
        &self,
        base: Arc<dyn ReadAt>,
        previous: Option<&[u8]>,
    ) -> Result<InventoryAnswer, EngineError>;

    /// Works out what applying `package` to `base` writes; writes nothing itself.
    ///
    /// # Errors
    /// [`EngineError`].
    fn apply(&self, base: Arc<dyn ReadAt>, package: &[u8]) -> Result<Applied, EngineError>;
}
