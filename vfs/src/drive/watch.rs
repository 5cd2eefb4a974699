//! Noticing that others changed, on the share, a file that programs have open here.
//!
//! Reads of a passed-through file are answered by the share, but the kernel keeps pages, and the length and
//! times of an open file are ours to tell. So the share is asked about such files now and then, by the
//! handle that is open there, and on a change everything that is of before is given up: the copy in the
//! cache, what was read ahead, and, through the listener, the kernel's pages. While our own writes are not
//! flushed yet a change cannot be told from them; then the next look does.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Drive, State};
use crate::error::Result;
use crate::file::{Binding, FileNode};
use crate::journal::record::MetaRecord;

/// A server may settle the time of a write some time after it answered: where nothing else than that
/// changed so soon after a write of ours, it is ours, and the copy in the cache stays.
const SETTLING: Duration = Duration::from_secs(10);

/// Told of nodes whose content is another than programs may have seen.
pub type OnChange = Box<dyn Fn(u64) + Send + Sync>;

impl Drive {
    /// From now on `tell`, or nobody, hears of files whose content changed by another's hand while they were
    /// open. Called on a background thread, without any lock.
    pub fn on_change(&self, tell: Option<OnChange>) {
        *self.tell.lock().unwrap_or_else(PoisonError::into_inner) = tell.map(Arc::new);
    }

    /// Asks the share about every file that is passed through. Returns how many others changed. What
    /// cannot be asked now is asked the next time.
    pub fn watch(&self) -> usize {
        if self.state() != State::Online || !self.link.is_up() {
            return 0;
        }
        let open: HashMap<u64, Arc<FileNode>> = {
            let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
            handles.values().map(|h| (h.node, h.file.clone())).collect()
        };
        let mut changed = 0;
        for (node, file) in open {
            if self.is_ending() {
                break;
            }
            match self.look_at(node, &file) {
                Ok(false) => {}
                Ok(true) => {
                    changed += 1;
                    let tell = self
                        .tell
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    if let Some(tell) = tell {
                        tell(node);
                    }
                }
                Err(error) => {
                    tracing::debug!(path = self.tree().path(node), %error, "cannot look for changes");
                }
            }
        }
        changed
    }

    /// One round of the background thread.
    pub(super) fn watch_in_background(&self) {
        self.watch();
    }

    fn look_at(&self, node: u64, file: &Arc<FileNode>) -> Result<bool> {
        // Our own write is on its way: what it changes is no news.
        let Ok(_io) = file.io.try_lock() else {
            return Ok(false);
        };
        let (share_file, known) = {
            let st = file.read();
            match (&st.binding, st.stamp) {
                (Some(Binding::Share(f, _)), Some(stamp))
                    if st.online_written.is_empty() && file.doubt.count() == 0 =>
                {
                    (f.clone(), stamp)
                }
                _ => return Ok(false),
            }
        };
        let context = self.tree().path(node);
        let asked = share_file.clone();
        let attr = self.link.call(&context, move |_| asked.stat())?;
        if (attr.size, attr.mtime, attr.file_id) == (known.size, known.mtime, known.file_id) {
            return Ok(false);
        }
        let stamp = self.link.call(&context, move |_| share_file.stamp())?;
        self.settle_direct(file)?;
        let mut st = file.write();
        // A change of attributes of ours may have told the stamp meanwhile.
        let same = st.stamp == Some(known) && st.unwritten.is_empty();
        if !same || !st.online_written.is_empty() || !matches!(st.binding, Some(Binding::Share(..)))
        {
            return Ok(false);
        }
        let settling = st.last_write.is_some_and(|at| at.elapsed() < SETTLING);
        if settling
            && (stamp.size, stamp.file_id, stamp.head) == (known.size, known.file_id, known.head)
        {
            let record = MetaRecord::PushDone {
                file: file.id,
                epoch: 0,
                stamp,
            };
            let lsn = self.log(record)?;
            st.note_pushed(0, stamp, lsn);
            st.version += 1;
        } else {
            self.begin_anew(file, &mut st, stamp)?;
        }
        drop(st);
        self.note_share_attr(node, &stamp);
        tracing::info!(path = context, "changed on the share while it is open");
        Ok(true)
    }
}
