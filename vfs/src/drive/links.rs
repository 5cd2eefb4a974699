//! Hard links: another name for a file (see `tree::links` for how they are kept).
//!
//! Files and special files have them, where the share does. A container has one name: what is known of
//! it, here and by the sync engine, goes by that. A symbolic link has one, because what it points to
//! depends on where it lies. Names that others linked on the share are files of their own here.

use super::change::Reach;
use super::held::untold;
use super::names::attr_of;
use super::{Drive, NodeAttr, ReintegratedOutcome, now};
use crate::error::{Error, Result};
use crate::journal::record::TreeOp;
use crate::path::{check_new_name, conflict_names, join};
use crate::share::Kind;
use crate::tree::Tree;

/// How many names a file may have: as on NTFS. (A share may say sooner that it takes no more.)
const MAX_NAMES: usize = 1024;

impl Drive {
    /// Gives a file another name.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for directories, symbolic links and containers, and where the share has no
    /// hard links; [`Error::TooManyNames`]; [`Error::Exists`]; [`Error::ForbiddenName`]; what the share
    /// says.
    pub fn link(&self, id: u64, parent: u64, name: &str) -> Result<NodeAttr> {
        check_new_name(name, self.link.names())?;
        let to = join(&self.tree().path(parent), name);
        self.may_link(id, &to)?;
        self.absent(parent, name)?;
        let from = self.tree().share_path(id);
        let reach = match from {
            Some(from) => {
                self.make_there(parent, name, move |share, path| share.link(&from, path))?
                    .1
            }
            None => Reach::Waits,
        };
        let mut tree = self.tree_mut();
        tree.dir(parent)?;
        if !tree.node(id)?.linked {
            return Err(Error::NotFound(format!("node {id}")));
        }
        // A listing may have met it there, as a file of its own.
        if let Some(met) = tree.child(parent, name) {
            let fresh = tree.file_behind(met).is_none() && !tree.is_pending(met);
            if reach != Reach::There || !fresh {
                return Err(Error::Exists(name.to_owned()));
            }
            tree.forget(met);
        }
        self.adopt(&mut tree, parent)?;
        let named = tree.name_of(id);
        self.adopt(&mut tree, named)?;
        let op = TreeOp::Link {
            file: id,
            first: (!tree.is_parted(id)).then(|| tree.allocate()),
            id: tree.allocate(),
            parent,
            name: name.to_owned(),
        };
        self.commit(&mut tree, &op, reach)?;
        let at = now();
        tree.touch(parent, at);
        tree.changed(id, at);
        attr_of(&tree, id)
    }

    fn may_link(&self, id: u64, to: &str) -> Result<()> {
        let tree = self.tree();
        let node = tree.node(id)?;
        let path = tree.path(id);
        let why = match node.attr.kind {
            _ if !node.linked => return Err(Error::NotFound(path)),
            Kind::Dir => "a directory has one name",
            Kind::Symlink => "a symbolic link has one name",
            _ if self.is_container(&path) || self.is_container(to) => "a container has one name",
            _ if !self.link.has_links() => "the share has no hard links",
            _ if tree.count_names(id) >= MAX_NAMES => return Err(Error::TooManyNames(path)),
            _ => return Ok(()),
        };
        Err(Error::NotPermitted(format!("{path}: {why}")))
    }

    /// Whether a name may become this one: not that of a container, if the file has others.
    pub(super) fn may_be_called(&self, tree: &Tree, id: u64, path: &str) -> Result<()> {
        if tree.is_name(id) && tree.count_names(id) > 1 && self.is_container(path) {
            return Err(Error::NotPermitted(format!(
                "{path}: a container has one name"
            )));
        }
        Ok(())
    }

    /// A name is no longer this file's on the share.
    pub(super) fn lose_name(&self, tree: &mut Tree, name: u64) -> Result<()> {
        self.commit(tree, &TreeOp::Remove { id: name }, Reach::There)?;
        self.after_removal(tree, name);
        Ok(())
    }

    /// The share has nothing at `at`, one of a file's names: it is given up if there are others. Whether it was.
    pub(super) fn lose_place(&self, node: u64, at: &str) -> Result<bool> {
        let mut tree = self.tree_mut();
        let name = tree.place_of(node);
        let lost = tree.count_names(node) > 1 && tree.share_path(name).as_deref() == Some(at);
        if lost {
            self.lose_name(&mut tree, name)?;
        }
        Ok(lost)
    }

    /// Brings another name of a file to the share.
    pub(super) fn bring_link(
        &self,
        lsn: u64,
        (file, id): (u64, u64),
        (parent, name): (u64, &str),
        (date, host): (&str, &str),
    ) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        let (from, dir) = {
            let tree = self.tree();
            match tree.nodes.get(&id) {
                Some(node) if node.share.is_none() => {}
                _ => return Ok(O::Done),
            }
            (tree.share_path(file), tree.share_path(parent))
        };
        let Some(from) = from else {
            return Ok(O::Refused("the file is not on the share".to_owned()));
        };
        let Some(dir) = dir else {
            return Ok(O::Refused("its directory is not on the share".to_owned()));
        };
        for new_name in conflict_names(name, date, host) {
            if self.tree().lies_at(parent, &new_name).is_some() {
                continue;
            }
            let to = join(&dir, &new_name);
            let (a, b) = (from.clone(), to.clone());
            let ours = self.change(&to, move |share| match share.link(&a, &b) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    // Perhaps made without an answer.
                    let stat = |path: &str| share.stat(path).map_err(untold);
                    let (a, b) = (stat(&a)?, stat(&b)?);
                    Ok(a.file_id != 0 && (a.file_id, a.kind) == (b.file_id, b.kind))
                }
                made => made.map(|()| true),
            })?;
            if !ours {
                continue;
            }
            self.placed(id, Some((parent, new_name.clone())), None)?;
            if new_name == name {
                return Ok(O::Done);
            }
            self.rename_here(id, lsn, &new_name)?;
            return Ok(O::RenamedTo(to));
        }
        Ok(O::Refused("no free name on the share".to_owned()))
    }
}
