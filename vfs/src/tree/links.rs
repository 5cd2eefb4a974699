//! Files of several names (hard links).
//!
//! A file that was given a second name is a node without one: its content, its attributes and the number
//! that programs see are there. Each of its names is a node too, with a place here and one on the share
//! like any other, and nothing else. So no name is the first, and one is removed or moved as that of any
//! file is. A file of one name is name and content in one node; the first link parts them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{ROOT, Tree};
use crate::file::FileNode;
use crate::journal::record::{NodeRecord, TreeOp};
use crate::share::Kind;

/// Which nodes are names of which.
#[derive(Default)]
pub(crate) struct Links {
    file_of: HashMap<u64, u64>,
    names: HashMap<u64, BTreeSet<u64>>,
}

impl Links {
    fn add(&mut self, name: u64, file: u64) {
        self.file_of.insert(name, file);
        self.names.entry(file).or_default().insert(name);
    }

    /// A name, or a file, that is no more. Of a name the file, and whether it was the last one.
    pub(super) fn forget(&mut self, id: u64) -> Option<(u64, bool)> {
        self.names.remove(&id);
        let file = self.file_of.remove(&id)?;
        let left = self.names.get_mut(&file);
        let last = left.is_none_or(|names| {
            names.remove(&id);
            names.is_empty()
        });
        Some((file, last))
    }
}

impl Tree {
    /// The node that has the content and the attributes of what this one names: mostly itself.
    pub fn content_of(&self, id: u64) -> u64 {
        self.links.file_of.get(&id).copied().unwrap_or(id)
    }

    /// The open file behind a node or a name.
    pub fn file_behind(&self, id: u64) -> Option<&Arc<FileNode>> {
        self.nodes.get(&self.content_of(id))?.file.as_ref()
    }

    /// Whether a node is a mere name.
    pub fn is_name(&self, id: u64) -> bool {
        self.links.file_of.contains_key(&id)
    }

    /// Whether a node's names are nodes of their own.
    pub fn is_parted(&self, id: u64) -> bool {
        self.links.names.contains_key(&id)
    }

    /// The nodes that name what this one does, also where they are removed here and still on the share.
    pub fn names_of(&self, id: u64) -> Vec<u64> {
        match self.links.names.get(&self.content_of(id)) {
            Some(names) => names.iter().copied().collect(),
            None => vec![id],
        }
    }

    /// How many names a file has here.
    pub fn count_names(&self, id: u64) -> usize {
        let linked = |id: &u64| self.nodes.get(id).is_some_and(|n| n.linked);
        self.names_of(id).iter().filter(|id| linked(id)).count()
    }

    /// The name by which a file is spoken of here: one that it still has, and that the share knows.
    pub fn name_of(&self, id: u64) -> u64 {
        self.best_name(id, |linked, there| (linked, there))
    }

    /// The name by which the share is asked for a file: one that it has there, and still here.
    pub fn place_of(&self, id: u64) -> u64 {
        self.best_name(id, |linked, there| (there, linked))
    }

    fn best_name<T: Ord>(&self, id: u64, rank: impl Fn(bool, bool) -> T) -> u64 {
        let Some(names) = self.links.names.get(&id) else {
            return id;
        };
        let key = |name: &u64| {
            let node = self.nodes.get(name);
            let (linked, there) = node.map_or((false, false), |n| (n.linked, n.share.is_some()));
            (
                rank(linked, there),
                !self.name_waits(*name),
                u64::MAX - name,
            )
        };
        names.iter().copied().max_by_key(key).unwrap_or(id)
    }

    /// The name that a file had before it was parted: what was begun with the node before means that one.
    pub fn first_name(&self, id: u64) -> u64 {
        let names = self.links.names.get(&id);
        names.and_then(|n| n.first().copied()).unwrap_or(id)
    }

    /// Gives a file another name. `first` becomes the node of the name that it has, if it has just one.
    pub(super) fn add_name(&mut self, file: u64, first: Option<u64>, record: NodeRecord) {
        if !self.nodes.contains_key(&file) {
            return;
        }
        if let Some(first) = first.filter(|_| !self.is_parted(file)) {
            self.part(file, first);
        }
        let (id, parent) = (record.id, record.parent);
        self.links.add(id, file);
        self.insert(record);
        self.turn(parent);
        self.count_linked(file);
    }

    /// Parts a node from its name, which becomes node `first`.
    fn part(&mut self, id: u64, first: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let (parent, name) = (node.parent, std::mem::take(&mut node.name));
        let (share, linked, fresh) = (node.share.take(), node.linked, node.fresh);
        let attr = node.attr;
        node.parent = ROOT;
        self.unlink_name(parent, &name, id);
        self.drop_place(id, share.clone());
        self.links.add(first, id);
        self.insert(NodeRecord {
            id: first,
            parent,
            name,
            attr,
            share,
            linked,
            known: false,
            target: None,
        });
        if let Some(node) = self.nodes.get_mut(&first) {
            node.fresh = fresh;
        }
        // What waits and is about its name goes with the name.
        for waiting in &mut self.pending {
            match &mut waiting.op {
                TreeOp::Create(NodeRecord { id: of, .. })
                | TreeOp::Remove { id: of }
                | TreeOp::Rename { id: of, .. }
                    if *of == id =>
                {
                    *of = first;
                }
                _ => {}
            }
        }
    }

    /// A file is in the tree while one of its names is.
    pub(super) fn count_linked(&mut self, id: u64) {
        let file = self.content_of(id);
        if !self.is_parted(file) {
            return;
        }
        let linked = self.count_names(file) > 0;
        if let Some(node) = self.nodes.get_mut(&file) {
            node.linked = linked;
        }
    }

    /// Whether what the share has at the place of one of several names is another file than that.
    pub(super) fn is_another(&self, name: u64, kind: Kind, number: u64) -> bool {
        let file = self.content_of(name);
        let Some(node) = self.nodes.get(&file).filter(|_| file != name) else {
            return false;
        };
        let numbers = [node.attr.file_id, number];
        let differs = node.attr.kind != kind || (!numbers.contains(&0) && numbers[0] != numbers[1]);
        differs && self.count_names(file) > 1 && !self.is_pending(name)
    }

    /// Names and their files, as the metadata keeps them.
    pub fn links(&self) -> Vec<(u64, u64)> {
        let mut links: Vec<_> = self.links.file_of.iter().map(|(&n, &f)| (n, f)).collect();
        links.sort_unstable();
        links
    }

    /// Names and files of the metadata, once their nodes are there.
    pub(super) fn load_links(&mut self, links: &[(u64, u64)]) {
        for &(name, file) in links {
            if self.nodes.contains_key(&name) && self.nodes.contains_key(&file) {
                self.links.add(name, file);
            }
        }
        for &(_, file) in links {
            self.count_linked(file);
        }
    }
}
