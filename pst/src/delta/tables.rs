//! Cells that lie in a folder's tables alone: PidTagMessageStatus and the replication group
//! ([MS-PST] 2.4.4.4, 2.4.4.5; [`is_table_only`]). All other cells are copies of the object's own properties.

use std::collections::BTreeMap;

use super::{Action, Change};
use crate::derived::ObjectKind;
use crate::ltp::{PropTag, PropValue, TableContext, ValueData};
use crate::messaging::for_each_chunk;
use crate::messaging::schema::is_table_only;
use crate::ndb::NbtEntry;
use crate::{Nid, NidType, Pst, Result};

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

fn read(pst: &Pst, table: &NbtEntry) -> Result<BTreeMap<Nid, Cells>> {
    let mut out = BTreeMap::new();
    if table.bid_data.is_none() {
        return Ok(out);
    }
    let context = TableContext::open(pst.ndb(), table.bid_data, table.bid_sub)?;
    if !context.columns().iter().any(|c| is_table_only(c.tag.id())) {
        return Ok(out);
    }
    for row in context.rows() {
        let row = row?;
        let mut cells = Cells::new();
        for value in row.props.iter().filter(|v| is_table_only(v.tag.id())) {
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
