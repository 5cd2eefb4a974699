//! What the agent knows of a container's bytes, and how it trusts that: by stamps (DESIGN 2).

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use storage::{FileStorage, Leaves, ReadAt};
use sync::wire::{self, Stamp};

use crate::engine::{Engine, InventoryAnswer};
use crate::error::Fault;
use crate::platform;
use crate::site::Container;

/// Bytes that the stamp's hash covers: the PST header with room to spare.
const HEADER: u64 = 4096;
/// File systems stamp changes with a clock as coarse as 10 ms, some with one of 2 s: a file that
/// was changed this recently may be changed again without another stamp.
const SETTLES: Duration = Duration::from_secs(3);
/// How often a file that changes under the reader is read again.
const TRIES: u32 = 3;

/// A container's bytes as last read.
#[derive(Debug)]
pub struct Known {
    /// The stamp before and after.
    pub stamp: Stamp,
    /// Digests of all leaves.
    pub leaves: Leaves,
    /// The inventory, once it was asked for.
    pub inventory: Option<Arc<InventoryAnswer>>,
    /// The stamp is old enough to tell of any later change.
    settled: bool,
}

impl Known {
    /// Length and root.
    pub fn generation(&self) -> wire::Generation {
        to_wire(self.leaves.generation())
    }

    /// Something that was read from `container` while nobody else could change it.
    pub fn of(
        container: &dyn Container,
        leaves: Leaves,
        inventory: Arc<InventoryAnswer>,
    ) -> io::Result<Self> {
        let stamp = container.stamp()?;
        Ok(Self {
            stamp,
            leaves,
            inventory: Some(inventory),
            settled: is_settled(&stamp),
        })
    }

    /// The digests of `container`: from `slot` where the stamp vouches for them, else read.
    pub fn refresh<'s>(
        slot: &'s mut Option<Self>,
        path: &str,
        container: &dyn Container,
    ) -> Result<&'s mut Self, Fault> {
        let io = |e: io::Error| Fault::io(path, &e);
        let now = container.stamp().map_err(io)?;
        if !slot
            .as_ref()
            .is_some_and(|known| known.settled && known.stamp == now)
        {
            // What was known of other bytes must not survive a failure below.
            let old = slot.take();
            let (leaves, read_at) = read_leaves(path, container)?;
            // The same bytes have the same inventory.
            let inventory = old
                .filter(|o| o.leaves.generation() == leaves.generation())
                .and_then(|o| o.inventory);
            let settled = is_settled(&read_at);
            *slot = Some(Self {
                stamp: read_at,
                leaves,
                inventory,
                settled,
            });
        }
        slot.as_mut().ok_or_else(|| Fault::in_use(path))
    }

    /// The inventory of `container`, of which `self` knows the digests.
    pub fn inventory(
        &mut self,
        path: &str,
        container: &dyn Container,
        engine: &dyn Engine,
    ) -> Result<Arc<InventoryAnswer>, Fault> {
        if let Some(inventory) = &self.inventory {
            return Ok(Arc::clone(inventory));
        }
        let read = engine.inventory(container.storage() as Arc<dyn ReadAt>, None);
        // A file that changed meanwhile explains any failure.
        if container.stamp().map_err(|e| Fault::io(path, &e))? != self.stamp {
            return Err(Fault::in_use(path));
        }
        let inventory = Arc::new(read.map_err(|e| Fault::engine(path, &e))?);
        self.inventory = Some(Arc::clone(&inventory));
        Ok(inventory)
    }
}

fn read_leaves(path: &str, container: &dyn Container) -> Result<(Leaves, Stamp), Fault> {
    let io = |e: io::Error| Fault::io(path, &e);
    for _ in 0..TRIES {
        let before = container.stamp().map_err(io)?;
        let leaves = container.leaves();
        if container.stamp().map_err(io)? == before {
            return Ok((leaves.map_err(io)?, before));
        }
    }
    Err(Fault::in_use(path))
}

/// The stamp of an open file.
pub fn stamp(storage: &FileStorage) -> io::Result<Stamp> {
    let identity = platform::identity(storage.file())?;
    let len = storage.len()?;
    let mut header = vec![0; usize::try_from(len.min(HEADER)).unwrap_or(0)];
    let filled = storage.read_at(0, &mut header)?;
    header.truncate(filled);
    Ok(Stamp {
        len,
        changed_ns: identity.changed_ns,
        file_id: identity.file_id,
        device: identity.device,
        header: *blake3::hash(&header).as_bytes(),
    })
}

fn is_settled(stamp: &Stamp) -> bool {
    let changed = Duration::from_nanos(u64::try_from(stamp.changed_ns).unwrap_or(0));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.checked_sub(changed).is_some_and(|age| age >= SETTLES)
}

/// The wire's form of a generation.
pub const fn to_wire(generation: storage::Generation) -> wire::Generation {
    wire::Generation {
        len: generation.len,
        root: generation.root,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exclusive::Exclusivity;
    use crate::local::LocalSite;
    use crate::site::{Access, Site};

    #[test]
    fn a_stamp_vouches_only_once_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box");
        std::fs::write(&path, b"new bytes").unwrap();
        let site = LocalSite::open(dir.path(), Exclusivity::Promised).unwrap();
        let container = site.open("box", Access::Read).unwrap();
        let right = container.leaves().unwrap();
        let stale = Leaves::hash(&storage::MemStorage::from(b"old bytes".as_slice())).unwrap();
        let now = container.stamp().unwrap();
        for (settled, other_stamp, expected) in [
            (true, false, &stale),
            (false, false, &right),
            (true, true, &right),
        ] {
            let mut stamp = now;
            stamp.changed_ns -= i64::from(other_stamp);
            let leaves = stale.clone();
            let mut slot = Some(Known {
                stamp,
                leaves,
                inventory: None,
                settled,
            });
            let known = Known::refresh(&mut slot, "box", &*container).unwrap();
            assert_eq!(known.leaves, *expected, "{settled} {other_stamp}");
        }
    }

    #[test]
    fn what_was_changed_just_now_has_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box");
        std::fs::write(&path, b"x").unwrap();
        let mut stamp = stamp(&FileStorage::open(&path).unwrap()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        stamp.changed_ns = i64::try_from(now.as_nanos()).unwrap();
        assert!(!is_settled(&stamp));
        stamp.changed_ns -= i64::try_from(SETTLES.as_nanos()).unwrap();
        assert!(is_settled(&stamp));
        // A clock that was set back tells nothing.
        stamp.changed_ns += 3_600_000_000_000;
        assert!(!is_settled(&stamp));
    }
}
