//! Checked little-endian access, checksums and signatures ([MS-PST] 5.3, 5.5).

use crate::{PstError, Result};

fn array<const N: usize>(b: &[u8], at: usize, field: &'static str) -> Result<[u8; N]> {
    at.checked_add(N)
        .and_then(|end| b.get(at..end))
        .and_then(|s| s.try_into().ok())
        .ok_or_else(|| {
            PstError::corrupt(
                field,
                at as u64,
                format!("needs {N} bytes, {} there", b.len()),
            )
        })
}

/// The byte at `at`.
pub(crate) fn u8_at(b: &[u8], at: usize, field: &'static str) -> Result<u8> {
    array::<1>(b, at, field).map(u8::from_le_bytes)
}

/// The little-endian 16-bit number at `at`.
pub(crate) fn u16_at(b: &[u8], at: usize, field: &'static str) -> Result<u16> {
    array(b, at, field).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `at`.
pub(crate) fn u32_at(b: &[u8], at: usize, field: &'static str) -> Result<u32> {
    array(b, at, field).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `at`.
pub(crate) fn u64_at(b: &[u8], at: usize, field: &'static str) -> Result<u64> {
    array(b, at, field).map(u64::from_le_bytes)
}

/// The bytes `at..at + len`.
pub(crate) fn slice<'a>(
    b: &'a [u8],
    at: usize,
    len: usize,
    field: &'static str,
) -> Result<&'a [u8]> {
    at.checked_add(len)
        .and_then(|end| b.get(at..end))
        .ok_or_else(|| {
            PstError::corrupt(
                field,
                at as u64,
                format!("needs {len} bytes, {} there", b.len()),
            )
        })
}

/// Overwrites bytes at `at`; a range outside `b` is a bug of the caller and changes nothing.
pub(crate) fn put(b: &mut [u8], at: usize, data: &[u8]) {
    let target = at
        .checked_add(data.len())
        .and_then(|end| b.get_mut(at..end));
    debug_assert!(target.is_some(), "write outside the buffer");
    if let Some(target) = target {
        target.copy_from_slice(data);
    }
}

/// The PST checksum (5.3): CRC-32 with initial value 0 and without the final inversion.
#[must_use]
pub fn crc(data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!0);
    hasher.update(data);
    !hasher.finalize()
}

/// The signature of a block or B-tree page (5.5), from where it lies and its BID.
#[must_use]
pub fn signature(ib: u64, bid: u64) -> u16 {
    let x = ib ^ bid;
    ((x >> 16) as u16) ^ (x as u16)
}

/// Whether `data` has the checksum that is stored with it.
///
/// A build for fuzzing (`cfg(fuzzing)`, which only cargo-fuzz sets) takes every checksum and signature
/// for right: the fuzzer must get at the code behind them.
pub(crate) fn sum_is(stored: u32, data: &[u8]) -> bool {
    cfg!(fuzzing) || stored == crc(data)
}

/// Whether a stored signature is the one expected; see [`sum_is`].
pub(crate) fn signature_is(stored: u16, expected: u16) -> bool {
    cfg!(fuzzing) || stored == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_has_the_documented_check_value() {
        assert_eq!(crc(b"123456789"), 0x2DFD_2D88);
        assert_eq!(crc(b""), 0);
    }

    #[test]
    fn reads_are_bounded() {
        assert_eq!(u16_at(&[1, 2, 3], 1, "x").unwrap(), 0x0302);
        assert!(u16_at(&[1, 2, 3], 2, "x").is_err());
        assert!(u64_at(&[0; 8], usize::MAX, "x").is_err());
    }
}
