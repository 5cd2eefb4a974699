//! Pages and their trailers ([MS-PST] 2.2.2.7, 2.2.2.7.1).

use super::bytes::{crc, put, signature, signature_is, slice, sum_is, u8_at, u16_at, u32_at};
use super::format::Format;
use crate::{Bid, PstError, Result};

/// What a page holds (PAGETRAILER.ptype).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Block B-tree page.
    Bbt = 0x80,
    /// Node B-tree page.
    Nbt = 0x81,
    /// Free map page (deprecated, kept in place).
    FMap = 0x82,
    /// Page map page (deprecated, kept in place).
    PMap = 0x83,
    /// Allocation map page.
    AMap = 0x84,
    /// Free page map page (deprecated, kept in place).
    FpMap = 0x85,
    /// Density list.
    DList = 0x86,
}

impl PageType {
    /// The signature that a page of this type carries: map pages have none.
    #[must_use]
    pub fn signature(self, ib: u64, bid: Bid) -> u16 {
        match self {
            Self::Bbt | Self::Nbt | Self::DList => signature(ib, bid.0),
            Self::FMap | Self::PMap | Self::AMap | Self::FpMap => 0,
        }
    }
}

/// Checks a page's trailer: type, repeated type, checksum, signature and, where known, BID.
/// Returns the page's own BID.
///
/// # Errors
/// [`PstError::Corrupt`] naming the first field that is wrong.
pub fn verify_page(
    format: &Format,
    page: &[u8],
    kind: PageType,
    ib: u64,
    bid: Option<Bid>,
) -> Result<Bid> {
    let t = format.page_data;
    let data = slice(page, 0, t, "page")?;
    let (ptype, repeat) = (u8_at(page, t, "ptype")?, u8_at(page, t + 1, "ptypeRepeat")?);
    if ptype != kind as u8 || repeat != kind as u8 {
        return Err(PstError::corrupt(
            "ptype",
            ib,
            format!("{ptype:#04x}/{repeat:#04x}, expected {:#04x}", kind as u8),
        ));
    }
    let stored = u32_at(page, t + format.trailer_crc, "dwCRC")?;
    if !sum_is(stored, data) {
        return Err(PstError::corrupt(
            "PAGETRAILER.dwCRC",
            ib,
            format!("stored {stored:#010x}, computed {:#010x}", crc(data)),
        ));
    }
    let own = Bid(format.id_at(page, t + format.trailer_bid, "bid")?);
    if let Some(expected) = bid
        && own != expected
    {
        return Err(PstError::corrupt(
            "PAGETRAILER.bid",
            ib,
            format!("{own}, expected {expected}"),
        ));
    }
    let sig = u16_at(page, t + 2, "wSig")?;
    let expected = kind.signature(ib, own);
    if !signature_is(sig, expected) {
        return Err(PstError::corrupt(
            "PAGETRAILER.wSig",
            ib,
            format!("{sig:#06x}, expected {expected:#06x}"),
        ));
    }
    Ok(own)
}

/// Completes a page whose data is in place: writes the trailer.
pub fn seal_page(format: &Format, page: &mut [u8], kind: PageType, ib: u64, bid: Bid) {
    let t = format.page_data;
    let sum = crc(page.get(..t).unwrap_or_default());
    put(page, t, &[kind as u8, kind as u8]);
    put(page, t + 2, &kind.signature(ib, bid).to_le_bytes());
    put(page, t + format.trailer_crc, &sum.to_le_bytes());
    format.put_id(page, t + format.trailer_bid, bid.0);
}
