//! Table contexts: columns, the row index against the matrix, and where the cells' values lie
//! ([MS-PST] 2.3.4).

use std::collections::BTreeSet;

use super::codes::Code;
use super::content::{COPIED, Content, Copies, RowFacts};
use super::properties::{Located, Subs, narrow, sum_of};
use crate::ltp::{Column, Hnid, NodeSource, PropTag, TableContext, read_bth};
use crate::ndb::bytes::{slice, u8_at, u32_at};
use crate::ndb::crc;
use crate::{Nid, PstError, Result};

impl Content<'_> {
    pub(super) fn table(
        &mut self,
        source: &NodeSource,
        offset: u64,
        subnodes: Subs<'_>,
        used: &mut BTreeSet<Nid>,
    ) -> Option<Vec<RowFacts>> {
        let table = match TableContext::open_source(source) {
            Ok(t) => t,
            Err(e) => {
                self.failed(Code::Table, offset, &e);
                return None;
            }
        };
        self.columns(&table, offset);
        let entries = match read_bth(table.heap(), table.row_index()) {
            Ok((_, entries)) => entries,
            Err(e) => {
                self.failed(Code::Table, offset, &e);
                return None;
            }
        };
        self.order("row index", &entries, offset);
        drop(entries);
        if let Ok(info) = table.heap().item(table.heap().user_root())
            && let Ok(rows) = u32_at(&info, 14, "TCINFO.hnidRows")
            && let Hnid::Sub(nid) = Hnid::from(rows)
        {
            used.insert(nid);
            let blocks = subnodes
                .and_then(|s| s.get(&nid))
                .and_then(|e| self.ndb.data(e.bid_data).ok())
                .map_or(0, |tree| tree.block_count());
            if !self.spend_blocks(blocks) {
                return None;
            }
        }

        let mut facts = Vec::with_capacity(table.row_count());
        let mut taken = BTreeSet::new();
        for (id, place) in table.row_places() {
            let at = &self.place;
            if !taken.insert(place) {
                self.out.add(Code::TableRowTwice, offset, || {
                    format!("{at}: two row ids point to row {place} of the matrix")
                });
            }
            let row = match table.raw_row(place) {
                Ok(row) => row,
                Err(e) => {
                    self.out
                        .add(Code::TableRow, offset, || format!("{at}: row {id:#x}: {e}"));
                    continue;
                }
            };
            let stored = u32_at(&row, 0, "dwRowID");
            if stored.as_ref().ok() != Some(&id) {
                self.out.add(Code::TableRowId, offset, || {
                    format!("{at}: row {place} says {stored:x?}, the index {id:#x}")
                });
            }
            match self.cells(&table, &row, subnodes, used) {
                Ok(copies) => facts.push(RowFacts { id, copies }),
                Err((column, e)) => {
                    let at = &self.place;
                    self.out.add(Code::TableCell, offset, || {
                        format!("{at}: row {id:#x}, column {column}: {e}")
                    });
                    facts.push(RowFacts {
                        id,
                        copies: Copies::default(),
                    });
                }
            }
        }
        match table.matrix_rows() {
            // Room for rows behind the last one is left by writers that delete from the end.
            Ok(rows) if rows > table.row_count() => {
                let at = &self.place;
                self.out.add(Code::TableUnlistedRows, offset, || {
                    format!(
                        "{at}: the matrix holds {rows} rows, the index {}",
                        table.row_count()
                    )
                });
            }
            Ok(_) => {}
            Err(e) => self.failed(Code::Table, offset, &e),
        }
        Some(facts)
    }

    fn columns(&mut self, table: &TableContext, offset: u64) {
        let columns = table.columns();
        let at = &self.place;
        if !columns.is_sorted_by(|a, b| a.tag < b.tag) {
            self.out.add(Code::TableColumns, offset, || {
                format!("{at}: the columns are not sorted by tag")
            });
        }
        for tag in [PropTag::LTP_ROW_ID, PropTag::LTP_ROW_VER] {
            if !columns.iter().any(|c| c.tag == tag) {
                self.out.add(Code::TableColumns, offset, || {
                    format!("{at}: no column {tag}")
                });
            }
        }
    }

    /// The cells of a row that exist; the first whose value is not where the cell says.
    fn cells(
        &mut self,
        table: &TableContext,
        row: &[u8],
        subnodes: Subs<'_>,
        used: &mut BTreeSet<Nid>,
    ) -> Result<Copies, (PropTag, PstError)> {
        let layout = table.layout();
        let mut copies = Copies::default();
        for c in &layout.columns {
            let cell = |c: &Column| -> Result<Option<&[u8]>> {
                let bit = usize::from(c.bit);
                let byte = u8_at(row, layout.bitmap_offset() + bit / 8, "rgbCEB")?;
                if byte & (0x80 >> (bit % 8)) == 0 {
                    return Ok(None);
                }
                slice(row, c.offset.into(), c.size.into(), "TCOLDESC.ibData").map(Some)
            };
            let Some(cell) = cell(c).map_err(|e| (c.tag, e))? else {
                continue;
            };
            let id = c.tag.id();
            let copied = COPIED.contains(&id);
            if c.is_inline() {
                if copied {
                    let mut word = [0; 4];
                    let sum = match cell.len() {
                        n @ 0..=4 => {
                            if let Some(w) = word.get_mut(..n) {
                                w.copy_from_slice(cell);
                            }
                            narrow(c.tag.prop_type(), u32::from_le_bytes(word))
                        }
                        _ => crc(cell),
                    };
                    copies.set(c.tag, sum);
                }
                continue;
            }
            let raw = u32_at(cell, 0, "cell HNID").map_err(|e| (c.tag, e))?;
            let kind = c.tag.prop_type();
            let hnid = Hnid::from(raw);
            // A long value is located once: rows may share it, and there may be many.
            if let Hnid::Sub(nid) = hnid
                && used.contains(&nid)
            {
                continue;
            }
            let located = self
                .locate(table.heap(), subnodes, kind, hnid, used)
                .map_err(|e| (c.tag, e))?;
            if copied && !matches!(located, Located::Sub(_)) {
                copies.set(c.tag, sum_of(table.heap(), raw));
            }
        }
        Ok(copies)
    }
}
