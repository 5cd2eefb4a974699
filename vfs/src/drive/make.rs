//! Making names: files, directories, symbolic links, special files.
//!
//! Online, and while no earlier change waits, the thing is made on the share first and here after;
//! otherwise it is journaled, made here, and queued for [`Drive::reintegrate`].

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::ahead::Ahead;
use super::change::Reach;
use super::names::attr_of;
use super::{Drive, Handle, NodeAttr, Opened, now};
use crate::error::{Error, Result};
use crate::file::{Binding, FileNode, FileState};
use crate::journal::record::{MetaRecord, NodeRecord, TreeOp};
use crate::path::{check_new_name, link_stays_inside};
use crate::share::{Attr, Kind, SetAttr, Share, Special};
use crate::tree::Tree;

/// Set-group-ID: on a directory, what is made in it gets its group.
const SETGID: u32 = 0o2000;

/// Mode and owner of what is about to be made.
#[derive(Clone, Copy)]
struct Making {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
}

impl Making {
    fn attr(&self, size: u64) -> Attr {
        let t = now();
        Attr {
            kind: self.kind,
            size,
            mtime: t,
            atime: t,
            ctime: t,
            mode: self.mode,
            uid: self.owner.0,
            gid: self.owner.1,
            file_id: 0,
        }
    }

    /// Gives what was just made on the share its owner, where that is not us. Shares without
    /// owners refuse; the thing is made all the same.
    fn give(&self, share: &dyn Share, path: &str) {
        give(share, path, self.owner, self.kind, self.mode);
    }
}

/// As [`Making::give`]. Changing the owner may clear bits of the mode: it is set again after.
pub(super) fn give(share: &dyn Share, path: &str, owner: (u32, u32), kind: Kind, mode: u32) {
    if owner == crate::own_ids() {
        return;
    }
    let set = SetAttr {
        uid: Some(owner.0),
        gid: Some(owner.1),
        mode: (kind != Kind::Symlink).then_some(mode),
        ..SetAttr::default()
    };
    let _ = share.set_attr(path, &set);
}

impl Drive {
    /// Mode and owner by the rules of the directory.
    fn making(
        &self,
        parent: u64,
        kind: Kind,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<Making> {
        let (uid, gid) = owner.unwrap_or_else(crate::own_ids);
        let (mode, mine) = (
            mode & 0o7777,
            Making {
                kind,
                mode: mode & 0o7777,
                owner: (uid, gid),
            },
        );
        let dir = self.tree().dir(parent)?.attr;
        if dir.mode & SETGID == 0 {
            return Ok(mine);
        }
        let inherited = if kind == Kind::Dir { SETGID } else { 0 };
        Ok(Making {
            mode: mode | inherited,
            owner: (uid, dir.gid),
            ..mine
        })
    }

    pub(super) fn absent(&self, parent: u64, name: &str) -> Result<()> {
        match self.lookup(parent, name) {
            Ok(_) => Err(Error::Exists(name.to_owned())),
            // Not knowable now: settled, visibly, when it is brought to the share.
            Err(Error::NotFound(_) | Error::NotCached(_) | Error::Link(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes something on the share, if it may and can be made there now.
    pub(super) fn make_there<T: Send + 'static>(
        &self,
        parent: u64,
        name: &str,
        work: impl FnOnce(&dyn Share, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<(Option<T>, Reach)> {
        let place = {
            let tree = self.tree();
            tree.dir(parent)?;
            tree.check_depth(parent)?;
            if self.must_queue(&tree) {
                None
            } else {
                tree.share_place(parent, name)
            }
        };
        let Some(place) = place else {
            return Ok((None, Reach::Waits));
        };
        let path = place.clone();
        match self.change(&place, move |share| work(share, &path)) {
            Ok(made) => Ok((Some(made), Reach::There)),
            Err(e) if e.is_link() => Ok((None, Reach::Unsure)),
            Err(e) => Err(e),
        }
    }

    /// Creates a file that must not exist and opens it for reading and writing.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::ForbiddenName`]; what the share says.
    pub fn create(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<(NodeAttr, Opened)> {
        check_new_name(name, self.link.names())?;
        self.absent(parent, name)?;
        let making = self.making(parent, Kind::File, mode, owner)?;
        let (made, reach) = self.make_there(parent, name, move |share, path| {
            let file = crate::link::hold(share.create(path, making.mode)?);
            making.give(share, path);
            let (attr, stamp) = (file.stat()?, file.stamp()?);
            Ok((file, attr, stamp))
        })?;
        let attr = made.as_ref().map_or_else(|| making.attr(0), |m| m.1);
        let mut tree = self.tree_mut();
        let id = self.create_node(&mut tree, parent, name, attr, None, reach)?;
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
            ahead: Ahead::default(),
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
        target: Option<String>,
        reach: Reach,
    ) -> Result<u64> {
        tree.dir(parent)?;
        // A listing may have met the file we just made there.
        if let Some(id) = tree.child(parent, name) {
            let fresh = tree.nodes.get(&id).is_some_and(|n| {
                tree.file_behind(id).is_none()
                    && n.attr.file_id == attr.file_id
                    && n.children.is_empty()
            });
            if reach != Reach::There || !fresh {
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
            target,
        };
        self.commit(tree, &TreeOp::Create(record), reach)?;
        tree.node_mut(id)?.fresh = Some(Instant::now());
        tree.touch(parent, now());
        Ok(id)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// As [`Drive::create`].
    pub fn mkdir(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<NodeAttr> {
        check_new_name(name, self.link.names())?;
        self.absent(parent, name)?;
        let making = self.making(parent, Kind::Dir, mode, owner)?;
        let (made, reach) = self.make_there(parent, name, move |share, path| {
            share.mkdir(path, making.mode)?;
            making.give(share, path);
            share.stat(path)
        })?;
        let attr = made.unwrap_or_else(|| making.attr(0));
        let mut tree = self.tree_mut();
        let id = self.create_node(&mut tree, parent, name, attr, None, reach)?;
        attr_of(&tree, id)
    }

    /// Makes a pipe, a socket or a device, for programs that use the drive; nothing of it crosses
    /// the share but its name. Who may make devices is the frontend's to know.
    ///
    /// # Errors
    /// As [`Drive::create`]; [`Error::NotPermitted`] where the share holds none.
    pub fn make_special(
        &self,
        parent: u64,
        name: &str,
        what: Special,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<NodeAttr> {
        check_new_name(name, self.link.names())?;
        if !self.link.has_special() {
            return Err(Error::NotPermitted(
                "the share holds no pipes, sockets and devices".to_owned(),
            ));
        }
        self.absent(parent, name)?;
        let making = self.making(parent, Kind::Special(what), mode, owner)?;
        let (made, reach) = self.make_there(parent, name, move |share, path| {
            share.make_special(path, what, making.mode)?;
            making.give(share, path);
            share.stat(path)
        })?;
        let attr = made.unwrap_or_else(|| making.attr(0));
        let mut tree = self.tree_mut();
        let id = self.create_node(&mut tree, parent, name, attr, None, reach)?;
        attr_of(&tree, id)
    }

    /// Makes a symbolic link that stays within the drive.
    ///
    /// # Errors
    /// As [`Drive::create`]; [`Error::NotPermitted`] for a target outside, which
    /// [`Drive::readlink`] would not show.
    pub fn symlink(
        &self,
        parent: u64,
        name: &str,
        target: &str,
        owner: Option<(u32, u32)>,
    ) -> Result<NodeAttr> {
        check_new_name(name, self.link.names())?;
        let path = crate::path::join(&self.tree().path(parent), name);
        if !link_stays_inside(&path, target, self.mounted()) {
            return Err(Error::NotPermitted(format!(
                "{path} would point outside the share"
            )));
        }
        self.absent(parent, name)?;
        let making = self.making(parent, Kind::Symlink, 0o777, owner)?;
        let to = target.to_owned();
        let (made, reach) = self.make_there(parent, name, move |share, path| {
            share.symlink(path, &to)?;
            making.give(share, path);
            share.stat(path)
        })?;
        let attr = made.unwrap_or_else(|| making.attr(target.len() as u64));
        let mut tree = self.tree_mut();
        let target = Some(target.to_owned());
        let id = self.create_node(&mut tree, parent, name, attr, target, reach)?;
        attr_of(&tree, id)
    }
}
