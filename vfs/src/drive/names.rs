//! Names: lookup, attributes, listings, and changes of the tree.
//!
//! Online, and while no earlier change waits, a change is made on the share first and here after.
//! Otherwise, and when the link fails in the middle, it is journaled, made here, and queued for
//! [`Drive::reintegrate`]. Once anything waits, everything waits, so that the order stays.

use std::sync::Arc;
use std::time::Instant;

use super::{Drive, Handle, Opened, State, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileState};
use crate::journal::record::{MetaRecord, NodeRecord, TreeOp};
use crate::path::check_name;
use crate::share::{Attr, Kind, SetAttr, ShareFile, Statfs};
use crate::tree::{ROOT, Tree, is_fresh};

/// A node and its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttr {
    /// Number of the node; the root is [`crate::ROOT`]. Never reused while the drive is open.
    pub id: u64,
    /// Attributes as applications see them.
    pub attr: Attr,
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

fn attr_of(tree: &Tree, id: u64) -> Result<NodeAttr> {
    let node = tree.node(id)?;
    let mut attr = node.attr;
    if let Some(file) = &node.file {
        let st = file.read();
        if st.opens > 0 || st.is_dirty() || !st.attached || !st.online_written.is_empty() {
            attr.size = st.size;
            if let Some(mtime) = st.mtime {
                attr.mtime = mtime;
                attr.ctime = attr.ctime.max(mtime);
            }
        }
    }
    Ok(NodeAttr { id, attr })
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

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`Error::NotFound`] only where that is known; [`Error::Link`] where it is not (R3).
    pub fn lookup(&self, parent: u64, name: &str) -> Result<NodeAttr> {
        check_name(name)?;
        let place = {
            let tree = self.tree();
            let dir = tree.dir(parent)?;
            let child = tree.child(parent, name);
            let heard = match child.and_then(|c| tree.nodes.get(&c)) {
                // What is open or only here is not asked about.
                Some(n) if n.share.is_none() || in_use(n) => {
                    return attr_of(&tree, child.unwrap_or(0));
                }
                Some(n) => n.fresh,
                None => None,
            };
            if !self.should_ask(heard, child.is_some() || dir.known) {
                return match child {
                    Some(id) => attr_of(&tree, id),
                    None if dir.known || tree.share_path(parent).is_none() => {
                        Err(Error::NotFound(name.to_owned()))
                    }
                    None => Err(Error::NotCached(name.to_owned())),
                };
            }
            match tree.share_place(parent, name) {
                Some(place) => place,
                None => {
                    return match child {
                        Some(id) => attr_of(&tree, id),
                        None => Err(Error::NotFound(name.to_owned())),
                    };
                }
            }
        };
        let path = place.clone();
        let answer = self.link.call(&place, move |share| share.stat(&path));
        let mut tree = self.tree_mut();
        match answer {
            Ok(attr) => match tree.merge(parent, name, attr, Instant::now()) {
                Some(id) => attr_of(&tree, id),
                None => Err(Error::NotFound(name.to_owned())),
            },
            Err(Error::NotFound(_)) => {
                if tree.vanish(parent, name) {
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
        }
    }

    /// Attributes of a node.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn getattr(&self, id: u64) -> Result<NodeAttr> {
        let (parent, name) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            let ask = node.linked
                && !in_use(node)
                && (id == ROOT || node.share.is_some())
                && self.should_ask(node.fresh, true);
            if !ask {
                return attr_of(&tree, id);
            }
            (node.parent, node.name.clone())
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
    pub(crate) fn refresh_dir(&self, id: u64) -> Result<()> {
        let Some(path) = self.tree().share_path(id) else {
            return Ok(());
        };
        let at = path.clone();
        let entries = self.link.call(&path, move |share| share.list(&at))?;
        self.tree_mut().merge_listing(id, &entries, Instant::now());
        Ok(())
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
            match self.refresh_dir(id) {
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
                id: *id,
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
        if crate::path::link_stays_inside(&path, &target) {
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

    /// Whether a change of the tree must wait in the queue.
    fn must_queue(&self, tree: &Tree) -> bool {
        self.state() != State::Online || !tree.pending.is_empty()
    }

    /// Journals a change and makes it here.
    fn commit(&self, tree: &mut Tree, op: TreeOp, pending: bool) -> Result<()> {
        let lsn = self.log(MetaRecord::Tree {
            op: op.clone(),
            pending,
        })?;
        tree.apply(&op, pending, lsn);
        Ok(())
    }

    /// Where a new name would lie on the share; `None`: the change must be queued.
    fn place_for(&self, parent: u64, name: &str) -> Result<Option<String>> {
        let tree = self.tree();
        tree.dir(parent)?;
        tree.check_depth(parent)?;
        Ok(if self.must_queue(&tree) {
            None
        } else {
            tree.share_place(parent, name)
        })
    }

    fn absent(&self, parent: u64, name: &str) -> Result<()> {
        match self.lookup(parent, name) {
            Ok(_) => Err(Error::Exists(name.to_owned())),
            // Not knowable now: settled, visibly, when it is brought to the share.
            Err(Error::NotFound(_) | Error::NotCached(_) | Error::Link(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Creates a file that must not exist and opens it for reading and writing.
    ///
    /// # Errors
    /// [`Error::Exists`]; what the share says.
    pub fn create(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<(NodeAttr, Opened)> {
        check_name(name)?;
        self.absent(parent, name)?;
        let made = match self.place_for(parent, name)? {
            None => None,
            Some(place) => {
                let path = place.clone();
                let own = owner.filter(|o| *o != crate::own_ids());
                let answer = self.link.call(&place, move |share| {
                    let file: Arc<dyn ShareFile> = Arc::from(share.create(&path, mode)?);
                    if let Some((uid, gid)) = own {
                        let set = SetAttr {
                            uid: Some(uid),
                            gid: Some(gid),
                            ..SetAttr::default()
                        };
                        // Shares without owners refuse; the file is made all the same.
                        let _ = share.set_attr(&path, &set);
                    }
                    let (attr, stamp) = (file.stat()?, file.stamp()?);
                    Ok((file, attr, stamp))
                });
                match answer {
                    Ok(made) => Some(made),
                    Err(e) if e.is_link() => None,
                    Err(e) => return Err(e),
                }
            }
        };
        let attr = made
            .as_ref()
            .map_or_else(|| new_attr(Kind::File, mode, owner), |m| m.1);
        let mut tree = self.tree_mut();
        let id = self.create_node(&mut tree, parent, name, attr, made.is_none())?;
        let data = self.dir.data(id)?;
        let mut st = FileState::new();
        st.opens = 1;
        st.seen_version = st.version;
        if let Some((file, _, stamp)) = made {
            let lsn = self.log(MetaRecord::Attach {
                file: id,
                stamp,
                lineage: 1,
            })?;
            st.note_attach(stamp, 1, lsn);
            st.seen_version = st.version;
            st.tee = true;
            st.binding = Some(Binding::Share(file, true));
        } else {
            st.binding = Some(Binding::Cache);
        }
        let file = Arc::new(crate::file::FileNode::new(id, data, st));
        tree.node_mut(id)?.file = Some(file.clone());
        let handle = self.add_handle(Handle {
            node: id,
            file,
            read: true,
            write: true,
        });
        Ok((
            attr_of(&tree, id)?,
            Opened {
                handle,
                keep_cache: true,
            },
        ))
    }

    fn create_node(
        &self,
        tree: &mut Tree,
        parent: u64,
        name: &str,
        attr: Attr,
        pending: bool,
    ) -> Result<u64> {
        tree.dir(parent)?;
        // A listing may have met the file we just made there.
        if let Some(id) = tree.child(parent, name) {
            let fresh = tree.nodes.get(&id).is_some_and(|n| {
                n.file.is_none() && n.attr.file_id == attr.file_id && n.children.is_empty()
            });
            if pending || !fresh {
                return Err(Error::Exists(name.to_owned()));
            }
            tree.forget(id);
        }
        self.adopt(tree, parent)?;
        let id = tree.allocate();
        let known = attr.kind == Kind::Dir;
        let record = NodeRecord {
            id,
            parent,
            name: name.to_owned(),
            attr,
            share: None,
            linked: true,
            known,
            target: None,
        };
        self.commit(tree, TreeOp::Create(record), pending)?;
        tree.node_mut(id)?.fresh = Some(Instant::now());
        Ok(id)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// [`Error::Exists`]; what the share says.
    pub fn mkdir(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<NodeAttr> {
        check_name(name)?;
        self.absent(parent, name)?;
        let made = match self.place_for(parent, name)? {
            None => None,
            Some(place) => {
                let path = place.clone();
                let own = owner.filter(|o| *o != crate::own_ids());
                let answer = self.link.call(&place, move |share| {
                    share.mkdir(&path, mode)?;
                    if let Some((uid, gid)) = own {
                        let set = SetAttr {
                            uid: Some(uid),
                            gid: Some(gid),
                            ..SetAttr::default()
                        };
                        let _ = share.set_attr(&path, &set);
                    }
                    share.stat(&path)
                });
                match answer {
                    Ok(attr) => Some(attr),
                    Err(e) if e.is_link() => None,
                    Err(e) => return Err(e),
                }
            }
        };
        let attr = made.unwrap_or_else(|| new_attr(Kind::Dir, mode, owner));
        let mut tree = self.tree_mut();
        let id = self.create_node(&mut tree, parent, name, attr, made.is_none())?;
        attr_of(&tree, id)
    }

    /// Removes a file or symbolic link. Open handles keep it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDir`]; what the share says.
    pub fn unlink(&self, parent: u64, name: &str) -> Result<()> {
        let found = self.lookup(parent, name)?;
        if found.attr.kind == Kind::Dir {
            return Err(Error::IsDir(name.to_owned()));
        }
        self.remove(parent, name, found.id, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDir`], [`Error::NotEmpty`]; what the share says.
    pub fn rmdir(&self, parent: u64, name: &str) -> Result<()> {
        let found = self.lookup(parent, name)?;
        if found.attr.kind != Kind::Dir {
            return Err(Error::NotDir(name.to_owned()));
        }
        // An unknown directory is not an empty one (R3).
        if !self.readdir(found.id)?.is_empty() {
            return Err(Error::NotEmpty(name.to_owned()));
        }
        self.remove(parent, name, found.id, true)
    }

    fn remove(&self, parent: u64, name: &str, id: u64, dir: bool) -> Result<()> {
        let place = {
            let tree = self.tree();
            if self.must_queue(&tree) {
                None
            } else {
                tree.share_path(id)
            }
        };
        let mut done = false;
        if let Some(path) = place {
            let at = path.clone();
            let answer = self.link.call(&path, move |share| {
                if dir {
                    share.rmdir(&at)
                } else {
                    share.unlink(&at)
                }
            });
            match answer {
                Ok(()) | Err(Error::NotFound(_)) => done = true,
                Err(e) if e.is_link() => {}
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        if tree.child(parent, name) != Some(id) {
            return if done {
                Ok(())
            } else {
                Err(Error::NotFound(name.to_owned()))
            };
        }
        if dir && !tree.node(id)?.children.is_empty() {
            return Err(Error::NotEmpty(name.to_owned()));
        }
        self.adopt(&mut tree, id)?;
        self.commit(&mut tree, TreeOp::Remove { id }, !done)?;
        self.after_removal(&mut tree, id);
        Ok(())
    }

    /// A node left the tree: handles keep its file; without them and without a place on the share
    /// it is forgotten.
    pub(crate) fn after_removal(&self, tree: &mut Tree, id: u64) {
        let Some(node) = tree.nodes.get(&id) else {
            return;
        };
        let on_share = node.share.is_some() || tree.is_pending(id);
        let open = node.file.as_ref().is_some_and(|f| {
            let mut st = f.write();
            st.unlinked = true;
            st.opens > 0
        });
        if !on_share && !open {
            self.forget(tree, id);
        }
    }

    pub(crate) fn forget(&self, tree: &mut Tree, id: u64) {
        if let Some(file) = tree.forget(id) {
            let mut st = file.write();
            let held = st.unwritten.bytes();
            st.unwritten.clear();
            self.sub_unwritten(held);
        }
    }

    /// Renames. `replace`: an existing target may be replaced.
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(
        &self,
        parent: u64,
        name: &str,
        new_parent: u64,
        new_name: &str,
        replace: bool,
    ) -> Result<()> {
        check_name(new_name)?;
        let from = self.lookup(parent, name)?;
        let to = match self.lookup(new_parent, new_name) {
            Ok(found) => Some(found),
            Err(Error::NotFound(_) | Error::NotCached(_) | Error::Link(_)) => None,
            Err(e) => return Err(e),
        };
        if to.is_some_and(|t| t.id == from.id) {
            return Ok(());
        }
        let dir = from.attr.kind == Kind::Dir;
        if let Some(to) = &to {
            if !replace {
                return Err(Error::Exists(new_name.to_owned()));
            }
            match (dir, to.attr.kind == Kind::Dir) {
                (true, false) => return Err(Error::NotDir(new_name.to_owned())),
                (false, true) => return Err(Error::IsDir(new_name.to_owned())),
                (true, true) if !self.readdir(to.id)?.is_empty() => {
                    return Err(Error::NotEmpty(new_name.to_owned()));
                }
                _ => {}
            }
        }
        let places = {
            let tree = self.tree();
            tree.dir(new_parent)?;
            tree.check_depth(new_parent)?;
            if dir && tree.is_above(from.id, new_parent) {
                return Err(Error::Invalid("a directory cannot move into itself"));
            }
            if self.must_queue(&tree) {
                None
            } else {
                tree.share_path(from.id)
                    .zip(tree.share_place(new_parent, new_name))
            }
        };
        let mut done = false;
        if let Some((a, b)) = places {
            let context = a.clone();
            match self
                .link
                .call(&context, move |share| share.rename(&a, &b, replace))
            {
                Ok(()) => done = true,
                Err(e) if e.is_link() => {}
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        if tree.child(parent, name) != Some(from.id) || tree.dir(new_parent).is_err() {
            return Err(Error::NotFound(name.to_owned()));
        }
        if dir && tree.is_above(from.id, new_parent) {
            return Err(Error::Invalid("a directory cannot move into itself"));
        }
        let replaced = tree.child(new_parent, new_name).filter(|r| *r != from.id);
        if let Some(r) = replaced {
            if !replace && !done {
                return Err(Error::Exists(new_name.to_owned()));
            }
            self.adopt(&mut tree, r)?;
        }
        self.adopt(&mut tree, from.id)?;
        self.adopt(&mut tree, new_parent)?;
        let op = TreeOp::Rename {
            id: from.id,
            parent: new_parent,
            name: new_name.to_owned(),
            replaced,
        };
        self.commit(&mut tree, op, !done)?;
        if let Some(r) = replaced {
            self.after_removal(&mut tree, r);
        }
        Ok(())
    }

    /// Changes attributes other than the length.
    ///
    /// # Errors
    /// What the share says.
    pub fn set_attr(&self, id: u64, set: &SetAttr) -> Result<NodeAttr> {
        if set.is_empty() {
            return self.getattr(id);
        }
        let (place, file) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            let place = if self.must_queue(&tree) || !node.linked {
                None
            } else {
                tree.share_path(id)
            };
            (place, node.file.clone())
        };
        let mut done = false;
        if let Some(path) = place {
            let (at, set) = (path.clone(), *set);
            let ours = file.as_ref().and_then(|f| {
                let st = f.read();
                st.stamp.filter(|_| !st.is_dirty() && st.opens == 0)
            });
            let answer = self.link.call(&path, move |share| {
                let before = ours.map(|_| share.stamp(&at)).transpose()?;
                share.set_attr(&at, &set)?;
                // Our own change of the times must not pass for a change by others.
                Ok(if before == ours {
                    ours.map(|_| share.stamp(&at)).transpose()?
                } else {
                    None
                })
            });
            match answer {
                Ok(after) => {
                    done = true;
                    if let (Some(file), Some(stamp)) = (&file, after) {
                        let mut st = file.write();
                        let record = MetaRecord::PushDone {
                            file: id,
                            epoch: 0,
                            stamp,
                        };
                        let lsn = self.log(record)?;
                        st.note_pushed(0, stamp, lsn);
                    }
                }
                Err(e) if e.is_link() => {}
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        if tree.node(id)?.linked {
            self.adopt(&mut tree, id)?;
            let pending = !done && id != ROOT;
            self.commit(
                &mut tree,
                TreeOp::SetAttr {
                    id,
                    set: *set,
                    ctime: now(),
                },
                pending,
            )?;
        } else {
            set.apply(&mut tree.node_mut(id)?.attr);
        }
        if let (Some(file), Some(mtime)) = (file, set.mtime) {
            let mut st = file.write();
            if st.mtime.is_some() {
                st.mtime = Some(mtime);
            }
        }
        attr_of(&tree, id)
    }
}

/// Open, or holding what the share does not have: attributes are ours.
fn in_use(node: &crate::tree::Node) -> bool {
    node.file.as_ref().is_some_and(|f| {
        let st = f.read();
        st.opens > 0 || st.is_dirty() || !st.attached
    })
}

fn new_attr(kind: Kind, mode: u32, owner: Option<(u32, u32)>) -> Attr {
    let (uid, gid) = owner.unwrap_or_else(crate::own_ids);
    let t = now();
    let mode = mode & 0o7777;
    Attr {
        kind,
        size: 0,
        mtime: t,
        atime: t,
        ctime: t,
        mode,
        uid,
        gid,
        file_id: 0,
    }
}
