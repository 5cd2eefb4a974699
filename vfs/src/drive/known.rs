//! Whether what the share has at a place is what was last seen there: what is about to be removed or
//! replaced must be, or another's work would go with it.

use super::Drive;
use super::held::untold;
use super::push::pieces;
use crate::error::{Error, Result};
use crate::share::{Kind, Stamp};

impl Drive {
    /// Whether the share's file is still the one that was removed or replaced here.
    /// `None`: the share has nothing there.
    pub(super) fn known_there(&self, id: u64, at: &str) -> Result<Option<bool>> {
        let (attr, stamp, ours_maybe) = {
            let tree = self.tree();
            let node = tree.node(tree.content_of(id))?;
            let standing = node.file.as_ref().map(|f| {
                let st = f.read();
                (st.stamp, st.may_be_there())
            });
            let (stamp, touched) = standing.unwrap_or_default();
            (node.attr, stamp, touched)
        };
        let path = at.to_owned();
        let answer = self.change(at, move |share| {
            let now = share.stat(&path).map_err(untold)?;
            let stamp = if now.kind == Kind::File && stamp.is_some() {
                Some(share.stamp(&path).map_err(untold)?)
            } else {
                None
            };
            Ok((now, stamp))
        });
        match answer {
            Ok((now, Some(there))) => {
                let known = stamp.filter(|s| now.kind == attr.kind && s.file_id == there.file_id);
                match known {
                    Some(s) if s == there => Ok(Some(true)),
                    Some(s) if ours_maybe => self.only_ours(id, at, s).map(Some),
                    _ => Ok(Some(false)),
                }
            }
            Ok((now, None)) if now.kind == Kind::File => Ok(Some(
                attr.kind == Kind::File
                    && (now.size, now.mtime, now.file_id) == (attr.size, attr.mtime, attr.file_id),
            )),
            Ok((now, None)) => Ok(Some(now.kind == attr.kind)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether nobody but us changed the share's file since it had this stamp, where a write of ours may be
    /// there that it never answered: its bytes tell, wherever they are here and that write was not.
    fn only_ours(&self, id: u64, at: &str, known: Stamp) -> Result<bool> {
        let Some(file) = self.tree().file_behind(id).cloned() else {
            return Ok(false);
        };
        let (snapshot, mut same) = self.snapshot_held(at, &file)?;
        let len = snapshot
            .reader
            .len()
            .map_err(|e| Error::from_io("reading a snapshot", e))?;
        let (share_file, there, _) = self.open_on_share(at, false, self.patient())?;
        let reach = file.read().may_reach().max(known.size);
        if there.size > reach {
            return Ok(false);
        }
        same.subtract(&snapshot.dirty);
        same.subtract(&file.read().online_written);
        same.truncate(len.min(there.size));
        for (start, ours) in pieces(&*snapshot.reader, &same) {
            let ours = ours?;
            if self.read_share(&share_file, start, ours.len())? != ours {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
