//! The patterns: carriers that are part of this program, and so need not travel.
//!
//! Pattern 1 is the empty PST of format version 1. Pattern 2 is a carrier as compiling one changed
//! message makes it, with the list that goes with it in front: what a real one differs in is little.
//! The skeleton is what carriers of this version begin as: an empty PST with two folders.
//!
//! These bytes are files and not made at run time: an engine that one day lays out an empty PST
//! differently must still read what an older one sent. `sync/tests/patterns.rs` holds their digests.

use std::io;
use std::sync::{Arc, OnceLock};

/// The pattern that this version writes.
pub(crate) const CURRENT: u8 = 2;

const ONE: &[u8] = include_bytes!("../patterns/1.pst.zst");
const TWO: &[u8] = include_bytes!("../patterns/2.zst");
const SKELETON: &[u8] = include_bytes!("../patterns/skeleton-2.pst.zst");
/// More than any of them unpacks to.
const MAX: usize = 1 << 20;

/// A file of the program, unpacked once.
struct Unpacked(OnceLock<Arc<[u8]>>, &'static [u8]);

impl Unpacked {
    fn get(&self) -> io::Result<Arc<[u8]>> {
        if let Some(bytes) = self.0.get() {
            return Ok(Arc::clone(bytes));
        }
        let bytes: Arc<[u8]> = zstd::bulk::decompress(self.1, MAX)?.into();
        Ok(Arc::clone(self.0.get_or_init(|| bytes)))
    }
}

static UNPACKED_1: Unpacked = Unpacked(OnceLock::new(), ONE);
static UNPACKED_2: Unpacked = Unpacked(OnceLock::new(), TWO);
static UNPACKED_SKELETON: Unpacked = Unpacked(OnceLock::new(), SKELETON);

/// The empty PST on which carriers of format version 1 travel.
pub(super) fn one() -> io::Result<Arc<[u8]>> {
    UNPACKED_1.get()
}

/// What stands before the frame of a package: list and image of a typical one.
pub(super) fn prefix() -> io::Result<Arc<[u8]>> {
    UNPACKED_2.get()
}

/// What a carrier begins as.
pub(crate) fn skeleton() -> io::Result<Arc<[u8]>> {
    UNPACKED_SKELETON.get()
}
