//! A small durable key-value store, on sled, used as DESIGN 7 says.
//!
//! It promises: what [`KvStore::commit`] returned for survives power loss, all of it or nothing;
//! a damaged value is an error, never another value; a database that does not open is set aside
//! and a new, empty one takes its place ([`KvStore::quarantined`] names the old one).
//! So it must only hold what can be rebuilt, or whose loss is answered safely.
//!
//! sled 0.34 does not fsync on Linux when it flushes (it calls `sync_file_range`): after each
//! flush the file `db` is synced here, and at creation `conf` and the directories are.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use bincode::{Decode, Encode};

use crate::record::{self, RecordError};

/// Version of every value stored.
const VERSION: u8 = 1;
/// The most bytes of one value.
const MAX_VALUE: usize = 64 << 20;
/// Memory for sled's page cache, bytes.
const CACHE: u64 = 16 << 20;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// Another process, or another part of this one, has the store open.
    #[error("{} is in use by another pstsyncd; stop that one first", .0.display())]
    InUse(PathBuf),
    /// The file system failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// sled failed.
    #[error("database: {0}")]
    Sled(#[from] sled::Error),
    /// A value is damaged, or of a version that this program does not read.
    #[error("database value: {0}")]
    Record(#[from] RecordError),
    /// An earlier sync failed: what is durable is unknown until the store is opened again.
    #[error("the database is stopped after a failed write; start again once the disk is well")]
    Poisoned,
}

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Write {
    /// Sets `key` to `record`.
    ///
    /// # Errors
    /// [`KvError::Record`] if the record does not encode.
    pub fn put<T: Encode>(key: Vec<u8>, record: &T) -> Result<Self, KvError> {
        Ok(Self {
            key,
            value: Some(record::encode(VERSION, record)?),
        })
    }

    /// Removes `key`; no error if it is not there.
    #[must_use]
    pub const fn delete(key: Vec<u8>) -> Self {
        Self { key, value: None }
    }
}

/// The store. Shared between threads behind a reference.
pub struct KvStore {
    db: sled::Db,
    dir: PathBuf,
    quarantined: Option<PathBuf>,
    /// Holds the database file for syncing. `None` after a failed sync: what reached the disk is
    /// then unknown, and a later sync may wrongly succeed, so nothing more is promised.
    file: Mutex<Option<File>>,
    /// Held for the store's life: sled's own lock would make a second opener look like damage.
    _lock: File,
}

impl std::fmt::Debug for KvStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvStore")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl KvStore {
    /// Opens the store in `dir`, creating it (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`KvError::InUse`] if it is open elsewhere, [`KvError::Io`] if the directory cannot be
    /// used. Damage is no error: the database is set aside and a new one opened.
    pub fn open(dir: &Path) -> Result<Self, KvError> {
        create_private_dir(dir).map_err(at(dir))?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        // A process that is just being started holds copies of our files until it becomes the
        // other program, also of a lock that was let go meanwhile.
        let mut tries = 0;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries < 20 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => return Err(KvError::InUse(dir.to_owned())),
                Err(TryLockError::Error(e)) => return Err(at(&lock_path)(e)),
            }
        }
        let data = dir.join("data");
        let (db, quarantined) = match open_sled(&data) {
            Ok(db) => (db, None),
            Err(reason) => {
                // A disk that is full or cannot be read is no damage: nothing is set aside then.
                if let Opening::Io(e) = reason {
                    return Err(at(&data)(e));
                }
                let aside = free_name(dir)?;
                fs::rename(&data, &aside).map_err(at(&data))?;
                sync_dir(dir).map_err(at(dir))?;
                tracing::error!(
                    reason = %reason,
                    aside = %aside.display(),
                    "the database did not open; it was set aside and a new one begun"
                );
                let db = open_sled(&data).map_err(|again| match again {
                    Opening::Io(e) => at(&data)(e),
                    Opening::Sled(e) => KvError::Sled(e),
                    Opening::Panic => KvError::Poisoned,
                })?;
                (db, Some(aside))
            }
        };
        let db_path = data.join("db");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&db_path)
            .map_err(at(&db_path))?;
        file.sync_all().map_err(at(&db_path))?;
        let conf = data.join("conf");
        // For writing: Windows flushes nothing that was opened to be read.
        OpenOptions::new()
            .write(true)
            .open(&conf)
            .and_then(|f| f.sync_all())
            .map_err(at(&conf))?;
        for path in [data.as_path(), dir] {
            sync_dir(path).map_err(at(path))?;
        }
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent).map_err(at(parent))?;
        }
        Ok(Self {
            db,
            dir: dir.to_owned(),
            quarantined,
            file: Mutex::new(Some(file)),
            _lock: lock,
        })
    }

    /// The directory of the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the database that did not open was put, if that happened at this opening.
    #[must_use]
    pub fn quarantined(&self) -> Option<&Path> {
        self.quarantined.as_deref()
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`KvError::Record`] if it is damaged, [`KvError::Sled`] if it cannot be read.
    pub fn get<T: Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, KvError> {
        match self.db.get(key)? {
            Some(bytes) => Ok(Some(record::decode::<T, MAX_VALUE>(VERSION, &bytes)?)),
            None => Ok(None),
        }
    }

    /// All keys that begin with `prefix`, in order, with their values.
    pub fn scan<T: Decode<()>>(&self, prefix: &[u8]) -> Scan<T> {
        Scan {
            iter: self.db.scan_prefix(prefix),
            of: PhantomData,
        }
    }

    /// All keys that begin with `prefix`, in order, whatever their values are.
    ///
    /// # Errors
    /// [`KvError::Sled`] if they cannot be read.
    pub fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, KvError> {
        let keys = self.db.scan_prefix(prefix).keys();
        keys.map(|key| Ok(key?.to_vec())).collect()
    }

    /// Makes all `writes`, in one atomic step, and returns when they are durable.
    ///
    /// # Errors
    /// [`KvError`]; the state on disk is then the one before or the one after, and after a failed
    /// sync every further commit is refused.
    pub fn commit(&self, writes: Vec<Write>) -> Result<(), KvError> {
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(open) = file.as_ref() else {
            return Err(KvError::Poisoned);
        };
        let mut batch = sled::Batch::default();
        for write in writes {
            match write.value {
                Some(value) => batch.insert(write.key, value),
                None => batch.remove(write.key),
            }
        }
        let done = self
            .db
            .apply_batch(batch)
            .and_then(|()| self.db.flush().map(drop));
        if let Err(e) = done {
            *file = None;
            return Err(KvError::Sled(e));
        }
        if let Err(e) = open.sync_data() {
            *file = None;
            return Err(at(&self.dir)(e));
        }
        Ok(())
    }
}

/// Iterator over keys and values; see [`KvStore::scan`].
pub struct Scan<T> {
    iter: sled::Iter,
    of: PhantomData<fn() -> T>,
}

impl<T: Decode<()>> Iterator for Scan<T> {
    type Item = Result<(Vec<u8>, T), KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(
            self.iter
                .next()?
                .map_err(KvError::from)
                .and_then(|(key, value)| {
                    Ok((
                        key.to_vec(),
                        record::decode::<T, MAX_VALUE>(VERSION, &value)?,
                    ))
                }),
        )
    }
}

enum Opening {
    Io(io::Error),
    Sled(sled::Error),
    Panic,
}

impl std::fmt::Display for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::Sled(e) => e.fmt(f),
            Self::Panic => f.write_str("sled panicked"),
        }
    }
}

/// Opens sled. Its threads let go of the files a moment after the last handle is dropped, so a
/// lock that is still held is tried again for two seconds (ours says that nobody else is there).
fn open_sled(path: &Path) -> Result<sled::Db, Opening> {
    for _ in 0..40 {
        match try_open_sled(path) {
            Err(Opening::Io(e)) if e.kind() == io::ErrorKind::Other => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
    try_open_sled(path)
}

fn try_open_sled(path: &Path) -> Result<sled::Db, Opening> {
    let open = || {
        sled::Config::new()
            .path(path)
            .cache_capacity(CACHE)
            .mode(sled::Mode::LowSpace)
            // Flushed by commit alone: a flush in the background is not durable anyway.
            .flush_every_ms(None)
            .open()
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(e)))
            if !matches!(
                e.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Err(Opening::Io(e))
        }
        Ok(Err(e)) => Err(Opening::Sled(e)),
        Err(_) => Err(Opening::Panic),
    }
}

fn free_name(dir: &Path) -> Result<PathBuf, KvError> {
    for n in 1..10_000u32 {
        let path = dir.join(format!("quarantine-{n}"));
        if !path.try_exists().map_err(at(&path))? {
            return Ok(path);
        }
    }
    Err(at(dir)(io::Error::other(
        "too many quarantined databases; remove some",
    )))
}

/// Makes a directory that only its owner can enter, with what leads to it.
///
/// # Errors
/// What the system says.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

#[cfg(unix)]
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> KvError {
    let path = path.to_owned();
    move |source| KvError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: u64) -> Write {
        Write::put(key.to_vec(), &value).unwrap()
    }

    #[test]
    fn commits_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv");
        let store = KvStore::open(&path).unwrap();
        store
            .commit(vec![put(b"a1", 1), put(b"a2", 2), put(b"b1", 3)])
            .unwrap();
        store
            .commit(vec![Write::delete(b"a1".to_vec()), put(b"a3", 4)])
            .unwrap();
        drop(store);
        let store = KvStore::open(&path).unwrap();
        assert!(store.quarantined().is_none());
        assert_eq!(store.get::<u64>(b"a1").unwrap(), None);
        assert_eq!(store.get::<u64>(b"b1").unwrap(), Some(3));
        let all = store
            .scan::<u64>(b"a")
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        assert_eq!(all, [(b"a2".to_vec(), 2), (b"a3".to_vec(), 4)]);
    }

    #[test]
    fn a_second_opener_is_told_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = KvStore::open(dir.path()).unwrap();
        store.commit(vec![put(b"k", 9)]).unwrap();
        assert!(matches!(KvStore::open(dir.path()), Err(KvError::InUse(_))));
        drop(store);
        assert_eq!(
            KvStore::open(dir.path()).unwrap().get::<u64>(b"k").unwrap(),
            Some(9)
        );
    }

    #[test]
    fn a_damaged_database_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = KvStore::open(dir.path()).unwrap();
        store.commit(vec![put(b"k", 9)]).unwrap();
        drop(store);
        let conf = dir.path().join("data/conf");
        fs::write(&conf, b"segment_size: banana\n").unwrap();
        let store = KvStore::open(dir.path()).unwrap();
        let aside = store.quarantined().expect("set aside").to_owned();
        assert_eq!(
            fs::read(aside.join("conf")).unwrap(),
            b"segment_size: banana\n"
        );
        assert_eq!(store.get::<u64>(b"k").unwrap(), None);
        store.commit(vec![put(b"k", 10)]).unwrap();
        drop(store);
        assert_eq!(
            KvStore::open(dir.path()).unwrap().get::<u64>(b"k").unwrap(),
            Some(10)
        );
    }

    #[test]
    fn a_damaged_value_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = KvStore::open(dir.path()).unwrap();
        store.commit(vec![put(b"k", 9)]).unwrap();
        let mut bytes = store.db.get(b"k").unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        store.db.insert(b"k", bytes).unwrap();
        assert!(matches!(
            store.get::<u64>(b"k"),
            Err(KvError::Record(RecordError::Checksum))
        ));
        assert!(store.scan::<u64>(b"").next().unwrap().is_err());
    }

    #[test]
    fn the_directory_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv");
        drop(KvStore::open(&path).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}
