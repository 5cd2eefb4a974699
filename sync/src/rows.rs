//! Inventory rows as they are stored and sent: one record per row, one list per inventory.
//!
//! Version 2 added the cells of a message's row. Version 1 is still read: its rows have none.

use bincode::{Decode, Encode};
use pst::inventory::{Inventory, Row};
use pst::{Bid, Nid};

use crate::change_list::ObjectKind;
use crate::record::{self, RecordError};

const VERSION: u8 = 2;
const VERSION_1: u8 = 1;
/// The most bytes of an encoded inventory: some ten million objects.
const MAX_BYTES: usize = 1 << 30;

/// One row of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RowRecord {
    pub(crate) nid: u32,
    parent: u32,
    kind: ObjectKind,
    bid_data: u64,
    bid_sub: u64,
    fingerprint: [u8; 32],
    size: u64,
    search_key: Option<[u8; 16]>,
    cells: u64,
}

/// One row as version 1 had it.
#[derive(Encode, Decode)]
pub(crate) struct RowRecord1 {
    pub(crate) nid: u32,
    parent: u32,
    kind: ObjectKind,
    bid_data: u64,
    bid_sub: u64,
    fingerprint: [u8; 32],
    size: u64,
    search_key: Option<[u8; 16]>,
}

impl From<RowRecord1> for RowRecord {
    fn from(old: RowRecord1) -> Self {
        Self {
            nid: old.nid,
            parent: old.parent,
            kind: old.kind,
            bid_data: old.bid_data,
            bid_sub: old.bid_sub,
            fingerprint: old.fingerprint,
            size: old.size,
            search_key: old.search_key,
            cells: 0,
        }
    }
}

impl From<&Row> for RowRecord {
    fn from(row: &Row) -> Self {
        Self {
            nid: row.nid.0,
            parent: row.parent.0,
            kind: row.kind.into(),
            bid_data: row.bid_data.0,
            bid_sub: row.bid_sub.0,
            fingerprint: row.fingerprint,
            size: row.size,
            search_key: row.search_key,
            cells: row.cells,
        }
    }
}

impl From<RowRecord> for Row {
    fn from(record: RowRecord) -> Self {
        Self {
            nid: Nid(record.nid),
            parent: Nid(record.parent),
            kind: record.kind.into(),
            bid_data: Bid(record.bid_data),
            bid_sub: Bid(record.bid_sub),
            fingerprint: record.fingerprint,
            size: record.size,
            search_key: record.search_key,
            cells: record.cells,
        }
    }
}

/// Encodes an inventory for the wire.
///
/// # Errors
/// [`RecordError::Payload`] if bincode refuses it.
pub fn encode_inventory(inventory: &Inventory) -> Result<Vec<u8>, RecordError> {
    let rows: Vec<RowRecord> = inventory.rows.values().map(RowRecord::from).collect();
    record::encode(VERSION, &rows)
}

/// Decodes an inventory from the wire.
///
/// # Errors
/// [`RecordError`] for anything that is not exactly one inventory.
pub fn decode_inventory(bytes: &[u8]) -> Result<Inventory, RecordError> {
    let rows: Vec<RowRecord> = if bytes.first() == Some(&VERSION_1) {
        let old: Vec<RowRecord1> = record::decode::<_, MAX_BYTES>(VERSION_1, bytes)?;
        old.into_iter().map(RowRecord::from).collect()
    } else {
        record::decode::<_, MAX_BYTES>(VERSION, bytes)?
    };
    Ok(Inventory {
        rows: rows
            .into_iter()
            .map(|r| (Nid(r.nid), Row::from(r)))
            .collect(),
    })
}
