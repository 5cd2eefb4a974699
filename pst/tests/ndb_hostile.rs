//! Crafted damage: bytes changed at random below right checksums never panic, never loop, and
//! never let an edit overwrite what is in use.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::ndb::{
    CryptMethod, Format, Ndb, NdbTransaction, NodeContent, NodeData, PageType, Subnodes, crc,
    seal_page, signature,
};
use pst::{Nid, PstError, check::check};
use support::{FORMATS, Rng, bytes, committed, empty_ndb};

/// A file with trees of two levels, data trees and subnodes.
fn sample(format: &'static Format) -> Vec<u8> {
    let mut data = empty_ndb(format, CryptMethod::None);
    let mut tx = NdbTransaction::begin(open(&data).unwrap()).unwrap();
    let mut rng = Rng(3);
    for i in 0..60u32 {
        let len = if i % 10 == 0 { 20_000 } else { 40 };
        let sub = NodeContent {
            data: NodeData::Bytes(rng.bytes(30)),
            ..Default::default()
        };
        let content = NodeContent {
            data: NodeData::Bytes(rng.bytes(len)),
            subnodes: Subnodes::Tree([(Nid(0x3F), sub)].into()),
        };
        tx.put_node(Nid(0x404 + i * 32), Nid(0), &content).unwrap();
    }
    data = committed(&data, &tx.finish().unwrap());
    data
}

fn open(data: &[u8]) -> Result<Arc<Ndb>, PstError> {
    Ndb::open(bytes(data.to_vec())).map(Arc::new)
}

/// Reads and edits all that can be reached; errors are fine, panics and hangs are not.
fn exercise(data: &[u8]) {
    let Ok(ndb) = open(data) else { return };
    let findings = check(&ndb);
    let _ = findings.iter().map(ToString::to_string).collect::<Vec<_>>();
    for node in ndb.nodes().map_while(Result::ok).take(1000) {
        let _ = ndb
            .data(node.bid_data)
            .and_then(|t| t.read_all(&ndb, 1 << 24));
        let _ = ndb.subnodes(node.bid_sub);
    }
    for recompute in [false, true] {
        let tx = if recompute {
            NdbTransaction::begin_recomputed(Arc::clone(&ndb))
        } else {
            NdbTransaction::begin(Arc::clone(&ndb))
        };
        let Ok(mut tx) = tx else { continue };
        let content = NodeContent {
            data: NodeData::Bytes(vec![5; 30_000]),
            ..Default::default()
        };
        for i in 0..60u32 {
            let nid = Nid(0x404 + i * 32);
            let _ = if i % 3 == 0 {
                tx.delete_node(nid)
            } else {
                tx.put_node(nid, Nid(0), &content).map(drop)
            };
        }
        let _ = tx.verify_space();
        let _ = tx.finish();
    }
}

#[test]
fn changed_pages_below_right_checksums() {
    FORMATS
        .into_iter()
        .for_each(changed_pages_below_right_checksums_in);
}

fn changed_pages_below_right_checksums_in(format: &'static Format) {
    let data = sample(format);
    let ndb = open(&data).unwrap();
    let mut pages: Vec<(u64, PageType)> = vec![
        (ndb.header().nbt.ib, PageType::Nbt),
        (ndb.header().bbt.ib, PageType::Bbt),
    ];
    for at in (0x4400..data.len()).step_by(512) {
        for kind in [PageType::Nbt, PageType::Bbt, PageType::AMap] {
            if pst::ndb::verify_page(ndb.format(), &data[at..at + 512], kind, at as u64, None)
                .is_ok()
            {
                pages.push((at as u64, kind));
            }
        }
    }
    assert!(pages.len() > 10);
    let entries = format.btree_entries as u64;
    let mut rng = Rng(11);
    for round in 0..300 {
        let mut bad = data.clone();
        let (ib, kind) = pages[round % pages.len()];
        let page = &mut bad[ib as usize..ib as usize + 512];
        let own = format.page_data + format.trailer_bid;
        let bid = pst::Bid(format.id_at(page, own, "bid").unwrap());
        for _ in 0..=rng.below(3) {
            // The counts and levels as often as entries.
            let at = if rng.below(3) == 0 {
                entries + rng.below(4)
            } else {
                rng.below(entries)
            } as usize;
            page[at] = match rng.below(3) {
                0 => 0xFF,
                1 => page[at] ^ (1 << rng.below(8)),
                _ => rng.next() as u8,
            };
        }
        seal_page(ndb.format(), page, kind, ib, bid);
        exercise(&bad);
    }
}

#[test]
fn changed_blocks_below_right_checksums() {
    FORMATS
        .into_iter()
        .for_each(changed_blocks_below_right_checksums_in);
}

fn changed_blocks_below_right_checksums_in(format: &'static Format) {
    let data = sample(format);
    let ndb = open(&data).unwrap();
    let internal: Vec<_> = ndb
        .blocks()
        .map(Result::unwrap)
        .filter(|b| b.bref.bid.is_internal())
        .collect();
    assert!(internal.len() > 10);
    let mut rng = Rng(12);
    for round in 0..200 {
        let mut bad = data.clone();
        let block = internal[round % internal.len()];
        let (ib, cb) = (block.bref.ib as usize, usize::from(block.cb));
        for _ in 0..=rng.below(3) {
            let at = ib
                + if rng.below(2) == 0 {
                    rng.below(8)
                } else {
                    rng.below(cb as u64)
                } as usize;
            bad[at] = if rng.below(2) == 0 {
                0xFF
            } else {
                rng.next() as u8
            };
        }
        let sum = crc(&bad[ib..ib + cb]);
        let t = ib + format.block_space(cb) - format.block_trailer;
        let at = t + format.trailer_crc;
        bad[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(
            bad[t + 2..t + 4],
            signature(block.bref.ib, block.bref.bid.0).to_le_bytes()
        );
        exercise(&bad);
    }
}

#[test]
fn changed_headers_below_right_checksums() {
    let data = sample(FORMATS[0]);
    let mut rng = Rng(13);
    for round in 0..200 {
        let mut bad = data.clone();
        for _ in 0..=rng.below(2) {
            let at = 10 + rng.below(514) as usize;
            bad[at] = if rng.below(2) == 0 {
                0xFF
            } else {
                rng.next() as u8
            };
        }
        if round % 4 == 0 {
            bad[516 + (round / 4) % 8..524].fill(0xFF);
        }
        let sum = crc(&bad[8..479]);
        bad[4..8].copy_from_slice(&sum.to_le_bytes());
        let sum = crc(&bad[8..524]);
        bad[524..528].copy_from_slice(&sum.to_le_bytes());
        exercise(&bad);
    }
}

#[test]
fn maps_that_lie_are_noticed_before_anything_is_overwritten() {
    FORMATS
        .into_iter()
        .for_each(maps_that_lie_are_noticed_before_anything_is_overwritten_in);
}

fn maps_that_lie_are_noticed_before_anything_is_overwritten_in(format: &'static Format) {
    let mut data = sample(format);
    let ndb = open(&data).unwrap();
    // Everything but the map pages themselves is called free.
    let page = &mut data[0x4400..0x4600];
    let t = format.page_data;
    page[t - 494..t].fill(0);
    seal_page(ndb.format(), page, PageType::AMap, 0x4400, pst::Bid(0x4400));
    let ndb = open(&data).unwrap();
    assert!(check(&ndb).iter().any(|f| f.code == "used-but-free"));
    let content = NodeContent {
        data: NodeData::Bytes(vec![5; 3000]),
        ..Default::default()
    };
    for recomputed in [false, true] {
        let mut tx = if recomputed {
            NdbTransaction::begin_recomputed(Arc::clone(&ndb)).unwrap()
        } else {
            NdbTransaction::begin(Arc::clone(&ndb)).unwrap()
        };
        tx.put_node(Nid(0x2004), Nid(0), &content).unwrap();
        tx.verify_space().unwrap();
        let data = committed(&data, &tx.finish().unwrap());
        assert!(check(&open(&data).unwrap()).is_empty());
    }
}
