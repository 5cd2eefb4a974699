//! Reads that were begun and that no thread waits for.
//!
//! Their patience is looked after by one task for all of them, at intervals, while there are any: a timer for each
//! would cost as much as the read itself, where the server is near.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::session::Live;
use crate::share::{ReadDone, Within};

/// Between two looks at what is on its way, at least and at most: an eighth of the shortest patience.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// All reads that were begun.
#[derive(Default)]
pub(super) struct Reads(Arc<Mutex<Flying>>);

#[derive(Default)]
struct Flying {
    reads: Vec<Option<Read>>,
    /// Places of `reads` that are free.
    free: Vec<usize>,
    watched: bool,
}

struct Read {
    live: Arc<Live>,
    begun: Instant,
    within: Within,
    /// Gone when it was told that there is no answer in time.
    done: Option<ReadDone>,
}

/// One read; dropped without an answer, nobody is told any more.
pub(super) struct Begun {
    reads: Arc<Mutex<Flying>>,
    /// Its place, until it ended.
    at: Option<usize>,
}

fn lock(reads: &Mutex<Flying>) -> MutexGuard<'_, Flying> {
    reads.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reads {
    /// A read on `live` begins; `done` hears of its answer, or that there is none `within` those times.
    pub(super) fn begin(
        &self,
        runtime: &Runtime,
        live: &Arc<Live>,
        within: Within,
        done: ReadDone,
    ) -> Begun {
        let read = Some(Read {
            live: live.clone(),
            begun: Instant::now(),
            within,
            done: Some(done),
        });
        let mut flying = lock(&self.0);
        let at = match flying.free.pop() {
            Some(at) => at,
            None => {
                flying.reads.push(None);
                flying.reads.len() - 1
            }
        };
        if let Some(place) = flying.reads.get_mut(at) {
            *place = read;
        }
        if !std::mem::replace(&mut flying.watched, true) {
            runtime.spawn(watch(self.0.clone()));
        }
        drop(flying);
        Begun {
            reads: self.0.clone(),
            at: Some(at),
        }
    }
}

impl Begun {
    /// The answer is there.
    pub(super) fn answer(mut self, answer: io::Result<Vec<u8>>) {
        if let Some(done) = self.end() {
            done(answer);
        }
    }

    fn end(&mut self) -> Option<ReadDone> {
        let at = self.at.take()?;
        let mut flying = lock(&self.reads);
        let read = flying.reads.get_mut(at)?.take()?;
        flying.free.push(at);
        drop(flying);
        read.done
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Read {
    /// When its patience is over, as far as is known now.
    fn until(&self) -> Instant {
        let heard = self
            .live
            .heard()
            .map_or(self.begun, |at| at.max(self.begun));
        (heard + self.within.silence).min(self.begun + self.within.answer)
    }
}

/// Tells those whose patience is over. Whether the server is still there is looked at even when nobody waits.
async fn watch(reads: Arc<Mutex<Flying>>) {
    let mut look = LOOK.0;
    loop {
        tokio::time::sleep(look).await;
        let mut late = Vec::new();
        {
            let mut flying = lock(&reads);
            let now = Instant::now();
            look = LOOK.1;
            for read in flying.reads.iter_mut().flatten() {
                look = look.min(read.within.silence / 8);
                if read.until() <= now {
                    late.extend(read.done.take());
                }
                read.live.give_up_if_silent(read.begun);
            }
            look = look.max(LOOK.0);
            if flying.free.len() == flying.reads.len() {
                *flying = Flying::default();
            }
            if !flying.watched {
                return;
            }
        }
        for done in late {
            done(Err(io::ErrorKind::TimedOut.into()));
        }
    }
}
