//! Deciding whether a target is a cut of a change, and finishing it.
//!
//! Phases are barriers, so a cut is described by one number k: phases before k are whole, phase k
//! is there in any part, no later phase has begun. With V(k) the target's bytes once the phases
//! before k are applied to the base, a cut in phase k has in each byte either V(k) or what some
//! write of phase k puts there. (Byte by byte, because what tears a write, a disk's sector or a
//! server's buffer, is not ours to know.)
//!
//! For each touched leaf: put the before-images into what is there; that must hash to the base
//! leaf, so no byte outside the covered ranges is foreign. Apply all phases to it; that must hash
//! to the target leaf. Note each k that explains the covered bytes. If one k explains all leaves,
//! the target is our cut, and going on from the least such k finishes it.

use std::collections::BTreeMap;
use std::io;

use super::{LeafRecord, Outcome, RedoLog};
use crate::generation::leaf_range;
use crate::{Digest, LEAF_SIZE, Payload, ReadAt, WriteAt};

enum Verdict {
    Done,
    /// Phases before this one are whole.
    From(usize),
    Foreign(u64),
}

/// A part of one write: phase, offset inside the leaf, bytes.
type Piece = (usize, usize, Payload);

impl RedoLog {
    /// Finishes the change on `target` if that is the base, the target or a cut of this change;
    /// otherwise leaves it alone. Afterwards `target` is synced. Running it again, also after a
    /// crash in the middle of it, is harmless.
    ///
    /// # Errors
    /// The first error of `target`; [`io::ErrorKind::InvalidData`] if after all writes it does not
    /// read back as it should. The log stays good for another try.
    pub fn recover(&self, target: &dyn WriteAt) -> io::Result<Outcome> {
        match self.judge(target)? {
            Verdict::Foreign(leaf) => Ok(Outcome::Foreign { leaf }),
            Verdict::Done => {
                // What reads back whole may still be on its way to the disk.
                target.sync()?;
                Ok(Outcome::AlreadyDone)
            }
            Verdict::From(phase) => {
                target.sync()?;
                self.change.commit_from(target, phase)?;
                match self.judge(target)? {
                    Verdict::Done => Ok(Outcome::Finished),
                    Verdict::From(_) | Verdict::Foreign(_) => Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the file does not read back as the change left it",
                    )),
                }
            }
        }
    }

    fn judge(&self, target: &dyn ReadAt) -> io::Result<Verdict> {
        let (base_len, target_len) = (self.base.len, self.target.len);
        let len = target.len()?;
        // Growth shows any length on the way (a write may land without the change of length
        // before it). A cut is one step, and comes when all phases are durable.
        let ours = if target_len >= base_len {
            (base_len..=target_len).contains(&len)
        } else {
            len == base_len || len == target_len
        };
        if !ours {
            return Ok(Verdict::Foreign(len / LEAF_SIZE));
        }
        let was_cut = target_len < base_len && len == target_len;

        let pieces = self.pieces();
        let phases = self.change.phases.len();
        // possible[k]: every leaf so far is explained by a cut in phase k; k = phases: all whole.
        let mut possible = vec![true; phases + 1];
        let mut done = len == target_len;
        for leaf in &self.leaves {
            let current = self.read_leaf(target, leaf.index, len)?;
            let is_target = hash_within(&current, leaf.index, target_len) == leaf.target;
            done &= is_target;
            if was_cut {
                if is_target {
                    continue;
                }
                return Ok(Verdict::Foreign(leaf.index));
            }
            let own = pieces.get(&leaf.index).map_or(&[][..], Vec::as_slice);
            let own: Vec<_> = own.iter().map(read_piece).collect::<io::Result<_>>()?;
            let Some(explained) = self.explain(leaf, &current, &own)? else {
                return Ok(Verdict::Foreign(leaf.index));
            };
            for (possible, explained) in possible.iter_mut().zip(explained) {
                *possible &= explained;
            }
            if !possible.contains(&true) {
                return Ok(Verdict::Foreign(leaf.index));
            }
        }
        if done {
            return Ok(Verdict::Done);
        }
        Ok(Verdict::From(possible.iter().position(|p| *p).unwrap_or(0)))
    }

    /// For each k, whether a cut in phase k explains `current`; `None` if the bytes that the
    /// change does not write are neither the base's nor the zeros of growth.
    fn explain(
        &self,
        leaf: &LeafRecord,
        current: &[u8],
        pieces: &[(usize, usize, Vec<u8>)],
    ) -> io::Result<Option<Vec<bool>>> {
        let mut base = current.to_vec();
        for (_, at, bytes) in pieces {
            if let Some(part) = base.get_mut(*at..*at + bytes.len()) {
                part.fill(0);
            }
        }
        self.restore_before(leaf.index, &mut base)?;
        if hash_within(&base, leaf.index, self.base.len) != leaf.base {
            return Ok(None);
        }
        Ok(self.phases_that_explain(leaf, current, base, pieces))
    }

    /// As [`RedoLog::explain`], from the leaf's base bytes on.
    fn phases_that_explain(
        &self,
        leaf: &LeafRecord,
        current: &[u8],
        mut value: Vec<u8>,
        pieces: &[(usize, usize, Vec<u8>)],
    ) -> Option<Vec<bool>> {
        let mut explained = Vec::with_capacity(self.change.phases.len() + 1);
        let mut rest = pieces;
        let mut equal = current == value;
        for phase in 0..self.change.phases.len() {
            let mine = rest.iter().take_while(|(p, ..)| *p == phase).count();
            let (mine, later) = rest.split_at_checked(mine)?;
            rest = later;
            if mine.is_empty() {
                explained.push(equal);
                continue;
            }
            let mut strange: Vec<bool> = current.iter().zip(&value).map(|(c, v)| c != v).collect();
            for (_, at, bytes) in mine {
                let now = current.get(*at..)?.get(..bytes.len())?;
                let flags = strange.get_mut(*at..)?.get_mut(..bytes.len())?;
                for ((flag, now), ours) in flags.iter_mut().zip(now).zip(bytes) {
                    *flag &= now != ours;
                }
            }
            explained.push(!strange.contains(&true));
            for (_, at, bytes) in mine {
                value
                    .get_mut(*at..)?
                    .get_mut(..bytes.len())?
                    .copy_from_slice(bytes);
            }
            equal = current == value;
        }
        explained.push(equal);
        (hash_within(&value, leaf.index, self.target.len) == leaf.target).then_some(explained)
    }

    /// Puts the before-images that reach into leaf `index` into `value`.
    fn restore_before(&self, index: u64, value: &mut [u8]) -> io::Result<()> {
        let start = index.saturating_mul(LEAF_SIZE);
        let end = start.saturating_add(LEAF_SIZE);
        let first = self
            .before
            .partition_point(|(at, b)| at.saturating_add(b.len()) <= start);
        let own = self.before.iter().skip(first);
        for (at, bytes) in own.take_while(|(at, _)| *at < end) {
            let (to, from) = clip(*at, bytes, start, end);
            let room = value.get_mut(to..to + from.len() as usize);
            from.read_exact_at(0, room.ok_or(io::ErrorKind::InvalidData)?)?;
        }
        Ok(())
    }

    /// The writes, cut at leaf borders: leaf index -> pieces in the order of writing.
    fn pieces(&self) -> BTreeMap<u64, Vec<Piece>> {
        let mut pieces: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
        for (phase, p) in self.change.phases.iter().enumerate() {
            for (at, bytes) in p.writes.iter().filter(|(_, bytes)| !bytes.is_empty()) {
                let last = at.saturating_add(bytes.len() - 1);
                for leaf in at / LEAF_SIZE..=last / LEAF_SIZE {
                    let start = leaf * LEAF_SIZE;
                    let (to, from) = clip(*at, bytes, start, start.saturating_add(LEAF_SIZE));
                    pieces.entry(leaf).or_default().push((phase, to, from));
                }
            }
        }
        pieces
    }

    /// The leaf as it would be at the longer of the two lengths: zeros where the file has no byte
    /// yet.
    fn read_leaf(&self, target: &dyn ReadAt, index: u64, len: u64) -> io::Result<Vec<u8>> {
        let full = leaf_range(index, self.base.len.max(self.target.len));
        let present = leaf_range(index, len);
        let mut bytes = vec![0; (full.end - full.start) as usize];
        let part = bytes
            .get_mut(..(present.end - present.start) as usize)
            .ok_or(io::ErrorKind::InvalidData)?;
        target.read_exact_at(present.start, part)?;
        Ok(bytes)
    }
}

/// The part of `bytes` (at `at` in the file) inside `start..end`, and its offset there.
fn clip(at: u64, bytes: &Payload, start: u64, end: u64) -> (usize, Payload) {
    let part = bytes.slice(start.saturating_sub(at)..end.saturating_sub(at));
    // Inside a leaf.
    (at.saturating_sub(start).min(LEAF_SIZE) as usize, part)
}

fn read_piece((phase, at, bytes): &Piece) -> io::Result<(usize, usize, Vec<u8>)> {
    Ok((*phase, *at, bytes.to_vec()?))
}

/// The digest of leaf `index` in a file of `len` bytes that holds `leaf` there; zero if the file
/// has no such leaf.
fn hash_within(leaf: &[u8], index: u64, len: u64) -> Digest {
    let range = leaf_range(index, len);
    match leaf.get(..(range.end - range.start) as usize) {
        Some(part) if !part.is_empty() => *blake3::hash(part).as_bytes(),
        _ => [0; 32],
    }
}
