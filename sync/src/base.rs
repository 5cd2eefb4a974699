//! What a change list is made against: the destination's objects, seen in local NIDs.

use std::collections::{BTreeMap, BTreeSet};

use pst::inventory::{Inventory, Row};
use pst::{Nid, NidType};
use storage::Generation;

use crate::compare::is_other_object;
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
    /// The objects whose absence here is known to be a delete of ours; `None`: nothing is known.
    pub(crate) deletable: Option<Inventory>,
}

impl Base {
    /// The usual case: what the sync database remembers.
    pub(crate) fn last_synced(synced: &Synced) -> Self {
        Self {
            inventory: synced.there(),
            remapped: synced.remapped(),
            generation: synced.head.generation,
            deletable: Some(synced.ours()),
        }
    }

    /// No database: the destination's own inventory. Deletes are provable only if its bytes are
    /// the very ones that the local file started from (`is_base`, asked after it was read).
    pub(crate) fn unknown(
        container: &str,
        is_base: &dyn Fn() -> bool,
        local: &Inventory,
        destination: &dyn Destination,
    ) -> Result<Self> {
        let remote = destination.inventory(container)?;
        let deletable = is_base().then(|| remote.inventory.clone());
        Ok(Self::aligned(
            remote.inventory,
            &BTreeMap::new(),
            local,
            deletable,
            remote.generation,
        ))
    }

    /// The destination changed under us: its inventory is the new base; what we may delete is
    /// what we once synced there and nobody changed since.
    pub(crate) fn changed(
        container: &str,
        before: Option<&Synced>,
        local: &Inventory,
        destination: &dyn Destination,
    ) -> Result<Self> {
        let remote = destination.inventory(container)?;
        let known = before.map(|b| {
            b.rows
                .iter()
                .filter(|(_, r)| r.ours)
                .map(|(nid, r)| (r.remote_nid, *nid))
                .collect()
        });
        let deletable = before.map(Synced::ours);
        let known = known.unwrap_or_default();
        Ok(Self::aligned(
            remote.inventory,
            &known,
            local,
            deletable,
            remote.generation,
        ))
    }

    /// Gives each remote object its local NID: the one it was synced under (`known`), else the
    /// same number if that is the same object here or a provable delete, else a stand-in.
    fn aligned(
        remote: Inventory,
        known: &BTreeMap<Nid, Nid>,
        local: &Inventory,
        deletable: Option<Inventory>,
        generation: Generation,
    ) -> Self {
        let mut stand_in = StandIns {
            local,
            remote: &remote,
            next: MAX_INDEX,
        };
        let claimed: BTreeSet<Nid> = known.values().copied().collect();
        let mut to_local = BTreeMap::new();
        for (nid, row) in &remote.rows {
            let here = known.get(nid).copied().unwrap_or(*nid);
            let claimed_by_another = !known.contains_key(nid) && claimed.contains(nid);
            let same = match local.rows.get(&here) {
                Some(other) => other.kind == row.kind && !is_other_object(row, other),
                None => deletable
                    .as_ref()
                    .is_some_and(|d| d.rows.contains_key(&here)),
            };
            let given = if same && !claimed_by_another {
                here
            } else {
                stand_in.take(*nid)
            };
            to_local.insert(*nid, given);
        }
        let remapped = to_local
            .iter()
            .filter(|(r, l)| r != l)
            .map(|(r, l)| (*l, *r))
            .collect();
        Self {
            inventory: remote.renumbered(&to_local),
            remapped,
            generation,
            deletable,
        }
    }
}

const MAX_INDEX: u32 = (1 << 27) - 1;

/// Hands out NIDs that neither side uses: from the top, where no writer has come to.
struct StandIns<'a> {
    local: &'a Inventory,
    remote: &'a Inventory,
    next: u32,
}

impl StandIns<'_> {
    fn take(&mut self, like: Nid) -> Nid {
        loop {
            let nid = Nid::new(NidType(like.kind().0), self.next);
            self.next = self.next.saturating_sub(1);
            let used = |i: &Inventory| i.rows.contains_key(&nid);
            if self.next == 0 || !(used(self.local) || used(self.remote)) {
                return nid;
            }
        }
    }
}

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
