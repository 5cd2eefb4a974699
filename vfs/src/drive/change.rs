//! Changes of the tree: remove, rename, attributes. (Making names is in `make`.)
//!
//! Online, and while no earlier change waits, a change is made on the share first and here after.
//! Otherwise, and when the link fails in the middle, it is journaled, made here, and queued for
//! [`Drive::reintegrate`]. Once anything waits, everything waits, so that the order stays.

use super::attributes::set_known;
use super::names::attr_of;
use super::{Drive, NodeAttr, State, now};
use crate::error::{Error, Result};
use crate::journal::record::{MetaRecord, TreeOp};
use crate::path::{check_new_name, join};
use crate::share::{Kind, SetAttr, Share};
use crate::tree::{ROOT, Tree};

/// How far a change of the tree has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The share has it.
    There,
    /// The share was asked and did not answer: it may have it.
    Unsure,
    /// The share was not asked.
    Waits,
}

impl Drive {
    /// Whether a change of the tree must wait in the queue.
    pub(super) fn must_queue(&self, tree: &Tree) -> bool {
        self.state() != State::Online || !tree.pending.is_empty()
    }

    /// Journals a change and makes it here.
    pub(super) fn commit(&self, tree: &mut Tree, op: &TreeOp, reach: Reach) -> Result<()> {
        if reach == Reach::Unsure {
            // Before the change itself: at worst a later one is taken for unsure.
            self.log(MetaRecord::Unsure)?;
            tree.unsure = true;
        }
        let pending = reach != Reach::There;
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
            match tree.child(parent, name) {
                Some(named) if tree.content_of(named) == id && !self.must_queue(&tree) => {
                    tree.share_path(named)
                }
                _ => None,
            }
        };
        let mut reach = Reach::Waits;
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
                Ok(()) | Err(Error::NotFound(_)) => reach = Reach::There,
                Err(e) if e.is_link() => reach = Reach::Unsure,
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        let named = tree.child(parent, name);
        let Some(id) = named.filter(|named| tree.content_of(*named) == id) else {
            return if reach == Reach::There {
                Ok(())
            } else {
                Err(Error::NotFound(name.to_owned()))
            };
        };
        if dir && !tree.node(id)?.children.is_empty() {
            return Err(Error::NotEmpty(name.to_owned()));
        }
        self.adopt(&mut tree, id)?;
        self.commit(&mut tree, &TreeOp::Remove { id }, reach)?;
        let at = now();
        tree.touch(parent, at);
        tree.changed(id, at);
        self.after_removal(&mut tree, id);
        Ok(())
    }

    /// A node left the tree: handles keep its file; without them and without a place on the share
    /// it is forgotten. Of a file of several names that is so with the last of them.
    pub(crate) fn after_removal(&self, tree: &mut Tree, id: u64) {
        let content = tree.content_of(id);
        if content != id {
            let known = tree.nodes.get(&id).is_some_and(|n| n.share.is_some());
            if !known && !tree.is_pending(id) {
                self.forget(tree, id);
            }
        }
        if tree.is_parted(content) && !tree.names_of(content).is_empty() {
            let left = tree.nodes.get(&content).is_some_and(|n| n.linked);
            if let (false, Some(file)) = (left, tree.file_behind(content)) {
                file.write().unlinked = true;
            }
            return;
        }
        let id = content;
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
            // A snapshot goes on reading what lies over the (removed, still open) cache file.
            if st.snaps.iter().all(|s| s.strong_count() == 0) {
                st.unwritten.clear();
            }
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
        check_new_name(new_name, self.link.names())?;
        let from = self.lookup(parent, name)?;
        let to = match self.lookup(new_parent, new_name) {
            Ok(found) => Some(found),
            Err(Error::NotFound(_) | Error::NotCached(_) | Error::Link(_)) => None,
            Err(e) => return Err(e),
        };
        let named = self.tree().child(parent, name);
        let named = named.ok_or_else(|| Error::NotFound(name.to_owned()))?;
        // Another spelling of its own name, where case does not matter, is a new name.
        let to = match to {
            Some(to) if to.id == from.id => {
                let tree = self.tree();
                let same = tree.node(named)?.name == new_name && parent == new_parent;
                // Two names of one file stay both, as POSIX has it.
                match tree.child(new_parent, new_name) {
                    Some(other) if other != named && !replace => {
                        return Err(Error::Exists(new_name.to_owned()));
                    }
                    other if same || other != Some(named) => return Ok(()),
                    _ => None,
                }
            }
            other => other,
        };
        let respelled = self.tree().child(new_parent, new_name) == Some(named);
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
            self.may_be_called(&tree, named, &join(&tree.path(new_parent), new_name))?;
            let node = tree.node(from.id)?;
            let dirty = node.file.as_ref().is_some_and(|f| f.read().is_dirty());
            // What replaces another has its content on the share before it does, so it goes by the queue.
            let content_first = to.is_some() && dirty && !self.is_container(&tree.path(named));
            if self.must_queue(&tree) || content_first {
                None
            } else {
                tree.share_path(named)
                    .zip(tree.share_place(new_parent, new_name))
            }
        };
        let over = replace || respelled;
        let mut reach = Reach::Waits;
        if let Some((a, b)) = places {
            let context = a.clone();
            match self.change(&context, move |share| share.rename(&a, &b, over)) {
                Ok(()) => reach = Reach::There,
                Err(e) if e.is_link() => reach = Reach::Unsure,
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        let named = tree.child(parent, name);
        let named = named.filter(|named| tree.content_of(*named) == from.id);
        let (Some(named), Ok(_)) = (named, tree.dir(new_parent)) else {
            return Err(Error::NotFound(name.to_owned()));
        };
        if dir && tree.is_above(from.id, new_parent) {
            return Err(Error::Invalid("a directory cannot move into itself"));
        }
        let replaced = tree.child(new_parent, new_name).filter(|r| *r != named);
        if let Some(r) = replaced {
            if !replace && reach != Reach::There {
                return Err(Error::Exists(new_name.to_owned()));
            }
            self.adopt(&mut tree, r)?;
        }
        self.adopt(&mut tree, named)?;
        self.adopt(&mut tree, new_parent)?;
        let op = TreeOp::Rename {
            id: named,
            parent: new_parent,
            name: new_name.to_owned(),
            replaced,
        };
        self.commit(&mut tree, &op, reach)?;
        let at = now();
        for dir in [parent, new_parent] {
            tree.touch(dir, at);
        }
        tree.changed(from.id, at);
        if let Some(r) = replaced {
            tree.changed(r, at);
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
        let (place, file, set) = {
            let tree = self.tree();
            let node = tree.node(id)?;
            let place = if self.must_queue(&tree) || !node.linked {
                None
            } else {
                tree.share_path(id)
            };
            (
                place,
                node.file.clone(),
                without_privileges(set, &node.attr),
            )
        };
        let mut reach = Reach::Waits;
        if let Some(path) = place {
            let at = path.clone();
            let ours = file.as_ref().and_then(|f| {
                let st = f.read();
                st.stamp.filter(|_| st.online_written.is_empty())
            });
            let answer = self.change(&path, move |share| set_known(share, &at, &set, ours, None));
            match answer {
                Ok(after) => {
                    reach = Reach::There;
                    if let (Some(file), Some(stamp)) = (&file, after) {
                        let mut st = file.write();
                        // Passed through meanwhile: the flush after it takes the stamp.
                        if st.online_written.is_empty() && st.stamp == ours {
                            let record = MetaRecord::PushDone {
                                file: id,
                                epoch: 0,
                                stamp,
                            };
                            let lsn = self.log(record)?;
                            st.note_pushed(0, stamp, lsn);
                        }
                    }
                }
                Err(e) if e.is_link() => reach = Reach::Unsure,
                Err(e) => return Err(e),
            }
        }
        let ctime = now();
        let mut tree = self.tree_mut();
        if tree.node(id)?.linked {
            self.adopt(&mut tree, id)?;
            if id == ROOT && reach != Reach::There {
                return Err(Error::NotCached("the drive's own directory".to_owned()));
            }
            self.commit(&mut tree, &TreeOp::SetAttr { id, set, ctime }, reach)?;
        } else {
            set.apply(&mut tree.node_mut(id)?.attr);
        }
        tree.changed(id, ctime);
        if let (Some(file), Some(mtime)) = (file, set.mtime) {
            let mut st = file.write();
            st.time_set = true;
            if st.owns_time() {
                st.mtime = Some(mtime);
            }
        }
        attr_of(&tree, id)
    }

    /// Whether a file has set-ID bits that [`Drive::drop_privileges`] may take.
    #[must_use]
    pub fn has_privileges(&self, id: u64) -> bool {
        let tree = self.tree();
        tree.nodes
            .get(&id)
            .is_some_and(|n| n.attr.mode & 0o6000 != 0)
    }

    /// A file written or cut by someone who may not keep its set-ID bits: they go. `member`: whether that
    /// one is in a group.
    ///
    /// # Errors
    /// As [`Drive::set_attr`].
    pub fn drop_privileges(&self, id: u64, member: impl Fn(u32) -> bool) -> Result<()> {
        let attr = self.tree().node(id)?.attr;
        let mode = cleared(attr.mode, member(attr.gid));
        if attr.kind != Kind::File || mode == attr.mode {
            return Ok(());
        }
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.set_attr(id, &set).map(drop)
    }
}

/// A mode without set-user-ID, and without set-group-ID where it would mean execution by the group,
/// or where someone outside the group asks.
fn cleared(mode: u32, member: bool) -> u32 {
    let group = if mode & 0o010 != 0 || !member {
        0o2000
    } else {
        0
    };
    mode & !(0o4000 | group)
}

/// A change of owner takes the set-ID bits of a file, as chown(2) does.
fn without_privileges(set: &SetAttr, attr: &crate::share::Attr) -> SetAttr {
    let mut set = *set;
    if set.mode.is_none()
        && (set.uid.is_some() || set.gid.is_some())
        && attr.kind != Kind::Dir
        && cleared(attr.mode, true) != attr.mode
    {
        set.mode = Some(cleared(attr.mode, true));
    }
    set
}
