//! What the integration tests share: finding the corpus, and a storage over bytes in memory.
#![allow(dead_code, clippy::unwrap_used)]

pub mod mail;
#[path = "../../../tests/support/skip.rs"]
pub mod skip;

use std::path::PathBuf;
use std::sync::Arc;

use storage::ReadAt;

/// The directory of real files, from `PSTSYNCD_SHARED` or beside the workspace.
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("PSTSYNCD_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    if dir.join("corpus").is_dir() {
        Some(dir)
    } else {
        skip::skipped("corpus", "no corpus on this machine");
        None
    }
}

/// Bytes in memory as storage.
pub struct Bytes(pub Vec<u8>);

impl ReadAt for Bytes {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let start = (offset as usize).min(self.0.len());
        let n = buf.len().min(self.0.len() - start);
        buf[..n].copy_from_slice(&self.0[start..start + n]);
        Ok(n)
    }
}

/// A shared storage over bytes.
pub fn bytes(data: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(Bytes(data))
}

/// The Unicode files of the corpus that must open.
pub const UNICODE_FILES: &[&str] = &[
    "aspose-outlook.pst",
    "contacts.pst",
    "dist-list.pst",
    "empty.pst",
    "enron.pst",
    "many-small.pst",
    "outlook2003-ost.ost",
    "outlook_1-later.pst",
    "outlook_1.pst",
    "password.pst",
    "tika-testPST.pst",
    "unicode-two-messages.pst",
];

/// The ANSI files of the corpus.
pub const ANSI_FILES: &[&str] = &["ansi-32bit.pst", "ansi-contacts.pst"];

/// The OST with 4 KiB pages of the corpus, which is read only.
pub const OST_4K_FILE: &str = "ost2013-4k.ost";

/// The files of the corpus that can be edited.
pub fn editable_files() -> impl Iterator<Item = &'static str> {
    UNICODE_FILES.iter().chain(ANSI_FILES).copied()
}

/// All files of the corpus that can be read.
pub fn readable_files() -> impl Iterator<Item = &'static str> {
    editable_files().chain([OST_4K_FILE])
}

/// The formats that are written.
pub const FORMATS: [&pst::ndb::Format; 2] = [&pst::ndb::format::UNICODE, &pst::ndb::format::ANSI];

/// A new file without nodes.
pub fn empty_ndb(format: &'static pst::ndb::Format, crypt: pst::ndb::CryptMethod) -> Vec<u8> {
    pst::ndb::Ndb::create_empty_as(format, crypt).unwrap()
}

/// The bytes that a write set leaves, each phase in order.
pub fn committed(base: &[u8], set: &storage::WriteSet) -> Vec<u8> {
    let target = storage::MemStorage::from(base.to_vec());
    set.commit(&target).unwrap();
    target.into_vec()
}

/// Numbers that look random and are the same each time.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// Runs `pffinfo` on a file's bytes; `false` where it is not installed.
pub fn pffinfo_accepts(data: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.pst");
    std::fs::write(&path, data).unwrap();
    let out = match std::process::Command::new("pffinfo").arg(&path).output() {
        Ok(out) => out,
        Err(e) => {
            skip::skipped("readers", &format!("pffinfo: {e}"));
            return false;
        }
    };
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "pffinfo refuses: {text}");
    assert!(
        text.contains("Personal Storage Tables") || text.contains("64-bit"),
        "{text}"
    );
    true
}
