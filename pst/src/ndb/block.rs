//! Blocks and their trailers ([MS-PST] 2.2.2.8), and the deflated blocks of newer OSTs.

use super::Ndb;
use super::btree::BbtEntry;
use super::bytes::{crc, put, signature, slice, u16_at, u32_at};
use super::crypt::CryptMethod;
use super::format::Format;
use crate::{Bid, Bref, PstError, Result};

/// Checks a block as stored (`cb` bytes of data, padding, trailer); returns its data, still
/// encoded.
///
/// # Errors
/// [`PstError::Corrupt`] naming the first field that is wrong.
pub fn verify_block<'a>(format: &Format, stored: &'a [u8], entry: &BbtEntry) -> Result<&'a [u8]> {
    let ib = entry.bref.ib;
    let t = format.block_space(usize::from(entry.cb)) - format.block_trailer;
    let data = slice(stored, 0, usize::from(entry.cb), "block")?;
    let cb = u16_at(stored, t, "cb")?;
    if cb != entry.cb {
        return Err(PstError::corrupt(
            "BLOCKTRAILER.cb",
            ib,
            format!("{cb}, the block B-tree says {}", entry.cb),
        ));
    }
    let bid = Bid(format.id_at(stored, t + format.trailer_bid, "bid")?);
    if bid.key() != entry.bref.bid.key() {
        return Err(PstError::corrupt(
            "BLOCKTRAILER.bid",
            ib,
            format!("{bid}, expected {}", entry.bref.bid),
        ));
    }
    let sum = u32_at(stored, t + format.trailer_crc, "dwCRC")?;
    if sum != crc(data) {
        return Err(PstError::corrupt(
            "BLOCKTRAILER.dwCRC",
            ib,
            format!("stored {sum:#010x}, computed {:#010x}", crc(data)),
        ));
    }
    let sig = u16_at(stored, t + 2, "wSig")?;
    if sig != signature(ib, bid.0) {
        return Err(PstError::corrupt(
            "BLOCKTRAILER.wSig",
            ib,
            format!("{sig:#06x}, expected {:#06x}", signature(ib, bid.0)),
        ));
    }
    Ok(data)
}

/// The data of a deflated block: exactly as many bytes as its entry says, or an error. No more memory
/// than that is taken whatever the stream holds.
fn inflate(deflated: &[u8], entry: &BbtEntry) -> Result<Vec<u8>> {
    let bad = |detail: String| PstError::corrupt("deflated block", entry.bref.ib, detail);
    let mut out = vec![0; usize::from(entry.cb_data)];
    let mut stream = flate2::Decompress::new(true);
    let status = stream
        .decompress(deflated, &mut out, flate2::FlushDecompress::Finish)
        .map_err(|e| bad(format!("block {}: {e}", entry.bref.bid)))?;
    if status != flate2::Status::StreamEnd || stream.total_out() != out.len() as u64 {
        return Err(bad(format!(
            "block {}: {} bytes stated, the stream has {}{}",
            entry.bref.bid,
            entry.cb_data,
            stream.total_out(),
            if status == flate2::Status::StreamEnd {
                ""
            } else {
                " and does not end"
            },
        )));
    }
    Ok(out)
}

/// Builds a block as stored: data (encoded if external), zero padding, trailer.
pub(crate) fn seal_block(format: &Format, crypt: CryptMethod, bref: Bref, data: &[u8]) -> Vec<u8> {
    let space = format.block_space(data.len());
    let mut out = Vec::with_capacity(space);
    out.extend_from_slice(data);
    if !bref.bid.is_internal() {
        crypt.encode(&mut out, bref.bid);
    }
    let sum = crc(&out);
    out.resize(space, 0);
    let t = space - format.block_trailer;
    put(&mut out, t, &(data.len() as u16).to_le_bytes());
    put(&mut out, t + format.trailer_crc, &sum.to_le_bytes());
    name_block(format, &mut out, bref);
    out
}

/// Gives a block as stored another BID and place. Its data must not be encoded with the BID.
pub(crate) fn name_block(format: &Format, stored: &mut [u8], bref: Bref) {
    let t = stored.len() - format.block_trailer;
    put(stored, t + 2, &signature(bref.ib, bref.bid.0).to_le_bytes());
    format.put_id(stored, t + format.trailer_bid, bref.bid.0);
}

impl Ndb {
    /// The decoded data of one block.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if the block B-tree lacks it, [`PstError::Corrupt`] if its bytes
    /// are damaged.
    pub fn block_data(&self, bid: Bid) -> Result<Vec<u8>> {
        let entry = self.block(bid)?.ok_or_else(|| PstError::NotFound {
            what: "block",
            id: bid.to_string(),
        })?;
        self.block_data_of(&entry)
    }

    /// The decoded data of the block that `entry` names.
    ///
    /// # Errors
    /// As [`Ndb::block_data`].
    pub fn block_data_of(&self, entry: &BbtEntry) -> Result<Vec<u8>> {
        let mut stored = self.stored_block(entry)?;
        stored.truncate(usize::from(entry.cb));
        if entry.cb != entry.cb_data {
            stored = inflate(&stored, entry)?;
        }
        if !entry.bref.bid.is_internal() {
            self.header().crypt.decode(&mut stored, entry.bref.bid);
        }
        Ok(stored)
    }

    /// The verified bytes of a block as they lie in the file: encoded data, padding, trailer.
    pub(super) fn stored_block(&self, entry: &BbtEntry) -> Result<Vec<u8>> {
        let format = self.format();
        let largest = entry.cb.max(entry.cb_data);
        if usize::from(largest) > format.max_data() {
            return Err(PstError::corrupt(
                "BBTENTRY.cb",
                entry.bref.ib,
                format!("{largest} > {}", format.max_data()),
            ));
        }
        let stored = self.read(entry.bref.ib, format.block_space(usize::from(entry.cb)))?;
        verify_block(format, &stored, entry)?;
        Ok(stored)
    }
}
