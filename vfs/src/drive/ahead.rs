//! Reading ahead for programs that read a file from one end to the other.
//!
//! From the third read in a row on, what comes next is asked of the share before it is wanted: for a file
//! served from the cache it is fetched there, for one that is passed through it is held for the handle, a
//! few MiB at most, and only as long as attributes are trusted. A write or cut through the drive, or a
//! change by others that was noticed, makes what is held worthless.
//!
//! The frontend runs [`Drive::fetch_ahead`] on a thread of its own.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Drive, Handle, State};
use crate::file::{Binding, FileState};

/// Reads in a row after which more of the same is expected.
const SEQUENTIAL: u32 = 2;
/// So far ahead of the reader, in bytes.
const WINDOW: u64 = 4 << 20;
/// In calls of so many bytes at most.
const PART: u64 = 1 << 20;
/// What may be on its way ahead of all readers, in bytes: at first, at most. On a slow link what was asked
/// for ahead is in the way of what is wanted now.
const FIRST: u64 = 512 << 10;
const MOST: u64 = 8 << 20;
/// Less than this is not worth a call: then just one of so many reads has one, to see whether the link is
/// another by now.
const LEAST: u64 = 64 << 10;
const TRY: u64 = 16;
/// A part that comes so soon lets twice as much be on its way; one that takes longer than the second, half.
const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_millis(600);
/// What may be held for all handles, in bytes.
const HELD: u64 = 64 << 20;

/// What reading ahead did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AheadCount {
    /// Calls that asked the share for what was not wanted yet.
    pub asked: u64,
    /// Reads that were answered from what was held.
    pub hits: u64,
}

pub(super) struct Counters {
    asked: AtomicU64,
    hits: AtomicU64,
    held: Arc<AtomicU64>,
    /// Bytes that were asked for ahead and have not come, and how many these may be.
    flying: AtomicU64,
    limit: AtomicU64,
    /// Reads that had nothing fetched ahead of them for that limit.
    without: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            asked: AtomicU64::default(),
            hits: AtomicU64::default(),
            held: Arc::default(),
            flying: AtomicU64::default(),
            limit: AtomicU64::new(FIRST),
            without: AtomicU64::default(),
        }
    }
}

impl Counters {
    /// So much may be on its way, in parts of the second; nothing where the link is too slow for that.
    fn limit(&self) -> Option<(u64, u64)> {
        let limit = self.limit.load(Ordering::SeqCst);
        if limit < LEAST {
            let tries = (self.without.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(TRY);
            return tries.then_some((LEAST, LEAST));
        }
        Some((limit, PART.min(limit / 2).max(LEAST)))
    }
}

/// A part on its way.
struct Flying<'a> {
    counters: &'a Counters,
    size: u64,
    since: Instant,
    well: bool,
}

impl<'a> Flying<'a> {
    fn new(counters: &'a Counters, range: &Range<u64>) -> Self {
        let size = range.end - range.start;
        counters.flying.fetch_add(size, Ordering::SeqCst);
        Self {
            counters,
            size,
            since: Instant::now(),
            well: false,
        }
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        let counters = self.counters;
        counters.flying.fetch_sub(self.size, Ordering::SeqCst);
        let limit = counters.limit.load(Ordering::SeqCst);
        let took = self.since.elapsed();
        let next = if !self.well || took > LATE {
            limit / 2
        } else if took < SOON {
            limit * 2
        } else {
            limit
        };
        // Of two that come at once one may be forgotten: the next one tells the same.
        let next = next.clamp(LEAST / 2, MOST);
        counters.limit.store(next, Ordering::SeqCst);
    }
}

/// One handle's reader.
#[derive(Default)]
pub(crate) struct Ahead(Mutex<Reader>);

#[derive(Default)]
struct Reader {
    /// Where it goes on if it reads in a row.
    next: u64,
    row: u32,
    /// Asked for through here.
    until: u64,
    parts: VecDeque<Arc<Part>>,
}

impl Ahead {
    /// Whether anything is held, or on its way.
    pub(super) fn holds_any(&self) -> bool {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !reader.parts.is_empty()
    }
}

/// Bytes of a passed-through file, held.
struct Part {
    range: Range<u64>,
    /// The file when they were asked for.
    of: (u64, u64, u64),
    asked: Instant,
    /// `None` inside: there is nothing to be had.
    bytes: Mutex<Option<Option<Vec<u8>>>>,
    come: Condvar,
    held: Arc<AtomicU64>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.held
            .fetch_sub(self.range.end - self.range.start, Ordering::SeqCst);
    }
}

/// What must not change while bytes are held: writes and cuts by us, changes by others.
fn of(st: &FileState) -> (u64, u64, u64) {
    (st.write_count, st.cuts, st.version)
}

impl Drive {
    /// What reading ahead did so far.
    #[must_use]
    pub fn ahead(&self) -> AheadCount {
        AheadCount {
            asked: self.ahead.asked.load(Ordering::SeqCst),
            hits: self.ahead.hits.load(Ordering::SeqCst),
        }
    }

    /// A read was asked for: what should be fetched ahead of the next ones, each part by a call of
    /// [`Drive::fetch_ahead`].
    #[must_use]
    pub fn expect_next(&self, handle: u64, offset: u64, len: usize) -> Vec<Range<u64>> {
        let Ok(h) = self.handle(handle) else {
            return Vec::new();
        };
        let end = offset.saturating_add(len as u64);
        let mut reader = h.ahead.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == reader.next && offset > 0 {
            reader.row = reader.row.saturating_add(1);
        } else if !(offset < reader.next && end > reader.next) {
            // The kernel's own threads may ask for neighbours in either order: no new beginning.
            let near = offset.abs_diff(reader.next) <= PART;
            if !near || offset == 0 {
                *reader = Reader::default();
            }
        }
        reader.next = reader.next.max(end);
        if reader.row < SEQUENTIAL || self.state() == State::Offline || !self.link.is_up() {
            return Vec::new();
        }
        let st = h.file.read();
        let through = match st.binding {
            Some(Binding::Share(..)) => true,
            Some(Binding::Cache) => false,
            None => return Vec::new(),
        };
        let from = reader.until.max(reader.next);
        let Some((limit, step)) = self.ahead.limit() else {
            return Vec::new();
        };
        let mut flying = self.ahead.flying.load(Ordering::SeqCst);
        let to = st.size.min(reader.next.saturating_add(WINDOW.min(limit)));
        // In whole parts, so that a short read does not ask for a short piece.
        if from >= to || (to - from < step && to < st.size) {
            return Vec::new();
        }
        let mut parts = Vec::new();
        let mut at = from;
        while at < to {
            let part = at..to.min(at + step);
            let size = part.end - part.start;
            if flying + size > limit {
                break;
            }
            at = part.end;
            if through {
                if self.ahead.held.fetch_add(size, Ordering::SeqCst) + size > HELD {
                    self.ahead.held.fetch_sub(size, Ordering::SeqCst);
                    break;
                }
                reader.parts.push_back(Arc::new(Part {
                    range: part.clone(),
                    of: of(&st),
                    asked: Instant::now(),
                    bytes: Mutex::default(),
                    come: Condvar::new(),
                    held: self.ahead.held.clone(),
                }));
            } else if st.valid.contains_range(part.clone()) {
                continue;
            }
            flying += size;
            parts.push(part);
        }
        reader.until = at;
        parts
    }

    /// Fetches a part that [`Drive::expect_next`] named.
    pub fn fetch_ahead(&self, handle: u64, range: Range<u64>) {
        let Ok(h) = self.handle(handle) else { return };
        let binding = h.file.read().binding.clone();
        self.ahead.asked.fetch_add(1, Ordering::SeqCst);
        match binding {
            Some(Binding::Share(share_file, _)) => {
                let held = {
                    let reader = h.ahead.0.lock().unwrap_or_else(PoisonError::into_inner);
                    reader.parts.iter().find(|p| p.range == range).cloned()
                };
                let Some(part) = held else { return };
                let asked = range.clone();
                let mut flying = Flying::new(&self.ahead, &range);
                let none = crate::link::InDoubt::default();
                let read = move |_: &dyn crate::share::Share| {
                    let mut buf = vec![0; (asked.end - asked.start) as usize];
                    let n = share_file.read_at(asked.start, &mut buf)?;
                    buf.truncate(n);
                    Ok(buf)
                };
                let got = self.link.call_patiently("reading ahead", &none, read);
                flying.well = got.is_ok();
                let whole = got
                    .ok()
                    .filter(|b| b.len() as u64 == range.end - range.start);
                *part.bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
                part.come.notify_all();
            }
            // A program that comes to it meanwhile fetches it itself; what is there is kept.
            Some(Binding::Cache) => {
                let missing = h.file.read().valid.gaps(range.clone());
                if missing.is_empty() {
                    return;
                }
                let mut flying = Flying::new(&self.ahead, &range);
                let mut fetch = |gap| self.fetch_for_reader(h.node, &h.file, gap).is_ok();
                flying.well = missing.into_iter().all(&mut fetch);
            }
            None => {}
        }
    }

    /// What is held of a read of a passed-through file, if all of it is and nothing changed.
    pub(super) fn held_ahead(&self, h: &Handle, offset: u64, len: usize) -> Option<Vec<u8>> {
        let parts: Vec<Arc<Part>> = {
            let mut reader = h.ahead.0.lock().unwrap_or_else(PoisonError::into_inner);
            if reader.parts.is_empty() {
                return None;
            }
            // The kernel's threads may still be a little behind.
            while reader
                .parts
                .front()
                .is_some_and(|p| p.range.end.saturating_add(PART) <= offset)
            {
                reader.parts.pop_front();
            }
            let now = of(&h.file.read());
            let good = |p: &Arc<Part>| p.of == now && p.asked.elapsed() < self.attr_life;
            if !reader.parts.iter().all(good) {
                reader.parts.clear();
                reader.until = 0;
                return None;
            }
            reader.parts.iter().cloned().collect()
        };
        let end = offset.checked_add(len as u64)?.min(h.file.read().size);
        let mut found = Vec::with_capacity(len);
        let mut at = offset;
        while at < end {
            let part = parts.iter().find(|p| p.range.contains(&at))?;
            let wait = self.stall_budget();
            let bytes = part.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let (bytes, _) = part
                .come
                .wait_timeout_while(bytes, wait, |b| b.is_none())
                .unwrap_or_else(PoisonError::into_inner);
            let bytes = bytes.as_ref()?.as_ref()?;
            let to = end.min(part.range.end);
            let from = (at - part.range.start) as usize..(to - part.range.start) as usize;
            found.extend_from_slice(bytes.get(from)?);
            at = to;
        }
        // Written meanwhile: the share knows better.
        let st = h.file.read();
        let still = parts.iter().all(|p| p.of == of(&st));
        if found.is_empty() || !still || !matches!(st.binding, Some(Binding::Share(..))) {
            return None;
        }
        self.ahead.hits.fetch_add(1, Ordering::SeqCst);
        Some(found)
    }
}
