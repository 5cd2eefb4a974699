//! Applies a package to a container: a pure function of (base bytes, package, apply version).
//!
//! No clock, no randomness, no hash-map order (DESIGN R6): two machines that apply the same
//! package to the same base write the same bytes. Nothing is written here; the answer is a write
//! set that the caller makes durable (DESIGN R8).
//!
//! Apply version 2 (this one) differs from version 1 in three rules, and lists of version 1 are still
//! applied by its own ([`Rules`]): fingerprints see the cells of a message's row, an update sets them,
//! and a list whose work is all done is recognised even where added objects got another NID.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pst::canonical::Record;
use pst::ltp::PropBag;
use pst::messaging::{MessageData, Transaction};
use pst::ndb::EditOptions;
use pst::{Nid, NidType, Pst};
use storage::{ReadAt, WriteSet};

use crate::change_list::{Action, Change, Fingerprint, ObjectKind, Patch};
use crate::done;
use crate::error::{Result, SyncError};
use crate::package::{APPLY_VERSION, Package};
use crate::patch::{self, Known};
use crate::raw;

/// The rules of an apply version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Version 1: cells of rows are no content.
    One,
    /// Version 2.
    Two,
}

impl Rules {
    fn of(version: u8) -> Result<Self> {
        match version {
            1 => Ok(Self::One),
            APPLY_VERSION => Ok(Self::Two),
            _ => Err(SyncError::package(
                "apply_version",
                format!("{version}; this version applies 1 and {APPLY_VERSION}"),
            )),
        }
    }

    /// The fingerprint by which these rules know an object.
    pub(crate) fn fingerprint(self, record: &Record) -> Fingerprint {
        match self {
            Self::One => record.fingerprint_v1(),
            Self::Two => record.fingerprint(),
        }
    }
}

/// What applying a package comes to.
#[derive(Debug)]
pub struct Applied {
    /// The ordered writes; no phases if everything was already done.
    pub write_set: WriteSet,
    /// Added objects that got another NID than proposed: (proposed, given).
    pub nid_map: BTreeMap<Nid, Nid>,
    /// Entries of the change list that changed something.
    pub done: usize,
}

/// Works out what applying `package` to `base` writes.
///
/// # Errors
/// [`SyncError::WrongBase`] if an object is not in the state that the change list was made for;
/// [`SyncError::Package`] for an unknown apply version or a carrier that lacks an object.
pub fn apply(base: Arc<dyn ReadAt>, package: &Package) -> Result<Applied> {
    apply_with(base, package, &EditOptions::default())
}

/// As [`apply`], with options: where large values wait until they are written, how large the container
/// may grow. They do not change what is written.
///
/// # Errors
/// As [`apply`]; [`pst::PstError::Limit`] for a container that would outgrow its limit.
pub fn apply_with(
    base: Arc<dyn ReadAt>,
    package: &Package,
    options: &EditOptions,
) -> Result<Applied> {
    let rules = Rules::of(package.apply_version)?;
    let carrier = if package.carrier.is_empty() {
        None
    } else {
        Some(Pst::open(package.carrier.unfold()?)?)
    };
    let target = Pst::open(Arc::clone(&base))?;
    if rules == Rules::Two
        && let Some(nid_map) = done::already(&target, &package.changes, rules)?
    {
        return Ok(Applied {
            write_set: nothing(&base)?,
            nid_map,
            done: 0,
        });
    }
    // On the very node database of the target, so that what is kept shares its blocks.
    let tx = Transaction::on_with(Arc::clone(target.ndb()), options)?;
    let mut run = Run {
        rules,
        target,
        carrier,
        tx,
        deleted: BTreeSet::new(),
        nid_map: BTreeMap::new(),
        re_added: package
            .changes
            .iter()
            .filter_map(|c| match c.action {
                Action::Add { after, .. } => Some((c.nid(), after)),
                _ => None,
            })
            .collect(),
    };
    let mut done = 0;
    for change in &package.changes {
        done += usize::from(run.step(change)?);
    }
    let write_set = if done == 0 {
        nothing(&base)?
    } else {
        let store = run.target.ipm_subtree().is_ok();
        let write_set = run.tx.finish()?;
        if store {
            still_opens(&base, &write_set)?;
        }
        write_set
    };
    Ok(Applied {
        write_set,
        nid_map: run.nid_map,
        done,
    })
}

/// The changes of a package as the current rules say them, so that the inventory that must result can
/// be worked out ([`crate::expected`]): a list of version 1 names objects by their fingerprints of that
/// version. `result` is the container after it; an object that is there under the old fingerprint is
/// named by its current one. What is not as the list says stays, and will not be as expected.
///
/// # Errors
/// If an object of `result` cannot be read.
pub fn as_current(
    package: &Package,
    result: &Pst,
    nid_map: &BTreeMap<Nid, Nid>,
) -> Result<Vec<Change>> {
    let mut changes = package.changes.clone();
    if Rules::of(package.apply_version)? == Rules::Two {
        return Ok(changes);
    }
    for change in &mut changes {
        let nid = nid_map.get(&change.nid()).copied().unwrap_or(change.nid());
        let kind = change.kind.into();
        if let Action::Add { after, .. } | Action::Update { after, .. } = &mut change.action
            && result.index()?.kind(nid) == Some(kind)
        {
            let record = result.record(kind, nid)?;
            if record.fingerprint_v1() == *after {
                *after = record.fingerprint();
            }
        }
    }
    Ok(changes)
}

fn nothing(base: &Arc<dyn ReadAt>) -> Result<WriteSet> {
    let len = base
        .len()
        .map_err(|source| pst::PstError::Io { offset: 0, source })?;
    Ok(WriteSet {
        base_len: len,
        target_len: len,
        phases: Vec::new(),
    })
}

struct Run {
    rules: Rules,
    target: Pst,
    carrier: Option<Pst>,
    tx: Transaction,
    deleted: BTreeSet<Nid>,
    nid_map: BTreeMap<Nid, Nid>,
    re_added: BTreeMap<Nid, Fingerprint>,
}

impl Run {
    /// Does one entry; false if it was already done.
    fn step(&mut self, change: &Change) -> Result<bool> {
        let nid = change.nid();
        match &change.action {
            Action::Add {
                parent,
                carrier,
                after,
            } => {
                let parent = self.mapped(*parent);
                match self.current(change)? {
                    Some(now) if now == *after => Ok(false),
                    found => self.add(change, parent, Nid(*carrier), found.is_some()),
                }
            }
            Action::Update {
                carrier,
                before,
                after,
                patch,
            } => {
                let record = self.record(change)?.ok_or_else(|| gone(change))?;
                let now = self.rules.fingerprint(&record);
                if now == *after {
                    return Ok(false);
                }
                if now != *before {
                    return Err(differs(change));
                }
                match patch {
                    None => self.update(change, Nid(*carrier))?,
                    Some(patch) => self.patch(change, Nid(*carrier), patch, record, after)?,
                }
                Ok(true)
            }
            Action::Move { from, to } => {
                let to = self.mapped(*to);
                let parent = self.parent(nid)?.ok_or_else(|| gone(change))?;
                if parent == to {
                    return Ok(false);
                }
                if parent != Nid(*from) {
                    return Err(differs(change));
                }
                match change.kind {
                    ObjectKind::Folder => self.tx.move_folder(nid, to)?,
                    ObjectKind::Message | ObjectKind::Associated => {
                        self.tx.move_message(nid, to)?;
                    }
                    ObjectKind::Raw => self.tx.set_raw_parent(nid, to)?,
                }
                Ok(true)
            }
            Action::Delete { before } => {
                let Some(now) = self.current(change)? else {
                    return Ok(false);
                };
                if self.re_added.get(&nid) == Some(&now) {
                    return Ok(false);
                }
                if now != *before {
                    return Err(differs(change));
                }
                match change.kind {
                    ObjectKind::Folder => {
                        // What was in it has entries of its own; the rest is not ours to delete.
                        if !self.tx.is_empty_folder(nid)? {
                            return Err(differs(change));
                        }
                        self.tx.delete_folder(nid)?;
                    }
                    ObjectKind::Message | ObjectKind::Associated => self.tx.delete_message(nid)?,
                    ObjectKind::Raw => self.tx.delete_raw_node(nid)?,
                }
                self.deleted.insert(nid);
                Ok(true)
            }
        }
    }

    fn add(&mut self, change: &Change, parent: Nid, carrier: Nid, taken: bool) -> Result<bool> {
        let proposed = change.nid();
        let free = !taken && self.is_free(change.kind, proposed)?;
        let nid = if free { Some(proposed) } else { None };
        let given = match change.kind {
            ObjectKind::Folder => {
                let props = self.carried_folder(carrier)?;
                self.tx.create_folder(parent, nid, &props)?
            }
            ObjectKind::Message | ObjectKind::Associated => {
                let (data, cells) = self.carried_message(carrier)?;
                let associated = change.kind == ObjectKind::Associated;
                let given = self.tx.add_message(parent, nid, &data, associated)?;
                if !cells.is_empty() {
                    self.tx.set_cells(given, &cells)?;
                }
                given
            }
            ObjectKind::Raw => {
                // Others refer to a raw node by its NID, so it cannot take another.
                if !free {
                    return Err(differs(change));
                }
                self.put_raw(proposed, parent, carrier)?;
                proposed
            }
        };
        if given != proposed {
            self.nid_map.insert(proposed, given);
        }
        Ok(true)
    }

    fn update(&mut self, change: &Change, carrier: Nid) -> Result<()> {
        let nid = change.nid();
        match change.kind {
            ObjectKind::Folder => {
                let props = self.carried_folder(carrier)?;
                self.tx.update_folder(nid, &props)?;
            }
            ObjectKind::Message | ObjectKind::Associated => {
                let (data, cells) = self.carried_message(carrier)?;
                self.tx.update_message(nid, &data)?;
                self.set_cells(nid, &cells)?;
            }
            ObjectKind::Raw => {
                let parent = self.parent(nid)?.unwrap_or_default();
                self.put_raw(nid, parent, carrier)?;
            }
        }
        Ok(())
    }

    /// Lays the carrier's object over the target's. What comes out is held against the fingerprint
    /// that it must have before anything is written: a hint that was wrong changes nothing.
    fn patch(
        &mut self,
        change: &Change,
        carrier: Nid,
        patch: &Patch,
        record: Record,
        after: &Fingerprint,
    ) -> Result<()> {
        let nid = change.nid();
        let misfit = || SyncError::WrongBase {
            what: change.kind.name(),
            nid,
            detail: "the patch does not lead to what it should",
        };
        match change.kind {
            ObjectKind::Folder => {
                let carried = self.carried_folder(carrier)?;
                let before = self.target.folder(nid)?.props;
                let props = patch::folder(before, carried, patch, self.tx.names())?;
                let got = self
                    .rules
                    .fingerprint(&Record::folder(&props, self.tx.names())?);
                if got != *after {
                    return Err(misfit());
                }
                self.tx.update_folder(nid, &props)?;
            }
            ObjectKind::Message | ObjectKind::Associated => {
                let (carried, cells) = self.carried_message(carrier)?;
                let before = Known {
                    data: self.target.message(nid)?,
                    record,
                };
                let associated = change.kind == ObjectKind::Associated;
                let mut now = patch::message(before, carried, patch, associated, self.tx.names())?;
                now.record.lay_cells(&cells)?;
                if self.rules.fingerprint(&now.record) != *after {
                    return Err(misfit());
                }
                self.tx.update_message(nid, &now.data)?;
                self.set_cells(nid, &cells)?;
            }
            ObjectKind::Raw => return Err(SyncError::package("patch", "of a raw node")),
        }
        Ok(())
    }

    /// The carrier's message in the ids of the target, and what its row says beside it.
    fn carried_message(&mut self, carrier: Nid) -> Result<(MessageData, PropBag)> {
        let source = carried(self.carrier.as_ref())?;
        let data = self
            .tx
            .import_message(&source.message(carrier)?, source.names())?;
        let cells = match self.rules {
            Rules::One => PropBag::new(),
            Rules::Two => source.cells(carrier)?,
        };
        Ok((data, cells))
    }

    /// Gives an updated message the cells that were carried; its row is written anew only for that.
    fn set_cells(&mut self, nid: Nid, cells: &PropBag) -> Result<()> {
        let differ = self.rules == Rules::Two && !cells.same_content(&self.target.cells(nid)?)?;
        if differ {
            self.tx.set_cells(nid, cells)?;
        }
        Ok(())
    }

    fn carried_folder(&mut self, carrier: Nid) -> Result<PropBag> {
        let source = carried(self.carrier.as_ref())?;
        Ok(self
            .tx
            .import_props(&source.folder(carrier)?.props, source.names())?)
    }

    fn put_raw(&mut self, nid: Nid, parent: Nid, carrier: Nid) -> Result<()> {
        let source = carried(self.carrier.as_ref())?;
        let entry = source
            .ndb()
            .node(carrier)?
            .ok_or_else(|| SyncError::package("carrier", format!("lacks node {carrier}")))?;
        let content = raw::content(source.ndb(), &entry)?;
        self.tx.put_raw_node(nid, parent, &content)?;
        Ok(())
    }

    fn mapped(&self, nid: u32) -> Nid {
        self.nid_map.get(&Nid(nid)).copied().unwrap_or(Nid(nid))
    }

    fn parent(&self, nid: Nid) -> Result<Option<Nid>> {
        Ok(self.target.ndb().node(nid)?.map(|e| e.nid_parent))
    }

    /// Whether an object may have this NID: nothing of the target or of this run has it, nor, for
    /// a folder, what stands for its tables.
    fn is_free(&self, kind: ObjectKind, nid: Nid) -> Result<bool> {
        let tables: &[NidType] = match kind {
            ObjectKind::Folder => &[
                NidType::HIERARCHY_TABLE,
                NidType::CONTENTS_TABLE,
                NidType::ASSOC_CONTENTS_TABLE,
            ],
            _ => &[],
        };
        for kind in tables {
            if self.tx.node(nid.with_kind(*kind))?.is_some() {
                return Ok(false);
            }
        }
        Ok(self.tx.node(nid)?.is_none())
    }

    /// The object's record on the target, if it was not deleted in this run.
    fn record(&self, change: &Change) -> Result<Option<Record>> {
        let nid = change.nid();
        if self.deleted.contains(&nid) || self.target.ndb().node(nid)?.is_none() {
            return Ok(None);
        }
        Ok(Some(self.target.record(change.kind.into(), nid)?))
    }

    fn current(&self, change: &Change) -> Result<Option<Fingerprint>> {
        let record = self.record(change)?;
        Ok(record.map(|r| self.rules.fingerprint(&r)))
    }
}

/// A file whose store named its top folder must still do so: without it no program finds the mail.
fn still_opens(base: &Arc<dyn ReadAt>, write_set: &WriteSet) -> Result<()> {
    let after = write_set
        .preview(Arc::clone(base))
        .map_err(|source| pst::PstError::Io { offset: 0, source })?;
    Pst::open(Arc::new(after))?
        .ipm_subtree()
        .map_err(|e| SyncError::package("changes", format!("the store would be lost: {e}")))?;
    Ok(())
}

fn carried(carrier: Option<&Pst>) -> Result<&Pst> {
    carrier.ok_or_else(|| SyncError::package("carrier", "there is none"))
}

const fn gone(change: &Change) -> SyncError {
    SyncError::WrongBase {
        what: change.kind.name(),
        nid: change.nid(),
        detail: "it is not there",
    }
}

const fn differs(change: &Change) -> SyncError {
    SyncError::WrongBase {
        what: change.kind.name(),
        nid: change.nid(),
        detail: "it was changed by someone else",
    }
}
