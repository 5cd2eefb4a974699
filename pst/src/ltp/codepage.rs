//! Windows code pages: what the bytes of a PtypString8 mean ([MS-OXCDATA] 2.11.1.2).
//!
//! A file does not say which code page its 8-bit strings are in. A message may (PidTagMessageCodepage,
//! PidTagInternetCodepage); a folder or a store never does. So a code page is always the caller's
//! statement, and a conversion tells whether it is exact: bytes that it cannot read, or would not write
//! back as they were, are not.

use encoding_rs::Encoding;

use super::text::Text;

/// A Windows code page by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct CodePage(pub u32);

impl CodePage {
    /// Windows-1252, Western European: what other readers assume where nothing is stated.
    pub const WESTERN: Self = Self(1252);
    /// UTF-8.
    pub const UTF8: Self = Self(65001);

    /// The Windows code page of the language that an internet code page is used for: what 8-bit text of
    /// such a message is in, where the message does not say it itself. `None` for those that say
    /// nothing of the language.
    #[must_use]
    pub const fn of_internet(page: u32) -> Option<Self> {
        Some(Self(match page {
            874 | 932 | 936 | 949 | 950 | 1250..=1258 => page,
            20_932 | 50_220..=50_222 | 51_932 => 932,
            50_227 | 52_936 | 54_936 => 936,
            50_225 | 51_949 => 949,
            866 | 20_866 | 21_866 | 28_595 => 1251,
            28_591 | 28_605 => 1252,
            28_592 => 1250,
            28_597 => 1253,
            28_599 => 1254,
            28_598 | 38_598 => 1255,
            28_596 => 1256,
            28_594 | 28_603 => 1257,
            _ => return None,
        }))
    }

    /// Reads the text of PtypString8 bytes. An unknown code page reads ASCII alone as exact.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Text {
        if bytes.is_ascii() && self.keeps_ascii() {
            return Text::from_string8(bytes);
        }
        let Some(encoding) = self.encoding() else {
            return Text::from_string8(bytes);
        };
        let (text, bad) = encoding.decode_without_bom_handling(bytes);
        let lossless = !bad && self.encode(&text).is_some_and(|again| again == bytes);
        Text {
            text: text.into_owned(),
            lossless,
        }
    }

    /// The bytes of a text; `None` where the code page cannot say it, or what it says would be read
    /// back as another text.
    #[must_use]
    pub fn encode(self, text: &str) -> Option<Vec<u8>> {
        if text.is_ascii() && self.keeps_ascii() {
            return Some(text.as_bytes().to_vec());
        }
        let encoding = self.encoding()?;
        let (bytes, used, bad) = encoding.encode(text);
        let same = used == encoding
            && !bad
            && encoding.decode_without_bom_handling_and_without_replacement(&bytes)? == text;
        same.then(|| bytes.into_owned())
    }

    /// Whether ASCII bytes are ASCII text in it; in stateful ones escape sequences are not.
    const fn keeps_ascii(self) -> bool {
        !matches!(self.0, 50_220..=50_222 | 1200 | 1201)
    }

    fn encoding(self) -> Option<&'static Encoding> {
        Some(match self.0 {
            65_001 => encoding_rs::UTF_8,
            1252 | 28_591 => encoding_rs::WINDOWS_1252,
            1250 => encoding_rs::WINDOWS_1250,
            1251 => encoding_rs::WINDOWS_1251,
            1253 => encoding_rs::WINDOWS_1253,
            1254 | 28_599 => encoding_rs::WINDOWS_1254,
            1255 => encoding_rs::WINDOWS_1255,
            1256 => encoding_rs::WINDOWS_1256,
            1257 => encoding_rs::WINDOWS_1257,
            1258 => encoding_rs::WINDOWS_1258,
            874 => encoding_rs::WINDOWS_874,
            866 => encoding_rs::IBM866,
            932 => encoding_rs::SHIFT_JIS,
            936 => encoding_rs::GBK,
            949 => encoding_rs::EUC_KR,
            950 => encoding_rs::BIG5,
            20_866 => encoding_rs::KOI8_R,
            21_866 => encoding_rs::KOI8_U,
            28_592 => encoding_rs::ISO_8859_2,
            28_593 => encoding_rs::ISO_8859_3,
            28_594 => encoding_rs::ISO_8859_4,
            28_595 => encoding_rs::ISO_8859_5,
            28_596 => encoding_rs::ISO_8859_6,
            28_597 => encoding_rs::ISO_8859_7,
            28_598 | 38_598 => encoding_rs::ISO_8859_8,
            28_603 => encoding_rs::ISO_8859_13,
            28_605 => encoding_rs::ISO_8859_15,
            20_932 | 51_932 => encoding_rs::EUC_JP,
            50_220..=50_222 => encoding_rs::ISO_2022_JP,
            51_949 => encoding_rs::EUC_KR,
            54_936 => encoding_rs::GB18030,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_through_its_code_page_and_back() {
        for (page, text, bytes) in [
            (1252, "Müll €", &b"M\xFCll \x80"[..]),
            (1251, "Привет", b"\xCF\xF0\xE8\xE2\xE5\xF2"),
            (1253, "γεια", b"\xE3\xE5\xE9\xE1"),
            (932, "削除", b"\x8D\xED\x8F\x9C"),
            (936, "中文", b"\xD6\xD0\xCE\xC4"),
            (949, "한글", b"\xC7\xD1\xB1\xDB"),
            (950, "中文", b"\xA4\xA4\xA4\xE5"),
            (65_001, "ä€", "ä€".as_bytes()),
            (20_866, "да", b"\xC4\xC1"),
        ] {
            let page = CodePage(page);
            let found = page.decode(bytes);
            assert_eq!(
                (found.text.as_str(), found.lossless),
                (text, true),
                "{page:?}"
            );
            assert_eq!(page.encode(text).as_deref(), Some(bytes), "{page:?}");
        }
    }

    #[test]
    fn an_internet_code_page_tells_the_language() {
        assert_eq!(CodePage::of_internet(50_220), Some(CodePage(932)));
        assert_eq!(CodePage::of_internet(20_866), Some(CodePage(1251)));
        assert_eq!(CodePage::of_internet(20_127), None);
        assert_eq!(CodePage::of_internet(65_001), None);
    }

    #[test]
    fn what_is_not_exact_says_so() {
        assert_eq!(CodePage::WESTERN.encode("削除"), None);
        assert_eq!(CodePage(932).encode("ä"), None);
        assert_eq!(CodePage(12_345).encode("ä"), None);
        assert_eq!(
            CodePage(12_345).encode("plain").as_deref(),
            Some(&b"plain"[..])
        );
        assert!(!CodePage(12_345).decode(b"\xE4").lossless);
        assert!(!CodePage(932).decode(b"\x8D").lossless);
        assert!(!CodePage::UTF8.decode(b"\xE4").lossless);
        assert!(CodePage(932).decode(b"plain").lossless);
        // Every byte by itself: exact or not, it never comes back as another.
        for page in [1250, 1251, 1252, 1254, 1255, 874, 866, 932, 28_605, 50_220] {
            for byte in 0..=255u8 {
                let text = CodePage(page).decode(&[byte]);
                if text.lossless {
                    let again = CodePage(page).encode(&text.text);
                    assert_eq!(again.as_deref(), Some(&[byte][..]), "{page} {byte:#x}");
                }
            }
        }
    }
}
