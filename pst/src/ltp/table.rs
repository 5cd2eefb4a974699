//! Table contexts, reading ([MS-PST] 2.3.4).
//!
//! A row is its id, its version and the properties of those cells that exist. Rows come in
//! matrix order, which is the order in which they were added; the row index finds one by its id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::bag::PropBag;
use super::bth::read_bth;
use super::heap::{ClientSig, Heap, Hid, Hnid};
use super::node::{Blocks, Budget, NodeSource, SubnodeMap};
use super::pc::read_value;
use super::prop::{PropTag, PropValue, ValueData};
use crate::ndb::Ndb;
use crate::ndb::bytes::{slice, u8_at, u16_at, u32_at};
use crate::{Bid, PstError, Result};

/// A column ([MS-PST] 2.3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// What the column holds.
    pub tag: PropTag,
    /// Offset of its cell in a row.
    pub offset: u16,
    /// Bytes of its cell.
    pub size: u8,
    /// Its bit in the cell existence bitmap.
    pub bit: u8,
}

impl Column {
    /// Whether the cell holds the value itself; else it holds an HNID.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        self.tag.prop_type().fixed_size().is_some_and(|n| n <= 8)
    }
}

/// The fixed part of a table: columns and the layout of a row ([MS-PST] 2.3.4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The columns, in stored order (sorted by tag).
    pub columns: Vec<Column>,
    /// End offsets of the 4- and 8-byte cells, the 2-byte cells, the 1-byte cells and the
    /// bitmap; the last is the length of a row.
    pub ends: [u16; 4],
}

impl Layout {
    /// Bytes of a row.
    #[must_use]
    pub fn row_size(&self) -> usize {
        self.ends[3].into()
    }

    /// Where the cell existence bitmap begins.
    #[must_use]
    pub fn bitmap_offset(&self) -> usize {
        self.ends[2].into()
    }
}

/// A row.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// PidTagLtpRowId: for folder tables the NID of the object.
    pub id: u32,
    /// PidTagLtpRowVer.
    pub version: u32,
    /// The cells that exist, without those two.
    pub props: PropBag,
}

/// Where the rows lie, by block of whole rows.
enum Matrix {
    None,
    Heap(Vec<u8>),
    Sub {
        blocks: Blocks,
        rows_per_block: usize,
        cached: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
    },
}

/// An open table context.
pub struct TableContext {
    heap: Heap,
    subnodes: SubnodeMap,
    layout: Layout,
    /// (row id, matrix index), in matrix order.
    index: Vec<(u32, u32)>,
    by_id: HashMap<u32, u32>,
    matrix: Matrix,
    row_index: Hid,
}

impl std::fmt::Debug for TableContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableContext")
            .field("layout", &self.layout)
            .field("rows", &self.index.len())
            .finish_non_exhaustive()
    }
}

impl TableContext {
    /// Opens the table of a node or subnode.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if it is none, and what reading gives.
    pub fn open(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Self> {
        Self::open_source(&NodeSource::stored(ndb, bid_data, bid_sub))
    }

    /// Opens the table in any node, stored or just built.
    ///
    /// # Errors
    /// As [`TableContext::open`].
    pub fn open_source(source: &NodeSource) -> Result<Self> {
        let heap = Heap::open_as(source, ClientSig::TABLE)?;
        let subnodes = source.subnodes();
        let info = heap.item(heap.user_root())?;
        let layout = parse_layout(&info)?;
        let row_index = Hid(u32_at(&info, 10, "TCINFO.hidRowIndex")?);
        let rows = Hnid::from(u32_at(&info, 14, "TCINFO.hnidRows")?);

        let (header, entries) = read_bth(&heap, row_index)?;
        if header.key_size != 4 || !matches!(header.entry_size, 2 | 4) {
            return Err(PstError::corrupt(
                "TCINFO.hidRowIndex",
                0,
                format!(
                    "keys of {}, entries of {}",
                    header.key_size, header.entry_size
                ),
            ));
        }
        let mut by_id = HashMap::with_capacity(entries.len());
        let mut index = Vec::with_capacity(entries.len());
        for e in entries {
            let id = u32::try_from(e.key).unwrap_or_default();
            let at = if header.entry_size == 2 {
                u16_at(&e.data, 0, "TCROWID.dwRowIndex")?.into()
            } else {
                u32_at(&e.data, 0, "TCROWID.dwRowIndex")?
            };
            // A damaged index may repeat a key: the first is what a search would find.
            if let std::collections::hash_map::Entry::Vacant(v) = by_id.entry(id) {
                v.insert(at);
                index.push((id, at));
            }
        }
        index.sort_by_key(|(_, at)| *at);

        let matrix = match rows {
            Hnid::None => Matrix::None,
            Hnid::Heap(hid) => Matrix::Heap(heap.item(hid)?),
            Hnid::Sub(nid) => {
                let blocks = Blocks::open(&subnodes.require(nid, "TCINFO.hnidRows")?)?;
                // Every block but the last is full, so the first one tells how many rows fit.
                let first = if blocks.count() == 0 {
                    Vec::new()
                } else {
                    blocks.read(0)?
                };
                let rows_per_block = first.len() / layout.row_size();
                Matrix::Sub {
                    blocks,
                    rows_per_block,
                    cached: Mutex::default(),
                }
            }
        };
        Ok(Self {
            heap,
            subnodes,
            layout,
            index,
            by_id,
            matrix,
            row_index,
        })
    }

    /// The columns, in stored order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.layout.columns
    }

    /// Columns and row layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many rows the row index has.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.index.len()
    }

    /// The row ids, in matrix order.
    pub fn row_ids(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.index.iter().map(|(id, _)| *id)
    }

    /// The rows, in matrix order, read one by one.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row>> + '_ {
        self.index.iter().map(|(id, at)| self.read_row(*id, *at))
    }

    /// The row with this id.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where its cells cannot be found, and what reading gives.
    pub fn row_by_id(&self, id: u32) -> Result<Option<Row>> {
        self.by_id
            .get(&id)
            .map(|at| self.read_row(id, *at))
            .transpose()
    }

    /// All rows, for those who keep them: bounded as a whole, where [`TableContext::rows`] is
    /// bounded row by row.
    ///
    /// # Errors
    /// As [`TableContext::row_by_id`]; [`PstError::Limit`] where cells claim more than the file
    /// holds.
    pub fn all_rows(&self) -> Result<Vec<Row>> {
        let mut budget = Budget::new(self.heap.len(), &self.subnodes);
        let mut out = Vec::new();
        for row in self.rows() {
            let row = row?;
            row.props.iter().try_for_each(|p| {
                // Cells that hold their value are paid for by the row's own bytes.
                let inline = p.tag.prop_type().fixed_size().is_some_and(|n| n <= 8);
                if inline {
                    Ok(())
                } else {
                    budget.spend(&p.data)
                }
            })?;
            out.push(row);
        }
        Ok(out)
    }

    /// The cells of one column whose values lie in the rows themselves, by row id and in matrix order;
    /// rows without such a cell are left out. One pass over the matrix: no other cell is read.
    pub fn inline_column(&self, tag: PropTag) -> impl Iterator<Item = Result<(u32, Vec<u8>)>> + '_ {
        let column = self.layout.columns.iter().copied();
        let column = column.filter(Column::is_inline).find(|c| c.tag == tag);
        column.into_iter().flat_map(move |c| {
            let cell = move |(id, at): &(u32, u32)| -> Result<Option<(u32, Vec<u8>)>> {
                let raw = self.raw_row(*at)?;
                let byte = self.layout.bitmap_offset() + usize::from(c.bit / 8);
                if u8_at(&raw, byte, "rgbCEB")? & (0x80 >> (c.bit % 8)) == 0 {
                    return Ok(None);
                }
                let cell = slice(&raw, c.offset.into(), c.size.into(), "TCOLDESC.ibData")?;
                Ok(Some((*id, cell.to_vec())))
            };
            self.index
                .iter()
                .filter_map(move |row| cell(row).transpose())
        })
    }

    /// Whether there is a row with this id.
    #[must_use]
    pub fn has_row(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The heap below, for the check.
    #[must_use]
    pub const fn heap(&self) -> &Heap {
        &self.heap
    }

    /// The header of the row index.
    pub(crate) const fn row_index(&self) -> Hid {
        self.row_index
    }

    /// The row ids and their places in the matrix, in matrix order.
    pub(crate) fn row_places(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.index.iter().copied()
    }

    /// The row id that the row at matrix index `at` itself has.
    pub(crate) fn raw_row_id(&self, at: u32) -> Result<u32> {
        u32_at(&self.raw_row(at)?, 0, "dwRowID")
    }

    /// How many whole rows the matrix has room for.
    pub(crate) fn matrix_rows(&self) -> Result<usize> {
        let size = self.layout.row_size();
        Ok(match &self.matrix {
            Matrix::None => 0,
            Matrix::Heap(b) => b.len() / size,
            Matrix::Sub {
                blocks,
                rows_per_block,
                ..
            } => match blocks.count() {
                0 => 0,
                n => (n - 1) * rows_per_block + blocks.read(n - 1)?.len() / size,
            },
        })
    }

    /// The raw bytes of the row at matrix index `at`.
    fn raw_row(&self, at: u32) -> Result<Vec<u8>> {
        let size = self.layout.row_size();
        let i = at as usize;
        let missing = || PstError::corrupt("dwRowIndex", 0, format!("no row {at} in the matrix"));
        let cut = |b: &[u8], i: usize| {
            let start = i.checked_mul(size)?;
            b.get(start..start.checked_add(size)?).map(<[u8]>::to_vec)
        };
        match &self.matrix {
            Matrix::None => Err(missing()),
            Matrix::Heap(b) => cut(b, i).ok_or_else(missing),
            Matrix::Sub {
                blocks,
                rows_per_block,
                cached,
            } => {
                let n = i.checked_div(*rows_per_block).ok_or_else(missing)?;
                if n >= blocks.count() {
                    return Err(missing());
                }
                let mut cached = cached.lock().unwrap_or_else(PoisonError::into_inner);
                let block = match &*cached {
                    Some((k, b)) if *k == n => Arc::clone(b),
                    _ => {
                        let b = Arc::new(blocks.read(n)?);
                        *cached = Some((n, Arc::clone(&b)));
                        b
                    }
                };
                cut(&block, i % rows_per_block).ok_or_else(missing)
            }
        }
    }

    fn read_row(&self, id: u32, at: u32) -> Result<Row> {
        let raw = self.raw_row(at)?;
        let bitmap = self.layout.bitmap_offset();
        let mut row = Row {
            id,
            ..Row::default()
        };
        for c in &self.layout.columns {
            let byte = u8_at(&raw, bitmap + usize::from(c.bit / 8), "rgbCEB")?;
            if byte & (0x80 >> (c.bit % 8)) == 0 {
                continue;
            }
            let cell = slice(&raw, c.offset.into(), c.size.into(), "TCOLDESC.ibData")?;
            match c.tag {
                PropTag::LTP_ROW_ID => continue,
                PropTag::LTP_ROW_VER => {
                    row.version = u32_at(cell, 0, "dwRowVer")?;
                    continue;
                }
                _ => {}
            }
            let data = if c.is_inline() {
                ValueData::Bytes(cell.to_vec())
            } else {
                let raw = u32_at(cell, 0, "cell HNID")?;
                read_value(&self.heap, &self.subnodes, c.tag.prop_type(), raw)?
            };
            row.props.insert(PropValue { tag: c.tag, data });
        }
        Ok(row)
    }
}

fn parse_layout(info: &[u8]) -> Result<Layout> {
    let bad = |field, at: usize, detail: String| PstError::corrupt(field, at as u64, detail);
    let kind = u8_at(info, 0, "TCINFO.bType")?;
    if kind != ClientSig::TABLE.0 {
        return Err(bad("TCINFO.bType", 0, format!("{kind:#04x}, not 0x7c")));
    }
    let count = usize::from(u8_at(info, 1, "TCINFO.cCols")?);
    let mut ends = [0u16; 4];
    for (i, end) in ends.iter_mut().enumerate() {
        *end = u16_at(info, 2 + 2 * i, "TCINFO.rgib")?;
    }
    let [e4, e2, e1, eb] = ends;
    let bitmap = usize::from(eb).checked_sub(e1.into());
    if eb == 0 || e4 > e2 || e2 > e1 || bitmap.is_none_or(|n| n < count.div_ceil(8)) {
        return Err(bad(
            "TCINFO.rgib",
            2,
            format!("{ends:?} with {count} columns"),
        ));
    }
    let mut columns = Vec::with_capacity(count);
    for i in 0..count {
        let at = 22 + 8 * i;
        let c = Column {
            tag: PropTag(u32_at(info, at, "TCOLDESC.tag")?),
            offset: u16_at(info, at + 4, "TCOLDESC.ibData")?,
            size: u8_at(info, at + 6, "TCOLDESC.cbData")?,
            bit: u8_at(info, at + 7, "TCOLDESC.iBit")?,
        };
        let want = match c.tag.prop_type().fixed_size() {
            Some(n) if n <= 8 => n,
            _ => 4,
        };
        if usize::from(c.offset) + usize::from(c.size) > usize::from(e1)
            || usize::from(c.bit) / 8 >= usize::from(eb) - usize::from(e1)
            || usize::from(c.size) != want
        {
            return Err(bad("TCOLDESC", at, format!("{c:?} in rows of {ends:?}")));
        }
        columns.push(c);
    }
    Ok(Layout { columns, ends })
}
