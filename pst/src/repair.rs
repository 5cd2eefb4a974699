//! Rebuilding the allocation maps of a file, and nothing else ([MS-PST] 2.6.1.3.7).
//!
//! What is used follows from the two B-trees; AMap, PMap, FMap and FPMap pages, the density list and
//! ROOT's fields about them (ibFileEof, ibAMapLast, cbAMapFree, cbPMapFree, fAMapValid) are written
//! anew from that, in the phases of an edit: every cut leaves a valid file. Where the trees are
//! damaged the maps cannot be known, and the repair is refused.
//!
//! What it replaces is kept in a [`MapBackup`] first. Putting that back is possible as long as nobody
//! changed the file since, also after a repair that was cut short.
//!
//! The backup's format (numbers little-endian):
//!
//! ```text
//! offset  size  field
//! 0       8     magic "PSTMAPS1"
//! 8       8     length of the file before the repair, in bytes
//! 16      8     length after it
//! 24      4     number of pieces
//! 28            pieces, ascending, each:
//!         8       file offset
//!         2       n, bytes in the piece (at most 512)
//!         1       k, states of the piece that the repair or its undoing may leave, besides the old
//!         n       the bytes before the repair
//!         16 k    the first 16 bytes of the BLAKE3 digest of each of those states
//! last    32    BLAKE3 of everything before
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use storage::{Phase, ReadAt, WriteSet};

use crate::check::{Code, Level, Options, Progress, Report, Severity, check_file};
use crate::ndb::bytes::{slice, u8_at, u16_at, u32_at, u64_at};
use crate::ndb::{Header, Ndb, NdbTransaction};
use crate::{PstError, Result};

const MAGIC: &[u8; 8] = b"PSTMAPS1";
const HEAD: usize = 28;
const DIGEST: usize = 32;
/// Bytes of a state's digest.
const STATE: usize = 16;
/// A write tears between sectors: pieces do not cross them.
const PIECE: u64 = 512;
/// The largest backup that is read: the maps of 200 GB.
pub const MAX_BACKUP: u64 = 1 << 30;

/// The findings that a repair puts right.
pub const REPAIRED: [Code; 12] = [
    Code::HeaderTorn,
    Code::MapsFlag,
    Code::MapsInvalid,
    Code::FileEof,
    Code::AMapLast,
    Code::AMapPage,
    Code::MapPage,
    Code::UsedButFree,
    Code::Leaked,
    Code::AMapFree,
    Code::DList,
    Code::DListStale,
];

/// The findings with which the maps cannot be known: used space may be that of what cannot be found.
const IN_DOUBT: [Code; 9] = [
    Code::NbtPage,
    Code::BbtPage,
    Code::BtreeSharedPage,
    Code::BtreeOrder,
    Code::BlockMissing,
    Code::BlockAlignment,
    Code::Outside,
    Code::Overlap,
    Code::BtreeEmptyPage,
];

fn io(offset: u64) -> impl Fn(std::io::Error) -> PstError {
    move |source| PstError::Io { offset, source }
}

/// A repair that was worked out; nothing is written yet.
#[derive(Debug)]
pub struct MapRepair {
    /// What to write, in phases. Empty where the maps are right.
    pub write_set: WriteSet,
    /// What it replaces: to be durable before the first write.
    pub backup: MapBackup,
    /// What the check found before.
    pub before: Report,
}

impl MapRepair {
    /// Works out the repair of a file. Costs a structural check: it reads every block.
    ///
    /// # Errors
    /// [`PstError::Refused`] if the trees are damaged, or the format is only read; errors of reading.
    pub fn plan(ndb: &Arc<Ndb>, progress: Option<Progress<'_>>) -> Result<Self> {
        ndb.format().require_writable()?;
        let options = Options {
            level: Level::Structure,
            progress,
            ..Options::default()
        };
        let before = check_file(ndb, &options);
        if let Some(code) = IN_DOUBT.iter().find(|c| before.counts.contains_key(c)) {
            let first = before.findings.iter().find(|f| f.code == code.name());
            let detail = first.map_or(String::new(), ToString::to_string);
            return Err(PstError::Refused(format!(
                "what is free cannot be known where the B-trees are damaged: {detail}"
            )));
        }
        let base = ndb.storage();
        let wrong = REPAIRED.iter().any(|c| before.counts.contains_key(c));
        let write_set = if wrong {
            NdbTransaction::begin_recomputed(Arc::clone(ndb))?.finish()?
        } else {
            WriteSet::empty(base.len().map_err(io(0))?)
        };
        let backup = MapBackup::of(base, &write_set)?;
        Ok(Self {
            write_set,
            backup,
            before,
        })
    }

    /// Whether the maps are right as they are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.write_set.is_empty()
    }
}

/// A part of the file that a repair replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    old: Vec<u8>,
    /// Digests of what else may be found there.
    states: BTreeSet<[u8; STATE]>,
}

/// What a repair replaces, and what may be found in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapBackup {
    base_len: u64,
    target_len: u64,
    pieces: Vec<Piece>,
}

fn state(bytes: &[u8]) -> [u8; STATE] {
    let mut out = [0; STATE];
    let digest = blake3::hash(bytes);
    if let Some(head) = digest.as_bytes().get(..STATE) {
        out.copy_from_slice(head);
    }
    out
}

/// A header as it is, but with its maps marked invalid.
fn marked_invalid(raw: &[u8]) -> Option<Vec<u8>> {
    let mut header = Header::parse(raw).ok()?;
    header.amap_valid = 0;
    Some(header.encode())
}

impl MapBackup {
    /// Keeps what `set` replaces in `base`.
    fn of(base: &Arc<dyn ReadAt>, set: &WriteSet) -> Result<Self> {
        let mut pieces: BTreeMap<u64, Piece> = BTreeMap::new();
        let mut headers = Vec::new();
        let first = set.phases.iter().flat_map(|p| &p.writes).find(|w| w.0 == 0);
        if let Some((_, header)) = first {
            let mut old = vec![0; usize::try_from(header.len()).unwrap_or_default()];
            base.read_exact_at(0, &mut old).map_err(io(0))?;
            headers.push(old);
        }
        for (offset, payload) in set.phases.iter().flat_map(|p| &p.writes) {
            let bytes = payload.to_vec().map_err(io(*offset))?;
            if *offset == 0 {
                headers.push(bytes.clone());
            }
            keep(base, set.base_len, &mut pieces, *offset, &bytes)?;
        }
        // Undoing begins by marking the maps of whatever header it finds invalid.
        for header in headers.iter().filter_map(|h| marked_invalid(h)) {
            keep(base, set.base_len, &mut pieces, 0, &header)?;
        }
        Ok(Self {
            base_len: set.base_len,
            target_len: set.target_len,
            pieces: pieces.into_values().collect(),
        })
    }

    /// How many bytes of the file it keeps.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.pieces.iter().map(|p| p.old.len() as u64).sum()
    }

    /// The backup as bytes, in the format above.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.base_len.to_le_bytes());
        out.extend_from_slice(&self.target_len.to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        for piece in &self.pieces {
            out.extend_from_slice(&piece.offset.to_le_bytes());
            out.extend_from_slice(&(piece.old.len() as u16).to_le_bytes());
            out.push(piece.states.len() as u8);
            out.extend_from_slice(&piece.old);
            piece.states.iter().for_each(|s| out.extend_from_slice(s));
        }
        let digest = blake3::hash(&out);
        out.extend_from_slice(digest.as_bytes());
        out
    }

    /// Reads a backup.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] for what is none, or not whole: then the repair never began.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |detail: &str| PstError::corrupt("map backup", 0, detail);
        if !bytes.starts_with(MAGIC) {
            return Err(bad("it does not begin with \"PSTMAPS1\""));
        }
        let (body, digest) = bytes
            .split_last_chunk::<DIGEST>()
            .ok_or_else(|| bad("too short"))?;
        if blake3::hash(body) != *digest {
            return Err(bad("it is not whole: the repair it belongs to never began"));
        }
        let mut pieces = Vec::new();
        let (mut at, mut last) = (HEAD, 0);
        for _ in 0..u32_at(body, 24, "pieces")? {
            let offset = u64_at(body, at, "offset")?;
            let n = usize::from(u16_at(body, at + 8, "n")?);
            let k = usize::from(u8_at(body, at + 10, "k")?);
            if offset < last || n == 0 || n as u64 > PIECE {
                return Err(bad("a piece is out of order"));
            }
            last = offset.saturating_add(n as u64);
            let old = slice(body, at + 11, n, "old")?.to_vec();
            let states = slice(body, at + 11 + n, STATE * k, "states")?;
            pieces.push(Piece {
                offset,
                old,
                states: states.as_chunks::<STATE>().0.iter().copied().collect(),
            });
            at += 11 + n + STATE * k;
        }
        if at != body.len() {
            return Err(bad("bytes follow the last piece"));
        }
        Ok(Self {
            base_len: u64_at(body, 8, "length before")?,
            target_len: u64_at(body, 16, "length after")?,
            pieces,
        })
    }

    /// What to write to put back what the repair replaced, in phases: every cut leaves a valid file, and
    /// can be continued. The maps that come back are as wrong as they were.
    ///
    /// # Errors
    /// [`PstError::Refused`] if the file is not as the repair, a cut of it, or a cut of its undoing left
    /// it; errors of reading.
    pub fn restore(&self, file: &dyn ReadAt) -> Result<WriteSet> {
        let refused = |why: String| {
            PstError::Refused(format!(
                "{why}: the file was changed since the repair, and its maps with it"
            ))
        };
        let len = file.len().map_err(io(0))?;
        if len != self.base_len && len != self.target_len {
            return Err(refused(format!("it has {len} bytes")));
        }
        let mut head = Vec::new();
        let mut maps = Phase::new("maps");
        let mut changed = len != self.base_len;
        for piece in &self.pieces {
            let mut now = vec![0; piece.old.len()];
            file.read_exact_at(piece.offset, &mut now)
                .map_err(io(piece.offset))?;
            if now != piece.old {
                changed = true;
                if !piece.states.contains(&state(&now)) {
                    return Err(refused(format!("other bytes lie at {:#x}", piece.offset)));
                }
            }
            if piece.offset < 2 * PIECE {
                head.extend_from_slice(&piece.old);
            } else {
                maps.writes.push((piece.offset, piece.old.clone().into()));
            }
        }
        if !changed {
            return Ok(WriteSet::empty(len));
        }
        let mut now = vec![0; head.len()];
        file.read_exact_at(0, &mut now).map_err(io(0))?;
        // A torn header is marked invalid by itself, and cannot be encoded again.
        let invalid = marked_invalid(&now).unwrap_or(now);
        let mut first = Phase::new("invalid");
        first.writes.push((0, invalid.into()));
        let mut last = Phase::new("header");
        last.writes.push((0, head.into()));
        Ok(WriteSet {
            base_len: len,
            // The length comes back at the end, when everything else is durable.
            target_len: self.base_len,
            phases: vec![first, maps, last],
        })
    }
}

/// Keeps the old bytes of a write, piece by piece, and a digest of each new one. What lies behind the
/// old end of the file is cut off by its length.
fn keep(
    base: &Arc<dyn ReadAt>,
    base_len: u64,
    pieces: &mut BTreeMap<u64, Piece>,
    offset: u64,
    bytes: &[u8],
) -> Result<()> {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() && at < base_len {
        let n = (PIECE - at % PIECE)
            .min(rest.len() as u64)
            .min(base_len - at);
        let Some((new, next)) = rest.split_at_checked(n as usize) else {
            break;
        };
        let piece = match pieces.entry(at) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(v) => {
                let mut old = vec![0; new.len()];
                base.read_exact_at(at, &mut old).map_err(io(at))?;
                v.insert(Piece {
                    offset: at,
                    old,
                    states: BTreeSet::new(),
                })
            }
        };
        if piece.old.len() != new.len() {
            return Err(PstError::corrupt("map backup", at, "writes of two sizes"));
        }
        piece.states.insert(state(new));
        at += n;
        rest = next;
    }
    Ok(())
}

/// The errors of a report that a repair of the maps does not put right.
#[must_use]
pub fn remaining(report: &Report) -> u64 {
    let others = report
        .counts
        .iter()
        .filter(|(c, _)| c.severity() == Severity::Error && !REPAIRED.contains(c));
    others.map(|(_, n)| n).sum()
}
