//! What the agent asks of the engine, answered for PST files by the sync engine.

use std::sync::Arc;

use agent::{Applied, Engine, EngineError, InventoryAnswer};
use pst::inventory::Inventory;
use pst::{Pst, PstError};
use storage::ReadAt;
use sync::{Package, SyncError, decode_inventory, encode_inventory};

/// Understands PST files.
pub struct PstEngine;

impl Engine for PstEngine {
    fn inventory(
        &self,
        base: Arc<dyn ReadAt>,
        previous: Option<&[u8]>,
    ) -> Result<InventoryAnswer, EngineError> {
        // Rows of an earlier version that cannot be read are only rows that must be read anew.
        let previous = previous
            .and_then(|rows| decode_inventory(rows).ok())
            .unwrap_or_default();
        let pst = Pst::open(base).map_err(container)?;
        let inventory = Inventory::update(&pst, &previous).map_err(container)?;
        let rows = encode_inventory(&inventory)
            .map_err(|e| EngineError::NotAContainer(format!("its inventory: {e}")))?;
        Ok(InventoryAnswer {
            rows,
            digest: inventory.digest(),
        })
    }

    fn apply(&self, base: Arc<dyn ReadAt>, package: &[u8]) -> Result<Applied, EngineError> {
        let package = Package::decode(package).map_err(refused)?;
        let applied = sync::apply(base, &package).map_err(refused)?;
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

fn container(error: PstError) -> EngineError {
    match error {
        PstError::Io { source, .. } => EngineError::Io(source),
        other => EngineError::NotAContainer(other.to_string()),
    }
}

fn refused(error: SyncError) -> EngineError {
    match error {
        SyncError::Pst(error) => container(error),
        SyncError::WrongBase { .. } => EngineError::WrongBase(error.to_string()),
        other => EngineError::Refused(other.to_string()),
    }
}
