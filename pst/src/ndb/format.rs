//! The constants of the on-disk formats, in one place ([MS-PST] 2.2.2).
//!
//! Parsers and writers take every width, offset and size from a [`Format`], so that the families of
//! files are three tables instead of branches in the code: [`UNICODE`] and [`ANSI`] are read and
//! written, [`OST_4K`] is read. [`Format::of_version`] names the one that a file belongs to.
//!
//! The places of the map pages are the same in the two formats that are written; those of a 4 KiB
//! OST are not looked at, because nothing is ever allocated in one.

use super::bytes::{put, u32_at, u64_at};
use super::page::PageType;
use crate::{Bid, PstError, Result};

/// File offset of the density list (2.2.2.7.4). The area below the first AMap is never handed
/// out by the allocator.
pub const DLIST_OFFSET: u64 = 0x4200;
/// File offset of the first AMap page (2.2.2.7.2); data begins here.
pub const FIRST_AMAP: u64 = 0x4400;
/// Bytes that one bit of an AMap stands for.
pub const SLOT: u64 = 64;
/// Bytes of allocation bits in a map page.
pub const MAP_BYTES: u64 = 496;
/// Bytes of file that one AMap page covers, itself included.
pub const AMAP_SPAN: u64 = MAP_BYTES * 8 * SLOT;
/// A PMap page follows the AMap page of every this many AMaps (2.2.2.7.3).
pub const AMAPS_PER_PMAP: u64 = 8;
/// AMaps before the first FMap page: the header's 128-byte map served them (1.3.2.7).
pub const FMAP_FIRST: u64 = 128;
/// AMaps between two FMap pages.
pub const FMAP_STEP: u64 = MAP_BYTES;
/// AMaps before the first FPMap page: the header's 128-byte map served 1,024 PMaps (1.3.2.8).
pub const FPMAP_FIRST: u64 = 128 * 8 * AMAPS_PER_PMAP;
/// AMaps between two FPMap pages.
pub const FPMAP_STEP: u64 = MAP_BYTES * 8 * AMAPS_PER_PMAP;

/// File offset of AMap page `index`.
#[must_use]
pub const fn amap_offset(index: u64) -> u64 {
    FIRST_AMAP + index * AMAP_SPAN
}

/// The map pages that lie at fixed places at the start of the span of AMap `index`, with their
/// offsets from it: AMap, then PMap, FMap and FPMap where one is due.
#[must_use]
pub fn map_pages(index: u64) -> Vec<(PageType, u64)> {
    let due = |first: u64, step: u64| index >= first && (index - first).is_multiple_of(step);
    let mut pages = vec![(PageType::AMap, 0)];
    if due(0, AMAPS_PER_PMAP) {
        pages.push((PageType::PMap, 0x200));
    }
    if due(FMAP_FIRST, FMAP_STEP) {
        pages.push((PageType::FMap, 0x400));
    }
    if due(FPMAP_FIRST, FPMAP_STEP) {
        pages.push((PageType::FpMap, 0x600));
    }
    pages
}

/// How a family of PST files lays out its pages, blocks and identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The family's name, for messages.
    pub name: &'static str,
    /// HEADER.wVer of new files (2.2.2.6).
    pub version: u16,
    /// Whether files of this family may be edited. One that may not is refused before anything is
    /// touched.
    pub writable: bool,
    /// Whether blocks may be stored deflated (zlib, RFC 1950): their entries and trailers then say both
    /// lengths.
    pub compressed: bool,
    /// Bytes in a page.
    pub page_size: usize,
    /// Bytes of page data covered by the page checksum; the trailer begins here.
    pub page_data: usize,
    /// Bytes of entries in a B-tree page; cEnt, cEntMax, cbEnt and cLevel follow.
    pub btree_entries: usize,
    /// Bytes of cEnt and of cEntMax, each.
    pub count_size: usize,
    /// Bytes in a BTENTRY.
    pub btentry: usize,
    /// Bytes in an NBTENTRY.
    pub nbtentry: usize,
    /// Bytes in a BBTENTRY.
    pub bbtentry: usize,
    /// Bytes in a BID, a file offset or a B-tree key as stored.
    pub bid_size: usize,
    /// Where dwCRC lies in a page or block trailer.
    pub trailer_crc: usize,
    /// Where the BID lies in a page or block trailer.
    pub trailer_bid: usize,
    /// Bytes in a block trailer.
    pub block_trailer: usize,
    /// Alignment of blocks, in bytes.
    pub block_align: usize,
    /// Largest block with its trailer, in bytes.
    pub max_block: usize,
    /// Bytes before the entries of an XBLOCK or XXBLOCK.
    pub xblock_header: usize,
    /// Bytes before the entries of an SLBLOCK or SIBLOCK.
    pub slblock_header: usize,
    /// The most AMaps that a file may have. Unicode: what the 20 bits of a page number in the density
    /// list address. ANSI: below 0x7C004400, the most that other programs let such a file grow
    /// to; the next AMap would need an FPMap page, which the format lacks (2.2.2.7.6).
    pub max_amaps: u64,
}

/// The Unicode format (wVer 23).
pub const UNICODE: Format = Format {
    name: "Unicode",
    version: 23,
    writable: true,
    compressed: false,
    page_size: 512,
    page_data: 496,
    btree_entries: 488,
    count_size: 1,
    btentry: 24,
    nbtentry: 32,
    bbtentry: 24,
    bid_size: 8,
    trailer_crc: 4,
    trailer_bid: 8,
    block_trailer: 16,
    block_align: 64,
    max_block: 8192,
    xblock_header: 8,
    slblock_header: 8,
    max_amaps: 1 << 20,
};

/// The ANSI format (wVer 14 and 15), of Outlook 97 to 2002: identifiers and offsets of four bytes, and
/// in trailers the BID before the checksum.
pub const ANSI: Format = Format {
    name: "ANSI",
    version: 14,
    page_data: 500,
    btree_entries: 496,
    btentry: 12,
    nbtentry: 16,
    bbtentry: 12,
    bid_size: 4,
    trailer_crc: 8,
    trailer_bid: 4,
    block_trailer: 12,
    slblock_header: 4,
    max_amaps: 8192,
    ..UNICODE
};

/// The OST of Outlook 2013 and later (wVer 36 and 37): pages of 4 KiB, blocks of up to 64 KiB at
/// multiples of 512 bytes, and deflated blocks. [MS-PST] does not describe it; the layout is
/// libpff's, confirmed on real files.
pub const OST_4K: Format = Format {
    name: "OST with 4 KiB pages",
    version: 36,
    writable: false,
    compressed: true,
    page_size: 4096,
    page_data: 4072,
    btree_entries: 4056,
    count_size: 2,
    block_trailer: 24,
    block_align: 512,
    max_block: 65536,
    ..UNICODE
};

impl Format {
    /// The format of a file version (HEADER.wVer, 2.2.2.6).
    ///
    /// # Errors
    /// [`PstError::Unsupported`] for unknown versions.
    pub fn of_version(version: u16) -> Result<&'static Self> {
        match version {
            14 | 15 => Ok(&ANSI),
            21 | 23..=35 => Ok(&UNICODE),
            36 | 37 => Ok(&OST_4K),
            other => Err(PstError::Unsupported(format!(
                "unknown file version {other}; known are ANSI (14, 15), Unicode (23) and the OST \
                 with 4 KiB pages (36, 37)"
            ))),
        }
    }

    /// Refuses formats that are only read.
    ///
    /// # Errors
    /// [`PstError::Refused`] for the OST with 4 KiB pages.
    pub fn require_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(PstError::Refused(format!(
            "the file is an {}, which can be read but not edited: it is the cache of a mailbox that \
             its server keeps; change the mail there, or copy it into a PST",
            self.name
        )))
    }

    /// The greatest BID, offset or key that the format can store.
    #[must_use]
    pub const fn max_id(&self) -> u64 {
        if self.bid_size == 4 {
            u32::MAX as u64
        } else {
            u64::MAX
        }
    }

    /// The BID of the page after the one with BID `bid`: the counter wraps at the format's width.
    #[must_use]
    pub const fn next_page_bid(&self, bid: Bid) -> Bid {
        Bid(bid.0.wrapping_add(1) & self.max_id())
    }

    /// The most entries that a density list page holds (2.2.2.7.4.2).
    #[must_use]
    pub const fn max_dlist(&self) -> usize {
        (self.page_data - 8 - 12) / 4
    }

    /// Reads the BID, offset or key at `at`, of the format's width.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the bytes are too few.
    pub fn id_at(&self, b: &[u8], at: usize, field: &'static str) -> Result<u64> {
        if self.bid_size == 4 {
            u32_at(b, at, field).map(u64::from)
        } else {
            u64_at(b, at, field)
        }
    }

    /// Writes a BID, offset or key at `at`, in the format's width.
    pub fn put_id(&self, b: &mut [u8], at: usize, id: u64) {
        put(
            b,
            at,
            id.to_le_bytes().get(..self.bid_size).unwrap_or_default(),
        );
    }

    /// The most data that one block holds, in bytes.
    #[must_use]
    pub const fn max_data(&self) -> usize {
        self.max_block - self.block_trailer
    }

    /// The space that a block with `cb` bytes of data takes in the file.
    #[must_use]
    pub const fn block_space(&self, cb: usize) -> usize {
        (cb + self.block_trailer).next_multiple_of(self.block_align)
    }

    /// The most BIDs that an XBLOCK or XXBLOCK holds.
    #[must_use]
    pub const fn max_xblock(&self) -> usize {
        (self.max_data() - self.xblock_header) / self.bid_size
    }

    /// The most SLENTRYs that an SLBLOCK holds.
    #[must_use]
    pub const fn max_slblock(&self) -> usize {
        (self.max_data() - self.slblock_header) / (3 * self.bid_size)
    }

    /// The most SIENTRYs that an SIBLOCK holds.
    #[must_use]
    pub const fn max_siblock(&self) -> usize {
        (self.max_data() - self.slblock_header) / (2 * self.bid_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_adds_up() {
        for f in [UNICODE, ANSI, OST_4K] {
            // ptype, ptypeRepeat, wSig, then checksum and BID in the order of the format.
            let bid_end = f.trailer_bid + f.bid_size;
            assert!(f.page_data + bid_end.max(f.trailer_crc + 4) <= f.page_size);
            assert!(f.btree_entries + 2 * f.count_size + 2 <= f.page_data);
            assert!(f.page_data >= MAP_BYTES as usize);
            assert_eq!((f.btentry, f.nbtentry), (3 * f.bid_size, 4 * f.bid_size));
            assert_eq!(f.max_id(), u64::MAX >> (64 - 8 * f.bid_size));
            assert_eq!(Format::of_version(f.version).unwrap(), &f);
        }
        // The maxima that [MS-PST] states (2.2.2.8.3.2.1, 2.2.2.7.4.2, 2.2.2.8.1).
        assert_eq!((UNICODE.max_data(), ANSI.max_data()), (8176, 8180));
        assert_eq!((UNICODE.max_dlist(), ANSI.max_dlist()), (119, 120));
        assert_eq!((UNICODE.max_xblock(), ANSI.max_xblock()), (1021, 2043));
        assert_eq!((UNICODE.max_slblock(), ANSI.max_slblock()), (340, 681));
        assert_eq!((UNICODE.max_siblock(), ANSI.max_siblock()), (510, 1022));
        // An ANSI file ends before the first FPMap page and before 2 GiB.
        assert_eq!(amap_offset(ANSI.max_amaps), 0x7C00_4400);
        assert!((0..ANSI.max_amaps).all(|i| map_pages(i).iter().all(|p| p.0 != PageType::FpMap)));
    }

    #[test]
    fn map_pages_lie_where_other_programs_put_them() {
        let at = |index: u64, kind| {
            map_pages(index)
                .into_iter()
                .find(|(k, _)| *k == kind)
                .map(|(_, o)| amap_offset(index) + o)
        };
        assert_eq!(at(0, PageType::AMap), Some(0x4400));
        assert_eq!(at(0, PageType::PMap), Some(0x4600));
        assert_eq!(at(7, PageType::PMap), None);
        assert_eq!(at(8, PageType::PMap), Some(0x4600 + 2_031_616));
        assert_eq!(at(127, PageType::FMap), None);
        assert_eq!(at(128, PageType::FMap), Some(0x1F0_4800));
        assert_eq!(
            at(128 + 496, PageType::FMap),
            Some(0x1F0_4800 + 125_960_192)
        );
        assert_eq!(at(8192, PageType::FpMap), Some(0x7C00_4A00));
        assert_eq!(at(8192, PageType::FMap), None);
        assert_eq!(
            at(8192 + 31_744, PageType::FpMap),
            Some(0x7C00_4A00 + 8_061_452_288)
        );
    }
}
