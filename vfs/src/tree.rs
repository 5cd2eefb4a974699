//! The drive's tree of names, and where each node lies on the share.
//!
//! A node has a place here (`parent`, `name`, `linked`) and a place on the share (`share`). Online
//! both are the same. Changes made while the share cannot see them are queued in `pending`, and
//! until they are brought there the places differ; a listing of the share is merged by the share's
//! places, so that a file renamed or removed here does not reappear under its old name.

mod apply;
mod children;
mod links;
mod merge;
mod pending;
mod stored;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::TreeOp;
use crate::path::{Names, conflict_names, join};
use crate::share::{Attr, Kind};

use self::children::Children;
use self::links::Links;
pub(crate) use self::pending::{Held, Pending};

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
    /// Modification time on the share as last told, where a waiting change of ours hides it in `attr`.
    pub mtime_there: Option<i64>,
    /// The journal or the metadata knows this node.
    pub logged: bool,
    pub file: Option<Arc<FileNode>>,
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
    /// Pending changes through this LSN may have been asked for without an answer. (Of those that are
    /// merely marked as tried, only one can have been.)
    pub doubted: u64,
    /// The next pending change is such a one.
    pub unsure: bool,
    /// Of the pending changes those, by LSN, that the share refused or that wait behind such a one: it has
    /// none of them. Known since this drive was opened.
    pub held: BTreeMap<u64, Held>,
    /// Of the pending changes those, by LSN, that an answer was lost to since this drive was opened.
    pub lost: BTreeSet<u64>,
    /// LSN of the last record whose effect is in here.
    pub lsn: u64,
    /// Owner of a place on the share, where that is not its place here.
    places: HashMap<(u64, String), u64>,
    links: Links,
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
            mtime_there: None,
            logged: true,
            file: None,
        };
        Self {
            names: Names::Any,
            nodes: HashMap::from([(ROOT, Box::new(root))]),
            next_id: ROOT + 1,
            pending: VecDeque::new(),
            tried: 0,
            doubted: 0,
            unsure: false,
            held: BTreeMap::new(),
            lost: BTreeSet::new(),
            lsn: 0,
            places: HashMap::new(),
            links: Links::default(),
            doomed: Vec::new(),
        }
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
        let mut at = self.name_of(id);
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
        let mut at = self.place_of(id);
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

    /// The node that lies at a place on the share, as far as is known.
    pub fn lies_at(&self, parent: u64, name: &str) -> Option<u64> {
        if let Some(id) = self.places.get(&(parent, name.to_owned())) {
            return Some(*id);
        }
        let id = self.child(parent, name)?;
        let share = self.nodes.get(&id)?.share.as_ref()?;
        (share.0 == parent && self.names.same(&share.1, name)).then_some(id)
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
    fn link_name(&mut self, parent: u64, name: &str, id: u64) {
        // Records may name a directory before its own record (metadata is not ordered).
        let names = self.names;
        let Some(dir) = self.nodes.get_mut(&parent) else {
            return;
        };
        // What had the name is gone: removed by others, which no record says. After a crash it would be
        // a second node of the same name, and hide the first at some later time.
        let old = dir.children.get(name, Names::Any).filter(|old| *old != id);
        dir.children.insert(name, id, names);
        match old {
            Some(old) if self.holds_local(old) => self.step_aside(old),
            Some(old) => self.drop_subtree(old),
            None => {}
        }
    }

    /// A node whose name became another's, and which holds what the share does not have (R4): it takes a
    /// name that is free.
    fn step_aside(&mut self, id: u64) {
        let Some((parent, name)) = self.nodes.get(&id).map(|n| (n.parent, n.name.clone())) else {
            return;
        };
        let free = conflict_names(&name, "recovered", "here")
            .find(|n| self.child(parent, n).is_none())
            .unwrap_or(format!("{name} {id}"));
        tracing::error!(
            name,
            free,
            "two files of one name: the older one is kept beside"
        );
        let names = self.names;
        if let Some(dir) = self.nodes.get_mut(&parent) {
            dir.children.insert(&free, id, names);
        }
        let share = self.nodes.get_mut(&id).and_then(|node| {
            node.name = free;
            node.share.clone()
        });
        self.set_place(id, share);
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
        let id = self.first_name(id);
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
        let id = self.content_of(id);
        let set = |p: &Pending| matches!(&p.op, TreeOp::SetAttr { id: x, .. } if *x == id);
        let ours = self.pending.iter().any(set);
        if let (Some(node), Some(attr)) = (self.nodes.get_mut(&id), attr) {
            node.attr.file_id = attr.file_id;
            if node.file.is_none() && !ours {
                node.attr = attr;
            }
            // What a waiting change hides is as it is there now.
            if let Some(there) = &mut node.mtime_there {
                *there = attr.mtime;
            }
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
        self.count_linked(id);
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
        self.count_linked(id);
    }

    /// Forgets a node that is neither here nor on the share. With the last name of a file the file goes,
    /// unless it is open.
    pub fn forget(&mut self, id: u64) -> Option<Arc<FileNode>> {
        let node = self.nodes.remove(&id)?;
        self.drop_place(id, node.share);
        self.unlink_name(node.parent, &node.name, id);
        if let Some((file, last)) = self.links.forget(id) {
            self.count_linked(file);
            let open = self.file_behind(file).is_some_and(|f| {
                let mut st = f.write();
                st.unlinked |= last;
                st.opens > 0
            });
            return if last && !open {
                self.forget(file)
            } else {
                None
            };
        }
        if node.file.is_some() {
            self.doomed.push(id);
        }
        node.file
    }

    /// Nodes whose cache files may go once metadata without them is durable.
    pub fn take_doomed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.doomed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::StateDir;
    use crate::disk::RealDisk;
    use crate::file::FileState;
    use crate::journal::record::NodeRecord;

    fn record(id: u64, name: &str) -> NodeRecord {
        NodeRecord {
            id,
            parent: ROOT,
            name: name.to_owned(),
            attr: Attr {
                kind: Kind::File,
                size: 0,
                mtime: 0,
                atime: 0,
                ctime: 0,
                mode: 0o644,
                uid: 0,
                gid: 0,
                file_id: 0,
            },
            share: Some((ROOT, name.to_owned())),
            linked: true,
            known: false,
            target: None,
        }
    }

    /// However it comes about that two nodes have one name: the older one's unsynced bytes stay, and can
    /// be found.
    #[test]
    fn a_name_never_takes_unsynced_bytes_with_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(Arc::new(RealDisk::open(tmp.path()).unwrap()), None).unwrap();
        for dirty in [false, true] {
            let mut tree = Tree::new(Attr {
                kind: Kind::Dir,
                ..record(1, "").attr
            });
            for id in [2, 3] {
                tree.insert(record(id, "a.txt"));
                let file = FileNode::new(id, dir.data(id).unwrap(), FileState::new());
                if dirty {
                    file.write().note_write(0..5, 1, 1);
                }
                if let Some(node) = tree.nodes.get_mut(&id) {
                    node.file = Some(Arc::new(file));
                }
            }
            tree.relink();
            assert_eq!(tree.child(ROOT, "a.txt"), Some(3));
            let aside = tree.child(ROOT, "a (conflict recovered here).txt");
            assert_eq!(aside, dirty.then_some(2));
            assert_eq!(tree.nodes.contains_key(&2), dirty);
            assert_eq!(tree.take_doomed().is_empty(), dirty);
            if dirty {
                assert_eq!(tree.path(2), "a (conflict recovered here).txt");
                assert_eq!(tree.share_path(2).as_deref(), Some("a.txt"));
            }
        }
    }
}
