//! Reading: through to the share, or from cache and journal with what is missing fetched.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Drive, Handle};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode};
use crate::share::ShareFile;

impl Drive {
    /// Whether a read or write would be answered from memory and local files, without waiting
    /// for share or checkpoint. A hint for frontends: such calls need no thread of their own.
    #[must_use]
    pub fn is_local(&self, handle: u64, range: Range<u64>, write: bool) -> bool {
        let Ok(h) = self.handle(handle) else {
            return true;
        };
        if write && self.unwritten.load(Ordering::SeqCst) >= self.unwritten_limit {
            return false;
        }
        let st = h.file.read();
        let end = range.end.min(st.size);
        matches!(st.binding, Some(Binding::Cache))
            && (write || range.start >= end || st.valid.contains_range(range.start..end))
    }

    /// Reads up to `len` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// [`Error::Link`] or [`Error::NotCached`] where the bytes are not in the cache and cannot be
    /// fetched.
    pub fn read(&self, handle: u64, offset: u64, len: usize) -> Result<Vec<u8>> {
        let h = self.handle(handle)?;
        if !h.read {
            return Err(Error::BadHandle);
        }
        loop {
            let bound = h.file.read().binding.clone();
            match bound {
                Some(Binding::Share(share_file, _)) => {
                    if let Some(data) = self.held_ahead(&h, offset, len) {
                        return Ok(data);
                    }
                    match self.read_through(&h, share_file, offset, len) {
                        Ok(data) => return Ok(data),
                        Err(e) => self.flip(h.node, &h.file, e)?,
                    }
                }
                Some(Binding::Cache) => return self.read_cached(h.node, &h.file, offset, len),
                None => return Err(Error::BadHandle),
            }
        }
    }

    fn read_through(
        &self,
        h: &Handle,
        share_file: Arc<dyn ShareFile>,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        if !self.may_ask() {
            return Err(Error::NotCached(self.tree().path(h.node)));
        }
        let (budget, asked) = (self.stall_budget(), &h.file.asked);
        // What is here whole is served from here soon; for the rest a link that is merely full is
        // waited for.
        let whole = {
            let st = h.file.read();
            let end = offset.saturating_add(len as u64).min(st.size);
            st.valid.gaps(offset..end.max(offset)).is_empty()
        };
        let most = if whole {
            budget
        } else {
            budget.max(self.flush_budget)
        };
        let wait = (budget, most);
        self.link.call_patiently("read", wait, asked, move |_| {
            let mut buf = vec![0; len];
            let n = share_file.read_at(offset, &mut buf)?;
            buf.truncate(n);
            Ok(buf)
        })
    }

    /// Reads through cache and journal, fetching what is missing.
    pub(crate) fn read_cached(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        // Others may cut and grow the file between a fetch and the look at it; not forever.
        for _ in 0..64 {
            let missing = {
                let st = file.read();
                let end = offset.saturating_add(len as u64).min(st.size);
                if offset >= end {
                    return Ok(Vec::new());
                }
                let missing = st.valid.gaps(offset..end);
                if missing.is_empty() {
                    let mut buf = vec![0; (end - offset) as usize];
                    file.content(&st, offset, &mut buf)
                        .map_err(|e| Error::from_io("reading the cache", e))?;
                    return Ok(buf);
                }
                missing
            };
            let mut loose = Vec::new();
            for gap in missing {
                let start = gap.start;
                if let Some(bytes) = self.fetch_for_reader(node, file, gap)? {
                    loose.push((start, bytes));
                }
            }
            if let Some(data) = self.read_with(file, offset, len, &loose)? {
                return Ok(data);
            }
        }
        Err(Error::Busy("the file keeps changing"))
    }

    /// Reads cache and journal, with `loose` bytes from the share where these have none; `None`
    /// where neither does.
    fn read_with(
        &self,
        file: &Arc<FileNode>,
        offset: u64,
        len: usize,
        loose: &[(u64, Vec<u8>)],
    ) -> Result<Option<Vec<u8>>> {
        if loose.is_empty() {
            return Ok(None);
        }
        let st = file.read();
        let end = offset.saturating_add(len as u64).min(st.size).max(offset);
        let mut buf = vec![0; (end - offset) as usize];
        let mut at = offset;
        let gaps = st.valid.gaps(offset..end);
        for gap in gaps.iter().cloned().chain(std::iter::once(end..end)) {
            let kept = (at - offset) as usize..(gap.start - offset) as usize;
            if let Some(part) = buf.get_mut(kept).filter(|part| !part.is_empty()) {
                file.content(&st, at, part)
                    .map_err(|e| Error::from_io("reading the cache", e))?;
            }
            let room = (gap.start - offset) as usize..(gap.end - offset) as usize;
            let found = loose.iter().find_map(|(start, bytes)| {
                let from = usize::try_from(gap.start.checked_sub(*start)?).ok()?;
                bytes.get(from..from + room.len())
            });
            match (buf.get_mut(room), found) {
                (Some(part), Some(bytes)) => part.copy_from_slice(bytes),
                (Some([]), None) => {}
                _ => return Ok(None),
            }
            at = gap.end;
        }
        Ok(Some(buf))
    }
}
