//! The drive itself: vfs over the share, cache and journal, and the sync engine beside it.

mod errors;
mod plan;
mod refused;
mod standing;
mod ways;
mod work;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sync::SyncDatabase;
use sync::kv::KvStore;
use sync::wire::ClientId;
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::share::dir::DirShare;
use vfs::share::limited::LimitedShare;
use vfs::share::measured::MeasuredShare;
use vfs::{Drive, DriveConfig, Reintegrated, ReintegratedOutcome, Share};

use super::auto::Auto;
use super::governor::{Governed, Governor, first_state};
use super::limiter::Limiter;
use super::paths::StateDir;
use super::place::Known;
use super::syncer::{Syncer, host, today};
use super::validator::PstValidator;
use super::{DriveOptions, End, Stop, volumes};
use crate::control::protocol::MAX_FILES;
use crate::control::{
    DriveControl, DriveStatus, Event, Explanation, LinkStatus, Policy, Progress, State, SyncPlan,
    SyncReport, UnmountReport,
};
use crate::error::UserError;
use crate::exit::ExitStatus;
use crate::link::LinkMeter;
use crate::policy::cap::Cap;
use errors::{not_mounted, not_opened, not_unmounted, stuck};

/// The destination's name in the sync database: the share, by whatever way it is reached.
const SHARE: &str = "share";

/// Mounts the drive. When this returns `Ok` it answers.
///
/// # Errors
/// The share, the state directory or FUSE refuses.
pub fn open(
    options: &DriveOptions,
    state: StateDir,
    stop: Stop,
) -> Result<Arc<dyn DriveControl>, UserError> {
    let in_state = |name: &str| state.path().join(name);
    let meter = Arc::new(LinkMeter::default());
    let governor = Arc::new(Governor::new(
        options.policy,
        options.rules.clone(),
        &in_state("states"),
        Arc::clone(&meter),
        crate::link::hints::of_this_system(),
    )?);
    let patterns = options.patterns.clone().settle(state.path())?;
    let containers = patterns.monitor.clone().unwrap_or_default();
    let share: Arc<dyn Share> = match &options.smb {
        Some(smb) => Arc::new(smb.open(&containers)?),
        None => Arc::new(
            DirShare::open(&options.share)
                .map_err(|e| UserError::file("open the share", &options.share, &e))?,
        ),
    };
    let limiter = Arc::new(Limiter::new(
        options.limit,
        options.limit_rules.clone(),
        &in_state("states"),
    )?);
    governor.limited_by(Arc::clone(&limiter));
    // The only one that is handed out: nothing goes past the limit. What is measured is the link itself.
    let share = MeasuredShare::new(share, meter);
    let share: Arc<dyn Share> = Arc::new(LimitedShare::new(share, limiter.limit()));
    let mut config = DriveConfig::new(Arc::clone(&share), in_state("drive"));
    config.state = match first_state(governor.policy()) {
        State::Online => vfs::State::Online,
        State::Cached => vfs::State::Cached,
        State::Offline => vfs::State::Offline,
    };
    config.cache_size = options.cache_size;
    if let Some(monitor) = patterns.monitor {
        config.containers = monitor;
    }
    config.pins = patterns.pin;
    config.fill_rate = options.fill_rate;
    config.removable = options.removable.then(vfs::Removable::here);
    config.validator = Some(Arc::new(PstValidator));
    let placed = in_state("placed");
    let known = Known::open(placed.clone(), !options.removable)
        .map_err(|e| UserError::file("keep what is known of containers in", &placed, &e))?;
    let known = Arc::new(known);
    config.leaves = Some(Arc::clone(&known) as Arc<dyn vfs::KnownLeaves>);
    let drive = Drive::open(config).map_err(|e| not_opened(&e, state.path()))?;
    if options.removable {
        volumes::remember(&options.share, state.path());
    }

    let store = KvStore::open(&in_state("sync.db")).map_err(|e| {
        UserError::new(
            "sync-database",
            format!("the sync database does not open: {e}"),
            "check the disk of the state directory, then mount again",
        )
    })?;
    if let Some(old) = store.quarantined() {
        tracing::warn!(old = %old.display(), "the sync database was damaged; it is rebuilt");
    }
    let client = client_id(&in_state("client-id"))
        .map_err(|e| UserError::file("keep the client's id in", &in_state("client-id"), &e))?;
    let limit = limiter.limit();
    let (destination, own) =
        ways::of(options, state.path(), client, &share, &known, &drive, limit)?;
    let syncer = Syncer::new(
        Arc::clone(&drive),
        destination,
        own,
        SyncDatabase::new(store),
    );

    let root = rustix::process::geteuid().is_root();
    let fuse = MountOptions {
        allow_other: options.allow_other,
        // Whoever else may enter is held to the mode bits.
        default_permissions: options.allow_other || root,
        ..MountOptions::default()
    };
    let handle = mount(Arc::clone(&drive), &options.mountpoint, &fuse)
        .map_err(|e| not_mounted(&options.mountpoint, &e))?;
    let mounted = Arc::new(Mounted {
        mountpoint: options.mountpoint.display().to_string(),
        share: options.share.display().to_string(),
        agent_url: options.agent.as_ref().map(|a| a.url.clone()),
        governor,
        limiter,
        handle: Mutex::new(Some(handle)),
        drive,
        syncer,
        state,
        auto: Arc::new(Auto::new(options.auto_sync)),
    });
    watch(&mounted, stop)?;
    mounted.auto.start(Arc::downgrade(&mounted))?;
    mounted.governor.start(Arc::downgrade(&mounted), share)?;
    Ok(mounted)
}

struct Mounted {
    mountpoint: String,
    share: String,
    agent_url: Option<String>,
    governor: Arc<Governor>,
    limiter: Arc<Limiter>,
    handle: Mutex<Option<MountHandle>>,
    drive: Arc<Drive>,
    syncer: Syncer,
    state: StateDir,
    auto: Arc<Auto>,
}

/// Tells the daemon when someone else unmounts the drive.
fn watch(mounted: &Arc<Mounted>, stop: Stop) -> Result<(), UserError> {
    let weak = Arc::downgrade(mounted);
    let look = move || {
        while let Some(mounted) = weak.upgrade() {
            match mounted
                .handle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_ref()
            {
                Some(handle) if handle.is_mounted() => {}
                Some(_) => return stop.because(End::MountGone),
                None => return,
            }
            drop(mounted);
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    std::thread::Builder::new()
        .name("mount-watch".into())
        .spawn(look)
        .map(drop)
        .map_err(|e| {
            UserError::new(
                "threads",
                format!("no thread could be started: {e}"),
                "try again",
            )
        })
}

impl Mounted {
    /// Brings changes of files and folders to the share.
    /// `again`: also what the share refused before.
    fn reintegrate(&self, again: bool, progress: &dyn Progress) -> Result<(), UserError> {
        let done = if again {
            self.drive.reintegrate(&today(), &host())
        } else {
            self.drive.reintegrate_new(&today(), &host())
        };
        match done {
            Ok(done) => done.iter().for_each(|r| log_reintegrated(r, progress)),
            Err(vfs::Error::Link(why)) => {
                return Err(UserError::new(
                    "share-unreachable",
                    format!("the share {} cannot be reached: {why}", self.share),
                    "sync again when it is back; everything is kept in the journal",
                )
                .with_exit(ExitStatus::Offline));
            }
            Err(error) => {
                return Err(UserError::new(
                    "tree",
                    format!("changes of files and folders could not be brought over: {error}"),
                    "see `pstsyncd status`; everything is kept in the journal",
                ));
            }
        }
        Ok(())
    }
}

impl Governed for Mounted {
    fn govern(&self, state: vfs::State) {
        self.drive.set_state(state);
    }
}

impl DriveControl for Mounted {
    fn status(&self) -> Result<DriveStatus, UserError> {
        Ok(self.standing())
    }

    fn set_mode(&self, policy: Policy, seconds: Option<u64>) -> Result<DriveStatus, UserError> {
        let time = seconds.map(Duration::from_secs);
        self.governor.set(policy, time, self)?;
        self.status()
    }

    fn set_limit(
        &self,
        limit: Option<Cap>,
        seconds: Option<u64>,
    ) -> Result<DriveStatus, UserError> {
        self.limiter.set(limit, seconds.map(Duration::from_secs));
        self.status()
    }

    fn explain(&self) -> Result<Explanation, UserError> {
        Ok(self.governor.explain())
    }

    fn link(&self) -> Result<LinkStatus, UserError> {
        Ok(self.governor.link())
    }

    fn plan(&self) -> Result<SyncPlan, UserError> {
        Ok(self.planned())
    }

    fn sync_now(
        &self,
        path: Option<&str>,
        allow_deletes: bool,
        progress: &dyn Progress,
    ) -> Result<SyncReport, UserError> {
        if self.drive.state() == vfs::State::Offline {
            return Err(UserError::new(
                "offline",
                "the drive is offline by hand, so nothing can be synced",
                "allow the link again with `pstsyncd mode cached` or `pstsyncd mode online`",
            )
            .with_exit(ExitStatus::Offline));
        }
        // First the tree, so that every file has its place on the share.
        self.reintegrate(true, progress)?;
        let mut waiting = self.waiting();
        let mut opaque = self.waiting_opaque();
        if let Some(path) = path {
            let wanted = self.drive.file_status(path).map_err(|e| {
                UserError::new("no-such-file", e.to_string(), "name a file on the drive")
            })?;
            waiting.retain(|c| c.path == wanted.path);
            opaque.retain(|f| f.path == wanted.path);
        }
        let mut report = SyncReport::default();
        for container in &waiting {
            report
                .files
                .push(self.syncer.sync(container, allow_deletes, progress));
        }
        for file in &opaque {
            report.files.push(self.syncer.push(file));
        }
        for refused in self.drive.refused_changes() {
            report.files.push(refused::report(&refused));
        }
        // Whatever went wrong is said first, should the list be cut.
        report
            .files
            .sort_by_key(|f| std::cmp::Reverse(f.outcome.exit()));
        self.auto.by_hand();
        report.more_files = report.files.len().saturating_sub(MAX_FILES) as u64;
        report.files.truncate(MAX_FILES);
        Ok(report)
    }

    fn unmount(&self, now: bool, progress: &dyn Progress) -> Result<UnmountReport, UserError> {
        if !now && !self.pending().0.is_empty() {
            let report = self.sync_now(None, false, progress)?;
            let (pending, _) = self.pending();
            if let Some(first) = pending.first() {
                // What waiting cannot mend is said as it is; the list is sorted so.
                if let Some(file) = report.files.first()
                    && file.outcome.exit() >= ExitStatus::Conflicts
                {
                    return Err(stuck(file));
                }
                return Err(UserError::new(
                    "pending",
                    format!("{} files are not synced, {first} among them", pending.len()),
                    "see `pstsyncd status`; `pstsyncd unmount --now` keeps them in the journal",
                )
                .with_exit(ExitStatus::Pending));
            }
        }
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = handle.as_mut() {
            // Refused, the drive goes on: the handle stays for the next try.
            mounted
                .unmount()
                .map_err(|e| not_unmounted(&self.mountpoint, &e))?;
        }
        *handle = None;
        self.auto.end();
        self.governor.end();
        // What still waits for it would keep the process.
        self.limiter.limit().end();
        let (mut pending, pending_bytes) = self.pending();
        let more_pending = pending.len().saturating_sub(MAX_FILES) as u64;
        pending.truncate(MAX_FILES);
        let state_dir = self.state.path().display().to_string();
        Ok(UnmountReport {
            pending,
            more_pending,
            pending_bytes,
            state_dir,
        })
    }
}

fn log_reintegrated(done: &Reintegrated, progress: &dyn Progress) {
    let text = match &done.outcome {
        ReintegratedOutcome::Done => return tracing::debug!(change = done.what, "brought over"),
        ReintegratedOutcome::RenamedTo(path) => {
            format!(
                "{}: the name was taken on the share; yours is {path}",
                done.what
            )
        }
        ReintegratedOutcome::KeptThere => {
            format!(
                "{}: it was changed on the share meanwhile, and is kept",
                done.what
            )
        }
        ReintegratedOutcome::Dropped(why) => {
            format!("{}: not possible on the share any more ({why})", done.what)
        }
        ReintegratedOutcome::Refused(why) => {
            let text = format!("{}: refused, and kept ({why})", done.what);
            tracing::warn!(text, "the share refuses a change");
            return progress.event(Event::Note { text });
        }
    };
    tracing::warn!(text, "changed on both sides");
    progress.event(Event::Note { text });
}

/// The client's own name: made once, durable before it is used (R7).
fn client_id(path: &Path) -> io::Result<ClientId> {
    match fs::read(path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidData.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut id = [0; 16];
            sync::pin::random(&mut id)?;
            let fresh = path.with_extension("new");
            let mut file = fs::File::create(&fresh)?;
            file.write_all(&id)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            if let Some(dir) = path.parent() {
                fs::File::open(dir)?.sync_all()?;
            }
            Ok(id)
        }
        Err(e) => Err(e),
    }
}
