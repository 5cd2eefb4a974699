//! Bringing a rename to the share.
//!
//! What it replaces is replaced only if it is what was seen when it was replaced here, and only by a file
//! whose content the share has. A rename that the share was asked for and never answered may have been
//! done, and others may have taken its old name, or the new one, since: what is theirs is not moved.

use crate::error::{Error, Result};
use crate::path::{conflict_names, join};
use crate::share::{Attr, Kind};

use super::held::untold;
use super::{Drive, ReintegratedOutcome};

/// Whose thing lies at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Nobodys,
    Ours,
    /// It has the number of ours, and another length: changed by others, or the number is another's now.
    Perhaps,
    Anothers,
}

impl Drive {
    /// What the share has at a place, beside what this node was there when it was last seen.
    fn whose(&self, id: u64, at: &str) -> Result<Whose> {
        let (ours, touched) = {
            let tree = self.tree();
            let node = tree.node(tree.content_of(id))?;
            let standing = node.file.as_ref().map(|f| {
                let st = f.read();
                (st.stamp, st.may_be_there())
            });
            let (stamp, touched) = standing.unwrap_or_default();
            let ours = Attr {
                size: stamp.map_or(node.attr.size, |s| s.size),
                mtime: stamp.map_or(node.attr.mtime, |s| s.mtime),
                file_id: stamp.map_or(node.attr.file_id, |s| s.file_id),
                ..node.attr
            };
            (ours, touched)
        };
        let path = at.to_owned();
        let there = match self.change(at, move |share| share.stat(&path).map_err(untold)) {
            Ok(there) => there,
            Err(Error::NotFound(_)) => return Ok(Whose::Nobodys),
            Err(e) => return Err(e),
        };
        let numbered = ours.file_id != 0 && there.file_id != 0;
        // Of what we wrote there without an answer the length tells nothing.
        let same_size = ours.kind == Kind::Dir || touched || ours.size == there.size;
        let same = if numbered {
            ours.file_id == there.file_id
        } else {
            same_size && ours.mtime == there.mtime
        };
        Ok(match same && ours.kind == there.kind {
            true if same_size => Whose::Ours,
            true => Whose::Perhaps,
            false => Whose::Anothers,
        })
    }

    /// What became of a rename that was never answered, if the share tells.
    fn answered_since(
        &self,
        id: u64,
        from: &str,
        to: &str,
        old: Option<&(u64, String)>,
    ) -> Result<Option<ReintegratedOutcome>> {
        use ReintegratedOutcome as O;
        if self.link.names().same(from, to) {
            return Ok(None);
        }
        if let Some((old_id, _)) = old.filter(|o| o.1 == to)
            && self.known_there(*old_id, to)? == Some(true)
        {
            // What it was to replace is still there: it was not done.
            return Ok(None);
        }
        let at_new = self.whose(id, to)?;
        if matches!(at_new, Whose::Ours | Whose::Perhaps) {
            return Ok(Some(O::Done));
        }
        // Either done, and then replaced or removed under its new name, or never done, and changed under
        // its old one. What of ours is not on the share is kept beside what is there. (Where another lies
        // under the new name ours may be gone, and its number another's by now.)
        let anothers = match self.whose(id, from)? {
            Whose::Nobodys => false,
            Whose::Ours if at_new == Whose::Nobodys => false,
            Whose::Ours => self.known_there(id, from)? == Some(false),
            Whose::Perhaps | Whose::Anothers => true,
        };
        Ok(anothers
            .then(|| O::Dropped("others have replaced it on the share meanwhile".to_owned())))
    }

    /// Brings the rename recorded as `lsn` to the share.
    pub(super) fn bring_rename(
        &self,
        lsn: u64,
        id: u64,
        (parent, name): (u64, &str),
        replaced: Option<u64>,
        (date, host): (&str, &str),
    ) -> Result<ReintegratedOutcome> {
        use ReintegratedOutcome as O;
        if replaced.is_some() {
            self.fill_first(id, date, host)?;
        }
        let (from, dir, old) = {
            let tree = self.tree();
            let old = replaced.and_then(|r| Some((r, tree.share_path(r)?)));
            (tree.share_path(id), tree.share_path(parent), old)
        };
        let Some(from) = from else {
            return Ok(O::Dropped("it is not on the share".to_owned()));
        };
        let Some(dir) = dir else {
            return Ok(O::Refused(
                "its new directory is not on the share".to_owned(),
            ));
        };
        if from == join(&dir, name) {
            // Brought over before, and only that it was done is not known any more.
            if let Some((old_id, _)) = old {
                self.placed(old_id, None, None)?;
            }
            return Ok(O::Done);
        }
        // It may have been asked for without an answer.
        let answered = if lsn <= self.tree().doubted {
            self.answered_since(id, &from, &join(&dir, name), old.as_ref())?
        } else {
            None
        };
        let mut replace = false;
        if let Some((old_id, old_at)) = &old {
            // Replaced only if it is what we saw when we replaced it.
            match self.known_there(*old_id, old_at)? {
                Some(true) if *old_at == join(&dir, name) => replace = true,
                Some(true) => {
                    self.bring_removal(*old_id)?;
                }
                _ => self.placed(*old_id, None, None)?,
            }
        }
        if let Some(outcome) = answered {
            self.placed(id, Some((parent, name.to_owned())), None)?;
            return Ok(outcome);
        }
        for new_name in conflict_names(name, date, host) {
            let to = join(&dir, &new_name);
            let (a, b) = (from.clone(), to.clone());
            let own = new_name == name;
            let respelled = self.link.names().same(&from, &to);
            let over = (replace && own) || respelled;
            match self.change(&from, move |share| share.rename(&a, &b, over)) {
                Ok(()) => {}
                Err(Error::NotFound(_)) => {
                    // Renamed without an answer, or gone.
                    let at = to.clone();
                    match self.change(&to, move |share| share.stat(&at).map_err(untold)) {
                        Ok(_) => {}
                        Err(Error::NotFound(_)) => {
                            // Others removed it. It counts as lying where it was to go: what was
                            // changed here is kept under that name, and the rest is as the share has
                            // it, at the next look. Its old place may be another's by then.
                            if let Some((old_id, _)) = &old {
                                self.placed(*old_id, None, None)?;
                            }
                            self.placed(id, Some((parent, name.to_owned())), None)?;
                            return Ok(O::Dropped("it is no longer on the share".to_owned()));
                        }
                        Err(e) => return Err(e),
                    }
                }
                Err(Error::Exists(_) | Error::NotEmpty(_) | Error::IsDir(_) | Error::NotDir(_)) => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            if let Some((old_id, _)) = &old
                && over
                && !respelled
            {
                self.placed(*old_id, None, None)?;
            }
            self.placed(id, Some((parent, new_name.clone())), None)?;
            if own {
                return Ok(O::Done);
            }
            self.rename_here(id, lsn, &new_name)?;
            return Ok(O::RenamedTo(to));
        }
        Ok(O::Refused("no free name on the share".to_owned()))
    }

    /// A file that is about to replace another on the share gets its content there first: else,
    /// should the link die in between, others would find an empty one in the place of a good one.
    /// (Containers reach the share at an epoch only, which is not for here to find.)
    fn fill_first(&self, id: u64, date: &str, host: &str) -> Result<()> {
        let path = self.tree().path(id);
        let (file, from) = {
            let tree = self.tree();
            let file = tree.file_behind(id).cloned();
            (file, tree.share_path(id))
        };
        let (Some(file), Some(from)) = (file, from) else {
            return Ok(());
        };
        let (dirty, ours) = {
            let st = file.read();
            (st.is_dirty(), st.stamp)
        };
        if !dirty
            || self.is_container(&path)
            || self.find(&path).ok() != Some(self.tree().content_of(id))
        {
            return Ok(());
        }
        match self.share_stamp(&from) {
            Ok(there) if Some(there) == ours => {}
            // It replaced the other already, without an answer; or it is not ours any more.
            Ok(_) | Err(Error::NotFound(_)) => return Ok(()),
            Err(e) => return Err(e),
        }
        match self.push_opaque(&path, date, host) {
            // Others would find an empty file in the place of a good one, perhaps for long.
            Err(e) if e.is_link() || e.is_refusal() => Err(e),
            Err(error) => {
                tracing::info!(path, %error, "its content follows later");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}
