//! Room for bytes that are wanted for a while and would take too much memory.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{FileStorage, WriteAt};

/// Makes temporary storages. What is put there is gone with the last reference to it, and never
/// needs to be durable.
pub trait Scratch: Send + Sync {
    /// A new, empty storage.
    ///
    /// # Errors
    /// The operating system's answer.
    fn create(&self) -> io::Result<Arc<dyn WriteAt>>;
}

/// Temporary files in a directory: readable by their owner alone, and without a name from the
/// start (Unix) or removed when closed (Windows), so that a crash leaves none behind.
#[derive(Clone, Debug)]
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// Temporary files in `dir`, which must exist when one is wanted.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }
}

impl Scratch for ScratchDir {
    fn create(&self) -> io::Result<Arc<dyn WriteAt>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self
                .0
                .join(format!(".pstsyncd-scratch-{}-{n}", std::process::id()));
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            #[cfg(windows)]
            {
                /// FILE_FLAG_DELETE_ON_CLOSE
                const DELETE_ON_CLOSE: u32 = 0x0400_0000;
                std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, DELETE_ON_CLOSE);
            }
            match options.open(&path) {
                Ok(file) => {
                    #[cfg(unix)]
                    std::fs::remove_file(&path)?;
                    return Ok(Arc::new(FileStorage::from(file)));
                }
                // Left by an earlier process of this number that died between the two calls.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadAt;

    #[test]
    fn scratch_files_are_separate_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = ScratchDir::new(dir.path());
        let (a, b) = (scratch.create().unwrap(), scratch.create().unwrap());
        a.write_all_at(3, b"abc").unwrap();
        b.write_all_at(0, b"x").unwrap();
        let mut buf = [1; 6];
        a.read_exact_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0abc");
        assert_eq!(b.len().unwrap(), 1);
        drop((a, b));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(ScratchDir::new(dir.path().join("no")).create().is_err());
    }
}
