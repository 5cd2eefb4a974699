//! Byte-range locks of programs (`fcntl`), and how they are waited for (`F_SETLKW`).
//!
//! Nobody tells us when another computer unlocks, so a lock is tried again until it is had: at first
//! soon, then once a second. Waiting takes no thread of the pool, however many wait.
//!
//! The kernel's word that a waiting call was interrupted does not reach us through the `fuser` crate.
//! So the thread that waits is looked at: where a signal is pending for it that it does not block, the
//! call ends with `EINTR`, which the kernel turns into a restart or an error as the program wants it.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{Errno, FileHandle, INodeNo, LockOwner as Owner, ReplyEmpty, ReplyLock};

use super::lanes::Lanes;
use super::translate::{empty, report};
use crate::drive::{Drive, LockOwner};

/// How often waiting programs are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Between two tries: the first, and the longest.
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(1);
/// More programs than this cannot wait.
const MAX_WAITING: usize = 4096;

/// Kinds of locks, as `fcntl` has them on Linux.
const READ: i32 = 0;
const WRITE: i32 = 1;
const UNLOCK: i32 = 2;

/// A lock that is asked for.
struct Wanted {
    ino: u64,
    handle: u64,
    owner: LockOwner,
    range: Range<u64>,
    exclusive: bool,
    /// Wait until it is free: the thread that does, as this process sees it; 0 if it does not.
    wait: Option<u32>,
}

struct Waiter {
    wanted: Wanted,
    reply: ReplyEmpty,
    again: Instant,
    pause: Duration,
    /// A signal was pending at the last look. One that another thread takes is gone at the next.
    signalled: bool,
}

/// Those who wait.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiter>,
    /// The thread that looks at them runs.
    running: bool,
}

/// Takes locks, and lets wait for them.
pub(super) struct Waits {
    drive: Arc<Drive>,
    lanes: Lanes,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Waits {
    pub fn new(drive: Arc<Drive>, lanes: Lanes) -> Arc<Self> {
        Arc::new(Self {
            drive,
            lanes,
            queue: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `F_GETLK`: `range` from its first to its last byte.
    pub fn test(
        &self,
        fh: FileHandle,
        by: (Owner, u32),
        range: (u64, u64),
        typ: i32,
        reply: ReplyLock,
    ) {
        let bytes = range.0..range.1.saturating_add(1);
        let found = self
            .drive
            .lock_in_the_way(fh.0, owner(by), &bytes, typ == WRITE);
        match found {
            Ok(Some(l)) => {
                let kind = if l.exclusive { WRITE } else { READ };
                reply.locked(l.range.start, l.range.end - 1, kind, l.owner.pid);
            }
            Ok(None) => reply.locked(range.0, range.1, UNLOCK, 0),
            Err(e) => reply.error(report("getlk", &e)),
        }
    }

    /// `F_SETLK`, or `F_SETLKW` by the thread `wait`: answers when the lock is had, or cannot be.
    #[allow(clippy::too_many_arguments)]
    pub fn set(
        self: &Arc<Self>,
        ino: INodeNo,
        fh: FileHandle,
        by: (Owner, u32),
        range: (u64, u64),
        typ: i32,
        wait: Option<u32>,
        reply: ReplyEmpty,
    ) {
        let (owner, range) = (owner(by), range.0..range.1.saturating_add(1));
        if range.is_empty() || !matches!(typ, READ | WRITE | UNLOCK) {
            return reply.error(Errno::EINVAL);
        }
        if typ == UNLOCK {
            let this = self.clone();
            return self.lanes.submit(ino.0, move || {
                let done = this.drive.unlock_range(fh.0, owner, range);
                this.unlocked();
                empty(reply, "setlk", done);
            });
        }
        self.attempt(Waiter {
            wanted: Wanted {
                ino: ino.0,
                handle: fh.0,
                owner,
                range,
                exclusive: typ == WRITE,
                wait,
            },
            reply,
            again: Instant::now(),
            pause: SOON,
            signalled: false,
        });
    }

    /// Something was unlocked here: who waits tries at once.
    pub fn unlocked(&self) {
        let mut queue = self.queue();
        for w in &mut queue.waiting {
            w.again = Instant::now();
            w.pause = SOON;
        }
        drop(queue);
        self.changed.notify_all();
    }

    fn attempt(self: &Arc<Self>, waiter: Waiter) {
        let this = self.clone();
        self.lanes.submit(waiter.wanted.ino, move || {
            let w = &waiter.wanted;
            let answer = this
                .drive
                .lock_range(w.handle, w.owner, w.range.clone(), w.exclusive);
            match answer {
                Ok(true) => waiter.reply.ok(),
                Ok(false) if w.wait.is_none() => waiter.reply.error(Errno::EAGAIN),
                Ok(false) => this.wait(waiter),
                Err(e) => waiter.reply.error(report("setlk", &e)),
            }
        });
    }

    fn wait(self: &Arc<Self>, mut waiter: Waiter) {
        let mut queue = self.queue();
        if queue.waiting.len() >= MAX_WAITING {
            return waiter.reply.error(Errno::ENOLCK);
        }
        waiter.again = Instant::now() + waiter.pause;
        waiter.pause = (waiter.pause * 2).min(LATE);
        queue.waiting.push(waiter);
        if !queue.running {
            let this = self.clone();
            let looks = std::thread::Builder::new()
                .name("lock-waits".to_owned())
                .spawn(move || this.look());
            if looks.is_err() {
                for w in queue.waiting.drain(..) {
                    w.reply.error(Errno::ENOLCK);
                }
                return;
            }
            queue.running = true;
        }
    }

    /// Until nobody waits any more.
    fn look(self: &Arc<Self>) {
        let mut queue = self.queue();
        loop {
            if queue.waiting.is_empty() {
                queue.running = false;
                return;
            }
            let now = Instant::now();
            let mut due = Vec::new();
            for mut w in std::mem::take(&mut queue.waiting) {
                let signalled = w.wanted.wait.is_some_and(has_signal);
                if signalled && w.signalled {
                    w.reply.error(Errno::EINTR);
                    continue;
                }
                w.signalled = signalled;
                if w.again <= now {
                    due.push(w);
                } else {
                    queue.waiting.push(w);
                }
            }
            drop(queue);
            for w in due {
                self.attempt(w);
            }
            queue = self
                .changed
                .wait_timeout(self.queue(), TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn owner((by, pid): (Owner, u32)) -> LockOwner {
    LockOwner { id: by.0, pid }
}

/// Whether a signal waits for this thread that it does not block.
fn has_signal(thread: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        return false;
    };
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}
