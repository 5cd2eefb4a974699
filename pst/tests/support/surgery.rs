//! Changing a file's bytes below the engine, with checksums made right again: what a defect above the
//! checksums looks like.

#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use pst::ndb::{BbtEntry, Ndb, PageType, crc, seal_page, signature};
use pst::{Bid, Nid};
use storage::MemStorage;

/// A file to operate on. Everything panics where the file is not what the caller thinks.
pub struct Patient {
    pub bytes: Vec<u8>,
}

impl Patient {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub fn ndb(&self) -> Arc<Ndb> {
        Arc::new(Ndb::open(Arc::new(MemStorage::from(self.bytes.clone()))).expect("opens"))
    }

    /// Puts bytes at an offset.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Changes the header and makes its checksums right (Unicode).
    pub fn header(&mut self, edit: impl FnOnce(&mut [u8])) {
        edit(&mut self.bytes[..564]);
        let full = crc(&self.bytes[8..8 + 516]);
        self.put(524, &full.to_le_bytes());
        let partial = crc(&self.bytes[8..8 + 471]);
        self.put(4, &partial.to_le_bytes());
    }

    /// Changes the page at `ib` and makes its trailer right.
    pub fn page(&mut self, kind: PageType, ib: u64, edit: impl FnOnce(&mut [u8])) {
        let ndb = self.ndb();
        let format = ndb.format();
        let page = &mut self.bytes[ib as usize..ib as usize + format.page_size];
        let at = format.page_data + format.trailer_bid;
        let bid = format.id_at(page, at, "bid").expect("a trailer");
        edit(page);
        seal_page(format, page, kind, ib, Bid(bid));
    }

    /// Changes the leaf entries with this key, in every whole page of the tree (Unicode): stale pages
    /// in free space do no harm.
    pub fn leaf(&mut self, kind: PageType, key: u64, edit: impl Fn(&mut [u8])) {
        let stride = if kind == PageType::Nbt { 32 } else { 24 };
        let mut changed = 0;
        for ib in (0x4200..self.bytes.len() - 511).step_by(512) {
            let page = &self.bytes[ib..ib + 512];
            let whole =
                pst::ndb::verify_page(&pst::ndb::format::UNICODE, page, kind, ib as u64, None);
            if whole.is_err() || page[491] != 0 {
                continue;
            }
            let found = (0..usize::from(page[488])).find(|i| {
                let key_at = &page[i * stride..i * stride + 8];
                u64::from_le_bytes(key_at.try_into().expect("eight bytes")) == key
            });
            if let Some(i) = found {
                changed += 1;
                self.page(kind, ib as u64, |p| {
                    edit(&mut p[i * stride..(i + 1) * stride]);
                });
            }
        }
        assert!(changed > 0, "no entry {key:#x}");
    }

    /// Changes the record of a property in the first block of a property context: {id, type, value}.
    pub fn record(&mut self, bid: Bid, id: u16, kind: u16, edit: impl FnOnce(&mut [u8])) {
        self.block(bid, |b| {
            let mut head = id.to_le_bytes().to_vec();
            head.extend_from_slice(&kind.to_le_bytes());
            let at = b.windows(4).position(|w| w == head).expect("the record");
            edit(&mut b[at..at + 8]);
        });
    }

    /// The block with this BID.
    pub fn entry(&self, bid: Bid) -> BbtEntry {
        self.ndb().block(bid).expect("reads").expect("a block")
    }

    /// The first data block of a node.
    pub fn first_block(&self, nid: Nid) -> Bid {
        let ndb = self.ndb();
        let node = ndb.node(nid).expect("reads").expect("a node");
        ndb.data(node.bid_data).expect("reads").block_bids()[0]
    }

    /// Changes the decoded data of a block, of the same length, and makes its trailer right.
    pub fn block(&mut self, bid: Bid, edit: impl FnOnce(&mut [u8])) {
        let ndb = self.ndb();
        let entry = self.entry(bid);
        let mut data = ndb.block_data_of(&entry).expect("reads");
        edit(&mut data);
        if !entry.bref.bid.is_internal() {
            ndb.header().crypt.encode(&mut data, entry.bref.bid);
        }
        self.put(entry.bref.ib as usize, &data);
        let format = ndb.format();
        let space = format.block_space(usize::from(entry.cb));
        let trailer = entry.bref.ib as usize + space - format.block_trailer;
        self.put(trailer + format.trailer_crc, &crc(&data).to_le_bytes());
    }

    /// Makes every checksum and signature right that can be found: those of the header, of what looks
    /// like a page, and of the blocks that B-tree pages list (Unicode).
    pub fn reseal(&mut self) {
        const PAGE: usize = 512;
        let mut blocks = Vec::new();
        for ib in (0x4200..self.bytes.len().saturating_sub(PAGE - 1)).step_by(PAGE) {
            let page = &mut self.bytes[ib..ib + PAGE];
            let kind = match (page[496], page[497]) {
                (0x80, 0x80) => PageType::Bbt,
                (0x81, 0x81) => PageType::Nbt,
                (0x82, 0x82) => PageType::FMap,
                (0x83, 0x83) => PageType::PMap,
                (0x84, 0x84) => PageType::AMap,
                (0x85, 0x85) => PageType::FpMap,
                _ => continue,
            };
            let sum = crc(&page[..496]);
            page[500..504].copy_from_slice(&sum.to_le_bytes());
            let bid = u64::from_le_bytes(page[504..512].try_into().expect("eight bytes"));
            let sig = kind.signature(ib as u64, Bid(bid));
            page[498..500].copy_from_slice(&sig.to_le_bytes());
            if kind == PageType::Bbt && page[491] == 0 {
                for entry in page[..480].chunks_exact(24).take(page[488].into()) {
                    let word = |at: usize| {
                        u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"))
                    };
                    let cb = u16::from_le_bytes([entry[16], entry[17]]);
                    blocks.push((word(0), word(8), usize::from(cb)));
                }
            }
        }
        for (bid, ib, cb) in blocks {
            let space = (cb + 16).next_multiple_of(64);
            let Some(start) = usize::try_from(ib).ok() else {
                continue;
            };
            let Some(block) = start
                .checked_add(space)
                .and_then(|end| self.bytes.get_mut(start..end))
            else {
                continue;
            };
            let sum = crc(&block[..cb]);
            let t = space - 16;
            block[t..t + 2].copy_from_slice(&(cb as u16).to_le_bytes());
            block[t + 2..t + 4].copy_from_slice(&signature(ib, bid).to_le_bytes());
            block[t + 4..t + 8].copy_from_slice(&sum.to_le_bytes());
            block[t + 8..t + 16].copy_from_slice(&bid.to_le_bytes());
        }
        if self.bytes.len() >= 564 {
            self.header(|_| {});
        }
    }
}
