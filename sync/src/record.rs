//! Versioned records: every stored or sent value is one (DESIGN 7).
//!
//! ```text
//! offset  size  field
//! 0       1     version of the record
//! 1       4     CRC-32 (IEEE) of the payload, little-endian
//! 5       n     payload: bincode, legacy configuration with a limit
//! ```
//!
//! bincode has no schema evolution, so a reader accepts exactly the version it was written for;
//! bytes after the payload are refused, and the limit bounds what a length from outside allocates.

use bincode::{Decode, Encode, config};

/// Bytes before the payload.
const HEADER: usize = 5;

/// Why bytes are no record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer bytes than the header of a record.
    #[error("record cut short: {0} bytes")]
    Short(usize),
    /// Another version than this reader knows.
    #[error("record version {found}; this program reads version {expected}")]
    Version {
        /// The version found.
        found: u8,
        /// The version that this program reads.
        expected: u8,
    },
    /// The checksum does not fit the payload.
    #[error("record checksum is wrong")]
    Checksum,
    /// The payload does not decode within the limit.
    #[error("record does not decode: {0}")]
    Payload(String),
    /// There are bytes after the payload.
    #[error("{0} bytes after the end of the record")]
    Trailing(usize),
}

/// Encodes `value` as a record of `version`.
///
/// # Errors
/// [`RecordError::Payload`] if bincode refuses the value.
pub fn encode<T: Encode>(version: u8, value: &T) -> Result<Vec<u8>, RecordError> {
    let payload = bincode::encode_to_vec(value, config::legacy())
        .map_err(|e| RecordError::Payload(e.to_string()))?;
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.push(version);
    out.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    out.extend_from_slice(&payload);
    Ok(out)
}

/// Decodes a record of `version` whose payload takes at most `LIMIT` bytes.
///
/// # Errors
/// [`RecordError`] for anything that is not exactly one such record.
pub fn decode<T: Decode<()>, const LIMIT: usize>(
    version: u8,
    bytes: &[u8],
) -> Result<T, RecordError> {
    let short = || RecordError::Short(bytes.len());
    let (&found, rest) = bytes.split_first().ok_or_else(short)?;
    if found != version {
        return Err(RecordError::Version {
            found,
            expected: version,
        });
    }
    let (crc, payload) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
        return Err(RecordError::Checksum);
    }
    let (value, used) = bincode::decode_from_slice(payload, config::legacy().with_limit::<LIMIT>())
        .map_err(|e| RecordError::Payload(e.to_string()))?;
    if used != payload.len() {
        return Err(RecordError::Trailing(payload.len() - used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1024;

    #[test]
    fn only_the_exact_record_decodes() {
        let good = encode(3, &(7u32, b"mail".to_vec())).unwrap();
        assert_eq!(
            decode::<(u32, Vec<u8>), LIMIT>(3, &good).unwrap(),
            (7, b"mail".to_vec())
        );
        assert!(matches!(
            decode::<(u32, Vec<u8>), LIMIT>(4, &good),
            Err(RecordError::Version {
                found: 3,
                expected: 4
            })
        ));
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x40;
            assert!(
                decode::<(u32, Vec<u8>), LIMIT>(3, &bad).is_err(),
                "flip at {i}"
            );
            assert!(
                decode::<(u32, Vec<u8>), LIMIT>(3, &good[..i]).is_err(),
                "cut at {i}"
            );
        }
    }

    #[test]
    fn trailing_bytes_are_refused_even_with_a_right_checksum() {
        let mut payload = bincode::encode_to_vec(5u32, config::legacy()).unwrap();
        payload.push(0);
        let mut bytes = vec![1];
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        assert!(matches!(
            decode::<u32, LIMIT>(1, &bytes),
            Err(RecordError::Trailing(1))
        ));
    }

    #[test]
    fn a_length_from_outside_does_not_allocate() {
        let mut payload = u64::MAX.to_le_bytes().to_vec();
        payload.extend_from_slice(&[0; 8]);
        let mut bytes = vec![1];
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        assert!(matches!(
            decode::<Vec<u8>, LIMIT>(1, &bytes),
            Err(RecordError::Payload(_))
        ));
    }
}
