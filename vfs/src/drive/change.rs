//! Changes of the tree: create, remove, rename, attributes.
//!
//! Online, and while no earlier change waits, a change is made on the share first and here after.
//! Otherwise, and when the link fails in the middle, it is journaled, made here, and queued for
//! [`Drive::reintegrate`]. Once anything waits, everything waits, so that the order stays.

use std::sync::Arc;
use std::time::Instant;

use super::names::attr_of;
use super::{Drive, Handle, NodeAttr, Opened, State, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::journal::record::{MetaRecord, NodeRecord, TreeOp};
use crate::path::check_name;
use crate::share::{Attr, Kind, SetAttr, Share};
use crate::tree::{ROOT, Tree};

impl Drive {
    /// Whether a change of the tree must wait in the queue.
    fn must_queue(&self, tree: &Tree) -> bool {
        self.state() != State::Online || !tree.pending.is_empty()
    }

    /// Journals a change and makes it here.
    fn commit(&self, tree: &mut Tree, op: &TreeOp, pending: bool) -> Result<()> {
        let lsn = self.log(MetaRecord::Tree {
            op: op.clone(),
            pending,
        })?;
        tree.apply(op, pending, lsn);
        Ok(())
    }

    /// A change of the tree on the share. One that is left behind may still take effect, and until
    /// it has ended no later change is brought there.
    pub(crate) fn change<T: Send + 'static>(
        &self,
        context: &str,
        work: impl FnOnce(&dyn Share) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.link
            .call_for(context, self.link.budget(), &self.tree_doubt, work)
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
                let answer = self.change(&place, move |share| {
                    let file = crate::link::hold(share.create(&path, mode)?);
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
        let file = Arc::new(FileNode::new(id, data, st));
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
        self.commit(tree, &TreeOp::Create(record), pending)?;
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
                let answer = self.change(&place, move |share| {
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
            let answer = self.change(&path, move |share| {
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
        self.commit(&mut tree, &TreeOp::Remove { id }, !done)?;
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
            match self.change(&context, move |share| share.rename(&a, &b, replace)) {
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
        self.commit(&mut tree, &op, !done)?;
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
            let answer = self.change(&path, move |share| {
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
                &TreeOp::SetAttr {
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
