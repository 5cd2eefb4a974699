//! Open files: open, read, write, truncate, flush, release.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Drive, Event, Handle, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::journal::MAX_PAYLOAD;
use crate::journal::record::{MetaRecord, Record};
use crate::share::{Kind, ShareFile};

/// A handle just opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// Whether pages the kernel kept from earlier opens are still right.
    pub keep_cache: bool,
}

/// How long an open waits for exclusive work on the file to end.
const EXCLUSIVE_WAIT: Duration = Duration::from_secs(5);

impl Drive {
    /// The file behind a node, made ready for use.
    pub(crate) fn file(&self, node: u64) -> Result<Arc<FileNode>> {
        if !self.tree().node(node)?.linked {
            return Err(Error::NotFound(format!("node {node}")));
        }
        if let Some(file) = &self.tree().node(node)?.file {
            return Ok(file.clone());
        }
        let mut tree = self.tree_mut();
        match tree.node(node)?.attr.kind {
            Kind::File => {}
            Kind::Dir => return Err(Error::IsDir(tree.path(node))),
            Kind::Symlink => return Err(Error::Invalid("a symbolic link has no content")),
        }
        self.adopt(&mut tree, node)?;
        let data = self.dir.data(node)?;
        let n = tree.node_mut(node)?;
        if n.file.is_none() {
            let mut st = FileState::new();
            st.size = n.attr.size;
            n.file = Some(Arc::new(FileNode::new(node, data, st)));
        }
        n.file.clone().ok_or(Error::Invalid("no file"))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::NotCached`] offline, where the cache does not have all of it; [`Error::Busy`]
    /// while the sync engine works on it; what the share says.
    pub fn open_file(&self, node: u64, read: bool, write: bool) -> Result<Opened> {
        let file = self.file(node)?;
        let deadline = Instant::now() + EXCLUSIVE_WAIT;
        loop {
            let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
            if !file.read().exclusive {
                self.bind(node, &file, write)?;
                let mut st = file.write();
                st.opens += 1;
                let keep_cache = st.version == st.seen_version;
                st.seen_version = st.version;
                drop(st);
                let handle = self.add_handle(Handle {
                    node,
                    file: file.clone(),
                    read,
                    write,
                });
                return Ok(Opened { handle, keep_cache });
            }
            drop(_open);
            if Instant::now() >= deadline {
                return Err(Error::Busy("the sync engine works on this file"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes sure the file is bound, and for writing if need be. `FileNode::open` is held.
    fn bind(&self, node: u64, file: &Arc<FileNode>, write: bool) -> Result<()> {
        let bound = {
            let st = file.read();
            st.binding.clone()
        };
        match bound {
            None => {
                let binding = self.choose(node, file, write)?;
                file.write().binding = Some(binding);
                if self.is_container(&self.tree().path(node)) && !file.read().fully_cached() {
                    self.bell.want_fill.store(true, Ordering::SeqCst);
                    self.bell.ring();
                }
                Ok(())
            }
            Some(Binding::Share(old, false)) if write => {
                // Opened for reading so far: the handle for writing must be the same file's.
                let Some(share_path) = self.tree().share_path(node) else {
                    return Err(Error::NotFound(self.tree().path(node)));
                };
                match self.open_on_share(&share_path, true) {
                    Ok((new, stamp, writable)) => {
                        let context = share_path.clone();
                        let old_id = self.link.call(&context, move |_| old.stat())?.file_id;
                        if old_id != stamp.file_id {
                            return Err(Error::ShareChanged(share_path));
                        }
                        let mut st = file.write();
                        if matches!(st.binding, Some(Binding::Share(..))) {
                            st.binding = Some(Binding::Share(new, writable));
                        }
                        Ok(())
                    }
                    Err(e) => self.flip(node, file, e),
                }
            }
            Some(_) => Ok(()),
        }
    }

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
        self.link.call("read", move |_| {
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

    /// Writes all of `data`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] early, before anything was taken; [`Error::Poisoned`]; what the share
    /// says, where the file is passed through and not fully cached.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let h = self.handle(handle)?;
        if !h.write {
            return Err(Error::BadHandle);
        }
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Error::Invalid("write beyond the largest file"));
        }
        if data.is_empty() {
            return Ok(());
        }
        loop {
            let cached = match h.file.read().binding {
                Some(Binding::Share(..)) => false,
                Some(Binding::Cache) => true,
                None => return Err(Error::BadHandle),
            };
            if cached {
                return self.write_cached(&h.file, offset, data);
            }
            if self.write_through(&h, offset, data)? {
                return Ok(());
            }
        }
    }

    /// Journals a write and lays it over the cache file.
    pub(crate) fn write_cached(&self, file: &FileNode, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in data.chunks(MAX_PAYLOAD) {
            self.wait_for_room()?;
            self.check_space(part.len() as u64)?;
            let mut st = file.write();
            self.write_part(file, &mut st, at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_part(
        &self,
        file: &FileNode,
        st: &mut FileState,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let range = offset..offset + data.len() as u64;
        let time = now();
        // Nothing of the file lies there yet, neither in the cache file nor waiting for it: the
        // bytes may go to their place at once, and the journal needs their range only.
        if data.len() >= self.direct_append
            && offset >= st.size
            && st.snaps.is_empty()
            && !st.unwritten.reaches(offset)
        {
            file.data
                .write_all_at(offset, data)
                .map_err(|e| Error::from_io("writing a cache file", e))?;
            let crc = crc32fast::hash(data);
            let len = data.len() as u64;
            let record = MetaRecord::Direct {
                file: file.id,
                offset,
                len,
                crc,
                time,
            };
            let lsn = self
                .journal
                .append_direct(&Record::Meta(record), file.id, &file.data)?;
            st.note_write(range, time, lsn);
            return Ok(());
        }
        file.save_before(st, range.clone());
        let record = Record::Write {
            file: file.id,
            offset,
            time,
            data,
        };
        let lsn = self.journal.append(&record)?;
        let before = st.unwritten.bytes();
        st.unwritten.write(offset, data, lsn);
        self.unwritten
            .fetch_add(st.unwritten.bytes(), Ordering::SeqCst);
        self.sub_unwritten(before);
        st.note_write(range, time, lsn);
        Ok(())
    }

    pub(crate) fn sub_unwritten(&self, bytes: u64) {
        self.unwritten.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Passes a write through to the share and copies it into the cache file. `false`: the file
    /// is served from the cache now, do it there.
    fn write_through(&self, h: &Handle, offset: u64, data: &[u8]) -> Result<bool> {
        let file = &h.file;
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        let range = offset..offset + data.len() as u64;
        let share_file = {
            let mut st = file.write();
            let share_file = match &st.binding {
                Some(Binding::Share(f, true)) => f.clone(),
                Some(Binding::Share(_, false)) => return Err(Error::BadHandle),
                _ => return Ok(false),
            };
            // The journal knows before the share does, so that after a crash the bytes in doubt
            // are known.
            if !st.online_written.contains_range(range.clone()) || range.end > st.size {
                let (len, teed) = (data.len() as u64, st.tee);
                let record = MetaRecord::OnlineWrite {
                    file: file.id,
                    offset,
                    len,
                    teed,
                };
                let lsn = self.log(record)?;
                st.note_online_write(range.clone(), lsn);
            } else {
                st.written.insert(range.clone());
            }
            share_file
        };
        let bytes: Arc<[u8]> = data.into();
        let answer = if self.may_ask() {
            let budget = self.stall_budget();
            self.link.call_for("write", budget, &file.doubt, move |_| {
                share_file.write_all_at(offset, &bytes)
            })
        } else {
            Err(Error::Link("the drive is offline".to_owned()))
        };
        match answer {
            Ok(()) => {
                let mut st = file.write();
                self.copy_through(file, &mut st, range.clone(), |f| {
                    f.data.write_all_at(offset, data)
                });
                st.online_written_through(range, now());
                Ok(true)
            }
            Err(e) if e.is_link() => {
                self.flip_locked(h.node, file, e)?;
                Ok(false)
            }
            Err(e) => {
                // Part of it may be there.
                file.write().valid.remove(range);
                Err(e)
            }
        }
    }

    /// Copies a pass-through change into the cache file; if that fails, the cache is given up
    /// (it can be filled again), never the application's write.
    fn copy_through(
        &self,
        file: &FileNode,
        st: &mut FileState,
        range: Range<u64>,
        copy: impl FnOnce(&FileNode) -> std::io::Result<()>,
    ) {
        if !st.tee {
            return;
        }
        file.save_before(st, range.clone());
        let done = match self.check_space(range.end - range.start) {
            Ok(()) => copy(file).map_err(|e| Error::from_io("writing a cache file", e)),
            Err(e) => Err(e),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "cannot copy a write into the cache: its file is not cached");
            st.tee = false;
            st.valid.clear();
            st.fetched.clear();
            file.lose_snapshots(st);
        }
    }

    pub(crate) fn stall_budget(&self) -> Duration {
        self.link.budget()
    }

    /// Sets the length of a file, open or not.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub fn truncate(&self, node: u64, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(Error::Invalid("length beyond the largest file"));
        }
        let opened = self.open_file(node, false, true)?;
        let done = self
            .handle(opened.handle)
            .and_then(|h| self.truncate_open(&h, size));
        let closed = self.release(opened.handle);
        done.and(closed)
    }

    /// Sets the length of an open file.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub fn truncate_handle(&self, handle: u64, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(Error::Invalid("length beyond the largest file"));
        }
        let h = self.handle(handle)?;
        if !h.write {
            return Err(Error::BadHandle);
        }
        self.truncate_open(&h, size)
    }

    fn truncate_open(&self, h: &Handle, size: u64) -> Result<()> {
        loop {
            let cached = match h.file.read().binding {
                Some(Binding::Share(..)) => false,
                Some(Binding::Cache) => true,
                None => return Err(Error::BadHandle),
            };
            if cached {
                return self.truncate_cached(&h.file, size);
            }
            if self.truncate_through(h, size)? {
                return Ok(());
            }
        }
    }

    pub(crate) fn truncate_cached(&self, file: &FileNode, size: u64) -> Result<()> {
        let mut st = file.write();
        if size == st.size && st.stamp.is_some() {
            return Ok(());
        }
        if size < st.size {
            let end = st.size;
            file.save_before(&mut st, size..end);
        }
        let time = now();
        let lsn = self.log(MetaRecord::Truncate {
            file: file.id,
            size,
            time,
        })?;
        let before = st.unwritten.bytes();
        st.unwritten.truncate(size, lsn);
        self.unwritten
            .fetch_add(st.unwritten.bytes(), Ordering::SeqCst);
        self.sub_unwritten(before);
        st.note_truncate(size, time, lsn);
        Ok(())
    }

    fn truncate_through(&self, h: &Handle, size: u64) -> Result<bool> {
        let file = &h.file;
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        let (share_file, old) = {
            let mut st = file.write();
            let share_file = match &st.binding {
                Some(Binding::Share(f, true)) => f.clone(),
                Some(Binding::Share(_, false)) => return Err(Error::BadHandle),
                _ => return Ok(false),
            };
            let lsn = self.log(MetaRecord::OnlineTruncate {
                file: file.id,
                size,
            })?;
            st.note_online_truncate(size, lsn);
            (share_file, st.size)
        };
        let answer = if self.may_ask() {
            let budget = self.stall_budget();
            self.link
                .call_for("truncate", budget, &file.doubt, move |_| {
                    share_file.set_len(size)
                })
        } else {
            Err(Error::Link("the drive is offline".to_owned()))
        };
        match answer {
            Ok(()) => {
                let mut st = file.write();
                if size < old {
                    self.copy_through(file, &mut st, size..old, |f| f.data.set_len(size));
                }
                st.online_truncated(size, now());
                Ok(true)
            }
            Err(e) if e.is_link() => {
                self.flip_locked(h.node, file, e)?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Called at each close of a descriptor: reports what went wrong behind acknowledged writes.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn flush(&self, handle: u64) -> Result<()> {
        let h = self.handle(handle)?;
        if h.write
            && let Some(why) = self.journal.poisoned()
        {
            return Err(Error::Poisoned(why));
        }
        Ok(())
    }

    /// Makes everything written to the file durable (R2).
    ///
    /// # Errors
    /// [`Error::Poisoned`]; where the file is passed through and not fully cached, what the share
    /// says.
    pub fn fsync(&self, handle: u64) -> Result<()> {
        let h = self.handle(handle)?;
        if matches!(h.file.read().binding, Some(Binding::Share(..)))
            && let Err(e) = self.flush_on_share(h.node, &h.file)
        {
            self.flip(h.node, &h.file, e)?;
        }
        let lsn = h.file.read().lsn;
        self.journal.sync(lsn)?;
        self.emit_for(h.node, Event::Flushed);
        Ok(())
    }

    fn emit_for(&self, node: u64, event: impl FnOnce(String) -> Event) {
        let path = self.tree().path(node);
        if self.is_container(&path) {
            self.emit(&event(path));
        }
    }

    /// Makes changes of names durable (fsync of a directory).
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn fsync_dir(&self) -> Result<()> {
        let lsn = self.tree().lsn;
        self.journal.sync(lsn)
    }

    /// Closes a handle.
    ///
    /// # Errors
    /// [`Error::BadHandle`]. A flush that fails here is not lost: the bytes stay recorded.
    pub fn release(&self, handle: u64) -> Result<()> {
        let h = self.take_handle(handle)?;
        let file = &h.file;
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        let last = file.read().opens == 1;
        if last && !file.read().online_written.is_empty() && !file.read().unlinked {
            // The stamp after our own writes, or the next open would take them for another's.
            if let Err(e) = self.flush_on_share(h.node, file)
                && let Err(error) = self.flip(h.node, file, e)
            {
                tracing::warn!(path = self.tree().path(h.node), %error, "flush at close failed");
            }
        }
        let bound = {
            let mut st = file.write();
            st.opens = st.opens.saturating_sub(1);
            if st.opens == 0 {
                st.binding.take()
            } else {
                None
            }
        };
        // The share's file is closed without the lock: that is a share call too (R11).
        drop(bound);
        if last && file.read().unlinked {
            let mut tree = self.tree_mut();
            self.after_removal(&mut tree, h.node);
        }
        if last {
            let fetched = file
                .fetch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(fetched);
            self.emit_for(h.node, Event::Closed);
        }
        Ok(())
    }
}
