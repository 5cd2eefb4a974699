//! Syncs the containers of a drive: finds a consistent moment, runs the engine, marks the epoch.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sync::{
    Destination as _, Options, Report, Sequencer, Source, SyncDatabase, SyncError, Verdict,
    sync_container,
};
use vfs::{ContainerStatus, Drive, PushOutcome, Snapshot};

use super::place::{Choice, OwnCopy, Placed};
use super::validator::whole_though_abandoned;
use crate::control::{Event, FileOutcome, FileReport, Progress};
use crate::error::UserError;

/// How long a sync that was asked for looks for a consistent moment.
const MOMENT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// A file that was not written for so long, or that nobody has open, rests.
const RESTS: Duration = Duration::from_secs(5);

/// The engine with what it works on.
pub struct Syncer {
    drive: Arc<Drive>,
    destination: Placed,
    /// Where the destination finds the drive's own copy of what is synced.
    own: Arc<Mutex<Option<OwnCopy>>>,
    database: SyncDatabase,
    /// One sync at a time; also what went wrong last, by path.
    failures: Mutex<HashMap<String, UserError>>,
    /// Whether the destination answered when it was last asked.
    reachable: Mutex<Option<bool>>,
    running: Mutex<()>,
}

impl Syncer {
    /// Syncs the containers of `drive` to `destination`.
    pub fn new(
        drive: Arc<Drive>,
        destination: Placed,
        own: Arc<Mutex<Option<OwnCopy>>>,
        database: SyncDatabase,
    ) -> Self {
        Self {
            drive,
            destination,
            own,
            database,
            failures: Mutex::default(),
            reachable: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// When the container was last verified at its destination.
    pub fn verified_at(&self, container: &ContainerStatus) -> Option<Timestamp> {
        let path = container.share_path.as_deref()?;
        let head = self.database.head(path, self.destination.name()).ok()??;
        let ms = i64::try_from(head.verified_at_ms).ok()?;
        Timestamp::from_millisecond(ms).ok()
    }

    /// What went wrong with the file's last sync, if its last one failed.
    pub fn failure(&self, path: &str) -> Option<UserError> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
            .cloned()
    }

    /// Whether the destination answered when it was last asked; `None` before the first time.
    pub fn reachable(&self) -> Option<bool> {
        *self
            .reachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs one container to the verified end.
    pub fn sync(
        &self,
        container: &ContainerStatus,
        allow_deletes: bool,
        progress: &dyn Progress,
    ) -> FileReport {
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let tried = self.try_sync(container, allow_deletes, progress);
        let answered = match &tried {
            Ok(_) | Err(Failure::Deferred(_)) => Some(true),
            Err(Failure::Sync(SyncError::Destination { offline, .. })) => Some(!offline),
            Err(_) => None,
        };
        if answered.is_some() {
            *self
                .reachable
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = answered;
        }
        let report = match tried {
            Ok(report) => report,
            Err(error) => FileReport {
                outcome: outcome_of(&error),
                error: Some(explain(&container.path, &error)),
                ..empty_report(container)
            },
        };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match &report.error {
            Some(error) if report.outcome == FileOutcome::Failed => {
                tracing::warn!(container = container.path, error = %error.message, "not synced");
                failures.insert(container.path.clone(), error.clone());
            }
            _ => drop(failures.remove(&container.path)),
        }
        report
    }

    fn try_sync(
        &self,
        container: &ContainerStatus,
        allow_deletes: bool,
        progress: &dyn Progress,
    ) -> Result<FileReport, Failure> {
        let path = container.path.as_str();
        let at = container.share_path.as_deref().ok_or(Failure::NotOnShare)?;
        if container.in_doubt {
            return Err(Failure::InDoubt);
        }
        let drive = &self.drive;
        if !container.fully_cached
            && let Some(outcome) = drive.part_ways(path, &today(), &host())?
        {
            return Ok(push_report(container, &outcome));
        }
        let snapshot = self.moment(path, progress)?;
        if container.attached && is_physical(container) {
            let outcome = drive.push_epoch(path, snapshot, &today(), &host())?;
            return Ok(push_report(container, &outcome));
        }
        // What is passed through to the share now is written there by programs, beneath any change of ours.
        // It was opened meanwhile: then there is nothing that the share lacks.
        if self.drive.file_status(path)?.passed_through {
            return Err(Failure::PassedThrough);
        }
        let _own = self.lend(at, &snapshot);
        let is_base = || {
            snapshot.attached
                && !snapshot.flipped
                && snapshot.attached_stamp.is_some()
                && drive.share_stamp(at).ok() == snapshot.attached_stamp
        };
        let source = Source {
            reader: Arc::clone(&snapshot.reader),
            lineage: snapshot.lineage,
            epoch: snapshot.epoch,
            written: &snapshot.written,
            written_since: snapshot.written_since,
            is_base: &is_base,
        };
        let mut sequencer = Journaled { drive, path };
        let options = Options {
            allow_deletes,
            now_ms: now_ms(),
        };
        let mut sent = |done: u64, total: u64| {
            progress.event(Event::Progress {
                phase: "upload".to_owned(),
                path: Some(path.to_owned()),
                done,
                total: Some(total),
                unit: "bytes".to_owned(),
            });
        };
        let report = sync_container(
            at,
            &source,
            &self.destination,
            &self.database,
            &mut sequencer,
            options,
            &mut sent,
        )?;
        if report.verdict == Verdict::Deferred {
            return Err(Failure::Deferred(report.reason));
        }
        // The share's file now holds the same objects in other bytes.
        drive.mark_synced(path, snapshot.epoch, true)?;
        tracing::info!(
            container = path,
            epoch = snapshot.epoch,
            "synced and verified"
        );
        Ok(file_report(container, &report))
    }

    /// Which way a container's changes would take now.
    pub fn choose(&self, container: &ContainerStatus) -> Choice {
        let at = container.share_path.as_deref().unwrap_or_default();
        self.destination.choose(at)
    }

    /// Lends the drive's own copy to the destination, which need not read over the link what is the same.
    fn lend(&self, at: &str, snapshot: &Snapshot) -> Lent<'_> {
        let stamp = snapshot.attached_stamp;
        let same_as = stamp.filter(|_| snapshot.attached && !snapshot.flipped);
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(OwnCopy {
            container: at.to_owned(),
            reader: Arc::clone(&snapshot.reader),
            written: snapshot.written.clone(),
            same_as: same_as.map(|stamp| (stamp, snapshot.dirty.clone())),
        });
        Lent(&self.own)
    }

    /// Brings an opaque file's own bytes to the share.
    pub fn push(&self, file: &ContainerStatus) -> FileReport {
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match self.drive.push_opaque(&file.path, &today(), &host()) {
            Ok(outcome) => push_report(file, &outcome),
            Err(error) => {
                let failure = Failure::Drive(error);
                FileReport {
                    outcome: outcome_of(&failure),
                    error: Some(explain(&file.path, &failure)),
                    ..empty_report(file)
                }
            }
        }
    }

    /// A frozen view at a moment at which the container is whole.
    fn moment(&self, path: &str, progress: &dyn Progress) -> Result<Snapshot, Failure> {
        let deadline = Instant::now() + MOMENT;
        loop {
            let why = match self.drive.consistent_snapshot(path)? {
                Ok(snapshot) => return Ok(snapshot),
                Err(why) => why,
            };
            let status = self.drive.file_status(path)?;
            if status.open_handles == 0 || status.quiet_for.is_none_or(|quiet| quiet >= RESTS) {
                let snapshot = self.drive.snapshot(path)?;
                match whole_though_abandoned(&snapshot.reader, &snapshot.written) {
                    Ok(()) => return Ok(snapshot),
                    Err(why) => return Err(Failure::NoMoment(why)),
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::NoMoment(why));
            }
            progress.event(Event::Alive {});
            std::thread::sleep(LOOK);
        }
    }
}

/// Until when the destination has the drive's own copy.
struct Lent<'a>(&'a Mutex<Option<OwnCopy>>);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Sequence numbers from the drive's journal, durable before they are used (R7).
struct Journaled<'a> {
    drive: &'a Drive,
    path: &'a str,
}

impl Sequencer for Journaled<'_> {
    fn next(&mut self, digest: [u8; 32]) -> io::Result<u64> {
        self.drive
            .next_sequence(self.path, digest)
            .map_err(io::Error::from)
    }
}

/// Why a container was not synced.
enum Failure {
    /// It was only made here, and the share has not seen it.
    NotOnShare,
    /// Calls to the share were left behind that may still take effect.
    InDoubt,
    /// Programs write it on the share.
    PassedThrough,
    /// No consistent moment was found.
    NoMoment(String),
    /// Another program holds the container at the destination.
    Deferred(String),
    Drive(vfs::Error),
    Sync(SyncError),
}

impl From<vfs::Error> for Failure {
    fn from(error: vfs::Error) -> Self {
        Self::Drive(error)
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        Self::Sync(error)
    }
}

const fn outcome_of(failure: &Failure) -> FileOutcome {
    match failure {
        Failure::NoMoment(_)
        | Failure::Deferred(_)
        | Failure::InDoubt
        | Failure::PassedThrough
        | Failure::NotOnShare => FileOutcome::Pending,
        Failure::Drive(vfs::Error::NotCached(_) | vfs::Error::Link(_)) => FileOutcome::Offline,
        Failure::Sync(SyncError::Destination { offline: true, .. }) => FileOutcome::Offline,
        Failure::Drive(_) | Failure::Sync(_) => FileOutcome::Failed,
    }
}

fn explain(path: &str, failure: &Failure) -> UserError {
    match failure {
        Failure::NotOnShare => UserError::new(
            "not-on-share",
            format!("{path} was made on the drive and the share has not seen it yet"),
            "go online with `pstsyncd mode online`, then sync again",
        ),
        Failure::InDoubt => UserError::new(
            "share-in-doubt",
            format!("calls to the share for {path} were never answered and may still take effect"),
            "wait until the share answers again, then sync again",
        ),
        Failure::PassedThrough => UserError::new(
            "passed-through",
            format!("{path} is open, and what programs write to it goes to the share itself"),
            "sync again when it is closed",
        ),
        Failure::NoMoment(why) => UserError::new(
            "no-consistent-moment",
            format!("{path} has no consistent moment to sync from ({why})"),
            "let the mail program finish or close it, then sync again",
        ),
        Failure::Deferred(why) => UserError::new(
            "in-use-at-destination",
            why.clone(),
            "close it there, then sync again; everything is kept in the journal",
        ),
        Failure::Drive(error) => UserError::new(
            "drive",
            format!("{path}: {error}"),
            "see `pstsyncd status`; everything is kept in the journal",
        ),
        Failure::Sync(error) => UserError::new(
            "sync",
            match error.to_string() {
                said if said.contains(path) => said,
                said => format!("{path}: {said}"),
            },
            if error.retryable() {
                "sync again later; everything is kept in the journal"
            } else {
                "look at the file with `pstsyncd pst check`; everything is kept in the journal"
            },
        ),
    }
}

fn empty_report(container: &ContainerStatus) -> FileReport {
    FileReport {
        path: container.path.clone(),
        outcome: FileOutcome::Failed,
        added: 0,
        updated: 0,
        moved: 0,
        deleted: 0,
        drift: 0,
        held_deletes: 0,
        shipped_bytes: 0,
        file_bytes: container.size,
        verified_at: None,
        error: None,
    }
}

fn file_report(container: &ContainerStatus, report: &Report) -> FileReport {
    let counts = report.counts;
    FileReport {
        outcome: FileOutcome::Synced,
        added: counts.added as u64,
        updated: counts.updated as u64,
        moved: counts.moved as u64,
        deleted: counts.deleted as u64,
        drift: report.drift as u64,
        held_deletes: report.held_deletes as u64,
        shipped_bytes: report.bytes_sent,
        file_bytes: report.container_bytes,
        verified_at: i64::try_from(report.verified_at_ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        ..empty_report(container)
    }
}

/// The share may be in the middle of the application's own commit, or holds nothing yet: then
/// bytes are sent, not objects (DESIGN 6).
pub fn is_physical(container: &ContainerStatus) -> bool {
    container.flipped
        || container
            .stamp
            .is_none_or(|stamp| stamp.size < SMALLEST_PST)
}

/// Bytes of a PST's header: a shorter file on the share holds no objects.
const SMALLEST_PST: u64 = 564;

fn push_report(file: &ContainerStatus, outcome: &PushOutcome) -> FileReport {
    let report = FileReport {
        verified_at: Some(Timestamp::now()),
        ..empty_report(file)
    };
    match outcome {
        PushOutcome::Clean => FileReport {
            outcome: FileOutcome::Unchanged,
            ..report
        },
        PushOutcome::Pushed(bytes) => FileReport {
            outcome: FileOutcome::Synced,
            shipped_bytes: *bytes,
            ..report
        },
        PushOutcome::Partial { kept_as, missing } => FileReport {
            outcome: FileOutcome::Conflict,
            error: Some(UserError::new(
                "changed-on-both-sides",
                format!(
                    "{} was changed on the share too, and {missing} bytes of yours were not here; what was \
                     is kept as {kept_as}",
                    file.path
                ),
                "take what you need from it; the ranges that are missing are listed beside it, in the file \
                 that ends with .holes",
            )),
            ..report
        },
        PushOutcome::Conflict(kept_as) => FileReport {
            outcome: FileOutcome::Conflict,
            error: Some(UserError::new(
                "changed-on-both-sides",
                format!(
                    "{} was changed on the share too; yours is kept as {kept_as}",
                    file.path
                ),
                "compare the two files and remove the one you do not need",
            )),
            ..report
        },
    }
}

/// How our side of a conflict is named.
pub fn today() -> String {
    Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// This machine's name, for the same.
pub fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}
