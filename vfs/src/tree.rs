//! The drive's tree of names, and where each node lies on the share.
//!
//! A node has a place here (`parent`, `name`, `linked`) and a place on the share (`share`). Online
//! both are the same. Changes made while the share cannot see them are queued in `pending`, and
//! until they are brought there the places differ; a listing of the share is merged by the share's
//! places, so that a file renamed or removed here does not reappear under its old name.

mod children;
mod merge;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::Meta;
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::{NodeRecord, TreeOp};
use crate::path::{Names, join};
use crate::share::{Attr, Kind};

use self::children::Children;

/// Number of the root.
pub const ROOT: u64 = 1;

/// Depth beyond which a path is refused: bounds every walk up the tree.
const MAX_DEPTH: usize = 512;

/// One name.
pub(crate) struct Node {
    pub parent: u64,
    pub name: String,
    pub attr: Attr,
    pub children: Children,
    /// Place on the share.
    pub share: Option<(u64, String)>,
    pub linked: bool,
    /// All children are known.
    pub known: bool,
    pub target: Option<String>,
    /// When the share last told us about this node.
    pub fresh: Option<Instant>,
    /// When the share last listed this directory.
    pub listed: Option<Instant>,
    /// Rises with every change of ours to the names in this directory, here or on the share: what the
    /// share was asked before such a change says nothing about after.
    pub turns: u32,
    /// The journal or the metadata knows this node.
    pub logged: bool,
    pub file: Option<Arc<FileNode>>,
}

/// A change that waits for the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    pub lsn: u64,
    pub op: TreeOp,
}

pub(crate) struct Tree {
    /// Which names are one.
    pub names: Names,
    /// Each in a place of its own: a table of these grows in steps of megabytes.
    pub nodes: HashMap<u64, Box<Node>>,
    pub next_id: u64,
    pub pending: VecDeque<Pending>,
    /// Pending changes through this LSN may have reached the share without its answer: they stay as
    /// they are.
    pub tried: u64,
    /// The next pending change is such a one.
    pub unsure: bool,
    /// LSN of the last record whose effect is in here.
    pub lsn: u64,
    /// Owner of a place on the share, where that is not its place here.
    places: HashMap<(u64, String), u64>,
    /// Cache files to be removed once the metadata no longer speaks of them.
    pub doomed: Vec<u64>,
}

pub(crate) fn is_fresh(at: Option<Instant>, life: Duration) -> bool {
    at.is_some_and(|t| t.elapsed() < life)
}

impl Tree {
    pub fn new(root_attr: Attr) -> Self {
        let root = Node {
            parent: ROOT,
            name: String::new(),
            attr: root_attr,
            children: Children::default(),
            share: None,
            linked: true,
            known: false,
            target: None,
            fresh: None,
            listed: None,
            turns: 0,
            logged: true,
            file: None,
        };
        Self {
            names: Names::Any,
            nodes: HashMap::from([(ROOT, Box::new(root))]),
            next_id: ROOT + 1,
            pending: VecDeque::new(),
            tried: 0,
            unsure: false,
            lsn: 0,
            places: HashMap::new(),
            doomed: Vec::new(),
        }
    }

    pub fn load(meta: &Meta, root_attr: Attr) -> Self {
        let mut tree = Self::new(root_attr);
        for record in &meta.nodes {
            if record.id == ROOT {
                if let Some(root) = tree.nodes.get_mut(&ROOT) {
                    root.attr = record.attr;
                    root.known = record.known;
                }
            } else {
                tree.insert(record.clone());
            }
        }
        tree.next_id = meta.next_id.max(tree.next_id);
        tree.pending = meta
            .pending
            .iter()
            .map(|(lsn, op)| Pending {
                lsn: *lsn,
                op: op.clone(),
            })
            .collect();
        tree.tried = meta.tried;
        tree.lsn = meta.tree_lsn;
        tree
    }

    pub fn record(&self, id: u64) -> Option<NodeRecord> {
        let n = self.nodes.get(&id)?;
        Some(NodeRecord {
            id,
            parent: n.parent,
            name: n.name.clone(),
            attr: n.attr,
            share: n.share.clone(),
            linked: n.linked,
            known: n.known,
            target: n.target.clone(),
        })
    }

    pub fn node(&self, id: u64) -> Result<&Node> {
        self.nodes
            .get(&id)
            .map(|node| &**node)
            .ok_or_else(|| Error::NotFound(format!("node {id}")))
    }

    pub fn node_mut(&mut self, id: u64) -> Result<&mut Node> {
        self.nodes
            .get_mut(&id)
            .map(|node| &mut **node)
            .ok_or_else(|| Error::NotFound(format!("node {id}")))
    }

    pub fn dir(&self, id: u64) -> Result<&Node> {
        let node = self.node(id)?;
        if !node.linked {
            return Err(Error::NotFound(node.name.clone()));
        }
        if node.attr.kind == Kind::Dir {
            Ok(node)
        } else {
            Err(Error::NotDir(self.path(id)))
        }
    }

    pub fn child(&self, parent: u64, name: &str) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name, self.names)
    }

    /// How often names in a directory were changed by us.
    pub fn turns(&self, dir: u64) -> u32 {
        self.nodes.get(&dir).map_or(0, |n| n.turns)
    }

    fn turn(&mut self, dir: u64) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.turns = node.turns.wrapping_add(1);
        }
    }

    /// How a name in a directory is spelled there, if otherwise than asked for.
    pub fn spelling(&self, parent: u64, name: &str) -> Option<String> {
        if self.names == Names::Any {
            return None;
        }
        let node = self.nodes.get(&self.child(parent, name)?)?;
        (node.name != name).then(|| node.name.clone())
    }

    /// Path on the drive.
    pub fn path(&self, id: u64) -> String {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT && names.len() < MAX_DEPTH {
            let Some(n) = self.nodes.get(&at) else { break };
            names.push(n.name.as_str());
            at = n.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// Path on the share, if the node is there.
    pub fn share_path(&self, id: u64) -> Option<String> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.share.as_ref()?;
            names.push(name.as_str());
            at = *parent;
            if names.len() > MAX_DEPTH {
                return None;
            }
        }
        names.reverse();
        Some(names.join("/"))
    }

    /// Path on the share once the first waiting change was made there, if that is a rename of the
    /// node or of a directory above it. (Of the waiting changes only the first may have been made:
    /// each is recorded before the next.)
    pub fn later_place(&self, id: u64) -> Option<String> {
        let TreeOp::Rename {
            id: moved,
            parent,
            name,
            ..
        } = &self.pending.front()?.op
        else {
            return None;
        };
        let mut below = Vec::new();
        let mut at = id;
        while at != *moved {
            let (up, name) = self.nodes.get(&at)?.share.as_ref()?;
            below.push(name.as_str());
            at = *up;
            if at == ROOT || below.len() > MAX_DEPTH {
                return None;
            }
        }
        below.push(name.as_str());
        below.reverse();
        Some(join(&self.share_path(*parent)?, &below.join("/")))
    }

    /// Whether the first waiting change gives this node this modification time: the share may have it
    /// already. Of a file that was written since, that is the time of the last write.
    pub fn may_have_mtime(&self, id: u64, mtime: i64) -> bool {
        let Some(TreeOp::SetAttr { id: of, set, ctime }) = self.pending.front().map(|p| &p.op)
        else {
            return false;
        };
        let written = || {
            let file = self.nodes.get(&id).and_then(|n| n.file.as_ref());
            file.is_some_and(|f| {
                let changed = f.read().changed;
                changed > *ctime && changed == mtime
            })
        };
        *of == id && set.mtime.is_some_and(|asked| asked == mtime || written())
    }

    /// Path on the share of a name in a directory, if nothing else of ours owns that place.
    pub fn share_place(&self, parent: u64, name: &str) -> Option<String> {
        if self.claimed(parent, name) {
            return None;
        }
        Some(join(&self.share_path(parent)?, name))
    }

    /// Which names are one, from now on.
    pub fn set_names(&mut self, names: Names) {
        self.names = names;
        for node in self.nodes.values_mut() {
            node.children = Children::default();
        }
        self.relink();
    }

    /// Whether a place on the share is that of a node which is elsewhere, or nowhere, here: also
    /// where a waiting change may have reached the share without its answer.
    fn claimed(&self, parent: u64, name: &str) -> bool {
        let waits = |p: &Pending| {
            p.op.makes()
                .is_some_and(|(dir, n)| dir == parent && self.names.same(n, name))
        };
        self.owned(parent, name)
            || (self.child(parent, name).is_none() && self.pending.iter().any(waits))
    }

    /// Whether a place on the share is that of a node which is elsewhere, or nowhere, here.
    fn owned(&self, parent: u64, name: &str) -> bool {
        if self.places.is_empty() {
            return false;
        }
        self.places.contains_key(&(parent, name.to_owned()))
            || (self.names != Names::Any
                && self
                    .places
                    .keys()
                    .any(|(dir, n)| *dir == parent && self.names.same(n, name)))
    }

    /// Whether `above` is `id` or one of its ancestors.
    pub fn is_above(&self, above: u64, id: u64) -> bool {
        let mut at = id;
        for _ in 0..=MAX_DEPTH {
            if at == above {
                return true;
            }
            match self.nodes.get(&at) {
                Some(n) if at != ROOT => at = n.parent,
                _ => return false,
            }
        }
        // Deeper than anything we build: treat as a cycle.
        true
    }

    pub fn depth(&self, id: u64) -> usize {
        let mut at = id;
        let mut depth = 0;
        while at != ROOT && depth <= MAX_DEPTH {
            depth += 1;
            match self.nodes.get(&at) {
                Some(n) => at = n.parent,
                None => break,
            }
        }
        depth
    }

    pub fn check_depth(&self, parent: u64) -> Result<()> {
        if self.depth(parent) + 1 >= MAX_DEPTH {
            Err(Error::NameTooLong)
        } else {
            Ok(())
        }
    }

    pub fn allocate(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Adds (or replaces the description of) a node.
    pub fn insert(&mut self, r: NodeRecord) {
        self.next_id = self.next_id.max(r.id + 1);
        let old = self.nodes.remove(&r.id);
        if let Some(old) = &old {
            self.unlink_name(old.parent, &old.name.clone(), r.id);
            self.drop_place(r.id, old.share.clone());
        }
        let node = Node {
            parent: r.parent,
            name: r.name.clone(),
            attr: r.attr,
            children: old.as_ref().map(|o| o.children.clone()).unwrap_or_default(),
            share: None,
            linked: r.linked,
            known: r.known,
            target: r.target,
            fresh: None,
            listed: None,
            turns: old.as_ref().map_or(0, |o| o.turns),
            logged: true,
            file: old.and_then(|o| o.file),
        };
        self.nodes.insert(r.id, Box::new(node));
        if r.linked {
            self.link_name(r.parent, &r.name, r.id);
        }
        self.set_place(r.id, r.share);
    }

    fn link_name(&mut self, parent: u64, name: &str, id: u64) {
        // Records may name a directory before its own record (metadata is not ordered).
        let names = self.names;
        let Some(dir) = self.nodes.get_mut(&parent) else {
            return;
        };
        // What had the name is gone: removed by others, which no record says. After a crash it would be
        // a second node of the same name, and hide the first at some later time.
        let old = dir.children.get(name, Names::Any);
        dir.children.insert(name, id, names);
        if let Some(old) = old.filter(|old| *old != id) {
            self.drop_subtree(old);
        }
    }

    fn unlink_name(&mut self, parent: u64, name: &str, id: u64) {
        if let Some(dir) = self.nodes.get_mut(&parent) {
            dir.children.remove(name, id, self.names);
        }
    }

    fn drop_place(&mut self, id: u64, share: Option<(u64, String)>) {
        if let Some(place) = share
            && self.places.get(&place) == Some(&id)
        {
            self.places.remove(&place);
        }
    }

    /// Says where a node lies on the share, by a change of ours.
    pub fn place(&mut self, id: u64, share: Option<(u64, String)>) {
        let old = self.nodes.get(&id).and_then(|n| n.share.as_ref());
        for dir in [old, share.as_ref()].map(|s| s.map(|s| s.0)) {
            dir.into_iter().for_each(|dir| self.turn(dir));
        }
        self.set_place(id, share);
    }

    fn set_place(&mut self, id: u64, share: Option<(u64, String)>) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(&mut node.share, share.clone());
        let here = (node.linked).then(|| (node.parent, node.name.clone()));
        self.drop_place(id, old);
        if let Some(place) = share
            && here.as_ref() != Some(&place)
        {
            self.places.insert(place, id);
        }
    }

    /// What the share has at a node's place now. Content that is ours keeps its own length and
    /// times; a node without content looks as it does there, but for what waits.
    pub fn seen(&mut self, id: u64, attr: Option<Attr>) {
        let set = |p: &Pending| matches!(&p.op, TreeOp::SetAttr { id: x, .. } if *x == id);
        let ours = self.pending.iter().any(set);
        if let (Some(node), Some(attr)) = (self.nodes.get_mut(&id), attr) {
            node.attr.file_id = attr.file_id;
            if node.file.is_none() && !ours {
                node.attr = attr;
            }
        }
    }

    /// Re-links children after loading in any order.
    pub fn relink(&mut self) {
        let mut names: Vec<(u64, String, u64)> = self
            .nodes
            .iter()
            .filter(|(id, n)| n.linked && **id != ROOT)
            .map(|(&id, n)| (n.parent, n.name.clone(), id))
            .collect();
        // The youngest has a name last.
        names.sort_by_key(|n| n.2);
        for (parent, name, id) in names {
            self.link_name(parent, &name, id);
        }
    }

    /// Moves a node in the tree; its place on the share is untouched.
    fn relocate(&mut self, id: u64, parent: u64, name: &str) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let (old_parent, old_name) = (node.parent, std::mem::replace(&mut node.name, name.into()));
        node.parent = parent;
        node.linked = true;
        let share = node.share.clone();
        self.unlink_name(old_parent, &old_name, id);
        self.link_name(parent, name, id);
        self.set_place(id, share);
    }

    /// Takes a node out of the tree. It stays known while it lies on the share.
    fn remove(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.linked = false;
        let (parent, name, share) = (node.parent, node.name.clone(), node.share.clone());
        self.unlink_name(parent, &name, id);
        self.turn(parent);
        self.set_place(id, share);
    }

    /// Forgets a node that is neither here nor on the share.
    pub fn forget(&mut self, id: u64) -> Option<Arc<FileNode>> {
        let node = self.nodes.remove(&id)?;
        self.drop_place(id, node.share);
        self.unlink_name(node.parent, &node.name, id);
        if node.file.is_some() {
            self.doomed.push(id);
        }
        node.file
    }

    /// Nodes whose cache files may go once metadata without them is durable.
    pub fn take_doomed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.doomed)
    }

    /// Applies a change to the tree. `pending`: the share has yet to see it.
    pub fn apply(&mut self, op: &TreeOp, pending: bool, lsn: u64) {
        match op {
            TreeOp::Create(record) => {
                let mut record = record.clone();
                record.share = (!pending).then(|| (record.parent, record.name.clone()));
                self.turn(record.parent);
                self.insert(record);
            }
            TreeOp::Remove { id } => {
                self.remove(*id);
                if !pending {
                    self.place(*id, None);
                }
            }
            TreeOp::Rename {
                id,
                parent,
                name,
                replaced,
            } => {
                if let Some(old) = replaced {
                    self.remove(*old);
                    if !pending {
                        self.place(*old, None);
                    }
                }
                let from = self.nodes.get(id).map_or(ROOT, |n| n.parent);
                self.relocate(*id, *parent, name);
                self.turn(from);
                self.turn(*parent);
                if !pending {
                    self.place(*id, Some((*parent, name.clone())));
                }
            }
            TreeOp::SetAttr { id, set, ctime } => {
                if let Some(node) = self.nodes.get_mut(id) {
                    set.apply(&mut node.attr);
                    node.attr.ctime = *ctime;
                }
            }
            // Nothing of it is kept here but the change itself, while it waits.
            TreeOp::SetXattr { .. } => {}
        }
        if pending {
            if std::mem::take(&mut self.unsure) {
                self.tried = lsn;
            }
            self.pending.push_back(Pending {
                lsn,
                op: op.clone(),
            });
        }
        self.lsn = lsn;
    }

    /// Pending changes became fewer, or others, to the same end.
    pub fn replace_pending(&mut self, gone: &[u64], instead: &[(u64, TreeOp)], lsn: u64) {
        let gone: std::collections::HashSet<u64> = gone.iter().copied().collect();
        let mut instead: HashMap<u64, TreeOp> = instead.iter().cloned().collect();
        self.pending.retain(|p| !gone.contains(&p.lsn));
        for p in &mut self.pending {
            if let Some(op) = instead.remove(&p.lsn) {
                p.op = op;
            }
        }
        self.lsn = lsn;
    }

    /// A name was made or removed in a directory: its times are news.
    pub fn touch(&mut self, dir: u64, time: i64) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.attr.mtime = time;
        }
        self.changed(dir, time);
    }

    /// A node changed, its content apart; the share, if it may be asked, knows better when.
    pub fn changed(&mut self, id: u64, time: i64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.attr.ctime = time;
            node.fresh = None;
        }
    }

    /// Whether a node waits for the share in some change (its attributes are ours then).
    pub fn is_pending(&self, id: u64) -> bool {
        self.pending.iter().any(|p| p.op.node() == id)
    }

    /// Whether the node, or a directory above it, waits for the share: its place there is in doubt.
    pub fn place_in_doubt(&self, id: u64) -> bool {
        if self.pending.is_empty() {
            return false;
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
