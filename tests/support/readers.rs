//! Independent readers: what libpff (`pffexport`) and libpst (`readpst`) see in a PST, in a form
//! that does not depend on the order of table rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Per folder path, the sorted digests of its items: each covers all files that the reader
/// exported for the item (headers, body, recipients, attachments).
pub type View = BTreeMap<String, Vec<String>>;

/// What `pffexport` sees; `None` where it is not installed.
pub fn pffexport(pst: &Path) -> Option<View> {
    let out = tempfile::tempdir().expect("a temporary directory");
    let target = out.path().join("x");
    let output = Command::new("pffexport")
        .args(["-q", "-t"])
        .arg(&target)
        .arg(pst)
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "pffexport: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut view = View::new();
    walk(&out.path().join("x.export"), "", &mut view);
    assert!(!view.is_empty(), "pffexport exported nothing");
    Some(view)
}

/// What `readpst` sees; `None` where it is not installed.
pub fn readpst(pst: &Path) -> Option<View> {
    let out = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new("readpst")
        .args(["-q", "-e", "-j", "0", "-o"])
        .arg(out.path())
        .arg(pst)
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "readpst: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    let mut view = View::new();
    walk(out.path(), "", &mut view);
    Some(view)
}

/// Items are the directories and files that carry a running number (`Message00001`, `12.eml`).
fn walk(dir: &Path, path: &str, view: &mut View) {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .map(|e| e.expect("an entry").path())
        .collect();
    entries.sort();
    let items = view.entry(path.to_owned()).or_default();
    let mut folders = Vec::new();
    for entry in entries {
        let name = entry
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if !is_numbered(&name) && entry.is_dir() {
            folders.push((entry, name));
        } else {
            let mut hasher = blake3::Hasher::new();
            digest(&entry, "", &mut hasher);
            items.push(hasher.finalize().to_hex()[..32].to_owned());
        }
    }
    items.sort();
    for (entry, name) in folders {
        walk(&entry, &format!("{path}/{name}"), view);
    }
}

fn is_numbered(name: &str) -> bool {
    let stem = name.split(['.', '-']).next().unwrap_or_default();
    let digits = stem.chars().rev().take_while(char::is_ascii_digit).count();
    let kinds = [
        "Message",
        "Contact",
        "Appointment",
        "Task",
        "Note",
        "Journal",
        "Meeting",
        "Activity",
        "Document",
        "Email",
        "Conflict",
        "RSSFeed",
        "",
    ];
    digits > 0 && kinds.contains(&&stem[..stem.len() - digits])
}

fn digest(path: &Path, name: &str, hasher: &mut blake3::Hasher) {
    hasher.update(name.as_bytes());
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path)
            .expect("lists")
            .map(|e| e.expect("an entry").path())
            .collect();
        entries.sort();
        for entry in entries {
            let name = entry
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            digest(&entry, &name, hasher);
        }
    } else {
        hasher.update(&without_boundaries(&fs::read(path).expect("reads")));
    }
}

/// `readpst` makes up a MIME boundary for every run; it says nothing about the PST.
fn without_boundaries(bytes: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"boundary-LibPST-iamunique-";
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(MARK.len()).position(|w| w == MARK) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + MARK.len()..];
        let skip = rest
            .iter()
            .take_while(|b| b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.'))
            .count();
        rest = &rest[skip..];
    }
    out.extend_from_slice(rest);
    out
}
