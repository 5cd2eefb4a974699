//! The state directory: cache files, metadata, and the locks that keep others out.
//!
//! ```text
//! state/            0700
//!   lock            held while the drive is open
//!   volume, owner   on a drive that is carried about (see `disk::owner`)
//!   meta            the whole tree and every file's standing, replaced atomically
//!   journal/        segments
//!   data/           one file per node, named by its number in hex, 0600
//! ```
//!
//! `meta` and `data` lag behind the journal: a checkpoint moves them forward, recovery replays
//! what came after. The file system need keep no modes, no sparse files, no upper and lower case,
//! and no file times: nothing here rests on them.

mod v1;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bincode::{Decode, Encode};
use storage::{RangeSet, ReadAt, WriteAt};

use crate::disk::owner::{FencedDisk, Owner, Removable};
use crate::disk::{Disk, DiskLock};
use crate::error::{Error, Result};
use crate::journal::record::{NodeRecord, TreeOp, codec};
use crate::share::Stamp;

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
    /// Records through this one have their bytes in the cache file, where that is further than
    /// what holds for all files.
    pub data_lsn: u64,
    /// When it was last opened or closed, nanoseconds since 1970.
    pub used: i64,
}

/// The metadata file, as it is read; [`MetaBytes`] writes it.
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
    /// Modification times on the share (node, nanoseconds) that waiting changes hide. Since version 3.
    pub mtimes_there: Vec<(u64, i64)>,
    /// Names that are nodes of their own, and the nodes of their files. Since version 4.
    pub links: Vec<(u64, u64)>,
    /// When files were last changed (node, nanoseconds) for which an older change of time waits. Since
    /// version 4.
    pub changed: Vec<(u64, i64)>,
}

const META_MAGIC: [u8; 8] = *b"PSTSYNCM";
/// Version of the metadata's schema. Older ones are read and written anew as this one by the next
/// checkpoint; newer ones are refused.
pub const META_VERSION: u32 = 4;
/// Bound on the metadata read back, in bytes.
const MAX_META: u64 = 1 << 30;

/// What knows whether names of cache files wait for a flush of their directory.
struct Names {
    disk: Arc<dyn Disk>,
    /// At first unknown, so: yes.
    waiting: Mutex<bool>,
}

impl Names {
    fn sync(&self) -> io::Result<()> {
        // Held meanwhile, so that nobody goes on before the names are durable.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if *waiting {
            self.disk.sync_dir("data")?;
            *waiting = false;
        }
        Ok(())
    }

    fn changed(&self) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// A cache file: bytes that are flushed are found again, so its name is flushed with them.
struct CacheFile {
    file: Arc<dyn WriteAt>,
    names: Arc<Names>,
}

impl ReadAt for CacheFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
}

impl WriteAt for CacheFile {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.names.sync()?;
        self.file.sync()
    }
}

/// The state directory, locked.
pub(crate) struct StateDir {
    disk: Arc<dyn Disk>,
    names: Arc<Names>,
    // In this order: the volume is given back while the lock still keeps others out.
    owner: Option<Arc<Owner>>,
    _lock: DiskLock,
}

/// Where a node's cache file lies.
pub(crate) fn data_path(id: u64) -> String {
    format!("data/{id:016x}")
}

impl StateDir {
    /// Opens (creates) and locks it. `removable`: it may have been used by another host.
    pub fn open(disk: Arc<dyn Disk>, removable: Option<&Removable>) -> Result<Self> {
        let name = disk.name();
        let ctx = |e| Error::from_io(name.clone(), e);
        disk.mkdir("").map_err(ctx)?;
        let mut held = disk.lock().map_err(ctx)?;
        // A process that is just ending gets a moment to do so.
        for _ in 0..20 {
            if held.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            held = disk.lock().map_err(ctx)?;
        }
        let Some(lock) = held else {
            return Err(Error::Locked(name));
        };
        let owner = removable.map(|me| Owner::take(&disk, me)).transpose()?;
        let disk = match &owner {
            Some(owner) => Arc::new(FencedDisk {
                disk,
                owner: owner.clone(),
            }),
            None => disk,
        };
        disk.mkdir("data").map_err(ctx)?;
        disk.mkdir("journal").map_err(ctx)?;
        let names = Arc::new(Names {
            disk: disk.clone(),
            waiting: Mutex::new(true),
        });
        Ok(Self {
            disk,
            names,
            owner,
            _lock: lock,
        })
    }

    /// The disk it lies on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Who has the volume, where it is carried about.
    pub fn owner(&self) -> Option<&Arc<Owner>> {
        self.owner.as_ref()
    }

    /// Opens (creates) a node's cache file.
    pub fn data(&self, id: u64) -> Result<Arc<dyn WriteAt>> {
        let path = data_path(id);
        let file = match self.disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made = self.disk.create(&path, 0);
                self.names.changed();
                made
            }
            other => other,
        };
        match file {
            Ok(file) => Ok(Arc::new(CacheFile {
                file,
                names: self.names.clone(),
            })),
            Err(e) => Err(Error::from_io(format!("{}/{path}", self.disk.name()), e)),
        }
    }

    /// Removes a node's cache file.
    pub fn remove_data(&self, id: u64) {
        let path = data_path(id);
        if let Err(e) = self.disk.remove(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path, error = %e, "cannot remove a cache file");
        }
    }

    /// Numbers of all cache files.
    pub fn data_ids(&self) -> Result<Vec<u64>> {
        let ctx = |e| Error::from_io(format!("{}/data", self.disk.name()), e);
        let names = self.disk.list("data").map_err(ctx)?;
        Ok(names
            .iter()
            .filter_map(|n| u64::from_str_radix(n, 16).ok())
            .collect())
    }

    /// Makes the names of new cache files durable.
    pub fn sync_data_names(&self) -> Result<()> {
        self.names
            .sync()
            .map_err(|e| Error::from_io("flushing the cache", e))
    }

    /// Bytes available on the volume.
    pub fn available(&self) -> u64 {
        self.disk.available().unwrap_or(u64::MAX)
    }

    /// Whether the system has run without a break since this directory was last opened: then the
    /// page cache has lost nothing of what the earlier process wrote. Notes the present run.
    pub fn same_boot(&self) -> bool {
        let before = self.disk.read("boot", 1000).ok().flatten();
        let now = self.disk.boot_id();
        if now.is_empty() {
            return false;
        }
        before.as_ref() == Some(&now)
    }

    /// From now on the state is of this run of the system. Only once all that an earlier one may
    /// have taken is settled, durably: whoever is killed before that finds it as it was.
    pub fn note_boot(&self) {
        let now = self.disk.boot_id();
        if !now.is_empty() {
            let _ = self.disk.replace("boot", &now);
        }
    }

    /// Removes cache files of nodes that are not known any more.
    pub fn remove_stray_data(&self, known: impl Fn(u64) -> bool) -> Result<()> {
        for id in self.data_ids()? {
            if !known(id) {
                self.remove_data(id);
            }
        }
        self.sync_data_names()
    }

    /// Reads the metadata; `None` where there is none yet.
    pub fn read_meta(&self) -> Result<Option<Meta>> {
        let name = format!("{}/meta", self.disk.name());
        let bytes = self
            .disk
            .read_standing("meta", MAX_META)
            .map_err(|e| Error::from_io(name.clone(), e))?;
        bytes.map(|bytes| decode_meta(&bytes, &name)).transpose()
    }

    /// Replaces the metadata in one durable step; `known`: the journal is known to be durable through there.
    pub fn write_meta(&self, meta: &mut MetaBytes, known: u64) -> Result<()> {
        self.disk
            .replace("meta", meta.seal(known))
            .map_err(|e| Error::from_io("writing the drive's metadata", e))
    }
}

/// The bytes of a [`Meta`], put together field by field, in their order: the tree of a large share need not be
/// copied for it. Holds its memory for the next time.
#[derive(Debug, Default)]
pub(crate) struct MetaBytes(Vec<u8>);

impl MetaBytes {
    /// Begins anew.
    pub fn begin(&mut self, data_lsn: u64, tree_lsn: u64, next_id: u64) {
        self.0.clear();
        self.0.extend_from_slice(&META_MAGIC);
        self.0.extend_from_slice(&META_VERSION.to_le_bytes());
        self.0.extend_from_slice(&[0; 4]);
        // What is known comes last, in its place.
        for field in [data_lsn, 0, tree_lsn, next_id] {
            self.put(&field);
        }
    }

    /// The next list, of `len` items.
    pub fn list<T: Encode>(&mut self, len: usize, items: impl Iterator<Item = T>) {
        self.put(&(len as u64));
        items.for_each(|item| self.put(&item));
    }

    /// The field between the lists.
    pub fn tried(&mut self, tried: u64) {
        self.put(&tried);
    }

    fn put(&mut self, value: &impl Encode) {
        // Encoding into a Vec cannot fail: no type here refuses, and the limit is far.
        let _ = bincode::encode_into_std_write(value, &mut self.0, codec());
    }

    fn seal(&mut self, known: u64) -> &[u8] {
        if let Some(to) = self.0.get_mut(24..32) {
            to.copy_from_slice(&known.to_le_bytes());
        }
        let crc = self.0.get(16..).map_or(0, crc32fast::hash);
        if let Some(to) = self.0.get_mut(12..16) {
            to.copy_from_slice(&crc.to_le_bytes());
        }
        &self.0
    }
}

#[cfg(test)]
impl From<&Meta> for MetaBytes {
    fn from(meta: &Meta) -> Self {
        let mut bytes = Self::default();
        bytes.begin(meta.data_lsn, meta.tree_lsn, meta.next_id);
        bytes.list(meta.nodes.len(), meta.nodes.iter());
        bytes.list(meta.pending.len(), meta.pending.iter());
        bytes.list(meta.files.len(), meta.files.iter());
        bytes.tried(meta.tried);
        bytes.list(meta.mtimes_there.len(), meta.mtimes_there.iter());
        bytes.list(meta.links.len(), meta.links.iter());
        bytes.list(meta.changed.len(), meta.changed.iter());
        bytes
    }
}

fn decode_meta(bytes: &[u8], file: &str) -> Result<Meta> {
    let damaged = |offset, what: &str| Error::Damaged {
        file: file.to_owned(),
        offset,
        what: what.to_owned(),
    };
    let (head, body) = bytes
        .split_first_chunk::<16>()
        .ok_or_else(|| damaged(0, "too short"))?;
    let (magic, rest) = head.split_at(8);
    let (version, crc) = rest.split_at(4);
    if magic != META_MAGIC {
        return Err(damaged(0, "not metadata of a drive"));
    }
    if crc != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged(12, "checksum does not match"));
    }
    match version.try_into().map_or(0, u32::from_le_bytes) {
        META_VERSION => decode_body(body, &damaged),
        // All but the last lists, as if those were empty.
        3 => decode_body(&[body, &[0; 16]].concat(), &damaged),
        2 => decode_body(&[body, &[0; 24]].concat(), &damaged),
        1 => decode_body::<v1::Meta>(body, &damaged).map(Meta::from),
        found if found > META_VERSION => Err(Error::Newer {
            file: file.to_owned(),
            found,
            known: META_VERSION,
        }),
        _ => Err(damaged(8, "no version that ever was")),
    }
}

fn decode_body<T: Decode<()>>(body: &[u8], damaged: &dyn Fn(u64, &str) -> Error) -> Result<T> {
    match bincode::decode_from_slice(body, codec()) {
        Ok((meta, used)) if used == body.len() => Ok(meta),
        Ok((_, used)) => Err(damaged(16 + used as u64, "trailing bytes")),
        Err(e) => Err(damaged(16, &e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn open(root: &std::path::Path) -> Result<StateDir> {
        StateDir::open(Arc::new(RealDisk::open(root).unwrap()), None)
    }

    #[test]
    fn a_state_directory_is_private_and_locked() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("state");
        let dir = open(&root).unwrap();
        assert!(matches!(open(&root).map(drop), Err(Error::Locked(_))));
        dir.data(7).unwrap().write_all_at(0, b"x").unwrap();
        dir.write_meta(&mut MetaBytes::from(&Meta::default()), 3)
            .unwrap();
        assert_eq!(dir.read_meta().unwrap().unwrap().known, 3);
        assert_eq!(dir.data_ids().unwrap(), [7]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |p: &str| root.join(p).metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(
                (mode(""), mode("data"), mode("journal"), mode("meta")),
                (0o700, 0o700, 0o700, 0o600)
            );
            assert_eq!(mode("data/0000000000000007"), 0o600);
        }
        drop(dir);
        open(&root).unwrap();
    }

    #[test]
    fn damaged_metadata_is_an_error() {
        let meta = Meta {
            data_lsn: 1,
            known: 2,
            tree_lsn: 3,
            next_id: 5,
            pending: vec![(4, TreeOp::Remove { id: 9 }); 2],
            tried: 6,
            mtimes_there: vec![(7, -8)],
            links: vec![(10, 9), (11, 9)],
            changed: vec![(9, 5)],
            ..Meta::default()
        };
        let good = MetaBytes::from(&meta).seal(2).to_vec();
        let whole = bincode::encode_to_vec(&meta, codec()).unwrap();
        assert!(good[16..] == whole, "field by field as in one");
        assert_eq!(decode_meta(&good, "meta").unwrap().next_id, 5);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x40;
            assert!(decode_meta(&bad, "meta").is_err(), "byte {i}");
            assert!(decode_meta(&good[..i], "meta").is_err(), "cut {i}");
        }
    }

    /// Bytes that the first version wrote, kept: they must be understood for ever.
    #[test]
    fn the_first_schema_is_read_and_a_newer_one_refused() {
        let old = include_bytes!("../tests/data/meta-v1.bin");
        let meta = decode_meta(old, "meta").unwrap();
        assert_eq!((meta.data_lsn, meta.known, meta.tree_lsn), (7, 9, 8));
        assert_eq!(meta.tried, 8, "all that waits counts as tried");
        assert_eq!(meta.nodes[0].name, "a.pst");
        assert_eq!(meta.pending, [(8, TreeOp::Remove { id: 2 })]);
        let f = &meta.files[0];
        assert_eq!((f.id, f.sequence, f.push), (3, 2, Some((4, 6))));
        assert_eq!(f.dirty, [(u64::MAX, vec![(1, 2)])]);
        assert_eq!((f.data_lsn, f.used, f.lsn), (0, 0, 9));
        // Written anew it is of this version, with nothing lost.
        let mut newer = MetaBytes::from(&meta).seal(meta.known).to_vec();
        let again = decode_meta(&newer, "meta").unwrap();
        assert_eq!(again.files, meta.files);
        // The second and the third ended before the last lists.
        for (version, lists) in [(2, 3), (3, 2)] {
            let mut older = newer[..newer.len() - lists * 8].to_vec();
            older[8] = version;
            let crc = crc32fast::hash(&older[16..]);
            older[12..16].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(decode_meta(&older, "meta").unwrap().files, meta.files);
        }
        newer[8] = 99;
        let refused = decode_meta(&newer, "meta");
        assert!(matches!(refused, Err(Error::Newer { found: 99, .. })));
    }
}
