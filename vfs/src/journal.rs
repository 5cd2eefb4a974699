//! The journal: one durable, ordered log per drive (DESIGN 6).
//!
//! ```text
//! segment   header (64 bytes) | frame | frame | … | zeros or stale bytes
//! header    magic 8 | version u32 | crc u32 | seq u64 | first_lsn u64 | durable u64 | zeros 24
//! frame     len u32 | crc u32 | lsn u64 | body (len bytes) | padding to 8
//! ```
//!
//! Records carry consecutive numbers (LSN, from 1). A frame's checksum covers the segment's number,
//! so that bytes left over from a segment's earlier life never read as records.
//!
//! Promises:
//! * [`Journal::append`] has handed the record to the operating system when it returns: it survives
//!   the death of the process. [`Journal::sync`] makes it survive power loss, one `fdatasync` for
//!   all who wait (group commit), after the cache files that hold directly written appends.
//! * Recovery yields a prefix of what was appended, at least through the last flush. A bad record
//!   that lies before a known flush is damage, not a torn tail, and is refused, never skipped.
//! * The first failed flush poisons the journal: nothing is accepted any more.

mod frame;
pub mod record;
pub mod store;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use storage::WriteAt;

use crate::error::{Error, Result};
use frame::{FRAME, Frames, HEADER, Head, seal};
use record::Record;
use store::JournalStore;

/// Version of the segments written. All up to it are read; newer ones are refused, never dropped.
const VERSION: u32 = 2;
/// Largest payload of one write record; longer writes are split.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The log. All methods may be called from any thread.
pub struct Journal {
    store: Arc<dyn JournalStore>,
    segment_len: u64,
    append: Mutex<Append>,
    sync: Mutex<Sync>,
    wake: Condvar,
}

struct Append {
    current: Option<Arc<dyn WriteAt>>,
    current_seq: u64,
    /// The last number used.
    seq: u64,
    pos: u64,
    cap: u64,
    next_lsn: u64,
    /// Full segments not yet flushed, oldest first.
    full: Vec<Arc<dyn WriteAt>>,
    /// A segment was created and its directory not yet flushed.
    names: bool,
    /// Cache files with directly written appends, to be flushed before the journal.
    direct: BTreeMap<u64, Arc<dyn WriteAt>>,
    /// (seq, first LSN) of all segments, oldest first.
    segments: VecDeque<(u64, u64)>,
    bytes: u64,
    frame: Vec<u8>,
}

struct Sync {
    durable: u64,
    /// Durable, and the journal says so.
    marked: u64,
    running: bool,
    poison: Option<String>,
}

fn relock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data consistent at each step that can panic.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens the journal in `store`, handing every record after `after` in order to `replay`.
    ///
    /// `replay` is told whether the record is known to have been flushed. If it is not, `replay` may
    /// find that bytes written beside the journal did not survive, and answer `false`: the journal
    /// ends before that record.
    ///
    /// `after` is the LSN below which the caller needs nothing (0 for all). `known` is an LSN the
    /// caller knows to be durable (from its metadata): damage up to it is an error.
    ///
    /// # Errors
    /// [`Error::Damaged`]; what the store or `replay` says.
    pub fn open(
        store: Arc<dyn JournalStore>,
        segment_len: u64,
        after: u64,
        known: u64,
        mut replay: impl FnMut(u64, Record<'_>, bool) -> Result<bool>,
    ) -> Result<Self> {
        let seqs = store
            .list()
            .map_err(|e| Error::from_io("listing the journal", e))?;
        let heads = read_heads(&*store, &seqs)?;
        // What was released may be back after a power cut, with gaps: nothing there is needed.
        let needed = heads.iter().rposition(|h| h.first <= after + 1);
        let (old, heads) = heads.split_at(needed.unwrap_or(0));
        for head in old {
            store
                .remove(head.seq)
                .map_err(|e| Error::from_io("dropping released segments", e))?;
        }
        // Of what is known, what stays to say so: a head behind a gap goes with its segment.
        let mut marked = known;
        let mut known = heads.iter().map(|h| h.durable).fold(known, u64::max);
        // First what is known to be durable: marks lie behind what they speak of.
        let mut next: Option<u64> = None;
        let mut fit = Vec::new();
        for head in heads {
            // The first may begin earlier than what is needed, never later.
            if !next.map_or(head.first <= after + 1, |n| head.first == n) {
                break;
            }
            let bytes = read_all(&*open_segment(&*store, head.seq)?, head.seq)?;
            let frames = Frames::new(&bytes, head);
            next = Some(frames.fold(head.first, |lsn, (_, body)| {
                if let Ok(Record::Synced { through }) = Record::decode(body) {
                    known = known.max(through);
                }
                lsn + 1
            }));
            fit.push(head);
        }
        let mut kept = VecDeque::new();
        let mut next: Option<u64> = None;
        'segments: for head in fit {
            let file = open_segment(&*store, head.seq)?;
            let bytes = read_all(&*file, head.seq)?;
            let mut lsn = head.first;
            kept.push_back((head.seq, head.first));
            marked = marked.max(head.durable);
            for (pos, body) in Frames::new(&bytes, head) {
                let record = Record::decode(body).map_err(|what| Error::Damaged {
                    file: store::name_of(head.seq),
                    offset: pos,
                    what,
                })?;
                if let Record::Synced { through } = record {
                    marked = marked.max(through);
                }
                if lsn > after && !replay(lsn, record, lsn <= known)? {
                    // Here the log ends, also for whoever reads it next.
                    file.write_all_at(pos, &[0; FRAME as usize])
                        .map_err(|e| Error::from_io("ending the journal", e))?;
                    next = Some(lsn);
                    break 'segments;
                }
                lsn += 1;
            }
            next = Some(lsn);
        }
        let next_lsn = next.unwrap_or(0).max(after + 1);
        if next_lsn <= known {
            return Err(Error::Damaged {
                file: kept
                    .back()
                    .map_or_else(|| "journal".to_owned(), |k| store::name_of(k.0)),
                offset: 0,
                what: format!(
                    "records end at {next_lsn} although all through {known} had been flushed"
                ),
            });
        }
        // Records behind a gap were never flushed (their flush would have flushed the gap too).
        for head in heads.get(kept.len()..).unwrap_or(&[]) {
            store
                .remove(head.seq)
                .map_err(|e| Error::from_io("dropping a torn tail", e))?;
        }
        // What was read may sit in the page cache only: it becomes the base of everything, so it
        // is made durable before anything builds upon it.
        for (seq, _) in &kept {
            open_segment(&*store, *seq)?
                .sync()
                .map_err(|e| Error::from_io("flushing the journal", e))?;
        }
        store
            .sync_names()
            .map_err(|e| Error::from_io("flushing the journal's directory", e))?;
        let seq = seqs.iter().copied().max().unwrap_or(0);
        let bytes = kept.len() as u64 * segment_len;
        Ok(Self {
            store,
            segment_len: segment_len.max(HEADER + FRAME + 64),
            append: Mutex::new(Append {
                current: None,
                current_seq: 0,
                seq,
                pos: 0,
                cap: 0,
                next_lsn,
                full: Vec::new(),
                names: false,
                direct: BTreeMap::new(),
                segments: kept,
                bytes,
                frame: Vec::new(),
            }),
            sync: Mutex::new(Sync {
                durable: next_lsn - 1,
                marked,
                running: false,
                poison: None,
            }),
            wake: Condvar::new(),
        })
    }

    /// Numbers continue after `lsn`: for a journal whose segments were all released.
    pub(crate) fn continue_after(&self, lsn: u64) {
        let mut a = relock(&self.append);
        if a.next_lsn <= lsn {
            a.next_lsn = lsn + 1;
            drop(a);
            let mut s = relock(&self.sync);
            s.durable = s.durable.max(lsn);
        }
    }

    /// Appends one record and returns its LSN.
    ///
    /// # Errors
    /// [`Error::Poisoned`], [`Error::NoSpace`], what the store says. On error nothing was appended.
    pub fn append(&self, record: &Record<'_>) -> Result<u64> {
        self.check()?;
        let mut a = relock(&self.append);
        let mut frame = std::mem::take(&mut a.frame);
        let done = self.append_frame(&mut a, &mut frame, record);
        a.frame = frame;
        done
    }

    /// Like [`Journal::append`] for bytes written directly to a cache file: the file is flushed
    /// before the journal says that the record is durable.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_direct(
        &self,
        record: &Record<'_>,
        id: u64,
        file: &Arc<dyn WriteAt>,
    ) -> Result<u64> {
        self.check()?;
        let mut a = relock(&self.append);
        let mut frame = std::mem::take(&mut a.frame);
        let done = self.append_frame(&mut a, &mut frame, record);
        a.frame = frame;
        if done.is_ok() {
            a.direct.insert(id, file.clone());
        }
        done
    }

    fn append_frame(
        &self,
        a: &mut Append,
        frame: &mut Vec<u8>,
        record: &Record<'_>,
    ) -> Result<u64> {
        frame.clear();
        frame.resize(FRAME as usize, 0);
        record.encode(frame);
        let body = frame.len() as u64 - FRAME;
        let padded = (FRAME + body).next_multiple_of(8);
        if a.current.is_none() || a.pos + padded > a.cap {
            self.roll(a, padded)?;
        }
        let lsn = a.next_lsn;
        seal(frame, a.current_seq, lsn);
        frame.resize(padded as usize, 0);
        let Some(file) = &a.current else {
            return Err(Error::Invalid("journal has no segment"));
        };
        file.write_all_at(a.pos, frame)
            .map_err(|e| failed("writing the journal", e))?;
        a.pos += padded;
        a.bytes += padded;
        a.next_lsn += 1;
        Ok(lsn)
    }

    fn roll(&self, a: &mut Append, need: u64) -> Result<()> {
        let cap = self.segment_len.max(HEADER + need);
        let seq = a.seq + 1;
        // A number is never used twice, also where what was begun cannot be removed again.
        a.seq = seq;
        let context = "adding a segment to the journal";
        let file = self
            .store
            .create(seq, cap)
            .map_err(|e| failed(context, e))?;
        let head = Head {
            version: VERSION,
            seq,
            first: a.next_lsn,
            durable: relock(&self.sync).durable,
        };
        if let Err(e) = file.write_all_at(0, &head.encode()) {
            let _ = self.store.remove(seq);
            return Err(failed(context, e));
        }
        a.full.extend(a.current.replace(file));
        a.names = true;
        a.segments.push_back((seq, a.next_lsn));
        (a.current_seq, a.pos, a.cap) = (seq, HEADER, cap);
        Ok(())
    }

    /// Makes every record through `lsn` durable. Several callers share one flush.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when this or an earlier flush failed.
    pub fn sync(&self, lsn: u64) -> Result<()> {
        let mut s = relock(&self.sync);
        loop {
            if let Some(why) = &s.poison {
                return Err(Error::Poisoned(why.clone()));
            }
            if s.durable >= lsn {
                return Ok(());
            }
            if !s.running {
                break;
            }
            s = self.wake.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        s.running = true;
        drop(s);
        let (target, done) = self.flush();
        let mut s = relock(&self.sync);
        s.running = false;
        let answer = match done {
            Ok(()) => {
                s.durable = s.durable.max(target);
                if target >= lsn {
                    Ok(())
                } else {
                    Err(Error::Invalid("flush of an unknown LSN"))
                }
            }
            Err(e) => {
                let why = e.to_string();
                tracing::error!(error = why, "a flush of the journal failed: no more writes");
                s.poison = Some(why.clone());
                Err(Error::Poisoned(why))
            }
        };
        drop(s);
        self.wake.notify_all();
        answer
    }

    /// Flushes what is there now. No lock is held meanwhile.
    fn flush(&self) -> (u64, io::Result<()>) {
        let mut a = relock(&self.append);
        let target = a.next_lsn - 1;
        let direct = std::mem::take(&mut a.direct);
        let mut segments = std::mem::take(&mut a.full);
        segments.extend(a.current.clone());
        let names = std::mem::take(&mut a.names);
        drop(a);
        let run = || {
            for file in direct.values() {
                file.sync()?;
            }
            for segment in &segments {
                segment.sync()?;
            }
            if names {
                self.store.sync_names()
            } else {
                Ok(())
            }
        };
        (target, run())
    }

    fn check(&self) -> Result<()> {
        match &relock(&self.sync).poison {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Refuses everything from now on: something that the journal's promises rest on failed.
    pub fn poison(&self, why: &str) {
        relock(&self.sync)
            .poison
            .get_or_insert_with(|| why.to_owned());
    }

    /// Why the journal is poisoned, if it is.
    #[must_use]
    pub fn poisoned(&self) -> Option<String> {
        relock(&self.sync).poison.clone()
    }

    /// LSN of the last record appended; 0 if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        relock(&self.append).next_lsn - 1
    }

    /// LSN through which all is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        relock(&self.sync).durable
    }

    /// Bytes held by records not yet released.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        relock(&self.append).bytes
    }

    /// Removes segments that hold only records through `lsn`. The current segment is closed first
    /// if it is all that is left, so that an idle journal shrinks to nothing.
    ///
    /// # Errors
    /// What the store says.
    pub fn release(&self, lsn: u64) -> Result<()> {
        let mut gone = Vec::new();
        {
            let mut a = relock(&self.append);
            if a.next_lsn == lsn + 1 && a.full.is_empty() && a.direct.is_empty() && !a.names {
                a.current = None;
                gone.extend(a.segments.drain(..).map(|s| s.0));
                a.bytes = 0;
            } else {
                while let Some(&(_, next_first)) = a.segments.get(1) {
                    if next_first > lsn + 1 {
                        break;
                    }
                    gone.extend(a.segments.pop_front().map(|s| s.0));
                    a.bytes = a.bytes.saturating_sub(self.segment_len);
                }
            }
        }
        for seq in gone {
            self.store
                .remove(seq)
                .map_err(|e| Error::from_io("releasing the journal", e))?;
        }
        Ok(())
    }

    /// Makes the journal say, durably, that all that is durable is so: before a cache file is
    /// touched in any way that a replay could take for a loss.
    ///
    /// # Errors
    /// As [`Journal::append`] and [`Journal::sync`].
    pub fn mark(&self) -> Result<()> {
        let (through, marked) = {
            let s = relock(&self.sync);
            (s.durable, s.marked)
        };
        if marked >= through {
            return Ok(());
        }
        let lsn = self.append(&Record::Synced { through })?;
        self.sync(lsn)?;
        let mut s = relock(&self.sync);
        // The mark itself needs none: nothing but the journal holds it.
        s.marked = s.marked.max(through);
        Ok(())
    }

    /// LSN through which the journal says that all is durable.
    #[must_use]
    pub fn marked(&self) -> u64 {
        relock(&self.sync).marked
    }

    /// Whether bytes were written directly to this cache file that no flush has covered yet.
    #[must_use]
    pub fn awaits(&self, id: u64) -> bool {
        relock(&self.append).direct.contains_key(&id)
    }

    /// Prepares the next segment ahead of need.
    pub fn prepare(&self) {
        if let Err(e) = self.store.prepare(self.segment_len) {
            tracing::debug!(error = %e, "no spare journal segment");
        }
    }
}

/// An append that failed. Whatever the disk says, it must not pass for the share's answer about a
/// name, as "refused" or "not there" would.
fn failed(context: &str, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::from_io(context, e),
        _ => Error::Io {
            context: context.to_owned(),
            source: e,
        },
    }
}

fn open_segment(store: &dyn JournalStore, seq: u64) -> Result<Arc<dyn WriteAt>> {
    store
        .open(seq)
        .map_err(|e| Error::from_io(store::name_of(seq), e))
}

/// Segments with a good header, by number. One without held nothing flushed: its header is
/// written before its first record and flushed with it.
fn read_heads(store: &dyn JournalStore, seqs: &[u64]) -> Result<Vec<Head>> {
    let mut heads = Vec::new();
    for &seq in seqs {
        let file = open_segment(store, seq)?;
        let mut bytes = [0; HEADER as usize];
        let read = file.read_exact_at(0, &mut bytes);
        match (read, Head::decode(&bytes, seq)) {
            (Ok(()), Some(head)) if head.version > VERSION => {
                return Err(Error::Newer {
                    file: store::name_of(seq),
                    found: head.version,
                    known: VERSION,
                });
            }
            (Ok(()), Some(head)) => heads.push(head),
            (Err(e), _) if e.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(Error::from_io(store::name_of(seq), e));
            }
            _ => store
                .remove(seq)
                .map_err(|e| Error::from_io(store::name_of(seq), e))?,
        }
    }
    heads.sort_by_key(|h| h.seq);
    Ok(heads)
}

fn read_all(file: &dyn WriteAt, seq: u64) -> Result<Vec<u8>> {
    let run = || {
        let len = file.len()?.min(1 << 30);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(0, &mut bytes)?;
        Ok(bytes)
    };
    run().map_err(|e| Error::from_io(store::name_of(seq), e))
}

#[cfg(test)]
mod tests;
