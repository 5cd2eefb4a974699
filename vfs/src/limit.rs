//! A limit on what may go over the link, in bytes a second, each way: one for all who use it.
//!
//! Who wants to send or receive takes bytes first, in pieces, and waits until some may go. It promises that
//! what goes in any window is at most rate times window and one piece; that a change of the limit
//! counts at once, also for who waits; and that nobody waits after [`Limit::end`]. Short questions
//! go before content.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bucket::Bucket;

/// Largest piece that is taken at once, and what may go in one go after a rest, in bytes.
pub const PIECE: u64 = 64 << 10;
/// Smallest piece of content, in bytes: less is not worth a message.
const SMALLEST: u64 = 4 << 10;

thread_local! {
    /// Set while this thread waits for a limit.
    static HELD: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Does `work`; meanwhile `held` says whether it waits for a limit, so that who waits for it knows.
pub(crate) fn telling<T>(held: &Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            HELD.set(None);
        }
    }
    HELD.set(Some(held.clone()));
    let _forget = Forget;
    work()
}

fn tell_held(is: bool) {
    HELD.with_borrow(|held| {
        if let Some(held) = held {
            held.store(is, Ordering::SeqCst);
        }
    });
}

/// Direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the share or the agent.
    Up,
    /// From there.
    Down,
}

/// Bytes a second each way; `None`: as many as go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// To the share or the agent.
    pub up: Option<u64>,
    /// From there.
    pub down: Option<u64>,
}

impl Rates {
    fn of(&self, way: Way) -> Option<u64> {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }
}

#[derive(Default)]
struct Lane {
    bucket: Option<Bucket>,
    /// Who waits with a short question.
    short: usize,
    waiting: usize,
}

#[derive(Default)]
struct Inner {
    rates: Rates,
    up: Lane,
    down: Lane,
    ended: bool,
}

impl Inner {
    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// The limit. Shared by all who use the link.
pub struct Limit {
    began: Instant,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl Limit {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rates, from now on; a rate of 0 counts as the smallest there is, 1 byte a second.
    pub fn set(&self, rates: Rates) {
        let now = self.began.elapsed();
        let mut inner = self.inner();
        if inner.rates == rates {
            return;
        }
        inner.rates = rates;
        for way in [Way::Up, Way::Down] {
            let lane = inner.lane(way);
            lane.bucket = rates.of(way).and_then(|rate| {
                let rate = rate.max(1);
                let burst = (rate / 4).clamp(SMALLEST, PIECE);
                let old = lane.bucket.take();
                match old {
                    Some(mut bucket) => bucket.set(rate, burst, now).then_some(bucket),
                    None => Bucket::new(rate, burst, now),
                }
            });
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// The rates in force.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.inner().rates
    }

    /// Whether there is a limit this way.
    #[must_use]
    pub fn is_set(&self, way: Way) -> bool {
        self.inner().rates.of(way).is_some()
    }

    /// Whether somebody waits for the limit right now.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        let inner = self.inner();
        inner.up.waiting + inner.down.waiting > 0
    }

    /// Nobody waits any more: what still goes is the last.
    pub fn end(&self) {
        self.inner().ended = true;
        self.changed.notify_all();
    }

    /// How many of `want` bytes may go now, or how long until some may. Never waits.
    ///
    /// # Errors
    /// The time after which to ask again.
    pub fn try_take(&self, way: Way, want: u64) -> Result<u64, Duration> {
        let now = self.began.elapsed();
        self.inner().take(way, want, now, false)
    }

    /// Waits until some of `want` bytes may go; answers how many: at least one, where any are wanted.
    pub fn take(&self, way: Way, want: u64) -> u64 {
        self.wait(way, want, false)
    }

    /// Waits until a short question, or its answer, may go.
    pub fn take_short(&self, way: Way, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            left -= self.wait(way, left, true).clamp(1, left);
        }
    }

    fn wait(&self, way: Way, want: u64, short: bool) -> u64 {
        let mut inner = self.inner();
        let mut counted = false;
        let granted = loop {
            match inner.take(way, want, self.began.elapsed(), short) {
                Ok(granted) => break granted,
                Err(time) => {
                    if !std::mem::replace(&mut counted, true) {
                        let lane = inner.lane(way);
                        lane.waiting += 1;
                        lane.short += usize::from(short);
                        tell_held(true);
                    }
                    let waited = self.changed.wait_timeout(inner, time);
                    inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        if counted {
            let lane = inner.lane(way);
            lane.waiting -= 1;
            lane.short -= usize::from(short);
            drop(inner);
            tell_held(false);
            self.changed.notify_all();
        }
        granted
    }
}

impl Inner {
    fn take(&mut self, way: Way, want: u64, now: Duration, short: bool) -> Result<u64, Duration> {
        /// Whoever lets others go first looks again after this time at the latest.
        const STEP: Duration = Duration::from_millis(100);
        let ended = self.ended;
        let lane = self.lane(way);
        let Some(bucket) = lane.bucket.as_mut().filter(|_| !ended) else {
            return Ok(want);
        };
        if !short && lane.short > 0 {
            return Err(STEP);
        }
        let want = want.min(PIECE);
        // Content goes in pieces that are worth a message, as soon as one is there.
        let least = if short { want } else { want.min(SMALLEST) };
        match bucket.take_at_least(least, want, now) {
            Ok(granted) => Ok(granted),
            Err(time) => Err(time.clamp(Duration::from_millis(1), Duration::from_secs(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
        let (tx, rx) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            work();
            let _ = tx.send(());
        });
        rx.recv_timeout(limit).expect("it still waits");
    }

    #[test]
    fn without_a_limit_everything_goes_at_once() {
        let limit = Limit::default();
        assert_eq!(limit.take(Way::Up, u64::MAX), u64::MAX);
        limit.set(Rates {
            up: Some(1),
            down: None,
        });
        assert_eq!(limit.take(Way::Down, 1 << 40), 1 << 40);
        assert!(limit.is_set(Way::Up) && !limit.is_set(Way::Down));
    }

    #[test]
    fn what_goes_keeps_to_the_rate() {
        let limit = Limit::default();
        limit.set(Rates {
            up: Some(1 << 20),
            down: None,
        });
        let (began, mut sent) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(600) {
            sent += limit.take(Way::Up, 1 << 20);
        }
        let most = began.elapsed().as_secs_f64() * f64::from(1 << 20) + PIECE as f64;
        assert!((sent as f64) <= most, "{sent} of {most}");
        // It does go on (the machine may be slow, so this is no figure).
        assert!(sent > 200_000, "{sent}");
    }

    #[test]
    fn a_change_and_the_end_count_at_once_for_who_waits() {
        for ended in [false, true] {
            let limit = Arc::new(Limit::default());
            limit.set(Rates {
                up: Some(1),
                down: Some(1),
            });
            // What was saved up goes first.
            while limit.try_take(Way::Down, PIECE).is_ok() {}
            let (of, waits) = (limit.clone(), limit.clone());
            std::thread::spawn(move || {
                while !waits.holds_back() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if ended {
                    waits.end();
                } else {
                    waits.set(Rates::default());
                }
            });
            within(Duration::from_secs(10), move || {
                assert_eq!(of.take(Way::Down, 1 << 30), 1 << 30);
            });
            assert!(!limit.holds_back());
        }
    }

    /// The toy version lets a question wait behind all the content that waits.
    #[test]
    fn a_short_question_goes_before_content() {
        let limit = Arc::new(Limit::default());
        limit.set(Rates {
            up: Some(8 << 10),
            down: None,
        });
        while limit.try_take(Way::Up, PIECE).is_ok() {}
        for _ in 0..16 {
            let limit = limit.clone();
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    limit.take(Way::Up, PIECE);
                }
            });
        }
        while limit.inner().up.waiting < 16 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let asks = limit.clone();
        // 16 pieces of content would take 8 s.
        within(Duration::from_secs(4), move || {
            asks.take_short(Way::Up, 256);
        });
        limit.end();
    }
}
