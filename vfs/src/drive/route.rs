//! The router: which physical file a file's handles see (R1), and how that changes.
//!
//! A binding is chosen at the first open after the last close. The one change under open handles
//! is share -> cache, where the cache has every byte (R12): the flip. It is journaled, so that
//! the knowledge of what the share may lack survives.

use std::sync::{Arc, PoisonError};

use super::{Drive, Event, State};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::journal::record::MetaRecord;
use crate::link::{Wait, hold, let_go};
use crate::share::{ShareFile, Stamp};

impl Drive {
    /// Chooses what a first open sees. `FileNode::open` is held.
    pub(crate) fn choose(&self, node: u64, file: &Arc<FileNode>, write: bool) -> Result<Binding> {
        let (path, share_path, in_doubt) = {
            let tree = self.tree();
            (
                tree.path(node),
                tree.share_path(node),
                tree.place_in_doubt(node),
            )
        };
        let (ours, full) = {
            let st = file.read();
            (!st.attached || st.is_dirty(), st.fully_cached())
        };
        if (ours || in_doubt) && full {
            return Ok(Binding::Cache);
        }
        let state = self.state();
        if share_path.is_none() {
            // Made here; the share has nothing.
            return Ok(Binding::Cache);
        }
        if state == State::Offline {
            return if full {
                Ok(Binding::Cache)
            } else {
                Err(Error::NotCached(path))
            };
        }
        match self.open_there(node, write && state == State::Online) {
            Ok((share_file, stamp, writable)) => {
                if ours {
                    // Dirty and not whole: holes are filled only from the file they belong to. Where that is
                    // no more, the next sync keeps what is here beside the other's; a program that had it
                    // open meanwhile would only keep it from doing so.
                    let known = {
                        let st = file.read();
                        (st.stamp, st.push.map(|p| p.1))
                    };
                    let same = known.0 == Some(stamp) || known.1 == Some(stamp.file_id);
                    if !same && !self.tree().may_have_mtime(node, stamp.mtime) {
                        file.write().share_changed = true;
                        return Err(Error::ShareChanged(path));
                    }
                    return Ok(Binding::Cache);
                }
                self.settle(file, stamp)?;
                // With a change of its names or attributes waiting, what is written now comes after that: by
                // the journal, which knows the order.
                if state == State::Online && !in_doubt {
                    self.settle_direct(file)?;
                    // Journaled bytes that still wait for a checkpoint must not hide what will be
                    // copied into the cache file beside them.
                    if !file.read().unwritten.is_empty() {
                        self.checkpoint()?;
                    }
                    if file.read().unwritten.is_empty() {
                        let mut st = file.write();
                        st.tee =
                            self.is_container(&path) || self.is_pinned(&path) || st.fully_cached();
                        return Ok(Binding::Share(share_file, writable));
                    }
                }
                Ok(Binding::Cache)
            }
            // The share does not answer, or the file cannot be opened for writing there now.
            Err(e) if e.is_link() && full => Ok(Binding::Cache),
            Err(e) => Err(e),
        }
    }

    /// The stamp of a file on the share, within the stall budget.
    ///
    /// # Errors
    /// What the share says; [`Error::Link`] if it does not answer.
    pub fn share_stamp(&self, share_path: &str) -> Result<Stamp> {
        let path = share_path.to_owned();
        self.link.call(share_path, move |share| share.stamp(&path))
    }

    /// Asks the share whether it is there, within the stall budget; never while offline.
    ///
    /// # Errors
    /// [`Error::Link`].
    pub fn probe(&self) -> Result<()> {
        if !self.may_ask() {
            return Err(Error::Link("the drive is offline".to_owned()));
        }
        self.link.probe()
    }

    /// For those who have nothing but the share's answer: a link that is full is waited for.
    pub(crate) fn patient(&self) -> Wait<'static> {
        Wait::full(self.stall_budget()).patiently()
    }

    /// Opens the share's file; falls back to reading where writing is refused and not needed.
    pub(crate) fn open_on_share(
        &self,
        share_path: &str,
        write: bool,
        wait: Wait<'_>,
    ) -> Result<(Arc<dyn ShareFile>, Stamp, bool)> {
        let path = share_path.to_owned();
        self.link.call_while(share_path, wait, move |share| {
            let (file, writable) = if write {
                (share.open(&path, true)?, true)
            } else {
                (share.open(&path, false)?, false)
            };
            let stamp = file.stamp()?;
            Ok((hold(file), stamp, writable))
        })
    }

    /// Opens a node's file on the share. A waiting rename may have been done there without its
    /// answer, and after a crash without a record of it: then the file lies under its later name
    /// already, and is known by its stamp.
    pub(crate) fn open_there(
        &self,
        node: u64,
        write: bool,
    ) -> Result<(Arc<dyn ShareFile>, Stamp, bool)> {
        let (place, later, known, wait) = {
            let tree = self.tree();
            let n = tree.node(node)?;
            let stamp = n.file.as_ref().and_then(|f| f.read().stamp);
            let known = stamp.map_or((n.attr.size, n.attr.mtime, n.attr.file_id), |s| {
                (s.size, s.mtime, s.file_id)
            });
            let whole = n.file.as_ref().is_some_and(|f| f.read().fully_cached());
            let wait = Wait::full(self.stall_budget());
            // What is whole here need not wait for a link that is full.
            let wait = if whole { wait } else { wait.patiently() };
            (tree.share_path(node), tree.later_place(node), known, wait)
        };
        let Some(place) = place else {
            return Err(Error::NotFound(self.tree().path(node)));
        };
        match (self.open_on_share(&place, write, wait), later) {
            (Err(Error::NotFound(gone)), Some(later)) => {
                let found = self.open_on_share(&later, write, wait)?;
                if (found.1.size, found.1.mtime, found.1.file_id) == known {
                    Ok(found)
                } else {
                    Err(Error::NotFound(gone))
                }
            }
            (answer, _) => answer,
        }
    }

    /// Compares the share's file with the one the cache is a copy of; begins a new copy where it
    /// is another (clean files only).
    pub(crate) fn settle(&self, file: &Arc<FileNode>, stamp: Stamp) -> Result<()> {
        {
            let mut st = file.write();
            if st.opens == 0 && !st.is_dirty() && st.attached && !st.online_written.is_empty() {
                st.is_as_long_as(&stamp);
            }
            if st.stamp == Some(stamp) || st.is_dirty() || !st.attached || st.opens > 0 {
                return Ok(());
            }
        }
        self.settle_direct(file)?;
        // Journaled bytes of the earlier life must not come back over the new one.
        if !file.read().unwritten.is_empty() {
            self.checkpoint()?;
        }
        let mut st = file.write();
        if st.is_dirty() || !st.attached || st.opens > 0 {
            return Ok(());
        }
        self.begin_anew(file, &mut st, stamp)?;
        drop(st);
        file.forget_fetch();
        Ok(())
    }

    /// The cache file becomes an empty copy of the share's file. Nothing waits to be laid over it.
    pub(crate) fn begin_anew(
        &self,
        file: &Arc<FileNode>,
        st: &mut FileState,
        stamp: Stamp,
    ) -> Result<()> {
        file.lose_snapshots(st);
        let ctx = |e| Error::from_io("emptying a cache file", e);
        if file.data.len().map_err(ctx)? > 0 {
            file.data.set_len(0).map_err(ctx)?;
            // Old bytes that came back after a crash would read as content.
            file.data.sync().map_err(ctx)?;
        }
        let lineage = st.lineage + 1;
        let lsn = self.log(MetaRecord::Attach {
            file: file.id,
            stamp,
            lineage,
        })?;
        let freed = st.unwritten.bytes();
        st.unwritten.clear();
        self.sub_unwritten(freed);
        st.note_attach(stamp, lineage, lsn);
        Ok(())
    }

    /// A pass-through call failed with `error`. If the cache has the whole file, its handles move
    /// there and the caller does the operation again; else the error is the answer.
    pub(crate) fn flip(&self, node: u64, file: &Arc<FileNode>, error: Error) -> Result<()> {
        if !error.is_link() {
            return Err(error);
        }
        // Writes in flight come first: what they did is part of what is unknown.
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        self.flip_locked(node, file, error)
    }

    /// As [`Drive::flip`], with `FileNode::io` held.
    pub(crate) fn flip_locked(&self, node: u64, file: &Arc<FileNode>, error: Error) -> Result<()> {
        // What was passed through lies in the cache file and in no record. From the flip on it is what
        // was acknowledged, so it must be durable when the record of the flip is.
        if !file.read().online_written.is_empty() {
            self.flush_data(file)?;
        }
        let mut st = file.write();
        match st.binding {
            Some(Binding::Share(..)) => {}
            // Another handle's operation flipped it meanwhile.
            _ => return Ok(()),
        }
        // A write that failed half-way may have been copied: the operation done again lays its bytes over
        // the old ones or over the same.
        if !(st.attached && st.fully_cached()) {
            return Err(error);
        }
        let lsn = self.log(MetaRecord::FlipAt {
            file: file.id,
            size: st.size,
        })?;
        st.note_flip(lsn);
        let old = st.binding.replace(Binding::Cache);
        drop(st);
        let_go(old);
        let path = self.tree().path(node);
        tracing::warn!(path, %error, "the share failed: the file is served from the cache now");
        // The share may be another when it is back.
        self.crawl.make_due();
        self.emit(&Event::Flipped(path));
        Ok(())
    }

    /// Moves every open, fully cached file from the share to the cache.
    pub(crate) fn leave_share(&self) {
        for (node, file) in self.bound_to_share() {
            // If the share takes a flush now, the later sync has nothing in doubt.
            if !file.read().online_written.is_empty()
                && let Err(error) = self.flush_on_share(node, &file)
            {
                tracing::debug!(%error, "no flush before leaving the share");
            }
            let reason = Error::Link("the drive leaves the share".to_owned());
            if self.flip(node, &file, reason).is_err() {
                let path = self.tree().path(node);
                tracing::warn!(
                    path,
                    "not fully cached: its open handles stay with the share"
                );
            }
        }
    }

    /// Files whose handles see the share.
    pub(crate) fn bound_to_share(&self) -> Vec<(u64, Arc<FileNode>)> {
        let files = self.files();
        files
            .into_iter()
            .filter(|(_, f)| matches!(f.read().binding, Some(Binding::Share(..))))
            .collect()
    }

    /// All files with a cache file that are part of the tree.
    pub(crate) fn files(&self) -> Vec<(u64, Arc<FileNode>)> {
        let tree = self.tree();
        tree.nodes
            .iter()
            .filter_map(|(&id, n)| Some((id, n.file.clone()?)))
            .collect()
    }

    /// Flushes on the share what was passed through.
    pub(crate) fn flush_passed_through(&self) {
        for (node, file) in self.bound_to_share() {
            if let Err(error) = self.flush_on_share(node, &file) {
                tracing::warn!(path = self.tree().path(node), %error, "flush on the share failed");
            }
        }
    }

    /// Flushes the share's file and the cache file, and records that both are the same now.
    pub(crate) fn flush_on_share(&self, node: u64, file: &Arc<FileNode>) -> Result<()> {
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        let (share_file, teed, budget) = {
            let st = file.read();
            if st.online_written.is_empty() {
                return Ok(());
            }
            // A program waits for a slow flush only where there is nothing to go on with.
            let budget = if st.attached && st.fully_cached() {
                self.stall_budget()
            } else {
                self.flush_budget
            };
            match &st.binding {
                Some(Binding::Share(f, _)) => (f.clone(), st.tee, budget),
                _ => return Ok(()),
            }
        };
        let context = self.tree().path(node);
        let stamp = self
            .link
            .call_for(&context, budget, &file.asked, move |_| {
                share_file.sync()?;
                share_file.stamp()
            })?;
        if teed {
            // The share has it: a copy that cannot be made durable is worth nothing, no more.
            if let Err(error) = file.data.sync() {
                tracing::error!(%error, path = context, "its copy in the cache is given up");
                self.give_up_copy(file, &mut file.write());
            }
        }
        // `io` keeps writers out, so what was flushed is all that was passed through.
        let mut st = file.write();
        if !matches!(st.binding, Some(Binding::Share(..))) {
            return Ok(());
        }
        if teed {
            let have = st.online_written.intersection(&st.valid);
            for r in have.iter() {
                self.log(MetaRecord::Fetched {
                    file: file.id,
                    start: r.start,
                    end: r.end,
                })?;
            }
        }
        let lsn = self.log(MetaRecord::OnlineFlushed {
            file: file.id,
            stamp,
        })?;
        let end = st.size;
        st.note_flushed(stamp, lsn);
        if st.size < end {
            // A cut that the share never answered.
            let cut = st.size;
            self.copy_through(file, &mut st, cut..end, |f| f.data.set_len(cut));
        }
        drop(st);
        self.note_share_attr(node, &stamp);
        self.journal.sync(lsn)
    }
}
