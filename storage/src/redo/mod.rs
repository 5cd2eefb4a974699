//! The redo log: a sidecar file that lets whoever finds a half-committed file finish it.
//!
//! 1. [`RedoLog::create`] makes the whole change durable beside the target, before the first byte
//!    of the target is touched;
//! 2. [`WriteSet::commit`] changes the target;
//! 3. [`RedoLog::drop_log`] removes the sidecar, durably, once the target is synced.
//!
//! After a crash anywhere, [`RedoLog::load`] tells what is there and [`RedoLog::recover`] finishes
//! the change, **only** if every touched leaf is the base, the target, or something that a cut of
//! this very change can have left. Anything else was written by somebody else
//! ([`Outcome::Foreign`]): the target is then not touched at all.
//!
//! The log carries the bytes that the change replaces as well as those it writes. With both, a
//! foreign edit is noticed even inside the ranges that the change covers, where two writers that
//! start from one base are most likely to meet (a file header, the first free space).
//!
//! Leaves that the change does not touch are not read by `recover`; who wants the whole file
//! compared uses [`RedoLog::target`] with [`crate::Generation::of`].
//!
//! The caller keeps other writers away from the target from `load` to `drop_log`.

mod format;
mod recover;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::generation::leaf_count;
use crate::{
    Digest, FileStorage, Generation, LEAF_SIZE, Leaves, Payload, RangeSet, ReadAt, WriteSet,
};

/// Most bytes of `meta` that a log carries.
pub const MAX_META: usize = 64 * 1024;

/// Longest log file, in bytes, that is written or read. A log is never in memory as a whole.
pub const MAX_LOG_LEN: u64 = 256 << 30;

/// Most before-images and writes in a log.
pub(crate) const MAX_EXTENTS: u64 = 1 << 22;

/// Most phases in a log, and most bytes in the name of one.
pub(crate) const MAX_PHASES: usize = 4096;

/// What keeps a log from being written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedoError {
    /// The operating system's answer.
    #[error("redo log {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The base could not be read, or is not the base of the change.
    #[error("redo log: base: {0}")]
    Base(io::Error),
    /// There is a log already; it must be recovered or set aside first.
    #[error("redo log {0}: there is one already")]
    Exists(PathBuf),
    /// The log was made by a newer program. It must not be dropped.
    #[error("redo log: unknown format version {0}")]
    Version(u8),
    /// A log that was once durable and now cannot be read. The target may be half-changed, so it
    /// must not be taken for an absent log.
    #[error("redo log: damaged at byte {offset}: {field}")]
    Damaged {
        /// Where in the log file.
        offset: u64,
        /// What is wrong there.
        field: &'static str,
    },
    /// A part is larger than the format allows.
    #[error("redo log: {field}: {value} is above the limit {limit}")]
    TooLarge {
        /// Which part.
        field: &'static str,
        /// Its size.
        value: u64,
        /// The most allowed.
        limit: u64,
    },
}

/// What [`RedoLog::load`] found.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing: no change is under way.
    Absent,
    /// A log that was never made durable: the target is untouched, and
    /// [`RedoLog::drop_log`] may clear the remains away.
    Torn,
    /// A whole log: recover.
    Complete(RedoLog),
}

/// What [`RedoLog::recover`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The target was the base or a cut of this change; it is the target now, durably.
    Finished,
    /// The target had the whole change already; it is durable now.
    AlreadyDone,
    /// Somebody else changed the file. Nothing was written.
    Foreign {
        /// The first leaf that neither base, target nor a cut of this change explains; for a
        /// length that they do not explain, the leaf in which the file ends.
        leaf: u64,
    },
}

/// A change with all that is needed to finish it, as it stands in the sidecar file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedoLog {
    meta: Vec<u8>,
    base: Generation,
    target: Generation,
    /// Every leaf that a write or the change of length touches, ascending.
    leaves: Vec<LeafRecord>,
    /// The base's bytes in the ranges that the writes cover: one entry per disjoint range,
    /// ascending, clipped to the base's length.
    before: Vec<(u64, Payload)>,
    change: WriteSet,
}

/// Digests of one touched leaf; all zero where the file has no such leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LeafRecord {
    index: u64,
    base: Digest,
    target: Digest,
}

impl RedoLog {
    /// Makes `change`, whose base is `base`, durable at `path`. When this returns, the log
    /// survives power loss and the target may be touched. `meta` (who, when, under which lease;
    /// at most [`MAX_META`] bytes) is kept as it is.
    ///
    /// Reads all of `base` to name its generation; [`RedoLog::create_with_leaves`] does not.
    ///
    /// # Errors
    /// [`RedoError::Exists`] if `path` has a log; [`RedoError::Base`] if `base` is not what
    /// `change` expects; [`RedoError::TooLarge`]; [`RedoError::Io`]. No log is left then, at
    /// most its temporary file.
    pub fn create(
        path: &Path,
        change: &WriteSet,
        base: &dyn ReadAt,
        meta: &[u8],
    ) -> Result<Self, RedoError> {
        let leaves = Leaves::hash(base).map_err(RedoError::Base)?;
        Self::create_with_leaves(path, change, base, &leaves, meta)
    }

    /// As [`RedoLog::create`], for a caller who knows the leaf digests of `base`: reads only the
    /// leaves that the change touches, and checks those against `leaves`.
    ///
    /// # Errors
    /// As [`RedoLog::create`].
    pub fn create_with_leaves(
        path: &Path,
        change: &WriteSet,
        base: &dyn ReadAt,
        leaves: &Leaves,
        meta: &[u8],
    ) -> Result<Self, RedoError> {
        let (mut log, before) = Self::build(change, base, leaves, meta)?;
        if path.try_exists().map_err(io_at(path))? {
            return Err(RedoError::Exists(path.to_owned()));
        }
        let temp = temp_path(path);
        // Read again through the same handle, for the before-images.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temp)
            .map_err(io_at(&temp))?;
        log.write(&before, base, &file, &temp)?;
        file.sync_all().map_err(io_at(&temp))?;
        fs::rename(&temp, path).map_err(io_at(path))?;
        sync_dir_of(path)?;
        Ok(log)
    }

    /// Reads what is at `path`.
    ///
    /// A log gets its final name only after its bytes are durable, so a temporary file alone is
    /// [`Loaded::Torn`], while an unreadable file under the final name is [`RedoError::Damaged`].
    ///
    /// # Errors
    /// [`RedoError::Damaged`], [`RedoError::Version`], [`RedoError::TooLarge`],
    /// [`RedoError::Io`].
    pub fn load(path: &Path) -> Result<Loaded, RedoError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let temp = temp_path(path);
                let torn = temp.try_exists().map_err(io_at(&temp))?;
                return Ok(if torn { Loaded::Torn } else { Loaded::Absent });
            }
            Err(e) => return Err(io_at(path)(e)),
        };
        let len = file.metadata().map_err(io_at(path))?.len();
        limit("log length", len, MAX_LOG_LEN)?;
        Self::read(Arc::new(FileStorage::from(file)), len, path).map(Loaded::Complete)
    }

    /// Removes the log at `path` and what is left of an unfinished one, durably. Not being there
    /// is no error.
    ///
    /// # Errors
    /// [`RedoError::Io`].
    pub fn drop_log(path: &Path) -> Result<(), RedoError> {
        for path in [&temp_path(path), path] {
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_at(path)(e)),
            }
        }
        sync_dir_of(path)
    }

    /// The caller's bytes.
    #[must_use]
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// The generation that the change starts from.
    #[must_use]
    pub fn base(&self) -> Generation {
        self.base
    }

    /// The generation that the change leads to.
    #[must_use]
    pub fn target(&self) -> Generation {
        self.target
    }

    /// The change.
    #[must_use]
    pub fn change(&self) -> &WriteSet {
        &self.change
    }

    /// The log without its before-images, and where those are.
    fn build(
        change: &WriteSet,
        base: &dyn ReadAt,
        base_leaves: &Leaves,
        meta: &[u8],
    ) -> Result<(Self, RangeSet), RedoError> {
        limit("meta", meta.len() as u64, MAX_META as u64)?;
        limit("phases", change.phases.len() as u64, MAX_PHASES as u64)?;
        let covered = change.covered();
        let target = change.preview(base).map_err(RedoError::Base)?;

        let mut now = base_leaves.clone();
        now.rehash(base, &covered).map_err(RedoError::Base)?;
        if now != *base_leaves {
            return Err(RedoError::Base(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the leaf digests given are not those of the base",
            )));
        }
        let mut target_leaves = now;
        target_leaves
            .rehash(&target, &covered)
            .map_err(RedoError::Base)?;

        let leaves = touched_leaves(change, &covered)
            .map(|index| LeafRecord {
                index,
                base: base_leaves.get(index).copied().unwrap_or_default(),
                target: target_leaves.get(index).copied().unwrap_or_default(),
            })
            .collect();
        let log = Self {
            meta: meta.to_vec(),
            base: base_leaves.generation(),
            target: target_leaves.generation(),
            leaves,
            before: Vec::new(),
            change: change.clone(),
        };
        Ok((log, covered.within(0..change.base_len).collect()))
    }
}

/// Every leaf that a write covers or that the change of length adds, cuts or removes, ascending.
fn touched_leaves(change: &WriteSet, covered: &RangeSet) -> impl Iterator<Item = u64> + use<> {
    let (short, long) = (
        change.base_len.min(change.target_len),
        change.base_len.max(change.target_len),
    );
    let mut touched = covered.clone();
    touched.insert(short..long);
    let end = leaf_count(long).saturating_mul(LEAF_SIZE);
    let runs: Vec<_> = touched.aligned(LEAF_SIZE).within(0..end).collect();
    runs.into_iter()
        .flat_map(|r| r.start / LEAF_SIZE..r.end / LEAF_SIZE)
}

fn limit(field: &'static str, value: u64, limit: u64) -> Result<(), RedoError> {
    if value > limit {
        Err(RedoError::TooLarge {
            field,
            value,
            limit,
        })
    } else {
        Ok(())
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> RedoError + use<> {
    let path = path.to_owned();
    move |source| RedoError::Io { path, source }
}

fn temp_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".tmp");
    PathBuf::from(name)
}

/// Makes a rename or removal in `path`'s directory durable.
#[cfg(unix)]
fn sync_dir_of(path: &Path) -> Result<(), RedoError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_at(dir))
}

/// Windows has no directory flush: NTFS orders a rename behind the flushed data by its own log.
#[cfg(not(unix))]
fn sync_dir_of(_path: &Path) -> Result<(), RedoError> {
    Ok(())
}
