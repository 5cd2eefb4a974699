//! The queue of changes that wait for the share, and what it says about where a node lies there.

use std::collections::{HashMap, HashSet};

use super::{MAX_DEPTH, ROOT, Tree};
use crate::journal::record::TreeOp;
use crate::path::join;

/// A change that waits for the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    pub lsn: u64,
    pub op: TreeOp,
}

/// Why a change stays in the queue while others go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// The share refused it, so often, last for this reason. `untold`: an earlier attempt may be there.
    Refused {
        why: String,
        tries: u32,
        untold: bool,
    },
    /// It needs one that was refused.
    Behind,
}

impl Tree {
    /// Path on the share once a waiting change was made there that is a rename of the node or of a
    /// directory above it: the first such one that the share may have. (Of all waiting changes only one
    /// may have been made without being known, for each is recorded before the next is tried: the first
    /// that is not held, or one that was left without an answer.)
    pub fn later_place(&self, id: u64) -> Option<String> {
        let absent = |p: &Pending| match self.held.get(&p.lsn) {
            Some(Held::Refused { untold, .. }) => !untold,
            Some(Held::Behind) => true,
            None => false,
        };
        let mut free = self.pending.iter().filter(|p| !absent(p));
        let first = free.next().map_or(0, |p| p.lsn);
        let through = self.doubted.max(first);
        let asked = self.pending.iter().take_while(|p| p.lsn <= through);
        let mut moves = asked.filter_map(|p| match &p.op {
            TreeOp::Rename {
                id, parent, name, ..
            } if !absent(p) => Some((*id, *parent, name)),
            _ => None,
        });
        moves.find_map(|(moved, parent, name)| self.once_moved(id, moved, parent, name))
    }

    fn once_moved(&self, id: u64, moved: u64, parent: u64, name: &str) -> Option<String> {
        let mut below = Vec::new();
        let mut at = self.place_of(id);
        while at != moved {
            let (up, name) = self.nodes.get(&at)?.share.as_ref()?;
            below.push(name.as_str());
            at = *up;
            if at == ROOT || below.len() > MAX_DEPTH {
                return None;
            }
        }
        below.push(name);
        below.reverse();
        Some(join(&self.share_path(parent)?, &below.join("/")))
    }

    /// Whether a rename of this name waits that was made after the change `lsn`.
    pub fn is_renamed_after(&self, id: u64, lsn: u64) -> bool {
        let mut later = self.pending.iter().filter(|p| p.lsn > lsn);
        later.any(|p| matches!(p.op, TreeOp::Rename { id: of, .. } if self.first_name(of) == id))
    }

    /// Whether a waiting change gives this node this modification time: the share may have it already.
    pub fn may_have_mtime(&self, id: u64, mtime: i64) -> bool {
        let mut sets = self.pending.iter().filter_map(|p| match &p.op {
            TreeOp::SetAttr { id: of, set, .. } if *of == id => set.mtime,
            _ => None,
        });
        // Of a node's changes only the first may be there already.
        sets.next() == Some(mtime)
    }

    /// When the last change of a node's time was made that waits.
    fn time_set(&self, id: u64) -> Option<i64> {
        let set = self.pending.iter().filter_map(|p| match &p.op {
            TreeOp::SetAttr { id: of, set, ctime } if *of == id => set.mtime.and(Some(*ctime)),
            _ => None,
        });
        set.max()
    }

    /// Whether a change of a node's time waits.
    pub fn sets_time(&self, id: u64) -> bool {
        self.time_set(id).is_some()
    }

    /// Whether a file was written after a change of its time that waits: then its time is not ours to say.
    pub fn written_since_set(&self, id: u64) -> bool {
        let written = |set| self.file_behind(id).is_some_and(|f| f.read().changed > set);
        self.time_set(id).is_some_and(written)
    }

    /// Files that were written after a change of their time that waits, and when.
    pub fn changed_since(&self) -> Vec<(u64, i64)> {
        let timed = self.pending.iter().filter_map(|p| match &p.op {
            TreeOp::SetAttr { id, set, ctime } if set.mtime.is_some() => Some((*id, *ctime)),
            _ => None,
        });
        let mut found: Vec<_> = timed
            .filter_map(|(id, ctime)| {
                let changed = self.file_behind(id)?.read().changed;
                (changed > ctime).then_some((id, changed))
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Pending changes became fewer, or others, to the same end.
    pub fn replace_pending(&mut self, gone: &[u64], instead: &[(u64, TreeOp)], lsn: u64) {
        let gone: HashSet<u64> = gone.iter().copied().collect();
        let mut instead: HashMap<u64, TreeOp> = instead.iter().cloned().collect();
        self.pending.retain(|p| !gone.contains(&p.lsn));
        // What became another change was not refused.
        self.held
            .retain(|lsn, _| !gone.contains(lsn) && !instead.contains_key(lsn));
        for p in &mut self.pending {
            if let Some(op) = instead.remove(&p.lsn) {
                p.op = op;
            }
        }
        self.lsn = lsn;
    }

    /// A change has reached the share, or never will.
    pub fn settled(&mut self, lsn: u64) {
        self.pending.retain(|p| p.lsn != lsn);
        self.held.remove(&lsn);
        self.lost.remove(&lsn);
    }

    /// The first change of the queue behind this LSN.
    pub fn next_pending(&self, after: u64) -> Option<&Pending> {
        self.pending
            .get(self.pending.partition_point(|p| p.lsn <= after))
    }

    /// Whether the share has seen none of the changes that are marked as tried: each was refused, or
    /// waits behind one that was.
    pub fn all_tried_are_held(&self) -> bool {
        let mut tried = self.pending.iter().take_while(|p| p.lsn <= self.tried);
        !self.held.is_empty()
            && tried.all(|p| match self.held.get(&p.lsn) {
                Some(Held::Refused { untold, .. }) => !untold,
                Some(Held::Behind) => true,
                None => false,
            })
    }

    /// Whether a node waits for the share in some change (its attributes are ours then).
    pub fn is_pending(&self, id: u64) -> bool {
        self.pending.iter().any(|p| p.op.node() == id)
    }

    /// Whether a change of the node's name waits for the share.
    pub fn name_waits(&self, id: u64) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let names = |op: &TreeOp| !matches!(op, TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. });
        self.pending
            .iter()
            .any(|p| p.op.node() == id && names(&p.op))
    }

    /// Whether the node, or a directory above it, waits for the share: its place there is in doubt.
    pub fn place_in_doubt(&self, id: u64) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        if self.is_parted(id) {
            let names = self.names_of(id);
            return self.is_pending(id) || names.iter().any(|name| self.place_in_doubt(*name));
        }
        let mut at = id;
        for _ in 0..MAX_DEPTH {
            if self.is_pending(at) {
                return true;
            }
            match self.nodes.get(&at) {
                Some(n) if at != ROOT => at = n.parent,
                _ => return false,
            }
        }
        true
    }
}
