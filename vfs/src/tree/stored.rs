//! The tree as the metadata and the journal keep it: nodes from their records, and records of nodes.

use super::{Node, Pending, ROOT, Tree};
use crate::cache::Meta;
use crate::journal::record::NodeRecord;
use crate::share::Attr;

impl Tree {
    /// The tree of the metadata; names are linked by [`Tree::relink`].
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
        for (id, mtime) in &meta.mtimes_there {
            if let Some(node) = tree.nodes.get_mut(id) {
                node.mtime_there = Some(*mtime);
            }
        }
        tree.load_links(&meta.links);
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

    /// A node as it is kept.
    pub fn record(&self, id: u64) -> Option<NodeRecord> {
        let n = self.nodes.get(&id)?;
        Some(NodeRecord {
            id,
            parent: n.parent,
            name: n.name.clone(),
            attr: n.attr,
            share: n.share.clone(),
            // A file whose names are nodes of their own is in no directory itself.
            linked: n.linked && !self.is_parted(id),
            known: n.known,
            target: n.target.clone(),
        })
    }

    /// Makes a node of its record, or another of one that is there.
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
            mtime_there: old.as_ref().and_then(|o| o.mtime_there),
            logged: true,
            file: old.and_then(|o| o.file),
        };
        self.nodes.insert(r.id, Box::new(node));
        if r.linked {
            self.link_name(r.parent, &r.name, r.id);
        }
        self.set_place(r.id, r.share);
    }

    /// Re-links children after loading in any order.
    pub fn relink(&mut self) {
        let mut names: Vec<(u64, String, u64)> = self
            .nodes
            .iter()
            .filter(|(id, n)| n.linked && **id != ROOT && !self.is_parted(**id))
            .map(|(&id, n)| (n.parent, n.name.clone(), id))
            .collect();
        // The youngest has a name last.
        names.sort_by_key(|n| n.2);
        for (parent, name, id) in names {
            self.link_name(parent, &name, id);
        }
    }
}
