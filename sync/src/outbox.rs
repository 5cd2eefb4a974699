//! The package that was sent and not yet answered for good, one for each (container, destination).
//!
//! It promises: before the first byte of a package goes out, the package, its sequence and what will be
//! known once it is applied are durable here, and stay so until the answer is in the sync database. A
//! lost answer is then asked for again with the same sequence and the same bytes, whatever was edited on
//! either side meanwhile, and the destination's record answers it (R7). Without it, what was sent would
//! have to be recognised by its content, which an edit changes: mail would be there twice.
//!
//! A file holds at most one package (see [`MAX_PACKAGE`]), beside it the rows that will differ from
//! those of the sync database. It belongs to the very state of the database that it was made from: with
//! any other it means nothing, and is dropped. So it may be lost with the database, and a crash between
//! "the answer is stored" and "the file is gone" does no harm.
//!
//! ```text
//! offset  size  field
//! 0       8     length of the record, little-endian
//! 8       n     record (see `record`), with the BLAKE3 of the package
//! 8+n     m     package
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bincode::{Decode, Encode};
use pst::Nid;
use storage::Generation;

use crate::change_list::Counts;
use crate::database::{Head, HeadRecord, Synced, SyncedRecord, SyncedRow};
use crate::error::{Result, SyncError};
use crate::hex;
use crate::kv::{create_private_dir, sync_dir};
use crate::package::MAX_PACKAGE;
use crate::record;

const VERSION: u8 = 1;
/// One that nobody asked for again for so long is of a container that is no more, or was renamed: it
/// goes when the database is opened. Too early, it would cost what its loss costs.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes that stay free on the volume: the journal beside it has promised to finish what it accepted.
const RESERVE: u64 = 64 << 20;
/// What is not larger does not ask for that: a sync is what gives the journal its room back.
const SMALL: u64 = 1 << 20;
/// The extension of a file that is being written.
const HALF: &str = "new";
/// The most bytes of a record: some millions of rows.
const MAX_RECORD: usize = 1 << 30;

/// A package on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// The sequence that it was given.
    pub(crate) sequence: u64,
    /// The encoded package.
    pub(crate) package: Vec<u8>,
    /// The bytes that it was made for.
    pub(crate) base: Generation,
    /// The inventory digest that must result if no object gets another NID.
    pub(crate) expected: [u8; 32],
    /// What it does.
    pub(crate) counts: Counts,
    /// What will be known once it is applied, if every added object gets the NID proposed for it. The
    /// generation is that of `base`.
    pub(crate) after: Synced,
    /// Added objects: local NID to the NID proposed.
    pub(crate) proposed: BTreeMap<Nid, Nid>,
}

#[derive(Encode, Decode)]
struct OutstandingRecord {
    /// The head of the state that the rows are told against; `None`: there was none.
    before: Option<HeadRecord>,
    after: HeadRecord,
    sequence: u64,
    base_len: u64,
    base_root: [u8; 32],
    expected: [u8; 32],
    /// Added, updated, moved, deleted.
    counts: [u64; 4],
    /// Rows that differ from those before.
    rows: Vec<SyncedRecord>,
    /// NIDs of rows that are no more.
    gone: Vec<u32>,
    proposed: Vec<(u32, u32)>,
    package_len: u64,
    package: [u8; 32],
}

/// The directory of packages that are on their way.
#[derive(Debug)]
pub(crate) struct Outbox {
    dir: PathBuf,
    /// Bytes that are free on the volume of a directory.
    free: fn(&Path) -> io::Result<u64>,
}

impl Outbox {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, free }
    }

    /// Removes what a crash left half written, and what nobody asked for again. A file that cannot be
    /// removed stays: it takes room, no more.
    pub(crate) fn sweep(&self, now: SystemTime) {
        let Ok(files) = fs::read_dir(&self.dir) else {
            return;
        };
        for path in files.filter_map(|file| Some(file.ok()?.path())) {
            let written = fs::metadata(&path).and_then(|m| m.modified());
            let age = written
                .ok()
                .and_then(|written| now.duration_since(written).ok());
            let half = path.extension().is_some_and(|e| e == HALF);
            if half || age.is_some_and(|age| age > KEPT) {
                let removed = fs::remove_file(&path).is_ok();
                tracing::info!(path = %path.display(), removed, "a package of before");
            }
        }
    }

    fn path(&self, key: &[u8; 16]) -> PathBuf {
        self.dir.join(hex::encode(key))
    }

    /// The package that is on its way under `key`, if it was made from the state `before`. What does not
    /// decode, or belongs to another state, is removed and is none.
    pub(crate) fn load(
        &self,
        key: &[u8; 16],
        before: Option<&Synced>,
    ) -> Result<Option<Outstanding>> {
        let path = self.path(key);
        let found = match read(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
            Err(e) => return Err(failed(&path)(e)),
        };
        let known = found.and_then(|(record, package)| resolve(record, package, before));
        if known.is_none() {
            tracing::warn!(path = %path.display(), "a sent package belongs to another state; dropped");
            self.clear(key)?;
        }
        Ok(known)
    }

    /// Keeps `out`, made from the state `before`, in place of what was there. Durable when this returns.
    pub(crate) fn put(
        &self,
        key: &[u8; 16],
        before: Option<&Synced>,
        out: &Outstanding,
    ) -> Result<()> {
        let head = record::encode(VERSION, &record_of(before, out))
            .map_err(|e| SyncError::Database(e.to_string()))?;
        let path = self.path(key);
        let new = path.with_extension(HALF);
        let write = || {
            create_private_dir(&self.dir)?;
            let len = (head.len() + out.package.len()) as u64;
            if len > SMALL && (self.free)(&self.dir)? < len.saturating_add(RESERVE) {
                let message = format!("no room to keep the {len} bytes that are to be sent");
                return Err(io::Error::new(io::ErrorKind::StorageFull, message));
            }
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&new)?;
            file.write_all(&(head.len() as u64).to_le_bytes())?;
            file.write_all(&head)?;
            file.write_all(&out.package)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_dir(&self.dir)?;
            self.dir.parent().map_or(Ok(()), sync_dir)
        };
        write().map_err(|e| {
            // What is half there takes room that a full disk does not have.
            let _ = fs::remove_file(&new);
            failed(&path)(e)
        })
    }

    /// What was on its way under `key` is settled.
    pub(crate) fn clear(&self, key: &[u8; 16]) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir).map_err(failed(&path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(&path)(e)),
        }
    }
}

#[cfg(unix)]
fn free(dir: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(dir)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

#[cfg(windows)]
fn free(dir: &Path) -> io::Result<u64> {
    fs2::available_space(dir)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SyncError + '_ {
    move |e| SyncError::Database(format!("{}: {e}", path.display()))
}

/// `None`, or an error of the kind "invalid data", for what is not one whole file of this version.
fn read(path: &Path) -> io::Result<Option<(OutstandingRecord, Vec<u8>)>> {
    let mut file = File::open(path)?;
    let whole = file.metadata()?.len();
    let mut len = [0; 8];
    if whole < 8 {
        return Ok(None);
    }
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let Some(rest) = whole.checked_sub(8).and_then(|w| w.checked_sub(len)) else {
        return Ok(None);
    };
    if len > MAX_RECORD as u64 || rest > MAX_PACKAGE as u64 {
        return Ok(None);
    }
    let mut head = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact(&mut head)?;
    let Ok(record) = record::decode::<OutstandingRecord, MAX_RECORD>(VERSION, &head) else {
        return Ok(None);
    };
    if record.package_len != rest {
        return Ok(None);
    }
    let mut package = vec![0; usize::try_from(rest).map_err(io::Error::other)?];
    file.read_exact(&mut package)?;
    let intact = *blake3::hash(&package).as_bytes() == record.package;
    Ok(intact.then_some((record, package)))
}

fn record_of(before: Option<&Synced>, out: &Outstanding) -> OutstandingRecord {
    let none = BTreeMap::new();
    let old = before.map_or(&none, |b| &b.rows);
    let new = &out.after.rows;
    let differ = new.iter().filter(|(nid, row)| old.get(nid) != Some(row));
    let gone = old.keys().filter(|nid| !new.contains_key(nid));
    let c = out.counts;
    OutstandingRecord {
        before: before.map(|b| HeadRecord::from(&b.head)),
        after: HeadRecord::from(&out.after.head),
        sequence: out.sequence,
        base_len: out.base.len,
        base_root: out.base.root,
        expected: out.expected,
        counts: [c.added, c.updated, c.moved, c.deleted].map(|n| n as u64),
        rows: differ.map(|(_, row)| SyncedRecord::from(row)).collect(),
        gone: gone.map(|nid| nid.0).collect(),
        proposed: out.proposed.iter().map(|(l, p)| (l.0, p.0)).collect(),
        package_len: out.package.len() as u64,
        package: *blake3::hash(&out.package).as_bytes(),
    }
}

fn resolve(
    record: OutstandingRecord,
    package: Vec<u8>,
    before: Option<&Synced>,
) -> Option<Outstanding> {
    if record.before.map(Head::from).as_ref() != before.map(|b| &b.head) {
        return None;
    }
    let mut rows = before.map(|b| b.rows.clone()).unwrap_or_default();
    for nid in record.gone {
        rows.remove(&Nid(nid));
    }
    for row in record.rows {
        let row = SyncedRow::from(row);
        rows.insert(row.row.nid, row);
    }
    let [added, updated, moved, deleted] = record
        .counts
        .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Some(Outstanding {
        sequence: record.sequence,
        package,
        base: Generation {
            len: record.base_len,
            root: record.base_root,
        },
        expected: record.expected,
        counts: Counts {
            added,
            updated,
            moved,
            deleted,
        },
        after: Synced {
            head: record.after.into(),
            rows,
        },
        proposed: record
            .proposed
            .into_iter()
            .map(|(local, proposed)| (Nid(local), Nid(proposed)))
            .collect(),
    })
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
