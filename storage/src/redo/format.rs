//! The bytes of a redo log. All integers are little-endian.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "pstsredo"
//!      8     1  format version, 1
//!      9     1  binary logarithm of the leaf size, 16
//!     10     2  zero
//!     12     4  M, bytes of meta
//!     16     8  length of this file, checksum included
//!     24     8  base generation: length
//!     32    32  base generation: root
//!     64     8  target generation: length
//!     72    32  target generation: root
//!    104     4  L, number of leaf records
//!    108     4  B, number of before-images
//!    112     4  P, number of phases
//!    116     4  zero
//!    120     M  meta
//!         72*L  leaf record: index (8), base digest (32), target digest (32);
//!               ascending; digest zero = the file has no such leaf
//!               B x before-image: offset (8), size n (8), n bytes; ascending, disjoint
//!               P x phase: name size n (2), n bytes UTF-8, number of writes W (4),
//!                   W x write: offset (8), size n (8), n bytes; in the order of writing
//!    end-32 32  BLAKE3 over everything before
//! ```
//!
//! The checksum proves that the log is whole, not that its writer was honest: a decoded log is
//! also checked to agree with itself (leaf records and before-images are exactly those that its
//! writes call for, and no write passes the target length), so recovery can rely on that.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use super::{
    LeafRecord, MAX_EXTENTS, MAX_LOG_LEN, MAX_META, MAX_PHASES, RedoError, RedoLog, io_at, limit,
    touched_leaves,
};
use crate::{
    Digest, FileStorage, Generation, LEAF_SIZE, Payload, Phase, RangeSet, ReadAt, WriteSet,
};

const MAGIC: &[u8; 8] = b"pstsredo";
const VERSION: u8 = 1;
const HEADER: usize = 120;
const CHECKSUM: u64 = 32;
/// Bytes read at once.
const WINDOW: u64 = 1 << 16;

/// Writes a log's bytes and hashes them.
struct Writer {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    at: u64,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn extent(&mut self, at: u64, bytes: &Payload) -> io::Result<()> {
        self.put(&at.to_le_bytes())?;
        self.put(&bytes.len().to_le_bytes())?;
        bytes.pieces(|_, part| self.put(part))
    }
}

impl RedoLog {
    /// Length of the log file in bytes.
    ///
    /// # Errors
    /// [`RedoError::TooLarge`] for a log that could not be read back.
    fn encoded_len(&self, before: &RangeSet) -> Result<u64, RedoError> {
        let mut len = HEADER as u64 + CHECKSUM;
        let mut extents = 0;
        let mut add = |n: u64| len = len.saturating_add(n);
        add(self.meta.len() as u64);
        add(72 * self.leaves.len() as u64);
        for r in before.iter() {
            extents += 1;
            add(16 + r.end - r.start);
        }
        for phase in &self.change.phases {
            limit("phase name", phase.name.len() as u64, MAX_PHASES as u64)?;
            add(6 + phase.name.len() as u64);
            for (_, bytes) in &phase.writes {
                extents += 1;
                add(16u64.saturating_add(bytes.len()));
            }
        }
        limit("before-images and writes", extents, MAX_EXTENTS)?;
        limit("log length", len, MAX_LOG_LEN)?;
        Ok(len)
    }

    /// Writes the log to `file` (at `path`, for errors) with the bytes of `base` in `before` as
    /// before-images; from then on finds those in the file.
    ///
    /// # Errors
    /// [`RedoError::TooLarge`] before anything is written; [`RedoError::Io`], [`RedoError::Base`].
    pub(super) fn write(
        &mut self,
        before: &RangeSet,
        base: &dyn ReadAt,
        file: &File,
        path: &Path,
    ) -> Result<(), RedoError> {
        let len = self.encoded_len(before)?;
        let io = |e| io_at(path)(e);
        let mut w = Writer {
            out: BufWriter::with_capacity(WINDOW as usize, file.try_clone().map_err(io)?),
            hasher: blake3::Hasher::new(),
            at: 0,
        };
        self.write_head(&mut w, len, before.count()).map_err(io)?;
        let from: Arc<dyn ReadAt> = Arc::new(FileStorage::from(file.try_clone().map_err(io)?));
        let mut buf = vec![0; WINDOW as usize];
        for r in before.iter() {
            w.put(&r.start.to_le_bytes()).map_err(io)?;
            w.put(&(r.end - r.start).to_le_bytes()).map_err(io)?;
            let stored = Payload::stored(Arc::clone(&from), w.at, r.end - r.start);
            self.before.push((r.start, stored));
            let mut at = r.start;
            while at < r.end {
                let n = (r.end - at).min(WINDOW);
                let part = buf.get_mut(..n as usize).unwrap_or_default();
                base.read_exact_at(at, part).map_err(RedoError::Base)?;
                w.put(part).map_err(io)?;
                at += n;
            }
        }
        self.write_phases(&mut w).map_err(io)
    }

    fn write_head(&self, w: &mut Writer, len: u64, before: usize) -> io::Result<()> {
        // All counts are below `MAX_EXTENTS` or were limited before.
        let count = |n: usize| (n as u32).to_le_bytes();
        w.put(MAGIC)?;
        w.put(&[VERSION, LEAF_SIZE.trailing_zeros() as u8, 0, 0])?;
        w.put(&count(self.meta.len()))?;
        w.put(&len.to_le_bytes())?;
        for generation in [&self.base, &self.target] {
            w.put(&generation.len.to_le_bytes())?;
            w.put(&generation.root)?;
        }
        for n in [self.leaves.len(), before, self.change.phases.len(), 0] {
            w.put(&count(n))?;
        }
        w.put(&self.meta)?;
        for leaf in &self.leaves {
            w.put(&leaf.index.to_le_bytes())?;
            w.put(&leaf.base)?;
            w.put(&leaf.target)?;
        }
        Ok(())
    }

    fn write_phases(&self, w: &mut Writer) -> io::Result<()> {
        let count = |n: usize| (n as u32).to_le_bytes();
        for phase in &self.change.phases {
            w.put(&(phase.name.len() as u16).to_le_bytes())?;
            w.put(phase.name.as_bytes())?;
            w.put(&count(phase.writes.len()))?;
            for (at, bytes) in &phase.writes {
                w.extent(*at, bytes)?;
            }
        }
        let checksum = *w.hasher.finalize().as_bytes();
        w.put(&checksum)?;
        w.out.flush()
    }

    /// Reads a log file of `len` bytes; before-images and writes stay in it.
    pub(super) fn read(file: Arc<dyn ReadAt>, len: u64, path: &Path) -> Result<Self, RedoError> {
        let mut r = Reader {
            file,
            path,
            at: 0,
            end: len,
            window: Vec::new(),
            window_at: 0,
        };
        r.expect(MAGIC, "magic")?;
        // The version decides what the rest means, the checksum's place included.
        match r.u8("version")? {
            VERSION => {}
            version => return Err(RedoError::Version(version)),
        }
        r.checksum()?;
        r.end = len - CHECKSUM;
        r.expect(&[LEAF_SIZE.trailing_zeros() as u8], "leaf size")?;
        r.expect(&[0; 2], "reserved bytes")?;
        let meta_len = r.u32("meta size")?;
        limit("meta", u64::from(meta_len), MAX_META as u64)?;
        r.expect(&len.to_le_bytes(), "file length")?;
        let base = Generation {
            len: r.u64("base length")?,
            root: r.digest("base root")?,
        };
        let target = Generation {
            len: r.u64("target length")?,
            root: r.digest("target root")?,
        };
        let leaf_records = r.u32("number of leaf records")?;
        let before_images = r.u32("number of before-images")?;
        let phase_count = r.u32("number of phases")?;
        limit("phases", u64::from(phase_count), MAX_PHASES as u64)?;
        r.expect(&[0; 4], "reserved bytes")?;
        let mut meta = vec![0; meta_len as usize];
        r.fill(&mut meta, "meta")?;

        // Every leaf record takes bytes of a bounded file, and nothing is reserved ahead.
        let leaves_at = r.at;
        let mut leaves = Vec::new();
        for _ in 0..leaf_records {
            leaves.push(LeafRecord {
                index: r.u64("leaf index")?,
                base: r.digest("leaf base digest")?,
                target: r.digest("leaf target digest")?,
            });
        }
        let before_at = r.at;
        let mut extents = u64::from(before_images);
        let counted = "before-images and writes";
        limit(counted, extents, MAX_EXTENTS)?;
        let mut before = Vec::new();
        for _ in 0..before_images {
            before.push(r.extent("before-image")?);
        }
        let phases_at = r.at;
        let mut phases = Vec::new();
        for _ in 0..phase_count {
            let at = r.at;
            let name_len = usize::from(r.u16("phase name size")?);
            limit("phase name", name_len as u64, MAX_PHASES as u64)?;
            let mut name = vec![0; name_len];
            r.fill(&mut name, "phase name")?;
            let name = String::from_utf8(name).map_err(|_| RedoError::Damaged {
                offset: at,
                field: "phase name",
            })?;
            let mut writes = Vec::new();
            let count = r.u32("number of writes")?;
            extents += u64::from(count);
            limit(counted, extents, MAX_EXTENTS)?;
            for _ in 0..count {
                writes.push(r.extent("write")?);
            }
            phases.push(Phase { name, writes });
        }
        if r.at != r.end {
            return Err(RedoError::Damaged {
                offset: r.at,
                field: "bytes after the last phase",
            });
        }

        let change = WriteSet {
            base_len: base.len,
            target_len: target.len,
            phases,
        };
        if change.validate().is_err() {
            return Err(RedoError::Damaged {
                offset: phases_at,
                field: "write past the target",
            });
        }
        let covered = change.covered();
        let wanted = covered
            .within(0..base.len)
            .map(|r| (r.start, r.end - r.start));
        if !wanted.eq(before.iter().map(|(at, bytes)| (*at, bytes.len()))) {
            return Err(RedoError::Damaged {
                offset: before_at,
                field: "before-images",
            });
        }
        if !touched_leaves(&change, &covered).eq(leaves.iter().map(|leaf| leaf.index)) {
            return Err(RedoError::Damaged {
                offset: leaves_at,
                field: "leaf records",
            });
        }
        Ok(Self {
            meta,
            base,
            target,
            leaves,
            before,
            change,
        })
    }
}

/// Takes fields off the front of a log, knowing where it is.
struct Reader<'a> {
    file: Arc<dyn ReadAt>,
    path: &'a Path,
    at: u64,
    /// Where the fields end.
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Reader<'_> {
    /// Whether all but the last 32 bytes hash to those.
    fn checksum(&mut self) -> Result<(), RedoError> {
        let damaged = RedoError::Damaged {
            offset: self.end.saturating_sub(CHECKSUM),
            field: "checksum",
        };
        if self.end < HEADER as u64 + CHECKSUM {
            return Err(damaged);
        }
        let body = Payload::stored(Arc::clone(&self.file), 0, self.end - CHECKSUM);
        let mut hasher = blake3::Hasher::new();
        let hashed = body.pieces(|_, part| {
            hasher.update(part);
            Ok(())
        });
        hashed.map_err(io_at(self.path))?;
        let mut stored = [0; CHECKSUM as usize];
        self.file
            .read_exact_at(self.end - CHECKSUM, &mut stored)
            .map_err(io_at(self.path))?;
        if *hasher.finalize().as_bytes() == stored {
            Ok(())
        } else {
            Err(damaged)
        }
    }

    fn skip(&mut self, n: u64, field: &'static str) -> Result<u64, RedoError> {
        let offset = self.at;
        let end = offset.checked_add(n).filter(|end| *end <= self.end);
        self.at = end.ok_or(RedoError::Damaged { offset, field })?;
        Ok(offset)
    }

    fn fill(&mut self, out: &mut [u8], field: &'static str) -> Result<(), RedoError> {
        let at = self.skip(out.len() as u64, field)?;
        let have = self.window_at..self.window_at + self.window.len() as u64;
        if at < have.start || self.at > have.end {
            let n = (self.end - at).min(WINDOW.max(out.len() as u64));
            self.window.resize(n as usize, 0);
            self.window_at = at;
            self.file
                .read_exact_at(at, &mut self.window)
                .map_err(io_at(self.path))?;
        }
        let from = (at - self.window_at) as usize;
        match self.window.get(from..from + out.len()) {
            Some(part) => out.copy_from_slice(part),
            None => return Err(RedoError::Damaged { offset: at, field }),
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RedoError> {
        let mut out = [0; N];
        self.fill(&mut out, field)?;
        Ok(out)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, RedoError> {
        self.array(field).map(u8::from_le_bytes)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, RedoError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, RedoError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, RedoError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn digest(&mut self, field: &'static str) -> Result<Digest, RedoError> {
        self.array(field)
    }

    fn expect(&mut self, bytes: &[u8], field: &'static str) -> Result<(), RedoError> {
        let offset = self.at;
        let mut found = vec![0; bytes.len()];
        self.fill(&mut found, field)?;
        if found == bytes {
            Ok(())
        } else {
            Err(RedoError::Damaged { offset, field })
        }
    }

    fn extent(&mut self, field: &'static str) -> Result<(u64, Payload), RedoError> {
        let at = self.u64(field)?;
        let n = self.u64(field)?;
        let from = self.skip(n, field)?;
        Ok((at, Payload::stored(Arc::clone(&self.file), from, n)))
    }
}
