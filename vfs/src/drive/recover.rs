//! Opening a drive: metadata, then the journal, then the background.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use super::crawl::Crawl;
use super::fill::Pace;
use super::room::Space;
use super::{Bell, Drive, DriveConfig, now};
use crate::cache::{Meta, StateDir, from_ranges};
use crate::disk::RealDisk;
use crate::error::{Error, Result};
use crate::file::{FileNode, FileState};
use crate::journal::record::{MetaRecord, Record, TreeOp};
use crate::journal::store::DirStore;
use crate::journal::{Journal, Recovered, Start};
use crate::link::{InDoubt, Link};
use crate::lock::{Rank, Ranked};
use crate::path::Patterns;
use crate::share::{Attr, Kind};
use crate::tree::{ROOT, Tree};

impl Drive {
    /// Opens a drive on its state directory, recovering what an earlier run left behind. The
    /// share need not answer.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Damaged`], what the file system says.
    pub fn open(config: DriveConfig) -> Result<Arc<Self>> {
        Self::open_as(config, false)
    }

    /// As [`Drive::open`]. `salvage`: what cannot be read of the journal is stepped over, for a drive that is
    /// only looked into.
    pub(crate) fn open_as(config: DriveConfig, salvage: bool) -> Result<Arc<Self>> {
        let disk = match config.disk {
            Some(disk) => disk,
            None => Arc::new(
                RealDisk::open(&config.state_dir)
                    .map_err(|e| Error::from_io(config.state_dir.display().to_string(), e))?,
            ),
        };
        let dir = StateDir::open(disk, config.removable.as_ref())?;
        let meta = dir.read_meta()?.unwrap_or_default();
        let store = DirStore::open(dir.disk().clone())
            .map_err(|e| Error::from_io("opening the journal", e))?;
        let mut recovery = Recovery::new(&dir, &meta)?;
        let journal = Journal::open(
            Arc::new(store),
            config.segment_len,
            Start {
                after: meta.data_lsn,
                known: meta.known,
                unbroken: recovery.same_boot,
                salvage,
            },
            |lsn, record, how| recovery.replay(lsn, record, how),
        )?;
        journal.continue_after(meta.known);
        recovery.keep_direct()?;
        // Before the cache files are touched: what was replayed counts from now on, whatever becomes
        // of the bytes beside it.
        journal.mark()?;
        let same_boot = recovery.same_boot;
        let (mut tree, unwritten) = recovery.finish(&journal)?;
        if !same_boot {
            journal.sync(journal.last())?;
            dir.note_boot();
        }
        tree.set_names(config.share.names());
        // Also where only the name survived: what lies in that file is of a lost moment, and would
        // show when the new one grows.
        let known = |id| tree.nodes.get(&id).is_some_and(|n| n.file.is_some());
        dir.remove_stray_data(known)?;

        let background = config.background;
        let containers = Patterns::new(&config.containers);
        let data_lsn = meta.data_lsn;
        let drive = Arc::new(Self {
            link: Link::new(config.share, config.stall_budget),
            dir,
            journal,
            tree: Ranked::new(Rank::Tree, tree),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            state: AtomicU8::new(config.state as u8),
            flush_budget: config.flush_budget,
            attr_life: config.attr_life,
            direct_append: config.direct_append.max(1),
            validator: config.validator,
            leaves: config.leaves,
            pins: config
                .pins
                .map_or_else(|| containers.clone(), |p| Patterns::new(&p)),
            containers,
            space: Space::new(config.available, config.reserve, config.cache_size),
            pace: Pace::new(config.fill_rate),
            crawl: Crawl::default(),
            tree_limit: config.tree_limit,
            ending: AtomicBool::new(false),
            attach_after: config.attach_after,
            data_lsn: AtomicU64::new(data_lsn),
            unwritten: AtomicU64::new(unwritten),
            unwritten_limit: config.unwritten_limit.max(1),
            direct: AtomicU64::new(0),
            checkpoint: Mutex::default(),
            checkpoints: AtomicU64::new(0),
            reintegrating: Mutex::default(),
            tree_doubt: InDoubt::default(),
            ahead: super::ahead::Counters::default(),
            tell: Mutex::default(),
            told: Mutex::default(),
            bell: Arc::new(Bell::default()),
            mounted: OnceLock::new(),
            listeners: Mutex::default(),
        });
        drive.finish_renewals()?;
        if let (true, Some(owner)) = (background, drive.dir.owner()) {
            spawn("drive-beat", &drive, owner.interval(), Drive::beat)?;
        }
        if background {
            drive.bell.want_fill.store(true, Ordering::SeqCst);
            spawn(
                "drive-checkpoint",
                &drive,
                Duration::from_secs(1),
                Drive::keep,
            )?;
            spawn(
                "drive-fill",
                &drive,
                Duration::from_secs(2),
                Drive::fill_in_background,
            )?;
            spawn(
                "drive-watch",
                &drive,
                drive.attr_life.max(Duration::from_secs(1)),
                Drive::watch_in_background,
            )?;
            spawn(
                "drive-listen",
                &drive,
                Duration::from_millis(250),
                Drive::listen_in_background,
            )?;
        }
        Ok(drive)
    }
}

/// A thread that lives as long as the drive does.
fn spawn(name: &str, drive: &Arc<Drive>, every: Duration, work: fn(&Drive)) -> Result<()> {
    let (weak, bell) = (Arc::downgrade(drive), drive.bell.clone());
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            loop {
                match weak.upgrade() {
                    Some(drive) => work(&drive),
                    None => return,
                }
                bell.wait(every, || weak.strong_count() == 0);
            }
        })
        .map(drop)
        .map_err(|e| Error::from_io("starting a background thread", e))
}

/// Replays the journal over the metadata.
///
/// Two rules make this idempotent. Effects on standing (size, what is dirty, the tree) apply when
/// the record is younger than what the metadata already holds of that very file or tree; bytes
/// apply when the record is younger than the last finished checkpoint (of that file).
struct Recovery<'a> {
    dir: &'a StateDir,
    data_lsn: u64,
    tree: Tree,
    /// The system has been up since the last run: all that was handed to it is there.
    same_boot: bool,
    /// Files with directly written bytes that were found, and that no flush is known to cover.
    found: BTreeMap<u64, Arc<FileNode>>,
}

impl<'a> Recovery<'a> {
    fn new(dir: &'a StateDir, meta: &Meta) -> Result<Self> {
        let root = Attr {
            kind: Kind::Dir,
            size: 0,
            mtime: now(),
            atime: now(),
            ctime: now(),
            mode: 0o755,
            uid: crate::own_ids().0,
            gid: crate::own_ids().1,
            file_id: 0,
        };
        let mut tree = Tree::load(meta, root);
        for m in &meta.files {
            if let Some(node) = tree.nodes.get_mut(&m.id) {
                let file = FileNode::new(m.id, dir.data(m.id)?, FileState::load(m));
                node.file = Some(Arc::new(file));
            }
        }
        for (id, changed) in &meta.changed {
            if let Some(file) = tree.file_behind(*id) {
                file.write().changed = *changed;
            }
        }
        // Not before it is known what the files hold.
        tree.relink();
        Ok(Self {
            dir,
            data_lsn: meta.data_lsn,
            tree,
            same_boot: dir.same_boot(),
            found: BTreeMap::new(),
        })
    }

    /// What was found of directly written bytes may be in the system's memory only (the process died,
    /// not the system). From now on the journal calls them durable, so they must be.
    fn keep_direct(&mut self) -> Result<()> {
        for file in std::mem::take(&mut self.found).into_values() {
            file.data
                .sync()
                .map_err(|e| Error::from_io("flushing a cache file", e))?;
        }
        Ok(())
    }

    /// The file of a record; `None` when its node was forgotten later.
    fn file(&mut self, id: u64) -> Result<Option<Arc<FileNode>>> {
        let Some(node) = self.tree.nodes.get_mut(&id) else {
            return Ok(None);
        };
        if node.file.is_none() {
            node.file = Some(Arc::new(FileNode::new(
                id,
                self.dir.data(id)?,
                FileState::new(),
            )));
        }
        Ok(node.file.clone())
    }

    /// `sure`: the record was flushed. `false`: it was not, and bytes beside it did not survive.
    fn replay(&mut self, lsn: u64, record: Record<'_>, how: Recovered<'_>) -> Result<bool> {
        match record {
            Record::Write {
                file,
                offset,
                time,
                data,
            } => {
                if let Some(f) = self.file(file)? {
                    let mut st = f.write();
                    if lsn > self.data_lsn.max(st.data_lsn) {
                        let len = data.len() as u64;
                        st.unwritten.write(offset, len, how.payload(len), lsn);
                    }
                    if lsn > st.lsn {
                        st.note_write(offset..offset + data.len() as u64, time, lsn);
                    }
                }
            }
            Record::Meta(MetaRecord::Direct {
                file,
                offset,
                len,
                crc,
                time,
            }) => {
                if let Some(f) = self.file(file)? {
                    let mut st = f.write();
                    let done = how.sure || lsn <= self.data_lsn.max(st.data_lsn);
                    if !done && !is_there(&*f.data, offset, len, crc)? {
                        return Ok(false);
                    }
                    if !done {
                        self.found.insert(file, f.clone());
                    }
                    if lsn > st.lsn {
                        st.note_write(offset..offset.saturating_add(len), time, lsn);
                    }
                }
            }
            Record::Meta(meta) => self.replay_meta(lsn, meta)?,
            Record::Synced { .. } => {}
        }
        Ok(true)
    }

    fn replay_meta(&mut self, lsn: u64, record: MetaRecord) -> Result<()> {
        use MetaRecord as M;
        match record {
            M::Adopt(node) => {
                if lsn > self.tree.lsn {
                    self.tree.insert(node);
                    self.tree.lsn = lsn;
                }
                return Ok(());
            }
            M::Tree { op, pending } => {
                self.set_time(lsn, &op);
                if lsn > self.tree.lsn {
                    self.tree.apply(&op, pending, lsn);
                }
                return Ok(());
            }
            M::TreeDone { lsn: done } => {
                if lsn > self.tree.lsn {
                    self.tree.settled(done);
                    self.tree.lsn = lsn;
                }
                return Ok(());
            }
            M::Unsure => {
                if lsn > self.tree.lsn {
                    self.tree.unsure = true;
                    self.tree.lsn = lsn;
                }
                return Ok(());
            }
            M::Tried { through } => {
                if lsn > self.tree.lsn {
                    self.tree.tried = self.tree.tried.max(through);
                    self.tree.lsn = lsn;
                }
                return Ok(());
            }
            M::Optimised { gone, instead } => {
                if lsn > self.tree.lsn {
                    self.tree.replace_pending(&gone, &instead, lsn);
                }
                return Ok(());
            }
            M::Placed { id, share, attr } => {
                if lsn > self.tree.lsn {
                    self.tree.place(id, share);
                    self.tree.seen(id, attr);
                    self.tree.lsn = lsn;
                }
                return Ok(());
            }
            _ => {}
        }
        let id = file_of(&record);
        let Some(file) = self.file(id)? else {
            return Ok(());
        };
        let mut st = file.write();
        let fresh = lsn > st.lsn;
        let bytes = lsn > self.data_lsn.max(st.data_lsn);
        match record {
            M::Truncate { size, time, .. } => {
                if bytes {
                    st.unwritten.truncate(size, lsn);
                }
                if fresh {
                    st.note_truncate(size, time, lsn);
                }
            }
            M::Attach { stamp, lineage, .. } => {
                if bytes {
                    st.unwritten.clear();
                }
                if fresh {
                    st.note_attach(stamp, lineage, lsn);
                }
            }
            M::Renewed {
                stamp,
                lineage,
                valid,
                ..
            } => {
                if bytes {
                    st.unwritten.clear();
                }
                if fresh {
                    st.note_renewed(stamp, lineage, from_ranges(&valid), lsn);
                }
            }
            M::OnlineWrite {
                offset, len, teed, ..
            } if fresh => {
                let range = offset..offset.saturating_add(len);
                // The record comes before the write. A write past the end that reached the cache
                // file shows in its length; else it was never acknowledged. (One that did may not have been
                // either: it is in doubt like all that was passed through and not flushed.)
                let there = teed && file.data.len().is_ok_and(|have| have >= range.end);
                if there && range.end > st.size {
                    let from = st.size;
                    st.valid.insert(from..range.end);
                }
                st.note_online_write(range.clone(), lsn);
                if !teed {
                    st.valid.remove(range.clone());
                }
                if there || !teed {
                    st.size = st.size.max(range.end);
                }
                // Later than any time that was set before it.
                st.changed_at(now());
            }
            M::OnlineTruncate { size, .. } if fresh => {
                st.note_online_truncate(size, lsn);
                // Zeros need no copying: a file that was whole stays so.
                let old = st.size;
                st.tee = st.valid.contains_range(0..old);
                st.online_truncated(size, now());
                st.tee = false;
            }
            M::OnlineFlushed { stamp, .. } if fresh => {
                st.note_flushed(stamp, lsn);
            }
            M::Flip { .. } if fresh => st.note_flip(lsn),
            M::FlipAt { size, .. } if fresh => {
                // What was passed through was made durable before this record. (What came later may have cut
                // the cache file, whose length told of writes past the end.) What was only fetched was not.
                let mut passed = st.online_written.clone();
                passed.truncate(size);
                st.valid.union_with(&passed);
                st.size = size;
                st.note_flip(lsn);
            }
            M::Doubted { start, end, .. } if fresh => {
                let range = start..end.max(start);
                st.size = st.size.max(range.end);
                st.note_doubted(range, lsn);
            }
            M::Fetched { start, end, .. } if fresh => {
                st.valid.insert(start..end.max(start));
                st.lsn = lsn;
            }
            M::Epoch { .. } if fresh => st.note_epoch(lsn),
            M::MarkSynced {
                epoch, detached, ..
            } if fresh => st.note_synced(epoch, detached, lsn),
            M::Sequence { seq, digest, .. } if fresh => {
                st.sequence = st.sequence.max(seq);
                st.outstanding = Some((seq, digest));
                st.lsn = lsn;
            }
            M::Settled { seq, .. } if fresh => {
                if st.outstanding.is_some_and(|o| o.0 == seq) {
                    st.outstanding = None;
                }
                st.lsn = lsn;
            }
            M::PushBegin { epoch, file_id, .. } if fresh => {
                st.push = Some((epoch, file_id));
                st.grown = st.may_reach();
                st.lsn = lsn;
            }
            M::PushDone { epoch, stamp, .. } if fresh => st.note_pushed(epoch, stamp, lsn),
            M::Evicted { .. } => {
                if bytes {
                    st.unwritten.clear();
                }
                if fresh {
                    st.note_evicted(lsn);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A time that was set after the last write holds, not the write's.
    fn set_time(&self, lsn: u64, op: &TreeOp) {
        let TreeOp::SetAttr { id, set, ctime } = op else {
            return;
        };
        let file = self.tree.nodes.get(id).and_then(|n| n.file.as_ref());
        if let (Some(file), Some(mtime)) = (file, set.mtime) {
            let mut st = file.write();
            if lsn > st.lsn {
                st.changed = st.changed.min(*ctime);
                if st.owns_time() {
                    st.mtime = Some(mtime);
                }
            }
        }
    }

    fn finish(self, journal: &Journal) -> Result<(Tree, u64)> {
        let mut total = 0;
        let same_boot = self.same_boot;
        for file in self.tree.nodes.values().filter_map(|n| n.file.as_ref()) {
            let mut st = file.write();
            // Passed through and never flushed. If only the process died, the cache file has all
            // that was acknowledged: it goes on from there, as after a flip. If the system did,
            // the cache file may have lost it: the share is the authority, and is read again.
            if same_boot && st.tee_was_whole() {
                // As at any flip: its bytes are durable before it is.
                file.data
                    .sync()
                    .map_err(|e| Error::from_io("flushing a cache file", e))?;
                let flip = MetaRecord::FlipAt {
                    file: file.id,
                    size: st.size,
                };
                st.note_flip(journal.append(&Record::Meta(flip))?);
            } else {
                let mut doubt = st.online_written.intersection(&st.valid);
                st.valid.subtract(&doubt);
                doubt.truncate(st.size);
                // Said durably: a kill from now on must not make them believed.
                for r in doubt.iter() {
                    let lsn = journal.append(&Record::Meta(MetaRecord::Doubted {
                        file: file.id,
                        start: r.start,
                        end: r.end,
                    }))?;
                    st.note_doubted(r, lsn);
                }
            }
            let size = st.size;
            st.valid.truncate(size);
            let ctx = |e| Error::from_io("preparing a cache file", e);
            if file.data.len().map_err(ctx)? > size {
                file.data.set_len(size).map_err(ctx)?;
                // Or they are back after the next power cut, when the file may have grown again.
                file.data.sync().map_err(ctx)?;
            }
            total += st.unwritten.bytes();
        }
        let mut tree = self.tree;
        tree.doubted = tree.tried;
        correct_attributes(&mut tree);
        let gone: Vec<u64> = tree
            .nodes
            .iter()
            .filter(|(id, n)| {
                **id != ROOT && !n.linked && n.share.is_none() && !tree.is_parted(**id)
            })
            .map(|(&id, _)| id)
            .filter(|&id| !tree.is_pending(id))
            .collect();
        for id in gone {
            if let Some(file) = tree.forget(id) {
                total -= file.read().unwritten.bytes();
            }
        }
        if let Some(root) = tree.nodes.get_mut(&ROOT) {
            root.linked = true;
        }
        Ok((tree, total))
    }
}

/// Whether bytes that were written directly survived.
fn is_there(data: &dyn storage::ReadAt, offset: u64, len: u64, crc: u32) -> Result<bool> {
    let mut hash = crc32fast::Hasher::new();
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    while done < len {
        let n = usize::try_from(len - done).map_or(buf.len(), |n| n.min(buf.len()));
        let part = buf.get_mut(..n).unwrap_or_default();
        match data.read_exact_at(offset.saturating_add(done), part) {
            Ok(()) => hash.update(part),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(Error::from_io("reading a cache file", e)),
        }
        done += n as u64;
    }
    Ok(hash.finalize() == crc)
}

/// The length and times of a file that was written are in its own standing; the tree's record of
/// them is as old as the last look at the share.
fn correct_attributes(tree: &mut Tree) {
    let files = tree.nodes.iter().filter_map(|(&id, n)| {
        let st = n.file.as_ref()?.read();
        let stamp = st.stamp?;
        Some((id, st.size, st.mtime.unwrap_or(stamp.mtime)))
    });
    let known: Vec<_> = files.collect();
    for (id, size, mtime) in known {
        let waits = tree.is_pending(id) && !tree.written_since_set(id);
        if let Some(node) = tree.nodes.get_mut(&id) {
            node.attr.size = size;
            if !waits {
                node.attr.mtime = mtime;
                node.attr.ctime = node.attr.ctime.max(mtime);
            }
        }
    }
}

fn file_of(record: &MetaRecord) -> u64 {
    use MetaRecord as M;
    match record {
        M::Direct { file, .. }
        | M::Truncate { file, .. }
        | M::OnlineWrite { file, .. }
        | M::OnlineTruncate { file, .. }
        | M::OnlineFlushed { file, .. }
        | M::Flip { file }
        | M::FlipAt { file, .. }
        | M::Doubted { file, .. }
        | M::Attach { file, .. }
        | M::Renewed { file, .. }
        | M::Fetched { file, .. }
        | M::Epoch { file }
        | M::MarkSynced { file, .. }
        | M::Sequence { file, .. }
        | M::Settled { file, .. }
        | M::PushBegin { file, .. }
        | M::Evicted { file }
        | M::PushDone { file, .. } => *file,
        M::Adopt(node) => node.id,
        M::Placed { id, .. } => *id,
        M::Tree { .. } | M::TreeDone { .. } | M::Unsure | M::Tried { .. } | M::Optimised { .. } => {
            ROOT
        }
    }
}
