//! Filling the cache from the share: missing ranges on demand, containers whole, the tree.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Drive, Event, State};
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::MetaRecord;
use crate::share::{Kind, ShareFile};
use crate::tree::ROOT;

/// Fetches go in units of this many bytes.
const UNIT: u64 = 256 << 10;
/// A whole file is fetched in steps of this many bytes, each within the stall budget.
const STEP: u64 = 1 << 20;
/// Fetched bytes are flushed and recorded every so many bytes: progress that survives.
const RECORD: u64 = 64 << 20;

impl Drive {
    /// Fetches what the cache misses of `gap` (and a little more) from the share.
    pub(crate) fn fetch(&self, node: u64, file: &Arc<FileNode>, gap: Range<u64>) -> Result<()> {
        match self.fetch_for_reader(node, file, gap)? {
            None => Ok(()),
            Some(_) => Err(Error::NoSpace("the state directory's volume is full")),
        }
    }

    /// As [`Drive::fetch`]; where the cache has no room the bytes of `gap` are handed over instead
    /// of kept: a full disk is no reason to refuse a read that the share can answer (R12).
    pub(crate) fn fetch_for_reader(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        gap: Range<u64>,
    ) -> Result<Option<Vec<u8>>> {
        let path = self.tree().path(node);
        if !self.may_ask() {
            return Err(Error::NotCached(path));
        }
        let (want, cuts, stamp, size) = {
            let st = file.read();
            if !st.attached {
                return Err(Error::NotCached(path));
            }
            let start = gap.start / UNIT * UNIT;
            let end = gap.end.next_multiple_of(UNIT).min(st.size);
            (start..end.max(gap.end), st.cuts, st.stamp, st.size)
        };
        let Some(stamp) = stamp else {
            return Err(Error::NotCached(path));
        };
        let source = self.fetch_handle(node, file)?;
        let budget = self.stall_budget().max(self.flush_budget);
        let range = want.clone();
        let reader = source.clone();
        let answer =
            self.link
                .call_for(&path, budget, &crate::link::InDoubt::default(), move |_| {
                    let mut buf = vec![0; (range.end - range.start) as usize];
                    let n = reader.read_at(range.start, &mut buf)?;
                    buf.truncate(n);
                    Ok((buf, reader.stat()?))
                });
        let (buf, attr) = match answer {
            Ok(got) => got,
            Err(e) => {
                *file.fetch.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Err(e);
            }
        };
        let mut st = file.write();
        let through = matches!(st.binding, Some(crate::file::Binding::Share(..)));
        // While it is passed through the file changes by our own hand. Otherwise bytes of another
        // moment must not be mixed in.
        let same = if through || !st.online_written.is_empty() {
            attr.file_id == stamp.file_id
        } else {
            (attr.size, attr.mtime, attr.file_id) == (stamp.size, stamp.mtime, stamp.file_id)
        };
        if !same {
            st.share_changed = true;
            drop(st);
            *file.fetch.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(Error::ShareChanged(path));
        }
        if st.cuts != cuts || st.size < size {
            return Ok(None); // Cut meanwhile: the caller looks again.
        }
        let have = want.start..(want.start + buf.len() as u64).min(st.size);
        if have.end < gap.end.min(stamp.size.min(st.size)) {
            return Err(Error::ShareChanged(path));
        }
        match self.check_space(have.end.saturating_sub(have.start)) {
            Ok(()) => {}
            Err(Error::NoSpace(_)) => {
                let from = (gap.start - want.start) as usize;
                let to = from + (gap.end - gap.start) as usize;
                return Ok(buf.get(from..to).map(<[u8]>::to_vec));
            }
            Err(e) => return Err(e),
        }
        for part in st.valid.gaps(have) {
            let from = (part.start - want.start) as usize..(part.end - want.start) as usize;
            let bytes = buf.get(from).unwrap_or(&[]);
            file.data
                .write_all_at(part.start, bytes)
                .map_err(|e| Error::from_io("writing a cache file", e))?;
            st.fetched.insert(part.clone());
            st.valid.insert(part);
        }
        Ok(None)
    }

    fn fetch_handle(&self, node: u64, file: &Arc<FileNode>) -> Result<Arc<dyn ShareFile>> {
        if let Some(f) = &*file.fetch.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(f.clone());
        }
        let (path, share_path) = {
            let tree = self.tree();
            (tree.path(node), tree.share_path(node))
        };
        let Some(share_path) = share_path else {
            return Err(Error::NotCached(path));
        };
        let (f, _, _) = self.open_on_share(&share_path, false)?;
        *file.fetch.lock().unwrap_or_else(PoisonError::into_inner) = Some(f.clone());
        Ok(f)
    }

    /// Fetches a whole file into the cache, resuming where an earlier attempt ended.
    ///
    /// # Errors
    /// What the share says; [`Error::ShareChanged`] if it changed under an open handle.
    pub fn fill_file(&self, path: &str) -> Result<()> {
        let node = self.find(path)?;
        let file = self.file(node)?;
        self.fill_node(node, &file)
    }

    fn fill_node(&self, node: u64, file: &Arc<FileNode>) -> Result<()> {
        {
            let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
            let (closed, clean) = {
                let st = file.read();
                (
                    st.opens == 0 && !st.exclusive,
                    st.attached && !st.is_dirty(),
                )
            };
            let share_path = self.tree().share_path(node);
            if let (true, true, Some(at)) = (closed, clean, share_path) {
                // Not open: begin anew if the share's file is another by now.
                let (_, stamp, _) = self.open_on_share(&at, false)?;
                self.settle(file, stamp)?;
            }
        }
        let was_full = file.read().fully_cached();
        let mut since = 0;
        loop {
            let gap = {
                let st = file.read();
                if !st.attached {
                    return Ok(());
                }
                let size = st.size;
                st.valid.gaps(0..size).into_iter().next()
            };
            let Some(gap) = gap else { break };
            if self.state() == State::Offline {
                return Err(Error::NotCached(self.tree().path(node)));
            }
            let step = gap.start..gap.end.min(gap.start + STEP);
            since += step.end - step.start;
            self.fetch(node, file, step)?;
            if since >= RECORD {
                self.record_fetched(file)?;
                since = 0;
            }
        }
        self.record_fetched(file)?;
        *file.fetch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !was_full {
            let path = self.tree().path(node);
            if self.is_container(&path) {
                self.emit(&Event::Cached(path));
            }
        }
        Ok(())
    }

    /// Flushes what was fetched and records it.
    fn record_fetched(&self, file: &Arc<FileNode>) -> Result<()> {
        let (taken, cuts) = {
            let st = file.read();
            (st.fetched.clone(), st.cuts)
        };
        if taken.is_empty() {
            return Ok(());
        }
        if let Err(e) = file.data.sync() {
            self.journal.poison(&format!("flush of a cache file: {e}"));
            return Err(Error::from_io("flushing a cache file", e));
        }
        let mut st = file.write();
        if st.cuts != cuts {
            return Ok(());
        }
        for r in taken.iter() {
            let lsn = self.log(MetaRecord::Fetched {
                file: file.id,
                start: r.start,
                end: r.end,
            })?;
            st.lsn = lsn;
        }
        st.fetched.subtract(&taken);
        Ok(())
    }

    /// Lists the whole tree and fetches every container that is not wholly cached, so that both
    /// are there before the link goes. One bad file or directory never stops the others (R11).
    ///
    /// # Errors
    /// The first failure, after everything else was tried.
    pub fn fill(&self) -> Result<()> {
        let mut first = Ok(());
        let mut note = |r: Result<()>| {
            if first.is_ok() {
                first = r;
            }
        };
        let mut stack = vec![ROOT];
        while let Some(dir) = stack.pop() {
            if self.state() == State::Offline {
                break;
            }
            let known = self.tree().nodes.get(&dir).is_some_and(|n| n.known);
            if !known || self.state() == State::Online {
                note(self.refresh_dir(dir));
            }
            let tree = self.tree();
            if let Ok(node) = tree.dir(dir) {
                let is_dir =
                    |id: &&u64| tree.nodes.get(id).is_some_and(|n| n.attr.kind == Kind::Dir);
                stack.extend(node.children.values().filter(is_dir));
            }
        }
        for (node, path) in self.container_nodes() {
            if self.state() == State::Offline {
                break;
            }
            let done = self.file(node).and_then(|file| {
                let full = file.read().fully_cached();
                if full {
                    Ok(())
                } else {
                    self.fill_node(node, &file)
                }
            });
            if let Err(error) = &done {
                tracing::debug!(path, %error, "container not cached yet");
            }
            note(done);
        }
        first
    }

    /// Nodes and paths of all containers in the tree.
    pub(crate) fn container_nodes(&self) -> Vec<(u64, String)> {
        let tree = self.tree();
        let mut all: Vec<(u64, String)> = tree
            .nodes
            .iter()
            .filter(|(_, n)| n.linked && n.attr.kind == Kind::File)
            .map(|(&id, _)| (id, tree.path(id)))
            .filter(|(_, path)| self.is_container(path))
            .collect();
        all.sort_by(|a, b| a.1.cmp(&b.1));
        all
    }

    /// One round of the background thread.
    pub(crate) fn fill_in_background(&self) {
        if self.state() == State::Offline || !self.bell.want_fill.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.fill() {
            tracing::debug!(%error, "the cache is not complete yet");
            // Tried again at the next round.
            self.bell.want_fill.store(true, Ordering::SeqCst);
        }
    }

    /// The node at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::BadName`].
    pub fn find(&self, path: &str) -> Result<u64> {
        let path = crate::path::normalise(path)?;
        let mut at = ROOT;
        for name in path.split('/').filter(|p| !p.is_empty()) {
            let child = self.tree().child(at, name);
            at = match child {
                Some(id) => id,
                None => self.lookup(at, name)?.id,
            };
        }
        Ok(at)
    }
}
