//! Filling the cache from the share: missing ranges on demand, pinned files whole, the tree.
//!
//! The background fetches what makes the most files safe before the link goes: files in use first,
//! then those that lack least. It leaves the link to programs: while they use it, it uses it half
//! of the time, and never more than the rate that was set.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::crawl::Rounds;
use super::room::For;
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

/// How often it is looked for containers that may be attached again.
const LOOK: Duration = Duration::from_secs(15);

/// How filling goes on, and how fast it may.
pub(crate) struct Pace {
    /// Bytes a second.
    rate: Option<u64>,
    state: Mutex<PaceState>,
}

#[derive(Default)]
struct PaceState {
    path: Option<String>,
    trouble: Option<String>,
    /// When it was last looked whether a detached container may be attached again.
    looked: Option<Instant>,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            rate: rate.map(|r| r.max(1)),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is being fetched, and why the last attempt did not end well.
    pub fn now(&self) -> (Option<String>, Option<String>) {
        let state = self.state();
        (state.path.clone(), state.trouble.clone())
    }

    /// How long to leave the link alone after a step of `bytes` that took `took`.
    pub(super) fn rest(&self, bytes: u64, took: Duration, others: bool) -> Duration {
        let share = if others { took } else { Duration::ZERO };
        let due = self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / rate as f64)
        });
        share
            .max(due.saturating_sub(took))
            .min(Duration::from_secs(10))
    }
}

impl Drive {
    /// Fetches what the cache misses of `gap` (and a little more) from the share.
    pub(crate) fn fetch(&self, node: u64, file: &Arc<FileNode>, gap: Range<u64>) -> Result<()> {
        match self.fetch_for_reader(node, file, gap)? {
            None => Ok(()),
            Some(_) => Err(Error::NoSpace("the cache takes no more")),
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
        let answer = self.link.call_for(&path, budget, &file.asked, move |_| {
            let mut buf = vec![0; (range.end - range.start) as usize];
            let n = reader.read_at(range.start, &mut buf)?;
            buf.truncate(n);
            Ok((buf, reader.stat()?))
        });
        let (buf, attr) = match answer {
            Ok(got) => got,
            Err(e) => {
                file.forget_fetch();
                return Err(e);
            }
        };
        let timed = self.tree().may_have_mtime(node, attr.mtime);
        // Asked before the file is locked, for all that came: it may take making room.
        let room = self.check_space(buf.len() as u64, buf.len() as u64, For::Copy);
        let mut st = file.write();
        let through = matches!(st.binding, Some(crate::file::Binding::Share(..)));
        // While it is passed through the file changes by our own hand. Otherwise bytes of another
        // moment must not be mixed in.
        let same = if through || !st.online_written.is_empty() {
            attr.file_id == stamp.file_id
        } else {
            (attr.size, attr.file_id) == (stamp.size, stamp.file_id)
                && (attr.mtime == stamp.mtime || timed)
        };
        if !same {
            st.share_changed = true;
            drop(st);
            file.forget_fetch();
            return Err(Error::ShareChanged(path));
        }
        if st.cuts != cuts || st.size < size {
            return Ok(None); // Cut meanwhile: the caller looks again.
        }
        let have = want.start..(want.start + buf.len() as u64).min(st.size);
        // No byte of the gap at all: it would be asked for again for ever.
        if have.end < gap.end.min(stamp.size.min(st.size)) || have.end <= gap.start {
            return Err(Error::ShareChanged(path));
        }
        let loose = |buf: &[u8]| {
            let from = (gap.start - want.start) as usize;
            let to = from + (gap.end - gap.start) as usize;
            buf.get(from..to).map(<[u8]>::to_vec)
        };
        match room {
            Ok(()) => {}
            Err(Error::NoSpace(_)) => return Ok(loose(&buf)),
            Err(e) => return Err(e),
        }
        for part in st.valid.gaps(have) {
            let from = (part.start - want.start) as usize..(part.end - want.start) as usize;
            let bytes = buf.get(from).unwrap_or(&[]);
            if let Err(error) = file.data.write_all_at(part.start, bytes) {
                // As with a full disk: the bytes are there, only not kept.
                tracing::warn!(path, %error, "cannot keep what was fetched");
                return Ok(loose(&buf));
            }
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
        if share_path.is_none() {
            return Err(Error::NotCached(path));
        }
        let (f, _, _) = self.open_there(node, false)?;
        let mut fetch = file.fetch.lock().unwrap_or_else(PoisonError::into_inner);
        let other = fetch.replace(f.clone());
        drop(fetch);
        drop(other);
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
        self.bring_up_to_date(node, file)?;
        let was_full = file.read().fully_cached();
        if !was_full {
            self.pace.state().path = Some(self.tree().path(node));
        }
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
            if self.state() == State::Offline || self.is_ending() {
                return Err(Error::NotCached(self.tree().path(node)));
            }
            let step = gap.start..gap.end.min(gap.start + STEP);
            let len = step.end - step.start;
            since += len;
            let (began, calls) = (Instant::now(), self.link.calls());
            self.fetch(node, file, step)?;
            let others = self.link.calls() > calls + 2;
            let rest = self.pace.rest(len, began.elapsed(), others);
            if !rest.is_zero() {
                // Ends early when something is wanted, such as the end of the drive.
                self.bell.wait(rest, || self.is_ending());
            }
            if since >= RECORD {
                self.record_fetched(file)?;
                since = 0;
            }
        }
        self.record_fetched(file)?;
        file.forget_fetch();
        if !was_full {
            let path = self.tree().path(node);
            if self.is_container(&path) {
                self.emit(&Event::Cached(path));
            }
        }
        Ok(())
    }

    /// Makes everything that was fetched so far durable.
    pub(crate) fn keep_fetched(&self, file: &Arc<FileNode>) -> Result<()> {
        // A cut meanwhile makes it look again; not forever.
        for _ in 0..64 {
            if file.read().fetched.is_empty() {
                return Ok(());
            }
            self.record_fetched(file)?;
        }
        Err(Error::Busy("the file keeps changing"))
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
        self.flush_data(file)?;
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

    /// Lists the whole tree and fetches every pinned file that is not wholly cached, so that both
    /// are there before the link goes. One bad file or directory never stops the others (R11).
    ///
    /// # Errors
    /// The first failure, after everything else was tried.
    pub fn fill(&self) -> Result<()> {
        self.fill_after(self.crawl(Rounds::Any))
    }

    /// Fetches what is pinned, once the tree was looked at as `first` says.
    fn fill_after(&self, mut first: Result<()>) -> Result<()> {
        let mut note = |r: Result<()>| {
            if first.is_ok() {
                first = r;
            }
        };
        for (node, path) in self.fill_order() {
            if self.state() == State::Offline || self.is_ending() {
                break;
            }
            let done = self.file(node).and_then(|file| {
                let full = file.read().fully_cached();
                if full && !self.may_be_behind(node, &file) {
                    Ok(())
                } else {
                    self.fill_node(node, &file)
                }
            });
            if let Err(error) = &done {
                tracing::debug!(path, %error, "not wholly cached yet");
            }
            note(done);
        }
        for (node, file) in self.behind() {
            if self.state() == State::Offline || self.is_ending() {
                break;
            }
            note(self.bring_up_to_date(node, &file));
        }
        let mut pace = self.pace.state();
        pace.path = None;
        pace.trouble = first.as_ref().err().map(ToString::to_string);
        first
    }

    /// Pinned files in the order in which they are fetched.
    fn fill_order(&self) -> Vec<(u64, String)> {
        let mut all: Vec<_> = self
            .pinned_nodes()
            .into_iter()
            .map(|(node, path)| {
                let tree = self.tree();
                let n = tree.nodes.get(&node);
                let size = n.map_or(0, |n| n.attr.size);
                let file = n.and_then(|n| n.file.clone());
                drop(tree);
                let (open, lacks) = file.map_or((false, size), |f| {
                    let st = f.read();
                    let size = if st.stamp.is_some() { st.size } else { size };
                    (st.opens > 0, size.saturating_sub(st.valid.total()))
                });
                ((!open, lacks), (node, path))
            })
            .collect();
        all.sort();
        all.into_iter().map(|(_, file)| file).collect()
    }

    /// Nodes and paths of all files that are kept here whole.
    pub(crate) fn pinned_nodes(&self) -> Vec<(u64, String)> {
        self.matching(|path| self.is_pinned(path))
    }

    /// Nodes and paths of all containers in the tree.
    pub(crate) fn container_nodes(&self) -> Vec<(u64, String)> {
        self.matching(|path| self.is_container(path))
    }

    fn matching(&self, wanted: impl Fn(&str) -> bool) -> Vec<(u64, String)> {
        let tree = self.tree();
        let mut all: Vec<(u64, String)> = tree
            .nodes
            .iter()
            .filter(|(id, n)| n.linked && n.attr.kind == Kind::File && !tree.is_name(**id))
            .map(|(&id, _)| (id, tree.path(id)))
            .filter(|(_, path)| wanted(path))
            .collect();
        all.sort_by(|a, b| a.1.cmp(&b.1));
        all
    }

    /// One round of the background thread.
    pub(crate) fn fill_in_background(&self) {
        if self.state() == State::Offline || self.is_ending() {
            return;
        }
        let wanted = self.bell.want_fill.swap(false, Ordering::SeqCst);
        if !wanted && !self.crawl_waits() && !self.something_detached() {
            return;
        }
        if let Err(error) = self.fill_after(self.crawl(Rounds::Due)) {
            tracing::debug!(%error, "the cache is not complete yet");
            // Tried again at the next round.
            self.bell.want_fill.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a detached container may be attached again; looked at now and then.
    fn something_detached(&self) -> bool {
        {
            let mut pace = self.pace.state();
            if pace.looked.is_some_and(|at| at.elapsed() < LOOK) {
                return false;
            }
            pace.looked = Some(Instant::now());
        }
        self.files()
            .iter()
            .any(|(node, file)| !file.read().attached && self.may_be_behind(*node, file))
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
        Ok(self.tree().content_of(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_leaves_the_link_to_others() {
        let free = Pace::new(None);
        let took = Duration::from_millis(300);
        assert_eq!(free.rest(1 << 20, took, false), Duration::ZERO);
        assert_eq!(free.rest(1 << 20, took, true), took);
        let slow = Pace::new(Some(1 << 20));
        let rest = slow.rest(1 << 20, took, false);
        assert_eq!(rest, Duration::from_millis(700));
        assert_eq!(slow.rest(1 << 20, took * 4, true), took * 4);
    }
}
