//! Byte-range locks of programs, held on the share too while the file is passed through.
//!
//! Between the programs of this machine the table here decides, with the rules of `fcntl`: locks
//! belong to an owner, a later one of the same owner replaces what it overlaps, and any close of the
//! owner's ends them. The share sees one client. It is asked for what the owners hold together
//! ([`Mirror`]), and is told before a program is: a lock that a program has while the file is passed
//! through is one that the share gave us.
//!
//! On a flip the share's handle goes, and its locks with it: from then on they hold on this machine.
//! Where the share has no locks, likewise.
//!
//! Locks of a share know no change in place. So what is held there may be more than what the programs
//! hold, never less, with one exception: a shared lock that is to become exclusive is given up for
//! the moment between. If another takes it in that moment, the change is refused, and only this
//! machine's programs still respect the shared one (said in the log).

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Drive;
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode};
use crate::share::ShareFile;

/// Most locks on one file: more is a program gone mad.
const MAX_LOCKS: usize = 4096;

/// Whose a lock is: the frontend's number for it, and the handle through which it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockOwner {
    /// The frontend's number of the owner.
    pub id: u64,
    /// The process, for others to be told.
    pub pid: u32,
}

/// A lock that a program holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Which bytes.
    pub range: Range<u64>,
    /// Nobody else may have any lock there; else nobody an exclusive one.
    pub exclusive: bool,
    /// Whose.
    pub owner: LockOwner,
    handle: u64,
}

/// A part of the file that is locked on the share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    exclusive: bool,
}

/// What the share holds for us.
#[derive(Default)]
struct Mirror {
    /// The handle that holds it; with the handle the locks are gone.
    on: Option<Weak<dyn ShareFile>>,
    pieces: Vec<Piece>,
}

/// The locks of one file.
#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<Vec<HeldLock>>,
    /// Held while the share is asked, by the call itself: one that was left behind still has it.
    mirror: Arc<Mutex<Mirror>>,
    /// One change at a time, so that the share is told what the table says.
    change: Mutex<()>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn cut(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// What of `a` lies outside `b`.
fn outside(a: &Range<u64>, b: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let parts = [a.start..a.end.min(b.start), a.start.max(b.end)..a.end];
    parts.into_iter().filter(|r| r.start < r.end)
}

/// The table after `owner` locked `range`, or unlocked it (`None`).
fn after(held: &[HeldLock], new: &HeldLock, exclusive: Option<bool>) -> Vec<HeldLock> {
    let mut out = Vec::with_capacity(held.len() + 2);
    for h in held {
        if h.owner.id != new.owner.id || !overlap(&h.range, &new.range) {
            out.push(h.clone());
            continue;
        }
        out.extend(outside(&h.range, &new.range).map(|range| HeldLock { range, ..h.clone() }));
    }
    if let Some(exclusive) = exclusive {
        out.push(HeldLock {
            exclusive,
            ..new.clone()
        });
    }
    out
}

/// What the owners hold together: parts that do not overlap, each of the strongest kind.
fn together(held: &[HeldLock]) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let mut edges: Vec<u64> = held
        .iter()
        .flat_map(|h| [h.range.start, h.range.end])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    for pair in edges.windows(2) {
        let &[start, end] = pair else { continue };
        let range = start..end;
        let mut here = held.iter().filter(|h| overlap(&h.range, &range)).peekable();
        if here.peek().is_none() {
            continue;
        }
        let exclusive = here.any(|h| h.exclusive);
        match out.last_mut() {
            Some(last) if last.range.end == start && last.exclusive == exclusive => {
                last.range.end = end;
            }
            _ => out.push(Piece { range, exclusive }),
        }
    }
    out
}

impl Mirror {
    /// Whether `handle` is the one that holds the pieces; if not, there are none.
    fn turn_to(&mut self, handle: &Arc<dyn ShareFile>) {
        let weak = Arc::downgrade(handle);
        if !self.on.as_ref().is_some_and(|on| on.ptr_eq(&weak)) {
            self.on = Some(weak);
            self.pieces.clear();
        }
    }

    /// Locks what `want` has more than there is: all of it, or nothing and `false`.
    fn cover(&mut self, file: &dyn ShareFile, want: &[Piece]) -> io::Result<bool> {
        let before = self.pieces.clone();
        let answer = self.take(file, want);
        if !matches!(answer, Ok(true)) {
            self.undo(file, &before);
        }
        answer
    }

    fn take(&mut self, file: &dyn ShareFile, want: &[Piece]) -> io::Result<bool> {
        for w in want {
            // Shared ones stand in the way of an exclusive one, also our own.
            let (weak, kept): (Vec<_>, Vec<_>) = self
                .pieces
                .drain(..)
                .partition(|p| w.exclusive && !p.exclusive && overlap(&p.range, &w.range));
            self.pieces = kept;
            let mut missing = vec![w.clone()];
            for p in weak {
                file.unlock(p.range.clone())?;
                missing.extend(outside(&p.range, &w.range).map(|range| Piece {
                    range,
                    exclusive: false,
                }));
            }
            for p in &self.pieces {
                missing = missing
                    .iter()
                    .flat_map(|m| {
                        outside(&m.range, &p.range).map(|range| Piece {
                            range,
                            exclusive: m.exclusive,
                        })
                    })
                    .collect();
            }
            for piece in missing {
                if !file.lock(piece.range.clone(), piece.exclusive)? {
                    return Ok(false);
                }
                self.pieces.push(piece);
            }
        }
        Ok(true)
    }

    /// Back to `before`, as far as the share lets us.
    fn undo(&mut self, file: &dyn ShareFile, before: &[Piece]) {
        self.pieces.retain(|p| {
            before.contains(p) || {
                // One that cannot be given up goes with the handle.
                file.unlock(p.range.clone()).is_err()
            }
        });
        for p in before {
            if self.pieces.contains(p) {
                continue;
            }
            match file.lock(p.range.clone(), p.exclusive) {
                Ok(true) => self.pieces.push(p.clone()),
                Ok(false) => tracing::warn!(
                    range = ?p.range,
                    "another computer took a lock while ours was to become exclusive"
                ),
                Err(error) => tracing::debug!(%error, "a lock was not taken back"),
            }
        }
    }

    /// Gives up what nobody here holds any more.
    fn shed(&mut self, file: &dyn ShareFile, want: &[Piece]) {
        let mut kept = Vec::with_capacity(self.pieces.len());
        for p in std::mem::take(&mut self.pieces) {
            let needed: Vec<&Piece> = want
                .iter()
                .filter(|w| overlap(&w.range, &p.range))
                .collect();
            let whole = needed.iter().all(|w| cut(&w.range, &p.range) == p.range);
            let strong = needed.iter().any(|w| w.exclusive);
            if !needed.is_empty() && (strong || (!p.exclusive && whole)) {
                kept.push(p);
                continue;
            }
            // Shared ones may lie over what the same handle has: nothing is free in between.
            let mut smaller = Vec::new();
            for w in needed {
                let piece = Piece {
                    range: cut(&w.range, &p.range),
                    exclusive: false,
                };
                if matches!(file.lock(piece.range.clone(), false), Ok(true)) {
                    smaller.push(piece);
                } else {
                    break;
                }
            }
            let replaced = want.iter().filter(|w| overlap(&w.range, &p.range)).count();
            if smaller.len() == replaced && file.unlock(p.range.clone()).is_ok() {
                kept.extend(smaller);
            } else {
                // It stays as it was: too much, never too little.
                for s in smaller.iter().filter(|s| s.range != p.range) {
                    let _ = file.unlock(s.range.clone());
                }
                kept.push(p);
            }
        }
        self.pieces = kept;
    }
}

impl Locks {
    /// Another's lock in the way of one by `owner`.
    fn in_the_way(
        &self,
        owner: LockOwner,
        range: &Range<u64>,
        exclusive: bool,
    ) -> Option<HeldLock> {
        let held = lock(&self.held);
        held.iter()
            .find(|h| {
                h.owner.id != owner.id && overlap(&h.range, range) && (exclusive || h.exclusive)
            })
            .cloned()
    }
}

impl Drive {
    /// Whether byte-range locks are the share's too, so that frontends must bring them here.
    #[must_use]
    pub fn has_share_locks(&self) -> bool {
        self.link.has_locks()
    }

    /// The lock of a program of this machine that would keep `owner` from one, if there is one.
    /// (Those of other computers are only seen by trying.)
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub fn lock_in_the_way(
        &self,
        handle: u64,
        owner: LockOwner,
        range: &Range<u64>,
        exclusive: bool,
    ) -> Result<Option<HeldLock>> {
        let h = self.handle(handle)?;
        Ok(h.file.locks.in_the_way(owner, range, exclusive))
    }

    /// Locks a part of a file, if that is possible at once. `false`: another program, or another
    /// computer, has a lock there.
    ///
    /// # Errors
    /// [`Error::BadHandle`]; too many locks; where the file is passed through and not fully cached,
    /// what the share says.
    pub fn lock_range(
        &self,
        handle: u64,
        owner: LockOwner,
        range: Range<u64>,
        exclusive: bool,
    ) -> Result<bool> {
        let h = self.handle(handle)?;
        let new = HeldLock {
            range,
            exclusive,
            owner,
            handle,
        };
        loop {
            let _one = lock(&h.file.locks.change);
            if h.file
                .locks
                .in_the_way(owner, &new.range, exclusive)
                .is_some()
            {
                return Ok(false);
            }
            let next = after(&lock(&h.file.locks.held), &new, Some(exclusive));
            if next.len() > MAX_LOCKS {
                return Err(too_many());
            }
            match self.mirror(h.node, &h.file, &next, true) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) => {
                    drop(_one);
                    // From now on the cache's file is locked, or the answer is the share's.
                    self.flip(h.node, &h.file, e)?;
                    continue;
                }
            }
            *lock(&h.file.locks.held) = next;
            return Ok(true);
        }
    }

    /// Unlocks what of `range` the owner has locked.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub fn unlock_range(&self, handle: u64, owner: LockOwner, range: Range<u64>) -> Result<()> {
        let h = self.handle(handle)?;
        let whole = HeldLock {
            range,
            exclusive: false,
            owner,
            handle,
        };
        self.change_locks(h.node, &h.file, |held| after(held, &whole, None));
        Ok(())
    }

    /// Whether [`Drive::unlock_all`] has anything to do.
    #[must_use]
    pub fn has_locks(&self, handle: u64, owner: u64) -> bool {
        self.handle(handle).is_ok_and(|h| {
            let held = lock(&h.file.locks.held);
            held.iter().any(|l| l.owner.id == owner)
        })
    }

    /// Ends all locks of an owner on a handle's file: a program closed one of its descriptors.
    ///
    /// # Errors
    /// [`Error::BadHandle`].
    pub fn unlock_all(&self, handle: u64, owner: u64) -> Result<()> {
        let h = self.handle(handle)?;
        self.change_locks(h.node, &h.file, |held| {
            let others = held.iter().filter(|l| l.owner.id != owner);
            others.cloned().collect()
        });
        Ok(())
    }

    /// Ends the locks that came through a handle which is closed now.
    pub(crate) fn end_locks_of(&self, handle: u64, node: u64, file: &Arc<FileNode>) {
        if lock(&file.locks.held).iter().any(|l| l.handle == handle) {
            self.change_locks(node, file, |held| {
                let others = held.iter().filter(|l| l.handle != handle);
                others.cloned().collect()
            });
        }
    }

    /// The file's handle on the share is `new` now: it gets the locks before the old one goes.
    pub(crate) fn move_locks(&self, node: u64, file: &Arc<FileNode>, new: &Arc<dyn ShareFile>) {
        let held = lock(&file.locks.held).clone();
        if !held.is_empty()
            && let Err(error) = self.mirror_on(node, file, new, &held, true)
        {
            tracing::warn!(path = self.tree().path(node), %error, "the share's locks were not kept");
        }
    }

    /// Gives up locks: that always works here, and on the share as soon as it answers.
    fn change_locks(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        change: impl Fn(&[HeldLock]) -> Vec<HeldLock>,
    ) {
        let _one = lock(&file.locks.change);
        let next = {
            let mut held = lock(&file.locks.held);
            let next = change(&held);
            if *held == next {
                return;
            }
            held.clone_from(&next);
            next
        };
        if let Err(error) = self.mirror(node, file, &next, false) {
            tracing::debug!(path = self.tree().path(node), %error, "not unlocked on the share");
        }
    }

    /// Brings the share's locks to what `held` says; `more`: all of it must be had.
    fn mirror(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        held: &[HeldLock],
        more: bool,
    ) -> Result<bool> {
        if !self.has_share_locks() {
            return Ok(true);
        }
        let share_file = match &file.read().binding {
            Some(Binding::Share(f, _)) => f.clone(),
            _ => return Ok(true),
        };
        self.mirror_on(node, file, &share_file, held, more)
    }

    fn mirror_on(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        share_file: &Arc<dyn ShareFile>,
        held: &[HeldLock],
        more: bool,
    ) -> Result<bool> {
        let (want, mirror) = (together(held), file.locks.mirror.clone());
        let on = share_file.clone();
        self.link.call(&self.tree().path(node), move |_| {
            let mut mirror = lock(&mirror);
            mirror.turn_to(&on);
            if more && !mirror.cover(&*on, &want)? {
                return Ok(false);
            }
            mirror.shed(&*on, &want);
            Ok(true)
        })
    }
}

fn too_many() -> Error {
    #[cfg(unix)]
    let source = rustix::io::Errno::NOLCK.into();
    #[cfg(not(unix))]
    let source = io::ErrorKind::QuotaExceeded.into();
    Error::Io {
        context: "too many locks on one file".to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
