//! Bringing a file's own bytes to the share: opaque files, and containers that are still attached.
//!
//! Only ranges that changed are written, only over the very file they belong to, and what was
//! written is read back before it counts (R5). A file that someone else changed meanwhile is never
//! overwritten: both are kept, ours under a name that says so (R9).

use std::io;
use std::sync::Arc;

use storage::{RangeSet, ReadAt};

use super::{Drive, State};
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::MetaRecord;
use crate::link::hold;
use crate::share::{SetAttr, Share, ShareFile, Stamp};
use crate::snapshot::Snapshot;

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// There was nothing to push.
    Clean,
    /// The share has it now; so many bytes were written and read back.
    Pushed(u64),
    /// Someone else had changed the share's file: ours is kept beside it under this path.
    Conflict(String),
    /// Someone else had changed or removed the share's file, and what is here of ours is only part of it:
    /// that part is kept on the share, with zeros in its holes, and a list of these beside it.
    Partial {
        /// Its path on the drive; the list's ends with `.holes`.
        kept_as: String,
        /// Bytes that are missing.
        missing: u64,
    },
}

/// Bytes per share call.
const STEP: usize = 1 << 20;

impl Drive {
    /// Pushes a file's unsynced bytes to the share. `date` and `host` name our side, should the
    /// share's file have been changed by someone else.
    ///
    /// # Errors
    /// [`Error::NotCached`] offline or for a file whose making still waits for
    /// [`Drive::reintegrate`]; [`Error::Busy`] while earlier share calls are in doubt, or while a
    /// conflicting file is open; [`Error::Invalid`] for a detached container; what the share says.
    pub fn push_opaque(&self, path: &str, date: &str, host: &str) -> Result<PushOutcome> {
        self.push(path, None, date, host)
    }

    /// As [`Drive::push_opaque`], for a container that is still attached: pushes what it was at
    /// the epoch of `snapshot`, a moment that its validator accepted. This is the physical sync
    /// after a flip (DESIGN 6).
    ///
    /// # Errors
    /// As [`Drive::push_opaque`].
    pub fn push_epoch(
        &self,
        path: &str,
        snapshot: Snapshot,
        date: &str,
        host: &str,
    ) -> Result<PushOutcome> {
        self.push(path, Some(snapshot), date, host)
    }

    fn push(
        &self,
        path: &str,
        epoch: Option<Snapshot>,
        date: &str,
        host: &str,
    ) -> Result<PushOutcome> {
        let node = self.find(path)?;
        let file = self.file(node)?;
        if self.state() == State::Offline {
            return Err(Error::NotCached(path.to_owned()));
        }
        {
            let st = file.read();
            if !st.attached {
                return Err(Error::Invalid("a detached container is synced by objects"));
            }
            if !st.is_dirty() {
                return Ok(PushOutcome::Clean);
            }
        }
        if file.doubt.count() > 0 {
            return Err(Error::Busy(
                "an earlier write to the share may still take effect",
            ));
        }
        let Some(at) = self.tree().share_path(node) else {
            return Err(match self.refused_making(node) {
                Some(why) => Error::Refused {
                    context: path.to_owned(),
                    source: io::Error::other(why),
                },
                None => Error::NotCached(path.to_owned()),
            });
        };
        let there = match self.open_for_push(node, &at) {
            Ok((share_file, stamp, _)) => Some((share_file, stamp)),
            // Perhaps under its later name there already: its waiting change tells, first.
            Err(Error::NotFound(_)) if self.tree().place_in_doubt(node) => {
                return Err(Error::NotCached(path.to_owned()));
            }
            // Of several names there the others are left.
            Err(Error::NotFound(_)) if self.lose_place(node, &at)? => {
                return Err(Error::Busy("others removed one of the file's names"));
            }
            // Removed by someone else: ours is kept, under its own name.
            Err(Error::NotFound(_)) => None,
            Err(e) => return Err(e),
        };
        let Some((share_file, stamp)) = there else {
            return self.push_beside(node, &file, path, date, host, &at);
        };
        let (expected, flipped, begun) = {
            let st = file.read();
            (st.stamp, st.flipped, st.push)
        };
        let snapshot = match epoch.map_or_else(|| self.snapshot_of(path, &file), Ok) {
            Ok(s) => Some(s),
            Err(Error::NotCached(_)) => None,
            Err(e) => return Err(e),
        };
        let Some(snapshot) = snapshot else {
            if expected == Some(stamp) {
                match self.push_partial(node, &file, &at, share_file, stamp) {
                    // It changed while it was being completed, or is not what it was taken for.
                    Err(Error::ShareChanged(_)) => {}
                    done => return done,
                }
            }
            if self.tree().may_have_mtime(node, stamp.mtime) {
                return Err(Error::NotCached(path.to_owned()));
            }
            // What is missing here was in a file that is no more.
            file.write().share_changed = true;
            return self.push_beside(node, &file, path, date, host, &at);
        };
        // Our own hand was there without an answer: then the bytes themselves must tell whether
        // another's was too.
        let ours_maybe = flipped || begun.is_some_and(|(_, id)| id == stamp.file_id);
        let unchanged = match expected {
            Some(e) if e == stamp => true,
            Some(e) if ours_maybe && e.file_id == stamp.file_id => {
                self.equal_outside(&share_file, stamp.size, &snapshot)?
            }
            _ => false,
        };
        if !unchanged && self.tree().may_have_mtime(node, stamp.mtime) {
            // Perhaps our own time, there already: its waiting change tells, first.
            return Err(Error::NotCached(path.to_owned()));
        }
        if !unchanged {
            file.write().share_changed = true;
            return self.push_beside(node, &file, path, date, host, &at);
        }
        let written = self.push_ranges(node, &file, &at, share_file, &snapshot, stamp.file_id)?;
        Ok(PushOutcome::Pushed(written))
    }

    /// Where a container is here only in part, was changed here, and the share's file is another by now: what
    /// is here is kept beside it, as of an opaque file. `None`: it is not so, and nothing was done.
    ///
    /// # Errors
    /// As [`Drive::push_opaque`].
    pub fn part_ways(&self, path: &str, date: &str, host: &str) -> Result<Option<PushOutcome>> {
        let node = self.find(path)?;
        let file = self.file(node)?;
        let expected = {
            let st = file.read();
            if !st.attached || !st.is_dirty() || st.valid.contains_range(0..st.size) {
                return Ok(None);
            }
            st.stamp
        };
        let at = self.tree().share_path(node);
        let same = match at.map(|at| self.share_stamp(&at)) {
            Some(Ok(there)) => expected == Some(there),
            Some(Err(Error::NotFound(_))) => false,
            Some(Err(e)) => return Err(e),
            None => true,
        };
        if same {
            return Ok(None);
        }
        self.push(path, None, date, host).map(Some)
    }

    /// Opens the share's file for writing; also one that its mode, as it was set here, keeps from being
    /// written: the mode forbids it to programs, and these have written before.
    fn open_for_push(&self, node: u64, at: &str) -> Result<(Arc<dyn ShareFile>, Stamp, bool)> {
        const OWNER_WRITES: u32 = 0o200;
        let refused = match self.open_on_share(at, true, self.patient()) {
            Err(e @ (Error::Access(_) | Error::NotPermitted(_))) => e,
            answer => return answer,
        };
        let mode = self.tree().node(node)?.attr.mode;
        if mode & OWNER_WRITES != 0 {
            return Err(refused);
        }
        let path = at.to_owned();
        let opened = self.change(at, move |share| {
            let mode = share.stat(&path)?.mode;
            let stamp = share.stamp(&path)?;
            let set = |mode| {
                let set = SetAttr {
                    mode: Some(mode),
                    ..SetAttr::default()
                };
                share.set_attr(&path, &set)
            };
            set(mode | OWNER_WRITES)?;
            let file = share.open(&path, true);
            set(mode)?;
            Ok((hold(file?), stamp, true))
        });
        match opened {
            Err(e) if e.is_refusal() => Err(refused),
            other => other,
        }
    }

    /// Whether the share's file equals the snapshot wherever nothing of ours is unsynced.
    fn equal_outside(
        &self,
        share_file: &Arc<dyn ShareFile>,
        size: u64,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        let len = snapshot
            .reader
            .len()
            .map_err(|e| Error::from_io("reading a snapshot", e))?;
        for gap in snapshot.dirty.gaps(0..len.min(size)) {
            let mut at = gap.start;
            while at < gap.end {
                let n = (gap.end - at).min(STEP as u64) as usize;
                let mut ours = vec![0; n];
                snapshot
                    .reader
                    .read_exact_at(at, &mut ours)
                    .map_err(|e| Error::from_io("reading a snapshot", e))?;
                if self.read_share(share_file, at, n)? != ours {
                    return Ok(false);
                }
                at += n as u64;
            }
        }
        Ok(true)
    }

    pub(super) fn read_share(&self, f: &Arc<dyn ShareFile>, at: u64, n: usize) -> Result<Vec<u8>> {
        let f = f.clone();
        self.link.call("reading back", move |_| {
            let mut buf = vec![0; n];
            let got = f.read_at(at, &mut buf)?;
            buf.truncate(got);
            Ok(buf)
        })
    }

    fn push_ranges(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        at: &str,
        share_file: Arc<dyn ShareFile>,
        snapshot: &Snapshot,
        file_id: u64,
    ) -> Result<u64> {
        // From the first byte on the share's file is no longer the one that what was fetched came from:
        // a crash in between must not need it again.
        self.keep_fetched(file)?;
        let lsn = {
            let mut st = file.write();
            let epoch = snapshot.epoch;
            let lsn = self.log(MetaRecord::PushBegin {
                file: file.id,
                epoch,
                file_id,
            })?;
            st.push = Some((epoch, file_id));
            st.grown = st.may_reach();
            st.lsn = lsn;
            lsn
        };
        self.journal.sync(lsn)?;
        let len = snapshot
            .reader
            .len()
            .map_err(|e| Error::from_io("reading a snapshot", e))?;
        let mut dirty = snapshot.dirty.clone();
        dirty.truncate(len);
        let f = share_file.clone();
        let budget = self.flush_budget;
        let have = self.link.call_for(at, budget, &file.doubt, move |_| {
            let size = f.stat()?.size;
            if size > len {
                f.set_len(len)?;
            }
            Ok(size.min(len))
        })?;
        let mut written = 0;
        for (start, bytes) in pieces(&*snapshot.reader, &dirty) {
            let bytes: Arc<[u8]> = bytes?.into();
            if start >= have && is_zero(&bytes) {
                continue;
            }
            written += bytes.len() as u64;
            let f = share_file.clone();
            self.call(file, at, move || f.write_all_at(start, &bytes))?;
        }
        let mtime = file.read().mtime;
        let (f, path) = (share_file.clone(), at.to_owned());
        self.link
            .call_for(at, self.flush_budget, &file.doubt, move |share| {
                if f.stat()?.size < len {
                    f.set_len(len)?;
                }
                f.sync()?;
                if mtime.is_some() {
                    // A nicety: shares may refuse it.
                    let _ = share.set_attr(
                        &path,
                        &SetAttr {
                            mtime,
                            ..SetAttr::default()
                        },
                    );
                }
                Ok(())
            })?;
        for (start, bytes) in pieces(&*snapshot.reader, &dirty) {
            let bytes = bytes?;
            if self.read_share(&share_file, start, bytes.len())? != bytes {
                return Err(Error::Link(format!(
                    "{at}: the share did not keep what was written"
                )));
            }
        }
        let stamp = self.link.call(at, move |_| share_file.stamp())?;
        self.pushed(node, file, snapshot.epoch, stamp)?;
        Ok(written)
    }

    pub(super) fn call(
        &self,
        file: &FileNode,
        context: &str,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let budget = self.flush_budget;
        self.link
            .call_for(context, budget, &file.doubt, move |_: &dyn Share| work())
    }

    /// A file of which the cache has only parts: what is missing is fetched first, which works
    /// only from the file it belongs to.
    fn push_partial(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        at: &str,
        share_file: Arc<dyn ShareFile>,
        stamp: Stamp,
    ) -> Result<PushOutcome> {
        self.fill_node_for_push(node, file)?;
        let path = self.tree().path(node);
        let snapshot = self.snapshot_of(&path, file)?;
        let id = stamp.file_id;
        let written = self.push_ranges(node, file, at, share_file, &snapshot, id)?;
        Ok(PushOutcome::Pushed(written))
    }

    fn fill_node_for_push(&self, node: u64, file: &Arc<FileNode>) -> Result<()> {
        loop {
            let gap = {
                let st = file.read();
                let size = st.size;
                st.valid.gaps(0..size).into_iter().next()
            };
            match gap {
                None => return Ok(()),
                Some(g) => {
                    self.fetch(node, file, g.start..g.end.min(g.start + STEP as u64))?;
                }
            }
        }
    }
}

/// Zeros past the end of a file need not be sent: a file that is made longer has them.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// The bytes of a set, in steps.
pub(super) fn pieces<'a>(
    reader: &'a dyn ReadAt,
    set: &'a RangeSet,
) -> impl Iterator<Item = (u64, Result<Vec<u8>>)> + 'a {
    set.iter().flat_map(move |r| {
        (r.start..r.end).step_by(STEP).map(move |at| {
            let mut buf = vec![0; (r.end - at).min(STEP as u64) as usize];
            let read = reader.read_exact_at(at, &mut buf);
            (
                at,
                read.map(|()| buf)
                    .map_err(|e| Error::from_io("reading a snapshot", e)),
            )
        })
    })
}
