//! A disk in memory that a power cut robs of what was not flushed: bytes by sectors, lengths, and
//! names whose directory was not flushed. For tests of what the drive promises.
//!
//! It is as hostile as POSIX allows: of the changes of names since a directory's last flush any
//! subset may survive, a file's own flush makes its name no more durable, and of its unflushed writes
//! any subset of sectors may be there. [`CrashDisk::fat`] is worse yet, as FAT and exFAT are: there a
//! rename over an existing file is two changes, and the file may be gone without the new one being there.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use storage::{CrashStorage, ReadAt, WriteAt};

use super::{Disk, DiskLock};

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct CrashDisk(Arc<Mutex<World>>);

#[derive(Clone)]
enum NameOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

impl NameOp {
    fn dir(&self) -> &str {
        match self {
            NameOp::Link(p, _) | NameOp::Unlink(p) | NameOp::Rename(p, _) => dir_of(p),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameOp::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameOp::Unlink(path) => {
                names.remove(path);
            }
            NameOp::Rename(from, to) => {
                // What it renames may itself not have survived.
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Default)]
struct World {
    /// Which life this is: rises with every power cut.
    life: u64,
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<NameOp>,
    inodes: BTreeMap<u64, Arc<CrashStorage>>,
    next: u64,
    /// Calls that change or flush something, so far.
    ops: u64,
    /// From this call on the power is gone.
    cut: Option<u64>,
    lock: Weak<()>,
    /// A rename over an existing file is no single step.
    fat: bool,
}

impl World {
    /// Counts a call; refuses it once the power is gone.
    fn step(&mut self) -> io::Result<()> {
        self.ops += 1;
        if self.cut.is_some_and(|cut| self.ops > cut) {
            Err(io::Error::other("the power is gone"))
        } else {
            Ok(())
        }
    }

    fn change(&mut self, op: NameOp) {
        op.apply(&mut self.names);
        self.pending.push(op);
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |p| p.0)
}

/// SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl CrashDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk without a journal of its own, on which a rename over an existing file may be cut in two.
    #[must_use]
    pub fn fat() -> Self {
        Self(Arc::new(Mutex::new(World {
            fat: true,
            ..World::default()
        })))
    }

    /// Calls so far that changed or flushed something.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.world().ops
    }

    /// The power goes after `n` more calls: each later one fails and does nothing.
    pub fn cut_after(&self, n: u64) {
        let mut world = self.world();
        world.cut = Some(world.ops + n);
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let world = self.world();
        world.cut.is_some_and(|cut| world.ops > cut)
    }

    /// What a power cut now leaves: `seed` chooses what of the unflushed survives. Seeds 0 and 1
    /// are the extremes: nothing of it, and all of it.
    #[must_use]
    pub fn survivor(&self, seed: u64) -> Self {
        let world = self.world();
        let mut names = world.durable.clone();
        let style = if seed < 2 { seed } else { 2 + mix(seed) % 3 };
        let prefix = mix(seed ^ 1) % (world.pending.len() as u64 + 1);
        for (i, op) in world.pending.iter().enumerate() {
            let kept = match style {
                0 => false,
                1 => true,
                2 => (i as u64) < prefix,
                _ => mix(seed ^ (i as u64) << 8) & 1 == 1,
            };
            if kept {
                op.apply(&mut names);
            }
        }
        let mut inodes = BTreeMap::new();
        for &inode in names.values() {
            let Some(file) = world.inodes.get(&inode) else {
                continue;
            };
            let image = match style {
                0 => file.synced(),
                1 => file.live(),
                _ => file.survivor_seed(mix(seed ^ inode << 16)),
            };
            inodes.insert(inode, Arc::new(CrashStorage::new(image)));
        }
        Self(Arc::new(Mutex::new(World {
            life: world.life + 1,
            durable: names.clone(),
            names,
            inodes,
            next: world.next,
            fat: world.fat,
            ..World::default()
        })))
    }

    fn file(&self, storage: Arc<CrashStorage>) -> Arc<dyn WriteAt> {
        Arc::new(CrashFile {
            disk: self.clone(),
            storage,
        })
    }
}

impl Disk for CrashDisk {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn mkdir(&self, _dir: &str) -> io::Result<()> {
        self.world().step()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let world = self.world();
        let names = world.names.keys().filter(|p| dir_of(p) == dir);
        Ok(names
            .map(|p| p.rsplit('/').next().unwrap_or(p).to_owned())
            .collect())
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>> {
        let world = self.world();
        let inode = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let storage = world.inodes.get(&inode).ok_or(io::ErrorKind::NotFound)?;
        let storage = storage.clone();
        drop(world);
        Ok(self.file(storage))
    }

    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>> {
        let mut world = self.world();
        world.step()?;
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = world.next;
        world.next += 1;
        let storage = Arc::new(CrashStorage::new(Vec::new()));
        storage.set_len(room)?;
        world.inodes.insert(inode, storage.clone());
        world.change(NameOp::Link(path.to_owned(), inode));
        drop(world);
        Ok(self.file(storage))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if world.fat && world.names.contains_key(to) {
            world.change(NameOp::Unlink(to.to_owned()));
        }
        world.change(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut world = self.world();
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.step()?;
        world.change(NameOp::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut world.pending)
            .into_iter()
            .partition(|op| op.dir() == dir);
        world.pending = later;
        for op in now {
            op.apply(&mut world.durable);
        }
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn lock(&self) -> io::Result<Option<DiskLock>> {
        let mut world = self.world();
        if world.lock.strong_count() > 0 {
            return Ok(None);
        }
        let held = Arc::new(());
        world.lock = Arc::downgrade(&held);
        Ok(Some(Box::new(held)))
    }

    fn boot_id(&self) -> Vec<u8> {
        self.world().life.to_le_bytes().to_vec()
    }
}

struct CrashFile {
    disk: CrashDisk,
    storage: Arc<CrashStorage>,
}

impl ReadAt for CrashFile {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.storage.read_at(offset, buf)
    }
}

// The world's lock is held through each change, so that a cut falls before or after it.
impl WriteAt for CrashFile {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        world.step()?;
        self.storage.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.step()?;
        self.storage.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        world.step()?;
        self.storage.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(disk: &CrashDisk, path: &str) -> Option<Vec<u8>> {
        (disk as &dyn Disk).read(path, 100).unwrap()
    }

    #[test]
    fn what_was_not_flushed_is_lost_and_only_that() {
        let disk = CrashDisk::default();
        let f = disk.create("d/a", 0).unwrap();
        f.write_all_at(0, b"one").unwrap();
        f.sync().unwrap();
        // Its name is not durable yet.
        assert_eq!(text(&disk.survivor(0), "d/a"), None);
        disk.sync_dir("d").unwrap();
        f.write_all_at(0, b"two").unwrap();
        assert_eq!(text(&disk.survivor(0), "d/a").unwrap(), b"one");
        assert_eq!(text(&disk.survivor(1), "d/a").unwrap(), b"two");
        disk.rename("d/a", "d/b").unwrap();
        assert!(text(&disk.survivor(0), "d/b").is_none());
        assert!(text(&disk.survivor(1), "d/a").is_none());
        disk.cut_after(1);
        f.sync().unwrap();
        assert!(f.write_all_at(0, b"xxx").is_err() && disk.is_cut());
        assert!(disk.sync_dir("d").is_err());
        assert_eq!(text(&disk.survivor(0), "d/a").unwrap(), b"two");
        assert_ne!(disk.survivor(0).boot_id(), disk.boot_id());
    }

    #[test]
    fn on_fat_a_rename_may_be_cut_in_two_and_a_replacement_is_still_found() {
        let disk = CrashDisk::fat();
        let kept = |disk: &CrashDisk| (disk as &dyn Disk).read_standing("meta", 100).unwrap();
        let replace = |disk: &CrashDisk, bytes: &[u8]| (disk as &dyn Disk).replace("meta", bytes);
        let mut torn = 0;
        // Each call of the first writing, of one over it, and of one over what a cut left.
        for at in 0..30 {
            for seed in 0..60 {
                let first = CrashDisk::fat();
                first.cut_after(at);
                let done = replace(&first, b"one").is_ok();
                let after = first.survivor(seed);
                let found = kept(&after);
                assert!(found.as_deref().is_none_or(|f| f == b"one"), "{at} {seed}");
                assert!(found.is_some() || !done, "{at} {seed}");
                replace(&disk, b"one").unwrap();
                let mut disk = disk.survivor(0);
                for (old, new) in [(b"one", b"two"), (b"two", b"six")] {
                    disk.cut_after(at);
                    let done = replace(&disk, new).is_ok();
                    disk = disk.survivor(seed);
                    torn += u32::from(text(&disk, "meta").is_none());
                    let found = kept(&disk).unwrap();
                    assert!(found == new || (!done && found == old), "{at} {seed}");
                    replace(&disk, new).unwrap();
                }
            }
        }
        assert!(torn > 0);
        // What was never there is not found by a name that was never finished.
        let torn = CrashDisk::fat();
        let file = torn.create("meta.first", 0).unwrap();
        file.write_all_at(0, b"half").unwrap();
        assert_eq!(kept(&torn), None);
    }

    #[test]
    fn one_lock() {
        let disk = CrashDisk::default();
        let held = disk.lock().unwrap();
        assert!(held.is_some() && disk.lock().unwrap().is_none());
        drop(held);
        assert!(disk.lock().unwrap().is_some());
    }
}
