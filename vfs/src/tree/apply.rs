//! What a change does to the tree, when it is made and when the journal is replayed.

use super::{Pending, ROOT, Tree};
use crate::journal::record::{NodeRecord, TreeOp};

impl Tree {
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
            TreeOp::Link {
                file,
                first,
                id,
                parent,
                name,
            } => {
                let attr = self.nodes.get(file).map(|n| n.attr);
                if let Some(attr) = attr {
                    let share = (!pending).then(|| (*parent, name.clone()));
                    let record = NodeRecord {
                        id: *id,
                        parent: *parent,
                        name: name.clone(),
                        attr,
                        share,
                        linked: true,
                        known: false,
                        target: None,
                    };
                    self.add_name(*file, *first, record);
                }
            }
            TreeOp::SetAttr { id, set, ctime } => {
                let timed = |p: &Pending| matches!(&p.op, TreeOp::SetAttr { id: x, set, .. } if x == id && set.mtime.is_some());
                let first = set.mtime.is_some() && !self.pending.iter().any(timed);
                if let Some(node) = self.nodes.get_mut(id) {
                    if first {
                        node.mtime_there = pending.then_some(node.attr.mtime);
                    }
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
                self.doubted = lsn;
                self.lost.insert(lsn);
            }
            self.pending.push_back(Pending {
                lsn,
                op: op.clone(),
            });
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
        let id = self.content_of(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.attr.ctime = time;
            node.fresh = None;
        }
    }
}
