//! One file's calls take a bounded number of threads, so that however many programs wait for a file
//! that hangs, there are threads for the others (R11).

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::Pool;

type Job = Box<dyn FnOnce() + Send>;

/// Calls of one file that run at once; the others wait their turn, on no thread.
const WIDTH: usize = 32;

/// A pool of threads of which each file gets a part.
#[derive(Clone)]
pub(super) struct Lanes {
    pool: Pool,
    lanes: Arc<Mutex<HashMap<u64, Lane>>>,
}

#[derive(Default)]
struct Lane {
    running: usize,
    queue: VecDeque<Job>,
}

impl Lanes {
    /// Lanes on `pool`.
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            lanes: Arc::default(),
        }
    }

    /// For what belongs to no one file.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs `job` when fewer than [`WIDTH`] calls of `file` run.
    pub fn submit(&self, file: u64, job: impl FnOnce() + Send + 'static) {
        let mut all = lock(&self.lanes);
        let lane = all.entry(file).or_default();
        if lane.running >= WIDTH {
            lane.queue.push_back(Box::new(job));
            return;
        }
        lane.running += 1;
        drop(all);
        let lanes = self.lanes.clone();
        self.pool.submit(move || {
            let mut next: Option<Job> = Some(Box::new(job));
            while let Some(job) = next {
                // A panicking job must not take the lane's accounting with it.
                let _ = catch_unwind(AssertUnwindSafe(job));
                let mut all = lock(&lanes);
                let Some(lane) = all.get_mut(&file) else {
                    return;
                };
                next = lane.queue.pop_front();
                if next.is_none() {
                    lane.running -= 1;
                    if lane.running == 0 {
                        all.remove(&file);
                    }
                }
            }
        });
    }
}

fn lock(lanes: &Mutex<HashMap<u64, Lane>>) -> MutexGuard<'_, HashMap<u64, Lane>> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}
