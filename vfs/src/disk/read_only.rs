//! A state directory that is read and never changed: what recovery writes stays in memory.
//!
//! So that a cache can be looked into with the very code that a drive recovers with, on a medium
//! that may be failing or write-protected, as often as one likes.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use storage::{FileStorage, MemStorage, Overlay, ReadAt, WriteAt};

use super::{Disk, DiskLock};

type Sheet = Arc<Overlay<Arc<dyn ReadAt>>>;

/// A directory of the system, read only.
pub struct ReadOnlyDisk {
    root: PathBuf,
    /// Names that were opened or changed here; `None`: removed.
    names: Mutex<BTreeMap<String, Option<Sheet>>>,
}

impl ReadOnlyDisk {
    /// Looks into `root`, which must be there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(root: &Path) -> io::Result<Self> {
        if !std::fs::metadata(root)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            root: root.to_owned(),
            names: Mutex::default(),
        })
    }

    fn sheet(&self, path: &str) -> io::Result<Sheet> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match names.get(path) {
            Some(Some(sheet)) => return Ok(sheet.clone()),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let below: Arc<dyn ReadAt> = Arc::new(FileStorage::open_read_only(self.root.join(path))?);
        let sheet = Arc::new(Overlay::new(below)?);
        names.insert(path.to_owned(), Some(sheet.clone()));
        Ok(sheet)
    }
}

impl Disk for ReadOnlyDisk {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn mkdir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let at = |name: &str| {
            if dir.is_empty() {
                name.to_owned()
            } else {
                format!("{dir}/{name}")
            }
        };
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<String> = match std::fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries
                .map(|e| Ok(e?.file_name().into_string().ok()))
                .filter_map(io::Result::transpose)
                .collect::<io::Result<_>>()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        found.retain(|name| !names.contains_key(&at(name)));
        let prefix = at("");
        let here = names.iter().filter(|(_, sheet)| sheet.is_some());
        found.extend(here.filter_map(|(path, _)| {
            let name = path.strip_prefix(&prefix)?;
            (!name.contains('/')).then(|| name.to_owned())
        }));
        Ok(found)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>> {
        Ok(self.sheet(path)?)
    }

    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>> {
        match self.sheet(path) {
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) => {}
        }
        let below: Arc<dyn ReadAt> = Arc::new(MemStorage::new());
        let sheet = Arc::new(Overlay::new(below)?);
        sheet.set_len(room)?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(path.to_owned(), Some(sheet.clone()));
        Ok(sheet)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let sheet = self.sheet(from)?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(from.to_owned(), None);
        names.insert(to.to_owned(), Some(sheet));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.sheet(path)?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(path.to_owned(), None);
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Shared with others who only look; keeps drives out, and is kept out by them.
    fn lock(&self) -> io::Result<Option<DiskLock>> {
        let lock = match File::open(self.root.join("lock")) {
            Ok(file) => file,
            // A copy of a cache, perhaps: nobody holds what is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Box::new(()))),
            Err(e) => return Err(e),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(Some(Box::new(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            // No locks on this file system, so no drive holds one either.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(Box::new(())))
            }
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn boot_id(&self) -> Vec<u8> {
        std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_show_and_nothing_below_changes() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("data")).unwrap();
        std::fs::write(temp.path().join("data/1"), b"below").unwrap();
        std::fs::write(temp.path().join("data/2"), b"gone").unwrap();
        let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk::open(temp.path()).unwrap());
        disk.open("data/1")
            .unwrap()
            .write_all_at(5, b" and above")
            .unwrap();
        disk.remove("data/2").unwrap();
        disk.replace("data/3", b"new").unwrap();
        let read = |path: &str| disk.read(path, 100).unwrap();
        assert_eq!(read("data/1").unwrap(), b"below and above");
        assert_eq!(read("data/2"), None);
        assert_eq!(read("data/3").unwrap(), b"new");
        let mut names = disk.list("data").unwrap();
        names.sort();
        assert_eq!(names, ["1", "3"]);
        assert_eq!(
            disk.create("data/1", 0).err().unwrap().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(std::fs::read(temp.path().join("data/1")).unwrap(), b"below");
        let mut there: Vec<_> = std::fs::read_dir(temp.path().join("data"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        assert_eq!(there, ["1", "2"]);
    }
}
