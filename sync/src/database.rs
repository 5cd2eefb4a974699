//! The sync database: the inventory of each (container, destination) as of its last sync.
//!
//! It holds only what can be rebuilt (DESIGN 7): losing it costs one inventory from the
//! destination and holds deletes back, never data.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use pst::Nid;
use pst::inventory::{Inventory, Row};
use storage::Generation;

use crate::error::{Result, SyncError};
use crate::kv::{KvStore, Write};
use crate::rows::RowRecord;

/// What is known of one (container, destination) beside its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The lineage of the local container that the rows' BIDs belong to.
    pub lineage: u64,
    /// [`Ndb::next_bid`](pst::ndb::Ndb::next_bid) of the local container then: a lower one now means
    /// another lineage.
    pub bid_next: u64,
    /// The local epoch that was synced.
    pub epoch: u64,
    /// The destination's bytes as it last reported them.
    pub generation: Generation,
    /// Sequence of the last applied change list.
    pub sequence: u64,
    /// When the destination's answer was verified, milliseconds since 1970 UTC.
    pub verified_at_ms: u64,
}

#[derive(Encode, Decode)]
struct HeadRecord {
    lineage: u64,
    bid_next: u64,
    epoch: u64,
    len: u64,
    root: [u8; 32],
    sequence: u64,
    verified_at_ms: u64,
}

#[derive(Encode, Decode)]
struct SyncedRecord {
    ours: bool,
    remote_nid: u32,
    row: RowRecord,
    drift: Option<DriftRecord>,
}

#[derive(Encode, Decode)]
struct DriftRecord {
    parent: u32,
    fingerprint: [u8; 32],
}

/// The last synced state of one container at one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Everything beside the rows.
    pub head: Head,
    /// The objects by their local NID.
    pub rows: BTreeMap<Nid, SyncedRow>,
}

/// One object as of the last sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncedRow {
    /// Whether it was synced from here. If not it is drift: someone else put it there; it is
    /// known under a NID that stands for it here, and never deleted from here.
    pub ours: bool,
    /// Its NID at the destination.
    pub remote_nid: Nid,
    /// Its inventory row in local NIDs (and, where it is ours, local BIDs).
    pub row: Row,
    /// How someone else changed it there, where that was left alone; `row` is then as it was here.
    pub drift: Option<Drift>,
}

/// What is different at the destination about an object of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The folder that holds it there, as a local NID.
    pub parent: Nid,
    /// Its content there.
    pub fingerprint: [u8; 32],
}

impl SyncedRow {
    /// The row as the destination has it, in local NIDs.
    fn there(&self) -> Row {
        let mut row = self.row.clone();
        if let Some(drift) = self.drift {
            row.parent = drift.parent;
            row.fingerprint = drift.fingerprint;
        }
        row
    }
}

impl Synced {
    /// The local inventory as of the last sync.
    #[must_use]
    pub fn ours(&self) -> Inventory {
        let rows = self.rows.iter().filter(|(_, r)| r.ours);
        Inventory {
            rows: rows.map(|(nid, r)| (*nid, r.row.clone())).collect(),
        }
    }

    /// Everything that the destination held after the last sync, in local NIDs.
    #[must_use]
    pub fn there(&self) -> Inventory {
        Inventory {
            rows: self.rows.iter().map(|(nid, r)| (*nid, r.there())).collect(),
        }
    }

    /// Local NID to remote NID, where they differ.
    #[must_use]
    pub fn remapped(&self) -> BTreeMap<Nid, Nid> {
        self.rows
            .iter()
            .filter(|(nid, r)| **nid != r.remote_nid)
            .map(|(nid, r)| (*nid, r.remote_nid))
            .collect()
    }
}

/// The sync database over a key-value store.
#[derive(Debug)]
pub struct SyncDatabase {
    store: KvStore,
}

// 0 and 1 were the keys of records without drift.
const HEAD: u8 = 2;
const ROW: u8 = 3;

impl SyncDatabase {
    /// Stands on an open store.
    #[must_use]
    pub const fn new(store: KvStore) -> Self {
        Self { store }
    }

    /// What is known beside the rows; `None` if nothing was synced yet, or it was lost.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails.
    pub fn head(&self, container: &str, destination: &str) -> Result<Option<Head>> {
        let key = key(&prefix(container, destination), HEAD, 0);
        let record = self.store.get::<HeadRecord>(&key).map_err(database)?;
        Ok(record.map(|head| Head {
            lineage: head.lineage,
            bid_next: head.bid_next,
            epoch: head.epoch,
            generation: Generation {
                len: head.len,
                root: head.root,
            },
            sequence: head.sequence,
            verified_at_ms: head.verified_at_ms,
        }))
    }

    /// The last synced state; `None` if there is none, or it was lost.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails. A damaged row makes the whole state unknown,
    /// which is `None`: it can be rebuilt, and a row less must never look like a delete (R3).
    pub fn load(&self, container: &str, destination: &str) -> Result<Option<Synced>> {
        let prefix = prefix(container, destination);
        let Some(head) = self.head(container, destination)? else {
            return Ok(None);
        };
        let mut rows = BTreeMap::new();
        let mut row_prefix = prefix.to_vec();
        row_prefix.push(ROW);
        for item in self.store.scan::<SyncedRecord>(&row_prefix) {
            let (key, record) = match item {
                Ok(item) => item,
                Err(error) => {
                    tracing::warn!(%error, container, "the sync database lost a row; starting over");
                    return Ok(None);
                }
            };
            let nid = Nid(record.row.nid);
            if !key.ends_with(&nid.0.to_be_bytes()) {
                return Ok(None);
            }
            let remote_nid = Nid(record.remote_nid);
            rows.insert(
                nid,
                SyncedRow {
                    ours: record.ours,
                    remote_nid,
                    row: record.row.into(),
                    drift: record.drift.map(|d| Drift {
                        parent: Nid(d.parent),
                        fingerprint: d.fingerprint,
                    }),
                },
            );
        }
        Ok(Some(Synced { head, rows }))
    }

    /// Moves the state on in one atomic, durable step; only rows that differ are written.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails; the state is then the one before.
    pub fn store(
        &self,
        container: &str,
        destination: &str,
        before: Option<&Synced>,
        after: &Synced,
    ) -> Result<()> {
        let prefix = prefix(container, destination);
        let mut writes = Vec::new();
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.rows);
        for nid in old.keys().filter(|nid| !after.rows.contains_key(nid)) {
            writes.push(Write::delete(key(&prefix, ROW, nid.0)));
        }
        for (nid, synced) in &after.rows {
            if old.get(nid) == Some(synced) {
                continue;
            }
            let record = SyncedRecord {
                ours: synced.ours,
                remote_nid: synced.remote_nid.0,
                row: RowRecord::from(&synced.row),
                drift: synced.drift.map(|d| DriftRecord {
                    parent: d.parent.0,
                    fingerprint: d.fingerprint,
                }),
            };
            writes.push(Write::put(key(&prefix, ROW, nid.0), &record).map_err(database)?);
        }
        let head = &after.head;
        let record = HeadRecord {
            lineage: head.lineage,
            bid_next: head.bid_next,
            epoch: head.epoch,
            len: head.generation.len,
            root: head.generation.root,
            sequence: head.sequence,
            verified_at_ms: head.verified_at_ms,
        };
        writes.push(Write::put(key(&prefix, HEAD, 0), &record).map_err(database)?);
        self.store.commit(writes).map_err(database)
    }
}

/// Container and destination names are of any length: their hash is the key's prefix.
fn prefix(container: &str, destination: &str) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(container.len() as u64).to_le_bytes());
    hasher.update(container.as_bytes());
    hasher.update(destination.as_bytes());
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn key(prefix: &[u8; 16], kind: u8, nid: u32) -> Vec<u8> {
    let mut key = prefix.to_vec();
    key.push(kind);
    key.extend_from_slice(&nid.to_be_bytes());
    key
}

fn database(error: impl std::fmt::Display) -> SyncError {
    SyncError::Database(error.to_string())
}
