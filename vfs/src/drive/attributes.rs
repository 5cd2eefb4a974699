//! Attributes on the share: changed by us, and still known to be changed by nobody else.
//!
//! A change of times changes the stamp, and must not pass for another's hand later. So what the share's file
//! looks like after it is recorded with it: as the share says, and where it says nothing more, as what was
//! changed makes it.

use std::io;

use super::Drive;
use super::held::untold;
use crate::error::Result;
use crate::share::{Kind, SetAttr, Share, Stamp};

/// Changes attributes of what the share has at `path`, of which `ours` was known. Returns what is known of it
/// then: nothing, where it was another's already. `again`: it may have got this time before without an answer.
pub(super) fn set_known(
    share: &dyn Share,
    path: &str,
    set: &SetAttr,
    ours: Option<Stamp>,
    again: Option<i64>,
) -> io::Result<Option<Stamp>> {
    let Some(ours) = ours else {
        return share.set_attr(path, set).map(|()| None);
    };
    let before = share.stamp(path).map_err(|e| match again {
        Some(_) => untold(e),
        None => e,
    })?;
    if !set.is_empty() {
        share.set_attr(path, set)?;
    }
    let done_before = |b: Stamp| {
        let mtime = ours.mtime;
        again == Some(b.mtime) && Stamp { mtime, ..b } == ours
    };
    if before != ours && !done_before(before) {
        return Ok(None);
    }
    match share.stamp(path) {
        // It was changed all the same.
        Err(e) if !crate::error::is_link_error(&e) => Ok(Some(Stamp {
            mtime: set.mtime.unwrap_or(before.mtime),
            ..before
        })),
        after => after.map(Some),
    }
}

impl Drive {
    pub(super) fn bring_xattr(&self, id: u64, name: &str, value: Option<&[u8]>) -> Result<()> {
        let Some(at) = self.tree().share_path(id) else {
            return Ok(());
        };
        let (path, name, value) = (at.clone(), name.to_owned(), value.map(<[u8]>::to_vec));
        self.change(&at, move |share| {
            share.set_xattr(&path, &name, value.as_deref())
        })
    }

    /// Brings a change of attributes to the share that was made here at `ctime`.
    pub(super) fn bring_attr(&self, id: u64, mut set: SetAttr, ctime: i64) -> Result<()> {
        let (at, file, node) = {
            let tree = self.tree();
            let node = tree.nodes.get(&id);
            let known = node.map(|n| (n.attr.kind, n.mtime_there));
            match (tree.share_path(id), known) {
                (Some(at), Some(known)) => (at, node.and_then(|n| n.file.clone()), known),
                _ => return Ok(()),
            }
        };
        let (ours, changed) = file.as_ref().map_or((None, 0), |f| {
            let st = f.read();
            (st.stamp, st.changed)
        });
        // Written since, the time of that is the later one: it comes with the content, or came.
        let asked = set.mtime;
        if changed > ctime {
            set.mtime = None;
        }
        // Of what never was here the time alone tells that another wrote it: it stays.
        let known = node.1.filter(|_| ours.is_none() && node.0 == Kind::File);
        let path = at.clone();
        let after = self.change(&at, move |share| {
            if let (Some(known), Some(asked)) = (known, set.mtime) {
                let there = share.stat(&path).map_err(untold)?.mtime;
                if there != known && there != asked {
                    set.mtime = None;
                }
            }
            set_known(share, &path, &set, ours, asked)
        })?;
        match (file, after) {
            (Some(file), Some(stamp)) => self.pushed(id, &file, 0, stamp),
            _ => Ok(()),
        }
    }
}
