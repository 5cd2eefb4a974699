//! Handing whole cached files to the kernel, for mounts that ask for it.
//!
//! Where the daemon may (root), a read-only open of an opaque file that is wholly here is answered with
//! the cache file itself: the kernel reads it without asking us.
//!
//! The price is why this is not the default. While one such open lives the kernel wants every other open of
//! that inode to be of the same kind, and would let a writer map the cache file, past the journal. There
//! is no way to take such an open back. So a program that opens the file for writing meanwhile waits a
//! moment for its readers to close it, and is then refused as one that would write to a running program is
//! (`ETXTBSY`). While a file is open in any other way nobody is handed it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyOpen};

use crate::drive::{Drive, Opened};

/// How long a writer waits for readers to close the file.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Backings {
    allowed: AtomicBool,
    given: AtomicU64,
    /// Handles that read a cache file: most drives have none, and need not look further.
    through: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    /// Handles that read the cache file.
    through: HashSet<u64>,
}

#[derive(Default)]
struct Inode {
    backing: Option<Arc<BackingId>>,
    through: u32,
    paged: u32,
}

impl Backings {
    pub fn allow(&self) {
        self.allowed.store(true, Ordering::SeqCst);
    }

    /// Opens that were answered with the cache file.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file was made and opened.
    pub fn created(&self, ino: u64) {
        self.state().inodes.entry(ino).or_default().paged += 1;
    }

    /// Answers an open. The answer is given under the lock, so that another open of the inode cannot be
    /// decided as if this one were not.
    pub fn answer(&self, drive: &Drive, ino: u64, opened: Opened, write: bool, reply: ReplyOpen) {
        let fh = FileHandle(opened.handle);
        let begin = Instant::now();
        let mut state = self.state();
        while write && state.is_read(ino) {
            drop(state);
            if begin.elapsed() >= PATIENCE {
                if let Err(error) = drive.release(opened.handle) {
                    tracing::debug!(%error, "closing what is not opened");
                }
                return reply.error(Errno::ETXTBSY);
            }
            std::thread::sleep(Duration::from_millis(10));
            state = self.state();
        }
        let State { inodes, through } = &mut *state;
        let inode = inodes.entry(ino).or_default();
        if !write && inode.paged == 0 && self.allowed.load(Ordering::SeqCst) {
            // Nobody writes: what was handed out once may be handed out again.
            let backing = match &inode.backing {
                Some(backing) => Some(backing.clone()),
                None => drive
                    .backing(opened.handle)
                    .and_then(|file| self.register(&file, &reply)),
            };
            if let Some(backing) = backing {
                inode.through += 1;
                inode.backing = Some(backing.clone());
                through.insert(opened.handle);
                self.through.fetch_add(1, Ordering::SeqCst);
                self.given.fetch_add(1, Ordering::SeqCst);
                return reply.opened_passthrough(fh, FopenFlags::empty(), &backing);
            }
        }
        inode.paged += 1;
        let keep = if opened.keep_cache {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        reply.opened(fh, keep);
    }

    fn register(&self, file: &File, reply: &ReplyOpen) -> Option<Arc<BackingId>> {
        match reply.open_backing(file) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                tracing::debug!(%error, "the kernel takes no cache files: reads go through the daemon");
                self.allowed.store(false, Ordering::SeqCst);
                None
            }
        }
    }

    /// A handle was closed.
    pub fn closed(&self, ino: u64, handle: u64) {
        let mut state = self.state();
        let through = state.through.remove(&handle);
        let Some(inode) = state.inodes.get_mut(&ino) else {
            return;
        };
        if through {
            self.through.fetch_sub(1, Ordering::SeqCst);
            inode.through = inode.through.saturating_sub(1);
        } else {
            inode.paged = inode.paged.saturating_sub(1);
        }
        if inode.through == 0 {
            inode.backing = None;
        }
        if (inode.through, inode.paged) == (0, 0) {
            state.inodes.remove(&ino);
        }
    }

    /// Whether programs read the inode's cache file directly: it cannot be cut then, by name either.
    pub fn exposed(&self, ino: u64) -> bool {
        self.through.load(Ordering::SeqCst) > 0 && self.state().is_read(ino)
    }
}

impl State {
    fn is_read(&self, ino: u64) -> bool {
        self.inodes.get(&ino).is_some_and(|i| i.through > 0)
    }
}
