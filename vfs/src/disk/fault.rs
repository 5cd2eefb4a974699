//! A disk whose calls fail or hang on command, journal and cache apart: for tests of the drive.

use std::io;
use std::sync::Arc;

use storage::{ReadAt, WriteAt};

use super::{Disk, DiskLock};
use crate::share::fault::FaultControl;

/// Wraps a disk.
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    /// Steers calls on the journal.
    pub journal: FaultControl,
    /// Steers calls on cache files and metadata.
    pub cache: FaultControl,
}

impl FaultDisk {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self {
            inner,
            journal: FaultControl::default(),
            cache: FaultControl::default(),
        }
    }

    fn control(&self, path: &str) -> &FaultControl {
        if path.starts_with("journal") {
            &self.journal
        } else {
            &self.cache
        }
    }

    fn wrap(&self, path: &str, inner: Arc<dyn WriteAt>) -> Arc<dyn WriteAt> {
        Arc::new(FaultFile {
            inner,
            control: self.control(path).clone(),
            path: path.to_owned(),
        })
    }
}

impl Disk for FaultDisk {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn mkdir(&self, dir: &str) -> io::Result<()> {
        self.control(dir).run(dir, || self.inner.mkdir(dir))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.control(dir).run(dir, || self.inner.list(dir))
    }
    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>> {
        let file = self.control(path).run(path, || self.inner.open(path))?;
        Ok(self.wrap(path, file))
    }
    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>> {
        let file = self
            .control(path)
            .run(path, || self.inner.create(path, room))?;
        Ok(self.wrap(path, file))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.control(from).run(from, || self.inner.rename(from, to))
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.control(path).run(path, || self.inner.remove(path))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.control(dir).run(dir, || self.inner.sync_dir(dir))
    }
    fn available(&self) -> io::Result<u64> {
        self.inner.available()
    }
    fn lock(&self) -> io::Result<Option<DiskLock>> {
        self.inner.lock()
    }
    fn boot_id(&self) -> Vec<u8> {
        self.inner.boot_id()
    }
}

struct FaultFile {
    inner: Arc<dyn WriteAt>,
    control: FaultControl,
    path: String,
}

impl ReadAt for FaultFile {
    fn len(&self) -> io::Result<u64> {
        self.control.run(&self.path, || self.inner.len())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.control
            .run(&self.path, || self.inner.read_at(offset, buf))
    }
}

impl WriteAt for FaultFile {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.control
            .run(&self.path, || self.inner.write_all_at(offset, data))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.control.run(&self.path, || self.inner.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.control.run(&self.path, || self.inner.sync())
    }
}
