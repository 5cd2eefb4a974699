//! Bringing changes of the tree, made while the share could not see them, to the share.
//!
//! In order, one at a time, each recorded as done before the next: a crash or a lost link stops
//! anywhere and the rest goes on later. A change may have reached the share without its answer, so
//! each is idempotent. One that the share refuses stays in the queue, with what needs it (see
//! [`super::held`]). Nothing of another's is lost: a file that changed there is not removed, and
//! a name that was taken there gets ours beside it (R3, R9).

use std::sync::{Arc, PoisonError};

use super::held::{Behind, is_untold, untold};
use super::make::give;
use super::{Drive, State};
use crate::error::{Error, Result};
use crate::journal::record::{MetaRecord, NodeRecord, TreeOp};
use crate::path::{conflict_names, join};
use crate::share::{Attr, Kind, Stamp};
use crate::tree::{Held, Pending};

/// What became of one waiting change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReintegratedOutcome {
    /// The share has it.
    Done,
    /// The name was taken there: ours is on the share under this path.
    RenamedTo(String),
    /// Not removed there, because it was changed there meanwhile; it shows here again.
    KeptThere,
    /// It means nothing there any more, for this reason: what it was about is gone, or the share keeps no
    /// such attributes (or time). No content and no name of ours is lost by that.
    Dropped(String),
    /// The share refuses it, for this reason: it stays as it is here, and waits.
    Refused(String),
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
        self.reintegrate_as(date, host, true)
    }

    /// As [`Drive::reintegrate`], but what the share refused before is not asked for again, unless it
    /// became another change.
    ///
    /// # Errors
    /// As [`Drive::reintegrate`].
    pub fn reintegrate_new(&self, date: &str, host: &str) -> Result<Vec<Reintegrated>> {
        self.reintegrate_as(date, host, false)
    }

    fn reintegrate_as(&self, date: &str, host: &str, again: bool) -> Result<Vec<Reintegrated>> {
        let _one = self
            .reintegrating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut report = Vec::new();
        if self.state() != State::Offline {
            self.shorten()?;
        }
        self.bring_all(date, host, again, &mut report)?;
        // What was refused is known not to be there: with what came after it, it may be nothing, or
        // something else. Each round leaves fewer changes.
        while !self.tree().held.is_empty() && self.shorten()? {
            self.bring_all(date, host, false, &mut report)?;
        }
        self.sync_all()?;
        Ok(report)
    }

    /// All waiting changes once.
    fn bring_all(
        &self,
        date: &str,
        host: &str,
        again: bool,
        report: &mut Vec<Reintegrated>,
    ) -> Result<()> {
        let mut behind = Behind::default();
        let mut at = 0;
        loop {
            if self.tree_doubt.count() > 0 {
                return Err(Error::Busy(
                    "an earlier change on the share may still take effect",
                ));
            }
            if self.state() == State::Offline {
                return Err(Error::NotCached("the drive is offline".to_owned()));
            }
            let (next, what, tries) = {
                let mut tree = self.tree_mut();
                let Some(next) = tree.next_pending(at).cloned() else {
                    return Ok(());
                };
                at = next.lsn;
                let held = tree.held.get(&next.lsn);
                let tries = match held {
                    Some(Held::Refused { tries, .. }) => *tries,
                    _ => 0,
                };
                let waits = behind.holds(&tree, &next.op);
                if waits || (tries > 0 && !again) {
                    behind.add(&tree, &next.op);
                    if waits {
                        tree.held.insert(next.lsn, Held::Behind);
                    }
                    continue;
                }
                let what = describe(&tree, &next.op);
                (next, what, tries)
            };
            // What is brought over is durable here, and so is what was brought before: a power cut
            // leaves one change in doubt, and what is done again never meets its own later changes.
            self.sync_all()?;
            // From here on the share may have it.
            self.tree_mut().held.remove(&next.lsn);
            let (outcome, untold) = match self.bring(&next, date, host) {
                Ok(outcome) => outcome,
                Err(e) => {
                    let mut tree = self.tree_mut();
                    tree.doubted = tree.doubted.max(next.lsn);
                    tree.lost.insert(next.lsn);
                    return Err(e);
                }
            };
            let outcome = match outcome {
                ReintegratedOutcome::Refused(why) if only_times(&next.op) && tries >= PATIENCE => {
                    ReintegratedOutcome::Dropped(why)
                }
                outcome => outcome,
            };
            if let ReintegratedOutcome::Refused(why) = &outcome {
                let mut tree = self.tree_mut();
                behind.add(&tree, &next.op);
                let held = Held::Refused {
                    why: why.clone(),
                    tries: tries.saturating_add(1),
                    // Whatever the share refuses now: it may have been done then.
                    untold: untold || tree.lost.contains(&next.lsn),
                };
                tree.held.insert(next.lsn, held);
            } else {
                self.done(&next)?;
            }
            report.push(Reintegrated { what, outcome });
        }
    }

    /// Brings one change to the share; with a refusal, whether it may be there all the same.
    fn bring(&self, next: &Pending, date: &str, host: &str) -> Result<(ReintegratedOutcome, bool)> {
        use ReintegratedOutcome as O;
        let outcome = match &next.op {
            TreeOp::Create(record) => self.bring_create(next.lsn, record, (date, host)),
            TreeOp::Remove { id } => self.bring_removal(*id),
            TreeOp::Rename {
                id,
                parent,
                name,
                replaced,
            } => self.bring_rename(next.lsn, *id, (*parent, name), *replaced, (date, host)),
            TreeOp::Link {
                file,
                id,
                parent,
                name,
                ..
            } => self.bring_link(next.lsn, (*file, *id), (*parent, name), (date, host)),
            TreeOp::SetXattr { id, name, value } => self
                .bring_xattr(*id, name, value.as_deref())
                .map(|()| O::Done),
            TreeOp::SetAttr { id, set, ctime } => {
                self.bring_attr(*id, *set, *ctime).map(|()| O::Done)
            }
        };
        match outcome {
            // What it was about is gone there, or the share keeps nothing of the kind.
            Err(e @ (Error::NotFound(_) | Error::Unsupported(_) | Error::NoAttribute(_)))
                if next.op.makes().is_none() =>
            {
                Ok((O::Dropped(e.to_string()), false))
            }
            Err(e) if e.is_refusal() => Ok((O::Refused(e.to_string()), is_untold(&e))),
            // The link: nothing can be said about the rest either. A full disk, here or there, and what is
            // in use pass.
            other => other.map(|outcome| (outcome, false)),
        }
    }

    /// Takes the change off the queue, durably enough: done twice it does no harm.
    fn done(&self, next: &Pending) -> Result<()> {
        let mut tree = self.tree_mut();
        let lsn = self.log(MetaRecord::TreeDone { lsn: next.lsn })?;
        tree.settled(next.lsn);
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

    pub(super) fn placed(
        &self,
        id: u64,
        share: Option<(u64, String)>,
        attr: Option<Attr>,
    ) -> Result<()> {
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

    /// Gives our node another name here, because the share has something else under its own. If it has been
    /// renamed here since the change that is being brought over (`lsn`), a later one brings that over: it may
    /// well be called as it was then.
    pub(super) fn rename_here(&self, id: u64, lsn: u64, name: &str) -> Result<()> {
        let mut tree = self.tree_mut();
        let id = tree.first_name(id);
        let node = tree.node(id)?;
        if !node.linked || tree.is_renamed_after(id, lsn) {
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
        lsn: u64,
        record: &NodeRecord,
        (date, host): (&str, &str),
    ) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        let id = record.id;
        let dir = {
            let tree = self.tree();
            let name = tree.nodes.get(&tree.first_name(id));
            if name.is_none_or(|n| n.share.is_some()) {
                return Ok(O::Done);
            }
            tree.share_path(record.parent)
        };
        let Some(dir) = dir else {
            return Ok(O::Refused("its directory is not on the share".to_owned()));
        };
        // Also what was removed here again: it may have been made there without an answer, and
        // its removal, next in the queue, needs to know it.
        let (kind, mode) = (record.attr.kind, record.attr.mode);
        let owner = (record.attr.uid, record.attr.gid);
        for name in conflict_names(&record.name, date, host) {
            // An empty file there may be ours as well, and another: two would share one place.
            if self.tree().lies_at(record.parent, &name).is_some() {
                continue;
            }
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
                        let there = share.stat(&path).map_err(untold)?;
                        let other = there.kind != kind
                            || match kind {
                                Kind::File => there.size > 0,
                                Kind::Symlink => share.read_link(&path).map_err(untold)? != target,
                                Kind::Dir | Kind::Special(_) => false,
                            };
                        if other {
                            return Ok((there, None, false));
                        }
                        match kind {
                            Kind::File => Some(share.open(&path, false).map_err(untold)?),
                            Kind::Dir | Kind::Symlink | Kind::Special(_) => None,
                        }
                    }
                    Err(e) => return Err(e),
                };
                let stamp = file.as_ref().map(|f| f.stamp()).transpose();
                let stamp = stamp.map_err(untold)?;
                Ok((share.stat(&path).map_err(untold)?, stamp, true))
            });
            let (attr, stamp, ours) = answer?;
            if !ours {
                continue;
            }
            // First what its content is a copy of: a place without that would later pass for
            // another's file. The other way round it is simply brought over again.
            let content = self.tree().content_of(id);
            let file = self.tree().node(content)?.file.clone();
            if let Some(stamp) = stamp {
                match file {
                    Some(file) => self.pushed_new(&file, stamp)?,
                    // Made and never opened since: the (empty) cache file is a copy from now on.
                    None if self.tree().node(content)?.linked => {
                        self.pushed_new(&self.file(content)?, stamp)?;
                    }
                    None => {}
                }
            }
            self.placed(id, Some((record.parent, name.clone())), Some(attr))?;
            if name == record.name {
                return Ok(O::Done);
            }
            self.rename_here(id, lsn, &name)?;
            return Ok(O::RenamedTo(place));
        }
        Ok(O::Refused("no free name on the share".to_owned()))
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

    pub(super) fn bring_removal(&self, id: u64) -> Result<ReintegratedOutcome> {
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
}

/// How often a change of times alone is asked for in vain before it is given up.
const PATIENCE: u32 = 20;

/// Whether a change is of times alone: a nicety, which many shares refuse for files of others.
fn only_times(op: &TreeOp) -> bool {
    matches!(op, TreeOp::SetAttr { set, .. }
        if set.mode.is_none() && set.uid.is_none() && set.gid.is_none())
}

pub(super) fn describe(tree: &crate::tree::Tree, op: &TreeOp) -> String {
    match op {
        TreeOp::Create(r) => format!("create {}", join(&tree.path(r.parent), &r.name)),
        TreeOp::Remove { id } => format!("remove {}", tree.path(*id)),
        TreeOp::Rename {
            id, parent, name, ..
        } => {
            let from = tree.share_path(*id).unwrap_or_else(|| tree.path(*id));
            format!("rename {from} to {}", join(&tree.path(*parent), name))
        }
        TreeOp::Link {
            file, parent, name, ..
        } => format!(
            "link {} to {}",
            tree.path(*file),
            join(&tree.path(*parent), name)
        ),
        TreeOp::SetAttr { id, .. } | TreeOp::SetXattr { id, .. } => {
            format!("set attributes of {}", tree.path(*id))
        }
    }
}
