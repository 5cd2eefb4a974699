//! Makes a package from a plan, sends it, and believes the answer only if it is the one that is
//! expected (R5). A package is kept ([`crate::outbox`]) from before it goes out until its answer is
//! stored.

use std::collections::{BTreeMap, BTreeSet};

use pst::inventory::Inventory;
use pst::{Nid, Pst};
use storage::Generation;

use crate::base::{Base, Renumbered as _, stand_ins};
use crate::change_list::{Action, Change, Counts, Fingerprint, ObjectKind};
use crate::compare::expected;
use crate::compile::compile_with;
use crate::database::{Drift, Head, Synced, SyncedRow};
use crate::destination::{ApplyAnswer, ApplyJob, ApplyOutcome};
use crate::details;
use crate::engine::Run;
use crate::error::{Result, SyncError};
use crate::outbox::Outstanding;
use crate::plan::Plan;

/// What became of a package.
pub(crate) enum Outcome {
    /// It was applied and verified; this is stored.
    Settled(Synced, Sent),
    /// Nothing was changed there: the destination holds something else than it was made for.
    WrongBase,
    /// Nothing was changed there: the package is refused for what it is.
    Refused(String),
    /// Nothing was changed there, and the same may succeed later.
    Busy(String),
}

/// What was sent.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) counts: Counts,
    pub(crate) package_bytes: u64,
    pub(crate) bytes_sent: u64,
    /// The answer is that of an earlier time.
    pub(crate) repeated: bool,
}

impl Sent {
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            counts: self.counts + other.counts,
            package_bytes: self.package_bytes.saturating_add(other.package_bytes),
            bytes_sent: self.bytes_sent.saturating_add(other.bytes_sent),
            repeated: other.repeated,
        }
    }
}

impl Run<'_, '_> {
    /// What was sent and not answered. If the file is another physical one by now, that would say nothing
    /// of it, and what the other file held is not to be sent any more.
    pub(crate) fn outstanding(&self, stored: Option<&Synced>) -> Result<Option<Outstanding>> {
        let name = self.destination.name();
        let found = self.database.outstanding(self.container, name, stored)?;
        let (ours, others) = match found {
            Some(out) if out.after.head.lineage != self.source.lineage => (None, true),
            found => (found, false),
        };
        if others {
            self.forget()?;
        }
        Ok(ours)
    }

    /// Sends what was not answered again. Where the destination does not know it any more (its records
    /// were lost, or it is reached another way) and yet holds exactly what was to result, it was applied.
    pub(crate) fn send_again(
        &mut self,
        out: Outstanding,
        stored: Option<&Synced>,
    ) -> Result<Outcome> {
        let container = self.container;
        tracing::info!(container, sequence = out.sequence, "sent again");
        let outcome = match self.ask(&out)? {
            ApplyAnswer::Busy(reason) => return Ok(Outcome::Busy(reason)),
            ApplyAnswer::Applied(outcome) => outcome,
            ApplyAnswer::WrongBase | ApplyAnswer::Refused(_) | ApplyAnswer::Failed(_) => {
                let there = self.destination.inventory(container)?;
                ApplyOutcome {
                    inventory_digest: there.inventory.digest(),
                    generation: there.generation,
                    nid_map: BTreeMap::new(),
                    bytes_sent: out.package.len() as u64,
                    repeated: true,
                }
            }
        };
        match self.settle(out, &outcome, stored, None) {
            // What is there is not what was to result: it is read, and compared, as ever.
            Err(SyncError::NotVerified) => Ok(Outcome::WrongBase),
            settled => settled,
        }
    }

    /// Sends a package for the first time: durable here before it goes out.
    pub(crate) fn deliver(
        &mut self,
        out: Outstanding,
        stored: Option<&Synced>,
        pst: &Pst,
    ) -> Result<Outcome> {
        // One without changes may be lost: sent again, it does nothing.
        if out.counts != Counts::default() {
            let name = self.destination.name();
            self.database
                .keep_outstanding(self.container, name, stored, &out)?;
        }
        match self.ask(&out)? {
            ApplyAnswer::Applied(outcome) => self.settle(out, &outcome, stored, Some(pst)),
            ApplyAnswer::WrongBase => {
                self.forget()?;
                Ok(Outcome::WrongBase)
            }
            ApplyAnswer::Refused(reason) => {
                self.forget()?;
                Ok(Outcome::Refused(reason))
            }
            ApplyAnswer::Busy(reason) => {
                // Nothing of it is there: the next run may have more to say.
                self.forget()?;
                Ok(Outcome::Busy(reason))
            }
            ApplyAnswer::Failed(message) => Err(SyncError::Destination {
                message,
                retry: false,
                offline: false,
            }),
        }
    }

    fn ask(&mut self, out: &Outstanding) -> Result<ApplyAnswer> {
        let job = ApplyJob {
            container: self.container,
            sequence: out.sequence,
            package: &out.package,
            base: out.base,
            expected: out.expected,
        };
        self.destination.apply(&job, self.progress)
    }

    fn forget(&self) -> Result<()> {
        let name = self.destination.name();
        self.database.settle_outstanding(self.container, name)
    }

    /// Holds the answer against what we expect (R5) and stores what is known from now on; `pst` is the
    /// container that the package was made from, where that is still at hand.
    fn settle(
        &self,
        out: Outstanding,
        outcome: &ApplyOutcome,
        stored: Option<&Synced>,
        pst: Option<&Pst>,
    ) -> Result<Outcome> {
        let sent = Sent {
            counts: out.counts,
            package_bytes: out.package.len() as u64,
            bytes_sent: outcome.bytes_sent,
            repeated: outcome.repeated,
        };
        let Some(mut after) = out.settled(outcome) else {
            self.forget()?;
            return Err(SyncError::NotVerified);
        };
        after.head.verified_at_ms = self.options.now_ms;
        let details = pst.map_or_else(BTreeMap::new, |pst| details::fill(pst, &mut after));
        let name = self.destination.name();
        self.database
            .store(self.container, name, stored, &after, &details)?;
        self.forget()?;
        Ok(Outcome::Settled(after, sent))
    }

    /// What a sequence is bound to: the package and the bytes that it is for. A package without changes
    /// is always the same, and what was answered to it once says nothing of what others did there since:
    /// it gets another number each time.
    fn bound_to(&self, plan: &Plan, package: &[u8], base: Generation) -> [u8; 32] {
        let epoch = if plan.changes.is_empty() {
            self.source.epoch
        } else {
            0
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&epoch.to_le_bytes());
        hasher.update(&base.len.to_le_bytes());
        hasher.update(&base.root);
        hasher.update(package);
        *hasher.finalize().as_bytes()
    }

    /// Compiles a plan into a package, with its sequence and what will be known after it.
    pub(crate) fn make(
        &mut self,
        pst: &Pst,
        base: &Base,
        plan: &Plan,
        local: &Inventory,
        stored: Option<&Synced>,
        whole: bool,
    ) -> Result<Made> {
        let there = base.inventory.renumbered(&base.remapped);
        let proposed = proposals(plan, &there, &base.remapped);
        let changes = translated(plan, base, &proposed);
        let mut patched = false;
        let (database, container, name) = (self.database, self.container, self.destination.name());
        let mut known = |nid: Nid, before: &Fingerprint| {
            let detail = || database.detail(container, name, nid, before);
            let detail = (!whole).then(detail).flatten();
            patched |= detail.is_some();
            Ok(detail)
        };
        let package = compile_with(pst, changes, &mut known)?.encode()?;
        let sequence = self
            .sequencer
            .next(self.bound_to(plan, &package, base.generation))
            .map_err(|e| {
                SyncError::Database(format!("the journal could not record the sequence: {e}"))
            })?;
        let head = Head {
            lineage: self.source.lineage,
            bid_next: pst.ndb().next_bid()?.0,
            epoch: self.source.epoch,
            generation: base.generation,
            sequence,
            verified_at_ms: 0,
        };
        let (mut after, proposed) = predict(base, plan, local, &proposed, head);
        after.keep_details(stored);
        let expected = after.digest_there();
        let out = Outstanding {
            sequence,
            package,
            base: base.generation,
            expected,
            counts: Counts::of(&plan.changes),
            after,
            proposed,
        };
        Ok(Made { out, patched })
    }
}

/// A package to send.
pub(crate) struct Made {
    pub(crate) out: Outstanding,
    /// Whether it patches any object.
    pub(crate) patched: bool,
}

impl Outstanding {
    /// What is known after this answer; `None` if it is not that of this package.
    fn settled(self, outcome: &ApplyOutcome) -> Option<Synced> {
        let mut after = self.after;
        for (nid, proposed) in &self.proposed {
            let given = outcome.nid_map.get(proposed).unwrap_or(proposed);
            if let Some(row) = after.rows.get_mut(nid) {
                row.remote_nid = *given;
            }
        }
        after.head.generation = outcome.generation;
        (after.digest_there() == outcome.inventory_digest).then_some(after)
    }
}

impl Synced {
    /// The digest of the inventory that the destination has in this state.
    fn digest_there(&self) -> [u8; 32] {
        self.there().renumbered(&self.remapped()).digest()
    }
}

/// NIDs to propose for added objects whose own number is taken there: what they propose must name
/// nothing else, since other entries refer to an added folder by it.
fn proposals(plan: &Plan, there: &Inventory, remapped: &BTreeMap<Nid, Nid>) -> BTreeMap<Nid, Nid> {
    let mut next: BTreeMap<u8, u32> = BTreeMap::new();
    let mut taken = |nid: &Nid| {
        let next = next.entry(nid.kind().0).or_default();
        *next = (*next).max(nid.index());
    };
    let added = |c: &&Change| matches!(c.action, Action::Add { .. }) && c.kind != ObjectKind::Raw;
    there.rows.keys().for_each(&mut taken);
    plan.changes
        .iter()
        .map(Change::nid)
        .for_each(|nid| taken(&nid));
    let mut out = BTreeMap::new();
    let deleted: BTreeSet<Nid> = plan
        .changes
        .iter()
        .filter(|c| matches!(c.action, Action::Delete { .. }))
        .map(|c| remapped.get(&c.nid()).copied().unwrap_or(c.nid()))
        .collect();
    for change in plan.changes.iter().filter(added) {
        let nid = change.nid();
        if there.rows.contains_key(&nid)
            && !deleted.contains(&nid)
            && let Some(next) = next.get_mut(&nid.kind().0)
        {
            *next = next.saturating_add(1);
            out.insert(nid, Nid::new(nid.kind(), *next));
        }
    }
    out
}

/// The changes in the NIDs of the destination, each with the object's NID here.
fn translated(plan: &Plan, base: &Base, proposed: &BTreeMap<Nid, Nid>) -> Vec<(Change, Nid)> {
    let to_remote = |nid: u32| {
        let other = proposed
            .get(&Nid(nid))
            .or_else(|| base.remapped.get(&Nid(nid)));
        other.map_or(nid, |n| n.0)
    };
    let changes = plan.changes.iter().map(|change| {
        let mut change = change.clone();
        let local = change.nid();
        match &mut change.action {
            Action::Add { parent, .. } => *parent = to_remote(*parent),
            Action::Move { from, to } => (*from, *to) = (to_remote(*from), to_remote(*to)),
            Action::Update { .. } | Action::Delete { .. } => {}
        }
        change.nid = match change.action {
            Action::Add { .. } => proposed.get(&local).copied().unwrap_or(local).0,
            _ => base.remapped.get(&local).copied().unwrap_or(local).0,
        };
        (change, local)
    });
    changes.collect()
}

/// What will be known once the plan is applied and every added object has the NID proposed for it; and
/// the NIDs proposed, of all added objects.
fn predict(
    base: &Base,
    plan: &Plan,
    local: &Inventory,
    proposed: &BTreeMap<Nid, Nid>,
    head: Head,
) -> (Synced, BTreeMap<Nid, Nid>) {
    let mut remapped = base.remapped.clone();
    let mut added = BTreeMap::new();
    for change in &plan.changes {
        let nid = change.nid();
        match change.action {
            Action::Add { .. } => {
                let given = proposed.get(&nid).copied().unwrap_or(nid);
                remapped.insert(nid, given);
                added.insert(nid, given);
            }
            Action::Delete { .. } => drop(remapped.remove(&nid)),
            _ => {}
        }
    }
    let now_there = expected(&base.inventory, &plan.changes, &BTreeMap::new());
    // What is only there must not keep a number that may be used here one day.
    let only_there: Vec<Nid> = now_there
        .rows
        .keys()
        .copied()
        .filter(|nid| !local.rows.contains_key(nid) && !remapped.contains_key(nid))
        .collect();
    let stands = stand_ins(&only_there, &[local, &now_there]);
    for (nid, stand_in) in &stands {
        remapped.insert(*stand_in, *nid);
    }
    let rows = now_there
        .renumbered(&stands)
        .rows
        .into_iter()
        .map(|(nid, there)| {
            let remote_nid = remapped.get(&nid).copied().unwrap_or(nid);
            let here = local.rows.get(&nid).cloned();
            let drift = here
                .as_ref()
                .filter(|h| h.parent != there.parent || h.fingerprint != there.fingerprint)
                .map(|_| Drift {
                    parent: there.parent,
                    fingerprint: there.fingerprint,
                });
            let row = SyncedRow {
                ours: here.is_some(),
                remote_nid,
                row: here.unwrap_or(there),
                drift,
                detailed: false,
            };
            (nid, row)
        })
        .collect();
    (Synced { head, rows }, added)
}
