//! Free space: believed only after a look, found again after deletes, taken at a price that does
//! not follow the size of the file, and never past the limit.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pst::check::{Finding, check};
use pst::ndb::{
    CryptMethod, EditOptions, Format, Ndb, NdbTransaction, NodeContent, NodeData, PageType,
    SizeState, crc, seal_page,
};
use pst::{Bid, Nid, NidType, PstError};
use storage::{MemStorage, ReadAt, ScratchDir, WriteSet};
use support::{FORMATS, Rng, committed, empty_ndb, shared};

const FIRST_AMAP: u64 = 0x4400;
const SPAN: u64 = 496 * 8 * 64;

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(Arc::new(MemStorage::from(data))).unwrap())
}

fn nid(n: u64) -> Nid {
    Nid::new(NidType::NORMAL_MESSAGE, 0x400 + n as u32)
}

fn content(data: Vec<u8>) -> NodeContent {
    NodeContent {
        data: NodeData::Bytes(data),
        ..NodeContent::default()
    }
}

fn put(tx: &mut NdbTransaction, n: u64, data: Vec<u8>) {
    tx.put_node(nid(n), Nid(0x122), &content(data)).unwrap();
}

/// A checksum of each node's data.
fn nodes(ndb: &Ndb) -> BTreeMap<Nid, (Bid, u32)> {
    ndb.nodes()
        .map(|node| {
            let node = node.unwrap();
            let data = ndb.data(node.bid_data).unwrap();
            (
                node.nid,
                (node.bid_data, crc(&data.read_all(ndb, u64::MAX).unwrap())),
            )
        })
        .collect()
}

/// A file with nodes of all sizes, deleted ones among them: free space full of what once was valid.
fn worn(format: &'static Format, crypt: CryptMethod, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut data = empty_ndb(format, crypt);
    for _ in 0..4 {
        let mut tx = NdbTransaction::begin(open(&data)).unwrap();
        for _ in 0..40 {
            let n = rng.below(60);
            if rng.below(3) == 0 && tx.node(nid(n)).unwrap().is_some() {
                tx.delete_node(nid(n)).unwrap();
            } else {
                let len = [50, 700, 8_000, 30_000][rng.below(4) as usize];
                put(&mut tx, n, rng.bytes(len));
            }
        }
        data = committed(&data, &tx.finish().unwrap());
    }
    data
}

/// Marks slots free in an AMap; the page stays valid.
fn lie(data: &mut [u8], format: &Format, map: u64, runs: &[(usize, usize)]) {
    let at = (FIRST_AMAP + map * SPAN) as usize;
    let page = &mut data[at..at + format.page_size];
    for slot in runs.iter().flat_map(|(slot, n)| *slot..slot + n) {
        page[format.page_data - 496 + slot / 8] &= !(0x80 >> (slot % 8));
    }
    let ib = at as u64;
    seal_page(format, page, PageType::AMap, ib, Bid(ib));
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|f| f.code).collect()
}

#[test]
fn nothing_in_use_is_ever_overwritten_whatever_the_maps_say() {
    let rounds: u64 = std::env::var("PSTSYNCD_LIE_ROUNDS").map_or(150, |n| n.parse().unwrap());
    let (mut healed, mut kept) = (0, 0);
    for round in 0..rounds {
        let format = FORMATS[round as usize % 2];
        let crypt = CryptMethod::from_byte((round % 3) as u8).unwrap();
        let mut data = worn(format, crypt, round * 31 + 7);
        let mut rng = Rng(round * 977 + 3);
        let spans = (data.len() as u64 - FIRST_AMAP) / SPAN;
        let runs: Vec<(usize, usize)> = match round % 4 {
            // All of a map, a few long runs, single slots, and an honest map.
            0 => vec![(0, 496 * 8)],
            1 => (0..3)
                .map(|_| (rng.below(3000) as usize, 1 + rng.below(300) as usize))
                .collect(),
            2 => (0..200).map(|_| (rng.below(3968) as usize, 1)).collect(),
            _ => Vec::new(),
        };
        lie(&mut data, format, rng.below(spans), &runs);
        let ndb = open(&data);
        let lies = check(&ndb).iter().any(|f| f.code == "used-but-free");
        let before = nodes(&ndb);
        let mut tx = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
        for i in 0..1 + rng.below(12) {
            let len = [40, 3_000, 60_000][rng.below(3) as usize];
            put(&mut tx, 1_000 + i, rng.bytes(len));
            if rng.below(3) == 0 {
                let _ = tx.view().unwrap();
            }
        }
        // The long way: what was taken is held against all pages and blocks of the file.
        tx.verify_space().unwrap();
        let set = tx.finish().unwrap();
        let maps = set.phases[3].writes.len() as u64;
        let data = committed(&data, &set);
        let after = open(&data);
        let now = nodes(&after);
        for (nid, was) in &before {
            assert_eq!(now.get(nid), Some(was), "round {round}: {nid}");
        }
        let findings = check(&after);
        // A lie about space that was not wanted may still be there; it does not spread.
        assert!(
            codes(&findings)
                .iter()
                .all(|c| lies && ["used-but-free", "amap-free", "dlist-stale"].contains(c)),
            "{findings:#?}"
        );
        healed += u64::from(lies && findings.is_empty());
        kept += u64::from(!lies && maps <= spans);
        if !lies {
            assert!(maps < 1 + spans + 1, "an honest map is not recomputed");
        }
    }
    println!("{rounds} files: {healed} lying ones healed, {kept} honest ones");
    assert!(healed >= rounds / 4 && kept >= rounds / 6);
}

/// Where the maps call all space free, each place is refused that holds a live block or page,
/// however little of it the taken space would touch.
#[test]
fn every_live_block_and_page_is_seen_from_each_of_its_slots() {
    for format in FORMATS {
        let data = worn(format, CryptMethod::Permute, 5);
        let ndb = open(&data);
        let mut places: Vec<(u64, usize)> = ndb
            .blocks()
            .map(|b| b.unwrap())
            .map(|b| (b.bref.ib, format.block_space(usize::from(b.cb))))
            .collect();
        places.push((ndb.header().nbt.ib, format.page_size));
        places.push((ndb.header().bbt.ib, format.page_size));
        let mut rng = Rng(9);
        let mut looked = 0;
        for (ib, len) in places {
            // One slot of it is called free, and nothing else in the file is.
            let slots = (len / 64) as u64;
            for pick in [0, slots - 1, rng.below(slots)] {
                let mut data = data.clone();
                let spans = (data.len() as u64 - FIRST_AMAP) / SPAN;
                for map in 0..spans {
                    let at = (FIRST_AMAP + map * SPAN) as usize;
                    let page = &mut data[at..at + format.page_size];
                    page[format.page_data - 496..format.page_data].fill(0xFF);
                    seal_page(format, page, PageType::AMap, at as u64, Bid(at as u64));
                }
                let place = (ib - FIRST_AMAP) / 64 + pick;
                let (map, slot) = (place / 3968, place % 3968);
                lie(&mut data, format, map, &[(slot as usize, 1)]);
                let mut tx = NdbTransaction::begin(open(&data)).unwrap();
                // A block of one slot, which fits there.
                put(&mut tx, 5_000, vec![1; 20]);
                // Deletes lead the search to the map of what they delete.
                tx.verify_space().unwrap();
                let set = tx.finish().unwrap();
                looked += usize::from(set.phases[3].writes.len() as u64 > spans);
                let after = committed(&data, &set);
                assert_eq!(nodes(&open(&after)).len(), nodes(&ndb).len() + 1);
            }
        }
        println!("{}: {looked} lies noticed", format.name);
        assert!(looked > 100, "{looked}");
    }
}

#[test]
fn a_damaged_map_page_is_made_anew() {
    for format in FORMATS {
        let mut data = worn(format, CryptMethod::Cyclic, 11);
        let before = nodes(&open(&data));
        data[0x4400 + 100] ^= 4;
        let mut tx = NdbTransaction::begin(open(&data)).unwrap();
        for nid in before.keys().take(20) {
            tx.delete_node(*nid).unwrap();
        }
        put(&mut tx, 900, vec![7; 30_000]);
        let data = committed(&data, &tx.finish().unwrap());
        let findings = check(&open(&data));
        assert!(findings.is_empty(), "{findings:#?}");
        assert_eq!(
            nodes(&open(&data)).len(),
            before.len() - 20.min(before.len()) + 1
        );
    }
}

/// The real writer's maps in the traces are marked valid and lie.
#[test]
fn real_maps_that_lie_cost_no_mail() {
    let Some(dir) = shared() else { return };
    let file = std::fs::File::open(dir.join("traces/mail.pst.zst")).unwrap();
    let mut image = Vec::new();
    io::Read::read_to_end(&mut zstd::Decoder::new(file).unwrap(), &mut image).unwrap();
    let lines = {
        let file = std::fs::File::open(dir.join("traces/edits-11.jsonl.zst")).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut zstd::Decoder::new(file).unwrap(), &mut text).unwrap();
        text
    };
    let (mut lying, mut edited) = (0, 0);
    for (i, line) in lines.lines().enumerate() {
        let op: serde_json::Value = serde_json::from_str(line).unwrap();
        if op["op"] == "truncate" {
            image.resize(op["len"].as_u64().unwrap() as usize, 0);
            continue;
        }
        let hex = op["data"].as_str().unwrap().as_bytes();
        let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
        let bytes: Vec<u8> = hex
            .chunks(2)
            .map(|c| digit(c[0]) << 4 | digit(c[1]))
            .collect();
        let at = op["off"].as_u64().unwrap() as usize;
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        if i % 41 != 0 {
            continue;
        }
        // As the writer leaves it, and with its maps declared valid.
        let Ok(ndb) = Ndb::open(Arc::new(MemStorage::from(&image[..]))) else {
            continue;
        };
        let findings = check(&ndb);
        let maps = [
            "used-but-free",
            "map-page",
            "leaked",
            "amap-free",
            "dlist",
            "maps-invalid",
            "header-torn",
        ];
        if findings.iter().any(|f| !maps.contains(&f.code)) {
            continue;
        }
        let mut claimed = image.clone();
        claimed[248] = 2;
        reseal_header(&mut claimed);
        let ndb = open(&claimed);
        lying += usize::from(check(&ndb).iter().any(|f| f.code == "used-but-free"));
        let before = nodes(&ndb);
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        put(&mut tx, 70_000, vec![3; 100_000]);
        tx.verify_space().unwrap();
        let after = nodes(&open(&committed(&claimed, &tx.finish().unwrap())));
        assert!(before.iter().all(|(nid, was)| after.get(nid) == Some(was)));
        edited += 1;
    }
    println!("{edited} moments edited, in {lying} of them the maps lied");
    assert!(lying > 0);
}

fn reseal_header(data: &mut [u8]) {
    let sum = crc(&data[8..8 + 471]);
    data[4..8].copy_from_slice(&sum.to_le_bytes());
    let sum = crc(&data[8..8 + 516]);
    data[524..528].copy_from_slice(&sum.to_le_bytes());
}

/// Counts what is read.
struct Counting {
    inner: MemStorage,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl ReadAt for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_at(offset, buf)
    }
}

/// A file of about `megabytes` with a little free space everywhere.
fn large(megabytes: u64) -> MemStorage {
    let file = MemStorage::from(empty_ndb(FORMATS[0], CryptMethod::Permute));
    let mut rng = Rng(megabytes | 1);
    for part in 0..megabytes {
        let ndb = Arc::new(Ndb::open(Arc::new(MemStorage::from(file.to_vec()))).unwrap());
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        for i in 0..125 {
            put(&mut tx, part * 1_000 + i, rng.bytes(8_000));
        }
        for i in 0..if part > 0 { 3 } else { 0 } {
            tx.delete_node(nid((part - 1) * 1_000 + i * 40)).unwrap();
        }
        tx.finish().unwrap().commit(&file).unwrap();
    }
    file
}

#[test]
fn the_price_of_an_edit_does_not_follow_the_size_of_the_file() {
    let price = |file: MemStorage| {
        let len = file.len().unwrap();
        let counting = Arc::new(Counting {
            inner: file,
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let ndb = Arc::new(Ndb::open(Arc::clone(&counting) as Arc<dyn ReadAt>).unwrap());
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        put(&mut tx, 3_000_000, vec![7; 20_000]);
        tx.delete_node(nid(1_007)).unwrap();
        let set = tx.finish().unwrap();
        let read = counting.bytes.load(Ordering::Relaxed);
        println!(
            "{} MB: {} reads, {read} bytes; {} bytes written",
            len >> 20,
            counting.reads.load(Ordering::Relaxed),
            set.payload()
        );
        (read, set.payload())
    };
    let (small, large) = (price(large(3)), price(large(48)));
    assert!(large.0 < 400_000, "{} bytes read", large.0);
    assert!(large.0 < small.0 * 3 && large.1 < small.1 * 2);
}

#[test]
fn steady_adding_and_deleting_keeps_the_file_bounded() {
    let rounds: u64 = std::env::var("PSTSYNCD_STEADY_ROUNDS").map_or(2_000, |n| n.parse().unwrap());
    // More spans than the density list has room for.
    let file = Arc::new(large(36));
    let full = file.len().unwrap();
    assert!(full / SPAN > 130);
    let mut rng = Rng(77);
    let mut live: Vec<Nid> = {
        let ndb = Ndb::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
        ndb.nodes().map(|n| n.unwrap().nid).collect()
    };
    let (mut most, mut settled) = (full, full);
    for round in 0..rounds {
        if round == rounds / 4 {
            settled = most;
        }
        let ndb = Arc::new(Ndb::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap());
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        // As much goes as comes.
        for i in 0..4 {
            let gone = live.swap_remove(rng.below(live.len() as u64) as usize);
            tx.delete_node(gone).unwrap();
            let n = 4_000_000 + round * 4 + i;
            let len = [500, 4_000, 11_000, 16_000][rng.below(4) as usize];
            put(&mut tx, n, rng.bytes(len));
            live.push(nid(n));
        }
        tx.finish().unwrap().commit(&*file).unwrap();
        most = most.max(file.len().unwrap());
    }
    let ndb = Ndb::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
    let findings = check(&ndb);
    assert!(findings.is_empty(), "{findings:#?}");
    println!(
        "{rounds} rounds: {} MB at first, at most {} MB, {} MB of them free",
        full >> 20,
        most >> 20,
        ndb.header().amap_free >> 20
    );
    assert!(most < full + full / 4, "{full} bytes grew to {most}");
    assert!(
        most <= settled + 2 * SPAN,
        "{settled} bytes after a quarter, then {most}"
    );
}

#[test]
fn a_file_at_its_limit_takes_what_fits_and_refuses_the_rest() {
    for format in FORMATS {
        let mut data = worn(format, CryptMethod::Permute, 21);
        let limit = data.len() as u64 + SPAN / 2;
        let options = EditOptions {
            max_size: Some(limit),
            ..EditOptions::default()
        };
        let begin = |data: &[u8]| NdbTransaction::begin_with(open(data), &options).unwrap();
        let mut n = 10_000;
        let refused = loop {
            let mut tx = begin(&data);
            n += 1;
            match tx.put_node(nid(n), Nid(0x122), &content(vec![3; 7_000])) {
                Ok(_) => match tx.finish() {
                    Ok(set) => data = committed(&data, &set),
                    Err(e) => break e,
                },
                Err(e) => {
                    assert!(matches!(tx.finish(), Err(PstError::Refused(_))));
                    break e;
                }
            }
            assert!(data.len() as u64 <= limit, "grown past the limit");
            assert!(n < 11_000, "never full");
        };
        assert!(
            matches!(refused, PstError::Limit { what: "file size in bytes", found, limit: l }
                if found > l && l == limit),
            "{refused}"
        );
        assert!(check(&open(&data)).is_empty());
        // Deleting makes room, with no growth at all.
        let len = data.len();
        for gone in 10_001..10_011 {
            let mut tx = begin(&data);
            tx.delete_node(nid(gone)).unwrap();
            data = committed(&data, &tx.finish().unwrap());
        }
        let mut tx = begin(&data);
        put(&mut tx, 20_000, vec![1; 50_000]);
        data = committed(&data, &tx.finish().unwrap());
        assert_eq!(data.len(), len);
        assert!(check(&open(&data)).is_empty());
        assert_eq!(open(&data).size_state(), SizeState::Fine);
    }
}

#[test]
fn a_scratch_changes_nothing_but_where_bytes_wait() {
    let dir = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let data = worn(format, CryptMethod::Permute, 33);
        let edit = |options: &EditOptions| -> WriteSet {
            let mut tx = NdbTransaction::begin_with(open(&data), options).unwrap();
            let mut rng = Rng(4);
            for i in 0..50 {
                put(&mut tx, 800 + i % 20, rng.bytes(300 * i as usize));
                if i % 7 == 0 {
                    let view = tx.view().unwrap();
                    assert!(nodes(&view).len() > 1);
                }
            }
            tx.finish().unwrap()
        };
        let plain = edit(&EditOptions::default());
        for memory in [0, 5_000, 1 << 30] {
            let options = EditOptions {
                scratch: Some(Arc::new(ScratchDir::new(dir.path()))),
                memory,
                max_size: None,
            };
            assert_eq!(edit(&options), plain);
        }
        assert!(check(&open(&committed(&data, &plain))).is_empty());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A leaf whose first key lies below its parent's key for it is still reached for its other keys.
#[test]
fn a_leaf_that_is_reached_for_some_of_its_keys_alone_is_in_use() {
    let format = FORMATS[0];
    let mut tx = NdbTransaction::begin(open(&empty_ndb(format, CryptMethod::Permute))).unwrap();
    (0..60).for_each(|n| put(&mut tx, n, vec![n as u8; 50]));
    let mut data = committed(
        &empty_ndb(format, CryptMethod::Permute),
        &tx.finish().unwrap(),
    );
    let root = open(&data).header().nbt;
    let id = format.bid_size;
    let entry = root.ib as usize + 3 * id;
    let mut ib = [0; 8];
    ib[..id].copy_from_slice(&data[entry + 2 * id..entry + 3 * id]);
    let ib = u64::from_le_bytes(ib);
    let key = ib as usize + format.nbtentry;
    data.copy_within(key..key + id, entry);
    let page = &mut data[root.ib as usize..root.ib as usize + format.page_size];
    seal_page(format, page, PageType::Nbt, root.ib, root.bid);
    let before = nodes(&open(&data));
    lie(
        &mut data,
        format,
        0,
        &[(((ib - FIRST_AMAP) / 64) as usize, 8)],
    );
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    (100..160).for_each(|n| put(&mut tx, n, vec![n as u8; 300]));
    tx.verify_space().unwrap();
    let after = nodes(&open(&committed(&data, &tx.finish().unwrap())));
    assert!(
        before
            .iter()
            .all(|(nid, node)| after.get(nid) == Some(node))
    );
}

/// What lies behind the end that the header claims can be replaced and deleted.
#[test]
fn a_header_that_claims_too_little_stops_no_edit() {
    for format in FORMATS {
        let mut data = empty_ndb(format, CryptMethod::None);
        for round in 0..2 {
            let mut tx = NdbTransaction::begin(open(&data)).unwrap();
            (0..30).for_each(|n| put(&mut tx, round * 30 + n, vec![n as u8; 30_000]));
            data = committed(&data, &tx.finish().unwrap());
        }
        let mut header = open(&data).header().clone();
        header.file_eof = FIRST_AMAP + SPAN;
        header.amap_last = FIRST_AMAP;
        let header = header.encode();
        data[..header.len()].copy_from_slice(&header);
        let mut tx = NdbTransaction::begin(open(&data)).unwrap();
        (0..60).for_each(|n| tx.delete_node(nid(n)).unwrap());
        put(&mut tx, 70, vec![7; 100]);
        data = committed(&data, &tx.finish().unwrap());
        assert_eq!(nodes(&open(&data)).len(), 1);
        let findings = check(&open(&data));
        assert!(findings.is_empty(), "{findings:#?}");
    }
}
