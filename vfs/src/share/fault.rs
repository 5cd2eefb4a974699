//! A share whose calls fail or hang on command: for tests of the drive and of what stands on it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::path::Names;

use super::{Attr, Changes, Entry, SetAttr, Share, ShareFile, Special, Statfs};

/// What a chosen call does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails with this kind, without having done anything.
    Fail(io::ErrorKind),
    /// Fails with this error number of the system, without having done anything.
    Errno(i32),
    /// Does its work, then fails with this kind: the answer was lost.
    FailAfter(io::ErrorKind),
    /// Blocks until [`FaultControl::release`], then does its work.
    Hang,
    /// Does its work, then blocks until [`FaultControl::release`]: the answer is late.
    HangAfter,
}

/// Chooses which calls go wrong. Cloned handles steer the same share.
#[derive(Clone, Default)]
pub struct FaultControl(Arc<(Mutex<Plan>, Condvar)>);

#[derive(Default)]
struct Plan {
    calls: u64,
    at: Option<(u64, Fault)>,
    since: Option<(u64, Fault)>,
    all: Option<Fault>,
    only_path: Option<String>,
    released: u64,
    hanging: u64,
    talks: bool,
}

impl FaultControl {
    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `n`-th call from now (1 = the next) meets `fault`, once.
    pub fn at(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        plan.at = Some((plan.calls + n, fault));
    }

    /// The `n`-th call from now (1 = the next) and every one after it meet `fault`, until
    /// [`FaultControl::heal`].
    pub fn since(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        plan.since = Some((plan.calls + n, fault));
    }

    /// Every call meets `fault`, until [`FaultControl::heal`].
    pub fn all(&self, fault: Fault) {
        self.plan().all = Some(fault);
    }

    /// Every call on this path meets `fault`, until [`FaultControl::heal`].
    pub fn all_on(&self, path: &str, fault: Fault) {
        let mut plan = self.plan();
        plan.all = Some(fault);
        plan.only_path = Some(path.to_owned());
    }

    /// The share works again; calls that hang go on.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.at = None;
        plan.since = None;
        plan.all = None;
        plan.only_path = None;
        plan.released += 1;
        self.0.1.notify_all();
    }

    /// Calls that hang go on; the plan stays.
    pub fn release(&self) {
        self.plan().released += 1;
        self.0.1.notify_all();
    }

    /// Whether bytes of the far side go on coming ([`Share::heard`]), whatever happens to the calls.
    pub fn talks(&self, talks: bool) {
        self.plan().talks = talks;
    }

    /// Calls seen so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.plan().calls
    }

    /// Calls that hang right now, or go on after having hung.
    #[must_use]
    pub fn hanging(&self) -> u64 {
        self.plan().hanging
    }

    /// Closing a file hangs where every call does; it cannot fail, and is not counted.
    fn closing(&self, path: &str) {
        let plan = self.plan();
        let here = plan.only_path.as_deref().is_none_or(|p| p == path);
        if plan.all == Some(Fault::Hang) && here {
            let since = plan.released;
            let waited = self.0.1.wait_while(plan, |p| p.released == since);
            drop(waited);
        }
    }

    pub(crate) fn run<T>(&self, path: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut plan = self.plan();
        plan.calls += 1;
        let calls = plan.calls;
        let here = plan.only_path.as_deref().is_none_or(|p| p == path);
        let fault = match plan.at {
            Some((n, fault)) if n == calls => {
                plan.at = None;
                Some(fault)
            }
            _ => {
                let since = plan.since.filter(|(n, _)| calls >= *n);
                since
                    .map(|(_, fault)| fault)
                    .or_else(|| plan.all.filter(|_| here))
            }
        };
        match fault {
            None => {
                drop(plan);
                work()
            }
            Some(Fault::Fail(kind)) => Err(kind.into()),
            Some(Fault::Errno(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::FailAfter(kind)) => {
                drop(plan);
                work()?;
                Err(kind.into())
            }
            Some(Fault::Hang) => {
                let since = plan.released;
                plan.hanging += 1;
                let plan = self
                    .0
                    .1
                    .wait_while(plan, |p| p.released == since)
                    .unwrap_or_else(PoisonError::into_inner);
                drop(plan);
                let done = work();
                self.plan().hanging -= 1;
                done
            }
            Some(Fault::HangAfter) => {
                drop(plan);
                let answer = work();
                self.hang(self.plan());
                answer
            }
        }
    }

    fn hang(&self, mut plan: std::sync::MutexGuard<'_, Plan>) {
        let since = plan.released;
        plan.hanging += 1;
        let mut plan = self
            .0
            .1
            .wait_while(plan, |p| p.released == since)
            .unwrap_or_else(PoisonError::into_inner);
        plan.hanging -= 1;
    }
}

/// Wraps a share.
pub struct FaultShare<S> {
    inner: S,
    control: FaultControl,
}

impl<S: Share> FaultShare<S> {
    /// Wraps `inner`; the control steers it from outside.
    pub fn new(inner: S) -> (Self, FaultControl) {
        let control = FaultControl::default();
        (
            Self {
                inner,
                control: control.clone(),
            },
            control,
        )
    }

    fn wrap(&self, path: &str, inner: Box<dyn ShareFile>) -> Box<dyn ShareFile> {
        Box::new(FaultFile {
            inner,
            control: self.control.clone(),
            path: path.to_owned(),
        })
    }
}

impl<S: Share> Share for FaultShare<S> {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.control.run(path, || self.inner.stat(path))
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.control.run(path, || self.inner.list(path))
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.control.run(path, || self.inner.read_link(path))
    }
    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        self.control.run(path, || self.inner.symlink(path, target))
    }
    fn has_special(&self) -> bool {
        self.inner.has_special()
    }
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        self.control
            .run(path, || self.inner.make_special(path, what, mode))
    }
    fn has_links(&self) -> bool {
        self.inner.has_links()
    }
    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        self.control.run(to, || self.inner.link(path, to))
    }
    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        self.control.run(path, || self.inner.list_xattr(path))
    }
    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.control.run(path, || self.inner.get_xattr(path, name))
    }
    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        self.control
            .run(path, || self.inner.set_xattr(path, name, value))
    }
    fn names(&self) -> Names {
        self.inner.names()
    }
    fn has_locks(&self) -> bool {
        self.inner.has_locks()
    }
    fn may_tell(&self) -> bool {
        self.inner.may_tell()
    }
    fn heard(&self) -> Option<std::time::Instant> {
        let talks = self.control.plan().talks;
        talks
            .then(std::time::Instant::now)
            .or_else(|| self.inner.heard())
    }
    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        self.control.run("", || self.inner.changes())
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        self.control
            .run(path, || self.inner.open(path, write))
            .map(|f| self.wrap(path, f))
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        self.control
            .run(path, || self.inner.create(path, mode))
            .map(|f| self.wrap(path, f))
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.control
            .run(from, || self.inner.rename(from, to, replace))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.control.run(path, || self.inner.unlink(path))
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        self.control.run(path, || self.inner.mkdir(path, mode))
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.control.run(path, || self.inner.rmdir(path))
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        self.control.run(path, || self.inner.set_attr(path, set))
    }
    fn statfs(&self) -> io::Result<Statfs> {
        self.control.run("", || self.inner.statfs())
    }
    fn probe(&self) -> io::Result<()> {
        self.control.run("", || self.inner.probe())
    }
}

struct FaultFile {
    inner: Box<dyn ShareFile>,
    control: FaultControl,
    path: String,
}

impl Drop for FaultFile {
    fn drop(&mut self) {
        self.control.closing(&self.path);
    }
}

impl ShareFile for FaultFile {
    fn stat(&self) -> io::Result<Attr> {
        self.control.run(&self.path, || self.inner.stat())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.control
            .run(&self.path, || self.inner.read_at(offset, buf))
    }
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.control
            .run(&self.path, || self.inner.write_all_at(offset, data))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.control.run(&self.path, || self.inner.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.control.run(&self.path, || self.inner.sync())
    }
    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        self.control
            .run(&self.path, || self.inner.lock(range.clone(), exclusive))
    }
    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        self.control
            .run(&self.path, || self.inner.unlock(range.clone()))
    }
}
