//! Open directories.
//!
//! A program reads a long directory in many requests. They are answered from one listing, taken when it
//! begins at the start: the share is asked once, and what comes and goes meanwhile moves nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::drive::{DirEntry, Drive};
use crate::error::{Error, Result};
use crate::share::Kind;

/// One listing: places and entries, in the order of their places.
pub(super) type Listing = Arc<Vec<(u64, DirEntry)>>;

#[derive(Default)]
pub(super) struct OpenDirs {
    open: Mutex<HashMap<u64, Option<Listing>>>,
    next: AtomicU64,
}

impl OpenDirs {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Option<Listing>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::SeqCst);
        self.open().insert(handle, None);
        handle
    }

    pub fn remove(&self, handle: u64) {
        self.open().remove(&handle);
    }

    /// The listing that `handle` goes on with, or a new one at its start.
    pub fn listing(&self, drive: &Drive, handle: u64, dir: u64, start: bool) -> Result<Listing> {
        let kept = self.open().get(&handle).cloned().ok_or(Error::BadHandle)?;
        if let (Some(listing), false) = (kept, start) {
            return Ok(listing);
        }
        let listing: Listing = Arc::new(list(drive, dir)?);
        if let Some(place) = self.open().get_mut(&handle) {
            *place = Some(listing.clone());
        }
        Ok(listing)
    }
}

/// The names in a directory, each after the place by which a program goes on behind it: its node's number,
/// which stays while others come and go.
fn list(drive: &Drive, dir: u64) -> Result<Vec<(u64, DirEntry)>> {
    let mut entries = drive.readdir(dir)?;
    entries.sort_unstable_by_key(|e| e.id);
    let dots = [(".", dir), ("..", drive.parent(dir)?)].map(|(name, id)| DirEntry {
        name: name.to_owned(),
        id,
        kind: Kind::Dir,
    });
    let dots = (1..).zip(dots);
    Ok(dots
        .chain(entries.into_iter().map(|e| (e.id + 2, e)))
        .collect())
}
