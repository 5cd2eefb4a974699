//! Checkpoints: durable journal records move to the cache files, behind the writers.
//!
//! Order matters. (1) The journal is durable through X, and says so, before a cache file is
//! touched. (2) Bytes of records through X go to the cache files, which are flushed. (3) The
//! metadata, whose every effect is in the durable journal, is replaced. (4) Only then the overlays
//! drop what was written, cuts stop masking, and segments are released. A crash between any two
//! steps replays from the earlier X to the same result.
//!
//! A cache file that cannot be written is left behind and holds up no other: its X stays, its bytes
//! stay in memory and in the journal. One whose *flush* failed is never tried again by this process
//! (the system may have dropped what it was to write, and says so once): it takes no more writes, and
//! the next opening of the drive replays the journal into it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use storage::RangeSet;

use super::Drive;
use crate::cache::MetaBytes;
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::unwritten::Batch;

struct Job {
    file: Arc<FileNode>,
    batch: Batch,
    fetched: RangeSet,
    cuts: u64,
}

impl Drive {
    /// Brings cache files and metadata up to the durable end of the journal.
    ///
    /// # Errors
    /// What could not be written. Nothing is lost: the journal still has it.
    pub fn checkpoint(&self) -> Result<()> {
        let mut meta = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.bell.want_checkpoint.store(false, Ordering::SeqCst);
        self.sync_all()?;
        let through = self.journal.durable();

        let mut jobs = Vec::new();
        for (_, file) in self.files() {
            if file.poison.get().is_some() {
                continue;
            }
            let st = file.read();
            let (batch, fetched) = (st.unwritten.batch(through), st.fetched.clone());
            let cuts = st.cuts;
            drop(st);
            if !batch.is_empty() || !fetched.is_empty() {
                jobs.push(Job {
                    file,
                    batch,
                    fetched,
                    cuts,
                });
            }
        }
        let direct = self.direct.swap(0, Ordering::SeqCst);
        if direct > 0 || jobs.iter().any(|j| !j.batch.is_empty()) {
            self.journal.mark()?;
        }
        let mut first = Ok(());
        let mut failed = BTreeSet::new();
        jobs.retain(|job| match self.apply(job) {
            Ok(()) => true,
            Err(e) => {
                failed.insert(job.file.id);
                if first.is_ok() {
                    first = Err(e);
                }
                false
            }
        });
        self.dir.sync_data_names()?;

        let (all, doomed) = self.collect_meta(&mut meta, through, &failed);
        // The metadata may hold effects of younger records: these must be durable before it is.
        if let Err(e) = self
            .sync_all()
            .and_then(|()| self.dir.write_meta(&mut meta, self.journal.durable()))
        {
            // The old metadata still speaks of them.
            self.tree_mut().doomed.extend(doomed);
            return Err(e);
        }
        self.data_lsn.store(all, Ordering::SeqCst);

        for job in &jobs {
            let mut st = job.file.write();
            st.data_lsn = through;
            let before = st.unwritten.bytes();
            st.unwritten.written(&job.batch);
            self.sub_unwritten(before - st.unwritten.bytes());
        }
        self.journal.release(all)?;
        for file in doomed {
            self.dir.remove_data(file);
        }
        first
    }

    /// Before anything but the journal's own writes touches a cache file: appends that went there
    /// directly are durable, and the journal says so. Else a replay would take what is done to
    /// these bytes for their loss.
    pub(crate) fn settle_direct(&self, file: &FileNode) -> Result<()> {
        let lsn = file.read().direct;
        if lsn > self.journal.marked() {
            self.journal.sync(lsn)?;
            self.journal.mark()?;
        }
        Ok(())
    }

    /// Flushes a cache file. The first flush that fails is the last: the file takes no more writes.
    pub(crate) fn flush_data(&self, file: &FileNode) -> Result<()> {
        file.check()?;
        let Err(e) = file.data.sync() else {
            return Ok(());
        };
        let why = format!("flush of a cache file: {e}");
        tracing::error!(error = why, "a file takes no more writes");
        if self.journal.awaits(file.id) {
            // Acknowledged bytes lie in that file alone, and the journal would call them durable.
            self.journal.poison(&why);
        }
        file.poison.get_or_init(|| why);
        Err(Error::from_io("flushing a cache file", e))
    }

    fn apply(&self, job: &Job) -> Result<()> {
        let file = &job.file;
        let run = || {
            if let Some((cut, _)) = job.batch.cut
                && file.data.len()? > cut
            {
                file.data.set_len(cut)?;
            }
            job.batch.write_to(&*file.data)
        };
        run().map_err(|e| Error::from_io("writing a cache file", e))?;
        self.flush_data(file)?;
        if !job.fetched.is_empty() {
            let mut st = file.write();
            if st.cuts == job.cuts {
                st.fetched.subtract(&job.fetched);
            }
        }
        Ok(())
    }

    /// The metadata once all records through `through` are in the cache files, but for those of
    /// the files that `failed` now, or earlier. Returns through which record all cache files are complete
    /// by it, and the nodes that it speaks of no more.
    fn collect_meta(
        &self,
        meta: &mut MetaBytes,
        through: u64,
        failed: &BTreeSet<u64>,
    ) -> (u64, Vec<u64>) {
        let mut tree = self.tree_mut();
        let behind = |id: u64, file: &FileNode| {
            failed.contains(&id)
                || (file.poison.get().is_some() && !file.read().unwritten.is_empty())
        };
        let files: Vec<_> = tree
            .nodes
            .iter()
            .filter_map(|(&id, n)| Some((id, n.file.as_ref()?)))
            .map(|(id, file)| (id, file.clone(), behind(id, file)))
            .collect();
        let data_lsn = if files.iter().any(|f| f.2) {
            self.data_lsn.load(Ordering::SeqCst)
        } else {
            through
        };
        self.checkpoints.fetch_add(1, Ordering::SeqCst);
        let doomed = tree.take_doomed();
        meta.begin(data_lsn, tree.lsn, tree.next_id);
        let nodes = tree.nodes.keys().filter_map(|&id| tree.record(id));
        meta.list(tree.nodes.len(), nodes);
        meta.list(
            tree.pending.len(),
            tree.pending.iter().map(|p| (p.lsn, &p.op)),
        );
        let stored = files.iter().map(|(id, file, behind)| {
            let mut stored = file.read().store(*id);
            if !behind {
                stored.data_lsn = through;
            }
            stored
        });
        meta.list(files.len(), stored);
        meta.tried(tree.tried);
        let hidden: Vec<_> = tree
            .nodes
            .iter()
            .filter_map(|(&id, n)| Some((id, n.mtime_there?)))
            .collect();
        meta.list(hidden.len(), hidden.iter());
        let links = tree.links();
        meta.list(links.len(), links.iter());
        let changed = tree.changed_since();
        meta.list(changed.len(), changed.iter());
        (data_lsn, doomed)
    }

    /// One round of the background thread.
    pub(crate) fn keep(&self) {
        if self.journal.poisoned().is_some() {
            return;
        }
        let wanted = self.bell.want_checkpoint.load(Ordering::SeqCst)
            || self.journal.bytes() > 4 * self.unwritten_limit;
        let done = if wanted {
            self.checkpoint()
        } else if self.journal.last() > self.journal.durable() {
            // Bounds what a power cut may take from programs that never flush.
            self.sync_all()
        } else {
            self.journal.mark_at_rest()
        };
        if let Err(error) = done {
            tracing::warn!(%error, "background checkpoint");
        }
        self.journal.prepare();
    }
}
