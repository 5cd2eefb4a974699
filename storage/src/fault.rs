//! Storage for tests that fails the N-th operation: run a protocol with N = 0, 1, 2, … until it
//! passes, and every error path has been taken.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{ReadAt, WriteAt};

/// Which operations a [`FaultStorage`] counts and fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOn {
    /// All of them.
    Any,
    /// `len` and `read_at`.
    Reads,
    /// `write_all_at` and `set_len`.
    Writes,
    /// `sync`.
    Syncs,
}

/// Passes everything to the inner storage, except the one operation that fails.
#[derive(Debug)]
pub struct FaultStorage<S> {
    inner: S,
    on: FaultOn,
    nth: u64,
    error: io::ErrorKind,
    /// After the first failure all counted operations fail.
    for_good: bool,
    seen: AtomicU64,
    failed: AtomicBool,
}

impl<S> FaultStorage<S> {
    /// Fails the `nth` (from 0) of the operations that `on` counts, once, with `error`. The
    /// failing operation does not reach `inner`.
    pub fn new(inner: S, on: FaultOn, nth: u64, error: io::ErrorKind) -> Self {
        Self {
            inner,
            on,
            nth,
            error,
            for_good: false,
            seen: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Fails every counted operation from the `nth` on, as a dead link does.
    #[must_use]
    pub fn for_good(mut self) -> Self {
        self.for_good = true;
        self
    }

    /// How many counted operations there were.
    pub fn operations(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// Whether an operation has failed by now.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// The inner storage.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Gives the inner storage back.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn pass(&self, kind: FaultOn) -> io::Result<()> {
        if self.on != FaultOn::Any && self.on != kind {
            return Ok(());
        }
        let n = self.seen.fetch_add(1, Ordering::SeqCst);
        if n == self.nth || (self.for_good && n > self.nth) {
            self.failed.store(true, Ordering::SeqCst);
            return Err(io::Error::new(
                self.error,
                format!("injected fault in operation {n}"),
            ));
        }
        Ok(())
    }
}

impl<S: ReadAt> ReadAt for FaultStorage<S> {
    fn len(&self) -> io::Result<u64> {
        self.pass(FaultOn::Reads)?;
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.pass(FaultOn::Reads)?;
        self.inner.read_at(offset, buf)
    }
}

impl<S: WriteAt> WriteAt for FaultStorage<S> {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(FaultOn::Writes)?;
        self.inner.write_all_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass(FaultOn::Writes)?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass(FaultOn::Syncs)?;
        self.inner.sync()
    }
}
