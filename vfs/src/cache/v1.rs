//! The first schema of the metadata, as it was stored.

use bincode::Decode;

use super::Ranges;
use crate::journal::record::{NodeRecord, TreeOp};
use crate::share::Stamp;

#[derive(Decode)]
pub struct FileMeta {
    id: u64,
    attached: bool,
    stamp: Option<Stamp>,
    lineage: u64,
    size: u64,
    mtime: Option<i64>,
    valid: Ranges,
    dirty: Vec<(u64, Ranges)>,
    written: Vec<(u64, Ranges)>,
    write_count: u64,
    epoch: u64,
    synced_epoch: u64,
    sequence: u64,
    outstanding: Option<(u64, [u8; 32])>,
    flipped: bool,
    online_written: Ranges,
    push: Option<(u64, u64)>,
    lsn: u64,
}

#[derive(Decode)]
pub struct Meta {
    data_lsn: u64,
    known: u64,
    tree_lsn: u64,
    next_id: u64,
    nodes: Vec<NodeRecord>,
    pending: Vec<(u64, TreeOp)>,
    files: Vec<FileMeta>,
}

impl From<FileMeta> for super::FileMeta {
    fn from(m: FileMeta) -> Self {
        Self {
            id: m.id,
            attached: m.attached,
            stamp: m.stamp,
            lineage: m.lineage,
            size: m.size,
            mtime: m.mtime,
            valid: m.valid,
            dirty: m.dirty,
            written: m.written,
            write_count: m.write_count,
            epoch: m.epoch,
            synced_epoch: m.synced_epoch,
            sequence: m.sequence,
            outstanding: m.outstanding,
            flipped: m.flipped,
            online_written: m.online_written,
            push: m.push,
            lsn: m.lsn,
            data_lsn: 0,
            used: 0,
        }
    }
}

impl From<Meta> for super::Meta {
    fn from(m: Meta) -> Self {
        Self {
            data_lsn: m.data_lsn,
            known: m.known,
            tree_lsn: m.tree_lsn,
            next_id: m.next_id,
            nodes: m.nodes,
            // Not known: the careful value.
            tried: m.tree_lsn,
            mtimes_there: Vec::new(),
            links: Vec::new(),
            changed: Vec::new(),
            pending: m.pending,
            files: m.files.into_iter().map(Into::into).collect(),
        }
    }
}
