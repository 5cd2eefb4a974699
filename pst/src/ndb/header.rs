//! The header and its ROOT ([MS-PST] 2.2.2.5, 2.2.2.6).
//!
//! The raw bytes are kept beside the parsed fields and patched on writing, so that reserved
//! fields which the specification tells us to leave alone survive every edit.
//!
//! A Unicode header is one write of 564 bytes over two disk sectors. `dwCRCPartial` covers the first
//! sector, which holds the roots; `dwCRCFull` lies in the second. So a header torn by a power
//! cut has a right partial and a wrong full checksum: it is accepted as [`Header::torn`], its
//! AMaps count as invalid and its block counter must be taken from the block B-tree. An ANSI header
//! is one sector of 512 bytes with the partial checksum alone: it is there or it is not.

use super::bytes::{crc, put, slice, u8_at, u16_at, u32_at};
use super::crypt::CryptMethod;
use super::format::Format;
use crate::{Bid, Bref, NidType, PstError, Result};

/// Bytes of the longest header, which is the Unicode one.
pub const HEADER_LEN: usize = 564;

/// Fields that lie at the same place in every header.
mod at {
    pub const MAGIC: usize = 0;
    pub const CRC_PARTIAL: usize = 4;
    pub const MAGIC_CLIENT: usize = 8;
    pub const VER: usize = 10;
    pub const VER_CLIENT: usize = 12;
    pub const PLATFORM: usize = 14;
    /// Both checksums begin at wMagicClient.
    pub const PARTIAL_END: usize = MAGIC_CLIENT + 471;
}

/// The fields whose places depend on the width of identifiers (2.2.2.5, 2.2.2.6).
struct Layout {
    len: usize,
    bid_next_page: usize,
    bid_next_block: usize,
    unique: usize,
    rgnid: usize,
    eof: usize,
    fmaps: usize,
    sentinel: usize,
    /// dwCRCFull and the end of what it covers; an ANSI header lies in one sector and has none.
    crc_full: Option<(usize, usize)>,
}

const WIDE: Layout = Layout {
    len: HEADER_LEN,
    bid_next_page: 32,
    bid_next_block: 516,
    unique: 40,
    rgnid: 44,
    eof: 184,
    fmaps: 256,
    sentinel: 512,
    crc_full: Some((524, at::MAGIC_CLIENT + 516)),
};

const NARROW: Layout = Layout {
    len: 512,
    bid_next_page: 28,
    bid_next_block: 24,
    unique: 32,
    rgnid: 36,
    eof: 168,
    fmaps: 204,
    sentinel: 460,
    crc_full: None,
};

impl Layout {
    const fn of(format: &Format) -> &'static Self {
        if format.bid_size == 4 { &NARROW } else { &WIDE }
    }

    /// Field `i` of ROOT from ibFileEof on, in widths of an identifier: 1 ibAMapLast, 2 cbAMapFree,
    /// 3 cbPMapFree, 4 and 5 BREFNBT, 6 and 7 BREFBBT, 8 fAMapValid.
    const fn root(&self, format: &Format, i: usize) -> usize {
        self.eof + i * format.bid_size
    }
}

/// The header of a file, parsed, with its raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    raw: Vec<u8>,
    format: &'static Format,
    /// HEADER.wVer.
    pub version: u16,
    /// How data blocks are encoded.
    pub crypt: CryptMethod,
    /// The next BID for a block; advances by 4.
    pub bid_next_block: Bid,
    /// The next BID for a page; advances by 1 in real files.
    pub bid_next_page: Bid,
    /// Rises with every header write of ours (other writers forget it).
    pub unique: u32,
    /// Per node type, the last index handed out: real files store the index, not a NID.
    pub rgnid: [u32; 32],
    /// ROOT.ibFileEof: the file's size in bytes.
    pub file_eof: u64,
    /// ROOT.ibAMapLast: file offset of the last AMap page.
    pub amap_last: u64,
    /// ROOT.cbAMapFree: free bytes in all AMaps.
    pub amap_free: u64,
    /// ROOT.cbPMapFree: deprecated, zero in new files.
    pub pmap_free: u64,
    /// The root page of the node B-tree.
    pub nbt: Bref,
    /// The root page of the block B-tree.
    pub bbt: Bref,
    /// ROOT.fAMapValid as stored: 0 invalid, 1 or 2 valid.
    pub amap_valid: u8,
    /// A checksum is wrong: the header's second sector is of another write, or a writer flipped
    /// fAMapValid alone.
    pub torn: bool,
}

fn partial_right(b: &[u8]) -> Result<bool> {
    let covered = slice(
        b,
        at::MAGIC_CLIENT,
        at::PARTIAL_END - at::MAGIC_CLIENT,
        "HEADER",
    )?;
    Ok(crc(covered) == u32_at(b, at::CRC_PARTIAL, "dwCRCPartial")?)
}

impl Header {
    /// Parses and verifies a header from the first bytes of a file.
    ///
    /// # Errors
    /// [`PstError::NotPst`] without the magic numbers, [`PstError::Unsupported`] for formats and
    /// encodings not handled, [`PstError::Corrupt`] where a checksum or a field is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.get(at::MAGIC..4) != Some(b"!BDN".as_slice()) {
            return Err(PstError::NotPst("it does not begin with \"!BDN\""));
        }
        if bytes
            .get(at::MAGIC_CLIENT..at::VER)
            .is_none_or(|m| m != b"SM" && m != b"SO")
        {
            return Err(PstError::NotPst(
                "its client magic is not that of a PST or OST",
            ));
        }
        let version = u16_at(bytes, at::VER, "wVer")?;
        let format = Format::of_version(version)?;
        let l = Layout::of(format);
        let raw = slice(bytes, 0, l.len, "HEADER")?.to_vec();
        let b = raw.as_slice();
        let flag_at = l.root(format, 8);

        // One writer flips fAMapValid alone while it works: the checksums are then those of the
        // header with the flag as it was.
        let mut as_valid = raw.clone();
        let mut torn = !partial_right(b)?;
        for flag in [2, 1] {
            if torn && u8_at(b, flag_at, "fAMapValid")? == 0 && !partial_right(&as_valid)? {
                put(&mut as_valid, flag_at, &[flag]);
            }
        }
        if !partial_right(&as_valid)? {
            let stored = u32_at(b, at::CRC_PARTIAL, "dwCRCPartial")?;
            let found = crc(b.get(at::MAGIC_CLIENT..at::PARTIAL_END).unwrap_or_default());
            return Err(PstError::corrupt(
                "dwCRCPartial",
                at::CRC_PARTIAL as u64,
                format!("stored {stored:#010x}, computed {found:#010x}"),
            ));
        }
        if let Some((crc_at, end)) = l.crc_full {
            let full = slice(b, at::MAGIC_CLIENT, end - at::MAGIC_CLIENT, "HEADER")?;
            torn |= crc(full) != u32_at(b, crc_at, "dwCRCFull")?;
        }
        let sentinel = u8_at(b, l.sentinel, "bSentinel")?;
        if sentinel != 0x80 {
            return Err(PstError::corrupt(
                "bSentinel",
                l.sentinel as u64,
                format!("{sentinel:#04x}, expected 0x80"),
            ));
        }

        let mut rgnid = [0u32; 32];
        for (i, slot) in rgnid.iter_mut().enumerate() {
            *slot = u32_at(b, l.rgnid + 4 * i, "rgnid")?;
        }
        let root = |i: usize, field| format.id_at(b, l.root(format, i), field);
        let bref = |i: usize, field| -> Result<Bref> {
            Ok(Bref {
                bid: Bid(root(i, field)?),
                ib: root(i + 1, field)?,
            })
        };
        Ok(Self {
            format,
            version,
            crypt: CryptMethod::from_byte(u8_at(b, l.sentinel + 1, "bCryptMethod")?)?,
            bid_next_block: Bid(format.id_at(b, l.bid_next_block, "bidNextB")?),
            bid_next_page: Bid(format.id_at(b, l.bid_next_page, "bidNextP")?),
            unique: u32_at(b, l.unique, "dwUnique")?,
            rgnid,
            file_eof: root(0, "ibFileEof")?,
            amap_last: root(1, "ibAMapLast")?,
            amap_free: root(2, "cbAMapFree")?,
            pmap_free: root(3, "cbPMapFree")?,
            nbt: bref(4, "BREFNBT")?,
            bbt: bref(6, "BREFBBT")?,
            amap_valid: u8_at(b, flag_at, "fAMapValid")?,
            torn,
            raw,
        })
    }

    /// A header for a new, still empty file: counters at their starting values (2.2.2.6).
    pub(crate) fn new_empty(format: &'static Format, crypt: CryptMethod) -> Self {
        let l = Layout::of(format);
        let mut raw = vec![0u8; l.len];
        put(&mut raw, at::MAGIC, b"!BDN");
        put(&mut raw, at::MAGIC_CLIENT, b"SM");
        put(&mut raw, at::VER, &format.version.to_le_bytes());
        put(&mut raw, at::VER_CLIENT, &19u16.to_le_bytes());
        put(&mut raw, at::PLATFORM, &[1, 1]);
        put(&mut raw, l.fmaps, &[0xFF; 256]);
        put(&mut raw, l.sentinel, &[0x80, crypt.to_byte()]);
        let mut rgnid = [0x400u32; 32];
        for (kind, start) in [
            (NidType::SEARCH_FOLDER, 0x4000),
            (NidType::NORMAL_MESSAGE, 0x1_0000),
            (NidType::ASSOC_MESSAGE, 0x8000),
        ] {
            if let Some(slot) = rgnid.get_mut(usize::from(kind.0)) {
                *slot = start;
            }
        }
        Self {
            raw,
            format,
            version: format.version,
            crypt,
            bid_next_block: Bid(4),
            bid_next_page: Bid(1),
            unique: 1,
            rgnid,
            file_eof: 0,
            amap_last: 0,
            amap_free: 0,
            pmap_free: 0,
            nbt: Bref::default(),
            bbt: Bref::default(),
            amap_valid: 2,
            torn: false,
        }
    }

    /// The file's format.
    #[must_use]
    pub const fn format(&self) -> &'static Format {
        self.format
    }

    /// Where ibFileEof lies in the file, for messages.
    pub(crate) const fn eof_at(&self) -> u64 {
        Layout::of(self.format).eof as u64
    }

    /// Whether the AMaps may be trusted: marked valid, by a header that is whole.
    #[must_use]
    pub const fn maps_valid(&self) -> bool {
        !self.torn && (self.amap_valid == 1 || self.amap_valid == 2)
    }

    /// The raw bytes as they were read: a stamp over them notices any header change, also of
    /// writers that forget dwUnique.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The header's bytes with the fields as they are now and both checksums right.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (mut b, f) = (self.raw.clone(), self.format);
        let l = Layout::of(f);
        f.put_id(&mut b, l.bid_next_page, self.bid_next_page.0);
        f.put_id(&mut b, l.bid_next_block, self.bid_next_block.0);
        put(&mut b, l.unique, &self.unique.to_le_bytes());
        for (i, nid) in self.rgnid.iter().enumerate() {
            put(&mut b, l.rgnid + 4 * i, &nid.to_le_bytes());
        }
        let root = [
            self.file_eof,
            self.amap_last,
            self.amap_free,
            self.pmap_free,
            self.nbt.bid.0,
            self.nbt.ib,
            self.bbt.bid.0,
            self.bbt.ib,
        ];
        for (i, value) in root.into_iter().enumerate() {
            f.put_id(&mut b, l.root(f, i), value);
        }
        put(&mut b, l.root(f, root.len()), &[self.amap_valid]);
        if let Some((crc_at, end)) = l.crc_full {
            let full = crc(b.get(at::MAGIC_CLIENT..end).unwrap_or_default());
            put(&mut b, crc_at, &full.to_le_bytes());
        }
        let partial = crc(b.get(at::MAGIC_CLIENT..at::PARTIAL_END).unwrap_or_default());
        put(&mut b, at::CRC_PARTIAL, &partial.to_le_bytes());
        b
    }
}
