//! What the cache may take: the volume's room, the quota, and whose bytes give way (R4).
//!
//! Two limits hold. On the *volume*, a write needs room twice (journal and cache file), and room
//! for what was accepted but is not in the cache files yet, and a reserve, stay free. Under the
//! *quota* count the share's bytes that lie here; programs' writes may use all of it, copies of the
//! share leave a sixteenth, so that a cache full of copies still takes writes while it makes room.
//!
//! Room is made by giving up whole files, those not used for longest first: only clean ones (every
//! byte is on the share), closed ones, and none that is pinned. That a file was given up is durable
//! before its bytes go, so that a crash never leaves bytes counted that are not there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::Drive;
use crate::error::{Error, Result};
use crate::file::{FileNode, FileState};
use crate::journal::record::MetaRecord;

/// Ask again after this many bytes.
const GRANT: u64 = 4 << 20;

/// What asks for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// A program's write to the drive.
    Write,
    /// A copy of what the share has.
    Copy,
}

type Ask = Arc<dyn Fn() -> u64 + Send + Sync>;

pub(crate) struct Space {
    ask: Option<Ask>,
    reserve: u64,
    quota: Option<u64>,
    /// Bytes that may be taken before asking again: on the volume, under the quota.
    grant: Mutex<(u64, u64)>,
    /// Held while room is looked for, so that two who do so do not both count it.
    looking: Mutex<()>,
}

impl Space {
    pub fn new(ask: Option<Ask>, reserve: u64, quota: Option<u64>) -> Self {
        Self {
            ask,
            reserve,
            quota,
            grant: Mutex::default(),
            looking: Mutex::default(),
        }
    }

    fn grant(&self) -> std::sync::MutexGuard<'_, (u64, u64)> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, len: u64, growth: u64) -> bool {
        let mut grant = self.grant();
        match (grant.0.checked_sub(len), grant.1.checked_sub(growth)) {
            (Some(a), Some(b)) => {
                *grant = (a, b);
                true
            }
            _ => false,
        }
    }
}

/// A pinned file that is not wholly here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Path on the drive.
    pub path: String,
    /// Bytes that are here.
    pub cached: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// The file that is being fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    /// Path on the drive.
    pub path: String,
    /// Bytes that are here.
    pub cached: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// Where the cache stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus {
    /// The quota in bytes; `None`: the volume is the limit.
    pub limit: Option<u64>,
    /// Bytes of the share's files that are here.
    pub used: u64,
    /// How many of them belong to pinned files.
    pub pinned: u64,
    /// Pinned files.
    pub pinned_files: usize,
    /// Pinned files that would not be whole if the link went now, by path.
    pub incomplete: Vec<Incomplete>,
    /// What is being fetched in the background.
    pub filling: Option<Filling>,
    /// Why the last attempt to fetch the pinned files did not end well.
    pub trouble: Option<String>,
    /// The volume's name, where the cache lies on one that is carried about.
    pub volume: Option<String>,
}

impl Drive {
    /// Whether the path's file is kept here whole.
    #[must_use]
    pub fn is_pinned(&self, path: &str) -> bool {
        self.pins.matches(path)
    }

    /// Room for `len` more bytes on the volume, of which `growth` are new to the cache; makes some
    /// where it must. Called without any file's state locked.
    pub(crate) fn check_space(&self, len: u64, growth: u64, who: For) -> Result<()> {
        if self.space.take(len, growth) {
            return Ok(());
        }
        let _looking = self
            .space
            .looking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.space.take(len, growth) {
            return Ok(());
        }
        let mut freed_all = false;
        loop {
            let volume = self.free_on_volume();
            let (quota, kept) = self.free_under_quota();
            let quota_here = match who {
                For::Write => quota,
                For::Copy => quota.saturating_sub(kept),
            };
            if volume >= len && quota_here >= growth {
                let spare = quota.saturating_sub(kept).saturating_sub(growth);
                *self.space.grant() = (((volume - len) / 8).min(GRANT), (spare / 8).min(GRANT));
                return Ok(());
            }
            *self.space.grant() = (0, 0);
            if freed_all {
                let full = if volume < len {
                    "the state directory's volume is full"
                } else {
                    "the cache is full of data that must stay"
                };
                return Err(Error::NoSpace(full));
            }
            let want = len.saturating_sub(volume).saturating_mul(2);
            let want = want.max(growth.saturating_sub(quota_here));
            if self.evict(want) < want {
                // Journaled bytes keep their files from being given up, and the journal long.
                if let Err(error) = self.checkpoint() {
                    tracing::debug!(%error, "checkpoint to make room");
                }
                self.evict(want);
                freed_all = true;
            }
        }
    }

    fn free_on_volume(&self) -> u64 {
        let available = match &self.space.ask {
            Some(ask) => ask(),
            None => self.dir.available(),
        };
        // What is accepted already still has to go to the cache files; a write needs room twice.
        let owed = self
            .unwritten
            .load(Ordering::SeqCst)
            .saturating_add(self.space.reserve);
        available.saturating_sub(owed) / 2
    }

    /// Bytes free under the quota, and how many of them copies leave alone.
    fn free_under_quota(&self) -> (u64, u64) {
        let Some(quota) = self.space.quota else {
            return (u64::MAX, 0);
        };
        let used: u64 = self
            .files()
            .iter()
            .map(|(_, f)| f.read().valid.total())
            .sum();
        (quota.saturating_sub(used), quota / 16)
    }

    /// Gives up clean, closed, unpinned files, those not used for longest first, until `want`
    /// bytes are free. Returns how many are.
    pub(crate) fn evict(&self, want: u64) -> u64 {
        let mut candidates: Vec<(i64, u64, Arc<FileNode>)> = self
            .files()
            .into_iter()
            .filter_map(|(node, file)| {
                let st = file.read();
                let used = may_go(&st).then_some(st.used)?;
                drop(st);
                Some((used, node, file))
            })
            .collect();
        candidates.retain(|(_, node, _)| {
            let tree = self.tree();
            let here = tree.nodes.get(node).is_some_and(|n| n.linked);
            here && tree.share_path(*node).is_some()
                && !tree.place_in_doubt(*node)
                && !self.is_pinned(&tree.path(*node))
        });
        candidates.sort_by_key(|c| (c.0, c.1));
        let mut freed = 0;
        for (_, node, file) in candidates {
            if freed >= want {
                break;
            }
            match self.evict_file(&file) {
                Ok(0) => {}
                Ok(n) => {
                    freed += n;
                    tracing::debug!(path = self.tree().path(node), bytes = n, "left the cache");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot make room in the cache");
                    break;
                }
            }
        }
        freed
    }

    fn evict_file(&self, file: &Arc<FileNode>) -> Result<u64> {
        // Whoever holds one of these uses the file; and asking must not wait for itself.
        let (Ok(_open), Ok(_io)) = (file.open.try_lock(), file.io.try_lock()) else {
            return Ok(0);
        };
        let (bytes, lsn) = {
            let mut st = file.write();
            if !may_go(&st) {
                return Ok(0);
            }
            let lsn = self.log(MetaRecord::Evicted { file: file.id })?;
            let bytes = st.valid.total();
            st.note_evicted(lsn);
            (bytes, lsn)
        };
        self.journal.sync(lsn)?;
        self.settle_direct(file)?;
        let st = file.write();
        // Unless it is being fetched again already.
        if st.valid.is_empty() {
            file.data
                .set_len(0)
                .map_err(|e| Error::from_io("emptying a cache file", e))?;
        }
        Ok(bytes)
    }

    /// Waits until the overlays have room. Called without any lock.
    pub(crate) fn wait_for_room(&self) -> Result<()> {
        let held = || self.unwritten.load(Ordering::SeqCst);
        for _ in 0..16 {
            let before = held();
            if before < self.unwritten_limit {
                break;
            }
            let done = self.checkpoint();
            if held() >= self.unwritten_limit {
                // A file that cannot be written keeps its bytes here: nothing more is accepted.
                done?;
                if held() >= before {
                    return Err(Error::NoSpace("the journal cannot be emptied"));
                }
            }
        }
        if held() >= self.unwritten_limit / 2
            && !self.bell.want_checkpoint.swap(true, Ordering::SeqCst)
        {
            self.bell.ring();
        }
        Ok(())
    }

    /// Where the cache stands.
    #[must_use]
    pub fn cache_status(&self) -> CacheStatus {
        let (mut used, mut pinned) = (0, 0);
        for (node, file) in self.files() {
            let bytes = file.read().valid.total();
            used += bytes;
            if self.is_pinned(&self.tree().path(node)) {
                pinned += bytes;
            }
        }
        let pins = self.pinned_nodes();
        let pinned_files = pins.len();
        let mut incomplete = Vec::new();
        for (node, path) in pins {
            let (file, size) = {
                let tree = self.tree();
                let Some(n) = tree.nodes.get(&node) else {
                    continue;
                };
                (n.file.clone(), n.attr.size)
            };
            let (whole, cached, size) = file.map_or((false, 0, size), |f| {
                let st = f.read();
                (st.fully_cached(), st.valid.total(), st.size)
            });
            if !whole {
                incomplete.push(Incomplete { path, cached, size });
            }
        }
        let (at, trouble) = self.pace.now();
        let filling = at.and_then(|path| {
            let found = incomplete.iter().find(|i| i.path == path)?;
            Some(Filling {
                path,
                cached: found.cached,
                size: found.size,
            })
        });
        CacheStatus {
            limit: self.space.quota,
            used,
            pinned,
            pinned_files,
            incomplete,
            filling,
            trouble,
            volume: self.dir.owner().map(|o| o.volume.clone()),
        }
    }

    /// Says to other hosts that this one has the volume; refuses all writes if it has not.
    pub(crate) fn beat(&self) {
        let Some(owner) = self.dir.owner() else {
            return;
        };
        if let Err(error) = owner.beat() {
            if owner.is_lost() {
                self.journal.poison(&error.to_string());
            }
            tracing::error!(%error, "the cache's volume");
        }
    }
}

/// Whether the share has every byte, and nobody uses the file.
fn may_go(st: &FileState) -> bool {
    st.opens == 0
        && !st.exclusive
        && st.attached
        && st.stamp.is_some()
        && !st.is_dirty()
        && !st.share_changed
        && st.online_written.is_empty()
        && st.unwritten.is_empty()
        && st.push.is_none()
        && st.outstanding.is_none()
        && st.snaps.iter().all(|s| s.strong_count() == 0)
        && !st.valid.is_empty()
}
