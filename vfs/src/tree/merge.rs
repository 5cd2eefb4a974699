//! What the share says about names, merged into the tree.
//!
//! By the share's places: what was moved or removed here does not reappear under its old name. What
//! exists only here, holds unsynced bytes, or is open stays, whatever the share says (R3, R4).

use std::time::Instant;

use super::{Node, Tree};
use crate::journal::record::NodeRecord;
use crate::path::Names;
use crate::share::{Attr, Entry, Kind};

impl Tree {
    /// What the share says about one name. Returns the node, unless the place is another's.
    pub fn merge(&mut self, parent: u64, name: &str, attr: Attr, now: Instant) -> Option<u64> {
        if self.claimed(parent, name) {
            return None;
        }
        self.respell(parent, name);
        if let Some(id) = self.child(parent, name) {
            let ours = self.is_pending(id);
            let node = self.nodes.get_mut(&id)?;
            let same_place = node
                .share
                .as_ref()
                .is_some_and(|(p, n)| *p == parent && n == name);
            if !same_place {
                // Made here under a name that now exists there too: settled when it is brought
                // to the share.
                return Some(id);
            }
            if node.attr.kind == attr.kind {
                let same = (node.attr.mtime, node.attr.file_id) == (attr.mtime, attr.file_id);
                if attr.kind == Kind::Symlink && !same {
                    node.target = None;
                }
                if !ours {
                    node.attr = attr;
                }
                node.fresh = Some(now);
                return Some(id);
            }
            if keeps(node) {
                return Some(id);
            }
            self.drop_subtree(id);
        }
        let id = self.allocate();
        self.insert(NodeRecord {
            id,
            parent,
            name: name.to_owned(),
            attr,
            share: Some((parent, name.to_owned())),
            linked: true,
            known: false,
            target: None,
        });
        let node = self.nodes.get_mut(&id)?;
        node.fresh = Some(now);
        node.logged = false;
        Some(id)
    }

    /// A name that lies on the share in another spelling gets that one.
    fn respell(&mut self, parent: u64, name: &str) {
        if self.spelling(parent, name).is_none() {
            return;
        }
        let Some(id) = self.child(parent, name).filter(|id| !self.is_pending(*id)) else {
            return;
        };
        let there = self.nodes.get(&id).and_then(|n| n.share.clone());
        if there.is_some_and(|(dir, n)| dir == parent && self.names.same(&n, name)) {
            self.relocate(id, parent, name);
            self.place(id, Some((parent, name.to_owned())));
        }
    }

    /// The share has no such name (a definite answer, R3). Returns whether it is gone here too.
    pub fn vanish(&mut self, parent: u64, name: &str) -> bool {
        let Some(id) = self.child(parent, name) else {
            return true;
        };
        let Some(node) = self.nodes.get(&id) else {
            return true;
        };
        let there = node
            .share
            .as_ref()
            .is_some_and(|(p, n)| *p == parent && n == name);
        if !there || self.holds_local(id) {
            return false;
        }
        self.drop_subtree(id);
        true
    }

    /// A whole listing of a directory by the share.
    pub fn merge_listing(&mut self, dir: u64, entries: &[Entry], now: Instant) {
        let gone: Vec<String> = match self.nodes.get(&dir) {
            Some(n) => {
                let names: std::collections::HashSet<&str> =
                    entries.iter().map(|e| e.name.as_str()).collect();
                n.children
                    .keys()
                    .filter(|k| !names.contains(k.as_str()))
                    .filter(|k| {
                        self.names == Names::Any || !names.iter().any(|n| self.names.same(n, k))
                    })
                    .cloned()
                    .collect()
            }
            None => return,
        };
        for name in gone {
            self.vanish(dir, &name);
        }
        for e in entries {
            if crate::path::check_name(&e.name).is_ok() {
                self.merge(dir, &e.name, e.attr, now);
            }
        }
        if let Some(n) = self.nodes.get_mut(&dir) {
            n.known = true;
            n.listed = Some(now);
        }
    }

    /// Whether the subtree holds anything that exists only here, or is open.
    fn holds_local(&self, id: u64) -> bool {
        let mut stack = vec![id];
        while let Some(at) = stack.pop() {
            let Some(n) = self.nodes.get(&at) else {
                continue;
            };
            if keeps(n) || n.share.is_none() || self.is_pending(at) {
                return true;
            }
            stack.extend(n.children.values());
        }
        false
    }

    /// Forgets a subtree that the share no longer has. Cache files go with the next checkpoint.
    pub(super) fn drop_subtree(&mut self, id: u64) {
        let mut stack = vec![id];
        while let Some(at) = stack.pop() {
            if let Some(n) = self.nodes.get(&at) {
                stack.extend(n.children.values());
            }
            self.forget(at);
        }
    }
}

/// A file with unsynced, detached or open content stays, whatever the share says.
fn keeps(node: &Node) -> bool {
    node.file.as_ref().is_some_and(|f| {
        let st = f.read();
        // What was passed through and not flushed is the share's: a file that it no longer has is
        // gone with it.
        st.is_dirty() || !st.attached || st.opens > 0 || st.exclusive
    })
}
