//! Calls to the share, each with a deadline (R11, R12).
//!
//! A share call may hang for as long as a dead server likes. It therefore runs on a thread of an
//! elastic pool while the caller waits no longer than the stall budget; a call that exceeds it is
//! left behind (its thread ends when the call does) and the caller gets a link error. After a
//! stall one probe is sent; until it answers, further calls get a quarter of the budget, and when
//! that is over they fail at once: a program that needs several answers waits once.

mod pool;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

pub use self::pool::Pool;
use crate::error::{Error, Result};
use crate::limit::telling;
use crate::path::Names;
use crate::share::{Attr, ReadDone, Share, ShareFile, Stamp, Within};

/// The way to the share.
pub struct Link {
    share: Arc<dyn Share>,
    pool: Pool,
    budget: Duration,
    suspect: Arc<AtomicBool>,
    probing: Arc<AtomicBool>,
    /// Callers of [`Link::probe`] whose question was not answered yet.
    asking: Arc<AtomicUsize>,
    calls: AtomicU64,
}

/// While something comes from the share, who has nothing but its answer waits on; but not longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a call is waited for.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// For an answer, or for a sign that the share sends what was asked for earlier.
    budget: Duration,
    /// For the answer, while there are such signs.
    patience: Duration,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Wait<'a> {
    /// The whole budget.
    #[must_use]
    pub fn full(budget: Duration) -> Self {
        Self {
            budget,
            patience: budget,
            stop: None,
        }
    }

    /// The budget, or until `stop` says that nobody wants the answer any more.
    #[must_use]
    pub fn until(budget: Duration, stop: &'a AtomicBool) -> Self {
        Self {
            stop: Some(stop),
            ..Self::full(budget)
        }
    }

    /// There is nothing but the answer to be had.
    #[must_use]
    pub fn patiently(self) -> Self {
        Self {
            patience: PATIENCE.max(self.budget),
            ..self
        }
    }

    fn stopped(&self) -> bool {
        self.stop.is_some_and(|s| s.load(Ordering::SeqCst))
    }
}

/// While someone may lose interest in an answer it is awaited in steps of this length.
const STEP: Duration = Duration::from_millis(50);

/// What an answer is awaited by: in one go, or in steps.
fn receive<T>(
    rx: &mpsc::Receiver<T>,
    wait: Wait<'_>,
) -> std::result::Result<T, mpsc::RecvTimeoutError> {
    if wait.stop.is_none() {
        return rx.recv_timeout(wait.budget);
    }
    let end = Instant::now() + wait.budget;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match rx.recv_timeout(left.min(STEP)) {
            Err(mpsc::RecvTimeoutError::Timeout) if !left.is_zero() && !wait.stopped() => {}
            other => return other,
        }
    }
}

/// Counts calls that have not come back and may still take effect on the share.
#[derive(Clone, Default)]
pub struct InDoubt(Arc<Counts>);

#[derive(Default)]
struct Counts {
    running: AtomicUsize,
    /// Those of them that nobody waits for any more.
    left: AtomicUsize,
}

/// So many calls of one kind may be left behind, each with a thread of its own; the next fails at
/// once, or a single file that hangs would in time take every thread there is.
const MAX_LEFT: usize = 32;

impl InDoubt {
    /// Calls that may still take effect.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.running.load(Ordering::SeqCst)
    }

    fn begin(&self) -> Begun {
        self.0.running.fetch_add(1, Ordering::SeqCst);
        Begun {
            counts: self.0.clone(),
            left: Arc::default(),
        }
    }
}

/// One call that runs; dropped when it has come back, also by a panic.
struct Begun {
    counts: Arc<Counts>,
    /// Set by whoever comes first: the caller that goes, or the call that ends.
    left: Arc<AtomicBool>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.left.swap(true, Ordering::SeqCst) {
            self.counts.left.fetch_sub(1, Ordering::SeqCst);
        }
        self.counts.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Link {
    /// A link to `share` with the given stall budget.
    #[must_use]
    pub fn new(share: Arc<dyn Share>, budget: Duration) -> Self {
        Self {
            share,
            pool: Pool::new("share-call", 512),
            budget,
            suspect: Arc::default(),
            probing: Arc::default(),
            asking: Arc::default(),
            calls: AtomicU64::new(0),
        }
    }

    /// Whether the share holds special files.
    #[must_use]
    pub fn has_special(&self) -> bool {
        self.share.has_special()
    }

    /// Whether the share has hard links; answered from memory.
    pub fn has_links(&self) -> bool {
        self.share.has_links()
    }

    /// Which names the share can hold.
    #[must_use]
    pub fn names(&self) -> Names {
        self.share.names()
    }

    /// Whether the share's files can be locked in parts.
    #[must_use]
    pub fn has_locks(&self) -> bool {
        self.share.has_locks()
    }

    /// Whether the share may tell of changes.
    #[must_use]
    pub fn may_tell(&self) -> bool {
        self.share.may_tell()
    }

    /// The stall budget.
    #[must_use]
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// Calls so far: by how much it rises says whether the link is in use.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Whether the share is at work on what was asked, so that an answer that is late says nothing.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        heard_within(&*self.share, self.recently())
    }

    /// A share that sent anything within this time is there, however long an answer takes: its link is
    /// full. Less than the budget, so that what is silent all along never is.
    fn recently(&self) -> Duration {
        self.budget * 3 / 4
    }

    /// Whether calls are answered, as far as we know.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.suspect.load(Ordering::SeqCst)
    }

    /// Runs `work` within the stall budget.
    ///
    /// # Errors
    /// [`Error::Link`] when it stalls or the share says that the link is down; else what the share
    /// said.
    pub fn call<T: Send + 'static>(
        &self,
        context: &str,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call_for(context, self.budget, &InDoubt::default(), work)
    }

    /// Like [`Link::call`], awaited as `wait` says. An answer that nobody wants any more is a link
    /// error that says nothing about the link.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_while<T: Send + 'static>(
        &self,
        context: &str,
        wait: Wait<'_>,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(context, wait, &InDoubt::default(), work, || ())
    }

    /// Like [`Link::call`], with its own deadline, counting in `doubt` while it runs. Who gives it more than
    /// the stall budget has nothing but its answer, and waits on while the link is busy.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_for<T: Send + 'static>(
        &self,
        context: &str,
        budget: Duration,
        doubt: &InDoubt,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call_beside(context, budget, doubt, work, || ())
    }

    /// Like [`Link::call_for`]; `meanwhile` is done here while the share is at work, if it is asked at all. The
    /// deadline begins after that.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_beside<T: Send + 'static>(
        &self,
        context: &str,
        budget: Duration,
        doubt: &InDoubt,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
        meanwhile: impl FnOnce(),
    ) -> Result<T> {
        let wait = Wait::full(budget);
        let wait = if budget > self.budget {
            wait.patiently()
        } else {
            wait
        };
        self.run(context, wait, doubt, work, meanwhile)
    }

    /// Like [`Link::call`], for what cannot be had any other way, counting in `doubt` while it runs.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_patiently<T: Send + 'static>(
        &self,
        context: &str,
        doubt: &InDoubt,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let wait = Wait::full(self.budget).patiently();
        self.run(context, wait, doubt, work, || ())
    }

    fn run<T: Send + 'static>(
        &self,
        context: &str,
        wait: Wait<'_>,
        doubt: &InDoubt,
        work: impl FnOnce(&dyn Share) -> io::Result<T> + Send + 'static,
        meanwhile: impl FnOnce(),
    ) -> Result<T> {
        let budget = wait.budget;
        if !self.is_up() {
            self.start_probe();
            return Err(Error::Link(format!("{context}: the share does not answer")));
        }
        if doubt.0.left.load(Ordering::SeqCst) >= MAX_LEFT {
            return Err(Error::Link(format!(
                "{context}: {MAX_LEFT} earlier calls never came back"
            )));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        // Another call just stalled: one program's path of several names must not wait for the whole
        // budget at each of them.
        let hurried = self.probing.load(Ordering::SeqCst) && !self.is_busy();
        let budget = if hurried {
            budget.min(self.grace())
        } else {
            budget
        };
        let (tx, rx) = mpsc::sync_channel(1);
        let share = self.share.clone();
        let begun = doubt.begin();
        let left = begun.left.clone();
        let held = Arc::new(AtomicBool::new(false));
        let tells = held.clone();
        self.pool.submit(move || {
            // Counted down also when the call panics, and before the caller hears of its end.
            let answer = telling(&tells, || work(&*share));
            drop(begun);
            let _ = tx.send(answer);
        });
        meanwhile();
        let mut began = Instant::now();
        let mut answer = receive(&rx, Wait { budget, ..wait });
        while matches!(answer, Err(mpsc::RecvTimeoutError::Timeout)) && !wait.stopped() {
            let mut budget = self.grace();
            if held.load(Ordering::SeqCst) {
                // The user's limit holds it back, not the share: that time is not the share's.
                began = Instant::now();
                budget = wait.budget;
            } else if began.elapsed() >= wait.patience
                || !heard_within(&*self.share, self.budget * 2)
            {
                break;
            }
            answer = receive(&rx, Wait { budget, ..wait });
        }
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(Error::from_share(context, e)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::Link(format!(
                "{context}: the share call ended without an answer"
            ))),
            Err(mpsc::RecvTimeoutError::Timeout) if wait.stopped() => {
                Err(Error::Link(format!("{context}: given up")))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!(context, ?budget, "share call exceeds the stall budget");
                // Counted before it shows: the call may end just now, and counts down after that.
                doubt.0.left.fetch_add(1, Ordering::SeqCst);
                if left.swap(true, Ordering::SeqCst) {
                    doubt.0.left.fetch_sub(1, Ordering::SeqCst);
                }
                if hurried && self.probing.load(Ordering::SeqCst) {
                    // The probe has had its time too. (Should it answer just now, the next call
                    // sends another.)
                    self.suspect.store(true, Ordering::SeqCst);
                }
                self.start_probe();
                Err(Error::Link(format!(
                    "{context}: no answer within {budget:?}"
                )))
            }
        }
    }

    /// Whether a call may be begun that takes no thread: not while an earlier one stalls. It counts as
    /// one; its caller reports with [`Link::stalled`] if it is not answered within the stall budget.
    pub(crate) fn begin(&self) -> bool {
        let free = self.is_up() && !self.probing.load(Ordering::SeqCst);
        if free {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        free
    }

    /// A call that was begun was not answered within the stall budget.
    pub(crate) fn stalled(&self, context: &str) -> Error {
        let budget = self.budget;
        tracing::warn!(context, ?budget, "share call exceeds the stall budget");
        if !self.is_busy() {
            self.start_probe();
        }
        Error::Link(format!("{context}: no answer within {budget:?}"))
    }

    /// Asks the share, within the budget, whether it is there. One question at a time: while an
    /// earlier one hangs the answer is no.
    ///
    /// # Errors
    /// [`Error::Link`].
    pub fn probe(&self) -> Result<()> {
        let asking = CountDown(self.asking.clone());
        if self.asking.fetch_add(1, Ordering::SeqCst) > 0 {
            if self.is_busy() {
                return Ok(());
            }
            return Err(Error::Link("probe: an earlier one hangs".to_owned()));
        }
        let (tx, rx) = mpsc::sync_channel(1);
        let share = self.share.clone();
        self.pool.submit(move || {
            let answer = share.probe();
            drop(asking);
            let _ = tx.send(answer);
        });
        match rx.recv_timeout(self.budget) {
            Ok(Ok(())) => {
                self.suspect.store(false, Ordering::SeqCst);
                Ok(())
            }
            Ok(Err(e)) => Err(Error::Link(format!("probe: {e}"))),
            Err(_) if self.is_busy() => Ok(()),
            Err(_) => Err(Error::Link("probe: no answer".to_owned())),
        }
    }

    /// How long a probe may take before calls fail fast.
    fn grace(&self) -> Duration {
        self.budget / 4
    }

    /// One probe at a time; calls fail fast from when it exceeds its time until it answers.
    fn start_probe(&self) {
        if self.probing.swap(true, Ordering::SeqCst) {
            return;
        }
        let answered = Arc::new(AtomicBool::new(false));
        let (share, suspect, probing) = (
            self.share.clone(),
            self.suspect.clone(),
            self.probing.clone(),
        );
        let done = answered.clone();
        self.pool.submit(move || {
            let ok = share.probe().is_ok();
            done.store(true, Ordering::SeqCst);
            suspect.store(!ok, Ordering::SeqCst);
            if !ok {
                // Not to be asked again by every call in a tight loop.
                std::thread::sleep(Duration::from_millis(200));
            }
            probing.store(false, Ordering::SeqCst);
        });
        let (grace, suspect) = (self.grace(), self.suspect.clone());
        let (share, recently) = (self.share.clone(), self.recently());
        self.pool.submit(move || {
            std::thread::sleep(grace);
            while !answered.load(Ordering::SeqCst) && heard_within(&*share, recently) {
                std::thread::sleep(grace);
            }
            if !answered.load(Ordering::SeqCst) {
                suspect.store(true, Ordering::SeqCst);
                // The answer may have come between the two lines above.
                if answered.load(Ordering::SeqCst) {
                    suspect.store(false, Ordering::SeqCst);
                }
            }
        });
    }
}

fn heard_within(share: &dyn Share, time: Duration) -> bool {
    share.heard().is_some_and(|at| at.elapsed() < time)
}

/// A file of the share whose closing keeps nobody: on a dead share `close` hangs as any call does.
struct Held {
    file: Option<Box<dyn ShareFile>>,
    closing: Arc<AtomicUsize>,
}

/// Longest wait for a close. Where the share answers it is awaited, so that a file counts as closed
/// at the share when its last handle is.
const CLOSE: Duration = Duration::from_secs(2);

/// Wraps an open file of the share so that dropping it never waits longer than [`CLOSE`].
pub(crate) fn hold(file: Box<dyn ShareFile>) -> Arc<dyn ShareFile> {
    static CLOSING: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
    Arc::new(Held {
        file: Some(file),
        closing: CLOSING.get_or_init(Arc::default).clone(),
    })
}

/// Where closes wait, so that nobody else does.
fn closers() -> &'static Pool {
    static CLOSERS: OnceLock<Pool> = OnceLock::new();
    CLOSERS.get_or_init(|| Pool::new("share-close", 512))
}

/// Drops what may hold a file of a share that does not answer, without waiting at all: for whoever
/// holds a lock, or has waited for that share already.
pub(crate) fn let_go<T: Send + 'static>(what: T) {
    closers().submit(move || drop(what));
}

impl Held {
    fn file(&self) -> io::Result<&dyn ShareFile> {
        self.file
            .as_deref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        let (tx, rx) = mpsc::sync_channel(1);
        // While another close hangs, this one is not awaited either.
        let hanging = self.closing.fetch_add(1, Ordering::SeqCst) > 0;
        let count = CountDown(self.closing.clone());
        closers().submit(move || {
            drop(file);
            drop(count);
            let _ = tx.send(());
        });
        let budget = if hanging { CLOSE / 20 } else { CLOSE };
        let _ = rx.recv_timeout(budget);
    }
}

impl ShareFile for Held {
    fn stat(&self) -> io::Result<Attr> {
        self.file()?.stat()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file()?.read_at(offset, buf)
    }

    fn begins_reads(&self, len: usize) -> bool {
        self.file.as_ref().is_some_and(|f| f.begins_reads(len))
    }

    fn begin_read(&self, offset: u64, len: usize, within: Within, done: ReadDone) {
        match self.file() {
            Ok(file) => file.begin_read(offset, len, within, done),
            Err(e) => done(Err(e)),
        }
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(offset, data)
    }

    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        self.file()?.lock(range, exclusive)
    }

    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        self.file()?.unlock(range)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file()?.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file()?.sync()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file()?.stamp()
    }
}

struct CountDown(Arc<AtomicUsize>);

impl Drop for CountDown {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, unix))]
mod tests;
