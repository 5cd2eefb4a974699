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

use super::{
    LeafRecord, MAX_LOG_LEN, MAX_META, MAX_PHASES, RedoError, RedoLog, limit, touched_leaves,
};
use crate::{Digest, Generation, LEAF_SIZE, Phase, WriteSet};

const MAGIC: &[u8; 8] = b"pstsredo";
const VERSION: u8 = 1;
const HEADER: usize = 120;
const CHECKSUM: usize = 32;

impl RedoLog {
    /// The bytes of the log file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, RedoError> {
        let count = |field, n: usize| {
            u32::try_from(n).map_err(|_| RedoError::TooLarge {
                field,
                value: n as u64,
                limit: u64::from(u32::MAX),
            })
        };
        let mut body = Vec::new();
        body.extend_from_slice(&self.meta);
        for leaf in &self.leaves {
            body.extend_from_slice(&leaf.index.to_le_bytes());
            body.extend_from_slice(&leaf.base);
            body.extend_from_slice(&leaf.target);
        }
        let extent = |body: &mut Vec<u8>, at: u64, bytes: &[u8]| {
            body.extend_from_slice(&at.to_le_bytes());
            body.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            body.extend_from_slice(bytes);
        };
        for (at, bytes) in &self.before {
            extent(&mut body, *at, bytes);
        }
        for phase in &self.change.phases {
            limit("phase name", phase.name.len() as u64, MAX_PHASES as u64)?;
            body.extend_from_slice(&(phase.name.len() as u16).to_le_bytes());
            body.extend_from_slice(phase.name.as_bytes());
            body.extend_from_slice(&count("writes of a phase", phase.writes.len())?.to_le_bytes());
            for (at, bytes) in &phase.writes {
                extent(&mut body, *at, bytes);
            }
        }
        let len = (HEADER + body.len() + CHECKSUM) as u64;
        limit("log length", len, MAX_LOG_LEN)?;

        let mut out = Vec::with_capacity(HEADER + body.len() + CHECKSUM);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, LEAF_SIZE.trailing_zeros() as u8, 0, 0]);
        out.extend_from_slice(&count("meta", self.meta.len())?.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        for generation in [&self.base, &self.target] {
            out.extend_from_slice(&generation.len.to_le_bytes());
            out.extend_from_slice(&generation.root);
        }
        for (field, n) in [
            ("leaf records", self.leaves.len()),
            ("before-images", self.before.len()),
            ("phases", self.change.phases.len()),
        ] {
            out.extend_from_slice(&count(field, n)?.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        out.append(&mut body);
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        Ok(out)
    }

    /// Reads a log file.
    pub(super) fn decode(file: &[u8]) -> Result<Self, RedoError> {
        let mut r = Reader { rest: file, at: 0 };
        if r.take(8, "magic")? != MAGIC {
            return Err(RedoError::Damaged {
                offset: 0,
                field: "magic",
            });
        }
        // The version decides what the rest means, the checksum's place included.
        match r.u8("version")? {
            VERSION => {}
            other => return Err(RedoError::Version(other)),
        }
        let summed = file
            .len()
            .checked_sub(CHECKSUM)
            .and_then(|at| file.split_at_checked(at));
        let (body, checksum) = summed.ok_or(RedoError::Damaged {
            offset: file.len() as u64,
            field: "checksum",
        })?;
        if blake3::hash(body).as_bytes() != checksum {
            return Err(RedoError::Damaged {
                offset: body.len() as u64,
                field: "checksum",
            });
        }
        let mut r = Reader { rest: body, at: 0 };
        r.take(9, "magic and version")?;
        r.expect(&[LEAF_SIZE.trailing_zeros() as u8], "leaf size")?;
        r.expect(&[0; 2], "reserved bytes")?;
        let meta_len = r.u32("meta size")? as usize;
        limit("meta", meta_len as u64, MAX_META as u64)?;
        r.expect(&(file.len() as u64).to_le_bytes(), "file length")?;
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
        let meta = r.take(meta_len, "meta")?.to_vec();

        // Counts need no bound of their own: every element takes bytes of a bounded file, and
        // nothing is reserved ahead.
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
            let name = str::from_utf8(r.take(name_len, "phase name")?)
                .map_err(|_| RedoError::Damaged {
                    offset: at,
                    field: "phase name",
                })?
                .to_owned();
            let mut writes = Vec::new();
            for _ in 0..r.u32("number of writes")? {
                writes.push(r.extent("write")?);
            }
            phases.push(Phase { name, writes });
        }
        if !r.rest.is_empty() {
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
        if !wanted.eq(before.iter().map(|(at, bytes)| (*at, bytes.len() as u64))) {
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
    rest: &'a [u8],
    at: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], RedoError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(RedoError::Damaged {
            offset: self.at,
            field,
        })?;
        self.rest = rest;
        self.at += n as u64;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RedoError> {
        let offset = self.at;
        self.take(N, field)?
            .try_into()
            .map_err(|_| RedoError::Damaged { offset, field })
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
        if self.take(bytes.len(), field)? == bytes {
            Ok(())
        } else {
            Err(RedoError::Damaged { offset, field })
        }
    }

    fn extent(&mut self, field: &'static str) -> Result<(u64, Vec<u8>), RedoError> {
        let offset = self.at;
        let at = self.u64(field)?;
        let n =
            usize::try_from(self.u64(field)?).map_err(|_| RedoError::Damaged { offset, field })?;
        Ok((at, self.take(n, field)?.to_vec()))
    }
}
