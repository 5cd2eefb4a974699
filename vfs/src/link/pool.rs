//! Threads for calls that may hang.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// Threads made on demand, so that a job that hangs delays no other.
#[derive(Clone)]
pub struct Pool(Arc<PoolInner>);

struct PoolInner {
    state: Mutex<PoolState>,
    wake: Condvar,
    name: &'static str,
    max: usize,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

/// An idle thread ends after this long.
const IDLE: Duration = Duration::from_secs(10);

impl Pool {
    /// A pool of at most `max` threads.
    #[must_use]
    pub fn new(name: &'static str, max: usize) -> Self {
        let state = Mutex::new(PoolState::default());
        Self(Arc::new(PoolInner {
            state,
            wake: Condvar::new(),
            name,
            max: max.max(1),
        }))
    }

    /// Runs `job` on a thread of the pool: at once if one is idle or may be made.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queue.push_back(Box::new(job));
        if state.queue.len() > state.idle && state.threads < self.0.max {
            state.threads += 1;
            let inner = self.0.clone();
            let spawned = std::thread::Builder::new()
                .name(self.0.name.to_owned())
                .spawn(move || inner.work());
            if spawned.is_err() {
                state.threads -= 1;
            }
        }
        drop(state);
        self.0.wake.notify_one();
    }
}

impl PoolInner {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(job) = state.queue.pop_front() {
                drop(state);
                // A panicking job must not take the pool's accounting with it.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            }
            state.idle += 1;
            let (next, timeout) = self
                .wake
                .wait_timeout_while(state, IDLE, |s| s.queue.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
