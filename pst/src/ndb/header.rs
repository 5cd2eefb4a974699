//! The header and its ROOT ([MS-PST] 2.2.2.5, 2.2.2.6).
//!
//! The raw bytes are kept beside the parsed fields and patched on writing, so that reserved
//! fields which the specification tells us to leave alone survive every edit.
//!
//! A header is one write of 564 bytes over two disk sectors. `dwCRCPartial` covers the first
//! sector, which holds the roots; `dwCRCFull` lies in the second. So a header torn by a power
//! cut has a right partial and a wrong full checksum: it is accepted as [`Header::torn`], its
//! AMaps count as invalid and its block counter must be taken from the block B-tree.

use super::bytes::{crc, put, slice, u8_at, u16_at, u32_at, u64_at};
use super::crypt::CryptMethod;
use super::format::Format;
use crate::{Bid, Bref, NidType, PstError, Result};

/// Bytes of the Unicode header.
pub const HEADER_LEN: usize = 564;

mod at {
    pub const MAGIC: usize = 0;
    pub const CRC_PARTIAL: usize = 4;
    pub const MAGIC_CLIENT: usize = 8;
    pub const VER: usize = 10;
    pub const VER_CLIENT: usize = 12;
    pub const PLATFORM: usize = 14;
    pub const BID_NEXT_P: usize = 32;
    pub const UNIQUE: usize = 40;
    pub const RGNID: usize = 44;
    pub const EOF: usize = 184;
    pub const AMAP_LAST: usize = 192;
    pub const AMAP_FREE: usize = 200;
    pub const PMAP_FREE: usize = 208;
    pub const NBT: usize = 216;
    pub const BBT: usize = 232;
    pub const AMAP_VALID: usize = 248;
    pub const FMAPS: usize = 256;
    pub const SENTINEL: usize = 512;
    pub const CRYPT: usize = 513;
    pub const BID_NEXT_B: usize = 516;
    pub const CRC_FULL: usize = 524;
    /// Both checksums begin at wMagicClient.
    pub const PARTIAL_END: usize = MAGIC_CLIENT + 471;
    pub const FULL_END: usize = MAGIC_CLIENT + 516;
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
        let raw = slice(bytes, 0, HEADER_LEN, "HEADER")?.to_vec();
        let b = raw.as_slice();

        // One writer flips fAMapValid alone while it works: the checksums are then those of the
        // header with the flag as it was.
        let mut as_valid = raw.clone();
        let mut torn = !partial_right(b)?;
        for flag in [2, 1] {
            if torn && u8_at(b, at::AMAP_VALID, "fAMapValid")? == 0 && !partial_right(&as_valid)? {
                put(&mut as_valid, at::AMAP_VALID, &[flag]);
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
        let full = slice(
            b,
            at::MAGIC_CLIENT,
            at::FULL_END - at::MAGIC_CLIENT,
            "HEADER",
        )?;
        torn |= crc(full) != u32_at(b, at::CRC_FULL, "dwCRCFull")?;
        let sentinel = u8_at(b, at::SENTINEL, "bSentinel")?;
        if sentinel != 0x80 {
            return Err(PstError::corrupt(
                "bSentinel",
                at::SENTINEL as u64,
                format!("{sentinel:#04x}, expected 0x80"),
            ));
        }

        let mut rgnid = [0u32; 32];
        for (i, slot) in rgnid.iter_mut().enumerate() {
            *slot = u32_at(b, at::RGNID + 4 * i, "rgnid")?;
        }
        let bref = |at: usize, field| -> Result<Bref> {
            Ok(Bref {
                bid: Bid(u64_at(b, at, field)?),
                ib: u64_at(b, at + 8, field)?,
            })
        };
        Ok(Self {
            format,
            version,
            crypt: CryptMethod::from_byte(u8_at(b, at::CRYPT, "bCryptMethod")?)?,
            bid_next_block: Bid(u64_at(b, at::BID_NEXT_B, "bidNextB")?),
            bid_next_page: Bid(u64_at(b, at::BID_NEXT_P, "bidNextP")?),
            unique: u32_at(b, at::UNIQUE, "dwUnique")?,
            rgnid,
            file_eof: u64_at(b, at::EOF, "ibFileEof")?,
            amap_last: u64_at(b, at::AMAP_LAST, "ibAMapLast")?,
            amap_free: u64_at(b, at::AMAP_FREE, "cbAMapFree")?,
            pmap_free: u64_at(b, at::PMAP_FREE, "cbPMapFree")?,
            nbt: bref(at::NBT, "BREFNBT")?,
            bbt: bref(at::BBT, "BREFBBT")?,
            amap_valid: u8_at(b, at::AMAP_VALID, "fAMapValid")?,
            torn,
            raw,
        })
    }

    /// A header for a new, still empty file: counters at their starting values (2.2.2.6).
    pub(crate) fn new_unicode(format: &'static Format, crypt: CryptMethod) -> Self {
        let mut raw = vec![0u8; HEADER_LEN];
        put(&mut raw, at::MAGIC, b"!BDN");
        put(&mut raw, at::MAGIC_CLIENT, b"SM");
        put(&mut raw, at::VER, &23u16.to_le_bytes());
        put(&mut raw, at::VER_CLIENT, &19u16.to_le_bytes());
        put(&mut raw, at::PLATFORM, &[1, 1]);
        put(&mut raw, at::FMAPS, &[0xFF; 256]);
        put(&mut raw, at::SENTINEL, &[0x80, crypt.to_byte()]);
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
            version: 23,
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
        let mut b = self.raw.clone();
        put(&mut b, at::BID_NEXT_P, &self.bid_next_page.0.to_le_bytes());
        put(&mut b, at::UNIQUE, &self.unique.to_le_bytes());
        for (i, nid) in self.rgnid.iter().enumerate() {
            put(&mut b, at::RGNID + 4 * i, &nid.to_le_bytes());
        }
        put(&mut b, at::EOF, &self.file_eof.to_le_bytes());
        put(&mut b, at::AMAP_LAST, &self.amap_last.to_le_bytes());
        put(&mut b, at::AMAP_FREE, &self.amap_free.to_le_bytes());
        put(&mut b, at::PMAP_FREE, &self.pmap_free.to_le_bytes());
        for (at, bref) in [(at::NBT, self.nbt), (at::BBT, self.bbt)] {
            put(&mut b, at, &bref.bid.0.to_le_bytes());
            put(&mut b, at + 8, &bref.ib.to_le_bytes());
        }
        put(&mut b, at::AMAP_VALID, &[self.amap_valid]);
        put(&mut b, at::BID_NEXT_B, &self.bid_next_block.0.to_le_bytes());
        let full = crc(b.get(at::MAGIC_CLIENT..at::FULL_END).unwrap_or_default());
        put(&mut b, at::CRC_FULL, &full.to_le_bytes());
        let partial = crc(b.get(at::MAGIC_CLIENT..at::PARTIAL_END).unwrap_or_default());
        put(&mut b, at::CRC_PARTIAL, &partial.to_le_bytes());
        b
    }
}
