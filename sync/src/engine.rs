//! One sync of one container to one destination, from snapshot to verified answer (DESIGN 6).
//!
//! ```text
//! snapshot -> local inventory -+
//!                              +-> compare -> change list + carrier -> destination
//! sync database (or the      --+                                          |
//! destination's inventory)                      expected digest == answer v
//!                                               sync database moves on, epoch is synced
//! ```
//!
//! One-way: the drive is the source. What others changed at the destination is drift: it is
//! reported and left alone unless the same object changed here. Deletes are sent only for objects
//! that the sync database, or the very bytes that both sides shared, prove to have been there (R3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pst::delta::{Trust, since};
use pst::inventory::Inventory;
use pst::{Bid, Nid, Pst};
use serde::{Deserialize, Serialize};
use storage::{RangeSet, ReadAt};

use crate::base::{Base, Renumbered as _, stand_ins};
use crate::change_list::{Action, Change, Counts, Fingerprint, ObjectKind};
use crate::compare::expected;
use crate::compile::{Details, compile_with};
use crate::database::Drift;
use crate::database::{Head, SyncDatabase, Synced, SyncedRow};
use crate::destination::{ApplyAnswer, ApplyJob, ApplyOutcome, Destination};
use crate::details;
use crate::error::{Result, SyncError};
use crate::plan::Plan;

/// Above this share of the objects, and at least [`MAX_DELETE_FLOOR`], deletes need a word of the user.
const MAX_DELETE_PERCENT: usize = 50;
/// Fewer deletes than this never need one.
const MAX_DELETE_FLOOR: usize = 10;

/// The frozen local side of a sync.
pub struct Source<'a> {
    /// The container at an accepted epoch.
    pub reader: Arc<dyn ReadAt>,
    /// Its lineage: changes whenever the file is another physical one.
    pub lineage: u64,
    /// The epoch of the snapshot.
    pub epoch: u64,
    /// Bytes written since the epoch that was last marked as synced, in any state.
    pub written: &'a RangeSet,
    /// Asked after the destination was read: does it still hold the very bytes that the local
    /// file started from? Only then is what is missing here known to have been deleted here.
    pub is_base: &'a dyn Fn() -> bool,
}

/// How the engine gets sequence numbers: durable before they are used, bound to a digest (R7).
pub trait Sequencer {
    /// The sequence for a package with this digest: a number not used before, or the number that
    /// this same digest was already given.
    ///
    /// # Errors
    /// The journal cannot be written.
    fn next(&mut self, digest: [u8; 32]) -> std::io::Result<u64>;
}

/// Choices for one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Send deletes even beyond the `max_delete` guard.
    pub allow_deletes: bool,
    /// Milliseconds since 1970 UTC, for the record of when it was verified.
    pub now_ms: u64,
}

/// How far a sync came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The destination re-read what it wrote and holds what we expect.
    Verified,
    /// The container is in use at the destination; nothing was changed there, try later.
    Deferred,
}

/// What one sync did; shown to users and printed with `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Path of the container on the share.
    pub container: String,
    /// Name of the destination.
    pub destination: String,
    /// How far it came.
    pub verdict: Verdict,
    /// What was sent.
    pub counts: Counts,
    /// Objects at the destination that others changed and that were left alone.
    pub drift: usize,
    /// Deletes not sent because the objects were not proven to be ours to delete.
    pub held_deletes: usize,
    /// Length of the container, bytes.
    pub container_bytes: u64,
    /// Length of the encoded package, bytes.
    pub package_bytes: u64,
    /// Bytes sent to the destination, as counted by the client.
    pub bytes_sent: u64,
    /// When the destination's answer was verified, milliseconds since 1970 UTC.
    pub verified_at_ms: u64,
    /// Why it is not verified, for users.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Syncs one container to one destination.
///
/// # Errors
/// See [`SyncError`]; the sync database and the destination are then as before, or the
/// destination has applied a package whose answer was lost, which the next run finds out.
pub fn sync_container(
    container: &str,
    source: &Source<'_>,
    destination: &dyn Destination,
    database: &SyncDatabase,
    sequencer: &mut dyn Sequencer,
    options: Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    let pst = Pst::open(Arc::clone(&source.reader))?;
    let stored = database.load(container, destination.name())?;
    // NIDs of another lineage say nothing about this one. And an epoch older than the one that was
    // synced: this side lost something, and what is missing here was not deleted here (R2).
    let before = stored
        .as_ref()
        .filter(|b| b.head.lineage == source.lineage && b.head.epoch <= source.epoch);
    if stored.is_some() && before.is_none() {
        tracing::warn!(
            container,
            "this side is another or older than what was synced"
        );
    }
    let local = local_inventory(&pst, source, before)?;
    let read = || Base::read(container, before, source.is_base, &local, destination);
    let mut base = match before {
        Some(synced) => Base::last_synced(synced),
        None => read()?,
    };
    // A wrong base is found out at most once here: the second answer is made from a fresh
    // inventory, and someone who changes the destination that fast needs another run.
    for attempt in 0..2 {
        base.set_aside_kept(&local);
        let plan = Plan::make(&base, &local);
        guard_deletes(&plan, &base, options)?;
        // Patches are made from hints: where the destination did not take them, objects go whole.
        let mut known = |nid: Nid, before: &Fingerprint| {
            let detail = || database.detail(container, destination.name(), nid, before);
            Ok((attempt == 0).then(detail).flatten())
        };
        let sent = send(
            &pst,
            container,
            &base,
            &plan,
            &mut known,
            destination,
            sequencer,
            progress,
        )?;
        let mut report = plan.report(container, destination.name(), &sent);
        report.container_bytes = source.reader.len().map_err(|e| pst::PstError::Io {
            offset: 0,
            source: e,
        })?;
        match &sent.answer {
            ApplyAnswer::Applied(outcome) => {
                let mut after =
                    verify(&base, &plan, &local, outcome, source, &pst, &sent, options)?;
                after.keep_details(stored.as_ref());
                let details = details::fill(&pst, &mut after);
                database.store(
                    container,
                    destination.name(),
                    stored.as_ref(),
                    &after,
                    &details,
                )?;
                report.bytes_sent = outcome.bytes_sent;
                report.verified_at_ms = options.now_ms;
                return Ok(report);
            }
            ApplyAnswer::Busy(reason) => {
                report.verdict = Verdict::Deferred;
                report.reason.clone_from(reason);
                return Ok(report);
            }
            ApplyAnswer::WrongBase if attempt == 0 => {
                tracing::info!(container, "the destination was changed by someone else");
                base = read()?;
            }
            ApplyAnswer::WrongBase => break,
        }
    }
    Err(SyncError::Destination {
        message: format!("{container} is being changed at the destination by someone else"),
        retry: true,
        offline: false,
    })
}

/// The local inventory: what the last sync knew, brought up to date by what was written since. Where
/// nothing is known of this lineage everything is read.
///
/// Reading the file costs what was written; the rows of the last sync are in memory already, and are
/// copied here.
fn local_inventory(pst: &Pst, source: &Source<'_>, before: Option<&Synced>) -> Result<Inventory> {
    let Some(synced) = before else {
        return Ok(Inventory::read(pst)?);
    };
    let mut known = synced.ours();
    let trust = Trust::Written {
        bid_next: Bid(synced.head.bid_next),
        ranges: source.written,
    };
    let delta = since(&known, pst, trust)?;
    tracing::debug!(reach = ?delta.reach, changes = delta.changes.len(), "local inventory");
    delta.apply(&mut known);
    Ok(known)
}

impl Plan {
    fn report(&self, container: &str, destination: &str, sent: &Sent) -> Report {
        Report {
            container: container.to_owned(),
            destination: destination.to_owned(),
            verdict: Verdict::Verified,
            counts: Counts::of(&self.changes),
            drift: self.drift,
            held_deletes: self.held_deletes,
            container_bytes: 0,
            package_bytes: sent.package_bytes,
            bytes_sent: 0,
            verified_at_ms: 0,
            reason: String::new(),
        }
    }
}

fn guard_deletes(plan: &Plan, base: &Base, options: Options) -> Result<()> {
    let deletes = Counts::of(&plan.changes).deleted;
    let objects = base.inventory.rows.len();
    if !options.allow_deletes
        && deletes >= MAX_DELETE_FLOOR
        && deletes * 100 > objects * MAX_DELETE_PERCENT
    {
        return Err(SyncError::TooManyDeletes { deletes, objects });
    }
    Ok(())
}

struct Sent {
    answer: ApplyAnswer,
    package_bytes: u64,
    sequence: u64,
    /// Local NID to the NID proposed for it, where they differ.
    proposed: BTreeMap<Nid, Nid>,
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

#[allow(clippy::too_many_arguments)]
fn send(
    pst: &Pst,
    container: &str,
    base: &Base,
    plan: &Plan,
    known: &mut Details<'_>,
    destination: &dyn Destination,
    sequencer: &mut dyn Sequencer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Sent> {
    let there = base.inventory.renumbered(&base.remapped);
    let proposed = proposals(plan, &there, &base.remapped);
    let to_remote = |nid: u32| {
        let other = proposed
            .get(&Nid(nid))
            .or_else(|| base.remapped.get(&Nid(nid)));
        other.map_or(nid, |n| n.0)
    };
    let changes = plan
        .changes
        .iter()
        .map(|change| {
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
        })
        .collect::<Vec<_>>();
    let plain = changes
        .iter()
        .map(|(change, _)| change.clone())
        .collect::<Vec<_>>();
    let expected = expected(&there, &plain, &BTreeMap::new());
    let package = compile_with(pst, changes, known)?.encode()?;
    let sequence = sequencer
        .next(*blake3::hash(&package).as_bytes())
        .map_err(|e| {
            SyncError::Database(format!("the journal could not record the sequence: {e}"))
        })?;
    let job = ApplyJob {
        container,
        sequence,
        package: &package,
        base: base.generation,
        expected: expected.digest(),
    };
    let answer = destination.apply(&job, progress)?;
    Ok(Sent {
        answer,
        package_bytes: package.len() as u64,
        sequence,
        proposed,
    })
}

/// Holds the answer against what we expect (R5) and makes the state to remember.
#[allow(clippy::too_many_arguments)]
fn verify(
    base: &Base,
    plan: &Plan,
    local: &Inventory,
    outcome: &ApplyOutcome,
    source: &Source<'_>,
    pst: &Pst,
    sent: &Sent,
    options: Options,
) -> Result<Synced> {
    let mut remapped = base.remapped.clone();
    for change in &plan.changes {
        match change.action {
            Action::Add { .. } => {
                let nid = change.nid();
                let proposed = sent.proposed.get(&nid).copied().unwrap_or(nid);
                let given = outcome.nid_map.get(&proposed).copied().unwrap_or(proposed);
                if given == nid {
                    remapped.remove(&nid);
                } else {
                    remapped.insert(nid, given);
                }
            }
            Action::Delete { .. } => drop(remapped.remove(&change.nid())),
            _ => {}
        }
    }
    let now_there = expected(&base.inventory, &plan.changes, &BTreeMap::new());
    if now_there.renumbered(&remapped).digest() != outcome.inventory_digest {
        return Err(SyncError::NotVerified);
    }
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
    Ok(Synced {
        head: Head {
            lineage: source.lineage,
            bid_next: pst.ndb().next_bid()?.0,
            epoch: source.epoch,
            generation: outcome.generation,
            sequence: sent.sequence,
            verified_at_ms: options.now_ms,
        },
        rows,
    })
}
