//! What is known of containers on the share: the digests of their leaves, by stamp.
//!
//! They were worked out when a container was last read or written as a whole, and stand for as long as
//! its stamp does. With them a sync need not read the container again, and a renewal of the drive's own
//! copy reads just the leaves that differ. They may be lost: then the container is read.
//!
//! ```text
//! placed/KEY.leaves    the digests and the stamp
//! placed/KEY.part      as KEY.leaves, of a file that is still being read
//! placed/KEY.fetched   leaves that were fetched, at their places (sparse; see `bytes`)
//! placed/KEY.redo      the redo log of a change on its way (see `log`)
//! placed/KEY.sent      how much of it is on the share
//! placed/KEY.begun     the change that was begun last
//! ```
//! KEY stands for the container's path on the share.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::{Decode, Encode};
use storage::{Digest, FileStorage, Leaves};
use sync::wire::Generation;
use sync::{hex, record};
use vfs::share::Stamp;

/// What was not used for so long is of a container that is there no more.
const FORGOTTEN: Duration = Duration::from_secs(60 * 24 * 3600);

const VERSION: u8 = 1;
/// Bounds a record: the leaves of a file of two terabytes.
const MAX_RECORD: usize = 1 << 30;
const SMALL_RECORD: usize = 1024;
/// The copy of fetched leaves is begun anew when it takes more than this of the disk, in bytes.
const MAX_FETCHED: u64 = 64 << 20;

/// What is known of containers, in a directory.
pub struct Known {
    dir: PathBuf,
    /// Files have holes where nothing was written: leaves may be kept at their places.
    sparse: bool,
}

/// A change that was begun: since then the file has this time on the share, unless others wrote it.
#[derive(Encode, Decode, PartialEq, Clone, Copy, Debug)]
pub struct Begun {
    /// What the file was.
    pub base: Generation,
    /// What it is to be.
    pub target: Generation,
    /// Nanoseconds since 1970, as the share says.
    pub mtime: i64,
}

#[derive(Encode, Decode)]
struct Digests {
    path: String,
    stamp: Stamp,
    digests: Vec<Digest>,
}

impl Known {
    /// Keeps it in `dir`, which is made where it is missing; `sparse`: files there have holes where nothing
    /// was written. What was not used for long is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(dir: PathBuf, sparse: bool) -> io::Result<Self> {
        sync::kv::create_private_dir(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified());
            let age = age.ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > FORGOTTEN) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir, sparse })
    }

    /// The file that is kept for a container, by what it holds.
    pub fn file(&self, container: &str, what: &str) -> PathBuf {
        let key = blake3::hash(container.as_bytes());
        let key = hex::encode(key.as_bytes().get(..16).unwrap_or_default());
        self.dir.join(format!("{key}.{what}"))
    }

    /// The digests of a container as they were last known, and the stamp that they belong to.
    pub fn last(&self, container: &str) -> Option<(Stamp, Leaves)> {
        let known = self.read(container, "leaves")?;
        Some((
            known.stamp,
            Leaves::from_parts(known.stamp.size, known.digests)?,
        ))
    }

    fn read(&self, container: &str, what: &str) -> Option<Digests> {
        let bytes = fs::read(self.file(container, what)).ok()?;
        let known: Digests = record::decode::<_, MAX_RECORD>(VERSION, &bytes).ok()?;
        (known.path == container).then_some(known)
    }

    fn write(
        &self,
        container: &str,
        what: &str,
        stamp: Stamp,
        digests: &[Digest],
    ) -> io::Result<()> {
        let known = Digests {
            path: container.to_owned(),
            stamp,
            digests: digests.to_vec(),
        };
        let bytes = record::encode(VERSION, &known).map_err(io::Error::other)?;
        let path = self.file(container, what);
        let fresh = self.file(container, "new");
        private(&fresh, true)?.write_all(&bytes)?;
        // Not made durable: a checksum tells what a power cut left.
        fs::rename(&fresh, &path)
    }

    /// The digests of the first leaves of a container that has this stamp, of a reading that was broken off.
    pub fn part(&self, container: &str, stamp: &Stamp) -> Vec<Digest> {
        let known = self.read(container, "part");
        let known = known.filter(|known| known.stamp == *stamp);
        known.map(|known| known.digests).unwrap_or_default()
    }

    /// So far came the reading of a container. That it could not be noted only costs time.
    pub fn keep_part(&self, container: &str, stamp: Stamp, digests: &[Digest]) {
        if let Err(error) = self.write(container, "part", stamp, digests) {
            tracing::debug!(container, %error, "how far a container was read was not noted");
        }
    }

    /// The digests of a container that has this stamp.
    pub fn leaves(&self, container: &str, stamp: &Stamp) -> Option<Leaves> {
        let (known, leaves) = self.last(container)?;
        (known == *stamp).then_some(leaves)
    }

    /// From now on these are the digests.
    ///
    /// # Errors
    /// What the system says; the digests of before are then as they were.
    pub fn keep(&self, container: &str, stamp: Stamp, leaves: &Leaves) -> io::Result<()> {
        self.write(container, "leaves", stamp, leaves.digests())?;
        let _ = fs::remove_file(self.file(container, "part"));
        Ok(())
    }

    /// What is known of a container is wrong: it is read anew.
    pub fn forget(&self, container: &str) {
        for what in ["leaves", "part"] {
            let _ = fs::remove_file(self.file(container, what));
        }
    }

    /// The change that was begun last.
    pub fn begun(&self, container: &str) -> Option<Begun> {
        let bytes = fs::read(self.file(container, "begun")).ok()?;
        record::decode::<_, SMALL_RECORD>(VERSION, &bytes).ok()
    }

    /// From now on this is the change that was begun last.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(&self, container: &str, begun: &Begun) -> io::Result<()> {
        let bytes = record::encode(VERSION, begun).map_err(io::Error::other)?;
        private(&self.file(container, "begun"), true)?.write_all(&bytes)
    }

    /// The copy of leaves that were fetched; `None` where none can be kept.
    pub fn fetched(&self, container: &str) -> Option<FileStorage> {
        if !self.sparse {
            return None;
        }
        let path = self.file(container, "fetched");
        let large = fs::metadata(&path).is_ok_and(|m| m.blocks().saturating_mul(512) > MAX_FETCHED);
        private(&path, large).ok().map(FileStorage::from)
    }
}

/// A file that only its owner can open.
pub fn private(path: &Path, empty: bool) -> io::Result<fs::File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(empty)
        .mode(0o600)
        .open(path)
}
