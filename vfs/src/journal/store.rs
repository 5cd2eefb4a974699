//! Where the journal's segments live: a directory, or memory (tests).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use storage::{FileStorage, MemStorage, ReadAt, WriteAt};

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

/// Segments as files in a directory.
pub struct DirStore {
    dir: PathBuf,
    /// Length of the file `spare`, once it is ready.
    spare: Mutex<Option<u64>>,
}

impl DirStore {
    /// Uses (and creates) `dir`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        crate::cache::create_private_dir(&dir)?;
        match std::fs::remove_file(dir.join("spare")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self {
            dir,
            spare: Mutex::new(None),
        })
    }
}

impl JournalStore for DirStore {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut seqs = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".seg")) else {
                continue;
            };
            seqs.extend(
                u64::from_str_radix(stem, 16)
                    .ok()
                    .filter(|_| stem.len() == 16),
            );
        }
        seqs.sort_unstable();
        Ok(seqs)
    }

    fn create(&self, seq: u64, len: u64) -> io::Result<Arc<dyn WriteAt>> {
        let path = self.dir.join(name_of(seq));
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if *spare == Some(len) {
            *spare = None;
            std::fs::rename(self.dir.join("spare"), &path)?;
            return Ok(Arc::new(FileStorage::open(path)?));
        }
        drop(spare);
        let file = crate::cache::create_private_file(&path)?;
        let reserve = allocate(&file, len);
        if let Err(e) = reserve {
            drop(file);
            let _ = std::fs::remove_file(&path);
            return Err(e);
        }
        drop(file);
        Ok(Arc::new(FileStorage::open(path)?))
    }

    fn open(&self, seq: u64) -> io::Result<Arc<dyn WriteAt>> {
        Ok(Arc::new(FileStorage::open(self.dir.join(name_of(seq)))?))
    }

    fn remove(&self, seq: u64) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name_of(seq)))
    }

    fn sync_names(&self) -> io::Result<()> {
        crate::cache::sync_dir(&self.dir)
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
        let path = self.dir.join("spare.new");
        let _ = std::fs::remove_file(&path);
        let file = FileStorage::open({
            drop(crate::cache::create_private_file(&path)?);
            &path
        })?;
        let zeros = vec![0; 1 << 16];
        let mut at = 0;
        while at < len {
            let n = (len - at).min(zeros.len() as u64);
            let part = zeros.get(..n as usize).unwrap_or(&zeros);
            if let Err(e) = file.write_all_at(at, part) {
                let _ = std::fs::remove_file(&path);
                return Err(e);
            }
            at += n;
        }
        file.sync()?;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::rename(&path, self.dir.join("spare"))?;
        *spare = Some(len);
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &std::fs::File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Not every file system can; then ENOSPC shows with the write itself.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &std::fs::File, len: u64) -> io::Result<()> {
    file.set_len(len)
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

/// Opens an existing file for reading and writing, creating it (mode 0600) if it is missing.
pub(crate) fn open_or_create(path: &std::path::Path) -> io::Result<FileStorage> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(f) => drop(f),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            drop(crate::cache::create_private_file(path)?);
        }
        Err(e) => return Err(e),
    }
    FileStorage::open(path)
}
