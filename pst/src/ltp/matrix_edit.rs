//! The row matrix of a large table, editing ([MS-PST] 2.3.4.4): rows by their place, in blocks.
//!
//! Every block but the last is full and padded; the last holds exactly its rows, so that the length
//! of the data tells how many there are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::node::Blocks;
use super::table::{Column, Layout};
use crate::ndb::DataPatch;
use crate::ndb::bytes::put;
use crate::{Bid, Nid, PstError, Result};

fn odd(field: &'static str, detail: impl Into<String>) -> PstError {
    PstError::corrupt(field, 0, detail)
}

/// The rows of a stored matrix with uncommitted changes.
pub(crate) struct MatrixEdit {
    pub nid: Nid,
    bid: Bid,
    blocks: Blocks,
    changed: BTreeMap<usize, Arc<Vec<u8>>>,
    /// The unchanged block that was read last.
    read: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
    /// Bytes of a row.
    pub row: usize,
    /// Rows of a full block.
    pub per_block: usize,
    stored_rows: usize,
    /// How many rows there are now; the caller takes one away from the end.
    pub rows: usize,
}

impl MatrixEdit {
    pub(crate) fn open(
        nid: Nid,
        bid: Bid,
        blocks: Blocks,
        row: usize,
        block: usize,
    ) -> Result<Self> {
        let count = blocks.count();
        let per_block = block.checked_div(row).unwrap_or(0);
        if per_block == 0 || count == 0 {
            return Err(odd("TCINFO.hnidRows", "no whole row in a block"));
        }
        let last = blocks.read(count - 1)?.len();
        if count > 1 && blocks.read(0)?.len() != block {
            return Err(odd("TCINFO.hnidRows", "a block that is not full"));
        }
        let in_last = last / row;
        if in_last == 0 || in_last > per_block {
            return Err(odd("TCINFO.hnidRows", "no whole row in the last block"));
        }
        let rows = (count - 1) * per_block + in_last;
        Ok(Self {
            nid,
            bid,
            blocks,
            changed: BTreeMap::new(),
            read: Mutex::default(),
            row,
            per_block,
            stored_rows: rows,
            rows,
        })
    }

    /// Block `b` as it is now: whole rows and perhaps padding.
    pub(crate) fn block(&self, b: usize) -> Result<Arc<Vec<u8>>> {
        if let Some(block) = self.changed.get(&b) {
            return Ok(Arc::clone(block));
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((k, block)) if *k == b => Ok(Arc::clone(block)),
            _ => {
                let block = Arc::new(self.blocks.read(b)?);
                *read = Some((b, Arc::clone(&block)));
                Ok(block)
            }
        }
    }

    pub(crate) fn get(&self, at: usize) -> Result<Vec<u8>> {
        let start = at % self.per_block * self.row;
        let block = self.block(at / self.per_block)?;
        let row = block.get(start..start + self.row);
        row.filter(|_| at < self.rows)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| odd("dwRowIndex", format!("no row {at} in the matrix")))
    }

    pub(crate) fn set(&mut self, at: usize, raw: &[u8]) -> Result<()> {
        let b = at / self.per_block;
        let start = at % self.per_block * self.row;
        let mut block = if b * self.per_block >= self.rows {
            self.changed.remove(&b).unwrap_or_default()
        } else {
            self.block(b)?
        };
        let bytes = Arc::make_mut(&mut block);
        if bytes.len() < start + self.row {
            bytes.resize(start + self.row, 0);
        }
        put(bytes, start, raw);
        self.changed.insert(b, block);
        Ok(())
    }

    pub(crate) fn push(&mut self, raw: &[u8]) -> Result<()> {
        self.set(self.rows, raw)?;
        self.rows += 1;
        Ok(())
    }

    /// The changed blocks, each of its final length: full, or exactly the rows of the last one.
    pub(crate) fn finish(&mut self, full: usize) -> Result<Option<DataPatch>> {
        let last = (self.rows - 1) / self.per_block;
        let old_last = (self.stored_rows - 1) / self.per_block;
        let mut changed: BTreeMap<usize, Arc<Vec<u8>>> = std::mem::take(&mut self.changed);
        if self.rows != self.stored_rows {
            for b in [last, old_last.min(last)] {
                if let Entry::Vacant(v) = changed.entry(b) {
                    v.insert(Arc::new(self.blocks.read(b)?));
                }
            }
        }
        if changed.is_empty() {
            return Ok(None);
        }
        let mut blocks = BTreeMap::new();
        for (b, block) in changed.into_iter().filter(|(b, _)| *b <= last) {
            let mut bytes = Arc::unwrap_or_clone(block);
            let len = if b < last {
                full
            } else {
                (self.rows - last * self.per_block) * self.row
            };
            bytes.resize(len, 0);
            blocks.insert(b, bytes);
        }
        Ok(Some(DataPatch {
            base: self.bid,
            count: last + 1,
            blocks,
        }))
    }
}

impl Layout {
    /// Sets a cell in a row's bytes, or makes it one that does not exist.
    pub(crate) fn set_cell(&self, raw: &mut [u8], c: &Column, cell: Option<&[u8]>) {
        let zero = [0; 8];
        let bytes = cell.or_else(|| zero.get(..c.size.into()));
        put(raw, c.offset.into(), bytes.unwrap_or_default());
        if let Some(b) = raw.get_mut(self.bitmap_offset() + usize::from(c.bit / 8)) {
            let bit = 0x80 >> (c.bit % 8);
            *b = if cell.is_some() { *b | bit } else { *b & !bit };
        }
    }
}
