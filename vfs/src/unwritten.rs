//! Journaled bytes that are not in the cache file yet: `Overlay` use (c) of DESIGN 3. They are read from the
//! journal: what waits takes no memory but for its places.
//!
//! Every extent knows the LSN of its record, so that a checkpoint takes only what is durable, and
//! drops only what it wrote. A truncation is kept as a `cut`: bytes of the cache file at or past
//! it count as zeros until the checkpoint has really cut the file.

use std::collections::BTreeMap;
use std::io;

use storage::{ReadAt, WriteAt};

use crate::journal::Payload;

/// Most bytes that a checkpoint writes at once.
const RUN: u64 = 1 << 20;

#[derive(Debug, Clone)]
struct Extent {
    payload: Payload,
    /// Where in the payload it begins.
    start: u64,
    len: u64,
    lsn: u64,
}

/// The overlay of one file.
#[derive(Debug, Default)]
pub struct Unwritten {
    extents: BTreeMap<u64, Extent>,
    cut: Option<(u64, u64)>,
    bytes: u64,
}

/// What a checkpoint writes: taken under the file's lock, written without it.
#[derive(Debug, Default)]
pub struct Batch {
    /// New end of the valid part of the cache file, and the LSN of the truncation.
    pub cut: Option<(u64, u64)>,
    extents: Vec<(u64, Extent)>,
}

impl Batch {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cut.is_none() && self.extents.is_empty()
    }

    /// Copies the bytes to the cache file, in ascending order; what adjoins goes at once.
    ///
    /// # Errors
    /// What the journal or the cache file says.
    pub fn write_to(&self, file: &dyn WriteAt) -> io::Result<()> {
        let (mut run, mut from) = (Vec::new(), 0);
        for (at, e) in &self.extents {
            let have = run.len() as u64;
            if have > 0 && (from + have != *at || have + e.len > RUN) {
                file.write_all_at(from, &run)?;
                run.clear();
            }
            if run.is_empty() {
                from = *at;
            }
            let have = run.len();
            run.resize(have + e.len as usize, 0);
            e.payload
                .read(e.start, run.get_mut(have..).unwrap_or_default())?;
        }
        if run.is_empty() {
            return Ok(());
        }
        file.write_all_at(from, &run)
    }
}

impl Unwritten {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether reads may go to the cache file alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && self.cut.is_none()
    }

    /// Whether a cut waits for the checkpoint, or extents lie at or past `at`.
    #[must_use]
    pub fn reaches(&self, at: u64) -> bool {
        self.cut.is_some()
            || self
                .extents
                .iter()
                .next_back()
                .is_some_and(|(s, e)| s + e.len > at)
    }

    fn clear_range(&mut self, start: u64, end: u64) {
        // The only extent that begins before `start` and may reach into the range.
        if let Some((&at, e)) = self.extents.range_mut(..start).next_back() {
            let stop = at + e.len;
            if stop > start {
                let keep = start - at;
                let tail = (stop > end).then(|| {
                    let skip = end - at;
                    Extent {
                        start: e.start + skip,
                        len: e.len - skip,
                        ..e.clone()
                    }
                });
                self.bytes -= e.len - keep;
                e.len = keep;
                if let Some(tail) = tail {
                    self.bytes += tail.len;
                    self.extents.insert(end, tail);
                }
            }
        }
        while let Some((&at, _)) = self.extents.range(start..end).next() {
            let Some(e) = self.extents.remove(&at) else {
                break;
            };
            self.bytes -= e.len;
            let stop = at + e.len;
            if stop > end {
                let skip = end - at;
                let tail = Extent {
                    start: e.start + skip,
                    len: e.len - skip,
                    ..e
                };
                self.bytes += tail.len;
                self.extents.insert(end, tail);
            }
        }
    }

    /// Lays `len` bytes over the file, which the journal holds.
    pub fn write(&mut self, offset: u64, len: u64, payload: Payload, lsn: u64) {
        if len == 0 {
            return;
        }
        self.clear_range(offset, offset + len);
        self.bytes += len;
        let extent = Extent {
            payload,
            start: 0,
            len,
            lsn,
        };
        self.extents.insert(offset, extent);
    }

    /// Everything at and past `size` is gone.
    pub fn truncate(&mut self, size: u64, lsn: u64) {
        self.clear_range(size, u64::MAX);
        let cut = self.cut.map_or(size, |(c, _)| c.min(size));
        self.cut = Some((cut, lsn));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Fills `buf` from the overlay over `base`; past the base's end are zeros.
    pub fn read(&self, base: &dyn ReadAt, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let from = self
            .extents
            .range(..=offset)
            .next_back()
            .map_or(offset, |(&s, _)| s);
        let mut at = offset;
        for (&start, e) in self.extents.range(from..end) {
            let stop = start + e.len;
            if stop <= at {
                continue;
            }
            if start > at {
                self.read_base(base, at, slice(buf, offset, at, start))?;
                at = start;
            }
            let upto = stop.min(end);
            e.payload
                .read(e.start + (at - start), slice(buf, offset, at, upto))?;
            at = upto;
        }
        if at < end {
            self.read_base(base, at, slice(buf, offset, at, end))?;
        }
        Ok(())
    }

    fn read_base(&self, base: &dyn ReadAt, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let cut = self.cut.map_or(u64::MAX, |c| c.0);
        let real = usize::try_from(cut.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let (from_file, zeros) = buf.split_at_mut_checked(real).unwrap_or_default();
        let mut done = 0;
        while let Some(rest) = from_file.get_mut(done..).filter(|r| !r.is_empty()) {
            match base.read_at(offset + done as u64, rest)? {
                0 => {
                    rest.fill(0);
                    break;
                }
                n => done += n,
            }
        }
        zeros.fill(0);
        Ok(())
    }

    /// All that is durable through `lsn`.
    #[must_use]
    pub fn batch(&self, lsn: u64) -> Batch {
        let extents = self
            .extents
            .iter()
            .filter(|(_, e)| e.lsn <= lsn)
            .map(|(&at, e)| (at, e.clone()));
        // A cut that is not durable keeps masking; extents below it may be written meanwhile.
        Batch {
            cut: self.cut.filter(|c| c.1 <= lsn),
            extents: extents.collect(),
        }
    }

    /// The batch is durable in the cache file: drops what of it still lies here.
    pub fn written(&mut self, batch: &Batch) {
        if batch.cut.is_some() && self.cut == batch.cut {
            self.cut = None;
        }
        // A later truncation still masks the cache file from its cut on: what lies behind it must
        // go on being read from here.
        let mask = self.cut.map_or(u64::MAX, |c| c.0);
        for (at, e) in batch.extents.iter().filter(|(at, e)| at + e.len <= mask) {
            // Overwritten or cut meanwhile: the remains are kept, they are written next time.
            let same = self
                .extents
                .get(at)
                .is_some_and(|x| (x.lsn, x.start, x.len) == (e.lsn, e.start, e.len));
            if same {
                self.extents.remove(at);
                self.bytes -= e.len;
            }
        }
    }
}

fn slice(buf: &mut [u8], base: u64, from: u64, to: u64) -> &mut [u8] {
    buf.get_mut((from - base) as usize..(to - base) as usize)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use storage::{MemStorage, WriteAt};

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Begin,
        Apply,
        Finish,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u64..100, prop::collection::vec(1u8.., 1..40)).prop_map(|(o, d)| Op::Write(o, d)),
            2 => (0u64..120).prop_map(Op::Truncate),
            1 => Just(Op::Begin),
            1 => Just(Op::Apply),
            1 => Just(Op::Finish),
        ]
    }

    proptest! {
        /// Against a plain vector, with checkpoints that overlap later writes and truncations.
        #[test]
        fn reads_equal_a_vector(ops in prop::collection::vec(op(), 1..60)) {
            let base = MemStorage::new();
            let mut over = Unwritten::default();
            let mut model: Vec<u8> = Vec::new();
            let mut batch: Option<Batch> = None;
            let mut lsn = 0;
            for op in ops {
                lsn += 1;
                match op {
                    Op::Write(o, d) => {
                        let payload = Payload::new(Arc::new(MemStorage::from(d.clone())), 0);
                        over.write(o, d.len() as u64, payload, lsn);
                        let end = o as usize + d.len();
                        if model.len() < end { model.resize(end, 0); }
                        model[o as usize..end].copy_from_slice(&d);
                    }
                    Op::Truncate(n) => {
                        over.truncate(n, lsn);
                        model.resize(n as usize, 0);
                    }
                    Op::Begin => if batch.is_none() { batch = Some(over.batch(lsn.max(2) - 2)); },
                    Op::Apply => if let Some(b) = &batch {
                        if let Some((c, _)) = b.cut && base.len().unwrap() > c {
                            base.set_len(c).unwrap();
                        }
                        b.write_to(&base).unwrap();
                    },
                    Op::Finish => if let Some(b) = batch.take() {
                        if let Some((c, _)) = b.cut && base.len().unwrap() > c {
                            base.set_len(c).unwrap();
                        }
                        b.write_to(&base).unwrap();
                        over.written(&b);
                    },
                }
                let mut got = vec![9; model.len()];
                over.read(&base, 0, &mut got).unwrap();
                prop_assert_eq!(&got, &model);
                let sum: u64 = over.extents.values().map(|e| e.len).sum();
                prop_assert_eq!(sum, over.bytes());
            }
        }
    }
}
