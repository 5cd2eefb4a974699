//! apply(optimise(log)) equals apply(log), on a plain tree that refuses what a share refuses.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Place, optimise};
use crate::journal::record::{NodeRecord, TreeOp};
use crate::path::Names;
use crate::share::{Attr, Kind, SetAttr};
use crate::tree::ROOT;

/// A share: each change must be possible at its moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plain {
    nodes: BTreeMap<u64, (Place, Kind)>,
    attrs: BTreeMap<u64, (Option<u32>, Option<i64>)>,
    xattrs: BTreeMap<(u64, String), Option<Vec<u8>>>,
}

impl Plain {
    fn at(&self, place: &Place) -> Option<u64> {
        let mut found = self.nodes.iter().filter(|(_, (p, _))| p == place);
        found.next().map(|(id, _)| *id)
    }

    fn is_dir(&self, id: u64) -> bool {
        id == ROOT || self.nodes.get(&id).is_some_and(|n| n.1 == Kind::Dir)
    }

    fn empty(&self, id: u64) -> bool {
        self.nodes.values().all(|((parent, _), _)| *parent != id)
    }

    fn above(&self, above: u64, mut id: u64) -> bool {
        while id != ROOT {
            if id == above {
                return true;
            }
            id = self.nodes[&id].0.0;
        }
        false
    }

    fn remove(&mut self, id: u64) -> Result<(), String> {
        if !self.empty(id) {
            return Err(format!("{id} is not empty"));
        }
        self.nodes.remove(&id).ok_or(format!("{id} is not there"))?;
        self.attrs.remove(&id);
        self.xattrs.retain(|(x, _), _| *x != id);
        Ok(())
    }

    fn apply(&mut self, op: &TreeOp) -> Result<(), String> {
        match op {
            TreeOp::Create(r) => {
                let place = (r.parent, r.name.clone());
                if !self.is_dir(r.parent) || self.at(&place).is_some() {
                    return Err(format!("{place:?} cannot be made"));
                }
                self.nodes.insert(r.id, (place, r.attr.kind));
                self.attrs.insert(r.id, (Some(r.attr.mode), None));
            }
            TreeOp::Remove { id } => self.remove(*id)?,
            TreeOp::Rename {
                id,
                parent,
                name,
                replaced,
            } => {
                let place = (*parent, name.clone());
                let kind = self.nodes.get(id).ok_or(format!("{id} is not there"))?.1;
                if self.at(&place).filter(|x| x != id) != *replaced {
                    return Err(format!("{place:?} is not as it was"));
                }
                if !self.is_dir(*parent) || (kind == Kind::Dir && self.above(*id, *parent)) {
                    return Err(format!("{id} cannot go to {place:?}"));
                }
                if let Some(old) = replaced {
                    self.remove(*old)?;
                }
                self.nodes.insert(*id, (place, kind));
            }
            TreeOp::SetAttr { id, set, .. } => {
                if !self.nodes.contains_key(id) {
                    return Err(format!("{id} is not there"));
                }
                let attr = self.attrs.entry(*id).or_default();
                attr.0 = set.mode.or(attr.0);
                attr.1 = set.mtime.or(attr.1);
            }
            TreeOp::SetXattr { id, name, value } => {
                if !self.nodes.contains_key(id) {
                    return Err(format!("{id} is not there"));
                }
                self.xattrs.insert((*id, name.clone()), value.clone());
            }
            TreeOp::Link { .. } => return Err("is kept out of what is made shorter".to_owned()),
        }
        Ok(())
    }
}

fn create(id: u64, parent: u64, name: &str, kind: Kind) -> TreeOp {
    TreeOp::Create(NodeRecord {
        id,
        parent,
        name: name.to_owned(),
        attr: Attr {
            kind,
            size: 0,
            mtime: 0,
            atime: 0,
            ctime: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            file_id: 0,
        },
        share: None,
        linked: true,
        known: true,
        target: None,
    })
}

/// What the share has: two directories, one in the other, and three files.
fn start() -> Plain {
    let mut share = Plain::default();
    for (id, parent, name, kind) in [
        (2, ROOT, "a", Kind::Dir),
        (3, 2, "b", Kind::Dir),
        (4, ROOT, "c", Kind::File),
        (5, 2, "a", Kind::File),
        (6, 3, "d", Kind::File),
    ] {
        share.apply(&create(id, parent, name, kind)).unwrap();
    }
    share
}

/// Picks that become a change that is possible then, or nothing.
fn change(share: &Plain, next: u64, (what, a, b, n): (u8, usize, usize, usize)) -> Option<TreeOp> {
    let ids: Vec<u64> = share.nodes.keys().copied().collect();
    let dirs: Vec<u64> = std::iter::once(ROOT)
        .chain(ids.iter().copied().filter(|id| share.is_dir(*id)))
        .collect();
    let pick = |list: &[u64], i: usize| (!list.is_empty()).then(|| list[i % list.len()]);
    let name = ["a", "b", "c", "d"][n % 4].to_owned();
    let op = match what {
        0 => create(next, pick(&dirs, a)?, &name, Kind::File),
        1 => create(next, pick(&dirs, a)?, &name, Kind::Dir),
        2 => TreeOp::Remove { id: pick(&ids, a)? },
        3 => TreeOp::SetAttr {
            id: pick(&ids, a)?,
            set: SetAttr {
                mode: (b % 2 == 0).then_some(n as u32),
                mtime: (b % 3 == 0).then_some(n as i64),
                ..SetAttr::default()
            },
            ctime: 0,
        },
        4 => TreeOp::SetXattr {
            id: pick(&ids, a)?,
            name,
            value: (b % 3 > 0).then(|| vec![b as u8]),
        },
        _ => {
            let (id, parent) = (pick(&ids, a)?, pick(&dirs, b)?);
            let replaced = share.at(&(parent, name.clone())).filter(|x| *x != id);
            if let Some(old) = replaced
                && share.is_dir(old) != share.is_dir(id)
            {
                return None;
            }
            TreeOp::Rename {
                id,
                parent,
                name,
                replaced,
            }
        }
    };
    share.clone().apply(&op).is_ok().then_some(op)
}

fn log_of(picks: &[(u8, usize, usize, usize)]) -> (Plain, Vec<(u64, TreeOp)>) {
    let mut share = start();
    let mut log = Vec::new();
    for (i, pick) in picks.iter().enumerate() {
        let i = i as u64;
        if let Some(op) = change(&share, 100 + i, *pick) {
            share.apply(&op).unwrap();
            log.push((1000 + i, op));
        }
    }
    (share, log)
}

/// The log as the plan leaves it.
fn shorter(log: &[(u64, TreeOp)]) -> Vec<TreeOp> {
    let start = start();
    let origin = |id: u64| start.nodes.get(&id).cloned();
    let plan = optimise(log.iter().map(|(lsn, op)| (*lsn, op)), Names::Any, &origin);
    let gone: BTreeSet<u64> = plan.gone.iter().copied().collect();
    let instead: BTreeMap<u64, TreeOp> = plan.instead.into_iter().collect();
    log.iter()
        .filter(|(lsn, _)| !gone.contains(lsn))
        .map(|(lsn, op)| instead.get(lsn).unwrap_or(op).clone())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("VFS_OPTIMISE_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(3000),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn the_shorter_log_ends_the_same(
        picks in prop::collection::vec((0u8..9, 0usize..12, 0usize..12, 0usize..12), 1..40)
    ) {
        let (end, log) = log_of(&picks);
        let short = shorter(&log);
        prop_assert!(short.len() <= log.len());
        let mut share = start();
        for op in &short {
            if let Err(e) = share.apply(op) {
                return Err(TestCaseError::fail(format!("{e}\nlog {log:#?}\nshort {short:#?}")));
            }
        }
        prop_assert_eq!(share, end, "log {:#?} short {:#?}", log, short);
        // What was made and removed here, and nothing else, leaves nothing at all.
        let made: BTreeSet<u64> = short.iter().filter_map(|op| match op {
            TreeOp::Create(r) if r.attr.kind != Kind::Dir => Some(r.id),
            _ => None,
        }).collect();
        for op in &short {
            if let TreeOp::Remove { id } = op {
                prop_assert!(!made.contains(id), "log {:#?} short {:#?}", log, short);
            }
        }
    }
}

fn rename(id: u64, parent: u64, name: &str, replaced: Option<u64>) -> TreeOp {
    TreeOp::Rename {
        id,
        parent,
        name: name.to_owned(),
        replaced,
    }
}

fn numbered(ops: Vec<TreeOp>) -> Vec<(u64, TreeOp)> {
    (1..).zip(ops).collect()
}

#[test]
fn what_was_made_and_removed_is_nothing() {
    // A directory, a file in it that gets another name, and all of it removed.
    let log = numbered(vec![
        create(10, ROOT, "new", Kind::Dir),
        create(11, 10, "t", Kind::File),
        rename(11, 10, "u", None),
        TreeOp::Remove { id: 11 },
        TreeOp::Remove { id: 10 },
    ]);
    assert_eq!(shorter(&log), []);
}

#[test]
fn renames_collapse_and_a_way_back_is_none() {
    let log = numbered(vec![
        rename(4, ROOT, "x", None),
        rename(4, 2, "y", None),
        rename(4, 3, "z", None),
    ]);
    assert_eq!(shorter(&log), [rename(4, 3, "z", None)]);
    let log = numbered(vec![rename(4, ROOT, "x", None), rename(4, ROOT, "c", None)]);
    assert_eq!(shorter(&log), []);
    // Two files change places by way of a third name: no name is free, so all three stay.
    let log = numbered(vec![
        rename(4, ROOT, "t", None),
        rename(5, ROOT, "c", None),
        rename(4, 2, "a", None),
    ]);
    assert_eq!(shorter(&log).len(), 3);
}

#[test]
fn a_save_by_rename_still_replaces_at_once() {
    let log = numbered(vec![
        create(10, ROOT, "tmp", Kind::File),
        rename(10, ROOT, "c", Some(4)),
    ]);
    assert_eq!(shorter(&log).len(), 2);
    // Saved twice: the share sees the second save only.
    let log = numbered(vec![
        create(10, ROOT, "tmp", Kind::File),
        rename(10, ROOT, "c", Some(4)),
        create(11, ROOT, "tmp", Kind::File),
        rename(11, ROOT, "c", Some(10)),
    ]);
    let at_once = [
        create(11, ROOT, "tmp", Kind::File),
        rename(11, ROOT, "c", Some(4)),
    ];
    assert_eq!(shorter(&log), at_once);
}
