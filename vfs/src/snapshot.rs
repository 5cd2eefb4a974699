//! Frozen views of a file while writes go on: `Overlay` use (b) of DESIGN 3.
//!
//! The first overwrite of a byte after the snapshot saves the byte's old value (before-image);
//! the snapshot reads before-images over the live content. Memory is bounded: a snapshot that
//! would need more than [`MAX_BEFORE`] is lost, its reads fail, and the compile starts again.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use storage::{RangeSet, ReadAt};

use crate::file::FileNode;
use crate::share::Stamp;

/// Before-images that one snapshot may hold, in bytes.
pub const MAX_BEFORE: u64 = 256 << 20;

/// A frozen view of one file, and where it stands.
pub struct Snapshot {
    /// Names this moment in the file's journal; rises with every snapshot of the file.
    pub epoch: u64,
    /// The file's bytes as of the epoch. Reads fail once the snapshot was lost.
    pub reader: Arc<dyn ReadAt>,
    /// Bytes written since the last [`crate::Drive::mark_synced`], in every state.
    pub written: RangeSet,
    /// The epoch of that mark: what was written after it is in `written`.
    pub written_since: u64,
    /// Bytes that the share's file does not have.
    pub dirty: RangeSet,
    /// Number of this physical life of the file.
    pub lineage: u64,
    /// Whether share and cache are the same file but for `dirty`.
    pub attached: bool,
    /// The share's file as of when both were last the same.
    pub attached_stamp: Option<Stamp>,
    /// Writes ever, as of the epoch.
    pub write_count: u64,
    /// The file left the share in the middle of writes: the share's bytes inside `dirty` are
    /// undefined, so the first sync must be physical (DESIGN 6).
    pub flipped: bool,
}

/// Saved old values.
pub(crate) struct Before {
    size: u64,
    saved: Mutex<Saved>,
}

#[derive(Default)]
struct Saved {
    covered: RangeSet,
    parts: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
    lost: bool,
}

impl Before {
    pub fn new(size: u64) -> Self {
        Self {
            size,
            saved: Mutex::default(),
        }
    }

    /// Saves what of `range` is not saved yet.
    pub fn save(&self, range: Range<u64>, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let range = range.start..range.end.min(self.size);
        if range.start >= range.end || saved.lost {
            return;
        }
        for gap in saved.covered.gaps(range) {
            let len = gap.end - gap.start;
            let mut old = Vec::new();
            if saved.bytes + len <= MAX_BEFORE {
                old.resize(len as usize, 0);
            }
            if old.is_empty() || read(gap.start, &mut old).is_err() {
                *saved = Saved {
                    lost: true,
                    ..Saved::default()
                };
                return;
            }
            saved.bytes += len;
            saved.parts.insert(gap.start, old);
            saved.covered.insert(gap);
        }
    }

    pub fn lose(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = Saved {
            lost: true,
            ..Saved::default()
        };
    }
}

pub(crate) struct SnapshotReader {
    pub file: Arc<FileNode>,
    pub before: Arc<Before>,
}

/// Longest stretch read under the file's lock.
const STEP: usize = 256 << 10;

impl SnapshotReader {
    fn read_step(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // Writers save before-images under the write lock: while this is held, live content
        // outside them is as of the epoch.
        let st = self.file.read();
        let saved = self
            .before
            .saved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if saved.lost {
            return Err(io::Error::other(
                "the snapshot was outgrown by writes; take a new one",
            ));
        }
        let window = offset..offset + buf.len() as u64;
        for gap in saved.covered.gaps(window.clone()) {
            let part = (gap.start - offset) as usize..(gap.end - offset) as usize;
            let to = buf.get_mut(part).unwrap_or_default();
            self.file.content(&st, gap.start, to)?;
        }
        let from = saved
            .parts
            .range(..=window.start)
            .next_back()
            .map_or(window.start, |p| *p.0);
        for (&at, bytes) in saved.parts.range(from..window.end) {
            let (lo, hi) = (
                at.max(window.start),
                (at + bytes.len() as u64).min(window.end),
            );
            if lo < hi {
                let from = bytes
                    .get((lo - at) as usize..(hi - at) as usize)
                    .unwrap_or(&[]);
                let to = buf.get_mut((lo - offset) as usize..(hi - offset) as usize);
                to.unwrap_or_default().copy_from_slice(from);
            }
        }
        Ok(())
    }
}

impl ReadAt for SnapshotReader {
    fn len(&self) -> io::Result<u64> {
        Ok(self.before.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let room = self.before.size.saturating_sub(offset);
        let n = usize::try_from(room).unwrap_or(usize::MAX).min(buf.len());
        let mut at = offset;
        for part in buf.get_mut(..n).unwrap_or_default().chunks_mut(STEP) {
            self.read_step(at, part)?;
            at += part.len() as u64;
        }
        Ok(n)
    }
}
