//! Making the queue of waiting changes shorter before it goes to the share, to the same end.
//!
//! * What was made and removed again here never shows there.
//! * Several renames of one node become one, a file made here gets its last name at once, and a
//!   rename back to where it was is none.
//! * Of several values of an attribute the last one counts.
//!
//! Each step leaves a queue that can be applied in order, one change at a time, with the same
//! result (property-tested below against a plain tree). A change that replaces something of the
//! share stays as it is, at its own moment: what it replaces is looked at then. Changes that the
//! share may have seen already must not be passed in (`tried`, see [`crate::tree::Tree`]): dropping
//! "create" and "remove" there would leave behind what the lost "create" made.

use std::collections::{BTreeMap, HashMap};

use crate::journal::record::{NodeRecord, TreeOp};
use crate::path::Names;
use crate::share::{Kind, SetAttr};

/// A directory and a name in it.
type Place = (u64, String);

/// How the queue becomes shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// LSNs of changes that go.
    pub gone: Vec<u64>,
    /// What other changes become.
    pub instead: Vec<(u64, TreeOp)>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.instead.is_empty()
    }
}

/// The queue while it is worked on: slots are emptied, never moved.
struct Queue<'a> {
    lsns: Vec<u64>,
    ops: Vec<Option<TreeOp>>,
    changed: Vec<bool>,
    /// Per node, the slots that changed it or replaced it at some time, in order.
    of: BTreeMap<u64, Vec<usize>>,
    /// Per directory, the slots that put something into it.
    into: HashMap<u64, Vec<usize>>,
    /// Slots that rename directories.
    moves: Vec<usize>,
    /// Which names are one.
    names: Names,
    /// Where a node lies before the queue.
    origin: &'a dyn Fn(u64) -> Option<(Place, Kind)>,
}

/// Finds how `log` (LSN and change, in order) becomes shorter. `origin` tells the place and kind of
/// a node before the first of these changes; `None` for one that was not there.
pub(super) fn optimise<'a>(
    log: impl Iterator<Item = (u64, &'a TreeOp)>,
    names: Names,
    origin: &dyn Fn(u64) -> Option<(Place, Kind)>,
) -> Plan {
    let mut queue = Queue::new(log, names, origin);
    // Each round that changes anything empties a slot, so this ends; files in a directory go
    // before the directory does.
    while queue.round() {}
    queue.plan()
}

impl<'a> Queue<'a> {
    fn new<'b>(
        log: impl Iterator<Item = (u64, &'b TreeOp)>,
        names: Names,
        origin: &'a dyn Fn(u64) -> Option<(Place, Kind)>,
    ) -> Self {
        let (lsns, ops): (Vec<_>, Vec<_>) = log.map(|(lsn, op)| (lsn, Some(op.clone()))).unzip();
        let mut queue = Self {
            changed: vec![false; ops.len()],
            lsns,
            ops,
            of: BTreeMap::new(),
            into: HashMap::new(),
            moves: Vec::new(),
            names,
            origin,
        };
        for i in 0..queue.ops.len() {
            queue.index(i);
        }
        queue
    }

    fn index(&mut self, i: usize) {
        let Some(op) = self.op(i).cloned() else {
            return;
        };
        self.of.entry(op.node()).or_default().push(i);
        match op {
            TreeOp::Create(r) => self.into.entry(r.parent).or_default().push(i),
            TreeOp::Rename {
                id,
                parent,
                replaced,
                ..
            } => {
                self.into.entry(parent).or_default().push(i);
                if let Some(old) = replaced {
                    self.of.entry(old).or_default().push(i);
                }
                if self.kind(id) != Some(Kind::File) {
                    self.moves.push(i);
                }
            }
            _ => {}
        }
    }

    fn op(&self, i: usize) -> Option<&TreeOp> {
        self.ops.get(i)?.as_ref()
    }

    fn set(&mut self, i: usize, op: Option<TreeOp>) {
        if let (Some(slot), Some(changed)) = (self.ops.get_mut(i), self.changed.get_mut(i)) {
            *slot = op;
            *changed = true;
        }
    }

    /// Slots that change or replace a node.
    fn slots(&self, id: u64) -> Vec<usize> {
        let all = self.of.get(&id).into_iter().flatten().copied();
        all.filter(|&i| {
            self.op(i).is_some_and(|op| {
                let replaces =
                    matches!(op, TreeOp::Rename { replaced: Some(old), .. } if *old == id);
                op.node() == id || replaces
            })
        })
        .collect()
    }

    /// Kind of a node, where that can be told.
    fn kind(&self, id: u64) -> Option<Kind> {
        let made = self
            .of
            .get(&id)
            .into_iter()
            .flatten()
            .find_map(|&i| match self.op(i) {
                Some(TreeOp::Create(r)) if r.id == id => Some(r.attr.kind),
                _ => None,
            });
        made.or_else(|| (self.origin)(id).map(|(_, kind)| kind))
    }

    fn same(&self, a: &Place, b: &Place) -> bool {
        a.0 == b.0 && self.names.same(&a.1, &b.1)
    }

    /// Whether something is put into a directory by any slot of `range`.
    fn filled(&self, dir: u64, range: std::ops::Range<usize>) -> bool {
        let slots = self.into.get(&dir).into_iter().flatten();
        slots.copied().any(|i| {
            range.contains(&i)
                && match self.op(i) {
                    Some(TreeOp::Create(r)) => r.parent == dir,
                    Some(TreeOp::Rename { parent, .. }) => *parent == dir,
                    _ => false,
                }
        })
    }

    fn round(&mut self) -> bool {
        let ids: Vec<u64> = self.of.keys().copied().collect();
        let mut any = false;
        for id in ids {
            any |= self.attributes(id);
            while self.renames(id) {
                any = true;
            }
            any |= self.named_at_once(id);
            any |= self.cancel(id);
            any |= self.replaced_at_once(id);
        }
        any
    }

    /// A slot goes. If it replaced something, that is still removed, at its moment.
    fn drop_rename(&mut self, i: usize) {
        let left = match self.op(i) {
            Some(TreeOp::Rename {
                replaced: Some(old),
                ..
            }) => Some(TreeOp::Remove { id: *old }),
            _ => None,
        };
        self.set(i, left);
    }

    /// Made here and removed here, with nothing of the share in between.
    fn cancel(&mut self, id: u64) -> bool {
        let slots = self.slots(id);
        let (Some(&first), Some(&last)) = (slots.first(), slots.last()) else {
            return false;
        };
        let made = matches!(self.op(first), Some(TreeOp::Create(r)) if r.id == id);
        let removed = matches!(self.op(last), Some(TreeOp::Remove { id: x }) if *x == id);
        if !made || !removed || self.filled(id, first..last) {
            return false;
        }
        for i in slots {
            if matches!(self.op(i), Some(TreeOp::Rename { id: x, .. }) if *x == id) {
                self.drop_rename(i);
            } else {
                self.set(i, None);
            }
        }
        true
    }

    /// Made here and replaced here by another: that one replaces at once what the first did, if
    /// anything. (A document saved several times, each time by way of a new file.)
    fn replaced_at_once(&mut self, id: u64) -> bool {
        let slots = self.slots(id);
        let (Some((&first, rest)), Some(&last)) = (slots.split_first(), slots.last()) else {
            return false;
        };
        let made = matches!(self.op(first), Some(TreeOp::Create(r)) if r.id == id);
        let Some(TreeOp::Rename {
            id: other,
            parent,
            name,
            replaced: Some(gone),
        }) = self.op(last).cloned()
        else {
            return false;
        };
        if !made || gone != id || self.filled(id, first..last) {
            return false;
        }
        let mut below = None;
        for &i in rest.iter().filter(|i| **i != last) {
            if let Some(TreeOp::Rename { replaced, .. }) = self.op(i) {
                // Only what it replaced last lies under its last name.
                if below.is_some() {
                    return false;
                }
                below = *replaced;
            }
        }
        for i in slots {
            self.set(i, None);
        }
        let op = TreeOp::Rename {
            id: other,
            parent,
            name,
            replaced: below,
        };
        self.set(last, Some(op));
        if let Some(old) = below {
            let of = self.of.entry(old).or_default();
            of.push(last);
            of.sort_unstable();
        }
        true
    }

    /// A file or link made here gets its later name at once, where that replaces nothing.
    fn named_at_once(&mut self, id: u64) -> bool {
        let slots = self.slots(id);
        let (Some(&first), Some(&second)) = (slots.first(), slots.get(1)) else {
            return false;
        };
        let (Some(TreeOp::Create(made)), Some(TreeOp::Rename { .. })) =
            (self.op(first), self.op(second))
        else {
            return false;
        };
        // Others may be put into a directory meanwhile.
        if made.id != id || made.attr.kind == Kind::Dir {
            return false;
        }
        let later = match self.op(second) {
            Some(TreeOp::Rename {
                id: x,
                parent,
                name,
                replaced: None,
            }) if *x == id => NodeRecord {
                parent: *parent,
                name: name.clone(),
                ..made.clone()
            },
            _ => return false,
        };
        self.into.entry(later.parent).or_default().push(second);
        self.set(first, None);
        self.set(second, Some(TreeOp::Create(later)));
        true
    }

    /// Two renames of a node, one after the other, become the later one.
    fn renames(&mut self, id: u64) -> bool {
        let slots = self.slots(id);
        // Where the node lies before each slot.
        let mut at = (self.origin)(id).map(|(place, _)| place);
        let mut earlier: Option<(usize, Place)> = None;
        for i in slots {
            let next = match self.op(i) {
                Some(TreeOp::Create(r)) if r.id == id => Some((r.parent, r.name.clone())),
                Some(TreeOp::Rename {
                    id: x,
                    parent,
                    name,
                    ..
                }) if *x == id => {
                    let to = (*parent, name.clone());
                    if let Some((first, from)) = earlier.take()
                        && self.may_skip(id, first, i, &from)
                    {
                        self.drop_rename(first);
                        self.drop_if_home(i, &from, &to);
                        return true;
                    }
                    earlier = at.take().map(|from| (i, from));
                    Some(to)
                }
                // Attributes follow the node wherever it is.
                Some(TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. }) => continue,
                _ => None,
            };
            at = next;
        }
        false
    }

    /// A rename to where the node is anyway.
    fn drop_if_home(&mut self, i: usize, from: &Place, to: &Place) {
        if from == to {
            self.drop_rename(i);
        }
    }

    /// Whether the node may stay at `from` until its rename in slot `second`, without the one in
    /// slot `first`.
    fn may_skip(&self, id: u64, first: usize, second: usize, from: &Place) -> bool {
        let between = first + 1..second;
        // Someone uses the name that became free, or removes the directory that became empty.
        let into = self.into.get(&from.0).into_iter().flatten();
        let taken = into.copied().any(|i| {
            between.contains(&i)
                && match self.op(i) {
                    Some(TreeOp::Create(r)) => self.same(&(r.parent, r.name.clone()), from),
                    Some(TreeOp::Rename { parent, name, .. }) => {
                        self.same(&(*parent, name.clone()), from)
                    }
                    _ => false,
                }
        });
        let removed = self.slots(from.0).into_iter().any(|i| {
            (first + 1..=second).contains(&i)
                && match self.op(i) {
                    Some(TreeOp::Remove { .. }) => true,
                    Some(TreeOp::Rename { id: x, .. }) => *x != from.0,
                    _ => false,
                }
        });
        // Directories that move past each other could end inside themselves.
        let moved = self.kind(id) != Some(Kind::File)
            && self
                .moves
                .iter()
                .any(|&i| between.contains(&i) && self.op(i).is_some());
        !taken && !removed && !moved
    }

    /// Attributes set twice: the later values count.
    fn attributes(&mut self, id: u64) -> bool {
        let mut set: Option<(usize, SetAttr)> = None;
        let mut named: HashMap<String, usize> = HashMap::new();
        let mut any = false;
        let mut made = None;
        for i in self.slots(id) {
            match self.op(i).cloned() {
                Some(TreeOp::Create(r)) if r.attr.kind != Kind::Dir => made = Some(i),
                Some(TreeOp::SetAttr {
                    set: later, ctime, ..
                }) => {
                    let mut now = later;
                    if let Some((first, earlier)) = set.take()
                        && !self.used(id, first, i)
                    {
                        now = merged(&earlier, &later);
                        self.set(first, None);
                        let op = TreeOp::SetAttr {
                            id,
                            set: now,
                            ctime,
                        };
                        self.set(i, Some(op));
                        any = true;
                    }
                    if let Some(at) = made
                        && self.fold(at, i)
                    {
                        any = true;
                        continue;
                    }
                    set = Some((i, now));
                }
                Some(TreeOp::SetXattr { name, .. }) => {
                    if let Some(first) = named.insert(name, i) {
                        self.set(first, None);
                        any = true;
                    }
                }
                _ => {}
            }
        }
        any
    }

    /// A file made here gets its later mode and owner at once.
    fn fold(&mut self, made: usize, i: usize) -> bool {
        let (Some(TreeOp::Create(record)), Some(TreeOp::SetAttr { set, .. })) =
            (self.op(made), self.op(i))
        else {
            return false;
        };
        if set.mtime.is_some() || set.atime.is_some() {
            return false;
        }
        let mut record = record.clone();
        set.apply(&mut record.attr);
        self.set(made, Some(TreeOp::Create(record)));
        self.set(i, None);
        true
    }

    /// Whether a directory's mode matters to any slot between two.
    fn used(&self, id: u64, first: usize, second: usize) -> bool {
        self.kind(id) != Some(Kind::File)
            && (first + 1..second).any(|i| {
                !matches!(
                    self.op(i),
                    None | Some(TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. })
                )
            })
    }

    fn plan(self) -> Plan {
        let mut plan = Plan::default();
        let slots = self.lsns.into_iter().zip(self.ops).zip(self.changed);
        for ((lsn, op), _) in slots.filter(|(_, changed)| *changed) {
            match op {
                None => plan.gone.push(lsn),
                Some(op) => plan.instead.push((lsn, op)),
            }
        }
        plan
    }
}

/// Both changes in one. A change of owner after a change of mode takes set-ID bits; what it leaves
/// is part of it already.
fn merged(earlier: &SetAttr, later: &SetAttr) -> SetAttr {
    SetAttr {
        mode: later.mode.or(earlier.mode),
        uid: later.uid.or(earlier.uid),
        gid: later.gid.or(earlier.gid),
        atime: later.atime.or(earlier.atime),
        mtime: later.mtime.or(earlier.mtime),
    }
}

#[cfg(test)]
#[path = "optimise_tests.rs"]
mod tests;
