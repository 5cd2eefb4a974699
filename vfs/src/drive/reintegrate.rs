//! Bringing changes of the tree, made while the share could not see them, to the share.
//!
//! In order, one at a time, each recorded as done before the next: a crash or a lost link stops
//! anywhere and the rest goes on later. A change may have reached the share without its answer, so
//! each is idempotent. Nothing of another's is lost: a file that changed there is not removed, and
//! a name that was taken there gets ours beside it (R3, R9).

use std::sync::{Arc, PoisonError};

use super::make::give;
use super::{Drive, State};
use crate::error::{Error, Result};
use crate::journal::record::{MetaRecord, NodeRecord, TreeOp};
use crate::path::{conflict_names, join};
use crate::share::{Attr, Kind, Stamp};
use crate::tree::Pending;

/// What became of one waiting change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReintegratedOutcome {
    /// The share has it.
    Done,
    /// The name was taken there: ours is on the share under this path.
    RenamedTo(String),
    /// Not removed there, because it was changed there meanwhile; it shows here again.
    KeptThere,
    /// It cannot be done there any more, for this reason; ours stays as it is here.
    Dropped(String),
}

/// One waiting change and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reintegrated {
    /// What the change was, in words ("create a/b").
    pub what: String,
    /// What became of it.
    pub outcome: ReintegratedOutcome,
}

impl Drive {
    /// Changes of the tree that wait for the share, in order, in words.
    #[must_use]
    pub fn pending_namespace(&self) -> Vec<String> {
        let tree = self.tree();
        tree.pending
            .iter()
            .map(|p| describe(&tree, &p.op))
            .collect()
    }

    /// Brings the waiting changes to the share, in order. `date` and `host` name our side of
    /// conflicts.
    ///
    /// # Errors
    /// [`Error::NotCached`] offline; [`Error::Busy`] while an earlier share call, left behind, may
    /// still take effect; [`Error::Link`] when the link fails: what is done stays done,
    /// the rest still waits.
    pub fn reintegrate(&self, date: &str, host: &str) -> Result<Vec<Reintegrated>> {
        let _one = self
            .reintegrating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut report = Vec::new();
        if self.state() != State::Offline {
            self.shorten()?;
        }
        loop {
            if self.tree_doubt.count() > 0 {
                return Err(Error::Busy(
                    "an earlier change on the share may still take effect",
                ));
            }
            if self.state() == State::Offline {
                return Err(Error::NotCached("the drive is offline".to_owned()));
            }
            let (next, what) = {
                let tree = self.tree();
                match tree.pending.front() {
                    Some(p) => (p.clone(), describe(&tree, &p.op)),
                    None => break,
                }
            };
            // What is brought over is durable here, and so is what was brought before: a power cut
            // leaves one change in doubt, and what is done again never meets its own later changes.
            self.sync_all()?;
            let outcome = self.bring(&next, date, host)?;
            self.done(&next)?;
            report.push(Reintegrated { what, outcome });
        }
        self.sync_all()?;
        Ok(report)
    }

    fn bring(&self, next: &Pending, date: &str, host: &str) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        let outcome = match &next.op {
            TreeOp::Create(record) => self.bring_create(record, date, host),
            TreeOp::Remove { id } => self.bring_removal(*id),
            TreeOp::Rename {
                id,
                parent,
                name,
                replaced,
            } => self.bring_rename(*id, *parent, name, *replaced, date, host),
            TreeOp::SetXattr { id, name, value } => {
                let Some(at) = self.tree().share_path(*id) else {
                    return Ok(O::Done);
                };
                let (path, name, value) = (at.clone(), name.clone(), value.clone());
                self.change(&at, move |share| {
                    share.set_xattr(&path, &name, value.as_deref())
                })
                .map(|()| O::Done)
            }
            TreeOp::SetAttr { id, set, ctime } => {
                let Some(at) = self.tree().share_path(*id) else {
                    return Ok(O::Done);
                };
                let (path, mut set) = (at.clone(), *set);
                let file = self.tree().nodes.get(id).and_then(|n| n.file.clone());
                let asked = set.mtime;
                // Written since: the time of that is the later one.
                let changed = file.as_ref().map_or(0, |f| f.read().changed);
                if changed > *ctime {
                    set.mtime = set.mtime.and(Some(changed));
                }
                let ours = file.as_ref().and_then(|f| f.read().stamp);
                let after = self.change(&at, move |share| {
                    let before = ours.map(|_| share.stamp(&path)).transpose()?;
                    share.set_attr(&path, &set)?;
                    // Done before without an answer, it looks so.
                    let again = before.zip(ours).is_some_and(|(b, o)| {
                        Stamp {
                            mtime: o.mtime,
                            ..b
                        } == o
                            && (asked == Some(b.mtime) || set.mtime == Some(b.mtime))
                    });
                    let known = before == ours || again;
                    Ok(if known {
                        ours.map(|_| share.stamp(&path)).transpose()?
                    } else {
                        None
                    })
                });
                match after {
                    Ok(stamp) => {
                        if let (Some(file), Some(stamp)) = (file, stamp) {
                            self.pushed(*id, &file, 0, stamp)?;
                        }
                        Ok(O::Done)
                    }
                    Err(e) => Err(e),
                }
            }
        };
        match outcome {
            // Nothing can be said about the rest either.
            Err(e) if e.is_link() => Err(e),
            // Nor is this the share's refusal of this one change; a full disk, here or there, passes.
            Err(
                e @ (Error::Poisoned(_) | Error::Io { .. } | Error::Busy(_) | Error::NoSpace(_)),
            ) => Err(e),
            Err(e) => Ok(O::Dropped(e.to_string())),
            other => other,
        }
    }

    /// Takes the change off the queue, durably enough: done twice it does no harm.
    fn done(&self, next: &Pending) -> Result<()> {
        let mut tree = self.tree_mut();
        let lsn = self.log(MetaRecord::TreeDone { lsn: next.lsn })?;
        tree.pending.retain(|p| p.lsn != next.lsn);
        tree.lsn = lsn;
        let ids: Vec<u64> = match &next.op {
            TreeOp::Remove { id } => vec![*id],
            TreeOp::Rename { replaced, .. } => replaced.iter().copied().collect(),
            _ => Vec::new(),
        };
        for id in ids {
            if tree.nodes.get(&id).is_some_and(|n| !n.linked) {
                self.after_removal(&mut tree, id);
            }
        }
        Ok(())
    }

    fn placed(&self, id: u64, share: Option<(u64, String)>, attr: Option<Attr>) -> Result<()> {
        let mut tree = self.tree_mut();
        let lsn = self.log(MetaRecord::Placed {
            id,
            share: share.clone(),
            attr,
        })?;
        tree.place(id, share);
        tree.seen(id, attr);
        tree.lsn = lsn;
        Ok(())
    }

    /// Gives our node another name here, because the share has something else under its own (`place`).
    /// If by now it is called otherwise here, a later change brings that over.
    fn rename_here(&self, id: u64, place: (u64, &str), name: &str) -> Result<()> {
        let mut tree = self.tree_mut();
        let node = tree.node(id)?;
        if !node.linked || (node.parent, node.name.as_str()) != place {
            return Ok(());
        }
        let parent = node.parent;
        // Taken here too: keep ours under the name it has; the share's name differs then.
        if tree.child(parent, name).is_some() {
            return Ok(());
        }
        let share = node.share.clone();
        let op = TreeOp::Rename {
            id,
            parent,
            name: name.to_owned(),
            replaced: None,
        };
        let lsn = self.log(MetaRecord::Tree {
            op: op.clone(),
            pending: false,
        })?;
        tree.apply(&op, false, lsn);
        let lsn = self.log(MetaRecord::Placed {
            id,
            share: share.clone(),
            attr: None,
        })?;
        tree.place(id, share);
        tree.lsn = lsn;
        if let Some(dir) = tree.nodes.get_mut(&parent) {
            dir.listed = None;
        }
        Ok(())
    }

    fn bring_create(
        &self,
        record: &NodeRecord,
        date: &str,
        host: &str,
    ) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        let id = record.id;
        let dir = {
            let tree = self.tree();
            let Some(node) = tree.nodes.get(&id) else {
                return Ok(O::Done);
            };
            if node.share.is_some() {
                return Ok(O::Done);
            }
            tree.share_path(record.parent)
        };
        let Some(dir) = dir else {
            return Ok(O::Dropped("its directory is not on the share".to_owned()));
        };
        // Also what was removed here again: it may have been made there without an answer, and
        // its removal, next in the queue, needs to know it.
        let (kind, mode) = (record.attr.kind, record.attr.mode);
        let owner = (record.attr.uid, record.attr.gid);
        for name in conflict_names(&record.name, date, host) {
            let place = join(&dir, &name);
            let (path, target) = (place.clone(), record.target.clone().unwrap_or_default());
            let answer: Result<(Attr, Option<Stamp>, bool)> = self.change(&place, move |share| {
                let made = match kind {
                    Kind::Dir => share.mkdir(&path, mode).map(|()| None),
                    Kind::Symlink => share.symlink(&path, &target).map(|()| None),
                    Kind::Special(what) => share.make_special(&path, what, mode).map(|()| None),
                    Kind::File => share.create(&path, mode).map(Some),
                };
                let file = match made {
                    Ok(file) => {
                        give(share, &path, owner, kind, mode);
                        file
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        // Perhaps ours, made without an answer: a directory, an empty file,
                        // the same link or the same device is as good as new.
                        let there = share.stat(&path)?;
                        let other = there.kind != kind
                            || match kind {
                                Kind::File => there.size > 0,
                                Kind::Symlink => share.read_link(&path)? != target,
                                Kind::Dir | Kind::Special(_) => false,
                            };
                        if other {
                            return Ok((there, None, false));
                        }
                        match kind {
                            Kind::File => Some(share.open(&path, true)?),
                            Kind::Dir | Kind::Symlink | Kind::Special(_) => None,
                        }
                    }
                    Err(e) => return Err(e),
                };
                let stamp = file.as_ref().map(|f| f.stamp()).transpose()?;
                Ok((share.stat(&path)?, stamp, true))
            });
            let (attr, stamp, ours) = answer?;
            if !ours {
                continue;
            }
            // First what its content is a copy of: a place without that would later pass for
            // another's file. The other way round it is simply brought over again.
            let file = self.tree().node(id)?.file.clone();
            if let Some(stamp) = stamp {
                match file {
                    Some(file) => self.pushed_new(&file, stamp)?,
                    // Made and never opened since: the (empty) cache file is a copy from now on.
                    None if self.tree().node(id)?.linked => {
                        self.pushed_new(&self.file(id)?, stamp)?;
                    }
                    None => {}
                }
            }
            self.placed(id, Some((record.parent, name.clone())), Some(attr))?;
            if name == record.name {
                return Ok(O::Done);
            }
            self.rename_here(id, (record.parent, &record.name), &name)?;
            return Ok(O::RenamedTo(place));
        }
        Ok(O::Dropped("no free name on the share".to_owned()))
    }

    /// The share has an empty file of this name, which is ours: whatever it holds here is dirty.
    fn pushed_new(&self, file: &Arc<crate::file::FileNode>, stamp: Stamp) -> Result<()> {
        let mut st = file.write();
        let lsn = self.log(MetaRecord::PushDone {
            file: file.id,
            epoch: 0,
            stamp,
        })?;
        st.note_pushed(0, stamp, lsn);
        Ok(())
    }

    /// Whether the share's file is still the one that was removed or replaced here.
    fn known_there(&self, id: u64, at: &str) -> Result<Option<bool>> {
        let (attr, stamp, ours_maybe) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            let standing = node.file.as_ref().map(|f| {
                let st = f.read();
                let touched = st.flipped || st.push.is_some() || !st.online_written.is_empty();
                (st.stamp, touched)
            });
            let (stamp, touched) = standing.unwrap_or_default();
            (node.attr, stamp, touched)
        };
        let path = at.to_owned();
        let answer = self.change(at, move |share| {
            let now = share.stat(&path)?;
            let stamp = if now.kind == Kind::File && stamp.is_some() {
                Some(share.stamp(&path)?)
            } else {
                None
            };
            Ok((now, stamp))
        });
        match answer {
            // Changed by a write of our own that was never acknowledged: only its identity tells.
            Ok((now, Some(there))) => Ok(Some(
                now.kind == attr.kind
                    && stamp
                        .is_some_and(|s| s == there || (ours_maybe && s.file_id == there.file_id)),
            )),
            Ok((now, None)) if now.kind == Kind::File => Ok(Some(
                attr.kind == Kind::File
                    && (now.size, now.mtime, now.file_id) == (attr.size, attr.mtime, attr.file_id),
            )),
            Ok((now, None)) => Ok(Some(now.kind == attr.kind)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn bring_removal(&self, id: u64) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        let (at, kind) = {
            let tree = self.tree();
            let Some(node) = tree.nodes.get(&id) else {
                return Ok(O::Done);
            };
            (tree.share_path(id), node.attr.kind)
        };
        let Some(at) = at else { return Ok(O::Done) };
        match self.known_there(id, &at)? {
            None => {}
            Some(false) => {
                // Someone changed what we removed: their edit wins over our removal, visibly.
                self.placed(id, None, None)?;
                return Ok(O::KeptThere);
            }
            Some(true) => {
                let path = at.clone();
                let answer = self.change(&at, move |share| match kind {
                    Kind::Dir => share.rmdir(&path),
                    _ => share.unlink(&path),
                });
                match answer {
                    Ok(()) | Err(Error::NotFound(_)) => {}
                    // Filled by someone meanwhile.
                    Err(Error::NotEmpty(_)) => {
                        self.placed(id, None, None)?;
                        return Ok(O::KeptThere);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        self.placed(id, None, None)?;
        Ok(O::Done)
    }

    fn bring_rename(
        &self,
        id: u64,
        parent: u64,
        name: &str,
        replaced: Option<u64>,
        date: &str,
        host: &str,
    ) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        if replaced.is_some() {
            self.fill_first(id, date, host)?;
        }
        let (from, dir, old) = {
            let tree = self.tree();
            let old = replaced.and_then(|r| Some((r, tree.share_path(r)?)));
            (tree.share_path(id), tree.share_path(parent), old)
        };
        let Some(from) = from else {
            return Ok(O::Dropped("it is not on the share".to_owned()));
        };
        let Some(dir) = dir else {
            return Ok(O::Dropped(
                "its new directory is not on the share".to_owned(),
            ));
        };
        if from == join(&dir, name) {
            // Brought over before, and only that it was done is not known any more.
            if let Some((old_id, _)) = old {
                self.placed(old_id, None, None)?;
            }
            return Ok(O::Done);
        }
        let mut replace = false;
        if let Some((old_id, old_at)) = &old {
            // Replaced only if it is what we saw when we replaced it.
            match self.known_there(*old_id, old_at)? {
                Some(true) if *old_at == join(&dir, name) => replace = true,
                Some(true) => {
                    self.bring_removal(*old_id)?;
                }
                _ => self.placed(*old_id, None, None)?,
            }
        }
        for new_name in conflict_names(name, date, host) {
            let to = join(&dir, &new_name);
            let (a, b) = (from.clone(), to.clone());
            let own = new_name == name;
            let respelled = self.link.names().same(&from, &to);
            let over = (replace && own) || respelled;
            match self.change(&from, move |share| share.rename(&a, &b, over)) {
                Ok(()) => {}
                Err(Error::NotFound(_)) => {
                    // Renamed without an answer, or gone.
                    let at = to.clone();
                    match self.change(&to, move |share| share.stat(&at)) {
                        Ok(_) => {}
                        Err(Error::NotFound(_)) => {
                            // Others removed it. It counts as lying where it was to go: what was
                            // changed here is kept under that name, and the rest is as the share has
                            // it, at the next look. Its old place may be another's by then.
                            if let Some((old_id, _)) = &old {
                                self.placed(*old_id, None, None)?;
                            }
                            self.placed(id, Some((parent, name.to_owned())), None)?;
                            return Ok(O::Dropped("it is no longer on the share".to_owned()));
                        }
                        Err(e) => return Err(e),
                    }
                }
                Err(Error::Exists(_) | Error::NotEmpty(_) | Error::IsDir(_) | Error::NotDir(_)) => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            if let Some((old_id, _)) = &old
                && over
                && !respelled
            {
                self.placed(*old_id, None, None)?;
            }
            self.placed(id, Some((parent, new_name.clone())), None)?;
            if own {
                return Ok(O::Done);
            }
            self.rename_here(id, (parent, name), &new_name)?;
            return Ok(O::RenamedTo(to));
        }
        Ok(O::Dropped("no free name on the share".to_owned()))
    }
}

impl Drive {
    /// A file that is about to replace another on the share gets its content there first: else,
    /// should the link die in between, others would find an empty one in the place of a good one.
    /// (Containers reach the share at an epoch only, which is not for here to find.)
    fn fill_first(&self, id: u64, date: &str, host: &str) -> Result<()> {
        let path = self.tree().path(id);
        let (file, from) = {
            let tree = self.tree();
            (tree.node(id)?.file.clone(), tree.share_path(id))
        };
        let (Some(file), Some(from)) = (file, from) else {
            return Ok(());
        };
        let (dirty, ours) = {
            let st = file.read();
            (st.is_dirty(), st.stamp)
        };
        if !dirty || self.is_container(&path) || self.find(&path).ok() != Some(id) {
            return Ok(());
        }
        match self.share_stamp(&from) {
            Ok(there) if Some(there) == ours => {}
            // It replaced the other already, without an answer; or it is not ours any more.
            Ok(_) | Err(Error::NotFound(_)) => return Ok(()),
            Err(e) => return Err(e),
        }
        match self.push_opaque(&path, date, host) {
            Err(e) if e.is_link() => Err(e),
            Err(error) => {
                tracing::info!(path, %error, "its content follows later");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

fn describe(tree: &crate::tree::Tree, op: &TreeOp) -> String {
    match op {
        TreeOp::Create(r) => format!("create {}", join(&tree.path(r.parent), &r.name)),
        TreeOp::Remove { id } => format!("remove {}", tree.path(*id)),
        TreeOp::Rename {
            id, parent, name, ..
        } => {
            let from = tree.share_path(*id).unwrap_or_else(|| tree.path(*id));
            format!("rename {from} to {}", join(&tree.path(*parent), name))
        }
        TreeOp::SetAttr { id, .. } | TreeOp::SetXattr { id, .. } => {
            format!("attributes of {}", tree.path(*id))
        }
    }
}
