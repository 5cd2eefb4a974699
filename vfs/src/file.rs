//! One file's standing: what the cache has, what is not on the share, who has it open.
//!
//! Locks, in order: `FileNode::open`, `FileNode::io`, tree, `FileNode::st`, journal. `open` and
//! `io` concern one file only and may be held while the share is asked about that very file;
//! `st` never is. Records are appended while `st` is held for writing, so that their order is the
//! order in which their effects are seen.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use storage::{RangeSet, WriteAt};

use crate::cache::{FileMeta, from_ranges, to_ranges};
use crate::drive::Locks;
use crate::error::{Error, Result};
use crate::link::InDoubt;
use crate::lock::{self, Rank, Ranked};
use crate::share::{ShareFile, Stamp};
use crate::snapshot::Before;
use crate::unwritten::Unwritten;

/// Sets of bytes, each closed by an epoch; what is written now goes to the open one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gens {
    open: RangeSet,
    closed: BTreeMap<u64, RangeSet>,
}

/// More closed sets than this are merged into their successors: a merged byte counts as written
/// later than it was, which costs work and never loses anything.
const MAX_GENS: usize = 32;

impl Gens {
    pub fn insert(&mut self, range: Range<u64>) {
        self.open.insert(range);
    }

    pub fn truncate(&mut self, size: u64) {
        self.open.truncate(size);
        for set in self.closed.values_mut() {
            set.truncate(size);
        }
    }

    pub fn close(&mut self, epoch: u64) {
        if !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.closed.entry(epoch).or_default().union_with(&open);
        }
        while self.closed.len() > MAX_GENS {
            let Some((_, first)) = self.closed.pop_first() else {
                break;
            };
            if let Some(mut next) = self.closed.first_entry() {
                next.get_mut().union_with(&first);
            }
        }
    }

    pub fn drop_through(&mut self, epoch: u64) {
        self.closed = self.closed.split_off(&epoch.saturating_add(1));
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn total(&self) -> RangeSet {
        let mut all = self.open.clone();
        for set in self.closed.values() {
            all.union_with(set);
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.values().all(RangeSet::is_empty)
    }

    fn store(&self) -> Vec<(u64, Vec<(u64, u64)>)> {
        let closed = self.closed.iter().map(|(&e, set)| (e, to_ranges(set)));
        closed.chain([(u64::MAX, to_ranges(&self.open))]).collect()
    }

    fn load(stored: &[(u64, Vec<(u64, u64)>)]) -> Self {
        let mut gens = Self::default();
        for (epoch, ranges) in stored {
            let set = from_ranges(ranges);
            if *epoch == u64::MAX {
                gens.open.union_with(&set);
            } else if !set.is_empty() {
                gens.closed.insert(*epoch, set);
            }
        }
        gens
    }
}

/// Which physical file the open handles see (R1).
#[derive(Clone)]
pub(crate) enum Binding {
    /// The share's file, and whether it is open for writing.
    Share(Arc<dyn ShareFile>, bool),
    /// The cache file and the journal.
    Cache,
}

/// The changing part.
pub(crate) struct FileState {
    pub attached: bool,
    pub stamp: Option<Stamp>,
    pub lineage: u64,
    pub size: u64,
    pub mtime: Option<i64>,
    pub valid: RangeSet,
    /// Fetched into the cache file but not yet flushed there.
    pub fetched: RangeSet,
    pub dirty: Gens,
    pub written: Gens,
    pub write_count: u64,
    pub epoch: u64,
    pub synced_epoch: u64,
    pub sequence: u64,
    pub outstanding: Option<(u64, [u8; 32])>,
    pub flipped: bool,
    pub online_written: RangeSet,
    pub push: Option<(u64, u64)>,
    pub lsn: u64,
    /// Records through this one have their bytes in the cache file.
    pub data_lsn: u64,
    /// When it was last opened or closed, nanoseconds since 1970.
    pub used: i64,
    /// The last record whose bytes went to the cache file directly.
    pub direct: u64,

    pub unwritten: Unwritten,
    pub binding: Option<Binding>,
    pub opens: u32,
    pub exclusive: bool,
    /// Copy pass-through writes into the cache file.
    pub tee: bool,
    pub snaps: Vec<Weak<Before>>,
    /// Rises when the content changes by other means than the open handles' writes.
    pub version: u64,
    /// `version` when last opened.
    pub seen_version: u64,
    /// Rises with every truncation and where the share's bytes changed without a copy, so that a fetch
    /// begun before is not laid over it.
    pub cuts: u64,
    /// Change time of the content, nanoseconds since 1970.
    pub changed: i64,
    /// A time was set since a write was last recorded: the next one is, or it would not be known to be later.
    pub time_set: bool,
    pub last_write: Option<Instant>,
    pub unlinked: bool,
    /// Most that writes of ours without an answer may have made the share's file long, where that is known.
    pub grown: u64,
    /// The share's file was found changed while ours is dirty.
    pub share_changed: bool,
}

impl FileState {
    pub fn new() -> Self {
        Self::load(&FileMeta {
            id: 0,
            attached: true,
            stamp: None,
            lineage: 0,
            size: 0,
            mtime: None,
            valid: Vec::new(),
            dirty: Vec::new(),
            written: Vec::new(),
            write_count: 0,
            epoch: 0,
            synced_epoch: 0,
            sequence: 0,
            outstanding: None,
            flipped: false,
            online_written: Vec::new(),
            push: None,
            lsn: 0,
            data_lsn: 0,
            used: 0,
        })
    }

    pub fn load(m: &FileMeta) -> Self {
        Self {
            attached: m.attached,
            stamp: m.stamp,
            lineage: m.lineage,
            size: m.size,
            mtime: m.mtime,
            valid: from_ranges(&m.valid),
            fetched: RangeSet::default(),
            dirty: Gens::load(&m.dirty),
            written: Gens::load(&m.written),
            write_count: m.write_count,
            epoch: m.epoch,
            synced_epoch: m.synced_epoch,
            sequence: m.sequence,
            outstanding: m.outstanding,
            flipped: m.flipped,
            online_written: from_ranges(&m.online_written),
            push: m.push,
            lsn: m.lsn,
            data_lsn: m.data_lsn,
            used: m.used,
            direct: 0,
            unwritten: Unwritten::default(),
            binding: None,
            opens: 0,
            exclusive: false,
            tee: false,
            snaps: Vec::new(),
            version: 1,
            seen_version: 0,
            cuts: 0,
            changed: m.mtime.unwrap_or(0),
            time_set: false,
            grown: if m.flipped || m.push.is_some() {
                u64::MAX
            } else {
                0
            },
            last_write: None,
            unlinked: false,
            share_changed: false,
        }
    }

    pub fn store(&self, id: u64) -> FileMeta {
        let mut valid = self.valid.clone();
        valid.subtract(&self.fetched);
        FileMeta {
            id,
            attached: self.attached,
            stamp: self.stamp,
            lineage: self.lineage,
            size: self.size,
            mtime: self.mtime,
            valid: to_ranges(&valid),
            dirty: self.dirty.store(),
            written: self.written.store(),
            write_count: self.write_count,
            epoch: self.epoch,
            synced_epoch: self.synced_epoch,
            sequence: self.sequence,
            outstanding: self.outstanding,
            flipped: self.flipped,
            online_written: to_ranges(&self.online_written),
            push: self.push,
            lsn: self.lsn,
            data_lsn: self.data_lsn,
            used: self.used,
        }
    }

    pub fn fully_cached(&self) -> bool {
        // A file never seen has no stamp: size 0 says nothing then.
        (self.stamp.is_some() || !self.attached || self.is_dirty())
            && self.valid.contains_range(0..self.size)
    }

    /// Whether the cache file had everything, also what was passed through and not flushed.
    pub fn tee_was_whole(&self) -> bool {
        !self.online_written.is_empty()
            && self.stamp.is_some()
            && self.valid.contains_range(0..self.size)
    }

    /// Whether the share lacks something (R4: never evicted, never dropped).
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
            || (self.attached
                && self.stamp.is_some_and(|s| s.size != self.size)
                && self.online_written.is_empty()
                && !matches!(self.binding, Some(Binding::Share(..))))
    }

    /// How long the share's file may be by what of ours was passed through, or is about to be pushed.
    pub fn may_reach(&self) -> u64 {
        let passed = self.online_written.span().map_or(0, |r| r.end);
        self.grown.max(self.size).max(passed)
    }

    /// Whether a write of ours may be in the share's file that its stamp does not know of.
    pub fn may_be_there(&self) -> bool {
        self.flipped || self.push.is_some() || !self.online_written.is_empty()
    }

    /// Whether the modification time is ours to keep: of what the share lacks, or may lack.
    pub fn owns_time(&self) -> bool {
        self.mtime.is_some() || self.is_dirty() || !self.online_written.is_empty()
    }

    /// The content changed at this time.
    pub fn changed_at(&mut self, time: i64) {
        self.mtime = Some(time);
        self.changed = time;
    }

    fn touched(&mut self, time: i64) {
        self.changed_at(time);
        self.last_write = Some(Instant::now());
        self.write_count += 1;
    }

    /// Bytes of the gap that a write past the end opens, zeros from now on.
    fn grow(&mut self, end: u64) -> Range<u64> {
        let gap = self.size..end.max(self.size);
        self.size = gap.end;
        gap
    }

    pub fn note_write(&mut self, range: Range<u64>, time: i64, lsn: u64) {
        let gap = self.size..range.start.max(self.size);
        self.grow(range.end);
        for r in [gap, range] {
            self.valid.insert(r.clone());
            self.dirty.insert(r.clone());
            self.written.insert(r);
        }
        self.touched(time);
        self.lsn = lsn;
    }

    pub fn note_truncate(&mut self, size: u64, time: i64, lsn: u64) {
        if size < self.size {
            self.cut(size);
            // A cut is a change even where no byte was written: its last byte stands for it. (A
            // file that lacks this byte is attached, and differs from the share in its length.)
            if size > 0 && self.valid.contains(size - 1) {
                self.dirty.insert(size - 1..size);
                self.written.insert(size - 1..size);
            }
        } else {
            let gap = self.grow(size);
            self.valid.insert(gap.clone());
            self.dirty.insert(gap.clone());
            self.written.insert(gap);
        }
        self.touched(time);
        self.lsn = lsn;
    }

    /// The share has other bytes there now than the cache file. What was fetched there before, or is
    /// being fetched, is of an earlier moment: it is neither recorded nor laid over this.
    pub fn lose(&mut self, range: Range<u64>) {
        self.valid.remove(range.clone());
        self.fetched.remove(range);
        self.cuts += 1;
    }

    /// A change of ours that failed may be there, wholly or in part: neither what is here nor what the kernel
    /// keeps is what the share has.
    pub fn note_doubted(&mut self, range: Range<u64>, lsn: u64) {
        self.lose(range.clone());
        self.version += 1;
        self.online_written.insert(range.clone());
        self.written.insert(range);
        self.lsn = lsn;
    }

    fn cut(&mut self, size: u64) {
        self.valid.truncate(size);
        self.fetched.truncate(size);
        self.dirty.truncate(size);
        self.written.truncate(size);
        self.size = size;
        self.cuts += 1;
    }

    pub fn note_online_write(&mut self, range: Range<u64>, lsn: u64) {
        self.time_set = false;
        let gap = self.size..range.start.max(self.size);
        for r in [gap, range] {
            self.online_written.insert(r.clone());
            self.written.insert(r);
        }
        self.lsn = lsn;
    }

    pub fn note_online_truncate(&mut self, size: u64, lsn: u64) {
        // What is cut off or zero-filled: neither side can be trusted there until the flush.
        self.online_written
            .insert(size.min(self.size)..size.max(self.size));
        if size > 0 {
            self.online_written.insert(size - 1..size);
            self.written.insert(size - 1..size);
        }
        self.written.insert(self.size..size.max(self.size));
        self.lsn = lsn;
    }

    /// The share took it: what handles see now.
    pub fn online_written_through(&mut self, range: Range<u64>, time: i64) {
        let gap = self.size..range.start.max(self.size);
        self.grow(range.end);
        if self.tee {
            self.valid.insert(gap);
            self.valid.insert(range);
        } else {
            self.lose(range);
        }
        self.touched(time);
    }

    pub fn online_truncated(&mut self, size: u64, time: i64) {
        if size < self.size {
            self.cut(size);
        } else {
            let gap = self.grow(size);
            if self.tee {
                self.valid.insert(gap);
            }
        }
        self.touched(time);
    }

    pub fn note_flushed(&mut self, stamp: Stamp, lsn: u64) {
        self.online_written.clear();
        self.is_as_long_as(&stamp);
        self.stamp = Some(stamp);
        self.lsn = lsn;
    }

    /// The share's file, which this is a copy of, has this length: a change that the share made and never
    /// answered shows now.
    pub fn is_as_long_as(&mut self, stamp: &Stamp) {
        if stamp.size == self.size {
            return;
        }
        if stamp.size < self.size {
            self.cut(stamp.size);
        }
        self.size = stamp.size;
        self.cuts += 1;
        self.version += 1;
    }

    pub fn note_flip(&mut self, lsn: u64) {
        self.grown = self.grown.max(self.may_reach());
        let mut doubt = self.online_written.clone();
        doubt.truncate(self.size);
        for r in doubt.iter() {
            self.dirty.insert(r);
        }
        self.flipped = self.flipped || !self.online_written.is_empty();
        self.online_written.clear();
        self.lsn = lsn;
    }

    pub fn note_attach(&mut self, stamp: Stamp, lineage: u64, lsn: u64) {
        self.attached = true;
        self.stamp = Some(stamp);
        self.lineage = lineage;
        self.size = stamp.size;
        self.mtime = None;
        self.valid.clear();
        self.fetched.clear();
        self.dirty.clear();
        self.written.clear();
        self.online_written.clear();
        self.flipped = false;
        self.push = None;
        self.share_changed = false;
        self.version += 1;
        self.cuts += 1;
        self.lsn = lsn;
    }

    /// As [`FileState::note_attach`], with a cache file that has these bytes already.
    pub fn note_renewed(&mut self, stamp: Stamp, lineage: u64, valid: RangeSet, lsn: u64) {
        self.note_attach(stamp, lineage, lsn);
        self.valid = valid;
    }

    /// The cache file is given up: every byte of it is on the share.
    pub fn note_evicted(&mut self, lsn: u64) {
        self.valid.clear();
        self.fetched.clear();
        self.cuts += 1;
        self.lsn = lsn;
    }

    pub fn note_epoch(&mut self, lsn: u64) {
        self.epoch = lsn;
        self.dirty.close(lsn);
        self.written.close(lsn);
        self.lsn = lsn;
    }

    pub fn note_synced(&mut self, epoch: u64, detached: bool, lsn: u64) {
        self.dirty.drop_through(epoch);
        self.written.drop_through(epoch);
        self.synced_epoch = self.synced_epoch.max(epoch);
        if detached {
            self.attached = false;
        }
        self.flipped = false;
        self.outstanding = None;
        self.lsn = lsn;
    }

    /// `epoch` 0: only the share's stamp is news, by a change of ours that was not content.
    pub fn note_pushed(&mut self, epoch: u64, stamp: Stamp, lsn: u64) {
        self.lsn = lsn;
        if epoch == 0 {
            self.stamp = Some(stamp);
            return;
        }
        self.dirty.drop_through(epoch);
        self.synced_epoch = self.synced_epoch.max(epoch);
        self.stamp = Some(stamp);
        self.grown = 0;
        self.flipped = false;
        self.push = None;
        self.share_changed = false;
        if self.dirty.is_empty() {
            self.mtime = None;
        }
    }
}

/// A file that has (or may have) a cache file.
pub(crate) struct FileNode {
    pub id: u64,
    /// The cache file.
    pub data: Arc<dyn WriteAt>,
    st: Ranked<FileState>,
    /// Orders pass-through writes, flips and flushes of this file.
    pub io: Mutex<()>,
    /// Orders first opens and last closes of this file.
    pub open: Mutex<()>,
    /// Byte-range locks of programs.
    pub locks: Locks,
    /// Calls left behind that may still change the share's file.
    pub doubt: InDoubt,
    /// Reads and flushes of the share's file that have not come back.
    pub asked: InDoubt,
    /// Handle for filling the cache.
    pub fetch: Mutex<Option<Arc<dyn ShareFile>>>,
    /// Why this file takes no writes any more: a flush of its cache file failed, and what the
    /// system dropped then it will not tell again.
    pub poison: OnceLock<String>,
}

impl FileNode {
    pub fn new(id: u64, data: Arc<dyn WriteAt>, state: FileState) -> Self {
        Self {
            id,
            data,
            st: Ranked::new(Rank::File, state),
            io: Mutex::default(),
            open: Mutex::default(),
            locks: Locks::default(),
            doubt: InDoubt::default(),
            asked: InDoubt::default(),
            fetch: Mutex::default(),
            poison: OnceLock::new(),
        }
    }

    /// Refuses where a flush of the cache file failed.
    pub fn check(&self) -> Result<()> {
        match self.poison.get() {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Closes the handle for filling the cache, if there is one.
    pub fn forget_fetch(&self) {
        let old = self
            .fetch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Closing is a share call: without the lock, for other readers take it.
        drop(old);
    }

    /// Names this physical life among those of all files: another file that takes this one's path
    /// must never pass for it.
    pub fn lineage(&self, st: &FileState) -> u64 {
        (self.id << 24) | (st.lineage & 0xFF_FFFF)
    }

    pub fn read(&self) -> lock::Read<'_, FileState> {
        self.st.read()
    }

    pub fn write(&self) -> lock::Write<'_, FileState> {
        self.st.write()
    }

    /// Reads cached content; the caller checked the length and that the bytes are valid.
    pub fn content(&self, st: &FileState, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        st.unwritten.read(&*self.data, offset, buf)
    }

    /// Saves what `range` held for every snapshot that has not seen it change yet.
    pub fn save_before(&self, st: &mut FileState, range: Range<u64>) {
        if st.snaps.is_empty() {
            return;
        }
        st.snaps.retain(|s| s.strong_count() > 0);
        let snaps: Vec<_> = st.snaps.iter().filter_map(Weak::upgrade).collect();
        for snap in snaps {
            snap.save(range.clone(), |offset, buf| self.content(st, offset, buf));
        }
    }

    /// Snapshots of this file can no longer be read.
    pub fn lose_snapshots(&self, st: &mut FileState) {
        for snap in st.snaps.drain(..).filter_map(|s| s.upgrade()) {
            snap.lose();
        }
    }
}
