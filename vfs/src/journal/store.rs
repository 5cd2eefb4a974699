//! Where the journal's segments live: a directory, or memory (tests).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use storage::{MemStorage, ReadAt, WriteAt};

use crate::disk::Disk;

/// A set of numbered segments.
pub trait JournalStore: Send + Sync {
    /// Numbers of all segments, ascending.
    fn list(&self) -> io::Result<Vec<u64>>;
    /// Creates a segment with room for `len` bytes.
    fn create(&self, seq: u64, len: u64) -> io::Result<Arc<dyn WriteAt>>;
    /// Opens an existing segment.
    fn open(&self, seq: u64) -> io::Result<Arc<dyn WriteAt>>;
    /// Removes a segment.
    fn remove(&self, seq: u64) -> io::Result<()>;
    /// Makes creations and removals durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Gets a segment of `len` bytes ready, so that the next [`JournalStore::create`] is quick.
    fn prepare(&self, len: u64) -> io::Result<()>;
}

/// File name of a segment.
#[must_use]
pub fn name_of(seq: u64) -> String {
    format!("{seq:016x}.seg")
}

/// Segments as files in the directory `journal`.
pub struct DirStore {
    disk: Arc<dyn Disk>,
    /// Length of the file `spare`, once it is ready.
    spare: Mutex<Option<u64>>,
}

const DIR: &str = "journal";

fn path_of(name: &str) -> String {
    format!("{DIR}/{name}")
}

impl DirStore {
    /// Uses the directory, which is there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(disk: Arc<dyn Disk>) -> io::Result<Self> {
        for left in ["spare", "spare.new"] {
            match disk.remove(&path_of(left)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(Self {
            disk,
            spare: Mutex::new(None),
        })
    }
}

impl JournalStore for DirStore {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut seqs: Vec<u64> = self
            .disk
            .list(DIR)?
            .iter()
            .filter_map(|name| name.strip_suffix(".seg"))
            .filter(|stem| stem.len() == 16)
            .filter_map(|stem| u64::from_str_radix(stem, 16).ok())
            .collect();
        seqs.sort_unstable();
        Ok(seqs)
    }

    fn create(&self, seq: u64, len: u64) -> io::Result<Arc<dyn WriteAt>> {
        let path = path_of(&name_of(seq));
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.take() == Some(len) {
            self.disk.rename(&path_of("spare"), &path)?;
            return self.disk.open(&path);
        }
        drop(spare);
        self.disk.create(&path, len)
    }

    fn open(&self, seq: u64) -> io::Result<Arc<dyn WriteAt>> {
        self.disk.open(&path_of(&name_of(seq)))
    }

    fn remove(&self, seq: u64) -> io::Result<()> {
        self.disk.remove(&path_of(&name_of(seq)))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_dir(DIR)
    }

    fn prepare(&self, len: u64) -> io::Result<()> {
        if self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            return Ok(());
        }
        // Zeros are really written: a flush into blocks that exist needs no file system
        // transaction, which is most of its cost.
        let path = path_of("spare.new");
        let _ = self.disk.remove(&path);
        let file = self.disk.create(&path, 0)?;
        let zeros = vec![0; 1 << 16];
        let mut at = 0;
        while at < len {
            let n = (len - at).min(zeros.len() as u64);
            let part = zeros.get(..n as usize).unwrap_or(&zeros);
            if let Err(e) = file.write_all_at(at, part) {
                let _ = self.disk.remove(&path);
                return Err(e);
            }
            at += n;
        }
        file.sync()?;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        self.disk.rename(&path, &path_of("spare"))?;
        *spare = Some(len);
        Ok(())
    }
}

/// Segments in memory, shared by clones: a test drops the journal, keeps the store, and opens it
/// again; or cuts a segment first.
#[derive(Clone, Default)]
pub struct MemStore(Arc<Mutex<BTreeMap<u64, Arc<MemStorage>>>>);

impl MemStore {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<MemStorage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies everything, so that a cut does not touch the original.
    #[must_use]
    pub fn fork(&self) -> Self {
        let map = self.map();
        let copy = map
            .iter()
            .map(|(&k, v)| (k, Arc::new(MemStorage::from(v.to_vec()))));
        Self(Arc::new(Mutex::new(copy.collect())))
    }

    /// The bytes of a segment.
    #[must_use]
    pub fn bytes(&self, seq: u64) -> Option<Vec<u8>> {
        self.map().get(&seq).map(|s| s.to_vec())
    }

    /// Replaces a segment's bytes.
    pub fn put(&self, seq: u64, bytes: Vec<u8>) {
        self.map().insert(seq, Arc::new(MemStorage::from(bytes)));
    }
}

impl JournalStore for MemStore {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.map().keys().copied().collect())
    }
    fn create(&self, seq: u64, len: u64) -> io::Result<Arc<dyn WriteAt>> {
        let file = Arc::new(MemStorage::new());
        file.set_len(len)?;
        self.map().insert(seq, file.clone());
        Ok(file)
    }
    fn open(&self, seq: u64) -> io::Result<Arc<dyn WriteAt>> {
        let file = self
            .map()
            .get(&seq)
            .cloned()
            .ok_or(io::ErrorKind::NotFound)?;
        debug_assert!(file.len().is_ok());
        Ok(file)
    }
    fn remove(&self, seq: u64) -> io::Result<()> {
        self.map()
            .remove(&seq)
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
    fn prepare(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
