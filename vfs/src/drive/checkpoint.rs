//! Checkpoints: durable journal records move to the cache files, behind the writers.
//!
//! Order matters. (1) The journal is durable through X, and says so, before a cache file is
//! touched. (2) Bytes of records through X go to the cache files, which are flushed. (3) The
//! metadata, whose every effect is in the durable journal, is replaced. (4) Only then the overlays
//! drop what was written, cuts stop masking, and segments are released. A crash between any two
//! steps replays from the earlier X to the same result.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use storage::RangeSet;

use super::Drive;
use crate::cache::Meta;
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::Record;
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
        let _one = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.bell.want_checkpoint.store(false, Ordering::SeqCst);
        self.sync_all()?;
        let through = self.journal.durable();

        let mut jobs = Vec::new();
        for (_, file) in self.files() {
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
        if jobs.iter().any(|j| !j.batch.is_empty()) {
            let mark = self.journal.append(&Record::Synced { through })?;
            self.journal.sync(mark)?;
        }
        for job in &jobs {
            self.apply(job)?;
        }
        self.dir.sync_data_names()?;

        let (meta, doomed) = self.collect_meta(through);
        // The metadata may hold effects of younger records: these must be durable before it is.
        self.sync_all()?;
        let meta = Meta {
            known: self.journal.durable(),
            ..meta
        };
        self.dir.write_meta(&meta)?;

        for job in &jobs {
            let mut st = job.file.write();
            let before = st.unwritten.bytes();
            st.unwritten.written(&job.batch);
            self.sub_unwritten(before - st.unwritten.bytes());
        }
        self.journal.release(through)?;
        for file in doomed {
            self.dir.remove_data(file);
        }
        Ok(())
    }

    fn apply(&self, job: &Job) -> Result<()> {
        let file = &job.file;
        let run = || {
            if let Some((cut, _)) = job.batch.cut
                && file.data.len()? > cut
            {
                file.data.set_len(cut)?;
            }
            for (offset, data) in job.batch.writes() {
                file.data.write_all_at(offset, data)?;
            }
            Ok(())
        };
        run().map_err(|e| Error::from_io("writing a cache file", e))?;
        if let Err(e) = file.data.sync() {
            // The system may have dropped pages that the journal counts as written.
            self.journal.poison(&format!("flush of a cache file: {e}"));
            return Err(Error::from_io("flushing a cache file", e));
        }
        if !job.fetched.is_empty() {
            let mut st = file.write();
            if st.cuts == job.cuts {
                st.fetched.subtract(&job.fetched);
            }
        }
        Ok(())
    }

    fn collect_meta(&self, data_lsn: u64) -> (Meta, Vec<u64>) {
        let mut tree = self.tree_mut();
        let doomed = tree.take_doomed();
        let mut meta = Meta {
            data_lsn,
            known: data_lsn,
            tree_lsn: tree.lsn,
            tried: tree.tried,
            next_id: tree.next_id,
            nodes: tree
                .nodes
                .keys()
                .filter_map(|&id| tree.record(id))
                .collect(),
            pending: tree.pending.iter().map(|p| (p.lsn, p.op.clone())).collect(),
            files: Vec::new(),
        };
        for (&id, node) in &tree.nodes {
            if let Some(file) = &node.file {
                let st = file.read();
                meta.files.push(st.store(id));
            }
        }
        (meta, doomed)
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
            Ok(())
        };
        if let Err(error) = done {
            tracing::warn!(%error, "background checkpoint");
        }
        self.journal.prepare();
    }
}
