//! The overlay: a base that is only read, replaced bytes in memory, and a length of its own.
//!
//! It promises that the base is never written, that a read sees exactly what a file would hold
//! after the same writes and length changes, and that cost follows what was written.

use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::{Phase, RangeSet, ReadAt, WriteAt, WriteSet};

/// An extent is not extended in place past this many bytes, so that cutting one stays cheap.
const EXTENT_LIMIT: usize = 1 << 20;

/// The largest run of zeros put into one write of [`Overlay::to_write_set`].
const ZERO_RUN: u64 = 1 << 20;

/// A base storage with replaced bytes over it. Writes go to memory; the base is never touched.
///
/// Whoever owns the base must leave it unchanged for as long as the overlay is in use.
#[derive(Debug)]
pub struct Overlay<B: ReadAt> {
    base: B,
    base_len: u64,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Replaced bytes: disjoint, non-empty extents by offset.
    extents: BTreeMap<u64, Vec<u8>>,
    /// Every position below `len` that the base does not answer for.
    dirty: RangeSet,
    /// Current length.
    len: u64,
    /// Only base bytes below this show through: the least length since the beginning.
    visible: u64,
}

impl<B: ReadAt> Overlay<B> {
    /// An overlay that reads as `base` does now.
    ///
    /// # Errors
    /// If the length of the base cannot be read.
    pub fn new(base: B) -> io::Result<Self> {
        let base_len = base.len()?;
        let state = State {
            extents: BTreeMap::new(),
            dirty: RangeSet::new(),
            len: base_len,
            visible: base_len,
        };
        Ok(Self {
            base,
            base_len,
            state: RwLock::new(state),
        })
    }

    /// The base.
    pub fn base(&self) -> &B {
        &self.base
    }

    /// Gives the base back; the replaced bytes are gone.
    pub fn into_base(self) -> B {
        self.base
    }

    /// Length of the base when the overlay was made, in bytes.
    pub fn base_len(&self) -> u64 {
        self.base_len
    }

    /// Looks at the replaced bytes without copying. Writers wait while the view lives.
    pub fn view(&self) -> OverlayView<'_> {
        OverlayView {
            state: self.state.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Every position below the current length that no longer comes from the base: what was
    /// written, and what a length change made zero.
    pub fn dirty(&self) -> RangeSet {
        self.view().dirty().clone()
    }

    /// A copy of the replaced bytes, by offset. See [`OverlayView::extents`].
    pub fn extents(&self) -> Vec<(u64, Vec<u8>)> {
        self.view()
            .extents()
            .map(|(at, bytes)| (at, bytes.to_vec()))
            .collect()
    }

    /// Forgets every write and length change.
    pub fn reset(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.extents.clear();
        state.dirty.clear();
        state.len = self.base_len;
        state.visible = self.base_len;
    }

    /// The difference to the base as a write set of one phase called `name`.
    #[must_use]
    pub fn to_write_set(&self, name: &str) -> WriteSet {
        let view = self.view();
        let mut writes: Vec<(u64, Vec<u8>)> = view
            .extents()
            .map(|(at, bytes)| (at, bytes.to_vec()))
            .collect();
        // Below the base's length the old bytes are still in the file, so zeros must be written;
        // above it the growth brings them.
        let cut = view.state.visible..self.base_len.min(view.len());
        let written: RangeSet = writes
            .iter()
            .map(|(at, bytes)| *at..at.saturating_add(bytes.len() as u64))
            .collect();
        for gap in written.gaps(cut) {
            let mut at = gap.start;
            while at < gap.end {
                let n = (gap.end - at).min(ZERO_RUN);
                writes.push((at, vec![0; n as usize]));
                at += n;
            }
        }
        writes.sort_by_key(|(at, _)| *at);
        WriteSet {
            base_len: self.base_len,
            target_len: view.len(),
            phases: vec![Phase {
                name: name.to_owned(),
                writes,
            }],
        }
    }
}

/// A look at the replaced bytes of an [`Overlay`].
#[derive(Debug)]
pub struct OverlayView<'a> {
    state: RwLockReadGuard<'a, State>,
}

impl OverlayView<'_> {
    /// The replaced bytes: disjoint, non-empty, ascending by offset; neighbours may touch.
    ///
    /// A position in [`OverlayView::dirty`] but in no extent is zero.
    pub fn extents(&self) -> impl Iterator<Item = (u64, &[u8])> + '_ {
        self.state
            .extents
            .iter()
            .map(|(&at, bytes)| (at, bytes.as_slice()))
    }

    /// As [`Overlay::dirty`].
    pub fn dirty(&self) -> &RangeSet {
        &self.state.dirty
    }

    /// Current length in bytes.
    pub fn len(&self) -> u64 {
        self.state.len
    }

    /// Whether the current length is 0.
    pub fn is_empty(&self) -> bool {
        self.state.len == 0
    }
}

impl State {
    /// Takes every replaced byte of `start..end` out of the extents, splitting at the edges.
    fn cut(&mut self, start: u64, end: u64) {
        while let Some((&at, bytes)) = self.extents.range_mut(..end).next_back() {
            let bytes_end = at + bytes.len() as u64;
            if bytes_end <= start {
                break;
            }
            // Both differences lie inside the extent, hence inside usize.
            let tail = (bytes_end > end).then(|| bytes.split_off((end - at) as usize));
            if at < start {
                bytes.truncate((start - at) as usize);
            } else {
                self.extents.remove(&at);
            }
            if let Some(tail) = tail {
                self.extents.insert(end, tail);
            }
        }
    }

    /// If one extent holds all of `offset..offset + data.len()`, or ends at `offset` and may still
    /// grow into free space, puts `data` there.
    fn write_in_place(&mut self, offset: u64, data: &[u8]) -> bool {
        let end = offset + data.len() as u64;
        let next = self.extents.range(offset + 1..).next().map(|(&at, _)| at);
        let Some((&at, bytes)) = self.extents.range_mut(..=offset).next_back() else {
            return false;
        };
        let bytes_end = at + bytes.len() as u64;
        if end <= bytes_end {
            let from = (offset - at) as usize;
            let Some(part) = bytes.get_mut(from..from + data.len()) else {
                return false;
            };
            part.copy_from_slice(data);
            return true;
        }
        let grows = bytes_end == offset
            && next.is_none_or(|next| end <= next)
            && bytes.len() + data.len() <= EXTENT_LIMIT;
        if grows {
            bytes.extend_from_slice(data);
        }
        grows
    }
}

impl<B: ReadAt> ReadAt for Overlay<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.view().len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let n = state.len.saturating_sub(offset).min(buf.len() as u64);
        let end = offset + n;
        let mut rest = buf.get_mut(..n as usize).unwrap_or_default();
        let mut at = offset;
        while at < end {
            let covering = state
                .extents
                .range(..=at)
                .next_back()
                .and_then(|(&start, bytes)| bytes.get((at - start) as usize..))
                .filter(|bytes| !bytes.is_empty());
            let step = match covering {
                Some(bytes) => bytes.len() as u64,
                None => {
                    let next = state
                        .extents
                        .range(at..)
                        .next()
                        .map_or(end, |(&next, _)| next);
                    // Base bytes up to where they stop showing through, zeros after that.
                    if at < state.visible {
                        next.min(state.visible) - at
                    } else {
                        next - at
                    }
                }
            }
            .min(end - at);
            let (part, tail) = rest
                .split_at_mut_checked(step as usize)
                .ok_or(io::ErrorKind::InvalidData)?;
            match covering.and_then(|bytes| bytes.get(..step as usize)) {
                Some(bytes) => part.copy_from_slice(bytes),
                None if at < state.visible => self.base.read_exact_at(at, part)?,
                None => part.fill(0),
            }
            rest = tail;
            at += step;
        }
        Ok(n as usize)
    }
}

impl<B: ReadAt> WriteAt for Overlay<B> {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if end > state.len {
            let hole = state.len..end;
            state.dirty.insert(hole);
            state.len = end;
        }
        if !state.write_in_place(offset, data) {
            state.cut(offset, end);
            state.extents.insert(offset, data.to_vec());
        }
        state.dirty.insert(offset..end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if len < state.len {
            state.cut(len, u64::MAX);
            state.dirty.truncate(len);
            state.visible = state.visible.min(len);
        } else {
            let grown = state.len..len;
            state.dirty.insert(grown);
        }
        state.len = len;
        Ok(())
    }

    /// Nothing to do: an overlay becomes durable by its write set.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
