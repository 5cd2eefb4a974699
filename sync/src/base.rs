//! What a change list is made against: the destination's objects, seen in local NIDs.

use std::collections::{BTreeMap, BTreeSet};

use pst::inventory::{Inventory, Kind, Row};
use pst::{Nid, NidType};
use storage::Generation;

use crate::compare::{depth, is_other_object};
use crate::database::Synced;
use crate::destination::Destination;
use crate::error::Result;

/// The destination's side of a comparison.
pub(crate) struct Base {
    /// The destination's objects, in local NIDs. An object that is not known here stands under
    /// a NID that no local object has.
    pub(crate) inventory: Inventory,
    /// Local to remote NID, where they differ.
    pub(crate) remapped: BTreeMap<Nid, Nid>,
    /// The destination's bytes.
    pub(crate) generation: Generation,
    /// What both sides once held: against it is seen which of them changed an object, and that an
    /// object missing here was deleted here. `None`: nothing is known.
    pub(crate) ancestor: Option<Inventory>,
}

impl Base {
    /// The usual case: what the sync database remembers.
    pub(crate) fn last_synced(synced: &Synced) -> Self {
        Self {
            inventory: synced.there(),
            remapped: synced.remapped(),
            generation: synced.head.generation,
            ancestor: Some(synced.ours()),
        }
    }

    /// No database, or the destination changed under us: its own inventory.
    ///
    /// Where its bytes are the very ones that the local file started from (`is_base`, asked after
    /// they were read), they are the common ancestor and both sides speak the same NIDs, whatever
    /// was remembered before. Else the ancestor is what we once synced there.
    pub(crate) fn read(
        container: &str,
        before: Option<&Synced>,
        is_base: &dyn Fn() -> bool,
        local: &Inventory,
        destination: &dyn Destination,
    ) -> Result<Self> {
        let remote = destination.inventory(container)?;
        if is_base() {
            return Ok(Self {
                ancestor: Some(remote.inventory.clone()),
                inventory: remote.inventory,
                remapped: BTreeMap::new(),
                generation: remote.generation,
            });
        }
        let to_local = Aligner::new(&remote.inventory, local, before).align();
        let remapped = to_local
            .iter()
            .filter(|(r, l)| r != l)
            .map(|(r, l)| (*l, *r))
            .collect();
        Ok(Self {
            inventory: remote.inventory.renumbered(&to_local),
            remapped,
            generation: remote.generation,
            ancestor: before.map(Synced::ours),
        })
    }

    /// Whether what is missing here is known to have been deleted here, and is there as we left it.
    pub(crate) fn may_delete(&self, there: &Row) -> bool {
        let left = self.ancestor.as_ref().and_then(|a| a.rows.get(&there.nid));
        left.is_some_and(|left| {
            left.fingerprint == there.fingerprint && left.parent == there.parent
        })
    }

    /// Gives objects that are kept there, although the local object of that NID is another one,
    /// a NID that stands for them.
    pub(crate) fn set_aside_kept(&mut self, local: &Inventory) {
        let kept: Vec<Nid> = self
            .inventory
            .rows
            .values()
            .filter(|there| {
                local.rows.get(&there.nid).is_some_and(|here| {
                    if is_other_object(there, here) {
                        !self.may_delete(there)
                    } else {
                        self.is_ambiguous(there, here)
                    }
                })
            })
            .map(|there| there.nid)
            .collect();
        let stands = stand_ins(&kept, &[local, &self.inventory]);
        self.inventory = self.inventory.renumbered(&stands);
        for (nid, stand_in) in stands {
            let remote = self.remapped.remove(&nid).unwrap_or(nid);
            self.remapped.insert(stand_in, remote);
        }
    }

    /// Two messages without a search key that both changed: perhaps one object, perhaps one of them
    /// replaced it. Neither may overwrite the other.
    fn is_ambiguous(&self, there: &Row, here: &Row) -> bool {
        let once = self.ancestor.as_ref().and_then(|a| a.rows.get(&there.nid));
        let changed = |row: &Row| once.is_none_or(|o| o.fingerprint != row.fingerprint);
        matches!(there.kind, Kind::Message | Kind::Associated)
            && there.search_key.is_none()
            && there.fingerprint != here.fingerprint
            && changed(there)
            && changed(here)
    }
}

/// Finds out which local object each remote object is.
struct Aligner<'a> {
    remote: &'a Inventory,
    local: &'a Inventory,
    /// What was synced before, if that is known.
    known: Option<&'a Synced>,
    /// Folders that hold the same object on both sides.
    sharing: BTreeSet<Nid>,
    /// The highest number of a folder that is the same on both sides for sure. Numbers are handed out
    /// upwards: what has a lower one was made before that folder, so before the sides parted.
    common: u32,
    to_local: BTreeMap<Nid, Nid>,
    /// Local NIDs that were given to a remote object.
    given: BTreeSet<Nid>,
}

impl<'a> Aligner<'a> {
    fn new(remote: &'a Inventory, local: &'a Inventory, known: Option<&'a Synced>) -> Self {
        let shared = remote.rows.values().filter(|there| {
            let same = |here: &&Row| {
                here.kind == there.kind
                    && here.parent == there.parent
                    && (here.fingerprint == there.fingerprint
                        || here.search_key.is_some() && here.search_key == there.search_key)
            };
            local.rows.get(&there.nid).filter(same).is_some()
        });
        let common = remote.rows.values().filter(|there| {
            let here = local.rows.get(&there.nid);
            there.kind == Kind::Folder
                && here.is_some_and(|here| {
                    here.kind == Kind::Folder && here.fingerprint == there.fingerprint
                })
        });
        Self {
            remote,
            local,
            known,
            sharing: shared.map(|there| there.parent).collect(),
            common: common.map(|there| there.nid.index()).max().unwrap_or(0),
            to_local: BTreeMap::new(),
            given: BTreeSet::new(),
        }
    }

    /// Remote to local NID: the one that it was synced under, else the same number if that is
    /// surely the same object, else that of an equal object in the same folder (whose answer was
    /// lost), else a stand-in.
    fn align(mut self) -> BTreeMap<Nid, Nid> {
        let (known, remote, local) = (self.known, self.remote, self.local);
        for (nid, once) in known.iter().flat_map(|k| &k.rows).filter(|(_, r)| r.ours) {
            let there = remote.rows.get(&once.remote_nid);
            // A number that was given to something else there says nothing of ours.
            if there.is_some_and(|there| !is_other_object(there, &once.row)) {
                self.give(once.remote_nid, *nid);
            }
        }
        for (nid, row) in &remote.rows {
            let here = local.rows.get(nid);
            if !self.to_local.contains_key(nid) && here.is_some_and(|here| self.is_same(row, here))
            {
                self.give(*nid, *nid);
            }
        }
        self.match_by_content();
        let left: Vec<Nid> = self.remote.rows.keys().copied().collect();
        let left: Vec<Nid> = left
            .into_iter()
            .filter(|nid| !self.to_local.contains_key(nid))
            .collect();
        let stands = stand_ins(&left, &[self.local, self.remote]);
        self.to_local.extend(stands);
        self.to_local
    }

    fn give(&mut self, remote: Nid, here: Nid) {
        if self.given.insert(here) {
            self.to_local.insert(remote, here);
        }
    }

    /// Whether two objects that only share their number are one. Both sides hand out the same next
    /// numbers, so what was made on either since the last sync is another object unless it proves
    /// otherwise. A folder with another name proves it by what both hold in it, if it was made before
    /// the sides parted: into one that was made since, both may have moved the same message. A raw node
    /// is what its number says.
    fn is_same(&self, there: &Row, here: &Row) -> bool {
        if is_other_object(there, here) {
            return false;
        }
        match there.kind {
            Kind::Raw => true,
            Kind::Folder => {
                there.nid == Nid::ROOT_FOLDER
                    || there.fingerprint == here.fingerprint
                    || self.sharing.contains(&there.nid) && there.nid.index() < self.common
            }
            Kind::Message | Kind::Associated => {
                there.fingerprint == here.fingerprint || there.search_key.is_some()
            }
        }
    }

    fn match_by_content(&mut self) {
        let mut by_content: BTreeMap<_, Vec<Nid>> = BTreeMap::new();
        for row in self.local.rows.values().rev() {
            if !self.given.contains(&row.nid) && row.kind != Kind::Raw {
                let key = (row.kind, row.fingerprint, row.parent);
                by_content.entry(key).or_default().push(row.nid);
            }
        }
        let mut left: Vec<&Row> = self
            .remote
            .rows
            .values()
            .filter(|row| !self.to_local.contains_key(&row.nid))
            .collect();
        // Parents first: the folder of an object must be known.
        left.sort_by_key(|row| match row.kind {
            Kind::Folder => (0, depth(self.remote, row.nid)),
            _ => (1, 0),
        });
        for row in left {
            let Some(parent) = self.to_local.get(&row.parent) else {
                continue;
            };
            let key = (row.kind, row.fingerprint, *parent);
            if let Some(here) = by_content.get_mut(&key).and_then(Vec::pop) {
                self.give(row.nid, here);
            }
        }
    }
}

/// For each of `nids` a NID of the same type that none of `used` has: from the top, where no
/// writer has come to.
pub(crate) fn stand_ins(nids: &[Nid], used: &[&Inventory]) -> BTreeMap<Nid, Nid> {
    let mut next = MAX_INDEX;
    let mut stands = BTreeMap::new();
    for like in nids {
        loop {
            let nid = Nid::new(NidType(like.kind().0), next);
            next = next.saturating_sub(1);
            if next == 0 || !used.iter().any(|i| i.rows.contains_key(&nid)) {
                stands.insert(*like, nid);
                break;
            }
        }
    }
    stands
}

const MAX_INDEX: u32 = (1 << 27) - 1;

/// An inventory under other NIDs.
pub(crate) trait Renumbered {
    /// The same rows, each NID and parent replaced as `map` says.
    fn renumbered(&self, map: &BTreeMap<Nid, Nid>) -> Inventory;
}

impl Renumbered for Inventory {
    fn renumbered(&self, map: &BTreeMap<Nid, Nid>) -> Inventory {
        let new = |nid: Nid| map.get(&nid).copied().unwrap_or(nid);
        let rows = self
            .rows
            .values()
            .map(|row| {
                let nid = new(row.nid);
                (
                    nid,
                    Row {
                        nid,
                        parent: new(row.parent),
                        ..row.clone()
                    },
                )
            })
            .collect();
        Inventory { rows }
    }
}
