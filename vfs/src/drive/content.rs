//! Open files: open, flush, release. What is between is in `read` and `write`.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::{Drive, Event, Handle, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::share::Kind;

/// A handle just opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// Whether pages the kernel kept from earlier opens are still right.
    pub keep_cache: bool,
}

/// How long an open waits for exclusive work on the file to end.
const EXCLUSIVE_WAIT: Duration = Duration::from_secs(5);

/// Nothing lies behind the end of a cache file: it would show as content when the file grows over it. (While
/// bytes wait for it, so may a cut.)
fn trim(file: &FileNode, st: &mut FileState) -> std::io::Result<()> {
    if !st.unwritten.is_empty() {
        return Ok(());
    }
    let (size, end) = (st.size, file.data.len()?);
    if end > size {
        file.save_before(st, size..end);
        file.data.set_len(size)?;
    }
    Ok(())
}

impl Drive {
    /// The file behind a node, made ready for use.
    pub(crate) fn file(&self, node: u64) -> Result<Arc<FileNode>> {
        if !self.tree().node(node)?.linked {
            return Err(Error::NotFound(format!("node {node}")));
        }
        if let Some(file) = &self.tree().node(node)?.file {
            return Ok(file.clone());
        }
        let mut tree = self.tree_mut();
        match tree.node(node)?.attr.kind {
            Kind::File => {}
            Kind::Dir => return Err(Error::IsDir(tree.path(node))),
            Kind::Special(_) => return Err(Error::Invalid("a special file has no content")),
            Kind::Symlink => return Err(Error::Invalid("a symbolic link has no content")),
        }
        self.adopt(&mut tree, node)?;
        let data = self.dir.data(node)?;
        let n = tree.node_mut(node)?;
        if n.file.is_none() {
            let mut st = FileState::new();
            st.size = n.attr.size;
            n.file = Some(Arc::new(FileNode::new(node, data, st)));
        }
        n.file.clone().ok_or(Error::Invalid("no file"))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::NotCached`] offline, where the cache does not have all of it; [`Error::Busy`]
    /// while the sync engine works on it; what the share says.
    pub fn open_file(&self, node: u64, read: bool, write: bool) -> Result<Opened> {
        let file = self.file(node)?;
        let deadline = Instant::now() + EXCLUSIVE_WAIT;
        loop {
            let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
            if !file.read().exclusive {
                self.bind(node, &file, write)?;
                let mut st = file.write();
                st.opens += 1;
                st.used = now();
                let keep_cache = st.version == st.seen_version;
                st.seen_version = st.version;
                drop(st);
                let handle = self.add_handle(Handle {
                    node,
                    file: file.clone(),
                    read,
                    write,
                    ahead: Ahead::default(),
                });
                return Ok(Opened { handle, keep_cache });
            }
            drop(_open);
            if Instant::now() >= deadline {
                return Err(Error::Busy("the sync engine works on this file"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes sure the file is bound, and for writing if need be. `FileNode::open` is held.
    fn bind(&self, node: u64, file: &Arc<FileNode>, write: bool) -> Result<()> {
        let bound = {
            let st = file.read();
            st.binding.clone()
        };
        match bound {
            None => {
                let binding = self.choose(node, file, write)?;
                let mut st = file.write();
                if let Err(e) = trim(file, &mut st) {
                    match binding {
                        Binding::Share(..) => st.tee = false,
                        Binding::Cache => return Err(Error::from_io("cutting a cache file", e)),
                    }
                }
                st.binding = Some(binding);
                drop(st);
                if self.is_pinned(&self.tree().path(node)) && !file.read().fully_cached() {
                    self.bell.want_fill.store(true, Ordering::SeqCst);
                    self.bell.ring();
                }
                Ok(())
            }
            Some(Binding::Share(old, false)) if write => {
                // Opened for reading so far: the handle for writing must be the same file's.
                let Some(share_path) = self.tree().share_path(node) else {
                    return Err(Error::NotFound(self.tree().path(node)));
                };
                match self.open_there(node, true) {
                    Ok((new, stamp, writable)) => {
                        let context = share_path.clone();
                        let old_id = self.link.call(&context, move |_| old.stat())?.file_id;
                        if old_id != stamp.file_id {
                            return Err(Error::ShareChanged(share_path));
                        }
                        self.move_locks(node, file, &new);
                        let mut st = file.write();
                        let mut old = None;
                        if matches!(st.binding, Some(Binding::Share(..))) {
                            old = st.binding.replace(Binding::Share(new, writable));
                        }
                        drop(st);
                        drop(old);
                        Ok(())
                    }
                    Err(e) => self.flip(node, file, e),
                }
            }
            Some(_) => Ok(()),
        }
    }

    /// Called at each close of a descriptor: reports what went wrong behind acknowledged writes.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn flush(&self, handle: u64) -> Result<()> {
        let h = self.handle(handle)?;
        if !h.write {
            return Ok(());
        }
        h.file.check()?;
        match self.journal.poisoned() {
            Some(why) => Err(Error::Poisoned(why)),
            None => Ok(()),
        }
    }

    /// Whether a flush would wait for the local disk alone. A hint for frontends.
    #[must_use]
    pub fn flushes_here(&self, handle: u64) -> bool {
        let h = self.handle(handle);
        h.is_ok_and(|h| matches!(h.file.read().binding, Some(Binding::Cache)))
    }

    /// Makes everything written to the file durable (R2).
    ///
    /// # Errors
    /// [`Error::Poisoned`]; where the file is passed through and not fully cached, what the share
    /// says.
    pub fn fsync(&self, handle: u64) -> Result<()> {
        let h = self.handle(handle)?;
        if matches!(h.file.read().binding, Some(Binding::Share(..)))
            && let Err(e) = self.flush_on_share(h.node, &h.file)
        {
            self.flip(h.node, &h.file, e)?;
        }
        let lsn = h.file.read().lsn;
        // With its name, as programs expect of local disks: also where nothing was written yet.
        let lsn = lsn.max(self.tree().lsn);
        self.journal.sync(lsn)?;
        h.file.check()?;
        self.emit_for(h.node, Event::Flushed);
        Ok(())
    }

    fn emit_for(&self, node: u64, event: impl FnOnce(String) -> Event) {
        let path = self.tree().path(node);
        if self.is_container(&path) {
            self.emit(&event(path));
        }
    }

    /// Makes changes of names durable (fsync of a directory).
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn fsync_dir(&self) -> Result<()> {
        let lsn = self.tree().lsn;
        self.journal.sync(lsn)
    }

    /// Closes a handle.
    ///
    /// # Errors
    /// [`Error::BadHandle`]. A flush that fails here is not lost: the bytes stay recorded.
    pub fn release(&self, handle: u64) -> Result<()> {
        let h = self.take_handle(handle)?;
        let file = &h.file;
        self.end_locks_of(handle, h.node, file);
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        let last = file.read().opens == 1;
        if last && !file.read().online_written.is_empty() && !file.read().unlinked {
            // The stamp after our own writes, or the next open would take them for another's.
            if let Err(e) = self.flush_on_share(h.node, file)
                && let Err(error) = self.flip(h.node, file, e)
            {
                tracing::warn!(path = self.tree().path(h.node), %error, "flush at close failed");
            }
        }
        let bound = {
            let mut st = file.write();
            st.opens = st.opens.saturating_sub(1);
            st.used = now();
            if st.opens == 0 {
                st.binding.take()
            } else {
                None
            }
        };
        let whole = {
            let st = file.read();
            last && st.is_dirty() && !st.fetched.is_empty() && st.fully_cached()
        };
        // Changed here, and whole: it stays whole. The share's file may be another when parts of it
        // would be needed again.
        if whole && let Err(error) = self.keep_fetched(file) {
            tracing::warn!(path = self.tree().path(h.node), %error, "not durably whole");
        }
        if last && file.read().unlinked {
            let mut tree = self.tree_mut();
            self.after_removal(&mut tree, h.node);
        }
        // The share's file is closed without any lock: that is a share call too (R11), and the next
        // open waits for its own calls only.
        drop(_open);
        drop(bound);
        if last {
            file.forget_fetch();
            self.emit_for(h.node, Event::Closed);
        }
        Ok(())
    }
}
