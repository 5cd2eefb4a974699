//! Where a container is kept in sync: what the engine asks of a destination.

use std::collections::BTreeMap;

use pst::Nid;
use pst::inventory::Inventory;
use storage::Generation;

use crate::error::Result;

/// What the destination holds now.
#[derive(Clone, Debug)]
pub struct RemoteInventory {
    /// Its objects; BIDs are those of the destination's own file.
    pub inventory: Inventory,
    /// The exact bytes that it was read from.
    pub generation: Generation,
}

/// A package to apply, with everything that makes it happen once and only on the right base.
#[derive(Clone, Debug)]
pub struct ApplyJob<'a> {
    /// Path of the container, relative to the share, `/`-separated.
    pub container: &'a str,
    /// Sequence number from the journal; it only rises.
    pub sequence: u64,
    /// The encoded [`Package`](crate::Package).
    pub package: &'a [u8],
    /// The bytes that it was made for, as this destination last reported them.
    pub base: Generation,
    /// The inventory digest that must result if no object gets another NID.
    pub expected: [u8; 32],
}

/// What the destination re-read after it had applied a package and made it durable.
#[derive(Clone, Debug)]
pub struct ApplyOutcome {
    /// Digest of the inventory that it re-read.
    pub inventory_digest: [u8; 32],
    /// The exact bytes it holds now.
    pub generation: Generation,
    /// Added objects that got another NID: (proposed, given).
    pub nid_map: BTreeMap<Nid, Nid>,
    /// Bytes that went over the wire towards the destination, as counted by the client; 0 where
    /// there is no wire.
    pub bytes_sent: u64,
    /// This sequence had been applied before; the answer is the first one.
    pub repeated: bool,
}

/// The answer to an [`ApplyJob`].
#[derive(Clone, Debug)]
pub enum ApplyAnswer {
    /// Applied, made durable and re-read.
    Applied(ApplyOutcome),
    /// The destination holds other bytes than the job was made for; nothing was changed.
    WrongBase,
    /// Another program holds the container open, or it is locked; nothing was changed.
    Busy(String),
    /// The package is refused for what it is, and will be so again: it does not decode, does not fit,
    /// or would not lead to what it should. Nothing was changed.
    Refused(String),
    /// Something failed there that should not. Whether anything was changed is not known.
    Failed(String),
}

/// A destination. Calls block; each has a timeout of its own.
pub trait Destination: Send + Sync {
    /// A stable name for the sync database and for users.
    fn name(&self) -> &str;

    /// Reads the inventory of a container.
    ///
    /// # Errors
    /// [`SyncError::Destination`](crate::SyncError::Destination) if it cannot be reached or read.
    fn inventory(&self, container: &str) -> Result<RemoteInventory>;

    /// Applies a package; `progress` is told the bytes sent so far and in all.
    ///
    /// # Errors
    /// [`SyncError::Destination`](crate::SyncError::Destination) if it cannot be reached or
    /// fails.
    fn apply(&self, job: &ApplyJob<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<ApplyAnswer>;
}
