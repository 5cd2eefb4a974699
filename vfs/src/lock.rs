//! The locks of a drive's tree and of its files' standing, with the order in which a thread takes them.
//!
//! A thread that holds one takes only locks of a higher rank: never the same a second time, for with a writer
//! waiting in between it would wait for itself, and never the tree while it holds a file. A guard that lives
//! longer than it looks (in a condition, or a literal of several fields) breaks that easily, and hangs the
//! drive one day in a thousand; so debug builds panic each time.

use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What is taken first has the lower rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Names.
    Tree,
    /// The standing of one file.
    File,
}

/// A lock with a rank. A panic under it does not poison it: every critical section leaves its data consistent
/// at each step that can panic.
pub(crate) struct Ranked<T> {
    rank: Rank,
    inner: RwLock<T>,
}

impl<T> Ranked<T> {
    pub fn new(rank: Rank, value: T) -> Self {
        Self {
            rank,
            inner: RwLock::new(value),
        }
    }

    pub fn read(&self) -> Read<'_, T> {
        let held = Held::new(self.rank);
        Read {
            guard: self.inner.read().unwrap_or_else(PoisonError::into_inner),
            _held: held,
        }
    }

    pub fn write(&self) -> Write<'_, T> {
        let held = Held::new(self.rank);
        Write {
            guard: self.inner.write().unwrap_or_else(PoisonError::into_inner),
            _held: held,
        }
    }
}

/// Shared access.
pub(crate) struct Read<'a, T> {
    guard: RwLockReadGuard<'a, T>,
    _held: Held,
}

/// Exclusive access.
pub(crate) struct Write<'a, T> {
    guard: RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> Deref for Read<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for Write<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::RefCell<Vec<Rank>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// That this thread has a lock of a rank, or is about to.
struct Held(#[cfg(debug_assertions)] Rank);

impl Held {
    #[cfg(debug_assertions)]
    fn new(rank: Rank) -> Self {
        HELD.with_borrow_mut(|held| {
            let highest = held.iter().max();
            assert!(
                highest.is_none_or(|highest| *highest < rank),
                "a thread that holds {held:?} takes {rank:?}: one day it waits for itself"
            );
            held.push(rank);
        });
        Self(rank)
    }

    #[cfg(not(debug_assertions))]
    fn new(_: Rank) -> Self {
        Self()
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        // Nothing is left to keep order in where the thread is ending.
        let _ = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|rank| *rank == self.0) {
                held.remove(at);
            }
        });
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_thread_could_wait_for_forever_is_refused() {
        let (tree, file) = (Ranked::new(Rank::Tree, 1), Ranked::new(Rank::File, 2));
        let sum = *tree.read() + *file.read();
        assert_eq!(sum, 3);
        let twice = std::panic::catch_unwind(|| {
            let _held = tree.read();
            drop(tree.read());
        });
        assert!(twice.is_err());
        let order = std::panic::catch_unwind(|| {
            let _held = file.write();
            drop(tree.read());
        });
        assert!(order.is_err());
        // Nothing is held any more.
        drop(tree.write());
        drop(file.write());
    }
}
