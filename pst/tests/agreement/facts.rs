//! What a reader says about a file, as multisets of plain statements that can be compared.

use std::collections::BTreeMap;

/// How many times each statement is made.
pub type Bag = BTreeMap<String, usize>;

/// Statements by what they are about.
#[derive(Default)]
pub struct Facts(pub BTreeMap<&'static str, Bag>);

/// Every folder, by path.
pub const FOLDER: &str = "folder";
/// Every item: folder and subject.
pub const ITEM: &str = "item";
/// Folder, subject and plain body.
pub const TEXT: &str = "text";
/// Folder, subject and HTML body.
pub const HTML: &str = "html";
/// Folder, subject and RTF body, inflated.
pub const RTF: &str = "rtf";
/// Folder, subject, and name, address and type of a recipient.
pub const RECIPIENT: &str = "recipient";
/// Folder, and name, length and hash of an attachment by value.
pub const FILE: &str = "file";
/// Folder, and subject of an embedded message.
pub const EMBEDDED: &str = "embedded";

/// All facets.
pub const FACETS: [&str; 8] = [FOLDER, ITEM, TEXT, HTML, RTF, RECIPIENT, FILE, EMBEDDED];

impl Facts {
    pub fn say(&mut self, facet: &'static str, statement: String) {
        *self
            .0
            .entry(facet)
            .or_default()
            .entry(statement)
            .or_default() += 1;
    }

    pub fn of(&self, facet: &str) -> Bag {
        self.0.get(facet).cloned().unwrap_or_default()
    }
}

/// What `a` says more often than `b`.
pub fn minus(a: &Bag, b: &Bag) -> Bag {
    a.iter()
        .map(|(s, n)| (s.clone(), n.saturating_sub(b.get(s).copied().unwrap_or(0))))
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// What both say.
pub fn both(a: &Bag, b: &Bag) -> Bag {
    a.iter()
        .map(|(s, n)| (s.clone(), *n.min(b.get(s).unwrap_or(&0))))
        .filter(|(_, n)| *n > 0)
        .collect()
}

pub fn count(bag: &Bag) -> usize {
    bag.values().sum()
}

/// A name as it looks after being made a file name: other characters than ASCII letters and digits
/// are one underscore.
pub fn name(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out.trim_matches('_').to_owned()
}

/// One line of text with single spaces.
pub fn line(s: &str) -> String {
    let visible: String = s
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A body: its hash without carriage returns, and without space or terminators at the ends.
pub fn body(bytes: &[u8]) -> String {
    let kept = bytes.iter().copied().filter(|b| !matches!(b, b'\r' | 0));
    let kept: Vec<u8> = kept.collect();
    let kept = kept.trim_ascii();
    format!("{} {}", kept.len(), &blake3::hash(kept).to_hex()[..16])
}

pub fn file(bytes: &[u8]) -> String {
    format!("{} {}", bytes.len(), &blake3::hash(bytes).to_hex()[..16])
}

/// A folder's path as those below the top of the user's folders are named by all readers; `^` before
/// those beside it.
pub fn place(path: &[String], top: &[String]) -> String {
    match path.strip_prefix(top) {
        Some(rest) => format!("/{}", rest.join("/")),
        None => format!("^/{}", path.join("/")),
    }
}
