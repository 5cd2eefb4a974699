//! What libpff says, by `pffexport`.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::facts::*;

/// The facts; `None` where the program is not installed.
pub fn facts(pst: &Path, top: &[String]) -> Option<Facts> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    let output = Command::new("pffexport")
        .args(["-q", "-f", "all", "-t"])
        .arg(&target)
        .arg(pst)
        .output()
        .ok()?;
    assert!(output.status.success(), "{output:?}");
    let mut facts = Facts::default();
    folder(
        &dir.path().join("x.export"),
        &mut Vec::new(),
        top,
        &mut facts,
    );
    Some(facts)
}

fn children(dir: &Path) -> Vec<(String, std::path::PathBuf)> {
    let mut out: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), p))
        .collect();
    out.sort();
    out
}

/// Items are directories with a kind and five digits, which hold a text file.
fn is_item(shown: &str, dir: &Path) -> bool {
    let stem = shown.trim_end_matches(|c: char| c.is_ascii_digit());
    shown.len() == stem.len() + 5
        && children(dir)
            .iter()
            .any(|(f, _)| *f == "OutlookHeaders.txt" || *f == format!("{stem}.txt"))
}

fn folder(dir: &Path, path: &mut Vec<String>, top: &[String], facts: &mut Facts) {
    for (shown, child) in children(dir).into_iter().filter(|(_, p)| p.is_dir()) {
        if is_item(&shown, &child) {
            item(&child, &place(path, top), facts);
            continue;
        }
        path.push(name(&shown));
        facts.say(FOLDER, place(path, top));
        folder(&child, path, top, facts);
        path.pop();
    }
}

/// The value behind `key` in lines of `Key:<tabs>value`.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let mut lines = text.lines();
    lines
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_default()
        .trim()
}

/// Tells what one item says; returns its subject.
fn item(dir: &Path, at: &str, facts: &mut Facts) -> String {
    let read = |file: &str| fs::read(dir.join(file)).ok();
    let lossy = |file: &str| String::from_utf8_lossy(&read(file).unwrap_or_default()).into_owned();
    let shown = dir.file_name().unwrap().to_string_lossy().into_owned();
    let stem = shown.trim_end_matches(|c: char| c.is_ascii_digit());
    let mut headers = lossy("OutlookHeaders.txt");
    if headers.is_empty() {
        headers = lossy(&format!("{stem}.txt"));
    }
    let subject = line(field(&headers, "Subject"));
    let item = format!("{at}|{subject}");
    facts.say(ITEM, item.clone());
    let own_body = headers
        .split_once("\nBody:")
        .map(|(_, b)| b.as_bytes().to_vec());
    for (facet, bytes) in [
        (TEXT, read("Message.txt").or(own_body)),
        (HTML, read("Message.html")),
        (RTF, read("Message.rtf")),
    ] {
        if let Some(bytes) = bytes.filter(|b| !b.trim_ascii().is_empty()) {
            facts.say(facet, format!("{item}|{}", body(&bytes)));
        }
    }
    for r in lossy("Recipients.txt").split("\n\n") {
        if !r.trim().is_empty() {
            facts.say(
                RECIPIENT,
                format!(
                    "{item}|{}|{}|{}",
                    line(field(r, "Display name")),
                    line(field(r, "Email address")),
                    field(r, "Recipient type")
                ),
            );
        }
    }
    for (shown, path) in children(&dir.join("Attachments")) {
        if path.is_dir() {
            for (_, inner) in children(&path) {
                let subject = self::item(&inner, &format!("{item}>"), facts);
                facts.say(EMBEDDED, format!("{item}|{subject}"));
            }
            continue;
        }
        let shown = shown.split_once('_').map_or(shown.as_str(), |(_, n)| n);
        let data = fs::read(&path).unwrap();
        facts.say(FILE, format!("{at}|{}|{}", name(shown), file(&data)));
    }
    subject
}
