//! Names: lookup, attributes, listings, links.
//!
//! What the share was asked about lately, what is in use, and what is only here is answered from
//! the tree. "Not there" is said only on a definite answer of the share, or where the directory
//! is wholly known (R3).

use std::collections::HashSet;
use std::time::Instant;

use super::{Drive, State};
use crate::error::{Error, Result};
use crate::journal::record::MetaRecord;
use crate::link::Wait;
use crate::path::check_name;
use crate::share::{Attr, Entry, Kind, Share, Statfs};
use crate::tree::{ROOT, Tree, is_fresh};

/// A node and its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttr {
    /// Number of the node; the root is [`crate::ROOT`]. Never reused while the drive is open.
    pub id: u64,
    /// Attributes as applications see them.
    pub attr: Attr,
    /// Names it has, as stat(2) counts: 0 once removed; a directory's own two and one per
    /// directory in it, or 1 where these are not counted.
    pub links: u32,
}

/// How often the share is asked again because we changed names in the directory meanwhile.
const TRIES: u32 = 5;

/// So many names of a listing are merged before others get a turn at the tree.
const MERGED_AT_ONCE: usize = 500;

/// A directory with more names than this is not counted through at each look.
const COUNTED: usize = 1000;

fn links(tree: &Tree, id: u64, node: &crate::tree::Node) -> u32 {
    if !node.linked {
        return 0;
    }
    if tree.is_parted(id) {
        return u32::try_from(tree.count_names(id)).unwrap_or(u32::MAX);
    }
    if node.attr.kind != Kind::Dir || !node.known || node.children.len() > COUNTED {
        return 1;
    }
    let is_dir = |id: &&u64| tree.nodes.get(id).is_some_and(|n| n.attr.kind == Kind::Dir);
    let below = node.children.values().filter(is_dir).count();
    2 + u32::try_from(below).unwrap_or(0)
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: String,
    /// The node.
    pub id: u64,
    /// Its kind.
    pub kind: Kind,
}

pub(super) fn attr_of(tree: &Tree, id: u64) -> Result<NodeAttr> {
    let id = tree.content_of(id);
    let node = tree.node(id)?;
    let mut attr = node.attr;
    if let Some(file) = &node.file {
        let st = file.read();
        if st.opens > 0 || st.is_dirty() || !st.attached || !st.online_written.is_empty() {
            attr.size = st.size;
            attr.mtime = st.mtime.unwrap_or(attr.mtime);
            attr.ctime = attr.ctime.max(st.changed);
        }
    }
    Ok(NodeAttr {
        id,
        attr,
        links: links(tree, id, node),
    })
}

impl Drive {
    /// Makes the journal know a node (and those above it) before a record speaks of it.
    pub(crate) fn adopt(&self, tree: &mut Tree, id: u64) -> Result<()> {
        let mut chain = Vec::new();
        let mut at = id;
        while at != ROOT {
            let node = tree.node(at)?;
            if !node.logged {
                chain.push(at);
            }
            at = node.parent;
        }
        for at in chain.into_iter().rev() {
            if let Some(record) = tree.record(at) {
                let lsn = self.log(MetaRecord::Adopt(record))?;
                tree.lsn = lsn;
                tree.node_mut(at)?.logged = true;
            }
        }
        Ok(())
    }

    /// Whether the share should be asked about something last heard of at `heard`.
    fn should_ask(&self, heard: Option<Instant>, known: bool) -> bool {
        match self.state() {
            State::Online => !is_fresh(heard, self.attr_life),
            State::Cached => !known,
            State::Offline => false,
        }
    }

    /// Asks about a path on the share; where a waiting rename may have been made there, and was, about
    /// its later one.
    pub(crate) fn ask_either<T: Send + 'static>(
        &self,
        path: String,
        later: Option<String>,
        ask: impl Fn(&dyn Share, &str) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let context = path.clone();
        self.link.call(&context, move |share| {
            either(share, &path, later.as_deref(), &ask)
        })
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`Error::NotFound`] only where that is known; [`Error::Link`] where it is not (R3).
    pub fn lookup(&self, parent: u64, name: &str) -> Result<NodeAttr> {
        check_name(name)?;
        // While we change names in this directory, what the share says is of before or after.
        for _ in 1..TRIES {
            let before = self.tree().turns(parent);
            if let Some(found) = self.look_up(parent, name, Some(before)) {
                return found;
            }
        }
        self.look_up(parent, name, None)
            .unwrap_or(Err(Error::Busy("the directory keeps changing")))
    }

    /// One attempt at [`Drive::lookup`]; `None` where names in the directory were changed by us since
    /// `before` while the share was asked.
    fn look_up(&self, parent: u64, name: &str, before: Option<u32>) -> Option<Result<NodeAttr>> {
        match self.ask_for(parent, name, before) {
            Ok(found) => found.map(Ok),
            Err(e) => Some(Err(e)),
        }
    }

    fn ask_for(&self, parent: u64, name: &str, before: Option<u32>) -> Result<Option<NodeAttr>> {
        let spelled = self.tree().spelling(parent, name);
        let name = spelled.as_deref().unwrap_or(name);
        let (place, later) = {
            let tree = self.tree();
            let dir = tree.dir(parent)?;
            let child = tree.child(parent, name);
            let name_and_content = child
                .and_then(|c| Some((tree.nodes.get(&c)?, tree.nodes.get(&tree.content_of(c))?)));
            let heard = match name_and_content {
                // What is open or only here is not asked about.
                Some((name, content)) if name.share.is_none() || in_use(content) => {
                    return attr_of(&tree, child.unwrap_or(0)).map(Some);
                }
                Some((name, content)) => name.fresh.min(content.fresh),
                None => None,
            };
            if !self.should_ask(heard, child.is_some() || dir.known) {
                return match child {
                    Some(id) => attr_of(&tree, id).map(Some),
                    None if dir.known || tree.share_path(parent).is_none() => {
                        Err(Error::NotFound(name.to_owned()))
                    }
                    None => Err(Error::NotCached(name.to_owned())),
                };
            }
            match tree.share_place(parent, name) {
                Some(place) => {
                    let later = tree.later_place(parent);
                    (place, later.map(|dir| crate::path::join(&dir, name)))
                }
                None => {
                    return match child {
                        Some(id) => attr_of(&tree, id).map(Some),
                        None => Err(Error::NotFound(name.to_owned())),
                    };
                }
            }
        };
        let sure = later.is_none();
        let answer = self.ask_either(place, later, |share, path| share.stat(path));
        let mut tree = self.tree_mut();
        if before.is_some_and(|turns| turns != tree.turns(parent)) {
            return Ok(None);
        }
        let found = match answer {
            Ok(attr) => match tree.merge(parent, name, attr, Instant::now()) {
                Some(id) => attr_of(&tree, id),
                None => Err(Error::NotFound(name.to_owned())),
            },
            Err(Error::NotFound(_)) => {
                // Where the directory itself may lie elsewhere, that is no answer (R3).
                if sure && tree.vanish(parent, name) {
                    return Err(Error::NotFound(name.to_owned()));
                }
                let id = tree.child(parent, name);
                id.map_or_else(
                    || Err(Error::NotFound(name.to_owned())),
                    |id| attr_of(&tree, id),
                )
            }
            Err(e) => match tree.child(parent, name) {
                Some(id) if e.is_link() => attr_of(&tree, id),
                None if e.is_link() && tree.dir(parent).is_ok_and(|d| d.known) => {
                    Err(Error::NotFound(name.to_owned()))
                }
                _ => Err(e),
            },
        };
        found.map(Some)
    }

    /// Attributes of a node.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn getattr(&self, id: u64) -> Result<NodeAttr> {
        let (parent, name) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            let name = tree.node(tree.name_of(id))?;
            let ask = node.linked
                && !in_use(node)
                && (id == ROOT || name.share.is_some())
                && self.should_ask(node.fresh, true);
            if !ask {
                return attr_of(&tree, id);
            }
            (name.parent, name.name.clone())
        };
        if id != ROOT {
            let found = self.lookup(parent, &name)?;
            // Another node under the same name: this one was replaced on the share.
            return if found.id == id {
                Ok(found)
            } else {
                Err(Error::NotFound(name))
            };
        }
        let answer = self.link.call("root", |share| share.stat(""));
        let mut tree = self.tree_mut();
        if let Ok(attr) = answer {
            let node = tree.node_mut(ROOT)?;
            node.attr = attr;
            node.fresh = Some(Instant::now());
        }
        attr_of(&tree, ROOT)
    }

    /// Asks the share for a directory's listing and merges it.
    fn refresh_dir(&self, id: u64, known: bool) -> Result<()> {
        // What is known is an answer too; what is not is fetched, however long the directory.
        let budget = if known {
            self.stall_budget()
        } else {
            self.stall_budget().max(self.flush_budget)
        };
        self.list_from_share(id, Wait::full(budget)).map(drop)
    }

    /// As [`Drive::refresh_dir`]; returns how many names the share has there.
    pub(super) fn list_from_share(&self, id: u64, wait: Wait<'_>) -> Result<usize> {
        let was_known = self.tree().dir(id)?.known;
        for attempt in 1.. {
            let (path, later, before) = {
                let tree = self.tree();
                match tree.share_path(id) {
                    Some(path) => (path, tree.later_place(id), tree.turns(id)),
                    None => return Ok(0),
                }
            };
            let at = path.clone();
            let entries = self.link.call_while(&path, wait, move |share| {
                either(share, &at, later.as_deref(), |share, at| share.list(at))
            })?;
            let before = (attempt < TRIES).then_some(before);
            if self.merge_listing(id, &path, before, &entries)? {
                // What the root has decides whether a new name can be made in it away from the share: no
                // kill after the answer takes that knowledge away. Once in a drive's life.
                if id == ROOT && !was_known {
                    self.checkpoint()?;
                }
                return Ok(entries.len());
            }
        }
        Ok(0)
    }

    /// Merges a listing, in parts, so that nobody waits for a long one. `false`, with part of it
    /// merged: names there were changed by us since `before`, or the directory itself was moved.
    fn merge_listing(
        &self,
        id: u64,
        path: &str,
        before: Option<u32>,
        entries: &[Entry],
    ) -> Result<bool> {
        let now = Instant::now();
        let moved = |tree: &Tree| {
            before.is_some_and(|turns| {
                turns != tree.turns(id) || tree.share_path(id).as_deref() != Some(path)
            })
        };
        let fold = self.tree().names;
        let names: HashSet<String> = entries.iter().map(|e| fold.fold(&e.name)).collect();
        let mut parts = entries.chunks(MERGED_AT_ONCE);
        let mut first = true;
        loop {
            let part = parts.next();
            let mut tree = self.tree_mut();
            tree.dir(id)?;
            if moved(&tree) {
                return Ok(false);
            }
            if std::mem::take(&mut first) {
                tree.keep_only(id, &names);
            }
            match part {
                Some(part) => tree.merge_some(id, part, now),
                None => {
                    tree.listed(id, now);
                    return Ok(true);
                }
            }
        }
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// [`Error::Link`] or [`Error::NotCached`] where its content is not known.
    pub fn readdir(&self, id: u64) -> Result<Vec<DirEntry>> {
        let (ask, known) = {
            let tree = self.tree();
            let dir = tree.dir(id)?;
            let known = dir.known || (dir.share.is_none() && id != ROOT);
            (self.should_ask(dir.listed, known), known)
        };
        if ask {
            match self.refresh_dir(id, known) {
                Err(e) if e.is_link() && known => {}
                other => other?,
            }
        } else if !known {
            return Err(Error::NotCached(self.tree().path(id)));
        }
        let tree = self.tree();
        let entry = |(name, id): (&String, &u64)| {
            let kind = tree.nodes.get(id)?.attr.kind;
            Some(DirEntry {
                name: name.clone(),
                id: tree.content_of(*id),
                kind,
            })
        };
        Ok(tree.dir(id)?.children.iter().filter_map(entry).collect())
    }

    /// The parent of a directory (the root's is the root).
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn parent(&self, id: u64) -> Result<u64> {
        Ok(self.tree().node(id)?.parent)
    }

    /// Target of a symbolic link, if it stays within the drive.
    ///
    /// # Errors
    /// [`Error::Access`] for a target outside.
    pub fn readlink(&self, id: u64) -> Result<String> {
        // Another may have pointed it elsewhere.
        self.getattr(id)?;
        let (path, share_path, target) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            if node.attr.kind != Kind::Symlink {
                return Err(Error::Invalid("not a symbolic link"));
            }
            (tree.path(id), tree.share_path(id), node.target.clone())
        };
        let target = match (target, share_path) {
            (Some(target), _) => target,
            (None, Some(at)) if self.may_ask() => {
                let place = at.clone();
                let target = self.link.call(&place, move |share| share.read_link(&at))?;
                self.tree_mut().node_mut(id)?.target = Some(target.clone());
                target
            }
            (None, _) => return Err(Error::NotCached(path)),
        };
        if crate::path::link_stays_inside(&path, &target, self.mounted()) {
            Ok(target)
        } else {
            Err(Error::Access(format!("{path} points outside the share")))
        }
    }

    /// Space on the share; what was last known, or the cache's volume, where it cannot be asked.
    ///
    /// # Errors
    /// None today; frontends treat it as fallible.
    pub fn statfs(&self) -> Result<Statfs> {
        if self.may_ask()
            && let Ok(st) = self.link.call("statfs", |share| share.statfs())
        {
            return Ok(st);
        }
        let available = self.dir.available();
        Ok(Statfs {
            total: available,
            available,
            files: 1 << 20,
            files_free: 1 << 20,
        })
    }
}

/// Open, or holding what the share does not have: attributes are ours.
fn in_use(node: &crate::tree::Node) -> bool {
    node.file.as_ref().is_some_and(|f| {
        let st = f.read();
        st.opens > 0 || st.is_dirty() || !st.attached
    })
}

/// Asks about a path, and where it is not there about its later one.
fn either<T>(
    share: &dyn Share,
    path: &str,
    later: Option<&str>,
    ask: impl Fn(&dyn Share, &str) -> std::io::Result<T>,
) -> std::io::Result<T> {
    match (ask(share, path), later) {
        (Err(e), Some(later)) if e.kind() == std::io::ErrorKind::NotFound => {
            match ask(share, later) {
                // What would be above it there is something else still.
                Err(l) if l.kind() == std::io::ErrorKind::NotADirectory => Err(e),
                answer => answer,
            }
        }
        (answer, _) => answer,
    }
}
