//! The overlay: a base that is only read, replaced bytes beside it, and a length of its own.
//!
//! It promises that the base is never written, that a read sees exactly what a file would hold
//! after the same writes and length changes, and that cost follows what was written. Replaced bytes
//! lie in memory; with a [`Scratch`], what exceeds a bound goes to a temporary file instead.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::{Payload, Phase, RangeSet, ReadAt, Scratch, WriteAt, WriteSet};

/// An extent is not extended in place past this many bytes, so that cutting one stays cheap.
const EXTENT_LIMIT: usize = 1 << 20;

/// The largest run of zeros put into one write of [`Overlay::to_write_set`].
const ZERO_RUN: u64 = 1 << 20;

/// A base storage with replaced bytes over it. The base is never touched.
///
/// Whoever owns the base must leave it unchanged for as long as the overlay is in use.
pub struct Overlay<B: ReadAt> {
    base: B,
    base_len: u64,
    state: RwLock<State>,
}

/// Some replaced bytes.
#[derive(Debug)]
enum Extent {
    /// In memory, and changed in place.
    Own(Vec<u8>),
    /// Somewhere, and never changed.
    Fixed(Payload),
}

impl Extent {
    fn len(&self) -> u64 {
        match self {
            Self::Own(bytes) => bytes.len() as u64,
            Self::Fixed(payload) => payload.len(),
        }
    }

    fn read_at(&self, from: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Own(bytes) => {
                let from = from as usize;
                let part = bytes.get(from..from + out.len());
                out.copy_from_slice(part.ok_or(io::ErrorKind::InvalidData)?);
                Ok(())
            }
            Self::Fixed(payload) => payload.read_exact_at(from, out),
        }
    }

    /// Cuts the extent at `at`, which lies inside; gives what follows.
    fn split_off(&mut self, at: u64) -> Self {
        match self {
            Self::Own(bytes) => Self::Own(bytes.split_off(at as usize)),
            Self::Fixed(payload) => {
                let tail = payload.slice(at..u64::MAX);
                *payload = payload.slice(0..at);
                Self::Fixed(tail)
            }
        }
    }
}

/// Where writes go once memory is used up.
struct Spill {
    scratch: Arc<dyn Scratch>,
    /// Bytes that may be in memory.
    memory: u64,
    /// The file, as it is written and as it is read.
    file: Option<(Arc<dyn WriteAt>, Arc<dyn ReadAt>)>,
    /// Bytes in the file.
    used: u64,
}

impl Spill {
    /// Puts bytes behind what is there. Nothing is ever overwritten: a payload that was handed out
    /// keeps its bytes.
    fn push(&mut self, data: &[u8]) -> io::Result<Payload> {
        if self.file.is_none() {
            let file = self.scratch.create()?;
            self.file = Some((Arc::clone(&file), file));
        }
        let (file, source) = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.write_all_at(self.used, data)?;
        let at = self.used;
        self.used += data.len() as u64;
        let source = Arc::clone(source);
        Ok(Payload::stored(source, at, data.len() as u64))
    }
}

struct State {
    /// Replaced bytes: disjoint, non-empty extents by offset.
    extents: BTreeMap<u64, Extent>,
    /// Bytes in memory.
    memory: u64,
    spill: Option<Spill>,
    /// Every position below `len` that the base does not answer for.
    dirty: RangeSet,
    /// Current length.
    len: u64,
    /// Only base bytes below this show through: the least length since the beginning.
    visible: u64,
}

impl<B: ReadAt> Overlay<B> {
    /// An overlay that reads as `base` does now, with all replaced bytes in memory.
    ///
    /// # Errors
    /// If the length of the base cannot be read.
    pub fn new(base: B) -> io::Result<Self> {
        Self::make(base, None)
    }

    /// As [`Overlay::new`], but with at most about `memory` bytes of what is written in memory; the
    /// rest goes to a temporary storage of `scratch`, made when it is first needed.
    ///
    /// # Errors
    /// As [`Overlay::new`].
    pub fn with_scratch(base: B, scratch: Arc<dyn Scratch>, memory: u64) -> io::Result<Self> {
        let spill = Spill {
            scratch,
            memory,
            file: None,
            used: 0,
        };
        Self::make(base, Some(spill))
    }

    fn make(base: B, spill: Option<Spill>) -> io::Result<Self> {
        let base_len = base.len()?;
        let state = State {
            extents: BTreeMap::new(),
            memory: 0,
            spill,
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

    /// Looks at what is replaced without copying. Writers wait while the view lives.
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

    /// The replaced bytes: disjoint, non-empty, ascending by offset; neighbours may touch. What is
    /// in memory is copied.
    ///
    /// A position in [`Overlay::dirty`] but in no extent is zero.
    pub fn extents(&self) -> Vec<(u64, Payload)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let extents = state.extents.iter();
        extents
            .map(|(&at, extent)| match extent {
                Extent::Own(bytes) => (at, Payload::from(bytes.as_slice())),
                Extent::Fixed(payload) => (at, payload.clone()),
            })
            .collect()
    }

    /// As [`WriteAt::write_all_at`], but keeps the payload itself: nothing is copied.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the end is past what 64 bits address.
    pub fn write_payload_at(&self, offset: u64, payload: Payload) -> io::Result<()> {
        if payload.is_empty() {
            return Ok(());
        }
        let end = end_of(offset, payload.len())?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.put(offset, end, Extent::Fixed(payload));
        Ok(())
    }

    /// Forgets every write and length change.
    pub fn reset(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.extents.clear();
        state.memory = 0;
        state.dirty.clear();
        state.len = self.base_len;
        state.visible = self.base_len;
    }

    /// The difference to the base as a write set of one phase called `name`.
    #[must_use]
    pub fn to_write_set(&self, name: &str) -> WriteSet {
        let mut writes = self.extents();
        let view = self.view();
        // Below the base's length the old bytes are still in the file, so zeros must be written;
        // above it the growth brings them.
        let cut = view.state.visible..self.base_len.min(view.len());
        let written: RangeSet = writes
            .iter()
            .map(|(at, bytes)| *at..at.saturating_add(bytes.len()))
            .collect();
        for gap in written.gaps(cut) {
            let mut at = gap.start;
            while at < gap.end {
                let n = (gap.end - at).min(ZERO_RUN);
                writes.push((at, Payload::from(vec![0; n as usize])));
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

impl<B: ReadAt> fmt::Debug for Overlay<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("base_len", &self.base_len)
            .finish_non_exhaustive()
    }
}

fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    offset
        .checked_add(len)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A look at what an [`Overlay`] replaces. Writers wait while it lives.
pub struct OverlayView<'a> {
    state: RwLockReadGuard<'a, State>,
}

impl OverlayView<'_> {
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
        while let Some((&at, extent)) = self.extents.range_mut(..end).next_back() {
            let extent_end = at + extent.len();
            if extent_end <= start {
                break;
            }
            let tail = (extent_end > end).then(|| extent.split_off(end - at));
            let gone = if at < start {
                Some(extent.split_off(start - at))
            } else {
                self.extents.remove(&at)
            };
            if let Some(Extent::Own(bytes)) = gone {
                self.memory -= bytes.len() as u64;
            }
            if let Some(tail) = tail {
                self.extents.insert(end, tail);
            }
        }
    }

    /// Replaces `offset..end` by an extent of that length.
    fn put(&mut self, offset: u64, end: u64, extent: Extent) {
        self.grow(end);
        self.cut(offset, end);
        if let Extent::Own(bytes) = &extent {
            self.memory += bytes.len() as u64;
        }
        let before = self.extents.range_mut(..offset).next_back();
        let joined = match (before, &extent) {
            (Some((at, Extent::Fixed(before))), Extent::Fixed(next)) => {
                at + before.len() == offset && before.absorb(next)
            }
            _ => false,
        };
        if !joined {
            self.extents.insert(offset, extent);
        }
        self.dirty.insert(offset..end);
    }

    fn grow(&mut self, end: u64) {
        if end > self.len {
            let hole = self.len..end;
            self.dirty.insert(hole);
            self.len = end;
        }
    }

    /// If one extent in memory holds all of `offset..offset + data.len()`, or ends at `offset` and
    /// may still grow into free space, puts `data` there.
    fn write_in_place(&mut self, offset: u64, data: &[u8], room: bool) -> bool {
        let end = offset + data.len() as u64;
        let next = self.extents.range(offset + 1..).next().map(|(&at, _)| at);
        let last = self.extents.range_mut(..=offset).next_back();
        let Some((&at, Extent::Own(bytes))) = last else {
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
        let grows = room
            && bytes_end == offset
            && next.is_none_or(|next| end <= next)
            && bytes.len() + data.len() <= EXTENT_LIMIT;
        if grows {
            if bytes.len() >= EXTENT_LIMIT / 16 && bytes.capacity() < EXTENT_LIMIT {
                // An extent that got this long is about to be filled: moved once, not each time.
                bytes.reserve_exact(EXTENT_LIMIT - bytes.len());
            }
            bytes.extend_from_slice(data);
            self.memory += data.len() as u64;
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
                .map(|(&start, extent)| (extent, at - start))
                .filter(|(extent, from)| *from < extent.len());
            let step = match covering {
                Some((extent, from)) => extent.len() - from,
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
            match covering {
                Some((extent, from)) => extent.read_at(from, part)?,
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
        let end = end_of(offset, data.len() as u64)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let memory = state.memory + data.len() as u64;
        let room = state.spill.as_ref().is_none_or(|s| memory <= s.memory);
        if state.write_in_place(offset, data, room) {
            state.grow(end);
            state.dirty.insert(offset..end);
            return Ok(());
        }
        let extent = match &mut state.spill {
            Some(spill) if !room => Extent::Fixed(spill.push(data)?),
            _ => Extent::Own(data.to_vec()),
        };
        state.put(offset, end, extent);
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
