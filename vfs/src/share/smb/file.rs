//! Open files of an SMB share, and how they outlive a lost session.
//!
//! A handle of a lost session is opened anew with the same access and the same share mode, and then
//! has to be the same file: same index number, size, time and first bytes as when we last looked
//! ([`Known`]). Where writes of ours came after that look nobody can tell what is there now, and
//! where another file is found it is not the handle's file (R1): the handle then answers "stale",
//! for the drive to go on with from its cache.
//!
//! All writers of one file in this process share one handle on the server: its share mode keeps
//! others out, not ourselves.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use smb2::types::FileId;

use super::Inner;
use super::attr::{Facts, file_time};
use super::call::{How, Part};
use super::error::{RANGE_NOT_LOCKED, Result, Retry, SmbError};
use super::session::Live;
use crate::share::{Attr, HEAD, ReadDone, SetAttr, ShareFile, Stamp, Within};

/// An open file; see the module's head.
pub(super) struct OpenFile {
    share: Arc<Inner>,
    /// Where it is now: renames of ours move it.
    path: Mutex<String>,
    how: How,
    handle: tokio::sync::Mutex<Handle>,
    known: Mutex<Known>,
    /// What is locked through the handle, in order: a new one gets it too, or is none.
    locks: Mutex<Vec<Part>>,
    /// Counts what may have changed the file: a look is only worth something if none came since.
    writes: AtomicU64,
}

enum Handle {
    Open(Arc<Live>, FileId),
    /// Never to be had again.
    Lost(SmbError),
}

/// The file as we last saw it.
#[derive(Clone, Copy)]
struct Known {
    facts: Facts,
    head: Option<[u8; 32]>,
    /// [`OpenFile::writes`] when we looked.
    writes: u64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stale(sentence: &str) -> SmbError {
    SmbError::new(
        Retry::Never,
        io::ErrorKind::StaleNetworkFileHandle,
        sentence,
    )
}

/// Whether the drive's path `path` is `dir` or lies beneath it, without regard to case; the rest.
fn beneath<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    let head = path.get(..dir.len())?;
    let rest = path.get(dir.len()..)?;
    let same = crate::path::Names::Windows.same(head, dir);
    (same && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
}

/// All open files, for those who need to know.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Vec<Weak<OpenFile>>>);

impl OpenFiles {
    fn all(&self) -> Vec<Arc<OpenFile>> {
        let mut files = lock(&self.0);
        files.retain(|f| f.strong_count() > 0);
        files.iter().filter_map(Weak::upgrade).collect()
    }

    /// The open files at `path` (not those beneath it).
    pub(super) fn at(&self, path: &str) -> Vec<Arc<OpenFile>> {
        let mut found = self.all();
        found.retain(|f| beneath(&lock(&f.path), path) == Some(""));
        found
    }

    /// The handle that writers of `path` share: that of this very name, else of another spelling.
    pub(super) fn writer(&self, path: &str) -> Option<Arc<OpenFile>> {
        let mut found = self.at(path);
        found.retain(|f| f.how.write);
        let same = found.iter().position(|f| *lock(&f.path) == path);
        (!found.is_empty()).then(|| found.swap_remove(same.unwrap_or(0)))
    }

    /// `from` is called `to` now.
    pub(super) fn moved(&self, from: &str, to: &str) {
        for file in self.all() {
            let mut path = lock(&file.path);
            let new = beneath(&path, from).map(|rest| format!("{to}{rest}"));
            if let Some(new) = new {
                *path = new;
            }
        }
    }

    /// What was at `path` has no name any more, or another file has it: it cannot be opened anew.
    pub(super) fn forget(&self, path: &str) {
        for file in self.at(path) {
            // No file of the share can have this name.
            *lock(&file.path) = String::new();
        }
    }

    pub(super) fn add(
        &self,
        share: &Arc<Inner>,
        path: &str,
        how: How,
        live: Arc<Live>,
        opened: (FileId, Facts),
    ) -> Arc<OpenFile> {
        let file = Arc::new(OpenFile {
            share: share.clone(),
            path: Mutex::new(path.to_owned()),
            how: How {
                create: None,
                ..how
            },
            handle: tokio::sync::Mutex::new(Handle::Open(live, opened.0)),
            known: Mutex::new(Known {
                facts: opened.1,
                head: None,
                writes: 0,
            }),
            locks: Mutex::default(),
            writes: AtomicU64::new(0),
        });
        lock(&self.0).push(Arc::downgrade(&file));
        file
    }
}

impl OpenFile {
    /// The handle, of the session there is now.
    pub(super) async fn handle(&self) -> Result<(Arc<Live>, FileId)> {
        let mut handle = self.handle.lock().await;
        match &*handle {
            Handle::Open(live, id) if !live.is_dead() => return Ok((live.clone(), *id)),
            Handle::Open(..) => {}
            Handle::Lost(e) => return Err(e.clone()),
        }
        match self.again().await {
            Ok((live, id)) => {
                *handle = Handle::Open(live.clone(), id);
                Ok((live, id))
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::StaleNetworkFileHandle {
                    *handle = Handle::Lost(e.clone());
                }
                Err(e)
            }
        }
    }

    /// The handle, if it is to be had without waiting.
    fn at_hand(&self) -> Option<(Arc<Live>, FileId)> {
        match &*self.handle.try_lock().ok()? {
            Handle::Open(live, id) if !live.is_dead() => Some((live.clone(), *id)),
            _ => None,
        }
    }

    /// Opens the file of a lost session again.
    async fn again(&self) -> Result<(Arc<Live>, FileId)> {
        let known = *lock(&self.known);
        if known.writes != self.writes.load(Ordering::SeqCst) {
            return Err(stale(
                "the connection was lost after a write: what the share has of it is not known",
            ));
        }
        let path = lock(&self.path).clone();
        if path.is_empty() {
            return Err(stale(
                "the connection was lost, and the file has no name any more",
            ));
        }
        let live = self.share.sessions.live().await?;
        let name = self.share.wire_name(&path)?;
        let opened = live.answer(live.open(name, self.how)).await;
        let (id, facts) = opened.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => {
                stale("the connection was lost, and the file is gone since")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy => {
                stale("the connection was lost, and others hold the file since")
            }
            _ => e,
        })?;
        let locks = lock(&self.locks).clone();
        for part in &locks {
            if !live.answer(live.lock(id, part)).await? {
                let _ = live.answer(live.close(id)).await;
                return Err(stale(
                    "the connection was lost, and others hold a lock on a part that was locked here",
                ));
            }
        }
        let mut same = facts.index == known.facts.index
            && facts.size == known.facts.size
            && facts.modified == known.facts.modified;
        if let Some(head) = known.head.filter(|_| same) {
            same = head_of(&live, id).await? == head;
        }
        if !same {
            let _ = live.answer(live.close(id)).await;
            return Err(stale(
                "the connection was lost, and the file was changed or replaced since",
            ));
        }
        Ok((live, id))
    }

    /// A request that changes nothing, so that it may be asked once more on a new session.
    async fn ask<T>(&self, work: impl AsyncFn(&Arc<Live>, FileId) -> smb2::Result<T>) -> Result<T> {
        let (live, id) = self.handle().await?;
        match live.answer(work(&live, id)).await {
            Err(e) if e.fatal => {}
            other => return other,
        }
        let (live, id) = self.handle().await?;
        live.answer(work(&live, id)).await
    }

    /// Locks a part: `false`, another has a lock there. A session that was lost meanwhile took what
    /// it may have granted with it, so the question may be asked again.
    async fn lock(&self, part: Part) -> Result<bool> {
        let granted = self
            .ask(async |live, id| live.lock(id, &part).await)
            .await?;
        if granted {
            lock(&self.locks).push(part);
        }
        Ok(granted)
    }

    async fn unlock(&self, range: Range<u64>) -> Result<()> {
        let part = {
            let mut locks = lock(&self.locks);
            let at = locks.iter().position(|p| p.range == range);
            let Some(at) = at else {
                return Err(SmbError::from_status(RANGE_NOT_LOCKED));
            };
            // Before it is asked: a new session does not lock it again.
            locks.remove(at)
        };
        let (live, id) = self.handle().await?;
        match live.answer(live.unlock(id, &part)).await {
            Err(e) if e.fatal => Ok(()),
            Err(e) => {
                lock(&self.locks).push(part);
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    /// A request that changes the file.
    async fn change<T>(
        &self,
        work: impl AsyncFn(&Arc<Live>, FileId) -> smb2::Result<T>,
    ) -> Result<T> {
        let (live, id) = self.handle().await?;
        // From here on, even if the answer is lost.
        self.writes.fetch_add(1, Ordering::SeqCst);
        live.answer(work(&live, id)).await
    }

    async fn look(&self) -> Result<Facts> {
        let before = self.writes.load(Ordering::SeqCst);
        let index = lock(&self.known).facts.index;
        let facts = self
            .ask(async |live, id| live.facts(id, index).await)
            .await?;
        let mut known = lock(&self.known);
        if before == self.writes.load(Ordering::SeqCst) {
            let head = known.head.filter(|_| known.writes == before);
            *known = Known {
                facts,
                head,
                writes: before,
            };
        }
        Ok(facts)
    }

    /// Times and DOS attributes, through the handle: what is set by name while a handle is open is
    /// undone when that is closed.
    pub(super) async fn set_basic(&self, set: &SetAttr, attributes: u32) -> Result<()> {
        let time = |t: Option<i64>| t.map_or(smb2::pack::FileTime::ZERO, file_time);
        let (accessed, modified) = (time(set.atime), time(set.mtime));
        self.change(async |live, id| live.set_basic(id, accessed, modified, attributes).await)
            .await?;
        self.look().await.map(drop)
    }

    /// Whether this is the file with this index number. (Some servers tell two spellings apart.)
    pub(super) fn is(&self, index: u64) -> bool {
        index != 0 && index == lock(&self.known).facts.index
    }

    /// Whether it was opened under just this name.
    pub(super) fn is_called(&self, path: &str) -> bool {
        *lock(&self.path) == path
    }
}

async fn head_of(live: &Arc<Live>, id: FileId) -> Result<[u8; 32]> {
    let mut head = [0; HEAD];
    let n = live.answer(live.read(id, 0, &mut head)).await?;
    Ok(*blake3::hash(head.get(..n).unwrap_or(&head)).as_bytes())
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Handle::Open(live, id) = self.handle.get_mut()
            && !live.is_dead()
        {
            // The server forgets handles with their session: a failing close leaves nothing behind.
            let (live, id) = (live.clone(), *id);
            let close = async move { live.answer(live.close(id)).await };
            // The last one who held it may be a call of the share itself, which cannot wait for another.
            match tokio::runtime::Handle::try_current() {
                Ok(running) => drop(running.spawn(close)),
                Err(_) => drop(self.share.wait(close)),
            }
        }
    }
}

/// An open file as the drive holds it.
pub(super) struct SmbFile(pub(super) Arc<OpenFile>);

impl SmbFile {
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> io::Result<T> {
        self.0.share.wait(work)
    }
}

impl ShareFile for SmbFile {
    fn stat(&self) -> io::Result<Attr> {
        self.wait(self.0.look()).map(|facts| facts.file())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let buf = tokio::sync::Mutex::new(buf);
        self.wait(
            self.0
                .ask(async |live, id| live.read(id, offset, *buf.lock().await).await),
        )
    }

    fn begins_reads(&self, len: usize) -> bool {
        self.0.at_hand().is_some_and(|(live, _)| len <= live.chunk)
    }

    fn begin_read(&self, offset: u64, len: usize, within: Within, done: ReadDone) {
        let (Some(runtime), Some((live, id))) = (&self.0.share.runtime, self.0.at_hand()) else {
            return done(Err(io::ErrorKind::NotConnected.into()));
        };
        let begun = self.0.share.begun.begin(runtime, &live, within, done);
        // The file stays open until the answer is there.
        let file = self.0.clone();
        runtime.spawn(async move {
            let answer = live.read_piece(id, offset, len).await;
            begun.answer(live.answered(answer).map_err(io::Error::from));
            drop(file);
        });
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.wait(
            self.0
                .change(async |live, id| live.write(id, offset, data).await),
        )
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.wait(self.0.change(async |live, id| live.set_len(id, len).await))
    }

    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        self.wait(self.0.lock(Part { range, exclusive }))
    }

    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        self.wait(self.0.unlock(range))
    }

    /// Flushes, and looks: from then on the handle can be opened anew after a lost connection.
    fn sync(&self) -> io::Result<()> {
        if !self.0.how.write {
            // Nothing was written through it, and the server takes FLUSH from writers only.
            return Ok(());
        }
        self.wait(async {
            let (live, id) = self.0.handle().await?;
            live.answer(live.flush(id)).await?;
            // What was to be durable is; a failing look costs the handle at worst.
            let _ = self.0.look().await;
            Ok(())
        })
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.wait(async {
            let before = self.0.writes.load(Ordering::SeqCst);
            let facts = self.0.look().await?;
            let mut head = [0; HEAD];
            let buf = tokio::sync::Mutex::new(&mut head[..]);
            let n = self
                .0
                .ask(async |live, id| live.read(id, 0, *buf.lock().await).await)
                .await?;
            let hash = *blake3::hash(head.get(..n).unwrap_or(&head)).as_bytes();
            let mut known = lock(&self.0.known);
            if known.writes == before && before == self.0.writes.load(Ordering::SeqCst) {
                known.head = Some(hash);
            }
            let attr = facts.file();
            Ok(Stamp {
                size: attr.size,
                mtime: attr.mtime,
                file_id: attr.file_id,
                head: hash,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_move_with_their_directory() {
        assert_eq!(beneath("a/b/c", "A/b"), Some("/c"));
        assert_eq!(beneath("a/b", "a/B"), Some(""));
        assert_eq!(beneath("a/bc", "a/b"), None);
        assert_eq!(beneath("a", "a/b"), None);
        assert_eq!(beneath("\u{e4}x", "\u{e4}"), None);
        assert_eq!(beneath("\u{e4}", "a"), None);
    }
}
