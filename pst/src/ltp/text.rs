//! Views of stored values for people ([MS-OXCDATA] 2.11.1): strings and times. No view changes what is stored.

/// UTF-16LE bytes of a string, without terminator.
#[must_use]
pub fn utf16le(s: &str) -> Vec<u8> {
    s.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A string view of a value, and whether it says all that the bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text; what could not be decoded shows as U+FFFD.
    pub text: String,
    /// Whether encoding `text` again would give the stored bytes.
    pub lossless: bool,
}

impl Text {
    /// Decodes UTF-16LE; unpaired surrogates and an odd last byte make it lossy.
    #[must_use]
    pub fn from_utf16le(bytes: &[u8]) -> Self {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let mut lossless = rest.is_empty();
        let text = char::decode_utf16(pairs.iter().map(|p| u16::from_le_bytes(*p)))
            .map(|c| {
                c.unwrap_or_else(|_| {
                    lossless = false;
                    char::REPLACEMENT_CHARACTER
                })
            })
            .collect();
        Self { text, lossless }
    }

    /// A best-effort view of bytes in an unknown code page: UTF-8 where valid, else Windows-1252.
    /// Only pure ASCII counts as lossless, for nothing else is certain.
    #[must_use]
    pub fn from_string8(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(s) => Self {
                text: s.to_owned(),
                lossless: bytes.is_ascii(),
            },
            Err(_) => Self {
                text: bytes.iter().map(|b| cp1252(*b)).collect(),
                lossless: false,
            },
        }
    }
}

fn cp1252(b: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž',
        '\u{8F}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}',
        'ž', 'Ÿ',
    ];
    HIGH.get(usize::from(b).wrapping_sub(0x80))
        .copied()
        .unwrap_or(char::from(b))
}

/// A FILETIME (100 ns since 1601-01-01 UTC) as ISO 8601 with all seven decimals, without asking
/// any clock or time zone.
#[must_use]
pub fn filetime_iso(filetime: u64) -> String {
    let (secs, ticks) = (filetime / 10_000_000, filetime % 10_000_000);
    let (days, sod) = (secs / 86_400, secs % 86_400);
    // Civil-from-days over 400-year eras, with years that begin in March so that the leap day
    // comes last. 1601-01-01 is day 584_694 counted from 0000-03-01.
    let z = days + 584_694;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ticks:07}Z",
        sod / 3600,
        sod / 60 % 60,
        sod % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filetime_matches_known_dates() {
        assert_eq!(filetime_iso(0), "1601-01-01T00:00:00.0000000Z");
        assert_eq!(
            filetime_iso(116_444_736_000_000_000),
            "1970-01-01T00:00:00.0000000Z"
        );
        // 2000-02-29 12:34:56.7890123
        assert_eq!(
            filetime_iso(125_963_012_967_890_123),
            "2000-02-29T12:34:56.7890123Z"
        );
        assert_eq!(filetime_iso(u64::MAX), "60056-05-28T05:36:10.9551615Z");
    }

    #[test]
    fn text_views_tell_whether_they_are_exact() {
        assert_eq!(
            Text::from_utf16le(&utf16le("Grüße 😀")),
            Text {
                text: "Grüße 😀".into(),
                lossless: true
            }
        );
        assert!(!Text::from_utf16le(&[0x00, 0xD8]).lossless);
        assert!(!Text::from_utf16le(&[0x41, 0, 0x42]).lossless);
        assert_eq!(Text::from_string8(b"M\xFCll\x80").text, "Müll€");
        assert!(!Text::from_string8(b"M\xFCll").lossless);
        assert!(Text::from_string8(b"plain").lossless);
    }
}
