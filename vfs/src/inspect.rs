//! Looking into a cache without its drive: what it knows, what is whole, what the share lacks.
//!
//! For the day on which the daemon or the share is gone. It opens the cache as a drive does, journal
//! and all, but on a disk that is never written ([`crate::disk::read_only`]) and with no share behind it, so
//! what it shows is what the next mount would show.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::{RangeSet, ReadAt};

use crate::disk::read_only::ReadOnlyDisk;
use crate::drive::{Drive, DriveConfig, State};
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::share::{Attr, Entry, Kind, SetAttr, Share, ShareFile, Stamp, Statfs};

/// One name of the drive as the cache knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Path on the drive.
    pub path: String,
    /// File, directory or symbolic link.
    pub kind: Kind,
    /// For a symbolic link: its target.
    pub target: Option<String>,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime: i64,
    /// Bytes that are here.
    pub cached: u64,
    /// Bytes that the share does not have.
    pub unsynced: u64,
    /// Whether the share lacks anything of its content (also a mere change of length), or it does
    /// not lie on the share at all yet.
    pub pending: bool,
    /// Whether its inside is understood.
    pub container: bool,
    /// Whether it is kept here whole.
    pub pinned: bool,
    /// Here are the same objects as on the share in other bytes.
    pub detached: bool,
    /// It left the share in the middle of writes.
    pub flipped: bool,
}

impl Known {
    /// Whether every byte is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.cached >= self.size
    }
}

/// What is here of one file.
pub struct Content {
    /// Its bytes; zeros in the holes.
    pub reader: Arc<dyn ReadAt>,
    /// Length in bytes.
    pub size: u64,
    /// Ranges that are not here.
    pub holes: RangeSet,
}

/// A range of a cached file that cannot be what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Stable name in kebab case.
    pub code: &'static str,
    /// Path on the drive.
    pub path: String,
    /// First byte concerned.
    pub offset: u64,
    /// What is wrong, for people.
    pub what: String,
}

/// A cache that is looked into.
pub struct Inspection {
    drive: Arc<Drive>,
    dir: PathBuf,
}

impl Inspection {
    /// Opens the cache in `dir` (the directory that holds `meta`, `journal` and `data`).
    /// `containers` and `pins` are the drive's patterns.
    ///
    /// # Errors
    /// [`Error::Locked`] while a drive uses it; [`Error::Damaged`]; what the file system says.
    pub fn open(
        dir: &Path,
        containers: Option<Vec<String>>,
        pins: Option<Vec<String>>,
    ) -> Result<Self> {
        Self::open_as(dir, containers, pins, false)
    }

    /// As [`Inspection::open`], for a cache whose journal is damaged: what can be read of it is taken, and
    /// [`Inspection::lost`] says what cannot. What a lost change concerned is not known; a file may lack it
    /// and have later ones.
    ///
    /// # Errors
    /// As [`Inspection::open`].
    pub fn salvage(
        dir: &Path,
        containers: Option<Vec<String>>,
        pins: Option<Vec<String>>,
    ) -> Result<Self> {
        Self::open_as(dir, containers, pins, true)
    }

    fn open_as(
        dir: &Path,
        containers: Option<Vec<String>>,
        pins: Option<Vec<String>>,
        salvage: bool,
    ) -> Result<Self> {
        let name = dir.display().to_string();
        let disk = ReadOnlyDisk::open(dir).map_err(|e| Error::from_io(name.clone(), e))?;
        if !dir.join("journal").is_dir() {
            return Err(Error::NotFound(format!("{name}: it holds no cache")));
        }
        let mut config = DriveConfig::new(Arc::new(NoShare), dir);
        if let Some(patterns) = containers {
            config.containers = patterns;
        }
        config.pins = pins;
        config.state = State::Offline;
        config.disk = Some(Arc::new(disk));
        config.background = false;
        Ok(Self {
            drive: Drive::open_as(config, salvage)?,
            dir: dir.to_owned(),
        })
    }

    /// All names but the root's, by path: a directory comes before what is in it.
    #[must_use]
    pub fn names(&self) -> Vec<Known> {
        let tree = self.drive.tree();
        let mut found: Vec<Known> = tree
            .nodes
            .iter()
            .filter(|(id, node)| **id != crate::tree::ROOT && node.linked && !tree.is_parted(**id))
            .filter_map(|(&id, name)| {
                let path = tree.path(id);
                let node = tree.nodes.get(&tree.content_of(id))?;
                let mut known = Known {
                    kind: node.attr.kind,
                    target: node.target.clone(),
                    size: node.attr.size,
                    mtime: node.attr.mtime,
                    cached: 0,
                    unsynced: 0,
                    pending: name.share.is_none(),
                    container: node.attr.kind == Kind::File && self.drive.is_container(&path),
                    pinned: node.attr.kind == Kind::File && self.drive.is_pinned(&path),
                    detached: false,
                    flipped: false,
                    path,
                };
                if let Some(file) = &node.file {
                    let st = file.read();
                    known.size = st.size;
                    known.mtime = st.mtime.unwrap_or(known.mtime);
                    known.cached = st.valid.total();
                    known.unsynced = st.dirty.total().total();
                    known.pending |= st.is_dirty() || (!st.attached && !st.written.is_empty());
                    known.detached = !st.attached;
                    known.flipped = st.flipped;
                }
                Some(known)
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Changes of names that the share has not seen, in words.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        self.drive.pending_namespace()
    }

    /// Bytes in the journal.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.drive.status().journal_bytes
    }

    /// Changes in the journal that cannot be read, where they are to be stepped over.
    #[must_use]
    pub fn lost(&self) -> Vec<Fault> {
        let fault = |lost: &crate::journal::Lost| {
            let what = match lost.last {
                Some(last) if last > lost.first => {
                    format!("changes {} to {last} cannot be read", lost.first)
                }
                Some(_) => format!("change {} cannot be read", lost.first),
                None => "the head of this part of the journal cannot be read".to_owned(),
            };
            let seems = lost.write.map_or_else(String::new, |(file, offset, len)| {
                let tree = self.drive.tree();
                let of = tree.nodes.get(&file).map(|_| tree.path(file));
                let of = of.unwrap_or_else(|| format!("file {file}"));
                format!(" (the first seems to be a write of {len} bytes at {offset} of {of})")
            });
            Fault {
                code: "journal-damaged",
                path: format!("journal/{}", lost.file),
                offset: lost.offset,
                what: what + &seems,
            }
        };
        self.drive.journal.lost().iter().map(fault).collect()
    }

    /// What is here of a file.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] for what is no file.
    pub fn content(&self, path: &str) -> Result<Content> {
        let node = self.drive.find(path)?;
        let (kind, size) = {
            let tree = self.drive.tree();
            let node = tree.node(node)?;
            (node.attr.kind, node.attr.size)
        };
        if kind != Kind::File {
            return Err(Error::Invalid("only files have content"));
        }
        let held = self.drive.tree().node(node)?.file.clone();
        let Some(file) = held else {
            return Ok(Content {
                reader: Arc::new(storage::MemStorage::new()),
                size,
                holes: std::iter::once(0..size).collect(),
            });
        };
        let (size, holes) = {
            let st = file.read();
            (st.size, st.valid.gaps(0..st.size).into_iter().collect())
        };
        Ok(Content {
            reader: Arc::new(Held { file, size }),
            size,
            holes,
        })
    }

    /// What can be seen to be wrong without knowing what is in the files: cache files that end
    /// before what they should hold.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut found = Vec::new();
        for known in self.names().iter().filter(|k| k.kind == Kind::File) {
            let Ok(node) = self.drive.find(&known.path) else {
                continue;
            };
            let file = match self.drive.tree().node(node) {
                Ok(node) => node.file.clone(),
                Err(_) => continue,
            };
            let Some(file) = file else { continue };
            let st = file.read();
            // As it lies on the disk: recovery gives it its length back.
            let there = match std::fs::metadata(self.dir.join(crate::cache::data_path(node))) {
                Ok(meta) => meta.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
                Err(e) => {
                    found.push(Fault {
                        code: "cache-file-unreadable",
                        path: known.path.clone(),
                        offset: 0,
                        what: e.to_string(),
                    });
                    continue;
                }
            };
            // What waits in the journal is laid over it, and may lengthen it.
            let end = st.valid.span().map_or(0, |s| s.end);
            if st.unwritten.is_empty() && there < end {
                found.push(Fault {
                    code: "cache-file-short",
                    path: known.path.clone(),
                    offset: there,
                    what: format!("the cache file ends at {there}, and should hold {end} bytes"),
                });
            }
        }
        found
    }

    /// Holds what is here, and not changed here, against the share: for files whose stamp says that
    /// they are still the same. Says how many bytes were compared.
    ///
    /// # Errors
    /// What the share says.
    pub fn compare(&self, share: &dyn Share, found: &mut Vec<Fault>) -> io::Result<u64> {
        const STEP: usize = 1 << 20;
        let mut compared = 0;
        for (node, file) in self.drive.files() {
            let (path, at) = {
                let tree = self.drive.tree();
                if tree.nodes.get(&node).is_none_or(|n| !n.linked) {
                    continue;
                }
                (tree.path(node), tree.share_path(node))
            };
            let Some(at) = at else { continue };
            let st = file.read();
            if !st.attached || st.valid.is_empty() {
                continue;
            }
            let there = match share.open(&at, false) {
                Ok(there) => there,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if Some(there.stamp()?) != st.stamp {
                continue;
            }
            let mut same = st.valid.clone();
            same.subtract(&st.dirty.total());
            same.subtract(&st.online_written);
            'file: for range in same.iter() {
                let mut at = range.start;
                while at < range.end {
                    let n = (range.end - at).min(STEP as u64) as usize;
                    let (mut ours, mut theirs) = (vec![0; n], vec![0; n]);
                    file.content(&st, at, &mut ours)?;
                    let got = there.read_at(at, &mut theirs)?;
                    let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                    if got < n || differs.is_some() {
                        found.push(Fault {
                            code: "differs-from-share",
                            path: path.clone(),
                            offset: at + differs.unwrap_or(got) as u64,
                            what: "the cached copy is not what the share holds".to_owned(),
                        });
                        break 'file;
                    }
                    compared += n as u64;
                    at += n as u64;
                }
            }
        }
        Ok(compared)
    }
}

/// A file as the cache and the journal have it.
struct Held {
    file: Arc<FileNode>,
    size: u64,
}

impl ReadAt for Held {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = room.min(buf.len());
        let to = buf.get_mut(..n).unwrap_or_default();
        let st = self.file.read();
        self.file.content(&st, offset, to)?;
        // What lies in a hole of the cache file is of another time.
        for hole in st.valid.gaps(offset..offset + n as u64) {
            let part = (hole.start - offset) as usize..(hole.end - offset) as usize;
            to.get_mut(part).unwrap_or_default().fill(0);
        }
        Ok(n)
    }
}

/// There is none.
struct NoShare;

fn gone<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotConnected.into())
}

impl Share for NoShare {
    fn stat(&self, _: &str) -> io::Result<Attr> {
        gone()
    }
    fn list(&self, _: &str) -> io::Result<Vec<Entry>> {
        gone()
    }
    fn read_link(&self, _: &str) -> io::Result<String> {
        gone()
    }
    fn open(&self, _: &str, _: bool) -> io::Result<Box<dyn ShareFile>> {
        gone()
    }
    fn create(&self, _: &str, _: u32) -> io::Result<Box<dyn ShareFile>> {
        gone()
    }
    fn rename(&self, _: &str, _: &str, _: bool) -> io::Result<()> {
        gone()
    }
    fn unlink(&self, _: &str) -> io::Result<()> {
        gone()
    }
    fn mkdir(&self, _: &str, _: u32) -> io::Result<()> {
        gone()
    }
    fn rmdir(&self, _: &str) -> io::Result<()> {
        gone()
    }
    fn set_attr(&self, _: &str, _: &SetAttr) -> io::Result<()> {
        gone()
    }
    fn statfs(&self) -> io::Result<Statfs> {
        gone()
    }
    fn probe(&self) -> io::Result<()> {
        gone()
    }
    fn stamp(&self, _: &str) -> io::Result<Stamp> {
        gone()
    }
}
