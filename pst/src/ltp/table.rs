//! Table contexts, reading ([MS-PST] 2.3.4).
//!
//! A row is its id, its version and the properties of those cells that exist. Rows come in
//! matrix order, which is the order in which they were added; the row index finds one by its id.
//!
//! [`TableContext`] reads the whole row index and then any row; [`TableLookup`] reads what one row
//! needs and nothing else, however large the table is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::bag::PropBag;
use super::bth::{BthHeader, read_bth};
use super::bth_edit::find;
use super::heap::{ClientSig, Heap, Hid, Hnid};
use super::node::{Blocks, Budget, NodeSource, SubnodeMap};
use super::pc::read_value;
use super::prop::{PropTag, PropValue, ValueData};
use crate::ndb::Ndb;
use crate::ndb::bytes::{slice, u8_at, u16_at, u32_at};
use crate::{Bid, Nid, PstError, Result};

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

    /// The cell of a column in a row's bytes; `None` if it does not exist ([MS-PST] 2.3.4.4.1, rgbCEB).
    pub(crate) fn cell<'a>(&self, raw: &'a [u8], c: &Column) -> Result<Option<&'a [u8]>> {
        let byte = u8_at(raw, self.bitmap_offset() + usize::from(c.bit / 8), "rgbCEB")?;
        if byte & (0x80 >> (c.bit % 8)) == 0 {
            return Ok(None);
        }
        slice(raw, c.offset.into(), c.size.into(), "TCOLDESC.ibData").map(Some)
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
pub(crate) enum Matrix {
    None,
    Heap(Vec<u8>),
    Sub {
        nid: Nid,
        blocks: Blocks,
        rows_per_block: usize,
        cached: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
    },
}

/// A stored table without its row index: rows by their place in the matrix.
pub(crate) struct TableStore {
    pub heap: Heap,
    pub subnodes: SubnodeMap,
    pub layout: Layout,
    pub matrix: Matrix,
    /// TCINFO.hidRowIndex.
    pub row_index: Hid,
}

/// An open table context.
pub struct TableContext {
    store: TableStore,
    /// (row id, matrix index), in matrix order.
    index: Vec<(u32, u32)>,
    by_id: HashMap<u32, u32>,
}

impl std::fmt::Debug for TableContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableContext")
            .field("layout", &self.store.layout)
            .field("rows", &self.index.len())
            .finish_non_exhaustive()
    }
}

/// The place in the matrix that a TCROWID names ([MS-PST] 2.3.4.3.1): 4 bytes, 2 in ANSI files.
pub(crate) fn row_place(data: &[u8]) -> Result<u32> {
    if data.len() == 2 {
        u16_at(data, 0, "TCROWID.dwRowIndex").map(u32::from)
    } else {
        u32_at(data, 0, "TCROWID.dwRowIndex")
    }
}

/// As [`row_place`], the other way: `size` bytes of a row's place.
pub(crate) fn encode_place(at: usize, size: usize) -> Result<Vec<u8>> {
    let limit: u64 = if size == 2 { 1 << 16 } else { 1 << 32 };
    if at as u64 >= limit {
        return Err(PstError::Limit {
            what: "table rows",
            found: at as u64 + 1,
            limit,
        });
    }
    Ok((at as u64).to_le_bytes().into_iter().take(size).collect())
}

/// A row index must map 4-byte ids to 2- or 4-byte places.
pub(crate) fn check_index(header: &BthHeader) -> Result<()> {
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
    Ok(())
}

impl TableStore {
    pub(crate) fn open(source: &NodeSource) -> Result<Self> {
        let heap = Heap::open_as(source, ClientSig::TABLE)?;
        let subnodes = source.subnodes();
        let info = heap.item(heap.user_root())?;
        let layout = parse_layout(&info)?;
        let row_index = Hid(u32_at(&info, 10, "TCINFO.hidRowIndex")?);
        let rows = Hnid::from(u32_at(&info, 14, "TCINFO.hnidRows")?);
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
                    nid,
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
            matrix,
            row_index,
        })
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
    pub(crate) fn raw_row(&self, at: u32) -> Result<Vec<u8>> {
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
                ..
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

    pub(crate) fn read_row(&self, id: u32, at: u32) -> Result<Row> {
        let raw = self.raw_row(at)?;
        let mut row = Row {
            id,
            ..Row::default()
        };
        for c in &self.layout.columns {
            let Some(cell) = self.layout.cell(&raw, c)? else {
                continue;
            };
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

/// Finds single rows of a stored table: a look-up reads one heap item per level of the row index,
/// the row's block and its cells.
pub struct TableLookup {
    store: TableStore,
    index: BthHeader,
}

impl TableLookup {
    /// Opens the table of a node or subnode.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if it is none, and what reading gives.
    pub fn open(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Self> {
        let store = TableStore::open(&NodeSource::stored(ndb, bid_data, bid_sub))?;
        let index = BthHeader::read(&store.heap, store.row_index)?;
        check_index(&index)?;
        Ok(Self { store, index })
    }

    /// Columns and row layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.store.layout
    }

    /// How many rows the matrix holds; the row index is not counted.
    ///
    /// # Errors
    /// What reading the last block gives.
    pub fn matrix_rows(&self) -> Result<usize> {
        self.store.matrix_rows()
    }

    /// Whether the row index has this id ([MS-PST] 2.3.4.3).
    ///
    /// # Errors
    /// [`PstError::Corrupt`] for a damaged index, and what reading gives.
    pub fn has_row(&self, id: u32) -> Result<bool> {
        Ok(find(&self.store.heap, &self.index, id.into())?.is_some())
    }

    /// The row with this id.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where its cells cannot be found, and what reading gives.
    pub fn row_by_id(&self, id: u32) -> Result<Option<Row>> {
        match find(&self.store.heap, &self.index, id.into())? {
            Some(place) => self.store.read_row(id, row_place(&place)?).map(Some),
            None => Ok(None),
        }
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
        let store = TableStore::open(source)?;
        let (header, entries) = read_bth(&store.heap, store.row_index)?;
        check_index(&header)?;
        let mut by_id = HashMap::with_capacity(entries.len());
        let mut index = Vec::with_capacity(entries.len());
        for e in entries {
            let id = u32::try_from(e.key).unwrap_or_default();
            let at = row_place(&e.data)?;
            // A damaged index may repeat a key: the first is what a search would find.
            if let std::collections::hash_map::Entry::Vacant(v) = by_id.entry(id) {
                v.insert(at);
                index.push((id, at));
            }
        }
        index.sort_by_key(|(_, at)| *at);

        Ok(Self {
            store,
            index,
            by_id,
        })
    }

    /// The columns, in stored order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.store.layout.columns
    }

    /// Columns and row layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.store.layout
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
        self.index
            .iter()
            .map(|(id, at)| self.store.read_row(*id, *at))
    }

    /// The row with this id.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where its cells cannot be found, and what reading gives.
    pub fn row_by_id(&self, id: u32) -> Result<Option<Row>> {
        self.by_id
            .get(&id)
            .map(|at| self.store.read_row(id, *at))
            .transpose()
    }

    /// All rows, for those who keep them: bounded as a whole, where [`TableContext::rows`] is
    /// bounded row by row.
    ///
    /// # Errors
    /// As [`TableContext::row_by_id`]; [`PstError::Limit`] where cells claim more than the file
    /// holds.
    pub fn all_rows(&self) -> Result<Vec<Row>> {
        let mut budget = Budget::new(self.store.heap.len(), &self.store.subnodes);
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

    /// Whether there is a row with this id.
    #[must_use]
    pub fn has_row(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The heap below, for the check.
    #[must_use]
    pub const fn heap(&self) -> &Heap {
        &self.store.heap
    }

    /// The header of the row index.
    pub(crate) const fn row_index(&self) -> Hid {
        self.store.row_index
    }

    /// The row ids and their places in the matrix, in matrix order.
    pub(crate) fn row_places(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.index.iter().copied()
    }

    /// The raw bytes of the row at matrix index `at`, for the check.
    pub(crate) fn raw_row(&self, at: u32) -> Result<Vec<u8>> {
        self.store.raw_row(at)
    }

    /// How many whole rows the matrix has room for.
    pub(crate) fn matrix_rows(&self) -> Result<usize> {
        self.store.matrix_rows()
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
