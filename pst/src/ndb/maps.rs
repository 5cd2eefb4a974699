//! The map pages and the density list as a transaction leaves them ([MS-PST] 2.2.2.7.2 to
//! 2.2.2.7.6, 2.6.1.1.2).
//!
//! AMaps are authoritative. PMap, FMap and FPMap pages are deprecated: they are created where
//! they are due, wholly in use (0xFF), and changed only when the AMaps were recomputed, because a
//! recomputed AMap no longer knows the space that an old PMap holds in reserve. The density list
//! is a hint for finding space; it is written anew with a right checksum each time.

use storage::Payload;

use super::Ndb;
use super::amap::{SLOTS, Space};
use super::bytes::{put, u8_at, u32_at};
use super::format::{AMAP_SPAN, DLIST_OFFSET, Format, SLOT, amap_offset, map_pages};
use super::header::Header;
use super::page::{PageType, seal_page, verify_page};
use crate::{Bid, PstError, Result};

/// DFL_BACKFILL_COMPLETE: no backfill is in progress.
const BACKFILL_COMPLETE: u8 = 1;

/// The density list's entries: (AMap index, free slots); none if the page is not valid.
pub(crate) fn read_dlist(ndb: &Ndb) -> Result<Vec<(u64, usize)>> {
    let page = ndb.read(DLIST_OFFSET, ndb.format().page_size)?;
    verify_page(ndb.format(), &page, PageType::DList, DLIST_OFFSET, None)?;
    let count = usize::from(u8_at(&page, 1, "cEntDList")?);
    if count > ndb.format().max_dlist() {
        return Err(PstError::corrupt(
            "cEntDList",
            DLIST_OFFSET,
            format!("{count} entries, room for {}", ndb.format().max_dlist()),
        ));
    }
    let mut entries = Vec::with_capacity(count);
    for i in 0..count {
        let raw = u32_at(&page, 8 + 4 * i, "rgDListPageEnt")?;
        entries.push((u64::from(raw & 0xF_FFFF), (raw >> 20) as usize));
    }
    Ok(entries)
}

/// As [`read_dlist`]; a list that is not valid is as good as none, for it is a hint alone. One that
/// cannot be read now is not: the edit would come out otherwise than with it.
pub(super) fn dlist_hints(ndb: &Ndb) -> Result<Vec<(u64, usize)>> {
    match read_dlist(ndb) {
        Err(e @ PstError::Io { .. }) => Err(e),
        other => Ok(other.unwrap_or_default()),
    }
}

/// Builds the density list page from (AMap index, free slots).
pub(super) fn dlist_page(format: &Format, mut entries: Vec<(u64, usize)>, bid: Bid) -> Vec<u8> {
    entries.retain(|(index, free)| *free > 0 && *free <= SLOTS && *index < 1 << 20);
    entries.sort_by_key(|(index, free)| (std::cmp::Reverse(*free), *index));
    entries.truncate(format.max_dlist());
    let mut page = vec![0u8; format.page_size];
    put(&mut page, 0, &[BACKFILL_COMPLETE, entries.len() as u8]);
    let current = entries.first().map_or(0, |(index, _)| *index as u32);
    put(&mut page, 4, &current.to_le_bytes());
    for (i, (index, free)) in entries.iter().enumerate() {
        let raw = (*index as u32) | ((*free as u32) << 20);
        put(&mut page, 8 + 4 * i, &raw.to_le_bytes());
    }
    seal_page(format, &mut page, PageType::DList, DLIST_OFFSET, bid);
    page
}

/// Builds a map page with these bits. Map pages have their offset as BID.
pub(super) fn map_page(format: &Format, kind: PageType, ib: u64, bits: &[u8]) -> Vec<u8> {
    let mut page = vec![0u8; format.page_size];
    put(&mut page, format.page_data - bits.len(), bits);
    seal_page(format, &mut page, kind, ib, Bid(ib));
    page
}

/// The map pages to write.
#[derive(Default)]
pub(super) struct MapWrites {
    /// Pages of new spans: free space as far as the committed file is concerned.
    pub fresh: Vec<(u64, Payload)>,
    /// Pages of the committed file, changed in place, and the density list.
    pub changed: Vec<(u64, Payload)>,
}

/// Computes the map pages after a transaction; sets the header's space fields.
pub(super) fn map_writes(base: &Ndb, space: &Space, header: &mut Header) -> Result<MapWrites> {
    let format = base.format();
    let mut writes = MapWrites::default();
    let mut dlist: std::collections::BTreeMap<u64, usize> = if space.rebuilt {
        std::collections::BTreeMap::new()
    } else {
        dlist_hints(base)?.into_iter().collect()
    };
    dlist.retain(|index, _| *index < space.count());
    let mut total_free = 0u64;
    for (index, bits, changed) in space.after() {
        dlist.insert(index, bits.free());
        total_free += bits.free() as u64 * SLOT;
        if !changed {
            continue;
        }
        let fresh = index >= space.old_count();
        for (kind, offset) in map_pages(index) {
            let ib = amap_offset(index) + offset;
            let full = [0xFFu8; SLOTS / 8];
            let page = match kind {
                PageType::AMap => map_page(format, kind, ib, bits.bytes()),
                _ if fresh || space.rebuilt => map_page(format, kind, ib, &full),
                _ => continue,
            };
            if fresh {
                &mut writes.fresh
            } else {
                &mut writes.changed
            }
            .push((ib, page.into()));
        }
    }
    header.amap_last = amap_offset(space.count() - 1);
    header.file_eof = header.amap_last + AMAP_SPAN;
    if space.rebuilt {
        header.amap_free = total_free;
        header.pmap_free = 0;
    } else {
        header.amap_free = header.amap_free.saturating_add_signed(space.free_change());
    }
    let bid = header.bid_next_page;
    header.bid_next_page = format.next_page_bid(bid);
    writes.changed.insert(
        0,
        (
            DLIST_OFFSET,
            dlist_page(format, dlist.into_iter().collect(), bid).into(),
        ),
    );
    Ok(writes)
}
