//! Writing and cutting: through to the share with a copy for the cache, or into the journal.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::room::For;
use super::{Drive, Handle, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::journal::MAX_PAYLOAD;
use crate::journal::record::{MetaRecord, Record};

impl Drive {
    /// Writes all of `data`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] early, before anything was taken; [`Error::Poisoned`]; what the share
    /// says, where the file is passed through and not fully cached.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        self.write_from(handle, offset, data, None)
    }

    /// As [`Drive::write`], of bytes that need not be copied to be handed to the share.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub fn write_shared(&self, handle: u64, offset: u64, data: &Arc<[u8]>) -> Result<()> {
        self.write_from(handle, offset, data, Some(data))
    }

    fn write_from(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        shared: Option<&Arc<[u8]>>,
    ) -> Result<()> {
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
            let data = shared.cloned().unwrap_or_else(|| data.into());
            if self.write_through(&h, offset, &data)? {
                return Ok(());
            }
        }
    }

    /// Journals a write and lays it over the cache file.
    pub(crate) fn write_cached(&self, file: &FileNode, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in data.chunks(MAX_PAYLOAD) {
            self.wait_for_room()?;
            let range = at..at + part.len() as u64;
            let new = file
                .read()
                .valid
                .gaps(range)
                .iter()
                .map(|g| g.end - g.start)
                .sum();
            self.check_space(part.len() as u64, new, For::Write)?;
            let mut st = file.write();
            file.check()?;
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
            let record = Record::Meta(record);
            let lsn = match self.journal.append_direct(&record, file.id, &file.data) {
                Ok(lsn) => lsn,
                Err(e) => {
                    // Bytes past the end would show as content when the file grows over them.
                    if file.data.set_len(offset).is_err() {
                        file.poison
                            .get_or_init(|| "an append could not be taken back".to_owned());
                    }
                    return Err(e);
                }
            };
            st.note_write(range, time, lsn);
            st.direct = lsn;
            // Bounds what a recovery has to look through.
            if self.direct.fetch_add(len, Ordering::SeqCst) > self.unwritten_limit {
                self.bell.want_checkpoint.store(true, Ordering::SeqCst);
            }
            return Ok(());
        }
        file.save_before(st, range.clone());
        let (lsn, payload) = self.journal.append_write(file.id, offset, time, data)?;
        let before = st.unwritten.bytes();
        st.unwritten.write(offset, data.len() as u64, payload, lsn);
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
    fn write_through(&self, h: &Handle, offset: u64, data: &Arc<[u8]>) -> Result<bool> {
        let file = &h.file;
        file.check()?;
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.barred(file) {
            return self.flip_locked(h.node, file, error).map(|()| false);
        }
        let range = offset..offset + data.len() as u64;
        let checkpoints = self.checkpoints.load(Ordering::SeqCst);
        let (share_file, new, early) = {
            let mut st = file.write();
            let share_file = match &st.binding {
                Some(Binding::Share(f, true)) => f.clone(),
                Some(Binding::Share(_, false)) => return Err(Error::BadHandle),
                _ => return Ok(false),
            };
            // The journal knows before the share does, so that after a crash the bytes in doubt
            // are known.
            let recorded = st.online_written.contains_range(range.clone());
            if !recorded || range.end > st.size || st.time_set {
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
            // Over bytes that lie here already a copy takes no more room.
            let new = st.valid.gaps(range.clone());
            // Where the cache lacks bytes they may be on their way from the share, older than these: a copy
            // made now would be lost under them.
            let inside = range.start..range.end.min(st.size);
            let early = st.tee && (inside.is_empty() || st.valid.contains_range(inside));
            (share_file, new.iter().map(|g| g.end - g.start).sum(), early)
        };
        let room = match new {
            0 => Ok(()),
            new => self.check_space(data.len() as u64, new, For::Copy),
        };
        let bytes = data.clone();
        let budget = self.stall_budget();
        let mut copied = None;
        let answer = self.link.call_beside(
            "write",
            budget,
            &file.doubt,
            move |_| share_file.write_all_at(offset, &bytes),
            || {
                if early && room.is_ok() {
                    let mut st = file.write();
                    file.save_before(&mut st, range.clone());
                    copied = Some((file.data.write_all_at(offset, data), st.cuts));
                }
            },
        );
        match answer {
            Ok(()) => {
                let mut st = file.write();
                let uncopied = match copied {
                    // Something cut the file, or changed it, after the copy was made.
                    Some((Ok(()), cuts)) => st.tee && st.cuts != cuts,
                    Some((Err(e), _)) => {
                        self.copy_through(file, &mut st, range.clone(), |_| Err(e));
                        false
                    }
                    None if st.tee && room.is_err() => {
                        file.save_before(&mut st, range.clone());
                        true
                    }
                    None => {
                        self.copy_through(file, &mut st, range.clone(), |f| {
                            f.data.write_all_at(offset, data)
                        });
                        false
                    }
                };
                st.online_written_through(range.clone(), now());
                if uncopied {
                    self.leave_uncopied(file, &mut st, range);
                } else if self.checkpoints.load(Ordering::SeqCst) != checkpoints {
                    // What was recorded may be in metadata by now that knows nothing of the answer.
                    let lsn = self.log(MetaRecord::OnlineWrite {
                        file: file.id,
                        offset,
                        len: data.len() as u64,
                        teed: st.tee,
                    })?;
                    st.note_online_write(range, lsn);
                }
                Ok(true)
            }
            Err(e) => {
                if copied.is_some() {
                    take_back_end(file);
                }
                let answer = if e.is_link() {
                    self.flip_locked(h.node, file, e)
                } else {
                    Err(e)
                };
                if answer.is_err() {
                    self.leave_untold(file, range);
                }
                answer.map(|()| false)
            }
        }
    }

    /// Why a change must not even be asked for, if so; `FileNode::io` is held. Then it is not in doubt itself.
    fn barred(&self, file: &FileNode) -> Option<Error> {
        let why = if !self.may_ask() {
            "the drive is offline"
        } else if file.doubt.count() > 0 {
            // It would undo what comes after it.
            "an earlier change of the file may still take effect"
        } else {
            return None;
        };
        Some(Error::Link(why.to_owned()))
    }

    /// Copies a pass-through change into the cache file; if that fails, the cache is given up
    /// (it can be filled again), never the application's write.
    pub(super) fn copy_through(
        &self,
        file: &FileNode,
        st: &mut FileState,
        range: Range<u64>,
        copy: impl FnOnce(&FileNode) -> std::io::Result<()>,
    ) {
        if !st.tee {
            return;
        }
        file.save_before(st, range);
        if let Err(error) = copy(file) {
            tracing::warn!(%error, "cannot copy a write into the cache: its file is not cached");
            self.give_up_copy(file, st);
        }
    }

    /// Bytes that the share took and the cache has no room for: only these are not here, the rest of the
    /// copy stays. That is recorded, as in [`Drive::give_up_copy`].
    fn leave_uncopied(&self, file: &FileNode, st: &mut FileState, range: Range<u64>) {
        tracing::warn!(?range, "no room to copy a write into the cache");
        st.lose(range.clone());
        let record = MetaRecord::OnlineWrite {
            file: file.id,
            offset: range.start,
            len: range.end - range.start,
            teed: false,
        };
        match self.log(record) {
            Ok(lsn) => st.note_online_write(range, lsn),
            Err(error) => self.journal.poison(&format!(
                "bytes that are not in the cache could not be recorded: {error}"
            )),
        }
    }

    /// The copy of a passed-through file cannot be kept: the share has all of it. That is recorded,
    /// or the next recovery would take the stale copy for what was acknowledged.
    pub(crate) fn give_up_copy(&self, file: &FileNode, st: &mut FileState) {
        st.tee = false;
        file.lose_snapshots(st);
        match self.log(MetaRecord::Evicted { file: file.id }) {
            Ok(lsn) => st.note_evicted(lsn),
            Err(error) => {
                st.valid.clear();
                st.fetched.clear();
                self.journal
                    .poison(&format!("a stale copy could not be given up: {error}"));
            }
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
                if !self.truncate_cached(&h.file, size)? {
                    // Nothing to cut, but a change all the same.
                    self.modified(h.node)?;
                }
                return Ok(());
            }
            if self.truncate_through(h, size)? {
                return Ok(());
            }
        }
    }

    /// Sets the length in the cache; `false`: it had it.
    pub(crate) fn truncate_cached(&self, file: &FileNode, size: u64) -> Result<bool> {
        let mut st = file.write();
        file.check()?;
        if size == st.size && st.stamp.is_some() {
            return Ok(false);
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
        Ok(true)
    }

    fn truncate_through(&self, h: &Handle, size: u64) -> Result<bool> {
        let file = &h.file;
        file.check()?;
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.barred(file) {
            return self.flip_locked(h.node, file, error).map(|()| false);
        }
        let checkpoints = self.checkpoints.load(Ordering::SeqCst);
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
        let budget = self.stall_budget();
        let answer = self
            .link
            .call_for("truncate", budget, &file.doubt, move |_| {
                share_file.set_len(size)
            });
        match answer {
            Ok(()) => {
                let mut st = file.write();
                if size < old {
                    self.copy_through(file, &mut st, size..old, |f| f.data.set_len(size));
                }
                st.online_truncated(size, now());
                if self.checkpoints.load(Ordering::SeqCst) != checkpoints {
                    let file = file.id;
                    let lsn = self.log(MetaRecord::OnlineTruncate { file, size })?;
                    st.note_online_truncate(size, lsn);
                }
                Ok(true)
            }
            Err(e) => {
                let answer = if e.is_link() {
                    self.flip_locked(h.node, file, e)
                } else {
                    Err(e)
                };
                if answer.is_err() {
                    self.leave_untold(file, size.min(old)..size.max(old));
                }
                answer.map(|()| false)
            }
        }
    }

    /// A change of these bytes failed, on the share or on the way, which may be there all the same. It was
    /// recorded, and a replay must not take it for done: the file is as long as it was, and what lies there is
    /// asked for.
    fn leave_untold(&self, file: &FileNode, range: Range<u64>) {
        let mut st = file.write();
        let inside = range.start..range.end.min(st.size);
        let (file, size) = (file.id, st.size);
        let mut records = Vec::new();
        if range.end > size {
            records.push(MetaRecord::OnlineTruncate { file, size });
        }
        if !inside.is_empty() {
            let (start, end) = (inside.start, inside.end);
            records.push(MetaRecord::Doubted { file, start, end });
        }
        for record in records {
            match self.log(record) {
                Ok(lsn) => st.note_doubted(range.clone(), lsn),
                Err(error) => self.journal.poison(&format!(
                    "a change that failed could not be recorded: {error}"
                )),
            }
        }
    }
}

/// A copy was made of a write that the share did not take: bytes past the end would show as content when the
/// file grows over them. Those before it are in doubt like the share's.
fn take_back_end(file: &FileNode) {
    let st = file.write();
    let cut = match file.data.len() {
        Ok(len) if len <= st.size => Ok(()),
        Ok(_) => file.data.set_len(st.size),
        Err(e) => Err(e),
    };
    if let Err(error) = cut {
        tracing::error!(%error, "a file takes no more writes");
        file.poison
            .get_or_init(|| format!("a write could not be taken back: {error}"));
    }
}
