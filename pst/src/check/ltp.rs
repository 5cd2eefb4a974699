//! The check of heaps, property contexts, tables and the name map ([MS-PST] 2.3, 2.4.7).
//!
//! Findings of one kind are counted and given once, with the first place: a writer's habit is
//! one finding, not ten thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Finding, Severity};
use crate::ltp::{
    BthEntry, ClientSig, Heap, NameMap, NodeSource, PageMap, PropTag, PropertyContext,
    TableContext, fill_level, header_size, read_bth, unlisted_names,
};
use crate::ndb::Ndb;
use crate::ndb::bytes::u16_at;
use crate::{Bid, Nid, NidType, PstError, Result};

/// How deep subnodes are followed: each embedded message takes two levels.
const MAX_DEPTH: usize = 128;

/// Checks what the nodes hold: heap maps, BTH order, property values, table rows against row
/// indexes, the name map. Unlike [`check`](super::check) it reads nearly all of the file. It
/// never stops at the first finding; findings come in a fixed order.
#[must_use]
pub fn check_ltp(ndb: &Arc<Ndb>) -> Vec<Finding> {
    let mut c = LtpChecker {
        ndb,
        found: BTreeMap::new(),
        seen: BTreeSet::new(),
    };
    for node in ndb.nodes() {
        match node {
            Ok(n) => c.node(&n.nid.to_string(), n.nid, n.bid_data, n.bid_sub, MAX_DEPTH),
            // The trees' own check names the page.
            Err(e) => {
                c.add("nodes", Severity::Error, 0, "2.2.2.7.7", || e.to_string());
                break;
            }
        }
    }
    c.names();
    c.finish()
}

struct Found {
    severity: Severity,
    offset: u64,
    section: &'static str,
    count: u64,
    first: String,
}

struct LtpChecker<'a> {
    ndb: &'a Arc<Ndb>,
    found: BTreeMap<&'static str, Found>,
    seen: BTreeSet<(u64, u64)>,
}

/// What a node or subnode of a type holds; `None` where it is not a heap.
fn expected(nid: Nid) -> Option<ClientSig> {
    match nid.kind() {
        NidType::NORMAL_FOLDER
        | NidType::SEARCH_FOLDER
        | NidType::NORMAL_MESSAGE
        | NidType::ATTACHMENT
        | NidType::ASSOC_MESSAGE => Some(ClientSig::PROPERTIES),
        NidType::HIERARCHY_TABLE
        | NidType::CONTENTS_TABLE
        | NidType::ASSOC_CONTENTS_TABLE
        | NidType::SEARCH_CONTENTS_TABLE
        | NidType::ATTACHMENT_TABLE
        | NidType::RECIPIENT_TABLE => Some(ClientSig::TABLE),
        _ if nid == Nid::MESSAGE_STORE || nid == Nid::NAME_TO_ID_MAP => Some(ClientSig::PROPERTIES),
        _ => None,
    }
}

impl LtpChecker<'_> {
    fn add(
        &mut self,
        code: &'static str,
        severity: Severity,
        offset: u64,
        section: &'static str,
        detail: impl FnOnce() -> String,
    ) {
        self.found
            .entry(code)
            .and_modify(|f| f.count += 1)
            .or_insert_with(|| Found {
                severity,
                offset,
                section,
                count: 1,
                first: detail(),
            });
    }

    fn finish(self) -> Vec<Finding> {
        let finding = |(code, f): (&'static str, Found)| Finding {
            code,
            severity: f.severity,
            offset: f.offset,
            detail: if f.count == 1 {
                f.first
            } else {
                format!("{} times, first: {}", f.count, f.first)
            },
            section: f.section,
        };
        self.found.into_iter().map(finding).collect()
    }

    fn failed(
        &mut self,
        code: &'static str,
        offset: u64,
        section: &'static str,
        at: &str,
        e: &PstError,
    ) {
        self.add(code, Severity::Error, offset, section, || {
            format!("{at}: {e}")
        });
    }

    fn node(&mut self, at: &str, nid: Nid, data: Bid, sub: Bid, depth: usize) {
        // A pair of trees that two nodes share is looked at once: this also bounds the walk.
        if !self.seen.insert((data.key(), sub.key())) {
            return;
        }
        let source = NodeSource::stored(self.ndb, data, sub);
        let offset = self.offset(data, 0);
        if let Some(sig) = expected(nid) {
            self.heap(at, &source, sig, data, offset);
        }
        let subnodes = match self.ndb.subnodes(sub) {
            Ok(s) => s,
            Err(e) => return self.failed("subnodes", offset, "2.2.2.8.3.3", at, &e),
        };
        if depth == 0 && !subnodes.is_empty() {
            return self.add(
                "subnode-depth",
                Severity::Error,
                offset,
                "2.2.2.8.3.3",
                || format!("{at}: subnodes nest deeper than {MAX_DEPTH}"),
            );
        }
        for (nid, e) in subnodes {
            self.node(
                &format!("{at}/{nid}"),
                nid,
                e.bid_data,
                e.bid_sub,
                depth.saturating_sub(1),
            );
        }
    }

    /// File offset of data block `i` of a tree; 0 where it has none.
    fn offset(&self, data: Bid, i: usize) -> u64 {
        let find = || -> Result<Option<u64>> {
            let tree = self.ndb.data(data)?;
            let Some(bid) = tree.block_bids().get(i) else {
                return Ok(None);
            };
            Ok(self.ndb.block(*bid)?.map(|b| b.bref.ib))
        };
        find().ok().flatten().unwrap_or(0)
    }

    fn heap(&mut self, at: &str, source: &NodeSource, sig: ClientSig, data: Bid, offset: u64) {
        let heap = match Heap::open(source) {
            Ok(h) => h,
            Err(e) => return self.failed("heap", offset, "2.3.1.2", at, &e),
        };
        for i in 0..heap.block_count() {
            match heap.block(i) {
                Ok(b) => {
                    let last = i + 1 == heap.block_count();
                    if let Err(e) = self.block(at, i, last, &b.0, &b.1, data) {
                        self.failed("heap-map", self.offset(data, i), "2.3.1.5", at, &e);
                    }
                }
                Err(e) => self.failed("heap-block", self.offset(data, i), "2.3.1.5", at, &e),
            }
        }
        if let Err(e) = self.fill_levels(at, &heap, offset) {
            self.failed("heap-fill", offset, "2.3.1.2", at, &e);
        }
        match heap.client_sig() {
            found if found == sig && sig == ClientSig::PROPERTIES => {
                self.properties(at, source, &heap, offset);
            }
            found if found == sig => self.table(at, source, offset),
            // Six values are reserved; Outlook keeps some of its indexes under them.
            found if found.is_reserved() => {
                self.add("heap-reserved", Severity::Info, offset, "2.3.1.2", || {
                    format!("{at}: a heap of the undocumented kind {:#04x}", found.0)
                });
            }
            found => self.add("heap", Severity::Error, offset, "2.3.1.2", || {
                format!("{at}: bClientSig {:#04x}, not {:#04x}", found.0, sig.0)
            }),
        }
    }

    fn block(
        &mut self,
        at: &str,
        i: usize,
        last: bool,
        b: &[u8],
        map: &PageMap,
        data: Bid,
    ) -> Result<()> {
        let offset = self.offset(data, i);
        let full = self.ndb.format().max_data();
        if !last && b.len() != full {
            self.add(
                "heap-block-size",
                Severity::Warning,
                offset,
                "2.2.2.8.3.2.1",
                || {
                    format!(
                        "{at}: block {i} of a heap of several has {} bytes, not {full}",
                        b.len()
                    )
                },
            );
        }
        let entry = |k: usize| u16_at(b, map.offset + 4 + 2 * k, "rgibAlloc").map(usize::from);
        let mut start = entry(0)?;
        if start != header_size(i) {
            self.add(
                "heap-first-item",
                Severity::Warning,
                offset,
                "2.3.1.5",
                || {
                    format!(
                        "{at}: the items of block {i} begin at {start}, not {}",
                        header_size(i)
                    )
                },
            );
        }
        let mut empty = 0;
        for k in 1..=map.alloc {
            let end = entry(k)?;
            if end < start {
                self.add("heap-map", Severity::Error, offset, "2.3.1.5", || {
                    format!("{at}: item {k} of block {i} ends at {end}, before its start {start}")
                });
            }
            empty += usize::from(end == start);
            start = end;
        }
        if start > map.offset {
            self.add("heap-map", Severity::Error, offset, "2.3.1.5", || {
                format!(
                    "{at}: the items of block {i} end at {start}, in the map at {}",
                    map.offset
                )
            });
        }
        if empty != map.free {
            self.add("heap-free-count", Severity::Info, offset, "2.3.1.5", || {
                format!(
                    "{at}: cFree of block {i} is {} where {empty} of {} items are empty; \
                     readers that insist on it reject the object",
                    map.free, map.alloc
                )
            });
        }
        Ok(())
    }

    /// Fill levels are hints for the next writer.
    fn fill_levels(&mut self, at: &str, heap: &Heap, offset: u64) -> Result<()> {
        let full = self.ndb.format().max_data();
        let mut map = heap.block(0)?;
        let mut base = (0, 8);
        for i in 0..heap.block_count() {
            let block = heap.block(i)?;
            if header_size(i) > 12 {
                map = Arc::clone(&block);
                base = (i, 2);
            }
            let k = i - base.0;
            // Blocks past the first eight of a heap whose bitmap header is missing have no level.
            let Some(byte) = map.0.get(base.1 + k / 2) else {
                continue;
            };
            let stored = (byte >> (4 * (k % 2))) & 15;
            let used = block.1.offset + 6 + 2 * block.1.alloc;
            let level = fill_level(full.saturating_sub(used));
            if stored != level {
                self.add("heap-fill", Severity::Info, offset, "2.3.1.2", || {
                    format!("{at}: fill level {stored} of block {i}, by its map {level}")
                });
            }
        }
        Ok(())
    }

    fn order(&mut self, at: &str, what: &str, entries: &[BthEntry], offset: u64) {
        let falls = entries
            .iter()
            .zip(entries.iter().skip(1))
            .find(|(a, b)| a.key >= b.key);
        if let Some((a, b)) = falls {
            self.add("bth-order", Severity::Error, offset, "2.3.2", || {
                format!("{at}: in its {what}, key {:#x} follows {:#x}", b.key, a.key)
            });
        }
    }

    fn properties(&mut self, at: &str, source: &NodeSource, heap: &Heap, offset: u64) {
        match read_bth(heap, heap.user_root()) {
            Ok((_, entries)) => self.order(at, "properties", &entries, offset),
            Err(e) => return self.failed("properties", offset, "2.3.3", at, &e),
        }
        let pc = match PropertyContext::open_source(source) {
            Ok(pc) => pc,
            Err(e) => return self.failed("properties", offset, "2.3.3", at, &e),
        };
        let (bag, errors) = pc.bag_lenient();
        for (tag, e) in errors {
            self.add("property-value", Severity::Error, offset, "2.3.3.3", || {
                format!("{at}: property {tag}: {e}")
            });
        }
        for p in &bag {
            let fixed = p.tag.prop_type().fixed_size();
            if let Some(n) = fixed.filter(|n| *n as u64 != p.data.len()) {
                self.add(
                    "property-size",
                    Severity::Warning,
                    offset,
                    "2.3.3.3",
                    || {
                        format!(
                            "{at}: property {} has {} bytes, not {n}",
                            p.tag,
                            p.data.len()
                        )
                    },
                );
            }
        }
    }

    fn table(&mut self, at: &str, source: &NodeSource, offset: u64) {
        let table = match TableContext::open_source(source) {
            Ok(t) => t,
            Err(e) => return self.failed("table", offset, "2.3.4", at, &e),
        };
        let columns = table.columns();
        if columns
            .iter()
            .zip(columns.iter().skip(1))
            .any(|(a, b)| a.tag >= b.tag)
        {
            self.add(
                "table-columns",
                Severity::Warning,
                offset,
                "2.3.4.1",
                || format!("{at}: the columns are not sorted by tag"),
            );
        }
        for tag in [PropTag::LTP_ROW_ID, PropTag::LTP_ROW_VER] {
            if !columns.iter().any(|c| c.tag == tag) {
                self.add(
                    "table-columns",
                    Severity::Warning,
                    offset,
                    "2.3.4.4.1",
                    || format!("{at}: no column {tag}"),
                );
            }
        }
        let entries = match read_bth(table.heap(), table.row_index()) {
            Ok((_, entries)) => entries,
            Err(e) => return self.failed("table", offset, "2.3.4.3", at, &e),
        };
        self.order(at, "row index", &entries, offset);

        let mut used = BTreeSet::new();
        for ((id, place), row) in table.row_places().zip(table.rows()) {
            if !used.insert(place) {
                self.add(
                    "table-row-twice",
                    Severity::Error,
                    offset,
                    "2.3.4.3",
                    || format!("{at}: two row ids point to row {place} of the matrix"),
                );
            }
            if let Err(e) = row {
                self.add("table-row", Severity::Error, offset, "2.3.4.4", || {
                    format!("{at}: row {id:#x}: {e}")
                });
                continue;
            }
            let stored = table.raw_row_id(place);
            if stored.as_ref().ok() != Some(&id) {
                self.add("table-row-id", Severity::Error, offset, "2.3.4.4.1", || {
                    format!("{at}: row {place} says {stored:x?}, the index {id:#x}")
                });
            }
        }
        match table.matrix_rows() {
            // Room for rows behind the last one is left by writers that delete from the end.
            Ok(rows) if rows > table.row_count() => {
                self.add(
                    "table-unlisted-rows",
                    Severity::Info,
                    offset,
                    "2.3.4.4",
                    || {
                        format!(
                            "{at}: the matrix holds {rows} rows, the index {}",
                            table.row_count()
                        )
                    },
                );
            }
            Ok(_) => {}
            Err(e) => self.failed("table", offset, "2.3.4.4", at, &e),
        }
    }

    fn names(&mut self) {
        let section = "2.4.7";
        if let Err(e) = NameMap::read(self.ndb) {
            return self.failed("name-map", 0, section, "name-to-id map", &e);
        }
        match unlisted_names(self.ndb) {
            Ok(unlisted) => {
                for name in unlisted {
                    self.add("name-bucket", Severity::Info, 0, "2.4.7.6", || {
                        format!("{name} is not in the hash bucket in which readers look for it")
                    });
                }
            }
            Err(e) => self.failed("name-map", 0, section, "name-to-id map", &e),
        }
    }
}
