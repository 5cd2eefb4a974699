//! Reading the journal back.
//!
//! The hard question is what a bad record is. A power cut leaves any part of what was not flushed, so a
//! bad record with good ones behind it may be the torn end of the log, which is dropped: nobody was promised
//! it. A bad record that had been flushed is damage, and to cut the log there would silently drop what
//! follows, which was promised. These tell:
//!
//! * any record, wherever it lies, that says that all through a later number was durable, as does a
//!   segment's header, and what the caller knows (its metadata);
//! * where the system has not been down since ([`Start::unbroken`]), anything at all behind the bad record:
//!   what was handed to the system is there.
//!
//! What no record speaks of is the last group that was flushed, if the system went down before anything
//! else was written (the drive writes a mark when it rests).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use storage::WriteAt;

use super::frame::{self, FRAME, Frame, Frames, HEADER, Head};
use super::record::Record;
use super::store::{self, JournalStore};
use super::{Append, Journal, Payload, Sync, VERSION};
use crate::error::{Error, Result};

/// How a journal is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// LSN below which the caller needs nothing (0 for all).
    pub after: u64,
    /// An LSN that the caller knows to be durable (from its metadata): damage up to it is an error.
    pub known: u64,
    /// The system has not been down since the journal was written: nothing that was appended can be
    /// missing.
    pub unbroken: bool,
    /// Damage is stepped over and noted ([`Journal::lost`]) instead of being refused. For looking into a
    /// journal, never for going on with it.
    pub salvage: bool,
}

/// What is known of a record that is replayed.
#[derive(Clone, Copy)]
pub struct Recovered<'a> {
    /// It is known to have been flushed.
    pub sure: bool,
    segment: &'a Arc<dyn WriteAt>,
    body_end: u64,
}

impl Recovered<'_> {
    /// Where the bytes of a write of this length lie, which end its record.
    #[must_use]
    pub fn payload(&self, len: u64) -> Payload {
        Payload::new(self.segment.clone(), self.body_end - len)
    }
}

/// Records that cannot be read although they had been kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// File in the journal's directory.
    pub file: String,
    /// Where it begins there.
    pub offset: u64,
    /// LSN of the first.
    pub first: u64,
    /// LSN of the last; `None`: nobody knows how many there were.
    pub last: Option<u64>,
    /// What the first seems to have been: a write of (file's node, offset, length). Not to be relied on.
    pub write: Option<(u64, u64, u64)>,
}

/// What a segment's header says.
enum Begin {
    Good(Head),
    /// Something was written there, and it is not that any more.
    Bad(u64),
}

/// Where no record is that should be.
enum End<'a> {
    /// The log ends.
    Log,
    /// Something is lost; what follows, if anything, is in the next segment.
    Segment,
    /// Something is lost before this record.
    Gap(Frame<'a>),
}

struct Reading {
    store: Arc<dyn JournalStore>,
    start: Start,
    /// Durable, by everything that says so.
    known: u64,
    /// The same, by what stays to say so.
    marked: u64,
    lost: Vec<Lost>,
    /// Of the next record, once the first was met.
    next: Option<u64>,
    kept: VecDeque<(u64, u64)>,
}

impl Journal {
    /// Opens the journal in `store`, handing every record that is needed in order to `replay`.
    ///
    /// `replay` is told whether the record is known to have been flushed ([`Recovered`]). If it is not, `replay` may
    /// find that bytes written beside the journal did not survive, and answer `false`: the journal
    /// ends before that record.
    ///
    /// # Errors
    /// [`Error::Damaged`]; what the store or `replay` says.
    pub fn open(
        store: Arc<dyn JournalStore>,
        segment_len: u64,
        start: Start,
        mut replay: impl FnMut(u64, Record<'_>, Recovered<'_>) -> Result<bool>,
    ) -> Result<Self> {
        let seqs = store
            .list()
            .map_err(|e| Error::from_io("listing the journal", e))?;
        let mut reading = Reading {
            store: store.clone(),
            start,
            known: start.known,
            marked: start.known,
            lost: Vec::new(),
            next: None,
            kept: VecDeque::new(),
        };
        let heads = reading.heads(&seqs)?;
        reading.learn(&heads)?;
        reading.replay(&heads, &mut replay)?;
        reading.settle(&heads)?;
        let Reading {
            kept,
            next,
            marked,
            lost,
            ..
        } = reading;
        let next_lsn = next.unwrap_or(0).max(start.after + 1);
        let bytes = kept.len() as u64 * segment_len;
        Ok(Self {
            store,
            segment_len: segment_len.max(HEADER + FRAME + 64),
            append: Mutex::new(Append {
                current: None,
                nonce: 0,
                seq: seqs.iter().copied().max().unwrap_or(0),
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
            lost,
        })
    }

    /// What could not be read, where it was opened to save what can be saved.
    #[must_use]
    pub fn lost(&self) -> &[Lost] {
        &self.lost
    }
}

impl Reading {
    /// The segments that are needed, in order. The others go.
    fn heads(&mut self, seqs: &[u64]) -> Result<Vec<Head>> {
        let (mut heads, mut bad) = (Vec::new(), Vec::new());
        for &seq in seqs {
            match self.head(seq)? {
                Some(Begin::Good(head)) => heads.push(head),
                Some(Begin::Bad(seq)) => bad.push(seq),
                None => self.remove(seq, "dropping an empty segment")?,
            }
        }
        heads.sort_by_key(|h| h.seq);
        // What was released may be back after a power cut, with gaps: nothing there is needed.
        let needed = heads.iter().rposition(|h| h.first <= self.start.after + 1);
        let heads_needed = heads.split_off(needed.unwrap_or(0));
        for head in heads {
            self.remove(head.seq, "dropping released segments")?;
        }
        for seq in bad {
            if needed.is_some() && heads_needed.first().is_some_and(|h| seq < h.seq) {
                self.remove(seq, "dropping released segments")?;
                continue;
            }
            self.damaged(Lost {
                file: store::name_of(seq),
                offset: 0,
                first: 0,
                last: None,
                write: None,
            })?;
        }
        Ok(heads_needed)
    }

    /// `None`: it holds nothing that was flushed. Its header is written before its first record, in one
    /// sector, and flushed with it.
    fn head(&self, seq: u64) -> Result<Option<Begin>> {
        let file = self.open(seq)?;
        let mut bytes = [0; HEADER as usize];
        match file.read_exact_at(0, &mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(Error::from_io(store::name_of(seq), e)),
            Ok(()) => {}
        }
        let found = Head::decode(&bytes, seq);
        match found.or_else(|| self.start.salvage.then(|| Head::mend(bytes, seq))?) {
            Some(head) if head.version > VERSION => Err(Error::Newer {
                file: store::name_of(seq),
                found: head.version,
                known: VERSION,
            }),
            Some(head) => Ok(Some(Begin::Good(head))),
            // Begun, and no record written: as a power cut may leave it.
            None if self
                .read_all(seq)?
                .iter()
                .skip(bytes.len())
                .all(|b| *b == 0) =>
            {
                Ok(None)
            }
            None if bytes.iter().all(|b| *b == 0) => Ok(None),
            None => Ok(Some(Begin::Bad(seq))),
        }
    }

    /// What all records say of what was durable, also those behind a gap: marks lie behind what they
    /// speak of.
    fn learn(&mut self, heads: &[Head]) -> Result<()> {
        for head in heads {
            self.known = self.known.max(head.durable);
            let bytes = self.read_all(head.seq)?;
            let mut frames = Frames::new(&bytes, head);
            while let Some(frame) = frames.next().or_else(|| frames.look_past()) {
                self.known = self.known.max(frame.durable);
                if let Ok(Record::Synced { through }) = Record::decode(frame.body) {
                    self.known = self.known.max(through);
                }
            }
        }
        Ok(())
    }

    fn replay(
        &mut self,
        heads: &[Head],
        replay: &mut impl FnMut(u64, Record<'_>, Recovered<'_>) -> Result<bool>,
    ) -> Result<()> {
        for (at, head) in heads.iter().enumerate() {
            // The first may begin earlier than what is needed, never later.
            let fits = self
                .next
                .map_or(head.first <= self.start.after + 1, |n| head.first == n);
            if !fits {
                if !self.start.salvage {
                    break;
                }
                let first = self.next.unwrap_or(self.start.after + 1);
                // A segment of an end that was cut off before holds nothing new.
                if head.first < first {
                    continue;
                }
                self.lost.push(Lost {
                    file: store::name_of(head.seq),
                    offset: 0,
                    first,
                    last: Some(head.first - 1),
                    write: None,
                });
            }
            self.kept.push_back((head.seq, head.first));
            self.marked = self.marked.max(head.durable);
            let ended = self.segment(head, heads.get(at + 1), replay)?;
            if ended {
                break;
            }
        }
        Ok(())
    }

    /// One segment. Returns whether the log ends in it.
    fn segment(
        &mut self,
        head: &Head,
        later: Option<&Head>,
        replay: &mut impl FnMut(u64, Record<'_>, Recovered<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let segment = self.open(head.seq)?;
        let bytes = self.read_all(head.seq)?;
        let mut frames = Frames::new(&bytes, head);
        loop {
            let (lsn, pos) = (frames.lsn, frames.pos);
            let frame = match frames.next() {
                Some(frame) => frame,
                None => {
                    self.next = Some(lsn);
                    if later.is_some_and(|next| next.first == lsn) {
                        return Ok(false);
                    }
                    let at = (lsn, pos);
                    match self.end(head, later, &mut frames, &bytes, at)? {
                        End::Log => return Ok(true),
                        End::Segment => return Ok(false),
                        End::Gap(beyond) => beyond,
                    }
                }
            };
            let record = match Record::decode(frame.body) {
                Ok(record) => record,
                Err(_) if self.start.salvage => {
                    self.lose(head, &frame);
                    continue;
                }
                Err(what) => {
                    return Err(Error::Damaged {
                        file: store::name_of(head.seq),
                        offset: frame.pos,
                        what,
                    });
                }
            };
            let mut said = frame.durable;
            if let Record::Synced { through } = record {
                said = said.max(through);
            }
            self.next = Some(frame.lsn + 1);
            let how = Recovered {
                sure: frame.lsn <= self.known,
                segment: &segment,
                body_end: frame.body_end,
            };
            if frame.lsn > self.start.after && !replay(frame.lsn, record, how)? {
                if self.start.salvage {
                    self.lose(head, &frame);
                    continue;
                }
                // Here the log ends, also for whoever reads it next.
                self.next = Some(frame.lsn);
                self.erase(head.seq, frame.pos, bytes.len() as u64)?;
                return Ok(true);
            }
            // Not what a record says that goes with the end of the log.
            self.marked = self.marked.max(said);
        }
    }

    /// No record `lsn` is at `pos`, and no segment begins with it: the end of the log, or damage.
    fn end<'a>(
        &mut self,
        head: &Head,
        later: Option<&Head>,
        frames: &mut Frames<'a>,
        bytes: &'a [u8],
        (lsn, pos): (u64, u64),
    ) -> Result<End<'a>> {
        let beyond = frames.look_past();
        // What is not needed was released, and may be back in part.
        let needed = lsn.max(self.start.after + 1);
        if let Some(beyond) = beyond.filter(|b| b.lsn <= needed) {
            return Ok(End::Gap(beyond));
        }
        let follows = beyond.map(|f| f.lsn).or(later.map(|h| h.first));
        let follows = follows.filter(|f| *f > needed);
        if needed <= self.known || (self.start.unbroken && follows.is_some()) {
            self.damaged(Lost {
                file: store::name_of(head.seq),
                offset: pos,
                first: needed,
                last: Some(follows.map_or(self.known, |f| f - 1)),
                write: frame::guess(bytes, pos),
            })?;
            return Ok(match beyond {
                Some(beyond) => End::Gap(beyond),
                None => {
                    self.next = follows.or(Some(self.known + 1));
                    End::Segment
                }
            });
        }
        if beyond.is_some() && !self.start.salvage {
            // A torn end, with pieces: they must not pass for damage at the next opening.
            self.erase(head.seq, pos, bytes.len() as u64)?;
        }
        Ok(End::Log)
    }

    fn lose(&mut self, head: &Head, frame: &Frame<'_>) {
        self.lost.push(Lost {
            file: store::name_of(head.seq),
            offset: frame.pos,
            first: frame.lsn,
            last: Some(frame.lsn),
            write: None,
        });
    }

    /// Damage is refused, or noted where it is to be stepped over.
    fn damaged(&mut self, lost: Lost) -> Result<()> {
        if self.start.salvage {
            self.lost.push(lost);
            return Ok(());
        }
        let what = match lost.last {
            Some(last) => format!(
                "the record of change {} cannot be read, although changes through {last} had been kept",
                lost.first
            ),
            None => "the head of a segment of the journal cannot be read".to_owned(),
        };
        Err(Error::Damaged {
            file: lost.file,
            offset: lost.offset,
            what,
        })
    }

    /// All is read. What is behind the end of the log goes, and the rest is made durable.
    fn settle(&mut self, heads: &[Head]) -> Result<()> {
        let next = self.next.unwrap_or(0).max(self.start.after + 1);
        if next <= self.known {
            let file = self.kept.back().map(|k| store::name_of(k.0));
            self.damaged(Lost {
                file: file.unwrap_or_else(|| "journal".to_owned()),
                offset: 0,
                first: next,
                last: Some(self.known),
                write: None,
            })?;
        }
        if self.start.salvage {
            return Ok(());
        }
        // Records behind a gap were never flushed (their flush would have flushed the gap too).
        for head in heads.get(self.kept.len()..).unwrap_or(&[]) {
            self.remove(head.seq, "dropping a torn tail")?;
        }
        // What was read may sit in the page cache only: it becomes the base of everything, so it
        // is made durable before anything builds upon it.
        for (seq, _) in &self.kept {
            self.open(*seq)?
                .sync()
                .map_err(|e| Error::from_io("flushing the journal", e))?;
        }
        self.store
            .sync_names()
            .map_err(|e| Error::from_io("flushing the journal's directory", e))
    }

    /// Zeros from here on: what a segment holds behind the end of the log.
    fn erase(&self, seq: u64, from: u64, to: u64) -> Result<()> {
        const STEP: u64 = 1 << 16;
        let file = self.open(seq)?;
        let zeros = vec![0; STEP as usize];
        let mut at = from;
        while at < to {
            let n = (to - at).min(STEP);
            file.write_all_at(at, zeros.get(..n as usize).unwrap_or(&zeros))
                .map_err(|e| Error::from_io("ending the journal", e))?;
            at += n;
        }
        Ok(())
    }

    fn open(&self, seq: u64) -> Result<Arc<dyn WriteAt>> {
        self.store
            .open(seq)
            .map_err(|e| Error::from_io(store::name_of(seq), e))
    }

    fn remove(&self, seq: u64, context: &str) -> Result<()> {
        self.store
            .remove(seq)
            .map_err(|e| Error::from_io(context, e))
    }

    fn read_all(&self, seq: u64) -> Result<Vec<u8>> {
        let file = self.open(seq)?;
        let run = || {
            let len = file.len()?.min(1 << 30);
            let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            file.read_exact_at(0, &mut bytes)?;
            Ok(bytes)
        };
        run().map_err(|e| Error::from_io(store::name_of(seq), e))
    }
}
