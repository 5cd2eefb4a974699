//! A file on the share as storage, of which as little as possible is read over the link.
//!
//! Where the digest of a leaf is known, its bytes may come from anywhere: from the drive's own copy of
//! the file, most of which is the same, from a copy of leaves that were fetched before ([`Sources`]), or
//! from the share; whatever does not have the digest is not it. So neither copy needs bookkeeping or has
//! to be whole, and either may be lost.
//!
//! Where no digest is known the share itself is read; of leaves that were written or
//! [forgotten](FarStorage::forget) in part, just those parts, over what the leaf was before.
//!
//! Writes are gathered until the next flush and then sent many at a time: a change is hundreds of small
//! pages, and each would wait for its answer. Their order within a phase means nothing
//! ([`storage::Phase`]); a flush ends each.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage::{Digest, FileStorage, LEAF_SIZE, Leaves, RangeSet, ReadAt, WriteAt};
use vfs::share::ShareFile;

/// Leaves kept in memory.
const CACHED: usize = 128;
/// Most leaves read by one call, where reading goes on in order.
const AHEAD: u64 = 16;
/// Bytes of writes that are gathered at most.
const GATHERED: u64 = 8 << 20;
/// Most bytes of one write call.
const PIECE: usize = 1 << 20;
/// Calls on their way at once.
const AT_ONCE: usize = 8;
/// A leaf's length, in bytes.
const LEAF: usize = LEAF_SIZE as usize;
/// Bytes that are hashed at a time; whole leaves.
const WINDOW: usize = 16 * LEAF;
/// So many windows are hashed before it is noted how far it came.
const PART: u64 = 8;
/// Parts that lie as close as this are read by one call, in bytes.
const NEAR: u64 = 2048;
/// A leaf of which more than this must be read is read as a whole, in bytes.
const MUCH: u64 = LEAF_SIZE / 2;

/// Whether the share may be used now: asked before each call of what may take long.
pub type MayAsk = Arc<dyn Fn() -> bool + Send + Sync>;

/// What the share is not asked while it may not be.
///
/// # Errors
/// It may not.
pub fn allowed(may: &MayAsk) -> io::Result<()> {
    if may() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::NetworkDown,
        "the drive was taken offline",
    ))
}

/// Where leaves may be had without the link.
#[derive(Default)]
pub struct Sources {
    /// The drive's own copy, frozen.
    pub local: Option<Arc<dyn ReadAt>>,
    /// What programs wrote to that since it was last synced.
    pub written: RangeSet,
    /// Leaves that were fetched before, at their places; a sparse file.
    pub fetched: Option<FileStorage>,
}

/// The file; see the module's head.
pub struct FarStorage {
    file: Box<dyn ShareFile>,
    sources: Sources,
    may: MayAsk,
    state: Mutex<State>,
    /// The file was seen not to be what the digests say.
    belied: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
}

struct State {
    len: u64,
    digests: Option<Leaves>,
    /// Bytes of which `digests` says nothing any more.
    changed: RangeSet,
    cache: Cache,
    gathered: Vec<(u64, Vec<u8>)>,
    bytes: u64,
    /// The leaf after the last one that was fetched, and how many were.
    next: (u64, u64),
}

impl FarStorage {
    /// Wraps an open file.
    ///
    /// # Errors
    /// What the share says when asked for the length.
    pub fn new(file: Box<dyn ShareFile>, sources: Sources, may: MayAsk) -> io::Result<Self> {
        let len = file.stat()?.size;
        let state = State {
            len,
            digests: None,
            changed: RangeSet::new(),
            cache: Cache::default(),
            gathered: Vec::new(),
            bytes: 0,
            next: (0, 1),
        };
        Ok(Self {
            file,
            sources,
            may,
            state: Mutex::new(state),
            belied: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        })
    }

    /// The open file.
    pub fn file(&self) -> &dyn ShareFile {
        &*self.file
    }

    /// Bytes that were read of the share, and that were written there.
    pub fn carried(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.read), load(&self.written))
    }

    /// Whether the file was seen not to be what the digests say.
    pub fn is_belied(&self) -> bool {
        self.belied.load(Ordering::Relaxed)
    }

    // One sync uses it, from one thread at a time: nobody else waits while the share is asked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digests of all leaves, where they are known.
    pub fn digests(&self) -> Option<Leaves> {
        let state = self.state();
        state.digests.clone().filter(|_| state.changed.is_empty())
    }

    /// From now on these are the digests.
    pub fn set_digests(&self, leaves: Leaves) {
        let mut state = self.state();
        for (index, leaf) in &state.cache.leaves {
            if leaves.get(*index) == Some(blake3::hash(leaf).as_bytes())
                && state.changed.intersects(state.range(*index))
            {
                self.keep(index * LEAF_SIZE, leaf);
            }
        }
        state.digests = Some(leaves);
        state.changed.clear();
    }

    /// Nothing is known of these bytes any more.
    pub fn forget(&self, changed: &RangeSet) {
        let mut state = self.state();
        for run in changed.iter() {
            state.lose(run);
        }
    }

    /// Reads the file, but for what the drive's own copy has: `same` are the bytes in which both are
    /// known to be equal. `done` are the digests of its first leaves, of an earlier attempt; `part` is told
    /// the digests until now, now and then.
    ///
    /// # Errors
    /// What the share says.
    pub fn hash(
        &self,
        same: &RangeSet,
        done: Vec<Digest>,
        part: &dyn Fn(&[Digest]),
    ) -> io::Result<Leaves> {
        let len = self.len()?;
        let mut digests = done;
        let mut window = Vec::new();
        digests.truncate(digests.len() / (WINDOW / LEAF) * (WINDOW / LEAF));
        let first = (digests.len() * LEAF) as u64;
        for start in (first..len).step_by(WINDOW) {
            if start > first && (start / WINDOW as u64).is_multiple_of(PART) {
                part(&digests);
            }
            let range = start..len.min(start + WINDOW as u64);
            window.resize(size(&range)?, 0);
            let mut far: RangeSet = range_of(&range);
            if let Some(local) = &self.sources.local {
                for run in same.within(range.clone()) {
                    local.read_exact_at(run.start, part_of(&mut window, start, &run)?)?;
                    far.remove(run);
                }
            }
            self.read_into(&near_joined(&far), start, &mut window)?;
            for (at, leaf) in (start..).step_by(LEAF).zip(window.chunks(LEAF)) {
                let digest = *blake3::hash(leaf).as_bytes();
                digests.push(digest);
                let range = at..at + leaf.len() as u64;
                if far.intersects(range.clone()) && self.in_own_copy(&range, &digest).is_none() {
                    self.keep(at, leaf);
                }
            }
        }
        Leaves::from_parts(len, digests).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Reads these parts of the share into `bytes`, which begins at `start`; several calls at once.
    fn read_into(&self, parts: &RangeSet, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let parts: Vec<_> = parts.iter().collect();
        for some in parts.chunks(AT_ONCE) {
            let read = at_once(some, |part| self.read_far(part.clone()))?;
            for (part, fresh) in some.iter().zip(read) {
                part_of(bytes, start, part)?.copy_from_slice(&fresh);
            }
        }
        Ok(())
    }

    fn read_far(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        allowed(&self.may)?;
        let mut bytes =
            vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        let mut have = 0;
        while let Some(rest) = bytes.get_mut(have..).filter(|r| !r.is_empty()) {
            match self.file.read_at(range.start + have as u64, rest)? {
                0 => return Err(changed_meanwhile()),
                n => have += n,
            }
        }
        self.read.fetch_add(have as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Keeps a leaf for another time. A copy that cannot be written is one that is not there.
    fn keep(&self, at: u64, leaf: &[u8]) {
        if let Some(fetched) = &self.sources.fetched
            && let Err(error) = fetched.write_all_at(at, leaf)
        {
            tracing::debug!(%error, "a leaf was not kept");
        }
    }

    fn in_own_copy(&self, range: &Range<u64>, digest: &Digest) -> Option<Vec<u8>> {
        let local = self.sources.local.as_deref();
        local.and_then(|local| leaf_with(local, range, digest))
    }

    fn here(&self, range: &Range<u64>, digest: &Digest) -> Option<Vec<u8>> {
        self.in_own_copy(range, digest).or_else(|| {
            let fetched = self.sources.fetched.as_ref();
            fetched.and_then(|fetched| leaf_with(fetched, range, digest))
        })
    }

    /// The drive's own copy of a leaf, with just the parts from the share that programs wrote here.
    fn patched(&self, range: &Range<u64>, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        let parts: RangeSet = self.sources.written.within(range.clone()).collect();
        let parts = near_joined(&parts);
        let Some(local) = self.sources.local.as_ref().filter(|_| !parts.is_empty()) else {
            return Ok(None);
        };
        let mut leaf = vec![0; size(range)?];
        if parts.total() > MUCH || local.read_exact_at(range.start, &mut leaf).is_err() {
            return Ok(None);
        }
        self.read_into(&parts, range.start, &mut leaf)?;
        if blake3::hash(&leaf).as_bytes() != digest {
            return Ok(None);
        }
        self.keep(range.start, &leaf);
        Ok(Some(leaf))
    }

    fn leaf(&self, state: &mut State, index: u64) -> io::Result<Arc<[u8]>> {
        if let Some(leaf) = state.cache.get(index) {
            return Ok(leaf);
        }
        // What is kept from now on must have in it what was written until now.
        self.send(state)?;
        let range = state.range(index);
        if let Some((digest, changed)) = state.digest_before(index)
            && let Some(mut bytes) = self.here(&range, &digest)
        {
            self.read_into(&near_joined(&changed), range.start, &mut bytes)?;
            return Ok(state.cache.put(index, bytes));
        }
        if let Some(digest) = state.digest(index)
            && let Some(bytes) = self.patched(&range, &digest)?
        {
            return Ok(state.cache.put(index, bytes));
        }
        // Reading in order asks for ever more at once.
        let (next, count) = state.next;
        let count = if next == index {
            (count * 2).min(AHEAD)
        } else {
            1
        };
        let end = state.len.min((index + count) * LEAF_SIZE);
        state.next = (index + count, count);
        let bytes = self.read_far(range.start..end.max(range.end))?;
        let mut wanted = None;
        for (at, leaf) in (index..).zip(bytes.chunks(LEAF)) {
            let digest = state.digest(at);
            if digest.is_some_and(|digest| *blake3::hash(leaf).as_bytes() != digest) {
                self.belied.store(true, Ordering::Relaxed);
                return Err(changed_meanwhile());
            }
            if at != index && state.cache.get(at).is_some() {
                continue;
            }
            self.keep(at * LEAF_SIZE, leaf);
            let kept = state.cache.put(at, leaf.to_vec());
            wanted = wanted.or(Some(kept));
        }
        wanted.ok_or_else(changed_meanwhile)
    }

    /// Sends what was gathered.
    fn send(&self, state: &mut State) -> io::Result<()> {
        state.bytes = 0;
        let calls = joined(std::mem::take(&mut state.gathered));
        let bytes: usize = calls.iter().map(|(_, bytes)| bytes.len()).sum();
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        for some in calls.chunks(AT_ONCE) {
            at_once(some, |(at, bytes)| self.file.write_all_at(*at, bytes))?;
        }
        Ok(())
    }
}

impl ReadAt for FarStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        let end = state.len.min(offset.saturating_add(buf.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        let mut done = 0;
        while offset + (done as u64) < end {
            let at = offset + done as u64;
            let leaf = self.leaf(&mut state, at / LEAF_SIZE)?;
            let from = usize::try_from(at % LEAF_SIZE).map_err(io::Error::other)?;
            let part = leaf.get(from..).filter(|p| !p.is_empty());
            let part = part.ok_or_else(changed_meanwhile)?;
            let left = buf.get_mut(done..).unwrap_or_default();
            let n = part.len().min(left.len());
            if let (Some(to), Some(from)) = (left.get_mut(..n), part.get(..n)) {
                to.copy_from_slice(from);
            }
            done += n;
        }
        Ok(done.min(buf.len()))
    }
}

impl WriteAt for FarStorage {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let end = offset.saturating_add(data.len() as u64);
        state.lose(offset..end);
        if end > state.len {
            let old = state.len;
            state.resize(old, end);
        }
        state.gathered.push((offset, data.to_vec()));
        state.bytes += data.len() as u64;
        if state.bytes > GATHERED {
            self.send(&mut state)?;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        self.send(&mut state)?;
        self.file.set_len(len)?;
        let old = state.len;
        state.resize(old, len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.send(&mut self.state())?;
        self.file.sync()
    }
}

impl State {
    fn range(&self, index: u64) -> Range<u64> {
        let start = index * LEAF_SIZE;
        start..self.len.min(start + LEAF_SIZE)
    }

    /// The digest of a leaf, where it is known to be that still.
    fn digest(&self, index: u64) -> Option<Digest> {
        let (digest, changed) = self.digest_before(index)?;
        changed.is_empty().then_some(digest)
    }

    /// The digest that a leaf had, where it has the length that it had then, and what was changed of it
    /// since.
    fn digest_before(&self, index: u64) -> Option<(Digest, RangeSet)> {
        let known = self.digests.as_ref()?;
        let range = self.range(index);
        if known.len() < range.end
            || (range.end < (index + 1) * LEAF_SIZE && known.len() != self.len)
        {
            return None;
        }
        let changed = self.changed.within(range).collect();
        Some((known.get(index).copied()?, changed))
    }

    /// The leaf in which the shorter file ends is another one in the longer file.
    fn resize(&mut self, old: u64, new: u64) {
        let (short, long) = (old.min(new), old.max(new));
        self.len = new;
        self.lose(short..long);
        self.cache
            .drop_range(short / LEAF_SIZE..long.div_ceil(LEAF_SIZE));
    }

    /// Nothing is known of these bytes any more.
    fn lose(&mut self, run: Range<u64>) {
        let leaves = run.start / LEAF_SIZE..run.end.div_ceil(LEAF_SIZE);
        self.changed.insert(run);
        self.cache.drop_range(leaves);
    }
}

/// Does a few calls at once, and waits for all of them: nothing is on its way when this returns.
fn at_once<T: Sync, R: Send>(
    calls: &[T],
    call: impl Fn(&T) -> io::Result<R> + Sync,
) -> io::Result<Vec<R>> {
    if let [one] = calls {
        return Ok(vec![call(one)?]);
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = calls.iter().map(|one| scope.spawn(|| call(one))).collect();
        let answers: Vec<_> = running
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|_| Err(io::Error::other("a call failed inside"))))
            .collect()
    })
}

fn size(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)
}

fn range_of(range: &Range<u64>) -> RangeSet {
    std::iter::once(range.clone()).collect()
}

/// The place of `range` in bytes that begin at `start`.
fn part_of<'a>(bytes: &'a mut [u8], start: u64, range: &Range<u64>) -> io::Result<&'a mut [u8]> {
    let at = size(&(start..range.start))?;
    let part = bytes
        .get_mut(at..)
        .and_then(|b| b.get_mut(..size(range).ok()?));
    part.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What lies close together is one call: a few bytes cost less than an answer's way.
fn near_joined(parts: &RangeSet) -> RangeSet {
    let mut joined = RangeSet::new();
    let mut last: Option<Range<u64>> = None;
    for part in parts.iter() {
        match &mut last {
            Some(last) if part.start - last.end <= NEAR => last.end = part.end,
            _ => {
                joined.extend(last.replace(part));
            }
        }
    }
    joined.extend(last);
    joined
}

/// The leaf at `range`, if `copy` has it with this digest.
fn leaf_with(copy: &dyn ReadAt, range: &Range<u64>, digest: &Digest) -> Option<Vec<u8>> {
    if copy.len().ok()? < range.end {
        return None;
    }
    let mut leaf = vec![0; usize::try_from(range.end - range.start).ok()?];
    copy.read_exact_at(range.start, &mut leaf).ok()?;
    (blake3::hash(&leaf).as_bytes() == digest).then_some(leaf)
}

fn changed_meanwhile() -> io::Error {
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        "the file was changed on the share meanwhile",
    )
}

/// Writes in as few calls as possible, none of which overlap. Later bytes win, as they would have.
fn joined(mut writes: Vec<(u64, Vec<u8>)>) -> Vec<(u64, Vec<u8>)> {
    let end = |(at, bytes): &(u64, Vec<u8>)| at + bytes.len() as u64;
    let mut seen = RangeSet::new();
    let mut overlap = false;
    for write in &writes {
        let range = write.0..end(write);
        overlap |= seen.intersects(range.clone());
        seen.insert(range);
    }
    if overlap {
        // Rare: all of it in order, as one picture of what it leads to.
        let mut whole: Vec<(u64, Vec<u8>)> = seen
            .iter()
            .map(|r| {
                (
                    r.start,
                    vec![0; usize::try_from(r.end - r.start).unwrap_or(0)],
                )
            })
            .collect();
        for (at, bytes) in writes {
            let index = whole.partition_point(|(start, _)| *start <= at);
            let Some((start, target)) = index.checked_sub(1).and_then(|i| whole.get_mut(i)) else {
                continue;
            };
            let from = usize::try_from(at - *start).unwrap_or(usize::MAX);
            let to = target.get_mut(from..);
            if let Some(to) = to.and_then(|to| to.get_mut(..bytes.len())) {
                to.copy_from_slice(&bytes);
            }
        }
        writes = whole;
    } else {
        writes.sort_by_key(|(at, _)| *at);
    }
    let mut calls: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in writes {
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            let at = at + (n * PIECE) as u64;
            match calls.last_mut() {
                Some(last) if end(last) == at && last.1.len() + piece.len() <= PIECE => {
                    last.1.extend_from_slice(piece);
                }
                _ => calls.push((at, piece.to_vec())),
            }
        }
    }
    calls
}

/// Leaves in memory; the oldest goes first.
#[derive(Default)]
struct Cache {
    leaves: HashMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
}

impl Cache {
    fn get(&self, index: u64) -> Option<Arc<[u8]>> {
        self.leaves.get(&index).cloned()
    }

    fn put(&mut self, index: u64, leaf: Vec<u8>) -> Arc<[u8]> {
        let leaf: Arc<[u8]> = leaf.into();
        if self.leaves.insert(index, Arc::clone(&leaf)).is_none() {
            self.order.push_back(index);
        }
        while self.order.len() > CACHED {
            if let Some(old) = self.order.pop_front() {
                self.leaves.remove(&old);
            }
        }
        leaf
    }

    fn drop_range(&mut self, range: Range<u64>) {
        self.order.retain(|index| !range.contains(index));
        self.leaves.retain(|index, _| !range.contains(index));
    }
}

#[cfg(test)]
#[path = "bytes_tests.rs"]
mod tests;
