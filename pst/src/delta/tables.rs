//! Cells that lie in a folder's tables alone ([MS-PST] 2.4.4.4, 2.4.4.5; [`is_table_only`]): the replication
//! group, and PidTagMessageStatus. The latter is content ([`is_content_cell`]): where it changed, the
//! message was updated. All other cells are copies of the object's own properties.

use std::collections::BTreeMap;

use super::{Action, Change};
use crate::canonical::{canon_cells, cells_hash};
use crate::derived::{ObjectKind, is_content_cell};
use crate::inventory::{Inventory, Row};
use crate::ltp::{PropTag, PropValue, TableContext, TableLookup, ValueData};
use crate::messaging::schema::is_table_only;
use crate::messaging::{STATUS, for_each_chunk, status_hash};
use crate::ndb::NbtEntry;
use crate::{Bid, Nid, NidType, Pst, PstError, Result};

/// The cells of one row, by tag. Long values stand as their hash.
type Cells = BTreeMap<PropTag, Vec<u8>>;

/// Whether a node is a table of a folder.
pub(super) const fn is_table(nid: Nid) -> bool {
    matches!(
        nid.kind(),
        NidType::HIERARCHY_TABLE | NidType::CONTENTS_TABLE | NidType::ASSOC_CONTENTS_TABLE
    )
}

/// What the rows of a table, as they are in `nid`, stand for.
const fn kind_in(table: Nid) -> ObjectKind {
    match table.kind() {
        NidType::HIERARCHY_TABLE => ObjectKind::Folder,
        NidType::ASSOC_CONTENTS_TABLE => ObjectKind::Associated,
        _ => ObjectKind::Message,
    }
}

/// Whether a column is neither a copy nor content.
const fn is_bookkeeping(tag: PropTag) -> bool {
    is_table_only(tag.id()) && !is_content_cell(tag.0)
}

fn read(pst: &Pst, table: &NbtEntry) -> Result<BTreeMap<Nid, Cells>> {
    let mut out = BTreeMap::new();
    if table.bid_data.is_none() {
        return Ok(out);
    }
    let context = TableContext::open(pst.ndb(), table.bid_data, table.bid_sub)?;
    if !context.columns().iter().any(|c| is_bookkeeping(c.tag)) {
        return Ok(out);
    }
    for row in context.rows() {
        let row = row?;
        let mut cells = Cells::new();
        for value in row.props.iter().filter(|v| is_bookkeeping(v.tag)) {
            cells.insert(value.tag, bytes(value)?);
        }
        out.insert(Nid(row.id), cells);
    }
    Ok(out)
}

fn bytes(value: &PropValue) -> Result<Vec<u8>> {
    if let ValueData::Bytes(bytes) = &value.data {
        return Ok(bytes.clone());
    }
    let mut hasher = blake3::Hasher::new();
    for_each_chunk(value, &mut |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(hasher.finalize().as_bytes().to_vec())
}

/// The rows of a table, there on both sides, whose cells of their own differ.
pub(super) fn cells_changed(
    old: &Pst,
    old_table: &NbtEntry,
    new: &Pst,
    new_table: &NbtEntry,
) -> Result<Vec<Change>> {
    let (before, after) = (read(old, old_table)?, read(new, new_table)?);
    let mut out = Vec::new();
    for (nid, cells) in &after {
        let Some(once) = before.get(nid).filter(|once| *once != cells) else {
            continue;
        };
        let mut tags: Vec<PropTag> = once.keys().chain(cells.keys()).copied().collect();
        tags.sort_unstable_by_key(|tag| tag.0);
        tags.dedup();
        tags.retain(|tag| once.get(tag) != cells.get(tag));
        out.push(change(*nid, new_table.nid, tags));
    }
    Ok(out)
}

/// The folder and the messages of a table that lists messages.
fn lists_messages(table: Nid) -> bool {
    matches!(
        table.kind(),
        NidType::CONTENTS_TABLE | NidType::ASSOC_CONTENTS_TABLE
    )
}

/// Messages whose row in a table written since `bid_next` may say something else than it did; without
/// `bid_next` all its rows are looked at.
pub(super) fn restated<'a>(
    known: &'a Inventory,
    pst: &Pst,
    table: &NbtEntry,
    bid_next: Option<Bid>,
) -> Result<Vec<&'a Row>> {
    if !lists_messages(table.nid) {
        return Ok(Vec::new());
    }
    let folder = table.nid.with_kind(NidType::NORMAL_FOLDER);
    let cells = if table.bid_data.is_none() {
        Ok(Vec::new())
    } else {
        TableLookup::open(pst.ndb(), table.bid_data, table.bid_sub)
            .and_then(|lookup| lookup.inline_cells_since(bid_next, STATUS))
    };
    let said_something = |row: &&Row| row.parent == folder && row.cells != 0;
    let mut out = Vec::new();
    match cells {
        Ok(cells) => {
            for (id, cell) in cells {
                if let Some(row) = known.rows.get(&Nid(id))
                    && row.cells != status_hash(cell)?
                {
                    out.push(row);
                }
            }
            if bid_next.is_none() {
                out.extend(known.rows.values().filter(said_something));
            }
        }
        Err(PstError::Io { offset, source }) => return Err(PstError::Io { offset, source }),
        // A damaged table says nothing any more.
        Err(_) => out.extend(known.rows.values().filter(said_something)),
    }
    Ok(out)
}

/// Messages whose rows in two versions of a table say different things.
pub(super) fn restated_between(
    old: &Pst,
    old_table: &NbtEntry,
    new: &Pst,
    new_table: &NbtEntry,
) -> Result<Vec<Nid>> {
    if !lists_messages(new_table.nid) {
        return Ok(Vec::new());
    }
    let said = |pst: &Pst, table: &NbtEntry| -> Result<BTreeMap<Nid, u64>> {
        let cells = pst.read_column(table)?.into_iter();
        cells
            .map(|(nid, cells)| Ok((nid, cells_hash(&canon_cells(&cells)?))))
            .collect()
    };
    let (before, after) = (said(old, old_table)?, said(new, new_table)?);
    let mut out: Vec<Nid> = before.keys().chain(after.keys()).copied().collect();
    out.sort_unstable();
    out.dedup();
    out.retain(|nid| before.get(nid) != after.get(nid));
    Ok(out)
}

const fn change(nid: Nid, table: Nid, cells: Vec<PropTag>) -> Change {
    Change {
        nid,
        kind: kind_in(table),
        action: Action::TableOnly { table, cells },
    }
}

/// Digests of the cells that lie in tables alone, to be kept beside an inventory: with them
/// [`since`](super::since) can also tell what changed in tables only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableCells {
    /// By table and row.
    pub digests: BTreeMap<(Nid, Nid), [u8; 16]>,
}

impl TableCells {
    /// Reads the tables of all folders.
    ///
    /// # Errors
    /// If the node B-tree or a table cannot be read.
    pub fn read(pst: &Pst) -> Result<Self> {
        let mut tables = Vec::new();
        for entry in pst.ndb().nodes() {
            let entry = entry?;
            if is_table(entry.nid) {
                tables.push(entry.nid);
            }
        }
        let mut cells = Self::default();
        cells.changed(pst, &tables)?;
        Ok(cells)
    }

    /// Rows of `tables` ([`Delta::tables`](super::Delta::tables)), known before, whose cells differ now.
    /// Brings the digests of these tables up to date.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub fn changed(&mut self, pst: &Pst, tables: &[Nid]) -> Result<Vec<Change>> {
        let mut out = Vec::new();
        for table in tables {
            let rows = match pst.ndb().node(*table)? {
                Some(entry) => read(pst, &entry)?,
                None => BTreeMap::new(),
            };
            let all = (*table, Nid(0))..=(*table, Nid(u32::MAX));
            let mut once: BTreeMap<_, _> = self
                .digests
                .range(all)
                .map(|(key, digest)| (*key, *digest))
                .collect();
            self.digests.retain(|key, _| !once.contains_key(key));
            for (nid, cells) in rows {
                let digest = digest(&cells);
                if once.remove(&(*table, nid)).is_some_and(|d| d != digest) {
                    out.push(change(nid, *table, Vec::new()));
                }
                self.digests.insert((*table, nid), digest);
            }
        }
        out.sort_by_key(|change| change.nid);
        Ok(out)
    }
}

fn digest(cells: &Cells) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"pstsyncd table cells\0\x01");
    for (tag, bytes) in cells {
        hasher.update(&tag.0.to_le_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}
