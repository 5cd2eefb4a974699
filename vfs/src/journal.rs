//! The journal: one durable, ordered log per drive (DESIGN 6).
//!
//! ```text
//! segment   header (64 bytes) | frame | frame | … | zeros or stale bytes
//! header    magic 8 | version u32 | crc u32 | seq u64 | first_lsn u64 | durable u64 | nonce u64 | zeros 16
//! frame     len u32 | crc u32 | lsn u64 | durable u64 | body (len bytes) | padding to 8
//! ```
//!
//! Records carry consecutive numbers (LSN, from 1), and through which number all was durable when they were
//! made. A frame's checksum covers its place and the segment's nonce, so that nothing but a record of this
//! very segment, in this life of it, reads as one. (Segments of versions 1 and 2 have neither nonce nor
//! `durable` in their frames, and seal them with the segment's number. They are read for ever.)
//!
//! Promises:
//! * [`Journal::append`] has handed the record to the operating system when it returns: it survives
//!   the death of the process. [`Journal::sync`] makes it survive power loss, one `fdatasync` for
//!   all who wait (group commit), after the cache files that hold directly written appends.
//! * Recovery yields a prefix of what was appended, at least through the last flush. A bad record
//!   that lies before a known flush is damage, not a torn tail, and is refused, never skipped: see
//!   `recovery`. What can be read of a damaged journal is read on request ([`Start::salvage`]).
//! * The first failed flush poisons the journal: nothing is accepted any more.

mod frame;
pub mod record;
mod recovery;
pub mod store;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use storage::WriteAt;

use crate::error::{Error, Result};
use frame::{FRAME, HEADER, Head, Seal};
use record::Record;
pub use recovery::{Lost, Recovered, Start};
use store::JournalStore;

/// Version of the segments written. All up to it are read; newer ones are refused, never dropped.
const VERSION: u32 = 5;
/// Largest payload of one write record; longer writes are split.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The log. All methods may be called from any thread.
pub struct Journal {
    store: Arc<dyn JournalStore>,
    segment_len: u64,
    append: Mutex<Append>,
    sync: Mutex<Sync>,
    wake: Condvar,
    lost: Vec<Lost>,
}

struct Append {
    current: Option<Arc<dyn WriteAt>>,
    /// The current segment's.
    nonce: u64,
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

/// The bytes of a write record, where they lie in the journal. They can be read as long as this is held,
/// also once the record was released.
#[derive(Clone)]
pub struct Payload {
    segment: Arc<dyn WriteAt>,
    at: u64,
}

impl Payload {
    /// Bytes that lie in `segment` from `at` on.
    #[must_use]
    pub fn new(segment: Arc<dyn WriteAt>, at: u64) -> Self {
        Self { segment, at }
    }

    /// Fills `buf` from the byte `skip` on.
    ///
    /// # Errors
    /// What the store says.
    pub fn read(&self, skip: u64, buf: &mut [u8]) -> io::Result<()> {
        self.segment.read_exact_at(self.at + skip, buf)
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload at {}", self.at)
    }
}

fn relock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data consistent at each step that can panic.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
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
        self.append_with(record, |_| ()).map(|(lsn, _, ())| lsn)
    }

    /// Appends the record of a write; its bytes can be read from the journal from now on.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_write(
        &self,
        file: u64,
        offset: u64,
        time: i64,
        data: &[u8],
    ) -> Result<(u64, Payload)> {
        let record = Record::Write {
            file,
            offset,
            time,
            data,
        };
        let (lsn, end, segment) = self.append_with(&record, |a| a.current.clone())?;
        let segment = segment.ok_or(Error::Invalid("journal has no segment"))?;
        Ok((lsn, Payload::new(segment, end - data.len() as u64)))
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
        self.append_with(record, |a| {
            a.direct.insert(id, file.clone());
        })
        .map(|(lsn, _, ())| lsn)
    }

    /// Appends, and does `then` before another can. Returns the LSN and where the record's body ends in its
    /// segment.
    fn append_with<T>(
        &self,
        record: &Record<'_>,
        then: impl FnOnce(&mut Append) -> T,
    ) -> Result<(u64, u64, T)> {
        let durable = self.check()?;
        let mut a = relock(&self.append);
        let mut frame = std::mem::take(&mut a.frame);
        let done = self.append_frame(&mut a, &mut frame, record, durable);
        a.frame = frame;
        let (lsn, end) = done?;
        let then = then(&mut a);
        Ok((lsn, end, then))
    }

    fn append_frame(
        &self,
        a: &mut Append,
        frame: &mut Vec<u8>,
        record: &Record<'_>,
        durable: u64,
    ) -> Result<(u64, u64)> {
        frame.clear();
        frame.resize(FRAME as usize, 0);
        record.encode(frame);
        let body = frame.len() as u64 - FRAME;
        let padded = (FRAME + body).next_multiple_of(8);
        if a.current.is_none() || a.pos + padded > a.cap {
            self.roll(a, padded)?;
        }
        let lsn = a.next_lsn;
        let seal = Seal {
            nonce: a.nonce,
            pos: a.pos,
            lsn,
            durable,
        };
        seal.apply(frame);
        frame.resize(padded as usize, 0);
        let Some(file) = &a.current else {
            return Err(Error::Invalid("journal has no segment"));
        };
        file.write_all_at(a.pos, frame)
            .map_err(|e| failed("writing the journal", e))?;
        let end = a.pos + FRAME + body;
        a.pos += padded;
        a.bytes += padded;
        a.next_lsn += 1;
        Ok((lsn, end))
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
            nonce: nonce(),
        };
        if let Err(e) = file.write_all_at(0, &head.encode()) {
            let _ = self.store.remove(seq);
            return Err(failed(context, e));
        }
        a.full.extend(a.current.replace(file));
        a.names = true;
        a.segments.push_back((seq, a.next_lsn));
        (a.nonce, a.pos, a.cap) = (head.nonce, HEADER, cap);
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

    /// Whether anything is accepted, and through which LSN all is durable.
    fn check(&self) -> Result<u64> {
        let s = relock(&self.sync);
        match &s.poison {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(s.durable),
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
        let said = if lsn == through + 1 { lsn } else { through };
        s.marked = s.marked.max(said);
        Ok(())
    }

    /// As [`Journal::mark`], for a journal at rest: should a power cut and damage to the last records
    /// come together, it is seen that they had been flushed. (Records that follow say it by the way.)
    ///
    /// # Errors
    /// As [`Journal::mark`].
    pub fn mark_at_rest(&self) -> Result<()> {
        let (last, empty) = {
            let a = relock(&self.append);
            (a.next_lsn - 1, a.segments.is_empty())
        };
        if empty || last > self.durable() {
            return Ok(());
        }
        self.mark()
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

/// Random enough that no two segments share one, on this machine or another.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()).max(1)
}

#[cfg(test)]
mod tests;
