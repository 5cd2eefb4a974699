//! The sync database: the inventory of each (container, destination) as of its last sync.
//!
//! It holds only what can be rebuilt (DESIGN 7): losing it costs one inventory from the
//! destination and holds deletes back, never data.
//!
//! A key is 16 bytes of hash of container and destination, a byte for what it is, and a NID. That byte
//! is the version of the layout, too: 6 head, 7 row, 8 detail of an object. 2 and 3 were head and row
//! before rows had cells and details; they are still read, and replaced at the next sync.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use pst::Nid;
use pst::canonical::Detail;
use pst::inventory::{Inventory, Row};
use storage::Generation;

use crate::error::{Result, SyncError};
use crate::kv::{KvError, KvStore, Write};
use crate::outbox::{Outbox, Outstanding};
use crate::rows::{RowRecord, RowRecord1};

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
pub(crate) struct HeadRecord {
    lineage: u64,
    bid_next: u64,
    epoch: u64,
    len: u64,
    root: [u8; 32],
    sequence: u64,
    verified_at_ms: u64,
}

impl From<&Head> for HeadRecord {
    fn from(head: &Head) -> Self {
        Self {
            lineage: head.lineage,
            bid_next: head.bid_next,
            epoch: head.epoch,
            len: head.generation.len,
            root: head.generation.root,
            sequence: head.sequence,
            verified_at_ms: head.verified_at_ms,
        }
    }
}

impl From<HeadRecord> for Head {
    fn from(record: HeadRecord) -> Self {
        Self {
            lineage: record.lineage,
            bid_next: record.bid_next,
            epoch: record.epoch,
            generation: Generation {
                len: record.len,
                root: record.root,
            },
            sequence: record.sequence,
            verified_at_ms: record.verified_at_ms,
        }
    }
}

#[derive(Encode, Decode)]
pub(crate) struct SyncedRecord {
    ours: bool,
    remote_nid: u32,
    row: RowRecord,
    drift: Option<DriftRecord>,
    detailed: bool,
}

impl From<&SyncedRow> for SyncedRecord {
    fn from(synced: &SyncedRow) -> Self {
        Self {
            ours: synced.ours,
            remote_nid: synced.remote_nid.0,
            row: RowRecord::from(&synced.row),
            drift: synced.drift.map(|d| DriftRecord {
                parent: d.parent.0,
                fingerprint: d.fingerprint,
            }),
            detailed: synced.detailed,
        }
    }
}

impl From<SyncedRecord> for SyncedRow {
    fn from(record: SyncedRecord) -> Self {
        Self {
            ours: record.ours,
            remote_nid: Nid(record.remote_nid),
            row: record.row.into(),
            drift: record.drift.map(|d| Drift {
                parent: Nid(d.parent),
                fingerprint: d.fingerprint,
            }),
            detailed: record.detailed,
        }
    }
}

/// A row as keys of kind 3 hold it.
#[derive(Encode, Decode)]
struct SyncedRecord1 {
    ours: bool,
    remote_nid: u32,
    row: RowRecord1,
    drift: Option<DriftRecord>,
}

impl From<SyncedRecord1> for SyncedRecord {
    fn from(old: SyncedRecord1) -> Self {
        Self {
            ours: old.ours,
            remote_nid: old.remote_nid,
            row: old.row.into(),
            drift: old.drift,
            detailed: false,
        }
    }
}

#[derive(Encode, Decode)]
struct DetailRecord {
    fingerprint: [u8; 32],
    detail: Vec<u8>,
}

/// What is kept to see later what of an object changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDetail {
    /// The version of the object that it is of.
    pub fingerprint: [u8; 32],
    /// An encoded [`pst::canonical::Detail`].
    pub detail: Vec<u8>,
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
    /// Whether the detail of this version is stored.
    pub detailed: bool,
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

    /// Marks the rows whose detail is stored, as `before` knew it: of the very same version.
    pub(crate) fn keep_details(&mut self, before: Option<&Self>) {
        for (nid, row) in &mut self.rows {
            let known = before.and_then(|b| b.rows.get(nid));
            row.detailed =
                known.is_some_and(|k| k.detailed && k.row.fingerprint == row.row.fingerprint);
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

/// The sync database over a key-value store, and the packages that are on their way.
#[derive(Debug)]
pub struct SyncDatabase {
    store: KvStore,
    outbox: Outbox,
}

// 0 and 1 were the keys of records without drift, 4 and 5 are not used.
const HEAD_1: u8 = 2;
const ROW_1: u8 = 3;
const HEAD: u8 = 6;
const ROW: u8 = 7;
const DETAIL: u8 = 8;

impl SyncDatabase {
    /// Stands on an open store. What is on its way lies in a directory of its own beside it.
    #[must_use]
    pub fn new(store: KvStore) -> Self {
        let outbox = Outbox::new(store.dir().join("outgoing"));
        outbox.sweep(std::time::SystemTime::now());
        Self { store, outbox }
    }

    /// The package that was sent and not answered, if it was made from the state `before`.
    ///
    /// # Errors
    /// [`SyncError::Database`] if it is there and cannot be read.
    pub(crate) fn outstanding(
        &self,
        container: &str,
        destination: &str,
        before: Option<&Synced>,
    ) -> Result<Option<Outstanding>> {
        self.outbox.load(&prefix(container, destination), before)
    }

    /// Keeps a package, made from the state `before`, until it is settled; durable when this returns.
    ///
    /// # Errors
    /// [`SyncError::Database`] if it cannot be written: it must not be sent then.
    pub(crate) fn keep_outstanding(
        &self,
        container: &str,
        destination: &str,
        before: Option<&Synced>,
        out: &Outstanding,
    ) -> Result<()> {
        let prefix = prefix(container, destination);
        self.outbox.put(&prefix, before, out)
    }

    /// The package is answered: what it led to is stored, or it led to nothing.
    ///
    /// # Errors
    /// [`SyncError::Database`] if it cannot be removed.
    pub(crate) fn settle_outstanding(&self, container: &str, destination: &str) -> Result<()> {
        self.outbox.clear(&prefix(container, destination))
    }

    /// What is known beside the rows; `None` if nothing was synced yet, or it was lost.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails.
    pub fn head(&self, container: &str, destination: &str) -> Result<Option<Head>> {
        let prefix = prefix(container, destination);
        Ok(self.any_head(&prefix)?.map(|(head, _)| head))
    }

    /// The head, and whether it is of the layout before this one.
    fn any_head(&self, prefix: &[u8; 16]) -> Result<Option<(Head, bool)>> {
        for (kind, old) in [(HEAD, false), (HEAD_1, true)] {
            let key = key(prefix, kind, 0);
            let head = match self.store.get::<HeadRecord>(&key) {
                Ok(Some(head)) => head,
                Ok(None) => continue,
                Err(KvError::Record(error)) => {
                    tracing::warn!(%error, "the sync database lost a head; starting over");
                    continue;
                }
                Err(error) => return Err(database(error)),
            };
            return Ok(Some((head.into(), old)));
        }
        Ok(None)
    }

    /// The last synced state; `None` if there is none, or it was lost.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails. A damaged row makes the whole state unknown,
    /// which is `None`: it can be rebuilt, and a row less must never look like a delete (R3).
    pub fn load(&self, container: &str, destination: &str) -> Result<Option<Synced>> {
        let prefix = prefix(container, destination);
        let Some((head, old)) = self.any_head(&prefix)? else {
            return Ok(None);
        };
        let rows = if old {
            self.rows::<SyncedRecord1>(&prefix, ROW_1)
        } else {
            self.rows::<SyncedRecord>(&prefix, ROW)
        };
        match rows {
            Ok(rows) => Ok(Some(Synced { head, rows })),
            Err(error) => {
                tracing::warn!(%error, container, "the sync database lost a row; starting over");
                Ok(None)
            }
        }
    }

    fn rows<R: Decode<()> + Into<SyncedRecord>>(
        &self,
        prefix: &[u8; 16],
        kind: u8,
    ) -> Result<BTreeMap<Nid, SyncedRow>> {
        let mut row_prefix = prefix.to_vec();
        row_prefix.push(kind);
        let mut rows = BTreeMap::new();
        for item in self.store.scan::<R>(&row_prefix) {
            let (key, record) = item.map_err(database)?;
            let record: SyncedRecord = record.into();
            let nid = Nid(record.row.nid);
            if !key.ends_with(&nid.0.to_be_bytes()) {
                return Err(database("a row under the key of another"));
            }
            rows.insert(nid, record.into());
        }
        Ok(rows)
    }

    /// The detail of an object's version with this fingerprint; `None` where it is not known. A
    /// detail that cannot be read is none.
    #[must_use]
    pub fn detail(
        &self,
        container: &str,
        destination: &str,
        nid: Nid,
        fingerprint: &[u8; 32],
    ) -> Option<Detail> {
        let key = key(&prefix(container, destination), DETAIL, nid.0);
        let record = self.store.get::<DetailRecord>(&key).ok().flatten()?;
        if record.fingerprint != *fingerprint {
            return None;
        }
        Detail::decode(&record.detail)
    }

    /// Moves the state on in one atomic, durable step; only rows that differ are written, and the
    /// `details` that are new.
    ///
    /// # Errors
    /// [`SyncError::Database`] if the store fails; the state is then the one before.
    pub fn store(
        &self,
        container: &str,
        destination: &str,
        before: Option<&Synced>,
        after: &Synced,
        details: &BTreeMap<Nid, StoredDetail>,
    ) -> Result<()> {
        let prefix = prefix(container, destination);
        let mut writes = Vec::new();
        let none = BTreeMap::new();
        let mut old = before.map_or(&none, |b| &b.rows);
        if before.is_none() || matches!(self.any_head(&prefix)?, Some((_, true))) {
            // Nothing is known, or it is in the layout before: whatever is there goes, so that no
            // row of then is taken for one of now, and everything is written anew.
            let gone = self.store.keys(&prefix).map_err(database)?;
            writes.extend(gone.into_iter().map(Write::delete));
            old = &none;
        }
        for nid in old.keys().filter(|nid| !after.rows.contains_key(nid)) {
            writes.push(Write::delete(key(&prefix, ROW, nid.0)));
            writes.push(Write::delete(key(&prefix, DETAIL, nid.0)));
        }
        for (nid, detail) in details {
            let record = DetailRecord {
                fingerprint: detail.fingerprint,
                detail: detail.detail.clone(),
            };
            writes.push(Write::put(key(&prefix, DETAIL, nid.0), &record).map_err(database)?);
        }
        for (nid, synced) in &after.rows {
            if old.get(nid) == Some(synced) {
                continue;
            }
            let record = SyncedRecord::from(synced);
            writes.push(Write::put(key(&prefix, ROW, nid.0), &record).map_err(database)?);
        }
        let record = HeadRecord::from(&after.head);
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

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
