//! What a file really uses, from its two trees ([MS-PST] 2.6.1.3.7): a walk over the whole file.

use std::collections::BTreeMap;

use super::Ndb;
use super::amap::{index_of, slots_of};
use super::bits::{Bits, SLOTS, reserved};
use super::btree::{BbtEntry, BtLeaf, BtPage, NbtEntry};
use crate::Result;

/// Recomputes all AMaps from the two trees, calling `overlap` for slots used twice. The maps
/// cover at least `at_least` and at most `at_most` spans; `overlap` is also called for what lies
/// behind them.
pub(super) fn rebuild(
    ndb: &Ndb,
    at_least: u64,
    at_most: u64,
    mut overlap: impl FnMut(u64, &'static str) -> Result<()>,
) -> Result<BTreeMap<u64, Bits>> {
    let mut maps: BTreeMap<u64, Bits> = (0..at_least).map(|i| (i, reserved(i))).collect();
    let mut mark = |ib: u64, len: usize, what: &'static str| -> Result<()> {
        let (index, slot) = index_of(ib)?;
        let n = slots_of(len);
        if slot + n > SLOTS || index >= at_most {
            return overlap(ib, what);
        }
        while maps.len() as u64 <= index {
            let next = maps.len() as u64;
            maps.insert(next, reserved(next));
        }
        if let Some(bits) = maps.get_mut(&index) {
            if bits.any(slot, n) {
                overlap(ib, what)?;
            }
            bits.set(slot, n, true);
        }
        Ok(())
    };
    let page = ndb.format().page_size;
    walk_pages::<NbtEntry>(ndb, &mut |p| mark(p.bref.ib, page, "node B-tree page"))?;
    walk_pages::<BbtEntry>(ndb, &mut |p| mark(p.bref.ib, page, "block B-tree page"))?;
    for block in ndb.blocks() {
        let block = block?;
        mark(
            block.bref.ib,
            ndb.format().block_space(usize::from(block.cb)),
            "block",
        )?;
    }
    Ok(maps)
}

/// Calls `f` for each page of a tree, parents before children.
pub(super) fn walk_pages<E: BtLeaf>(
    ndb: &Ndb,
    f: &mut dyn FnMut(&BtPage) -> Result<()>,
) -> Result<()> {
    // One frame a level: levels fall by one on each step down.
    fn below<E: BtLeaf>(
        ndb: &Ndb,
        page: &BtPage,
        f: &mut dyn FnMut(&BtPage) -> Result<()>,
    ) -> Result<()> {
        f(page)?;
        if page.level > 0 {
            for i in 0..page.count() {
                below::<E>(ndb, &*ndb.bt_child::<E>(page, i)?, f)?;
            }
        }
        Ok(())
    }
    below::<E>(ndb, &*ndb.bt_root::<E>()?, f)
}
