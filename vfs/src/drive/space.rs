//! Room in files: reserving it, and giving it back as zeros.
//!
//! The drive keeps no holes: a file's cache and the share's file decide for themselves where zeros
//! take room. What programs can see is as with holes: they read as zeros.

use std::ops::Range;

use super::{Drive, now};
use crate::error::{Error, Result};
use crate::share::SetAttr;

/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

impl Drive {
    /// Makes sure that `range` can be written: grows the file to its end unless `keep_size`, after
    /// looking for room.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; as [`Drive::write`].
    pub fn allocate(&self, handle: u64, range: Range<u64>, keep_size: bool) -> Result<()> {
        let h = self.handle(handle)?;
        if !h.write {
            return Err(Error::BadHandle);
        }
        let size = h.file.read().size;
        let more = range.end.saturating_sub(range.start.max(size));
        self.check_space(more, more, super::room::For::Write)?;
        if range.end > size && !keep_size {
            self.truncate_handle(handle, range.end)
        } else {
            // As local file systems do.
            self.modified(h.node)
        }
    }

    /// A change that changes no byte: its time is that of a change all the same.
    pub(crate) fn modified(&self, node: u64) -> Result<()> {
        let set = SetAttr {
            mtime: Some(now()),
            ..SetAttr::default()
        };
        self.set_attr(node, &set).map(drop)
    }

    /// Makes `range` read as zeros; beyond the file's end only where it may grow.
    ///
    /// # Errors
    /// As [`Drive::write`]: zeros are written as any bytes are.
    pub fn zero(&self, handle: u64, range: Range<u64>, keep_size: bool) -> Result<()> {
        let h = self.handle(handle)?;
        if !h.write {
            return Err(Error::BadHandle);
        }
        let size = h.file.read().size;
        let zeros = vec![0; ZEROS];
        let end = range.end.min(size);
        let mut at = range.start;
        while at < end {
            let n = (end - at).min(ZEROS as u64);
            let part = zeros.get(..usize::try_from(n).unwrap_or(ZEROS));
            self.write(handle, at, part.unwrap_or(&zeros))?;
            at += n;
        }
        if range.end > size && !keep_size {
            self.truncate_handle(handle, range.end)
        } else if range.start >= end {
            self.modified(h.node)
        } else {
            Ok(())
        }
    }
}
