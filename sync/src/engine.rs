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

use std::sync::Arc;

use pst::delta::{Trust, since};
use pst::inventory::Inventory;
use pst::{Bid, Pst};
use serde::{Deserialize, Serialize};
use storage::{RangeSet, ReadAt};

use crate::base::Base;
use crate::change_list::Counts;
use crate::database::{SyncDatabase, Synced};
use crate::delivery::{Outcome, Sent};
use crate::destination::Destination;
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
    /// Bytes written since the epoch `written_since`, in any state.
    pub written: &'a RangeSet,
    /// Up to and with this epoch, what was written may be missing in `written`. Rows of an older
    /// epoch are not brought up to date by it: everything is read.
    pub written_since: u64,
    /// Asked after the destination was read: does it still hold the very bytes that the local
    /// file started from? Only then is what is missing here known to have been deleted here.
    pub is_base: &'a dyn Fn() -> bool,
}

/// How the engine gets sequence numbers: durable before they are used, bound to a digest (R7).
pub trait Sequencer {
    /// The sequence for a package with this digest (it stands for the package and the bytes that it
    /// is for): a number not used before, or the number that this same digest was already given, if
    /// no answer to that was believed yet.
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

/// Syncs one container to one destination. What was sent before and not answered is sent again first,
/// with the same sequence and the same bytes, and what is new is made against its answer.
///
/// # Errors
/// See [`SyncError`]; the sync database and the destination are then as before, or the
/// destination has applied a package whose answer was lost, which the next run asks for.
pub fn sync_container(
    container: &str,
    source: &Source<'_>,
    destination: &dyn Destination,
    database: &SyncDatabase,
    sequencer: &mut dyn Sequencer,
    options: Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    Run {
        container,
        source,
        destination,
        database,
        sequencer,
        options,
        progress,
    }
    .sync()
}

/// One run of [`sync_container`].
pub(crate) struct Run<'a, 'p> {
    pub(crate) container: &'a str,
    pub(crate) source: &'a Source<'a>,
    pub(crate) destination: &'a dyn Destination,
    pub(crate) database: &'a SyncDatabase,
    pub(crate) sequencer: &'a mut dyn Sequencer,
    pub(crate) options: Options,
    pub(crate) progress: &'a mut (dyn FnMut(u64, u64) + 'p),
}

impl Run<'_, '_> {
    fn sync(mut self) -> Result<Report> {
        let (container, source) = (self.container, self.source);
        let pst = Pst::open(Arc::clone(&source.reader))?;
        let mut report = self.report()?;
        let mut stored = self.database.load(container, self.destination.name())?;
        let mut again = Sent::default();
        if let Some(out) = self.outstanding(stored.as_ref())? {
            match self.send_again(out, stored.as_ref())? {
                Outcome::Settled(synced, sent) => {
                    stored = Some(synced);
                    again = sent;
                }
                Outcome::Busy(reason) => return Ok(report.deferred(reason)),
                // It never arrived, or cannot: what it held is found by comparing, as ever.
                Outcome::WrongBase | Outcome::Refused(_) => {}
            }
        }
        // The answer to what was asked before tells what was there then: what is there now is asked
        // again. (Only with a database that was lost are there such answers here.)
        for _ in 0..2 {
            match self.round(&pst, stored.as_ref(), &mut report)? {
                Outcome::Settled(synced, sent) if sent.repeated => {
                    stored = Some(synced);
                    again = again.and(&sent);
                }
                Outcome::Settled(_, sent) => {
                    let all = again.and(&sent);
                    report.verdict = Verdict::Verified;
                    report.counts = all.counts;
                    report.package_bytes = all.package_bytes;
                    report.bytes_sent = all.bytes_sent;
                    report.verified_at_ms = self.options.now_ms;
                    return Ok(report);
                }
                Outcome::Busy(reason) => return Ok(report.deferred(reason)),
                Outcome::WrongBase => break,
                Outcome::Refused(message) => {
                    return Err(SyncError::Destination {
                        message,
                        retry: false,
                        offline: false,
                    });
                }
            }
        }
        Err(SyncError::Destination {
            message: format!("{container} is being changed at the destination by someone else"),
            retry: true,
            offline: false,
        })
    }

    /// Compares, and sends what differs.
    fn round(
        &mut self,
        pst: &Pst,
        stored: Option<&Synced>,
        report: &mut Report,
    ) -> Result<Outcome> {
        let (container, source) = (self.container, self.source);
        // NIDs of another lineage say nothing about this one. And an epoch older than the one that was
        // synced: this side lost something, and what is missing here was not deleted here (R2).
        let before =
            stored.filter(|b| b.head.lineage == source.lineage && b.head.epoch <= source.epoch);
        if stored.is_some() && before.is_none() {
            tracing::warn!(
                container,
                "this side is another or older than what was synced"
            );
        }
        let local = local_inventory(pst, source, before)?;
        let destination = self.destination;
        let read = || Base::read(container, before, source.is_base, &local, destination);
        let mut base = match before {
            Some(synced) => Base::last_synced(synced),
            None => read()?,
        };
        // A wrong base is found out at most once here: the second answer is made from a fresh
        // inventory, and someone who changes the destination that fast needs another run. Patches are
        // made from hints: where the destination did not take them, objects go whole.
        let (mut read_again, mut whole) = (false, false);
        loop {
            base.set_aside_kept(&local);
            let plan = Plan::make(&base, &local);
            guard_deletes(&plan, &base, self.options)?;
            (report.drift, report.held_deletes) = (plan.drift, plan.held_deletes);
            let made = self.make(pst, &base, &plan, &local, stored, whole)?;
            match self.deliver(made.out, stored, pst)? {
                Outcome::WrongBase if !read_again => {
                    tracing::info!(container, "the destination was changed by someone else");
                    (read_again, whole) = (true, true);
                    base = read()?;
                }
                Outcome::Refused(reason) if made.patched => {
                    tracing::warn!(container, reason, "a package with patches was refused");
                    whole = true;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    fn report(&self) -> Result<Report> {
        let container_bytes = self.source.reader.len();
        Ok(Report {
            container: self.container.to_owned(),
            destination: self.destination.name().to_owned(),
            verdict: Verdict::Deferred,
            counts: Counts::default(),
            drift: 0,
            held_deletes: 0,
            container_bytes: container_bytes.map_err(|e| pst::PstError::Io {
                offset: 0,
                source: e,
            })?,
            package_bytes: 0,
            bytes_sent: 0,
            verified_at_ms: 0,
            reason: String::new(),
        })
    }
}

/// The local inventory: what the last sync knew, brought up to date by what was written since. Where
/// nothing is known of this lineage, or not everything that was written since, everything is read.
///
/// Reading the file costs what was written; the rows of the last sync are in memory already, and are
/// copied here.
fn local_inventory(pst: &Pst, source: &Source<'_>, before: Option<&Synced>) -> Result<Inventory> {
    let Some(synced) = before else {
        return Ok(Inventory::read(pst)?);
    };
    if synced.head.epoch < source.written_since {
        return Ok(Inventory::read(pst)?);
    }
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

impl Report {
    fn deferred(mut self, reason: String) -> Self {
        self.reason = reason;
        self
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
