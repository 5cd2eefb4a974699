//! The drive itself: vfs over the share, cache and journal, and the sync engine beside it.

mod refused;
mod work;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::{Exclusivity, InPlace};
use sync::client::{AgentClient, Timeouts};
use sync::kv::KvStore;
use sync::wire::{ClientId, Invitation};
use sync::{AgentDestination, Destination, SyncDatabase};
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::share::dir::DirShare;
use vfs::{ContainerStatus, Drive, DriveConfig, Reintegrated, ReintegratedOutcome, Share};

use super::auto::Auto;
use super::holders::holders;
use super::paths::StateDir;
use super::smb::NeedsAgent;
use super::syncer::{Syncer, host, today};
use super::validator::PstValidator;
use super::{DriveOptions, End, Stop, volumes};
use crate::control::protocol::MAX_FILES;
use crate::control::{
    AgentStatus, Binding, CacheStatus, DriveControl, DriveStatus, Event, FileReport, FileStatus,
    PartOf, Policy, Progress, State, SyncReport, SyncState, TreeStatus, UnmountReport,
};
use crate::error::UserError;
use crate::exit::ExitStatus;

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
    let share: Arc<dyn Share> = match &options.smb {
        Some(smb) => Arc::new(smb.open()?),
        None => Arc::new(
            DirShare::open(&options.share)
                .map_err(|e| UserError::file("open the share", &options.share, &e))?,
        ),
    };
    let mut config = DriveConfig::new(share, in_state("drive"));
    config.state = state_of(options.policy)?;
    config.cache_size = options.cache_size;
    let patterns = options.patterns.clone().settle(state.path())?;
    if let Some(monitor) = patterns.monitor {
        config.containers = monitor;
    }
    config.pins = patterns.pin;
    config.fill_rate = options.fill_rate;
    config.removable = options.removable.then(vfs::Removable::here);
    config.validator = Some(Arc::new(PstValidator));
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
    let destination: Box<dyn Destination> = match &options.agent {
        Some(agent) => {
            let invitation = Invitation {
                url: agent.url.clone(),
                ca_fingerprint: agent.ca_fingerprint,
                token: agent.token.expose().clone(),
            };
            let http = AgentClient::new(&invitation, Timeouts::default()).map_err(|e| {
                UserError::new(
                    "agent",
                    e.to_string(),
                    "check the agent's address and token",
                )
            })?;
            Box::new(AgentDestination::new(http, client, SHARE.to_owned()))
        }
        None if options.smb.is_some() => {
            tracing::warn!(
                "an SMB share without an agent: changes of PST files made without the link will wait"
            );
            Box::new(NeedsAgent(SHARE.to_owned()))
        }
        None => {
            let records = in_state("applied");
            let exclusivity = if options.exclusive {
                Exclusivity::Promised
            } else {
                Exclusivity::Lease
            };
            let name = SHARE.to_owned();
            let here = InPlace::open(&options.share, &records, client, name, exclusivity);
            Box::new(here.map_err(|e| {
                UserError::new(
                    "share",
                    e.to_string(),
                    "check the share and the state directory",
                )
            })?)
        }
    };
    let syncer = Syncer::new(Arc::clone(&drive), destination, SyncDatabase::new(store));

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
        policy: Mutex::new(options.policy),
        handle: Mutex::new(Some(handle)),
        drive,
        syncer,
        state,
        auto: Arc::new(Auto::new(options.auto_sync)),
    });
    watch(&mounted, stop)?;
    mounted.auto.start(Arc::downgrade(&mounted))?;
    Ok(mounted)
}

struct Mounted {
    mountpoint: String,
    share: String,
    agent_url: Option<String>,
    policy: Mutex<Policy>,
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
    /// Whether the share lacks something of this container.
    fn waits(container: &ContainerStatus) -> bool {
        container.dirty || (!container.attached && container.written > 0)
    }

    fn file_status(&self, container: &ContainerStatus) -> FileStatus {
        let failure = self.syncer.failure(&container.path);
        let waits = Self::waits(container);
        let sync = match (&failure, waits) {
            (Some(_), true) => SyncState::Failed,
            _ if container.share_changed => SyncState::Conflict,
            (None, true) => SyncState::Pending,
            (_, false) => SyncState::Synced,
        };
        let note = if let Some(why) = &container.poisoned {
            Some(format!("writes are refused: {why}"))
        } else if let (Some(error), true) = (failure, waits) {
            Some(error.message)
        } else if container.share_changed {
            Some("it was changed on the share too; sync keeps both".to_owned())
        } else if !container.attached {
            Some("served from the cache: the share holds the same mail in other bytes".to_owned())
        } else {
            None
        };
        FileStatus {
            path: container.path.clone(),
            container: true,
            binding: if container.passed_through {
                Binding::Share
            } else {
                Binding::Cache
            },
            sync,
            size: container.size,
            fully_cached: container.fully_cached,
            pending_bytes: if container.attached {
                container.unsynced
            } else {
                container.written
            },
            verified_at: self.syncer.verified_at(container),
            note,
        }
    }

    fn waiting(&self) -> Vec<ContainerStatus> {
        self.drive
            .containers()
            .into_iter()
            .filter(Self::waits)
            .collect()
    }

    fn waiting_opaque(&self) -> Vec<ContainerStatus> {
        let paths = self.drive.status().dirty_opaque;
        paths
            .iter()
            .filter_map(|path| self.drive.file_status(path).ok())
            .collect()
    }

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

    /// Paths of all files that the share lacks something of, and how many bytes.
    fn pending(&self) -> (Vec<String>, u64) {
        let containers = self.waiting();
        let status = self.drive.status();
        let bytes = containers
            .iter()
            .map(|c| self.file_status(c).pending_bytes)
            .sum::<u64>();
        let mut paths: Vec<String> = containers.into_iter().map(|c| c.path).collect();
        paths.extend(status.dirty_opaque);
        paths.extend(self.drive.pending_namespace());
        (paths, bytes.max(status.unsynced_bytes))
    }
}

impl DriveControl for Mounted {
    fn status(&self) -> Result<DriveStatus, UserError> {
        let status = self.drive.status();
        let (_, pending_bytes) = self.pending();
        let mut files: Vec<FileStatus> = self
            .drive
            .containers()
            .iter()
            .map(|c| self.file_status(c))
            .collect();
        files.extend(status.dirty_opaque.iter().map(|path| FileStatus {
            path: path.clone(),
            container: false,
            binding: Binding::Cache,
            sync: SyncState::Pending,
            size: self.drive.file_status(path).map_or(0, |f| f.size),
            fully_cached: true,
            pending_bytes: self.drive.file_status(path).map_or(0, |f| f.unsynced),
            verified_at: None,
            note: None,
        }));
        refused::show(&status.refused, &mut files);
        for path in &status.refusing {
            if files.iter().any(|f| f.path == *path) {
                continue;
            }
            files.extend(self.drive.file_status(path).ok().map(|f| FileStatus {
                container: false,
                sync: SyncState::Failed,
                ..self.file_status(&f)
            }));
        }
        let cache = self.drive.cache_status();
        // Whatever is not safe is said first, should the list be cut.
        files.sort_by_key(|f| f.sync == SyncState::Synced && f.fully_cached);
        let more_files = files.len().saturating_sub(MAX_FILES) as u64;
        files.truncate(MAX_FILES);
        Ok(DriveStatus {
            cache: CacheStatus {
                tree: tree_status(self.drive.tree_status()),
                ..cache_status(cache)
            },
            auto_sync: self.auto.status(),
            mountpoint: self.mountpoint.clone(),
            share: self.share.clone(),
            policy: *self.policy.lock().unwrap_or_else(PoisonError::into_inner),
            state: match status.state {
                vfs::State::Online => State::Online,
                vfs::State::Cached => State::Cached,
                vfs::State::Offline => State::Offline,
            },
            share_reachable: status.link_up,
            agent: self.agent_url.clone().map(|url| AgentStatus {
                url,
                reachable: self.syncer.reachable(),
            }),
            journal_bytes: status.journal_bytes,
            pending_bytes,
            files,
            more_files,
        })
    }

    fn set_mode(&self, policy: Policy) -> Result<DriveStatus, UserError> {
        let state = state_of(policy)?;
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
        self.drive.set_state(state);
        self.status()
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

fn cache_status(cache: vfs::CacheStatus) -> CacheStatus {
    let more_incomplete = cache.incomplete.len().saturating_sub(MAX_FILES) as u64;
    CacheStatus {
        limit: cache.limit,
        used: cache.used,
        pinned: cache.pinned,
        pinned_files: cache.pinned_files as u64,
        incomplete: cache
            .incomplete
            .into_iter()
            .take(MAX_FILES)
            .map(|i| PartOf {
                path: i.path,
                cached: i.cached,
                size: i.size,
            })
            .collect(),
        more_incomplete,
        filling: cache.filling.map(|f| PartOf {
            path: f.path,
            cached: f.cached,
            size: f.size,
        }),
        trouble: cache.trouble,
        volume: cache.volume,
        tree: TreeStatus::default(),
    }
}

fn tree_status(tree: vfs::TreeStatus) -> TreeStatus {
    TreeStatus {
        names: tree.names as u64,
        listed: tree.listed as u64,
        unlisted: tree.unlisted as u64,
        waiting: tree.waiting as u64,
        trouble: tree.trouble,
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

fn state_of(policy: Policy) -> Result<vfs::State, UserError> {
    match policy {
        Policy::Online => Ok(vfs::State::Online),
        Policy::Cached => Ok(vfs::State::Cached),
        Policy::Offline => Ok(vfs::State::Offline),
        Policy::Auto | Policy::Rules => Err(UserError::not_in_this_version(
            &format!("the policy '{policy}'"),
            "set the mode by hand: pstsyncd mode online, cached or offline",
        )),
    }
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

fn not_opened(error: &vfs::Error, state: &Path) -> UserError {
    let next = match error {
        vfs::Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
            "format the volume as exFAT or with a file system of Linux, or name a directory elsewhere"
        }
        _ => "see that its disk is well and no other pstsyncd uses it, then mount again",
    };
    UserError::new(
        "drive-not-opened",
        format!(
            "the drive's state in {} does not open: {error}",
            state.display()
        ),
        next,
    )
}

fn not_mounted(mountpoint: &Path, error: &io::Error) -> UserError {
    let next = match error.kind() {
        io::ErrorKind::NotFound => "install fuse3 (apt-get install fuse3), then mount again",
        io::ErrorKind::PermissionDenied => {
            "see that you may use /dev/fuse and own the mountpoint, then mount again"
        }
        io::ErrorKind::ResourceBusy => "unmount what is there first, or choose another mountpoint",
        _ => "see `dmesg` and the log, then mount again",
    };
    UserError::new(
        "not-mounted",
        format!(
            "the drive cannot be mounted at {}: {error}",
            mountpoint.display()
        ),
        next,
    )
}

/// A file that a sync left for its user to look at.
fn stuck(file: &FileReport) -> UserError {
    let exit = file.outcome.exit();
    let (why, next) = match &file.error {
        Some(error) => (error.message.clone(), error.next.clone()),
        None => (
            "it was changed on both sides".to_owned(),
            "see `pstsyncd status`".to_owned(),
        ),
    };
    let next = format!("{next}; `pstsyncd unmount --now` keeps it in the journal");
    UserError::new("not-synced", format!("{}: {why}", file.path), next).with_exit(exit)
}

fn not_unmounted(mountpoint: &str, error: &io::Error) -> UserError {
    if error.kind() == io::ErrorKind::ResourceBusy {
        let by = match holders(Path::new(mountpoint)).as_slice() {
            [] => "a program has a file or folder there open".to_owned(),
            programs => format!("in use by {}", programs.join(", ")),
        };
        return UserError::new(
            "in-use",
            format!("{mountpoint} stays mounted: {by}"),
            "close the programs that use it, then unmount again",
        );
    }
    UserError::new(
        "not-unmounted",
        format!("{mountpoint} cannot be unmounted: {error}"),
        "close the programs that use it (see `fuser -m`), then unmount again",
    )
}
