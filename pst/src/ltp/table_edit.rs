//! Table contexts, building and editing ([MS-PST] 2.3.4).
//!
//! An existing table keeps its columns and row layout; rows keep their order, their ids and, if
//! unchanged, their versions. Properties for which a table has no column (same id *and* type)
//! are not stored, which is how tables work: they are views of objects that hold everything.
//!
//! Building costs O(all rows): keep the edit open for many changes and build once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::bag::PropBag;
use super::bth::build_bth;
use super::build::{ValueSink, fixed_hid};
use super::heap::ClientSig;
use super::heap_build::MAX_ITEM;
use super::node::NodeSource;
use super::prop::PropTag;
use super::table::{Column, Layout, Row, TableContext};
use crate::ndb::bytes::put;
use crate::ndb::{Ndb, NodeContent, NodeData};
use crate::{Bid, PstError, Result};

impl Layout {
    /// The layout of a new table with these columns; PidTagLtpRowId and PidTagLtpRowVer are
    /// always there, first in the row and in the bitmap ([MS-PST] 2.3.4.4.1).
    ///
    /// # Errors
    /// [`PstError::Limit`] for more than 255 columns.
    pub fn new(tags: &[PropTag]) -> Result<Self> {
        let fixed = [PropTag::LTP_ROW_ID, PropTag::LTP_ROW_VER];
        let mut rest: Vec<PropTag> = tags
            .iter()
            .copied()
            .filter(|t| !fixed.contains(t))
            .collect();
        rest.sort_unstable();
        rest.dedup();
        let count = fixed.len() + rest.len();
        if count > 255 {
            return Err(PstError::Limit {
                what: "table columns",
                found: count as u64,
                limit: 255,
            });
        }
        let cell = |tag: PropTag| match tag.prop_type().fixed_size() {
            Some(n) if n <= 8 => n as u8,
            _ => 4,
        };
        // Groups as the row has them, the 4- and 8-byte cells being one: wider cells come first,
        // so that narrower ones follow without gaps.
        let mut columns: Vec<Column> = Vec::with_capacity(count);
        let mut ends = [0u16; 4];
        let mut at = 0u16;
        let mut place = |tag: PropTag| {
            let (size, bit) = (cell(tag), columns.len() as u8);
            columns.push(Column {
                tag,
                offset: at,
                size,
                bit,
            });
            at += u16::from(size);
            at
        };
        fixed.into_iter().for_each(|t| ends[0] = place(t));
        for (size, group) in [(8, 0), (4, 0), (2, 1), (1, 2)] {
            for tag in rest.iter().copied().filter(|t| cell(*t) == size) {
                let end = place(tag);
                ends.iter_mut().skip(group).for_each(|e| *e = end);
            }
        }
        let first = ends[0];
        ends.iter_mut().for_each(|e| *e = (*e).max(first));
        ends[3] = ends[2] + count.div_ceil(8) as u16;
        columns.sort_unstable_by_key(|c| c.tag);
        Ok(Self { columns, ends })
    }

    fn encode(&self, row_index: u32, rows: u32) -> Vec<u8> {
        let mut out = vec![ClientSig::TABLE.0, self.columns.len() as u8];
        self.ends
            .iter()
            .for_each(|e| out.extend_from_slice(&e.to_le_bytes()));
        // hidRowIndex, hnidRows, hidIndex (deprecated, 0).
        [row_index, rows, 0]
            .iter()
            .for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        for c in &self.columns {
            out.extend_from_slice(&c.tag.0.to_le_bytes());
            out.extend_from_slice(&c.offset.to_le_bytes());
            out.extend_from_slice(&[c.size, c.bit]);
        }
        out
    }
}

/// An open edit of a table.
#[derive(Clone, Debug)]
pub struct TableEdit {
    layout: Layout,
    /// Rows in matrix order; deleted ones leave a gap until the table is built.
    rows: Vec<Option<Row>>,
    by_id: HashMap<u32, usize>,
    version: u32,
}

impl TableEdit {
    /// An empty table with these columns.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn new(columns: &[PropTag]) -> Result<Self> {
        Ok(Self::with_layout(Layout::new(columns)?))
    }

    /// An empty table with the columns and row layout of another one, such as a template.
    #[must_use]
    pub fn with_layout(layout: Layout) -> Self {
        Self {
            layout,
            rows: Vec::new(),
            by_id: HashMap::new(),
            version: 0,
        }
    }

    /// Opens an existing table with all its rows.
    ///
    /// # Errors
    /// What [`TableContext::open`] and reading its rows give.
    pub fn open(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Self> {
        Self::open_source(&NodeSource::stored(ndb, bid_data, bid_sub))
    }

    /// Opens the table in any node, stored or just built.
    ///
    /// # Errors
    /// As [`TableEdit::open`]; [`PstError::Corrupt`] if it lacks the two columns of every table.
    pub fn open_source(source: &NodeSource) -> Result<Self> {
        let table = TableContext::open_source(source)?;
        let layout = table.layout().clone();
        for tag in [PropTag::LTP_ROW_ID, PropTag::LTP_ROW_VER] {
            if !layout.columns.iter().any(|c| c.tag == tag) {
                return Err(PstError::corrupt("TCOLDESC", 0, format!("no column {tag}")));
            }
        }
        let mut edit = Self::with_layout(layout);
        table.all_rows()?.into_iter().for_each(|row| edit.push(row));
        Ok(edit)
    }

    fn push(&mut self, row: Row) {
        self.version = self.version.max(row.version);
        self.by_id.insert(row.id, self.rows.len());
        self.rows.push(Some(row));
    }

    /// Columns and row layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many rows there are.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.by_id.len()
    }

    /// The row with this id.
    #[must_use]
    pub fn row(&self, id: u32) -> Option<&Row> {
        self.rows.get(*self.by_id.get(&id)?)?.as_ref()
    }

    /// The rows, in matrix order.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().flatten()
    }

    /// Whether the table can store this property.
    #[must_use]
    pub fn has_column(&self, tag: PropTag) -> bool {
        self.layout
            .columns
            .binary_search_by_key(&tag, |c| c.tag)
            .is_ok()
            || self.layout.columns.iter().any(|c| c.tag == tag)
    }

    fn storable(&self, props: &PropBag) -> PropBag {
        let fits = |tag: PropTag, len: u64| {
            self.layout
                .columns
                .iter()
                .any(|c| c.tag == tag && (!c.is_inline() || u64::from(c.size) == len))
        };
        props
            .iter()
            .filter(|p| ![PropTag::LTP_ROW_ID, PropTag::LTP_ROW_VER].contains(&p.tag))
            .filter(|p| fits(p.tag, p.data.len()))
            .cloned()
            .collect()
    }

    /// Sets the row with this id to what the table can store of `props`: a new row at the end,
    /// or a new version of an existing one in its place.
    ///
    /// # Errors
    /// [`PstError::Limit`] where the table is full; what comparing with the old row gives.
    pub fn put_row(&mut self, id: u32, props: &PropBag) -> Result<()> {
        let props = self.storable(props);
        let old = self.by_id.get(&id).copied();
        if let Some(row) = old.and_then(|i| self.rows.get(i)?.as_ref())
            && row.props.same_content(&props)?
        {
            return Ok(());
        }
        let version = self.version.checked_add(1).ok_or(PstError::Limit {
            what: "row versions",
            found: 1 << 32,
            limit: u32::MAX.into(),
        })?;
        let row = Row { id, version, props };
        match old.and_then(|i| self.rows.get_mut(i)) {
            Some(slot) => {
                self.version = version;
                *slot = Some(row);
            }
            None => self.push(row),
        }
        Ok(())
    }

    /// Changes cells of the row with this id and keeps its others; adds the row if there is none.
    ///
    /// # Errors
    /// As [`TableEdit::put_row`].
    pub fn update_row(&mut self, id: u32, props: &PropBag) -> Result<()> {
        let mut all = self.row(id).map(|r| r.props.clone()).unwrap_or_default();
        all.extend(self.storable(props));
        self.put_row(id, &all)
    }

    /// Deletes the row with this id; says whether there was one.
    pub fn delete_row(&mut self, id: u32) -> bool {
        let slot = self.by_id.remove(&id).and_then(|i| self.rows.get_mut(i));
        slot.is_some_and(|s| s.take().is_some())
    }

    /// The table as content to be written; what lies in the file `same` is shared with it.
    ///
    /// # Errors
    /// [`PstError::Limit`] for more than a heap holds, and what reading other files gives.
    pub fn build(&self, same: Option<&Arc<Ndb>>) -> Result<NodeContent> {
        let mut sink = ValueSink::new(ClientSig::TABLE, same);
        self.rows().for_each(|r| sink.reserve_objects(&r.props));
        // The row index is item 1 and TCINFO item 2, as other writers have them.
        let index = sink.heap.alloc(&[0; 8])?;
        let info = sink.heap.alloc(&self.layout.encode(0, 0))?;
        debug_assert_eq!((index, info), (fixed_hid(1), fixed_hid(2)));
        sink.heap.set_user_root(info);

        let mut ids = BTreeMap::new();
        let mut matrix = Vec::with_capacity(self.row_count());
        for (at, row) in self.rows().enumerate() {
            let at = u32::try_from(at).map_err(|_| PstError::Limit {
                what: "table rows",
                found: at as u64,
                limit: u32::MAX.into(),
            })?;
            ids.insert(u128::from(row.id), at.to_le_bytes().to_vec());
            matrix.push(self.encode_row(&mut sink, row)?);
        }
        let ids: Vec<_> = ids.into_iter().collect();
        build_bth(&mut sink.heap, index, 4, 4, &ids)?;

        let size = self.layout.row_size();
        let rows = if matrix.is_empty() {
            0
        } else if matrix.len() * size <= MAX_ITEM {
            sink.heap.alloc(&matrix.concat())?.0
        } else {
            let block = sink.heap.block_data();
            let per_block = (block / size).max(1);
            let mut blocks: Vec<Vec<u8>> =
                matrix.chunks(per_block).map(<[Vec<u8>]>::concat).collect();
            if let Some((_, full)) = blocks.split_last_mut() {
                full.iter_mut().for_each(|b| b.resize(block, 0));
            }
            sink.put_subnode(NodeData::Blocks(blocks))?.0
        };
        sink.heap.set(info, &self.layout.encode(index.0, rows))?;
        Ok(sink.finish())
    }

    fn encode_row(&self, sink: &mut ValueSink<'_>, row: &Row) -> Result<Vec<u8>> {
        let mut out = vec![0u8; self.layout.row_size()];
        let bitmap = self.layout.bitmap_offset();
        for c in &self.layout.columns {
            let cell = match c.tag {
                PropTag::LTP_ROW_ID => row.id.to_le_bytes().to_vec(),
                PropTag::LTP_ROW_VER => row.version.to_le_bytes().to_vec(),
                _ => match row.props.get_tag(c.tag) {
                    None => continue,
                    Some(p) if c.is_inline() => p.data.read(8)?,
                    Some(p) => sink.put(c.tag.prop_type(), &p.data)?.to_le_bytes().to_vec(),
                },
            };
            put(&mut out, c.offset.into(), &cell);
            if let Some(b) = out.get_mut(bitmap + usize::from(c.bit / 8)) {
                *b |= 0x80 >> (c.bit % 8);
            }
        }
        Ok(out)
    }
}

/// Builds a new table in one go.
#[derive(Clone, Debug)]
pub struct TableBuilder(TableEdit);

impl TableBuilder {
    /// A table with these columns.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn new(columns: &[PropTag]) -> Result<Self> {
        TableEdit::new(columns).map(Self)
    }

    /// Adds a row; its id must be new.
    ///
    /// # Errors
    /// [`PstError::Refused`] for an id that is taken; as [`TableEdit::put_row`].
    pub fn row(&mut self, id: u32, props: &PropBag) -> Result<&mut Self> {
        if self.0.row(id).is_some() {
            return Err(PstError::Refused(format!("row {id:#x} is there already")));
        }
        self.0.put_row(id, props)?;
        Ok(self)
    }

    /// The table as content to be written.
    ///
    /// # Errors
    /// As [`TableEdit::build`].
    pub fn build(&self, same: Option<&Arc<Ndb>>) -> Result<NodeContent> {
        self.0.build(same)
    }
}
