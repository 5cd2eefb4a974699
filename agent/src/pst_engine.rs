//! The engine for PSTs: [`sync`] and [`pst`] behind the agent's seam.

use std::path::PathBuf;
use std::sync::Arc;

use pst::inventory::Inventory;
use pst::ndb::EditOptions;
use pst::{Pst, PstError};
use storage::{ReadAt, ScratchDir};
use sync::{Package, SyncError, decode_inventory, encode_inventory};

use crate::engine::{Applied, Engine, EngineError, InventoryAnswer};

/// Bytes of new blocks that are kept in memory; what is more waits in a temporary file.
const MEMORY: u64 = 32 << 20;

/// Understands PSTs.
#[derive(Clone)]
pub struct PstEngine {
    /// Where what is large waits, and how large a container may grow.
    pub options: EditOptions,
    /// The most bytes that a package may unpack to.
    pub max_unpacked: u64,
}

impl Default for PstEngine {
    fn default() -> Self {
        Self {
            options: EditOptions::default(),
            max_unpacked: sync::MAX_CONTENT,
        }
    }
}

impl PstEngine {
    /// An engine that puts what is large into temporary files in `dir` until it is written: memory
    /// does not follow the size of what a package adds. (The default keeps all in memory.)
    pub fn with_scratch(dir: impl Into<PathBuf>) -> Self {
        Self {
            options: EditOptions {
                scratch: Some(Arc::new(ScratchDir::new(dir))),
                memory: MEMORY,
                ..EditOptions::default()
            },
            ..Self::default()
        }
    }
}

impl Engine for PstEngine {
    fn inventory(
        &self,
        base: Arc<dyn ReadAt>,
        previous: Option<&[u8]>,
    ) -> Result<InventoryAnswer, EngineError> {
        let pst = Pst::open(base).map_err(unreadable)?;
        // Rows that do not decode are as good as none: everything is read.
        let previous = previous
            .and_then(|rows| decode_inventory(rows).ok())
            .unwrap_or_default();
        let inventory = Inventory::update(&pst, &previous).map_err(unreadable)?;
        let rows = encode_inventory(&inventory)
            .map_err(|e| EngineError::Refused(format!("the inventory does not encode: {e}")))?;
        Ok(InventoryAnswer {
            rows,
            digest: inventory.digest(),
        })
    }

    fn apply(&self, base: Arc<dyn ReadAt>, package: &[u8]) -> Result<Applied, EngineError> {
        let package = Package::decode_within(package, self.max_unpacked).map_err(refused)?;
        let applied = sync::apply_with(base, &package, &self.options).map_err(refused)?;
        let nid_map = applied
            .nid_map
            .iter()
            .map(|(from, to)| (from.0, to.0))
            .collect();
        Ok(Applied {
            write_set: applied.write_set,
            nid_map,
        })
    }
}

fn unreadable(error: PstError) -> EngineError {
    match error {
        PstError::Io { source, .. } => EngineError::Io(source),
        other => EngineError::NotAContainer(other.to_string()),
    }
}

fn refused(error: SyncError) -> EngineError {
    match error {
        SyncError::WrongBase { .. } => EngineError::WrongBase(error.to_string()),
        SyncError::Pst(PstError::Io { source, .. }) => EngineError::Io(source),
        other => EngineError::Refused(other.to_string()),
    }
}
