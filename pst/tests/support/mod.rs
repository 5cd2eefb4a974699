//! What the integration tests share: finding the corpus, and a storage over bytes in memory.
#![allow(dead_code)]

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
        println!("skipped: no corpus in {}", dir.display());
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
