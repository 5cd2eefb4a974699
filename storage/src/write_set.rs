//! The result of an edit: writes in ordered phases.
//!
//! The order of the phases is the writer's promise that every cut between and inside them leaves
//! a valid file; [`WriteSet::commit`] keeps that promise by making each phase durable before the
//! next one begins.

use std::io;

use crate::{Overlay, Payload, RangeSet, ReadAt, WriteAt};

/// Writes that may reach the disk in any order among themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phase {
    /// What the phase is for ("blocks", "header", …): for logs and reports only.
    pub name: String,
    /// (offset in bytes, bytes), applied in this order; a later write wins where two overlap.
    pub writes: Vec<(u64, Payload)>,
}

impl Phase {
    /// An empty phase.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            writes: Vec::new(),
        }
    }
}

/// A change from a file of `base_len` bytes to one of `target_len` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteSet {
    /// Length that the target must have before the first write.
    pub base_len: u64,
    /// Length after the last phase. No write reaches past it.
    pub target_len: u64,
    /// In order; each is durable before the next begins.
    pub phases: Vec<Phase>,
}

impl WriteSet {
    /// A change of nothing, for a file of `len` bytes.
    #[must_use]
    pub fn empty(len: u64) -> Self {
        Self {
            base_len: len,
            target_len: len,
            phases: Vec::new(),
        }
    }

    /// Whether committing would change nothing: no write and no change of length.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.base_len == self.target_len && self.phases.iter().all(|p| p.writes.is_empty())
    }

    /// How many bytes the writes carry.
    #[must_use]
    pub fn payload(&self) -> u64 {
        self.phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(_, data)| data.len())
            .sum()
    }

    /// Every position that some write covers.
    #[must_use]
    pub fn covered(&self) -> RangeSet {
        self.phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(at, data)| *at..at.saturating_add(data.len()))
            .collect()
    }

    /// Whether every write ends at or before `target_len`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`], naming the phase and the write.
    pub fn validate(&self) -> io::Result<()> {
        for phase in &self.phases {
            for (at, data) in &phase.writes {
                let end = at.checked_add(data.len());
                if end.is_none_or(|end| end > self.target_len) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "phase {:?}: a write of {} bytes at {at} passes the target length {}",
                            phase.name,
                            data.len(),
                            self.target_len
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Puts the change into `target`: phase by phase, each grown for, written and synced before
    /// the next; a shrink comes last, after everything else is durable.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`], before anything is written, if the target's length is not
    /// `base_len` or a write passes `target_len`; otherwise the first error of the target, after
    /// which the target holds some cut of this change.
    pub fn commit(&self, target: &dyn WriteAt) -> io::Result<()> {
        self.check(target.len()?)?;
        self.commit_from(target, 0)
    }

    /// Whether this change may be put into a target of `len` bytes.
    fn check(&self, len: u64) -> io::Result<()> {
        self.validate()?;
        if len != self.base_len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the target has {len} bytes, the change expects {}",
                    self.base_len
                ),
            ));
        }
        Ok(())
    }

    /// Puts phases `first..` and the final length into `target`, whose length may be any that a
    /// cut of this change leaves. The caller has validated.
    pub(crate) fn commit_from(&self, target: &dyn WriteAt, first: usize) -> io::Result<()> {
        let mut len = target.len()?;
        for phase in self.phases.iter().skip(first) {
            let end = phase
                .writes
                .iter()
                .map(|(at, data)| at.saturating_add(data.len()));
            if end.max().is_some_and(|end| end > len) {
                // All growth at once: one change of length, and lack of space shows early.
                target.set_len(self.target_len)?;
                len = self.target_len;
            }
            for (at, data) in &phase.writes {
                data.pieces(|from, part| target.write_all_at(at + from, part))?;
            }
            target.sync()?;
        }
        if len != self.target_len {
            target.set_len(self.target_len)?;
            target.sync()?;
        }
        Ok(())
    }

    /// How `base` will read once this change is committed to it; `base` itself is not written.
    /// Copies no bytes: the overlay names the payloads.
    ///
    /// # Errors
    /// As [`WriteSet::commit`].
    pub fn preview<B: ReadAt>(&self, base: B) -> io::Result<Overlay<B>> {
        let overlay = Overlay::new(base)?;
        self.check(overlay.base_len())?;
        for (at, data) in self.phases.iter().flat_map(|p| &p.writes) {
            overlay.write_payload_at(*at, data.clone())?;
        }
        overlay.set_len(self.target_len)?;
        Ok(overlay)
    }
}
