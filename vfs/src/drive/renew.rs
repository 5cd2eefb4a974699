//! Renewal: a cached copy follows the share's file, and a detached container is attached again.
//!
//! Where the share's file is another than the cache is a copy of, and nothing here is unsynced, both are
//! compared leaf by leaf, and only the leaves that differ are taken. They are gathered beside the cache
//! file ([`stage`]) while that stays as it was, whole and usable without the share, and go over it in one
//! durable step at the end, when the container's validator finds the result whole. A lost link breaks it off
//! and the next attempt goes on; a program that opens the file comes first.
//!
//! What must be read of the share: where [`KnownLeaves`] knows its leaves, those that differ; else all of
//! it, since nothing but its bytes tells which of them are others. An unchanged stamp takes nothing.
//!
//! A program never sees it: it happens to closed files alone, and the step waits for none to be opened.

pub(super) mod stage;

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use storage::{LEAF_SIZE, Leaves, RangeSet, ReadAt};

use self::stage::Stage;
use super::room::For;
use super::{Drive, Event, State, now};
use crate::cache::to_ranges;
use crate::epoch::Verdict;
use crate::error::{Error, Result};
use crate::file::{FileNode, FileState};
use crate::journal::record::MetaRecord;
use crate::share::{ShareFile, Stamp};

/// Bytes compared per share call; whole leaves.
const STEP: u64 = 16 * LEAF_SIZE;
/// Progress is kept every so many bytes.
const RECORD: u64 = 64 << 20;

/// What is known of files on the share from elsewhere.
pub trait KnownLeaves: Send + Sync {
    /// The digests of the leaves of the file at `path` on the share while it has this stamp; `None` where
    /// they are not known. Never waits for the share.
    fn leaves(&self, path: &str, stamp: &Stamp) -> Option<Leaves>;
}

/// Whether nobody uses the file, and the share lacks nothing of it.
fn idle(st: &FileState) -> bool {
    st.opens == 0
        && !st.exclusive
        && !st.unlinked
        && !st.is_dirty()
        && st.online_written.is_empty()
        && st.push.is_none()
        && st.outstanding.is_none()
        && st.snaps.iter().all(|s| s.strong_count() == 0)
}

impl Drive {
    /// Whether a closed, clean file may be another than the share's by now: a question to the share
    /// will tell.
    pub(super) fn may_be_behind(&self, node: u64, file: &FileNode) -> bool {
        let there = {
            let tree = self.tree();
            match tree.nodes.get(&node) {
                Some(n)
                    if n.linked
                        && tree.share_path(node).is_some()
                        && !tree.place_in_doubt(node) =>
                {
                    n.attr
                }
                _ => return false,
            }
        };
        let st = file.read();
        if !idle(&st) {
            return false;
        }
        if !st.attached {
            return self.may_attach(&st);
        }
        st.stamp.is_some_and(|s| {
            !st.valid.is_empty()
                && (s.size, s.mtime, s.file_id) != (there.size, there.mtime, there.file_id)
        })
    }

    /// A detached container is attached again over a good link, once it has rested for a while.
    fn may_attach(&self, st: &FileState) -> bool {
        let rest = i64::try_from(self.attach_after.as_nanos()).unwrap_or(i64::MAX);
        self.state() == State::Online && now().saturating_sub(st.used) >= rest
    }

    /// Closed and clean files whose copy here is behind the share's file, pinned ones apart.
    pub(super) fn behind(&self) -> Vec<(u64, Arc<FileNode>)> {
        let mut files = self.files();
        files.retain(|(node, file)| {
            let whole = file.read().fully_cached();
            whole && self.may_be_behind(*node, file) && !self.is_pinned(&self.tree().path(*node))
        });
        files
    }

    /// Makes a closed, clean file a copy of what the share has now; what it has of it stays usable
    /// until then.
    pub(super) fn bring_up_to_date(&self, node: u64, file: &Arc<FileNode>) -> Result<()> {
        let Some(at) = self.tree().share_path(node) else {
            return Ok(());
        };
        {
            let st = file.read();
            if !idle(&st) || !(st.attached || self.may_attach(&st)) {
                return Ok(());
            }
        }
        let (_, stamp, _) = self.open_there(node, false)?;
        let (attached, same, empty) = {
            let st = file.read();
            let same = st.attached && st.stamp == Some(stamp);
            (st.attached, same, st.valid.is_empty())
        };
        if same {
            return Ok(());
        }
        if !(attached && empty) {
            match self.renew(node, file, &at, stamp) {
                // Beside the old copy there is no room for the new one.
                Err(Error::NoSpace(_)) if attached => {}
                other => return other,
            }
        }
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(file, stamp)
    }

    /// Makes a closed, clean file, attached or not, a copy of the share's file again: compares both,
    /// and takes what differs. What is here stays usable until the end.
    ///
    /// # Errors
    /// [`Error::Busy`] while it is open, holds unsynced bytes (R4), or the share's container is in the
    /// middle of a change; [`Error::NotCached`] offline; what the share says. The next call goes on.
    pub fn reattach(&self, path: &str) -> Result<()> {
        let node = self.find(path)?;
        let file = self.file(node)?;
        let Some(at) = self.tree().share_path(node) else {
            return Err(Error::NotFound(path.to_owned()));
        };
        if !self.may_ask() {
            return Err(Error::NotCached(path.to_owned()));
        }
        if !idle(&file.read()) {
            return Err(Error::Busy("the file is open or holds unsynced bytes"));
        }
        let (_, stamp, _) = self.open_on_share(&at, false, self.patient())?;
        {
            let st = file.read();
            if st.attached && st.stamp == Some(stamp) {
                return Ok(());
            }
        }
        self.renew(node, &file, &at, stamp)
    }

    fn renew(&self, node: u64, file: &Arc<FileNode>, at: &str, stamp: Stamp) -> Result<()> {
        let (lineage, writes) = {
            let st = file.read();
            (st.lineage, st.write_count)
        };
        let path = self.tree().path(node);
        let mut stage = Stage::begin(self.dir.disk(), file.id, stamp, lineage, writes)?;
        let done = self
            .compare(file, at, &mut stage)
            .and_then(|()| self.judge(&path, file, &stage))
            .and_then(|()| self.switch(file, at, &mut stage));
        match &done {
            Err(Error::ShareChanged(_)) => stage.discard(),
            // Before its one step: the next attempt goes on.
            Err(_) if !stage.is_finished() => {
                if let Err(error) = stage.save() {
                    tracing::debug!(path, %error, "progress of a renewal is lost");
                }
            }
            _ => {}
        }
        done?;
        *file.fetch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.note_share_attr(node, &stamp);
        let taken = stage.changed().total();
        tracing::info!(
            path,
            taken,
            size = stamp.size,
            "follows the share's file again"
        );
        if self.is_container(&path) && file.read().fully_cached() {
            self.emit(&Event::Cached(path));
        }
        Ok(())
    }

    /// Compares what is not compared yet, and stages what differs.
    fn compare(&self, file: &Arc<FileNode>, at: &str, stage: &mut Stage) -> Result<()> {
        let stamp = stage.stamp();
        let (share_file, found, _) = self.open_on_share(at, false, self.patient())?;
        if found != stamp {
            return Err(Error::ShareChanged(at.to_owned()));
        }
        let known = self.leaves.as_ref().and_then(|l| l.leaves(at, &stamp));
        let leaves = known.filter(|leaves| leaves.len() == stamp.size);
        let mut since = 0;
        for gap in stage.left() {
            let mut start = gap.start;
            while start < gap.end {
                let part = start..gap.end.min(start / STEP * STEP + STEP);
                start = part.end;
                if self.state() == State::Offline || self.is_ending() {
                    return Err(Error::NotCached(at.to_owned()));
                }
                if !still(&file.read(), stage) {
                    return Err(Error::Busy("the file is in use"));
                }
                let (began, calls) = (Instant::now(), self.link.calls());
                let want = wanted(file, &part, leaves.as_ref())?;
                let mut asked = 0;
                for range in want.iter() {
                    asked += range.end - range.start;
                    self.take(file, at, &share_file, range, leaves.as_ref(), stage)?;
                }
                since += part.end - part.start;
                stage.compared(part);
                let others = self.link.calls() > calls + want.count() as u64;
                let rest = self.pace.rest(asked, began.elapsed(), others);
                if asked > 0 && !rest.is_zero() {
                    self.bell.wait(rest, || self.is_ending());
                }
                if since >= RECORD {
                    stage.save()?;
                    since = 0;
                }
            }
        }
        Ok(())
    }

    /// Reads a range from the share and stages the leaves of it that the cache does not have.
    fn take(
        &self,
        file: &Arc<FileNode>,
        at: &str,
        share_file: &Arc<dyn ShareFile>,
        range: Range<u64>,
        leaves: Option<&Leaves>,
        stage: &mut Stage,
    ) -> Result<()> {
        let (reader, asked) = (share_file.clone(), range.clone());
        let budget = self.stall_budget().max(self.flush_budget);
        let none = crate::link::InDoubt::default();
        let (bytes, attr) = self.link.call_for(at, budget, &none, move |_| {
            let mut buf = vec![0; (asked.end - asked.start) as usize];
            let n = reader.read_at(asked.start, &mut buf)?;
            buf.truncate(n);
            Ok((buf, reader.stat()?))
        })?;
        let stamp = stage.stamp();
        let same =
            (attr.size, attr.mtime, attr.file_id) == (stamp.size, stamp.mtime, stamp.file_id);
        if !same || bytes.len() as u64 != range.end - range.start {
            return Err(Error::ShareChanged(at.to_owned()));
        }
        for (leaf, theirs) in leaves_of(&range).zip(bytes.chunks(LEAF_SIZE as usize)) {
            if let Some(digest) = leaves.and_then(|l| l.get(leaf.start / LEAF_SIZE))
                && blake3::hash(theirs).as_bytes() != digest
            {
                return Err(Error::ShareChanged(at.to_owned()));
            }
            if cached(file, &leaf)?.is_some_and(|ours| ours == theirs) {
                continue;
            }
            let growth = leaf.end.saturating_sub(file.read().size.max(leaf.start));
            self.check_space(theirs.len() as u64, growth, For::Copy)?;
            stage.put(leaf, theirs)?;
        }
        Ok(())
    }

    /// Whether the container, as it will be, is whole.
    fn judge(&self, path: &str, file: &Arc<FileNode>, stage: &Stage) -> Result<()> {
        let Some(validator) = self.validator.as_ref().filter(|_| self.is_container(path)) else {
            return Ok(());
        };
        let coming: Arc<dyn ReadAt> = Arc::new(Coming {
            file: file.clone(),
            staged: stage.reader(),
            changed: stage.changed().clone(),
            size: stage.stamp().size,
        });
        match validator.check(&coming, stage.changed()) {
            Verdict::Consistent => Ok(()),
            Verdict::Wait(why) => {
                tracing::debug!(path, why, "the share's file is in the middle of a change");
                Err(Error::Busy("the share's file is in the middle of a change"))
            }
        }
    }

    /// The one step: the journal says that the file is the new one, then the staged leaves go over it.
    /// A crash in between is made good at the next opening of the drive.
    fn switch(&self, file: &Arc<FileNode>, at: &str, stage: &mut Stage) -> Result<()> {
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, found, _) = self.open_on_share(at, false, self.patient())?;
        if found != stage.stamp() {
            return Err(Error::ShareChanged(at.to_owned()));
        }
        // What is kept of the cache file is durable, and nothing waits to be laid over it.
        self.settle_direct(file)?;
        if !file.read().unwritten.is_empty() {
            self.checkpoint()?;
        }
        self.flush_data(file)?;
        {
            let mut st = file.write();
            if !still(&st, stage) || !st.unwritten.is_empty() {
                return Err(Error::Busy("the file is in use"));
            }
            st.exclusive = true;
        }
        let done = self.switch_alone(file, stage);
        file.write().exclusive = false;
        done
    }

    /// As [`Drive::switch`], with nobody else at the file.
    fn switch_alone(&self, file: &Arc<FileNode>, stage: &mut Stage) -> Result<()> {
        let begun = stage.finish().and_then(|()| {
            let mut st = file.write();
            let mut valid = stage.same();
            valid = valid.intersection(&st.valid);
            valid.union_with(stage.changed());
            let (stamp, lineage) = (stage.stamp(), st.lineage + 1);
            let lsn = self.log(MetaRecord::Renewed {
                file: file.id,
                stamp,
                lineage,
                valid: to_ranges(&valid),
            })?;
            file.lose_snapshots(&mut st);
            st.note_renewed(stamp, lineage, valid, lsn);
            Ok(lsn)
        });
        let done = begun.and_then(|lsn| {
            self.journal.sync(lsn)?;
            let laid = stage.lay_over(&*file.data);
            if laid.is_err() {
                // What the journal calls there is not: it is given up, and fetched again.
                self.give_up_copy(file, &mut file.write());
                self.sync_all()?;
            }
            laid
        });
        // As long as it lies there the next opening would lay it over the file again.
        if let Err(error) = stage.remove() {
            let why = format!("a finished renewal cannot be cleared away: {error}");
            tracing::error!(error = why, "a file takes no more writes");
            file.poison.get_or_init(|| why);
            return done.and(Err(error));
        }
        done
    }

    /// Completes the renewals that a crash broke off after their one step, and undoes those before it.
    pub(super) fn finish_renewals(&self) -> Result<()> {
        for (id, left) in stage::left_behind(self.dir.disk())? {
            let file = self.tree().nodes.get(&id).and_then(|n| n.file.clone());
            let Some(file) = file else {
                stage::clear(self.dir.disk(), id)?;
                continue;
            };
            match left {
                Ok(stage) if stage.is_finished() => {
                    let switched = {
                        let st = file.read();
                        st.lineage == stage.lineage() + 1 && st.stamp == Some(stage.stamp())
                    };
                    if switched {
                        stage.lay_over(&*file.data)?;
                    }
                    stage::clear(self.dir.disk(), id)?;
                }
                Ok(_) => {}
                Err(error) => {
                    // Whether its bytes are in the file cannot be told: the share has them.
                    tracing::error!(%error, "what a renewal left behind cannot be read");
                    let clean = idle(&file.read());
                    if clean {
                        self.give_up_copy(&file, &mut file.write());
                        self.sync_all()?;
                    }
                    stage::clear(self.dir.disk(), id)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the file is idle, and what it was when the stage was begun.
fn still(st: &FileState, stage: &Stage) -> bool {
    idle(st) && st.lineage == stage.lineage() && st.write_count == stage.writes()
}

/// The parts of a range by leaves. It begins at one.
fn leaves_of(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    (range.start..end)
        .step_by(LEAF_SIZE as usize)
        .map(move |at| at..end.min(at + LEAF_SIZE))
}

/// What the cache has of a range, if it has all of it.
fn cached(file: &FileNode, range: &Range<u64>) -> Result<Option<Vec<u8>>> {
    let st = file.read();
    if range.end > st.size || !st.valid.contains_range(range.clone()) {
        return Ok(None);
    }
    let mut buf = vec![0; (range.end - range.start) as usize];
    file.content(&st, range.start, &mut buf)
        .map_err(|e| Error::from_io("reading the cache", e))?;
    Ok(Some(buf))
}

/// What must be read of the share to know a part of it: all where nothing tells its leaves.
fn wanted(file: &FileNode, part: &Range<u64>, leaves: Option<&Leaves>) -> Result<RangeSet> {
    let mut want = RangeSet::new();
    for leaf in leaves_of(part) {
        let digest = leaves.and_then(|l| l.get(leaf.start / LEAF_SIZE));
        let same = match digest {
            Some(digest) => {
                cached(file, &leaf)?.is_some_and(|ours| blake3::hash(&ours).as_bytes() == digest)
            }
            None => false,
        };
        if !same {
            want.insert(leaf);
        }
    }
    Ok(want)
}

/// The file as it will be: what is staged, over what is kept.
struct Coming {
    file: Arc<FileNode>,
    staged: Arc<dyn ReadAt>,
    changed: RangeSet,
    size: u64,
}

impl ReadAt for Coming {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let end = offset.saturating_add(buf.len() as u64).min(self.size);
        let mut read = |range: Range<u64>, staged: bool| {
            let place = (range.start - offset) as usize..(range.end - offset) as usize;
            let Some(part) = buf.get_mut(place).filter(|p| !p.is_empty()) else {
                return Ok(());
            };
            if staged {
                return self.staged.read_exact_at(range.start, part);
            }
            let st = self.file.read();
            if !st.valid.contains_range(range.clone()) {
                return Err(io::Error::other("the file is in use"));
            }
            self.file.content(&st, range.start, part)
        };
        if offset >= end {
            return Ok(0);
        }
        let mut at = offset;
        for part in self.changed.within(offset..end) {
            read(at..part.start, false)?;
            read(part.clone(), true)?;
            at = part.end;
        }
        read(at..end, false)?;
        Ok((end - offset) as usize)
    }
}
