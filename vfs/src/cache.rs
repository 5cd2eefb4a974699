//! The state directory: cache files, metadata, and the lock that keeps two processes apart.
//!
//! ```text
//! state/            0700
//!   lock            held while the drive is open
//!   meta            the whole tree and every file's standing, replaced atomically
//!   journal/        segments
//!   data/           one file per node, named by its number in hex, 0600
//! ```
//!
//! `meta` and `data` lag behind the journal: a checkpoint moves them forward, recovery replays
//! what came after.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bincode::{Decode, Encode};
use storage::{RangeSet, WriteAt};

use crate::error::{Error, Result};
use crate::journal::record::{NodeRecord, TreeOp, codec};
use crate::journal::store::open_or_create;
use crate::share::Stamp;

/// Creates a directory that only its owner can enter; an existing one is tightened.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Creates a new file that only its owner can read.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

/// Ranges as stored.
pub(crate) type Ranges = Vec<(u64, u64)>;

pub(crate) fn to_ranges(set: &RangeSet) -> Ranges {
    set.iter().map(|r| (r.start, r.end)).collect()
}

pub(crate) fn from_ranges(ranges: &Ranges) -> RangeSet {
    ranges
        .iter()
        .filter(|r| r.0 < r.1)
        .map(|r| r.0..r.1)
        .collect()
}

/// What is kept of one file's standing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct FileMeta {
    /// The node.
    pub id: u64,
    /// Cache and share are the same bytes but for what is dirty.
    pub attached: bool,
    /// The share's file as of the last moment both were the same.
    pub stamp: Option<Stamp>,
    /// Number of this physical life of the cache file.
    pub lineage: u64,
    /// Length in bytes as applications see it.
    pub size: u64,
    /// Last write by an application, nanoseconds since 1970; `None`: as the share says.
    pub mtime: Option<i64>,
    /// Bytes that the cache has, durably.
    pub valid: Ranges,
    /// Bytes not on the share, by the epoch that closed the set; the open one under `u64::MAX`.
    pub dirty: Vec<(u64, Ranges)>,
    /// Bytes written since the last mark, in every state; likewise.
    pub written: Vec<(u64, Ranges)>,
    /// Writes ever.
    pub write_count: u64,
    /// The last epoch taken.
    pub epoch: u64,
    /// The last epoch a destination holds.
    pub synced_epoch: u64,
    /// The last number given to a change list.
    pub sequence: u64,
    /// A change list that was numbered and not yet answered.
    pub outstanding: Option<(u64, [u8; 32])>,
    /// The file left the share under open handles and was not synced since.
    pub flipped: bool,
    /// Bytes passed through since the share's last acknowledged flush.
    pub online_written: Ranges,
    /// A push was begun (epoch, identity of the share's file) and not finished.
    pub push: Option<(u64, u64)>,
    /// LSN of the last record whose effect is in here (bytes excepted).
    pub lsn: u64,
}

/// The metadata file.
#[derive(Debug, Clone, Default, Encode, Decode)]
pub(crate) struct Meta {
    /// Journal records through this one have their bytes in the cache files.
    pub data_lsn: u64,
    /// Journal known to be durable through here.
    pub known: u64,
    /// Tree changes through here are in `nodes` and `pending`.
    pub tree_lsn: u64,
    /// Next node number.
    pub next_id: u64,
    /// The tree.
    pub nodes: Vec<NodeRecord>,
    /// Changes that wait for the share.
    pub pending: Vec<(u64, TreeOp)>,
    /// Files with a cache file.
    pub files: Vec<FileMeta>,
    /// Of the waiting changes those through here may have reached the share already.
    pub tried: u64,
}

/// The metadata of version 1: all but the last field, of which the careful value is taken.
#[derive(Debug, Clone, Default, Encode, Decode)]
struct Meta1 {
    data_lsn: u64,
    known: u64,
    tree_lsn: u64,
    next_id: u64,
    nodes: Vec<NodeRecord>,
    pending: Vec<(u64, TreeOp)>,
    files: Vec<FileMeta>,
}

impl From<Meta1> for Meta {
    fn from(m: Meta1) -> Self {
        Self {
            data_lsn: m.data_lsn,
            known: m.known,
            tree_lsn: m.tree_lsn,
            next_id: m.next_id,
            nodes: m.nodes,
            tried: m.tree_lsn,
            pending: m.pending,
            files: m.files,
        }
    }
}

const META_MAGIC: [u8; 8] = *b"PSTSYNCM";
/// Version of the metadata's schema.
pub const META_VERSION: u32 = 2;

/// The state directory, locked.
pub(crate) struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens (creates) and locks it.
    pub fn open(root: &Path) -> Result<Self> {
        let ctx = |e| Error::from_io(root.display().to_string(), e);
        create_private_dir(root).map_err(ctx)?;
        create_private_dir(&root.join("data")).map_err(ctx)?;
        let path = root.join("lock");
        let lock = match create_private_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                OpenOptions::new().read(true).write(true).open(&path)
            }
            other => other,
        }
        .map_err(ctx)?;
        // A process that is just ending gets a moment to do so.
        for _ in 0..20 {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        root: root.to_owned(),
                        _lock: lock,
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Err(TryLockError::Error(e)) => return Err(ctx(e)),
            }
        }
        Err(Error::Locked(root.display().to_string()))
    }

    pub fn journal_dir(&self) -> PathBuf {
        self.root.join("journal")
    }

    fn data_path(&self, id: u64) -> PathBuf {
        self.root.join("data").join(format!("{id:016x}"))
    }

    /// Opens (creates) a node's cache file.
    pub fn data(&self, id: u64) -> Result<Arc<dyn WriteAt>> {
        let path = self.data_path(id);
        match open_or_create(&path) {
            Ok(f) => Ok(Arc::new(f)),
            Err(e) => Err(Error::from_io(path.display().to_string(), e)),
        }
    }

    /// Removes a node's cache file.
    pub fn remove_data(&self, id: u64) {
        let path = self.data_path(id);
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "cannot remove a cache file");
        }
    }

    /// Numbers of all cache files.
    pub fn data_ids(&self) -> Result<Vec<u64>> {
        let dir = self.root.join("data");
        let ctx = |e| Error::from_io(dir.display().to_string(), e);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(ctx)? {
            let name = entry.map_err(ctx)?.file_name();
            ids.extend(name.to_str().and_then(|n| u64::from_str_radix(n, 16).ok()));
        }
        Ok(ids)
    }

    /// Makes the names of new cache files durable.
    pub fn sync_data_names(&self) -> Result<()> {
        sync_dir(&self.root.join("data")).map_err(|e| Error::from_io("flushing the cache", e))
    }

    /// Bytes available on the volume.
    pub fn available(&self) -> u64 {
        #[cfg(unix)]
        if let Ok(st) = rustix::fs::statvfs(&self.root) {
            return st.f_bavail.saturating_mul(st.f_frsize.max(1));
        }
        u64::MAX
    }

    /// Whether the system has run without a break since this directory was last opened: then the
    /// page cache has lost nothing of what the earlier process wrote. Notes the present run.
    pub fn same_boot(&self) -> bool {
        let path = self.root.join("boot");
        let before = std::fs::read(&path).unwrap_or_default();
        let now = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if !now.is_empty() && before == now {
            return true;
        }
        let _ = std::fs::remove_file(&path);
        if let Ok(mut f) = create_private_file(&path) {
            let _ = f.write_all(&now);
        }
        false
    }

    /// Removes cache files of nodes that are not known any more.
    pub fn remove_stray_data(&self, known: impl Fn(u64) -> bool) -> Result<()> {
        for id in self.data_ids()? {
            if !known(id) {
                self.remove_data(id);
            }
        }
        Ok(())
    }

    /// Reads the metadata; `None` where there is none yet.
    pub fn read_meta(&self) -> Result<Option<Meta>> {
        let path = self.root.join("meta");
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut f) => f
                .read_to_end(&mut bytes)
                .map_err(|e| Error::from_io(name.clone(), e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::from_io(name, e)),
        };
        decode_meta(&bytes)
            .map(Some)
            .map_err(|(offset, what)| Error::Damaged {
                file: name,
                offset,
                what,
            })
    }

    /// Replaces the metadata in one durable step.
    pub fn write_meta(&self, meta: &Meta) -> Result<()> {
        let bytes = encode_meta(meta);
        let run = || {
            let new = self.root.join("meta.new");
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = create_private_file(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            drop(file);
            std::fs::rename(&new, self.root.join("meta"))?;
            sync_dir(&self.root)
        };
        run().map_err(|e| Error::from_io("writing the drive's metadata", e))
    }
}

fn encode_meta(meta: &Meta) -> Vec<u8> {
    let mut out = META_MAGIC.to_vec();
    out.extend_from_slice(&META_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    // Encoding into a Vec cannot fail: no type here refuses, and the limit is far.
    let _ = bincode::encode_into_std_write(meta, &mut out, codec());
    let crc = out.get(16..).map_or(0, crc32fast::hash);
    if let Some(to) = out.get_mut(12..16) {
        to.copy_from_slice(&crc.to_le_bytes());
    }
    out
}

fn decode_meta(bytes: &[u8]) -> std::result::Result<Meta, (u64, String)> {
    let (head, body) = bytes
        .split_first_chunk::<16>()
        .ok_or((0, "too short".to_owned()))?;
    let (magic, rest) = head.split_at(8);
    let (version, crc) = rest.split_at(4);
    if magic != META_MAGIC {
        return Err((0, "not metadata of a drive".to_owned()));
    }
    let old = version == 1_u32.to_le_bytes();
    if !old && version != META_VERSION.to_le_bytes() {
        return Err((8, "metadata of another version of this program".to_owned()));
    }
    if crc != crc32fast::hash(body).to_le_bytes() {
        return Err((12, "checksum does not match".to_owned()));
    }
    let decoded = if old {
        bincode::decode_from_slice(body, codec()).map(|(m, used): (Meta1, _)| (m.into(), used))
    } else {
        bincode::decode_from_slice(body, codec())
    };
    match decoded {
        Ok((meta, used)) if used == body.len() => Ok(meta),
        Ok((_, used)) => Err((16 + used as u64, "trailing bytes".to_owned())),
        Err(e) => Err((16, e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_private_and_locked() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("state");
        let dir = StateDir::open(&root).unwrap();
        assert!(matches!(
            StateDir::open(&root).map(drop),
            Err(Error::Locked(_))
        ));
        dir.data(7).unwrap().write_all_at(0, b"x").unwrap();
        dir.write_meta(&Meta {
            known: 3,
            ..Meta::default()
        })
        .unwrap();
        assert_eq!(dir.read_meta().unwrap().unwrap().known, 3);
        assert_eq!(dir.data_ids().unwrap(), [7]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |p: &str| root.join(p).metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(
                (mode(""), mode("data"), mode("meta")),
                (0o700, 0o700, 0o600)
            );
            assert_eq!(mode("data/0000000000000007"), 0o600);
        }
        drop(dir);
        StateDir::open(&root).unwrap();
    }

    /// As version 1 wrote it, byte by byte.
    #[test]
    fn metadata_of_version_1_is_read_and_all_that_waits_counts_as_tried() {
        let old = Meta1 {
            data_lsn: 3,
            known: 4,
            tree_lsn: 9,
            next_id: 5,
            nodes: Vec::new(),
            pending: vec![(8, TreeOp::Remove { id: 2 })],
            files: Vec::new(),
        };
        let body = [
            &[3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0][..],
            &[9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            &[0; 8],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            &[0; 8],
        ]
        .concat();
        assert_eq!(bincode::encode_to_vec(&old, codec()).unwrap(), body);
        let mut file = [&META_MAGIC[..], &[1, 0, 0, 0]].concat();
        file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        file.extend_from_slice(&body);
        let meta = decode_meta(&file).unwrap();
        assert_eq!((meta.next_id, meta.tree_lsn, meta.tried), (5, 9, 9));
        assert_eq!(meta.pending, old.pending);
        assert_eq!(decode_meta(&encode_meta(&meta)).unwrap().tried, 9);
    }

    #[test]
    fn damaged_metadata_is_an_error() {
        let good = encode_meta(&Meta {
            next_id: 5,
            ..Meta::default()
        });
        assert_eq!(decode_meta(&good).unwrap().next_id, 5);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x40;
            assert!(decode_meta(&bad).is_err(), "byte {i}");
            assert!(decode_meta(&good[..i]).is_err(), "cut {i}");
        }
    }
}
