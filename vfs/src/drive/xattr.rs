//! Extended attributes, where the share has them.
//!
//! Only `user.` ones are carried: the others mean something to the system that keeps them. Ours
//! that wait for the share are answered from the queue; of what the share has nothing is kept here,
//! so that offline the answer for a file of the share is "not known", never "none" (R3).

use std::collections::BTreeMap;

use super::change::Reach;
use super::{Drive, now};
use crate::error::{Error, Result};
use crate::journal::record::TreeOp;
use crate::tree::Tree;

/// Whether an existing value is needed, or forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Sets it in any case.
    Any,
    /// Fails where there is one.
    Create,
    /// Fails where there is none.
    Replace,
}

/// Longest value, in bytes: the kernel's own bound.
pub const MAX_XATTR: usize = 1 << 16;

/// Names and values that wait for the share; `None`: removed.
type Waiting<'a> = BTreeMap<&'a str, Option<&'a [u8]>>;

fn waiting(tree: &Tree, id: u64) -> Waiting<'_> {
    let mut all = BTreeMap::new();
    for p in &tree.pending {
        if let TreeOp::SetXattr { id: x, name, value } = &p.op
            && *x == id
        {
            all.insert(name.as_str(), value.as_deref());
        }
    }
    all
}

/// Where the share keeps a node's attributes.
enum At {
    /// There, or under its later name.
    Share(String, Option<String>),
    /// It was made here: the share has none.
    Nowhere,
    /// The share must not be asked.
    Unknown(String),
}

impl Drive {
    fn xattrs_at(&self, tree: &Tree, id: u64) -> Result<At> {
        tree.node(id)?;
        Ok(match tree.share_path(id) {
            None => At::Nowhere,
            Some(path) if self.may_ask() => At::Share(path, tree.later_place(id)),
            Some(_) => At::Unknown(tree.path(id)),
        })
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// [`Error::NoAttribute`]; [`Error::Unsupported`] for what is not `user.`, or by the share;
    /// [`Error::NotCached`] where only the share knows.
    pub fn get_xattr(&self, id: u64, name: &str) -> Result<Vec<u8>> {
        carried(name)?;
        let none = || Error::NoAttribute(name.to_owned());
        let at = {
            let tree = self.tree();
            if let Some(value) = waiting(&tree, id).get(name) {
                return value.map(<[u8]>::to_vec).ok_or_else(none);
            }
            self.xattrs_at(&tree, id)?
        };
        match at {
            At::Nowhere => Err(none()),
            At::Unknown(path) => Err(Error::NotCached(path)),
            At::Share(path, later) => {
                let name = name.to_owned();
                self.ask_either(path, later, move |share, at| share.get_xattr(at, &name))?
                    .ok_or_else(none)
            }
        }
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// As [`Drive::get_xattr`]; a share without them has none.
    pub fn list_xattr(&self, id: u64) -> Result<Vec<String>> {
        let at = self.xattrs_at(&self.tree(), id)?;
        let there = match at {
            At::Nowhere => Vec::new(),
            At::Unknown(path) => return Err(Error::NotCached(path)),
            At::Share(path, later) => {
                match self.ask_either(path, later, |share, at| share.list_xattr(at)) {
                    Err(Error::Unsupported(_)) => Vec::new(),
                    other => other?,
                }
            }
        };
        let tree = self.tree();
        let waiting = waiting(&tree, id);
        let mut names: Vec<String> = there
            .into_iter()
            .filter(|n| !waiting.contains_key(n.as_str()))
            .collect();
        let ours = waiting.iter().filter(|(_, value)| value.is_some());
        names.extend(ours.map(|(name, _)| (*name).to_owned()));
        names.sort();
        Ok(names)
    }

    /// Sets (or, with `None`, removes) an extended attribute.
    ///
    /// # Errors
    /// As [`Drive::get_xattr`]; [`Error::Exists`], [`Error::NoAttribute`] by `mode`;
    /// [`Error::TooLarge`].
    pub fn set_xattr(
        &self,
        id: u64,
        name: &str,
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        carried(name)?;
        if value.is_some_and(|v| v.len() > MAX_XATTR) {
            return Err(Error::TooLarge("an extended attribute"));
        }
        if self.tree().node(id)?.attr.kind == crate::share::Kind::Symlink {
            return Err(Error::NotPermitted("symbolic links have none".to_owned()));
        }
        if mode != XattrMode::Any || value.is_none() {
            match (self.get_xattr(id, name), mode) {
                (Ok(_), XattrMode::Create) => return Err(Error::Exists(name.to_owned())),
                (Err(Error::NoAttribute(_)), XattrMode::Create) | (Ok(_), _) => {}
                (Err(e), _) => return Err(e),
            }
        }
        let place = {
            let tree = self.tree();
            if self.must_queue(&tree) {
                None
            } else {
                tree.share_path(id)
            }
        };
        let mut reach = Reach::Waits;
        if let Some(path) = place {
            let (at, name) = (path.clone(), name.to_owned());
            let value = value.map(<[u8]>::to_vec);
            let set = self.change(&path, move |share| {
                share.set_xattr(&at, &name, value.as_deref())
            });
            match set {
                Ok(()) => reach = Reach::There,
                Err(e) if e.is_link() => reach = Reach::Unsure,
                Err(e) => return Err(e),
            }
        }
        let mut tree = self.tree_mut();
        if reach != Reach::There {
            self.adopt(&mut tree, id)?;
            let op = TreeOp::SetXattr {
                id,
                name: name.to_owned(),
                value: value.map(<[u8]>::to_vec),
            };
            self.commit(&mut tree, &op, reach)?;
        }
        tree.changed(id, now());
        Ok(())
    }
}

fn carried(name: &str) -> Result<()> {
    if name.starts_with("user.") && name.len() > 5 {
        Ok(())
    } else {
        Err(Error::Unsupported(format!("the attribute {name}")))
    }
}
