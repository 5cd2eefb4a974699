//! The sync engine's desk: what is where, snapshots, marks, sequence numbers, exclusive work.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use storage::{RangeSet, ReadAt, WriteAt};

use super::{Drive, RefusedChange, State};
use crate::epoch::Verdict;
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode};
use crate::journal::record::MetaRecord;
use crate::share::Stamp;
use crate::snapshot::{Before, Snapshot, SnapshotReader};

/// Where one container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Path on the drive.
    pub path: String,
    /// Path on the share; `None` while it was only made here.
    pub share_path: Option<String>,
    /// Length in bytes.
    pub size: u64,
    /// Cache and share are the same file but for what is unsynced.
    pub attached: bool,
    /// The cache has every byte.
    pub fully_cached: bool,
    /// Bytes the cache has.
    pub cached: u64,
    /// Bytes written since the last mark, in every state.
    pub written: u64,
    /// Bytes the share does not have.
    pub unsynced: u64,
    /// Whether the share lacks anything (also a mere change of length).
    pub dirty: bool,
    /// Writes ever.
    pub write_count: u64,
    /// The last epoch taken.
    pub epoch: u64,
    /// The last epoch a destination holds.
    pub synced_epoch: u64,
    /// The last sequence number given out.
    pub sequence: u64,
    /// Number of this physical life of the cache file.
    pub lineage: u64,
    /// Open handles.
    pub open_handles: u32,
    /// Open handles see the share.
    pub passed_through: bool,
    /// It left the share in the middle of writes: the first sync must be physical.
    pub flipped: bool,
    /// The share's file was found changed while ours holds unsynced bytes.
    pub share_changed: bool,
    /// Share calls were left behind that may still take effect: sync waits.
    pub in_doubt: bool,
    /// Time since the last write by an application; `None`: none since the drive was opened.
    pub quiet_for: Option<Duration>,
    /// Why nothing can be promised any more, if so.
    pub poisoned: Option<String>,
    /// The share's file as of when both were last the same.
    pub stamp: Option<Stamp>,
}

/// Where the drive stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveStatus {
    /// The state.
    pub state: State,
    /// Whether the share answers, as far as we know.
    pub link_up: bool,
    /// Bytes in the journal not yet released.
    pub journal_bytes: u64,
    /// Journaled bytes in memory.
    pub unwritten_bytes: u64,
    /// Bytes, in all files, that the share does not have.
    pub unsynced_bytes: u64,
    /// Changes of the tree that the share has not seen.
    pub pending_changes: usize,
    /// Of these, the ones that the share refuses. The others wait behind one of them, or were not tried.
    pub refused: Vec<RefusedChange>,
    /// Open handles.
    pub open_handles: usize,
    /// Why nothing can be promised any more, if so.
    pub poisoned: Option<String>,
    /// Paths of opaque files that hold unsynced bytes.
    pub dirty_opaque: Vec<String>,
    /// Paths of files that take no writes any more, because a flush of theirs failed.
    pub refusing: Vec<String>,
}

impl Drive {
    fn status_of(&self, node: u64, path: String) -> ContainerStatus {
        let (share_path, file, size) = {
            let tree = self.tree();
            let n = tree.nodes.get(&node);
            let size = n.map_or(0, |n| n.attr.size);
            (tree.share_path(node), n.and_then(|n| n.file.clone()), size)
        };
        let poisoned = self.journal.poisoned();
        let Some(file) = file else {
            return ContainerStatus {
                path,
                share_path,
                size,
                attached: true,
                fully_cached: false,
                cached: 0,
                written: 0,
                unsynced: 0,
                dirty: false,
                write_count: 0,
                epoch: 0,
                synced_epoch: 0,
                sequence: 0,
                lineage: 0,
                open_handles: 0,
                passed_through: false,
                flipped: false,
                share_changed: false,
                in_doubt: false,
                quiet_for: None,
                poisoned,
                stamp: None,
            };
        };
        let st = file.read();
        ContainerStatus {
            path,
            share_path,
            size: st.size,
            attached: st.attached,
            fully_cached: st.fully_cached(),
            cached: st.valid.total(),
            written: st.written.total().total(),
            unsynced: st.dirty.total().total(),
            dirty: st.is_dirty(),
            write_count: st.write_count,
            epoch: st.epoch,
            synced_epoch: st.synced_epoch,
            sequence: st.sequence,
            lineage: file.lineage(&st),
            open_handles: st.opens,
            passed_through: matches!(st.binding, Some(Binding::Share(..))),
            flipped: st.flipped,
            share_changed: st.share_changed,
            in_doubt: file.doubt.count() > 0,
            quiet_for: st.last_write.map(|t| t.elapsed()),
            poisoned: poisoned.or_else(|| file.poison.get().cloned()),
            stamp: st.stamp,
        }
    }

    /// All containers, by path.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.container_nodes()
            .into_iter()
            .map(|(id, path)| self.status_of(id, path))
            .collect()
    }

    /// One file, container or not.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn file_status(&self, path: &str) -> Result<ContainerStatus> {
        let node = self.find(path)?;
        let path = self.tree().path(node);
        Ok(self.status_of(node, path))
    }

    /// The whole drive.
    #[must_use]
    pub fn status(&self) -> DriveStatus {
        let mut unsynced_bytes = 0;
        let mut dirty_opaque = Vec::new();
        let mut refusing = Vec::new();
        for (node, file) in self.files() {
            if file.poison.get().is_some() {
                refusing.push(self.tree().path(node));
            }
            let st = file.read();
            if st.is_dirty() && !st.unlinked {
                let bytes = st.dirty.total().total();
                drop(st);
                // Removed here, it only waits for its place in the queue of changes.
                if self.tree().nodes.get(&node).is_none_or(|n| !n.linked) {
                    continue;
                }
                unsynced_bytes += bytes;
                let path = self.tree().path(node);
                if !self.is_container(&path) {
                    dirty_opaque.push(path);
                }
            }
        }
        dirty_opaque.sort();
        refusing.sort();
        let refused = self.refused_changes();
        DriveStatus {
            state: self.state(),
            link_up: self.link.is_up(),
            journal_bytes: self.journal.bytes(),
            unwritten_bytes: self.unwritten.load(Ordering::SeqCst),
            unsynced_bytes,
            pending_changes: self.tree().pending.len(),
            refused,
            open_handles: self.open_handles(),
            poisoned: self.journal.poisoned(),
            dirty_opaque,
            refusing,
        }
    }

    fn file_at(&self, path: &str) -> Result<(u64, Arc<FileNode>)> {
        let node = self.find(path)?;
        Ok((node, self.file(node)?))
    }

    /// A frozen view of the file as of now, which is a new epoch. Everything in it is durable
    /// before this returns: what is sent is never newer than what survives a crash (R2).
    ///
    /// # Errors
    /// [`Error::NotCached`] while the cache does not have the whole file; [`Error::Poisoned`].
    pub fn snapshot(&self, path: &str) -> Result<Snapshot> {
        let (_, file) = self.file_at(path)?;
        self.snapshot_of(path, &file)
    }

    pub(crate) fn snapshot_of(&self, path: &str, file: &Arc<FileNode>) -> Result<Snapshot> {
        self.snapshot_as(path, file, true).map(|s| s.0)
    }

    /// As [`Drive::snapshot`], of a file that may be here in part: with the ranges that are here, the only
    /// ones that may be read.
    pub(crate) fn snapshot_held(
        &self,
        path: &str,
        file: &Arc<FileNode>,
    ) -> Result<(Snapshot, RangeSet)> {
        self.snapshot_as(path, file, false)
    }

    fn snapshot_as(
        &self,
        path: &str,
        file: &Arc<FileNode>,
        whole: bool,
    ) -> Result<(Snapshot, RangeSet)> {
        // A pass-through write in flight belongs to either side of the epoch, not to both.
        let _io = file.io.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, held, teed) = {
            let mut st = file.write();
            let size = st.size;
            if whole && !st.valid.contains_range(0..size) {
                return Err(Error::NotCached(path.to_owned()));
            }
            if st.exclusive {
                return Err(Error::Busy("the file is being changed as a whole"));
            }
            let lsn = self.log(MetaRecord::Epoch { file: file.id })?;
            st.note_epoch(lsn);
            let before = Arc::new(Before::new(st.size));
            st.snaps.push(Arc::downgrade(&before));
            let snapshot = Snapshot {
                epoch: lsn,
                reader: Arc::new(SnapshotReader {
                    file: file.clone(),
                    before,
                }),
                written: st.written.total(),
                written_since: st.synced_epoch,
                dirty: st.dirty.total(),
                lineage: file.lineage(&st),
                attached: st.attached,
                attached_stamp: st.stamp,
                write_count: st.write_count,
                flipped: st.flipped,
            };
            (snapshot, st.valid.clone(), !st.online_written.is_empty())
        };
        if teed {
            file.data.sync().map_err(|e| {
                self.give_up_copy(file, &mut file.write());
                Error::from_io("flushing a cache file", e)
            })?;
        }
        self.journal.sync(snapshot.epoch)?;
        Ok((snapshot, held))
    }

    /// A snapshot that the validator found consistent, or why this moment is none.
    ///
    /// # Errors
    /// As [`Drive::snapshot`].
    pub fn consistent_snapshot(&self, path: &str) -> Result<std::result::Result<Snapshot, String>> {
        let snapshot = self.snapshot(path)?;
        let Some(validator) = &self.validator else {
            return Ok(Ok(snapshot));
        };
        Ok(match validator.check(&snapshot.reader, &snapshot.written) {
            Verdict::Consistent => Ok(snapshot),
            Verdict::Wait(why) => Err(why),
        })
    }

    /// A destination durably holds the file through `epoch`. `detached`: the share now has the
    /// same objects in different bytes, so the file is served from the cache from now on. The
    /// outstanding sequence number is settled with it. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an epoch never taken.
    pub fn mark_synced(&self, path: &str, epoch: u64, detached: bool) -> Result<()> {
        let (_, file) = self.file_at(path)?;
        let lsn = {
            let mut st = file.write();
            if epoch > st.epoch {
                return Err(Error::Invalid("an epoch that was never taken"));
            }
            if detached && matches!(st.binding, Some(Binding::Share(..))) {
                return Err(Error::Busy("open handles see the share's file"));
            }
            let lsn = self.log(MetaRecord::MarkSynced {
                file: file.id,
                epoch,
                detached,
            })?;
            st.note_synced(epoch, detached, lsn);
            lsn
        };
        self.journal.sync(lsn)?;
        self.compact();
        Ok(())
    }

    /// What was synced need not stay in the journal: the next checkpoint empties it.
    fn compact(&self) {
        if !self.bell.want_checkpoint.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// The share's file now equals, byte for byte, ours as of `epoch` (the caller wrote it and
    /// read it back): the file is attached. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an epoch never taken.
    pub fn mark_pushed(&self, path: &str, epoch: u64, stamp: Stamp) -> Result<()> {
        let (node, file) = self.file_at(path)?;
        self.pushed(node, &file, epoch, stamp)
    }

    pub(crate) fn pushed(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        epoch: u64,
        stamp: Stamp,
    ) -> Result<()> {
        let lsn = {
            let mut st = file.write();
            if epoch > st.epoch {
                return Err(Error::Invalid("an epoch that was never taken"));
            }
            let lsn = self.log(MetaRecord::PushDone {
                file: file.id,
                epoch,
                stamp,
            })?;
            st.note_pushed(epoch, stamp, lsn);
            lsn
        };
        self.note_share_attr(node, &stamp);
        self.journal.sync(lsn)?;
        self.compact();
        Ok(())
    }

    /// Our own writes changed the share's file: its attributes are known.
    pub(crate) fn note_share_attr(&self, node: u64, stamp: &Stamp) {
        let mut tree = self.tree_mut();
        let ours = tree.sets_time(node) && !tree.written_since_set(node);
        if let Some(n) = tree.nodes.get_mut(&node) {
            n.attr.size = stamp.size;
            if ours {
                n.mtime_there = Some(stamp.mtime);
            } else {
                n.attr.mtime = stamp.mtime;
            }
            n.attr.file_id = stamp.file_id;
            n.fresh = None;
        }
    }

    /// A number for the change list with this digest: rises with every list, and is durable
    /// before it is returned (R7). The same digest as the outstanding one gets the same number.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn next_sequence(&self, path: &str, digest: [u8; 32]) -> Result<u64> {
        let (_, file) = self.file_at(path)?;
        let (seq, lsn) = {
            let mut st = file.write();
            match st.outstanding {
                Some((seq, d)) if d == digest => (seq, st.lsn),
                _ => {
                    let seq = st.sequence + 1;
                    let lsn = self.log(MetaRecord::Sequence {
                        file: file.id,
                        seq,
                        digest,
                    })?;
                    st.sequence = seq;
                    st.outstanding = Some((seq, digest));
                    st.lsn = lsn;
                    (seq, lsn)
                }
            }
        };
        self.journal.sync(lsn)?;
        Ok(seq)
    }

    /// The change list that was numbered and not yet settled, also after a restart.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn outstanding_sequence(&self, path: &str) -> Result<Option<(u64, [u8; 32])>> {
        let (_, file) = self.file_at(path)?;
        let outstanding = file.read().outstanding;
        Ok(outstanding)
    }

    /// The change list under this number was answered for good (also: refused).
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn settle_sequence(&self, path: &str, seq: u64) -> Result<()> {
        let (_, file) = self.file_at(path)?;
        let lsn = {
            let mut st = file.write();
            if st.outstanding.is_none_or(|o| o.0 != seq) {
                return Ok(());
            }
            let lsn = self.log(MetaRecord::Settled { file: file.id, seq })?;
            st.outstanding = None;
            st.lsn = lsn;
            lsn
        };
        self.journal.sync(lsn)
    }

    /// Takes a closed, fully cached file for the sync engine's own writes (applying what came
    /// from the share). Opens wait a while, then get [`Error::Busy`].
    ///
    /// # Errors
    /// [`Error::Busy`] while a handle is open; [`Error::NotCached`].
    pub fn exclusive(self: &Arc<Self>, path: &str) -> Result<Exclusive> {
        let (_, file) = self.file_at(path)?;
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut st = file.write();
            if st.opens > 0 || st.exclusive {
                return Err(Error::Busy("the file is open"));
            }
            let size = st.size;
            if !st.valid.contains_range(0..size) {
                return Err(Error::NotCached(path.to_owned()));
            }
            st.exclusive = true;
        }
        Ok(Exclusive {
            drive: self.clone(),
            file: file.clone(),
        })
    }
}

/// Exclusive, journaled access to one file. Ends when dropped.
///
/// Writes are recorded in order, so a crash leaves a prefix of them; phases of a
/// [`storage::WriteSet`] are flushed one by one, as on any other file.
pub struct Exclusive {
    drive: Arc<Drive>,
    file: Arc<FileNode>,
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let mut st = self.file.write();
        st.exclusive = false;
        // Pages that the kernel kept are of before.
        st.version += 1;
        // Not an application's write: the file is as quiet as it was.
        st.last_write = st.last_write.map(|_| Instant::now());
    }
}

impl ReadAt for Exclusive {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.read().size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let st = self.file.read();
        let room = usize::try_from(st.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = room.min(buf.len());
        self.file
            .content(&st, offset, buf.get_mut(..n).unwrap_or_default())?;
        Ok(n)
    }
}

impl WriteAt for Exclusive {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.drive
            .write_cached(&self.file, offset, data)
            .map_err(io::Error::from)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.drive
            .truncate_cached(&self.file, len)
            .map(drop)
            .map_err(io::Error::from)
    }

    fn sync(&self) -> io::Result<()> {
        let lsn = self.file.read().lsn;
        self.drive.journal.sync(lsn).map_err(io::Error::from)
    }
}
