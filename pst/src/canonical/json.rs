//! The few lines of JSON that a dump needs: writing only, no dependency, no surprises.

use std::fmt::Write;

/// Appends `s` as a JSON string. Control characters become `\u00XX`.
pub fn string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\u{7f}' || c == '\u{2028}' || c == '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends bytes as a JSON string of lower-case hex.
pub fn hex(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out.push('"');
}

/// A GUID as the registry writes it, from its little-endian stored form.
pub fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let mut s = format!(
        "{:08X}-{:04X}-{:04X}-",
        u32::from_le_bytes([a, b, c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h])
    );
    for (i, b) in rest.iter().enumerate() {
        if i == 2 {
            s.push('-');
        }
        let _ = write!(s, "{b:02X}");
    }
    s
}

/// A FILETIME (100 ns since 1601-01-01 UTC) as ISO 8601; `None` before 1601 or past year 9999.
pub fn filetime(ticks: u64) -> Option<String> {
    let secs = ticks / 10_000_000;
    let frac = ticks % 10_000_000;
    let days = i64::try_from(secs / 86_400).ok()?;
    let in_day = secs % 86_400;
    // Days since 1601-01-01, the start of a 400-year cycle: civil date by Gregorian cycles.
    let era = days / 146_097;
    let mut doe = days % 146_097;
    let mut year = 1601 + era * 400;
    let centuries = (doe / 36_524).min(3);
    doe -= centuries * 36_524;
    let quads = (doe / 1_461).min(24);
    doe -= quads * 1_461;
    let years = (doe / 365).min(3);
    doe -= years * 365;
    year += centuries * 100 + quads * 4 + years;
    if year > 9999 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [
        31,
        if leap { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for len in lengths {
        if doe < len {
            break;
        }
        doe -= len;
        month += 1;
    }
    let (h, m, s) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    let mut out = format!("{year:04}-{month:02}-{:02}T{h:02}:{m:02}:{s:02}", doe + 1);
    if frac != 0 {
        let _ = write!(out, ".{frac:07}");
    }
    out.push('Z');
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_known_ones() {
        assert_eq!(filetime(0).as_deref(), Some("1601-01-01T00:00:00Z"));
        // The Unix epoch and a leap day.
        assert_eq!(
            filetime(116_444_736_000_000_000).as_deref(),
            Some("1970-01-01T00:00:00Z")
        );
        let leap = 116_444_736_000_000_000 + (951_782_400 + 3_661) * 10_000_000 + 5;
        assert_eq!(
            filetime(leap).as_deref(),
            Some("2000-02-29T01:01:01.0000005Z")
        );
        let dec = 116_444_736_000_000_000 + 978_307_199 * 10_000_000;
        assert_eq!(filetime(dec).as_deref(), Some("2000-12-31T23:59:59Z"));
        assert_eq!(filetime(u64::MAX), None);
    }

    #[test]
    fn strings_are_escaped() {
        let mut s = String::new();
        string(&mut s, "a\"b\\c\u{1}\n\u{e9}");
        assert_eq!(s, "\"a\\\"b\\\\c\\u0001\\n\u{e9}\"");
    }

    #[test]
    fn guids_read_as_the_registry_writes_them() {
        let g = [
            0x20, 0x20, 0x06, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0x46,
        ];
        assert_eq!(guid(&g), "00062020-0000-0000-C000-000000000046");
    }
}
