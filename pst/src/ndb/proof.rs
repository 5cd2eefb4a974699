//! Whether space that an AMap calls free really is, without walking the file.
//!
//! Real files exist whose AMaps are marked valid and lie: writing where they point would destroy
//! mail. To ask the trees which block lies at an offset, one would have to walk them, for they are
//! sorted by identifier. So the question is put the other way round: every block and every page of
//! the file ends in a trailer that names its BID ([MS-PST] 2.2.2.7.1, 2.2.2.8.1), at a multiple of 64
//! bytes. Whatever of the file lies in a range ends inside it or at most one block behind it. So:
//! look at each place where a trailer could be, and ask the trees, by identifier, whether what it
//! names is in use and lies here. That costs as much as is taken, whatever the size of the file.
//!
//! What this finds is exact: leftovers of deleted blocks have trailers too, but the trees no longer
//! know them. What it can miss is only what no reader would accept either: a block whose BID in the
//! trailer is wrong, a page whose trailer or checksum is wrong or that no lookup reaches. Checksums of
//! blocks are not needed: a block with damaged data is found and kept. The walk over
//! everything remains for who wants it ([`super::NdbTransaction::verify_space`]).

use std::ops::Range;

use super::Ndb;
use super::btree::{BbtEntry, BtLeaf, BtPage, NbtEntry};
use super::bytes::u8_at;
use super::format::SLOT;
use super::page::verify_page;
use super::recompute::walk_pages;
use crate::{Bid, Bref, PstError, Result};

/// Calls `live` with the place of each block and page of the file that reaches into `window` (file
/// offsets, multiples of 64), as (offset, bytes). `free` tells of a range of the file whether the
/// caller cares about any of it. Stops when `live` returns true.
///
/// # Errors
/// Errors of reading, and of damaged trees.
pub(super) fn live_in(
    ndb: &Ndb,
    window: Range<u64>,
    free: impl Fn(Range<u64>) -> bool,
    mut live: impl FnMut(u64, u64) -> bool,
) -> Result<()> {
    let format = ndb.format();
    let len = ndb
        .storage()
        .len()
        .map_err(|source| PstError::Io { offset: 0, source })?;
    let end = window.end.saturating_add(format.max_block as u64).min(len);
    let Some(n) = end.checked_sub(window.start).filter(|n| *n > 0) else {
        return Ok(());
    };
    let bytes = ndb.read(window.start, n as usize)?;
    let trailer_len = format.block_trailer;
    let last = match ndb.last_entry::<BbtEntry>()? {
        Some(entry) => entry.key(),
        None => 0,
    };
    for (i, slot) in bytes.chunks_exact(SLOT as usize).enumerate() {
        let trailer = slot.get(SLOT as usize - trailer_len..).unwrap_or_default();
        let bid = Bid(format.id_at(trailer, format.trailer_bid, "bid")?);
        if bid.is_none() {
            continue;
        }
        let end = window.start + (i as u64 + 1) * SLOT;
        let kind = (u8_at(trailer, 0, "ptype")?, u8_at(trailer, 1, "ptype")?);
        let page = format.page_size as u64;
        let page = end.saturating_sub(page)..end;
        let is_page = match kind {
            (0x80, 0x80) => free(page.clone()) && is_live_page::<BbtEntry>(ndb, page.start, bid)?,
            (0x81, 0x81) => free(page.clone()) && is_live_page::<NbtEntry>(ndb, page.start, bid)?,
            _ => false,
        };
        if is_page && live(page.start, page.end - page.start) {
            return Ok(());
        }
        // A block that ends here may have any length up to the largest.
        let longest = end.saturating_sub(format.max_block as u64)..end;
        if bid.key() > last || !free(longest) {
            continue;
        }
        if let Some(entry) = ndb.block(bid)? {
            let space = format.block_space(usize::from(entry.cb)) as u64;
            let range = entry.bref.ib..entry.bref.ib.saturating_add(space);
            let reaches = range.start < window.end && range.end > window.start;
            if reaches && free(range.clone()) && live(range.start, space) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether the bytes at `ib` are the page of BID `bid` that a lookup in its tree passes through.
fn is_live_page<E: BtLeaf>(ndb: &Ndb, ib: u64, bid: Bid) -> Result<bool> {
    let format = ndb.format();
    let data = ndb.read(ib, format.page_size)?;
    if verify_page(format, &data, E::PAGE, ib, Some(bid)).is_err() {
        return Ok(false);
    }
    let Ok(found) = BtPage::parse(format, data, E::PAGE, Bref { bid, ib }) else {
        return Ok(false);
    };
    if found.count() == 0 {
        // Without a key it cannot be looked up. Such pages are rare and old.
        let mut reached = false;
        walk_pages::<E>(ndb, &mut |p| {
            reached |= p.bref.ib == ib;
            Ok(())
        })?;
        return Ok(reached);
    }
    // Where a parent's key lies above the first key below it, lookups reach the page for others alone.
    for key in [found.key::<E>(0)?, found.key::<E>(found.count() - 1)?] {
        let mut page = ndb.bt_root::<E>()?;
        while page.level > found.level && page.count() > 0 {
            let below = page.upper_bound::<E>(key)?.saturating_sub(1);
            page = ndb.bt_child::<E>(&page, below)?;
        }
        if page.bref.ib == ib {
            return Ok(true);
        }
    }
    Ok(false)
}
