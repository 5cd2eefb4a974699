//! What libpst says, by `readpst`: mail as MIME, contacts as vCards, appointments as iCalendar.
//! It shows recipients only as header lines and no folder without items.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::facts::*;

/// The facts; `None` where the program is not installed.
pub fn facts(pst: &Path) -> Option<Facts> {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("readpst")
        .args(["-q", "-D", "-S", "-j", "0", "-o"])
        .arg(dir.path())
        .arg(pst)
        .output()
        .ok()?;
    assert!(output.status.success(), "{output:?}");
    let mut facts = Facts::default();
    // The outermost directory is named after the store.
    for store in fs::read_dir(dir.path()).unwrap() {
        folder(&store.unwrap().path(), "", &mut facts);
    }
    Some(facts)
}

fn folder(dir: &Path, path: &str, facts: &mut Facts) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let at = if path.is_empty() { "/" } else { path };
    for entry in &entries {
        let raw = entry.file_name();
        let shown = latin(raw.as_encoded_bytes());
        if entry.path().is_dir() {
            let path = format!("{path}/{}", name(&shown));
            facts.say(FOLDER, path.clone());
            folder(&entry.path(), &path, facts);
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        match shown.split_once('-') {
            None => item(&bytes, at, facts),
            Some((number, "rtf-body.rtf")) => {
                let owner = fs::read(dir.join(number)).unwrap_or_default();
                let item = format!("{at}|{}", subject(&owner));
                facts.say(RTF, format!("{item}|{}", body(&bytes)));
            }
            Some((_, shown)) => {
                facts.say(FILE, format!("{at}|{}|{}", name(shown), file(&bytes)));
            }
        }
    }
}

/// UTF-8, or bytes as Windows-1252: libpst passes 8-bit text through.
fn latin(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(
        |_| encoding_rs::WINDOWS_1252.decode(bytes).0.into_owned(),
        str::to_owned,
    )
}

fn subject(bytes: &[u8]) -> String {
    let text = latin(bytes);
    let unescaped = |v: String| v.replace("\\n", "\n").replace('\\', "");
    if text.starts_with("BEGIN:VCALENDAR") {
        return line(&unescaped(property(&text, "SUMMARY")));
    }
    if text.starts_with("BEGIN:VCARD") {
        return line(&unescaped(property(&text, "FN")));
    }
    line(&words(&header(split(&text).0, "Subject")))
}

fn item(bytes: &[u8], at: &str, facts: &mut Facts) {
    let text = latin(bytes);
    let item = format!("{at}|{}", subject(bytes));
    facts.say(ITEM, item.clone());
    if text.starts_with("BEGIN:VCALENDAR") {
        let body = property(&text, "DESCRIPTION")
            .replace("\\n", "\n")
            .replace('\\', "");
        say_body(facts, TEXT, &item, body.as_bytes());
    } else if !text.starts_with("BEGIN:VCARD") {
        part(bytes, &item, facts);
    }
}

fn say_body(facts: &mut Facts, facet: &'static str, item: &str, bytes: &[u8]) {
    if !bytes.trim_ascii().is_empty() {
        facts.say(facet, format!("{item}|{}", body(bytes)));
    }
}

/// The first line `KEY:value` of an iCalendar or vCard.
fn property(text: &str, key: &str) -> String {
    let mut lines = text.lines();
    let found = lines.find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    found.unwrap_or_default().to_owned()
}

fn split(text: &str) -> (&str, &str) {
    text.split_once("\n\n").unwrap_or((text, ""))
}

/// The last header of this name, unfolded.
fn header(head: &str, key: &str) -> String {
    let mut found = String::new();
    let mut inside = false;
    for l in head.lines() {
        if l.starts_with([' ', '\t']) {
            if inside {
                found.push(' ');
                found.push_str(l.trim());
            }
            continue;
        }
        let (k, v) = l.split_once(':').unwrap_or((l, ""));
        inside = k.eq_ignore_ascii_case(key);
        if inside {
            found = v.trim().to_owned();
        }
    }
    found
}

/// Tells the bodies in a MIME entity.
fn part(bytes: &[u8], item: &str, facts: &mut Facts) {
    let at = bytes.windows(2).position(|w| w == b"\n\n");
    let (head, rest) = bytes.split_at(at.map_or(bytes.len(), |i| i + 1));
    let head = latin(head);
    let kind = header(&head, "Content-Type");
    let lower = kind.to_ascii_lowercase();
    if lower.starts_with("multipart/") {
        let Some(boundary) = parameter(&kind, "boundary") else {
            return;
        };
        let mark = format!("\n--{boundary}");
        let mut pieces = cut(rest, mark.as_bytes());
        pieces.remove(0);
        for piece in pieces.into_iter().filter(|p| !p.starts_with(b"--")) {
            part(piece.trim_ascii_start(), item, facts);
        }
    } else if lower.starts_with("message/rfc822") {
        let inner = latin(rest);
        let subject = line(&words(&header(split(inner.trim_start()).0, "Subject")));
        facts.say(EMBEDDED, format!("{item}|{subject}"));
    } else if lower.starts_with("text/plain") || lower.starts_with("text/html") {
        let base64 = header(&head, "Content-Transfer-Encoding").eq_ignore_ascii_case("base64");
        let data = if base64 {
            unbase64(rest)
        } else {
            rest.to_vec()
        };
        if lower.starts_with("text/html") {
            say_body(facts, HTML, item, &data);
        } else {
            let charset = parameter(&kind, "charset").unwrap_or_default();
            let encoding = encoding_rs::Encoding::for_label(charset.as_bytes());
            let text = encoding.unwrap_or(encoding_rs::UTF_8).decode(&data).0;
            say_body(facts, TEXT, item, text.as_bytes());
        }
    }
}

fn cut<'a>(mut bytes: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    while let Some(at) = bytes.windows(mark.len()).position(|w| w == mark) {
        out.push(&bytes[..at]);
        bytes = &bytes[at + mark.len()..];
    }
    out.push(bytes);
    out
}

fn parameter(value: &str, key: &str) -> Option<String> {
    let at = value.to_ascii_lowercase().find(&format!("{key}="))?;
    let rest = &value[at + key.len() + 1..];
    Some(match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?.to_owned(),
        None => rest.split([';', ' ']).next()?.to_owned(),
    })
}

fn unbase64(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut word, mut bits) = (Vec::new(), 0u32, 0);
    for b in bytes {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        word = word << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
    out
}

/// A header's text with its encoded words (RFC 2047) decoded.
fn words(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some(at) = rest.find("=?") {
        let mut fields = rest[at + 2..].splitn(4, '?');
        let (Some(charset), Some(how), Some(text), Some(tail)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            break;
        };
        let Some(tail) = tail.strip_prefix('=') else {
            break;
        };
        let before = &rest[..at];
        if !before.trim().is_empty() || out.is_empty() {
            out.push_str(before);
        }
        let data = if how.eq_ignore_ascii_case("b") {
            unbase64(text.as_bytes())
        } else {
            quoted(text)
        };
        let encoding = encoding_rs::Encoding::for_label(charset.as_bytes());
        out.push_str(&encoding.unwrap_or(encoding_rs::UTF_8).decode(&data).0);
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3);
        let hex = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (bytes[i], hex) {
            (b'=', Some(b)) => {
                out.push(b);
                i += 2;
            }
            (b'_', _) => out.push(b' '),
            (b, _) => out.push(b),
        }
        i += 1;
    }
    out
}
