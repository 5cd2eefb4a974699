//! Reads every node, block and subnode of the real files at the node database layer.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pst::ndb::{CryptMethod, Ndb, NdbTransaction};
use pst::{Bid, Nid, PstError};
use support::{OST_4K_FILE, bytes, readable_files, shared};

/// Walks one node's data and subnodes; counts references to blocks.
fn walk(
    ndb: &Ndb,
    data: Bid,
    sub: Bid,
    depth: usize,
    bytes: &mut u64,
    seen: &mut BTreeSet<u64>,
) -> Result<(), PstError> {
    assert!(depth < 32, "subnodes nest too deep");
    let tree = ndb.data(data)?;
    *bytes += tree.read_all(ndb, 1 << 30)?.len() as u64;
    for bid in tree.block_bids().iter().chain(tree.internal_bids()) {
        seen.insert(bid.key());
    }
    let (subnodes, blocks) = ndb.subnode_tree(sub)?;
    for bid in blocks {
        seen.insert(bid.key());
    }
    for entry in subnodes.values() {
        walk(ndb, entry.bid_data, entry.bid_sub, depth + 1, bytes, seen)?;
    }
    Ok(())
}

#[test]
fn every_file_reads_wholly() {
    let Some(dir) = shared() else { return };
    for name in readable_files() {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let ndb = Ndb::open(bytes(data)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (mut total, mut seen, mut nodes, mut failed) = (0, BTreeSet::new(), 0, Vec::new());
        for node in ndb.nodes() {
            let node = node.unwrap_or_else(|e| panic!("{name}: {e}"));
            nodes += 1;
            if let Err(e) = walk(&ndb, node.bid_data, node.bid_sub, 0, &mut total, &mut seen) {
                failed.push(format!("{}: {e}", node.nid));
            }
            assert_eq!(ndb.node(node.nid).unwrap(), Some(node), "{name}");
        }
        let mut blocks = BTreeMap::new();
        for block in ndb.blocks() {
            let block = block.unwrap_or_else(|e| panic!("{name}: {e}"));
            if let Err(e) = ndb.block_data_of(&block) {
                failed.push(format!("block {}: {e}", block.bref.bid));
            }
            assert_eq!(ndb.block(block.bref.bid).unwrap(), Some(block), "{name}");
            blocks.insert(block.bref.bid.key(), block);
        }
        println!(
            "{name}: {:?} {nodes} nodes, {} blocks ({} reached), {total} bytes, torn {}, maps valid {}, bidNextB {} bidNextP {} max {:x}",
            ndb.header().crypt,
            blocks.len(),
            seen.len(),
            ndb.header().torn,
            ndb.header().maps_valid(),
            ndb.header().bid_next_block,
            ndb.header().bid_next_page,
            blocks.keys().max().unwrap()
        );
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        assert!(
            ndb.node(Nid(0x21)).unwrap().is_some(),
            "{name} has no message store"
        );
        assert_eq!(ndb.node(Nid(0xFFFF_FFFF)).unwrap(), None);
        assert_eq!(ndb.block(Bid(u64::MAX)).unwrap(), None);
        // Seeking gives the same as skipping.
        let all: Vec<Nid> = ndb.nodes().map(|n| n.unwrap().nid).collect();
        for (i, nid) in all.iter().enumerate().step_by(7) {
            let tail: Vec<Nid> = ndb
                .nodes_from(*nid)
                .take(3)
                .map(|n| n.unwrap().nid)
                .collect();
            assert_eq!(tail, all[i..].iter().copied().take(3).collect::<Vec<_>>());
            let after: Option<Nid> = ndb
                .nodes_from(Nid(nid.0 + 1))
                .next()
                .map(|n| n.unwrap().nid);
            assert_eq!(after, all.get(i + 1).copied());
        }
        assert_ne!(ndb.header().crypt, CryptMethod::Cyclic);
    }
}

#[test]
fn an_ost_with_large_pages_is_not_written() {
    let Some(dir) = shared() else { return };
    let data = std::fs::read(dir.join("corpus").join(OST_4K_FILE)).unwrap();
    let ndb = Arc::new(Ndb::open(bytes(data)).unwrap());
    let deflated = ndb
        .blocks()
        .map(Result::unwrap)
        .filter(|b| b.cb != b.cb_data);
    assert_eq!(deflated.count(), 888);
    for begin in [NdbTransaction::begin, NdbTransaction::begin_recomputed] {
        let e = begin(Arc::clone(&ndb)).err().unwrap();
        assert!(matches!(e, PstError::Refused(_)), "{e}");
        assert!(e.to_string().contains("OST with 4 KiB pages"), "{e}");
    }
    assert!(matches!(
        Ndb::create_empty_as(&pst::ndb::format::OST_4K, CryptMethod::None),
        Err(PstError::Refused(_))
    ));
}

#[test]
fn a_deflated_block_that_lies_is_an_error() {
    let Some(dir) = shared() else { return };
    let data = std::fs::read(dir.join("corpus").join(OST_4K_FILE)).unwrap();
    let ndb = Ndb::open(bytes(data.clone())).unwrap();
    let seal = |data: &mut Vec<u8>, b: &pst::ndb::BbtEntry| {
        let start = b.bref.ib as usize;
        let sum = pst::ndb::crc(&data[start..start + usize::from(b.cb)]);
        let end = start + ndb.format().block_space(usize::from(b.cb));
        data[end - 20..end - 16].copy_from_slice(&sum.to_le_bytes());
    };
    let mut refused = 0;
    let blocks: Vec<_> = ndb.blocks().map(Result::unwrap).collect();
    for block in blocks.iter().filter(|b| b.cb != b.cb_data).step_by(29) {
        // Its entry says another length: more, less, and the most that a field can say.
        for cb_data in [block.cb_data + 1, block.cb_data - 1, 0, 65_512, u16::MAX] {
            if cb_data != block.cb_data {
                let entry = pst::ndb::BbtEntry { cb_data, ..*block };
                let e = ndb.block_data_of(&entry).unwrap_err();
                assert!(matches!(e, PstError::Corrupt { .. }), "{e}");
            }
        }
        // Its bytes are others, below a right checksum.
        for at in [
            0,
            1,
            5,
            usize::from(block.cb) / 2,
            usize::from(block.cb) - 1,
        ] {
            let mut bad = data.clone();
            bad[block.bref.ib as usize + at] ^= 0x5A;
            seal(&mut bad, block);
            let e = Ndb::open(bytes(bad))
                .unwrap()
                .block_data_of(block)
                .unwrap_err();
            assert!(
                matches!(
                    e,
                    PstError::Corrupt {
                        field: "deflated block",
                        ..
                    }
                ),
                "{e}"
            );
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn damage_and_unknown_versions_are_refused_by_name() {
    let Some(dir) = shared() else { return };
    let mut data = std::fs::read(dir.join("corpus/empty.pst")).unwrap();
    data[10] = 19;
    let e = Ndb::open(bytes(data)).unwrap_err();
    assert!(matches!(e, PstError::Unsupported(_)), "{e}");
    assert!(e.to_string().contains("version 19"), "{e}");
    let data = std::fs::read(dir.join("corpus/broken-header.pst")).unwrap();
    let e = Ndb::open(bytes(data)).unwrap_err();
    println!("broken-header.pst: {e}");
    assert!(
        matches!(
            e,
            PstError::Corrupt {
                field: "dwCRCPartial",
                ..
            }
        ),
        "{e}"
    );

    for name in ["empty.pst", "ansi-contacts.pst", OST_4K_FILE] {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let e = Ndb::open(bytes(data[..data.len() - 1].to_vec())).unwrap_err();
        assert!(e.to_string().contains("cut off"), "{name}: {e}");
        for cut in [0, 3, 8, 100, 511, 513, 563] {
            assert!(Ndb::open(bytes(data[..cut].to_vec())).is_err(), "{name}");
        }
    }
}

#[test]
fn a_flipped_bit_in_any_page_or_block_is_noticed() {
    let Some(dir) = shared() else { return };
    for name in ["empty.pst", "ansi-contacts.pst", OST_4K_FILE] {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let ndb = Ndb::open(bytes(data.clone())).unwrap();
        let count = ndb.blocks().count();
        for block in ndb
            .blocks()
            .map(Result::unwrap)
            .filter(|b| b.cb > 0)
            .step_by(count.div_ceil(30))
        {
            let mut bad = data.clone();
            bad[block.bref.ib as usize + usize::from(block.cb) / 2] ^= 0x10;
            let ndb = Ndb::open(bytes(bad)).unwrap();
            assert!(ndb.block_data(block.bref.bid).is_err(), "{name}");
        }
        let (e, t) = (ndb.format().btree_entries, ndb.format().page_data);
        for bref in [ndb.header().nbt, ndb.header().bbt] {
            for at in [0, 30, e + 1, e + 3, t, t + 2, t + 4, t + 8] {
                let mut bad = data.clone();
                bad[bref.ib as usize + at] ^= 0x04;
                assert!(Ndb::open(bytes(bad)).is_err(), "{name}: byte {at}");
            }
        }
    }
}
