//! Changes of the tree that the share refuses (no permission, a read-only file system, a name it does not
//! take): they stay in the queue, are said, and are tried again. What needs one of them waits behind it;
//! everything else goes on.
//!
//! A change needs an earlier one that is about the same node, that makes the directory it goes into, that
//! leaves or takes the place it takes, or that empties the directory it removes. Places are compared as they
//! are on the share, where nothing of what is held was done.

use std::collections::HashSet;
use std::io;

use super::Drive;
use crate::error::Error;
use crate::journal::record::TreeOp;
use crate::share::Kind;
use crate::tree::{Held, Tree};

/// A change that the share refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedChange {
    /// Path on the drive of what it is about.
    pub path: String,
    /// The change, in words ("create a/b").
    pub what: String,
    /// The share's reason.
    pub why: String,
    /// How often it was tried since the drive was opened.
    pub tries: u32,
}

/// What is held, as later changes have to know it.
#[derive(Default)]
pub(super) struct Behind {
    /// Nodes that are to be made.
    made: HashSet<u64>,
    /// Nodes that are to be made, moved, replaced or removed.
    nodes: HashSet<u64>,
    /// Nodes that are to be given attributes.
    attributes: HashSet<u64>,
    /// Places that are to be left or taken, as all their spellings have them.
    places: HashSet<(u64, String)>,
    /// Directories of these places.
    dirs: HashSet<u64>,
}

/// The share refuses to say what it has: a change that it was asked for before without an answer may be there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Untold(io::Error);

/// Marks the refusal of a question, as [`Untold`].
pub(super) fn untold(e: io::Error) -> io::Error {
    let plain = crate::error::is_link_error(&e) || e.kind() == io::ErrorKind::NotFound;
    if plain {
        e
    } else {
        io::Error::other(Untold(e))
    }
}

/// Whether a refusal leaves open if the change is there.
pub(super) fn is_untold(e: &Error) -> bool {
    let Error::Refused { source, .. } = e else {
        return false;
    };
    source
        .get_ref()
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Untold>)
}

fn replaced(op: &TreeOp) -> Option<u64> {
    match op {
        TreeOp::Rename { replaced, .. } => *replaced,
        _ => None,
    }
}

impl Behind {
    /// This change is held.
    pub fn add(&mut self, tree: &Tree, op: &TreeOp) {
        let id = op.node();
        match op {
            TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. } => {
                self.attributes.insert(id);
                return;
            }
            TreeOp::Create(_) => {
                self.made.insert(id);
            }
            // The names that it is to be made beside stay until it is.
            TreeOp::Link { file, .. } => {
                self.made.insert(id);
                self.nodes.insert(*file);
            }
            TreeOp::Remove { .. } | TreeOp::Rename { .. } => {}
        }
        for id in [Some(id), replaced(op)].into_iter().flatten() {
            self.nodes.insert(id);
            if let Some((dir, name)) = tree.nodes.get(&id).and_then(|n| n.share.as_ref()) {
                self.place(tree, *dir, name);
            }
        }
        if let Some((dir, name)) = op.makes() {
            self.place(tree, dir, name);
        }
    }

    fn place(&mut self, tree: &Tree, dir: u64, name: &str) {
        self.places.insert((dir, tree.names.fold(name)));
        self.dirs.insert(dir);
    }

    /// Whether this change needs one that is held.
    pub fn holds(&self, tree: &Tree, op: &TreeOp) -> bool {
        let id = op.node();
        let takes = op.makes().is_some_and(|(dir, name)| {
            self.made.contains(&dir) || self.places.contains(&(dir, tree.names.fold(name)))
        });
        let unmade = |id: u64| {
            let names = tree.names_of(id);
            names.iter().any(|name| self.made.contains(name)) && tree.share_path(id).is_none()
        };
        let holds = |id: u64| {
            self.nodes.contains(&id)
                || self.nodes.contains(&tree.content_of(id))
                || self.dirs.contains(&id)
        };
        match op {
            TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. } => {
                unmade(id) || self.attributes.contains(&id)
            }
            TreeOp::Create(_) => takes,
            TreeOp::Link { file, .. } => takes || unmade(*file),
            TreeOp::Remove { .. } => holds(id),
            TreeOp::Rename { .. } => {
                takes || self.nodes.contains(&id) || replaced(op).is_some_and(holds)
            }
        }
    }
}

impl Drive {
    /// Changes of the tree that the share refuses, in order.
    #[must_use]
    pub fn refused_changes(&self) -> Vec<RefusedChange> {
        let tree = self.tree();
        let refused = tree.held.iter().filter_map(|(lsn, held)| match held {
            Held::Refused { why, tries, .. } => Some((lsn, why, tries)),
            Held::Behind => None,
        });
        refused
            .filter_map(|(lsn, why, tries)| {
                let op = &tree.next_pending(lsn - 1).filter(|p| p.lsn == *lsn)?.op;
                Some(RefusedChange {
                    path: tree.path(op.node()),
                    what: super::reintegrate::describe(&tree, op),
                    why: why.clone(),
                    tries: *tries,
                })
            })
            .collect()
    }

    /// Whether changes of the tree wait that the share has not refused, and that wait for none that it
    /// has.
    #[must_use]
    pub fn has_new_changes(&self) -> bool {
        let tree = self.tree();
        tree.pending.iter().any(|p| !tree.held.contains_key(&p.lsn))
    }

    /// Why the share does not have this file under any name, if it refused to make it.
    pub(crate) fn refused_making(&self, node: u64) -> Option<String> {
        let tree = self.tree();
        let mut refused = tree.held.iter().filter_map(|(lsn, held)| {
            let Held::Refused { why, .. } = held else {
                return None;
            };
            let op = &tree.next_pending(lsn - 1)?.op;
            let TreeOp::Create(made) = op else {
                return None;
            };
            let names = tree.names_of(node);
            let above = names.contains(&made.id)
                || made.attr.kind == Kind::Dir && tree.is_above(made.id, tree.name_of(node));
            above.then(|| why.clone())
        });
        refused.next()
    }
}
