//! What the share says about names, merged into the tree.
//!
//! By the share's places: what was moved or removed here does not reappear under its old name. What
//! exists only here, holds unsynced bytes, or is open stays, whatever the share says (R3, R4).

use std::collections::HashSet;
use std::time::Instant;

use super::{Node, Tree};
use crate::journal::record::NodeRecord;
use crate::share::{Attr, Entry, Kind};

/// What waits for the share, gathered once for all names of a listing.
struct Waiting {
    /// Names made in the directory, as all their spellings have them.
    names: HashSet<String>,
    nodes: HashSet<u64>,
}

impl Tree {
    fn waiting(&self, dir: u64) -> Waiting {
        let made = self.pending.iter().filter_map(|p| p.op.makes());
        Waiting {
            names: made
                .filter(|(parent, _)| *parent == dir)
                .map(|(_, name)| self.names.fold(name))
                .collect(),
            nodes: self.pending.iter().map(|p| p.op.node()).collect(),
        }
    }

    /// What the share says about one name. Returns the node, unless the place is another's.
    pub fn merge(&mut self, parent: u64, name: &str, attr: Attr, now: Instant) -> Option<u64> {
        let waiting = self.waiting(parent);
        self.merge_beside(parent, name, attr, now, &waiting)
    }

    fn merge_beside(
        &mut self,
        parent: u64,
        name: &str,
        attr: Attr,
        now: Instant,
        waiting: &Waiting,
    ) -> Option<u64> {
        if self.owned(parent, name)
            || (!waiting.names.is_empty()
                && self.child(parent, name).is_none()
                && waiting.names.contains(&self.names.fold(name)))
        {
            return None;
        }
        self.respell(parent, name);
        if let Some(id) = self.child(parent, name) {
            let content = self.content_of(id);
            let ours = waiting.nodes.contains(&id) || waiting.nodes.contains(&content);
            let another = self.is_another(id, attr.kind, attr.file_id);
            let later = ours && self.written_since_set(content);
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
            if content != id && !another {
                node.fresh = Some(now);
            }
            let node = self.nodes.get_mut(&content)?;
            if another {
                // One of a file's names is another file's now: the file has the others.
            } else if node.attr.kind == attr.kind {
                let same = (node.attr.mtime, node.attr.file_id) == (attr.mtime, attr.file_id);
                if attr.kind == Kind::Symlink && !same {
                    node.target = None;
                }
                if !ours {
                    node.attr = attr;
                } else if later {
                    node.attr.mtime = attr.mtime;
                }
                node.fresh = Some(now);
                return Some(id);
            } else if keeps(node) {
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
            self.set_place(id, Some((parent, name.to_owned())));
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

    /// The share has no other names in the directory than these (a definite answer, R3), given as all
    /// their spellings have them.
    pub fn keep_only(&mut self, dir: u64, names: &HashSet<String>) {
        let Some(node) = self.nodes.get(&dir) else {
            return;
        };
        let gone: Vec<String> = node
            .children
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !names.contains(&self.names.fold(name)))
            .cloned()
            .collect();
        for name in gone {
            self.vanish(dir, &name);
        }
    }

    /// Some names of a listing of a directory by the share.
    pub fn merge_some(&mut self, dir: u64, entries: &[Entry], now: Instant) {
        let waiting = self.waiting(dir);
        for e in entries {
            if crate::path::check_name(&e.name).is_ok() {
                self.merge_beside(dir, &e.name, e.attr, now, &waiting);
            }
        }
    }

    /// All of the share's names in the directory were merged.
    pub fn listed(&mut self, dir: u64, now: Instant) {
        if let Some(n) = self.nodes.get_mut(&dir) {
            n.known = true;
            n.listed = Some(now);
        }
    }

    /// Whether the background may go down into this directory: not into one that is its own ancestor
    /// under another name (a server that follows links, a directory mounted within itself), and not
    /// deeper than `depth`.
    pub fn leads_on(&self, dir: u64, depth: usize) -> bool {
        let Some(own) = self.nodes.get(&dir).map(|n| n.attr.file_id) else {
            return false;
        };
        let mut at = dir;
        for _ in 0..depth {
            if at == super::ROOT {
                return true;
            }
            let Some(parent) = self.nodes.get(&at).map(|n| n.parent) else {
                return false;
            };
            at = parent;
            if own != 0 && self.nodes.get(&at).is_some_and(|n| n.attr.file_id == own) {
                return false;
            }
        }
        false
    }

    /// Whether the subtree holds anything that exists only here, or is open.
    pub(super) fn holds_local(&self, id: u64) -> bool {
        let mut stack = vec![id];
        while let Some(at) = stack.pop() {
            let Some(n) = self.nodes.get(&at) else {
                continue;
            };
            // Of several names each may go but the last.
            let content = self.content_of(at);
            let last = content != at && self.count_names(content) <= 1;
            let content = self.nodes.get(&content).filter(|_| last).map(|n| &**n);
            let kept = keeps(n) || content.is_some_and(keeps);
            if kept || n.share.is_none() || self.is_pending(at) {
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
