//! Keeping both, where a file was changed here and on the share (R9).
//!
//! Ours goes beside the other's, as `name (conflict DATE HOST).ext`: whole, if it is here whole. If only
//! part of it is here, the rest was in a file that the share does not have any more, and nobody can say
//! that the other's has the same bytes there: a mixture of both would pass for a file that never was. So
//! the part is kept as what it is: `…ext.partial`, with zeros in its holes, and `….partial.holes`, which
//! lists them. Either way programs find the other's file under the old name from then on.

use std::sync::{Arc, PoisonError};

use storage::RangeSet;

use super::Drive;
use super::push::{PushOutcome, is_zero, pieces};
use crate::error::{Error, Result};
use crate::file::FileNode;
use crate::journal::record::{MetaRecord, TreeOp};
use crate::path::conflict_names;

impl Drive {
    /// Keeps both: our file goes to the share under a conflict name (or its own, if that is free), and our
    /// node moves there; the other's file shows under the old name.
    pub(super) fn push_beside(
        &self,
        node: u64,
        file: &Arc<FileNode>,
        path: &str,
        date: &str,
        host: &str,
        at: &str,
    ) -> Result<PushOutcome> {
        // Handles stay with the file they opened (R1) and our node takes another name: an
        // application would not find what it saves next.
        let _open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
        if file.read().opens > 0 {
            return Err(Error::Busy(
                "changed on both sides: kept apart once it is closed",
            ));
        }
        // A change of its name that waits would move what is kept beside to a name that is the other's.
        let named_so = self.tree().names_of(node);
        if named_so.iter().any(|name| self.tree().name_waits(*name)) {
            return Err(Error::Busy(
                "changed on both sides: kept apart once its change of name is on the share",
            ));
        }
        let (snapshot, mut held) = self.snapshot_held(path, file)?;
        let (named, parent, name, share_parent) = {
            let tree = self.tree();
            let named = tree.place_of(node);
            let n = tree.node(named)?;
            let share_parent = n.share.as_ref().map_or(n.parent, |s| s.0);
            (named, n.parent, n.name.clone(), share_parent)
        };
        let dir = crate::path::split(at).map_or("", |s| s.0).to_owned();
        let mode = self.tree().node(node)?.attr.mode;
        let len = snapshot
            .reader
            .len()
            .map_err(|e| Error::from_io("reading a snapshot", e))?;
        held.truncate(len);
        let holes: RangeSet = held.gaps(0..len).into_iter().collect();
        let changed = file.read().share_changed;
        let names: Box<dyn Iterator<Item = String>> = if holes.is_empty() {
            Box::new(conflict_names(&name, date, host))
        } else {
            Box::new(partial_names(&name, date, host, changed))
        };
        let mut free = None;
        for candidate in names {
            let place = crate::path::join(&dir, &candidate);
            let path = place.clone();
            let made = self.link.call(&place, move |share| {
                share.create(&path, mode).map(crate::link::hold)
            });
            match made {
                Ok(f) => {
                    free = Some((candidate, f));
                    break;
                }
                Err(Error::Exists(_)) => {}
                Err(e) => return Err(e),
            }
        }
        let Some((new_name, made)) = free else {
            return Err(Error::Exists(path.to_owned()));
        };
        let place = crate::path::join(&dir, &new_name);
        for (start, bytes) in pieces(&*snapshot.reader, &held) {
            let bytes: Arc<[u8]> = bytes?.into();
            if is_zero(&bytes) {
                continue;
            }
            let f = made.clone();
            self.call(file, &place, move || f.write_all_at(start, &bytes))?;
        }
        let f = made.clone();
        self.call(file, &place, move || {
            f.set_len(len)?;
            f.sync()
        })?;
        for (start, bytes) in pieces(&*snapshot.reader, &held) {
            let bytes = bytes?;
            if self.read_share(&made, start, bytes.len())? != bytes {
                return Err(Error::Link(format!("{place}: the share did not keep it")));
            }
        }
        if !holes.is_empty() {
            self.list_holes(file, &place, &name, &holes, mode)?;
        }
        let stamp = self.link.call(&place, move |_| made.stamp())?;
        {
            let mut tree = self.tree_mut();
            // Its other names are the other's file's.
            for other in named_so.into_iter().filter(|id| *id != named) {
                self.lose_name(&mut tree, other)?;
            }
            if new_name != name {
                let op = TreeOp::Rename {
                    id: named,
                    parent,
                    name: new_name.clone(),
                    replaced: None,
                };
                let lsn = self.log(MetaRecord::Tree {
                    op: op.clone(),
                    pending: false,
                })?;
                tree.apply(&op, false, lsn);
            }
            let share = Some((share_parent, new_name.clone()));
            let lsn = self.log(MetaRecord::Placed {
                id: named,
                share: share.clone(),
                attr: None,
            })?;
            tree.place(named, share);
            tree.lsn = lsn;
            // The other's file shows at the next look.
            if let Some(dir) = tree.nodes.get_mut(&parent) {
                dir.listed = None;
            }
        }
        self.pushed(node, file, snapshot.epoch, stamp)?;
        let missing = holes.total();
        Ok(if missing > 0 {
            PushOutcome::Partial {
                kept_as: self.tree().path(node),
                missing,
            }
        } else if new_name == name {
            PushOutcome::Pushed(len)
        } else {
            PushOutcome::Conflict(self.tree().path(node))
        })
    }

    /// Says beside a file that is not whole what it lacks.
    fn list_holes(
        &self,
        file: &Arc<FileNode>,
        place: &str,
        name: &str,
        holes: &RangeSet,
        mode: u32,
    ) -> Result<()> {
        let mut text = format!("# ranges of {name} that are not here: start end\n");
        for hole in holes.iter() {
            text += &format!("{} {}\n", hole.start, hole.end);
        }
        let list = format!("{place}{HOLES}");
        let path = list.clone();
        let made = self.link.call(&list, move |share| {
            share.create(&path, mode).map(crate::link::hold)
        });
        match made {
            Ok(made) => self.call(file, &list, move || {
                made.write_all_at(0, text.as_bytes())?;
                made.sync()
            }),
            // Not ours to write over. What is a hole can be seen: zeros.
            Err(Error::Exists(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What ends the name of a file that is not whole, and of the list of what it lacks.
const PARTIAL: &str = ".partial";
const HOLES: &str = ".holes";

/// Names to try for a part of a file: as for a conflict, and not its own where another has that.
fn partial_names<'a>(
    name: &'a str,
    date: &'a str,
    host: &'a str,
    taken: bool,
) -> impl Iterator<Item = String> + 'a {
    const LONGEST: usize = 255 - PARTIAL.len() - HOLES.len();
    conflict_names(name, date, host)
        .skip(usize::from(taken))
        .map(|mut name| {
            // The end tells one from the other, so it is the beginning that goes.
            while name.len() > LONGEST {
                name.remove(0);
            }
            name + PARTIAL
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::check_name;

    #[test]
    fn names_of_parts_are_valid_and_all_different() {
        for name in ["a.pst", "x", &"ä".repeat(127), &"n".repeat(255)] {
            let names: Vec<String> = partial_names(name, "2026-01-02", "pc", true).collect();
            let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
            assert_eq!((names.len(), distinct.len()), (999, 999));
            for n in &names {
                assert!(n.ends_with(".partial") && check_name(&format!("{n}.holes")).is_ok());
            }
        }
        let own = partial_names("a.pst", "d", "h", false).next();
        assert_eq!(own.as_deref(), Some("a.pst.partial"));
        let other = partial_names("a.pst", "d", "h", true).next();
        assert_eq!(other.as_deref(), Some("a (conflict d h).pst.partial"));
    }
}
