//! Lower-case hexadecimal, for fingerprints, tokens and digests in text.

/// The hexadecimal form of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(
                DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0'),
            ));
        }
    }
    out
}

/// Exactly 32 bytes from 64 digits, upper or lower case; `:` between bytes is allowed, as
/// certificate tools print it.
#[must_use]
pub fn decode_32(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let mut digits = text.bytes().filter(|b| *b != b':');
    for byte in &mut out {
        let mut nibble = || {
            let digit = char::from(digits.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        *byte = (nibble()? << 4) | nibble()?;
    }
    digits.next().is_none().then_some(out)
}

/// Serde form of 32 bytes as text.
pub mod serde_32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the hexadecimal form.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::encode(bytes))
    }

    /// Reads the hexadecimal form.
    ///
    /// # Errors
    /// If it is not 64 hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        super::decode_32(&text).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn round_trip_and_refusals() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37) as u8);
        let text = super::encode(&bytes);
        assert_eq!(super::decode_32(&text), Some(bytes));
        assert_eq!(super::decode_32(&text.to_uppercase()), Some(bytes));
        assert_eq!(super::decode_32(&text[1..]), None);
        assert_eq!(super::decode_32(&format!("{text}0")), None);
        assert_eq!(super::decode_32(&text.replace('0', "g")), None);
    }
}
