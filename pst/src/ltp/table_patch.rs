//! Table contexts, editing a large one ([MS-PST] 2.6.2.4): cost is that of the rows that change.
//!
//! A stored table is a row index, a row matrix and the heap in which both the index and the longer
//! cells lie. A change of one row reads and writes one path of the index, the row's block of the
//! matrix, and the heap blocks of the cells that changed; everything else is shared with the table
//! as it was ([`DataPatch`], [`SubnodePatch`]).
//!
//! * A new row is appended to the matrix. A deleted one gives its place to the last row, where
//!   2.6.2.4.7 would move up every row behind it and renumber them in the index: readers find rows by
//!   the index, and no order of rows is promised (2.3.4.4).
//! * A row that is set to other cells keeps the values that stay; those that went are freed.
//! * An item belongs to one cell. Where a neighbouring row refers to the same one the table is odd.
//!
//! [`TablePatch::open`] answers `None` for a table that is small or odd, and every later error but
//! one of reading means the same: build the table anew with [`TableEdit`](super::TableEdit), which
//! needs no more than that its rows can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bag::PropBag;
use super::bth::BthHeader;
use super::bth_edit::BthEdit;
use super::heap::Hnid;
use super::heap_build::MAX_ITEM;
use super::heap_edit::HeapEdit;
use super::matrix_edit::MatrixEdit;
use super::node::{Blocks, NodeSource};
use super::prop::{PropTag, PropType, PropValue, ValueData};
use super::table::{Layout, Matrix, TableStore, check_index, encode_place, row_place};
use crate::ndb::bytes::u32_at;
use crate::ndb::{DataPatch, Ndb, NodeContent, NodeData, SubnodePatch, Subnodes};
use crate::{Bid, Nid, NidType, PstError, Result};

/// Tables of no more blocks are built anew: that costs little and packs them.
const SMALL_BLOCKS: usize = 6;

/// What setting a row did.
#[derive(Clone, Debug)]
pub enum RowChange {
    /// The row was there with these cells.
    Same,
    /// The row is new.
    Added,
    /// The row had other cells; these are the old ones that a row holds itself (numbers, times).
    Replaced(PropBag),
}

/// An open edit of a large stored table.
pub struct TablePatch {
    ndb: Arc<Ndb>,
    bid_data: Bid,
    bid_sub: Bid,
    layout: Layout,
    heap: HeapEdit,
    index: BthEdit,
    matrix: MatrixEdit,
    subnodes: BTreeMap<Nid, Option<NodeContent>>,
    /// The next free NID of a cell's subnode; `None` until one is needed.
    next_nid: Option<u32>,
}

fn odd(field: &'static str, detail: impl Into<String>) -> PstError {
    PstError::corrupt(field, 0, detail)
}

impl TablePatch {
    /// Opens a stored table, if it is one that is better changed than built anew.
    ///
    /// # Errors
    /// [`PstError::Io`] alone: what is odd about the table is no error here.
    pub fn open(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Option<Self>> {
        match Self::open_regular(ndb, bid_data, bid_sub) {
            Err(PstError::Io { offset, source }) => Err(PstError::Io { offset, source }),
            other => Ok(other.ok().flatten()),
        }
    }

    fn open_regular(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Option<Self>> {
        let store = TableStore::open(&NodeSource::stored(ndb, bid_data, bid_sub))?;
        let block = ndb.format().max_data();
        let Matrix::Sub { nid, blocks, .. } = store.matrix else {
            return Ok(None);
        };
        if blocks.count() + store.heap.block_count() <= SMALL_BLOCKS {
            return Ok(None);
        }
        let index = BthHeader::read(&store.heap, store.row_index)?;
        check_index(&index)?;
        let layout = store.layout;
        let fixed = |tag, offset| {
            let c = layout.columns.iter().find(|c| c.tag == tag);
            c.is_some_and(|c| c.offset == offset && c.size == 4)
        };
        if !fixed(PropTag::LTP_ROW_ID, 0) || !fixed(PropTag::LTP_ROW_VER, 4) {
            return Ok(None);
        }
        let entry = ndb
            .subnode(bid_sub, nid)?
            .ok_or_else(|| odd("TCINFO.hnidRows", "no subnode"))?;
        let matrix = MatrixEdit::open(nid, entry.bid_data, blocks, layout.row_size(), block)?;
        let patch = Self {
            ndb: Arc::clone(ndb),
            bid_data,
            bid_sub,
            heap: HeapEdit::new(store.heap, block),
            index: BthEdit::new(store.row_index, index),
            layout,
            matrix,
            subnodes: BTreeMap::new(),
            next_nid: None,
        };
        // Room for rows behind the last one must not be taken for rows.
        let regular = entry.bid_sub.is_none() && patch.last_row().is_ok();
        Ok(regular.then_some(patch))
    }

    /// Columns and row layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many rows there are.
    #[must_use]
    pub const fn row_count(&self) -> usize {
        self.matrix.rows
    }

    /// Whether there is a row with this id.
    ///
    /// # Errors
    /// What reading gives.
    pub fn has_row(&self, id: u32) -> Result<bool> {
        Ok(self.place(id)?.is_some())
    }

    fn place(&self, id: u32) -> Result<Option<usize>> {
        let place = self.index.find(&self.heap, id.into())?;
        place.map(|p| Ok(row_place(&p)? as usize)).transpose()
    }

    /// The last row's id and bytes; the index must know it there.
    fn last_row(&self) -> Result<(u32, Vec<u8>)> {
        let last = self.matrix.rows.checked_sub(1);
        let last = last.ok_or_else(|| odd("dwRowIndex", "no rows"))?;
        let raw = self.matrix.get(last)?;
        let id = u32_at(&raw, 0, "dwRowID")?;
        if self.place(id)? != Some(last) {
            return Err(odd("dwRowIndex", format!("row {last} is not in the index")));
        }
        Ok((id, raw))
    }

    fn row_at(&self, id: u32, at: usize) -> Result<Vec<u8>> {
        let raw = self.matrix.get(at)?;
        if u32_at(&raw, 0, "dwRowID")? != id {
            return Err(odd("dwRowID", format!("row {at} is not row {id:#x}")));
        }
        Ok(raw)
    }

    /// Sets the row with this id to what the table can store of `props`. `version` makes the row's
    /// new version of its old one (0 for a new row); it is asked only where the row changes.
    ///
    /// # Errors
    /// [`PstError::Limit`] where the table is full; what reading gives. The edit is lost then.
    pub fn put_row(
        &mut self,
        id: u32,
        props: &PropBag,
        version: &mut dyn FnMut(u32) -> u32,
    ) -> Result<RowChange> {
        let Some(at) = self.place(id)? else {
            let at = self.matrix.rows;
            self.set_place(id, at)?;
            let mut raw = vec![0; self.layout.row_size()];
            self.set_cells(&mut raw, at, props)?;
            self.set_inline(&mut raw, PropTag::LTP_ROW_ID, id);
            self.set_inline(&mut raw, PropTag::LTP_ROW_VER, version(0));
            self.matrix.push(&raw)?;
            return Ok(RowChange::Added);
        };
        let mut raw = self.row_at(id, at)?;
        let before = self.inline_cells(&raw)?;
        if !self.set_cells(&mut raw, at, props)? {
            return Ok(RowChange::Same);
        }
        let old = u32_at(&raw, 4, "dwRowVer")?;
        self.set_inline(&mut raw, PropTag::LTP_ROW_ID, id);
        self.set_inline(&mut raw, PropTag::LTP_ROW_VER, version(old));
        self.matrix.set(at, &raw)?;
        Ok(RowChange::Replaced(before))
    }

    /// Deletes the row with this id. Returns the cells that the row held itself, `None` if there is
    /// no such row.
    ///
    /// # Errors
    /// What reading gives. The edit is lost then.
    pub fn delete_row(&mut self, id: u32) -> Result<Option<PropBag>> {
        let Some(at) = self.place(id)? else {
            return Ok(None);
        };
        let raw = self.row_at(id, at)?;
        let before = self.inline_cells(&raw)?;
        let mut values = Vec::new();
        for c in self.layout.columns.iter().filter(|c| !c.is_inline()) {
            if let Some(cell) = self.layout.cell(&raw, c)? {
                values.push((u32_at(cell, 0, "cell HNID")?, c.tag.prop_type()));
            }
        }
        self.check_sole(at, values.iter().map(|(hnid, _)| *hnid))?;
        for (hnid, kind) in values {
            self.free(hnid, kind)?;
        }
        let (last_id, last) = self.last_row()?;
        self.index.remove(&mut self.heap, id.into())?;
        if last_id != id {
            self.matrix.set(at, &last)?;
            self.set_place(last_id, at)?;
        }
        // Nothing refers to what lies behind the last row.
        let empty = vec![0; self.layout.row_size()];
        self.matrix.set(self.matrix.rows - 1, &empty)?;
        self.matrix.rows -= 1;
        Ok(Some(before))
    }

    fn set_place(&mut self, id: u32, at: usize) -> Result<()> {
        let data = encode_place(at, self.index.header().entry_size)?;
        self.index.set(&mut self.heap, id.into(), &data)
    }

    /// The cells that a row holds itself.
    fn inline_cells(&self, raw: &[u8]) -> Result<PropBag> {
        let mut bag = PropBag::new();
        for c in self.layout.columns.iter().filter(|c| c.is_inline()) {
            if let Some(cell) = self.layout.cell(raw, c)? {
                bag.insert(PropValue {
                    tag: c.tag,
                    data: ValueData::Bytes(cell.to_vec()),
                });
            }
        }
        Ok(bag)
    }

    fn set_inline(&self, raw: &mut [u8], tag: PropTag, value: u32) {
        if let Some(c) = self.layout.columns.iter().find(|c| c.tag == tag) {
            self.layout.set_cell(raw, c, Some(&value.to_le_bytes()));
        }
    }

    /// Gives a row the cells that `props` have; whether any changed.
    fn set_cells(&mut self, raw: &mut [u8], at: usize, props: &PropBag) -> Result<bool> {
        let before = raw.to_vec();
        let columns = self.layout.columns.clone();
        // Cells in the heap that change, with what they refer to now.
        let mut moving = Vec::new();
        for c in &columns {
            if matches!(c.tag, PropTag::LTP_ROW_ID | PropTag::LTP_ROW_VER) {
                continue;
            }
            let new = props.get_tag(c.tag).map(|p| &p.data);
            if c.is_inline() {
                let bytes = new.map(|v| v.read(16)).transpose()?;
                let bytes = bytes.filter(|b| b.len() == usize::from(c.size));
                self.layout.set_cell(raw, c, bytes.as_deref());
                continue;
            }
            let old = self.layout.cell(&before, c)?;
            let old = old.map(|cell| u32_at(cell, 0, "cell HNID")).transpose()?;
            let same = match (old, new) {
                (None, None) => true,
                (Some(old), Some(new)) => self.holds(old, c.tag.prop_type(), new)?,
                _ => false,
            };
            if !same {
                moving.push((c, old.unwrap_or(0), new));
            }
        }
        self.check_sole(at, moving.iter().map(|(_, old, _)| *old))?;
        // A value that is replaced where it lies leaves the row's own bytes as they were.
        let changed = !moving.is_empty();
        for (c, old, new) in moving {
            let hnid = self.replace(old, c.tag.prop_type(), new)?;
            let cell = hnid.map(u32::to_le_bytes);
            let cell = cell.as_ref().map(<[u8; 4]>::as_slice);
            self.layout.set_cell(raw, c, cell);
        }
        Ok(changed || raw != before)
    }

    /// Whether the value behind an HNID is this one.
    fn holds(&self, hnid: u32, kind: PropType, value: &ValueData) -> Result<bool> {
        if kind == PropType::OBJECT {
            return Err(odd("TCOLDESC.tag", "a column of objects"));
        }
        match Hnid::from(hnid) {
            Hnid::None => Ok(value.is_empty()),
            Hnid::Heap(hid) => Ok(value.len() <= MAX_ITEM as u64
                && value.bytes() == Some(self.heap.item(hid)?.as_slice())),
            Hnid::Sub(nid) => {
                if let Some(new) = self.subnodes.get(&nid) {
                    let data = new.as_ref().map(|c| &c.data);
                    return Ok(
                        matches!(data, Some(NodeData::Bytes(b)) if value.bytes() == Some(b)),
                    );
                }
                match self.ndb.subnode(self.bid_sub, nid)? {
                    Some(e) => {
                        let source = NodeSource::stored(&self.ndb, e.bid_data, e.bid_sub);
                        Blocks::open(&source)?.value()?.same_content(value)
                    }
                    None => Ok(false),
                }
            }
        }
    }

    /// Puts a value in the place of another one.
    fn replace(
        &mut self,
        old: u32,
        kind: PropType,
        new: Option<&ValueData>,
    ) -> Result<Option<u32>> {
        if kind == PropType::OBJECT {
            return Err(odd("TCOLDESC.tag", "a column of objects"));
        }
        let Some(new) = new else {
            self.free(old, kind)?;
            return Ok(None);
        };
        if new.is_empty() {
            self.free(old, kind)?;
            return Ok(Some(0));
        }
        if new.len() <= MAX_ITEM as u64 {
            let bytes = new.read(MAX_ITEM as u64)?;
            let placed = match Hnid::from(old) {
                Hnid::Heap(hid) => self.heap.put_value(hid, bytes)?,
                _ => {
                    self.free(old, kind)?;
                    self.heap.alloc_value(bytes)?
                }
            };
            if let Some(hid) = placed {
                return Ok(Some(hid.0));
            }
        } else {
            self.free(old, kind)?;
        }
        self.put_subnode(new.to_node_data(Some(&self.ndb)))
            .map(Some)
    }

    fn free(&mut self, hnid: u32, kind: PropType) -> Result<()> {
        if kind == PropType::OBJECT {
            return Err(odd("TCOLDESC.tag", "a column of objects"));
        }
        match Hnid::from(hnid) {
            Hnid::None => Ok(()),
            // An item of no bytes is free already, or cannot be told from one that is.
            Hnid::Heap(hid) if self.heap.item(hid)?.is_empty() => Ok(()),
            Hnid::Heap(hid) => self.heap.free(hid),
            Hnid::Sub(nid) => {
                if self.subnodes.contains_key(&nid)
                    && self.ndb.subnode(self.bid_sub, nid)?.is_none()
                {
                    self.subnodes.remove(&nid);
                } else {
                    self.subnodes.insert(nid, None);
                }
                Ok(())
            }
        }
    }

    /// A subnode of type LTP with this data.
    fn put_subnode(&mut self, data: NodeData) -> Result<u32> {
        let next = match self.next_nid {
            Some(n) => n,
            None => self
                .ndb
                .last_subnode(self.bid_sub)?
                .map_or(0, |e| e.nid.index() + 1),
        };
        // New SLBLOCKs are at least half full; a table built anew packs them.
        let format = self.ndb.format();
        let most = format.max_siblock();
        let new = self.subnodes.len() / (format.max_slblock() / 2).max(1) + 2;
        if self.ndb.subnode_leaves(self.bid_sub)? + new > most || next >= 1 << 26 {
            return Err(PstError::Limit {
                what: "subnodes of a table",
                found: next.into(),
                limit: most as u64,
            });
        }
        self.next_nid = Some(next + 1);
        let nid = Nid::new(NidType::LTP, next);
        let content = NodeContent {
            data,
            subnodes: Subnodes::None,
        };
        self.subnodes.insert(nid, Some(content));
        Ok(nid.0)
    }

    /// Refuses to free values that another row of the same block, or another cell of the same row,
    /// refers to as well: writers that share values do so between neighbours.
    fn check_sole(&self, at: usize, going: impl Iterator<Item = u32>) -> Result<()> {
        let mut going: BTreeMap<u32, bool> =
            going.filter(|h| *h != 0).map(|h| (h, false)).collect();
        if going.is_empty() {
            return Ok(());
        }
        let block = self.matrix.block(at / self.matrix.per_block)?;
        for row in block.chunks_exact(self.matrix.row) {
            for c in self.layout.columns.iter().filter(|c| !c.is_inline()) {
                if let Some(cell) = self.layout.cell(row, c)? {
                    let hnid = u32_at(cell, 0, "cell HNID")?;
                    if let Some(seen) = going.get_mut(&hnid)
                        && std::mem::replace(seen, true)
                    {
                        return Err(odd("cell HNID", format!("{hnid:#x} in two cells")));
                    }
                }
            }
        }
        Ok(())
    }

    /// The table as content to be written into the same file.
    ///
    /// # Errors
    /// [`PstError::Refused`] for a table without rows: it is built anew.
    pub fn finish(mut self) -> Result<NodeContent> {
        if self.matrix.rows == 0 {
            return Err(PstError::Refused("a table without rows".into()));
        }
        if let Some(patch) = self.matrix.finish(self.ndb.format().max_data())? {
            let content = NodeContent {
                data: NodeData::Patched(patch),
                subnodes: Subnodes::None,
            };
            self.subnodes.insert(self.matrix.nid, Some(content));
        }
        let (count, blocks) = self.heap.finish()?;
        Ok(NodeContent {
            data: NodeData::Patched(DataPatch {
                base: self.bid_data,
                count,
                blocks,
            }),
            subnodes: Subnodes::Patched(SubnodePatch {
                base: self.bid_sub,
                changes: self.subnodes,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use storage::MemStorage;

    use super::*;
    use crate::ltp::{TableContext, TableEdit};
    use crate::ndb::NdbTransaction;

    const TEXT: PropTag = PropTag::new(0x3001, PropType::BINARY);
    const NODE: Nid = Nid::new(NidType::CONTENTS_TABLE, 0x600);

    fn text(id: u32, len: usize) -> PropBag {
        PropBag::from_iter([PropValue::binary(TEXT.id(), vec![id as u8; len])])
    }

    fn commit(ndb: Arc<Ndb>, content: &NodeContent) -> Arc<Ndb> {
        let mut file = vec![0; usize::try_from(ndb.storage().len().unwrap()).unwrap()];
        ndb.storage().read_exact_at(0, &mut file).unwrap();
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        tx.put_node(NODE, Nid(0), content).unwrap();
        let file = MemStorage::from(file);
        tx.finish().unwrap().commit(&file).unwrap();
        Arc::new(Ndb::open(Arc::new(file)).unwrap())
    }

    fn open(ndb: &Arc<Ndb>) -> TablePatch {
        let n = ndb.node(NODE).unwrap().unwrap();
        let patch = TablePatch::open(ndb, n.bid_data, n.bid_sub).unwrap();
        patch.unwrap()
    }

    /// Where the heap has no block left for values, new ones go to subnodes and the row index still
    /// finds room.
    #[test]
    fn a_full_heap_takes_rows_whose_values_lie_in_subnodes() {
        let empty = crate::create_empty(&[1; 16]).unwrap();
        let ndb = Arc::new(Ndb::open(Arc::new(MemStorage::from(empty))).unwrap());
        let mut edit = TableEdit::new(&[TEXT]).unwrap();
        for id in 0..1000 {
            edit.put_row(id, &text(id, 100)).unwrap();
        }
        let ndb = commit(Arc::clone(&ndb), &edit.build(None).unwrap());
        let mut patch = open(&ndb);
        patch.heap.limit_values(0);
        for id in 900..1800 {
            patch.put_row(id, &text(id, 200), &mut |v| v + 1).unwrap();
        }
        let ndb = commit(ndb, &patch.finish().unwrap());
        // Once more on what now lies in subnodes: replaced, and deleted.
        let mut patch = open(&ndb);
        patch.heap.limit_values(0);
        for id in 1000..1500 {
            patch.put_row(id, &text(id, 300), &mut |v| v + 1).unwrap();
        }
        for id in 1500..1600 {
            assert!(patch.delete_row(id).unwrap().is_some());
        }
        let ndb = commit(ndb, &patch.finish().unwrap());
        let n = ndb.node(NODE).unwrap().unwrap();
        let table = TableContext::open(&ndb, n.bid_data, n.bid_sub).unwrap();
        assert_eq!(table.row_count(), 1700);
        for row in table.rows().map(Result::unwrap) {
            let len = match row.id {
                0..900 => 100,
                1000..1500 => 300,
                _ => 200,
            };
            let value = row.props.get_tag(TEXT).unwrap();
            assert_eq!(value.data.read(1 << 20).unwrap(), vec![row.id as u8; len]);
        }
        let subnodes = ndb.subnodes(n.bid_sub).unwrap();
        // The new rows' values, those of changed rows that did not fit where they were, the matrix.
        assert!((701..=801).contains(&subnodes.len()), "{}", subnodes.len());
        let findings = crate::check::check(&ndb);
        assert!(findings.is_empty(), "{findings:#?}");
    }

    /// Freeing a value that another row refers to would take it away from that row.
    #[test]
    fn a_table_whose_rows_share_values_is_built_anew() {
        let empty = crate::create_empty(&[1; 16]).unwrap();
        let ndb = Arc::new(Ndb::open(Arc::new(MemStorage::from(empty))).unwrap());
        let mut edit = TableEdit::new(&[TEXT]).unwrap();
        for id in 0..2000 {
            edit.put_row(id, &text(id, 100)).unwrap();
        }
        let ndb = commit(Arc::clone(&ndb), &edit.build(None).unwrap());
        // Row 7 refers to the value of row 8.
        let mut patch = open(&ndb);
        let c = *patch.layout.columns.iter().find(|c| c.tag == TEXT).unwrap();
        let cell = patch.matrix.get(8).unwrap();
        let cell = patch.layout.cell(&cell, &c).unwrap().unwrap().to_vec();
        let mut row = patch.matrix.get(7).unwrap();
        patch.layout.set_cell(&mut row, &c, Some(&cell));
        patch.matrix.set(7, &row).unwrap();
        let ndb = commit(ndb, &patch.finish().unwrap());
        let mut patch = open(&ndb);
        assert!(patch.put_row(9, &text(9, 50), &mut |v| v + 1).is_ok());
        for id in [7, 8] {
            let odd = patch.put_row(id, &text(id, 50), &mut |v| v + 1);
            assert!(matches!(odd, Err(PstError::Corrupt { .. })), "{odd:?}");
            assert!(open(&ndb).delete_row(id).is_err());
        }
    }
}
