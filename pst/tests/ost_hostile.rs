//! Crafted damage in an OST with 4 KiB pages: pages and deflated blocks changed below right checksums
//! never panic, never loop, and take no more memory than the file explains. There is no writer of
//! this format, so a real file is changed.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::check::{check, check_ltp};
use pst::dump::{DumpOptions, dump};
use pst::ndb::{BbtEntry, NbtEntry, Ndb, PageType, crc, seal_page, verify_page};
use pst::{Bid, Pst, PstError};
use support::{OST_4K_FILE, Rng, bytes, shared};

/// Reads all that can be reached; errors are fine.
fn exercise(data: &[u8]) -> bool {
    let Ok(ndb) = Ndb::open(bytes(data.to_vec())).map(Arc::new) else {
        return false;
    };
    let _ = check(&ndb);
    let _ = check_ltp(&ndb);
    let nodes: Vec<NbtEntry> = ndb.nodes().map_while(Result::ok).take(5000).collect();
    for node in nodes {
        let _ = ndb
            .data(node.bid_data)
            .and_then(|t| t.read_all(&ndb, 1 << 24));
        let _ = ndb.subnodes(node.bid_sub);
    }
    let Ok(pst) = Pst::from_ndb(ndb) else {
        return true;
    };
    let mut budget = 0usize;
    let _ = dump(&pst, DumpOptions::default(), &mut |line| {
        budget += line.len();
        if budget > 64 << 20 {
            return Err(PstError::Refused("far more than the file holds".into()));
        }
        Ok(())
    });
    assert!(budget < 64 << 20);
    true
}

/// How many changed files are read by each test; more by PSTSYNCD_OST_ROUNDS.
fn rounds() -> usize {
    let set = std::env::var("PSTSYNCD_OST_ROUNDS").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(40)
}

fn sample() -> Option<(Vec<u8>, Ndb)> {
    let data = std::fs::read(shared()?.join("corpus").join(OST_4K_FILE)).unwrap();
    let ndb = Ndb::open(bytes(data.clone())).unwrap();
    Some((data, ndb))
}

#[test]
fn changed_pages_below_right_checksums() {
    let Some((data, ndb)) = sample() else { return };
    let format = ndb.format();
    let mut pages = Vec::new();
    for at in (0..data.len() - 4096).step_by(512) {
        for kind in [PageType::Nbt, PageType::Bbt] {
            let page = &data[at..at + 4096];
            if let Ok(bid) = verify_page(format, page, kind, at as u64, None) {
                pages.push((at, kind, bid));
            }
        }
    }
    assert!(pages.len() > 20, "{}", pages.len());
    let (mut rng, mut opened) = (Rng(41), 0);
    for round in 0..rounds() {
        let mut bad = data.clone();
        let (at, kind, bid) = pages[round * 7 % pages.len()];
        let page = &mut bad[at..at + 4096];
        for _ in 0..=rng.below(3) {
            // The counts and levels as often as entries.
            let i = if rng.below(3) == 0 {
                format.btree_entries as u64 + rng.below(6)
            } else {
                rng.below(24 * 170) % format.btree_entries as u64
            } as usize;
            page[i] = match rng.below(3) {
                0 => 0xFF,
                1 => page[i] ^ (1 << rng.below(8)),
                _ => rng.next() as u8,
            };
        }
        seal_page(format, page, kind, at as u64, bid);
        opened += usize::from(exercise(&bad));
    }
    assert!(opened > 10, "{opened}");
}

#[test]
fn changed_blocks_below_right_checksums() {
    let Some((data, ndb)) = sample() else { return };
    let format = ndb.format();
    let blocks: Vec<BbtEntry> = ndb.blocks().map(Result::unwrap).collect();
    let mut rng = Rng(42);
    for round in 0..rounds() {
        let mut bad = data.clone();
        let start = rng.below(blocks.len() as u64) as usize;
        // Blocks that refer to others and deflated ones most of all.
        let of_interest = |b: &&BbtEntry| match round % 3 {
            0 => b.bref.bid.is_internal(),
            1 => b.cb != b.cb_data,
            _ => b.cb > 0,
        };
        let mut from = blocks.iter().cycle().skip(start);
        let block = from.find(of_interest).unwrap();
        let (ib, cb) = (block.bref.ib as usize, usize::from(block.cb));
        for _ in 0..=rng.below(3) {
            bad[ib + rng.below(cb as u64) as usize] = rng.next() as u8;
        }
        let sum = crc(&bad[ib..ib + cb]);
        let at = ib + format.block_space(cb) - format.block_trailer + format.trailer_crc;
        bad[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        assert!(exercise(&bad));
    }
    assert_ne!(blocks[0].bref.bid, Bid::NONE);
}
