//! The daemon of one drive: the only place that ties the drive (vfs) to the sync engine (sync).
//!
//! The order of a start: check everything (nothing is made yet), take the state directory, take the place
//! in the registry, mount, serve the control socket, say "ready". The order of an end is the
//! reverse; a signal keeps in the journal what is not synced, as `unmount --now` does.

mod asked;
mod auto;
pub mod background;
mod drive;
mod governor;
mod history;
mod holders;
mod limiter;
pub mod options;
pub mod paths;
pub mod patterns;
mod place;
mod rules_file;
mod schedule;
mod smb;
mod syncer;
mod validator;
mod volumes;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use serde::{Deserialize, Serialize};

pub use options::{AgentOptions, DriveOptions};
pub use place::Placement;

use crate::cli::MountArgs;
use crate::control::{DriveControl, Event, Limits, Progress, Registry, Server};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Format, Output};
use background::Word;
use paths::StateDir;

/// What a drive that is ready says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Where it is mounted.
    pub mountpoint: String,
    /// The share under it.
    pub share: String,
    /// Where its journal and cache are.
    pub state_dir: String,
    /// The daemon's process id.
    pub pid: u32,
}

impl Ready {
    /// The same for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self {
            mountpoint, share, ..
        } = self;
        format!(
            "The drive {mountpoint} is ready over {share}; end it with: pstsyncd unmount {mountpoint}"
        )
    }
}

/// Why a daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// An `unmount` was carried out and answered.
    Unmounted,
    /// A signal asked for it.
    Signal,
    /// The mount went away by itself: someone else unmounted it.
    MountGone,
}

/// Asks the daemon to end. Clones may be kept by any thread.
#[derive(Clone)]
pub struct Stop(Sender<End>);

impl Stop {
    /// A way to ask for the end, and where the daemon hears of it.
    #[must_use]
    pub fn channel() -> (Self, Receiver<End>) {
        let (sender, ends) = mpsc::channel();
        (Self(sender), ends)
    }

    /// Asks for the end; does not wait. The first reason counts.
    pub fn because(&self, end: End) {
        // The daemon may be ending already.
        let _ = self.0.send(end);
    }
}

/// `mount`: in the foreground until the end, or in the background until it is ready.
///
/// # Errors
/// Whatever kept the drive from being mounted.
pub fn mount(args: &MountArgs, verbose: u8, format: Format) -> Outcome {
    if args.background {
        let mut out = Output::new(format);
        let outcome = background::start(args, verbose, &mut out);
        return out.finish().and(outcome);
    }
    if args.detached {
        background::detach()?;
    }
    let outcome = (|| {
        let (stop, ends) = Stop::channel();
        watch_signals(stop.clone())?;
        let registry = paths::registry()?;
        run(args, format, &registry, (stop, ends), drive::open)
    })();
    if let (true, Err(error)) = (args.detached, &outcome) {
        background::say(&Word::Error(error.clone()));
    }
    outcome
}

/// Runs a drive that `open` mounts. When `open` returns, the drive must answer; it keeps the [`Stop`] to tell
/// that the mount has gone away.
fn run(
    args: &MountArgs,
    format: Format,
    registry: &Registry,
    (stop, ends): (Stop, Receiver<End>),
    open: impl FnOnce(&DriveOptions, StateDir, Stop) -> Result<Arc<dyn DriveControl>, UserError>,
) -> Outcome {
    let options = DriveOptions::check(args)?;
    let share = options.share.display().to_string();
    let ready = Ready {
        mountpoint: options.mountpoint.display().to_string(),
        share: share.clone(),
        state_dir: options.state_dir.display().to_string(),
        pid: std::process::id(),
    };
    let state = options.take_state()?;
    let registration = registry.claim(&options.mountpoint, &share)?;
    if args.detached {
        // The directory we were started in may be unmounted or removed.
        let _ = std::env::set_current_dir("/");
    }
    let drive = open(&options, state, stop.clone())?;
    let unmounted = move || stop.because(End::Unmounted);
    let server = Server::start(
        registration,
        Arc::clone(&drive),
        Limits::default(),
        unmounted,
    );
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            let _ = drive.unmount(true, &Quiet);
            return Err(UserError::file(
                "serve the control socket of",
                &options.mountpoint,
                &error,
            ));
        }
    };
    tracing::info!(
        mountpoint = ready.mountpoint,
        share,
        state = ready.state_dir,
        "drive ready"
    );
    if args.detached {
        background::say(&Word::Ready(ready));
    } else {
        let mut out = Output::new(format);
        let said = out
            .result(&ready, |out| out.line(ready.sentence()))
            .and_then(|()| out.finish());
        if let Err(error) = said {
            // Nobody listens to a drive's greeting: no reason to end it.
            tracing::debug!(%error, "the greeting was not taken");
        }
    }
    let status = wait(&ends, &*drive);
    // The server last: it gives up the place in the registry, and by that others know that all is free.
    drop(drive);
    drop(server);
    Ok(status)
}

/// Until the drive is unmounted, by whom ever.
fn wait(ends: &Receiver<End>, drive: &dyn DriveControl) -> ExitStatus {
    loop {
        // The control server holds a sender as long as we wait.
        let end = ends.recv().unwrap_or(End::Unmounted);
        tracing::info!(?end, "the drive ends");
        if end == End::Unmounted {
            return ExitStatus::Synced;
        }
        match drive.unmount(true, &Quiet) {
            Ok(report) => {
                let status = report.exit();
                if status != ExitStatus::Synced {
                    let (files, bytes) = (report.pending.len(), report.pending_bytes);
                    tracing::warn!(
                        files,
                        bytes,
                        "changes wait in the journal for the next mount"
                    );
                }
                return status;
            }
            Err(error) => {
                tracing::error!(%error, "the drive cannot be unmounted, and goes on");
                if end == End::MountGone {
                    return ExitStatus::Error;
                }
            }
        }
    }
}

/// For an unmount that nobody watches.
struct Quiet;

impl Progress for Quiet {
    fn event(&self, event: Event) {
        tracing::debug!(?event, "progress");
    }
}

/// From now on a signal to end is a wish to unmount, and the terminal's end is nothing.
fn watch_signals(stop: Stop) -> Result<(), UserError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| {
        UserError::new(
            "signals",
            format!("the daemon cannot watch for signals: {e}"),
            "close other programs, then run the command again",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let (mut term, mut int, mut hangup) = runtime
        .block_on(async {
            let of = |kind| signal(kind);
            Ok((
                of(SignalKind::terminate())?,
                of(SignalKind::interrupt())?,
                of(SignalKind::hangup())?,
            ))
        })
        .map_err(failed)?;
    let watch = move || {
        runtime.block_on(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => stop.because(End::Signal),
                    _ = int.recv() => stop.because(End::Signal),
                    _ = hangup.recv() => tracing::debug!("the terminal has gone"),
                }
            }
        });
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map(drop)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::control::{
        Client, DriveStatus, Explanation, LinkStatus, Policy, State, SyncPlan, SyncReport,
        UnmountReport,
    };
    use crate::policy::cap::Cap;

    /// A drive without a mount; the first `stubborn` unmounts fail.
    struct Fake {
        _state: StateDir,
        stubborn: AtomicUsize,
        pending: u64,
    }

    impl DriveControl for Fake {
        fn status(&self) -> Result<DriveStatus, UserError> {
            Ok(DriveStatus {
                mountpoint: String::new(),
                share: String::new(),
                policy: Policy::Online,
                state: State::Online,
                reason: String::new(),
                changes: Vec::new(),
                share_reachable: true,
                agent: None,
                journal_bytes: 0,
                pending_bytes: self.pending,
                cache: Default::default(),
                auto_sync: Default::default(),
                limit: Default::default(),
                files: Vec::new(),
                more_files: 0,
            })
        }

        fn set_mode(&self, _: Policy, _: Option<u64>) -> Result<DriveStatus, UserError> {
            self.status()
        }

        fn set_limit(&self, _: Option<Cap>, _: Option<u64>) -> Result<DriveStatus, UserError> {
            self.status()
        }

        fn explain(&self) -> Result<Explanation, UserError> {
            Err(UserError::new("none", "no policy", "none"))
        }

        fn link(&self) -> Result<LinkStatus, UserError> {
            Ok(LinkStatus::default())
        }

        fn plan(&self) -> Result<SyncPlan, UserError> {
            Err(UserError::new("none", "no plan", "none"))
        }

        fn sync_now(
            &self,
            _: Option<&str>,
            _: bool,
            _: &dyn Progress,
        ) -> Result<SyncReport, UserError> {
            Ok(SyncReport::default())
        }

        fn unmount(&self, _: bool, _: &dyn Progress) -> Result<UnmountReport, UserError> {
            let left = self.stubborn.load(Ordering::SeqCst);
            if left > 0 {
                self.stubborn.store(left - 1, Ordering::SeqCst);
                return Err(UserError::new("busy", "in use", "close it"));
            }
            Ok(UnmountReport {
                pending_bytes: self.pending,
                ..UnmountReport::default()
            })
        }
    }

    struct House {
        temp: tempfile::TempDir,
        registry: Registry,
    }

    impl House {
        /// `None` where no drive can be mounted at all.
        fn new() -> Option<Self> {
            if !std::path::Path::new("/dev/fuse").exists() {
                crate::skip::skipped("fuse", "no /dev/fuse");
                return None;
            }
            let temp = tempfile::tempdir().unwrap();
            std::fs::create_dir(temp.path().join("share")).unwrap();
            std::fs::create_dir(temp.path().join("mnt")).unwrap();
            let registry = Registry::open(&temp.path().join("run")).unwrap();
            Some(Self { temp, registry })
        }

        fn args(&self) -> MountArgs {
            let at = |name: &str| self.temp.path().join(name).into_os_string();
            let line = [
                "pstsyncd".into(),
                "mount".into(),
                "--share".into(),
                at("share"),
                at("mnt"),
                "--state-dir".into(),
                at("state"),
            ];
            match Cli::parse_from(line).command {
                Command::Mount(args) => *args,
                _ => unreachable!(),
            }
        }

        /// Runs a drive, does `with` while it is up, and answers how it ended.
        fn run(&self, stubborn: usize, pending: u64, with: impl FnOnce(&Client, &Stop)) -> Outcome {
            let (stop, ends) = Stop::channel();
            let args = self.args();
            std::thread::scope(|scope| {
                let asking = stop.clone();
                let daemon = scope.spawn(|| {
                    run(
                        &args,
                        Format::Json,
                        &self.registry,
                        (stop, ends),
                        |_, state, _| {
                            let stubborn = AtomicUsize::new(stubborn);
                            Ok(Arc::new(Fake {
                                _state: state,
                                stubborn,
                                pending,
                            }) as Arc<dyn DriveControl>)
                        },
                    )
                });
                let client = loop {
                    match self.registry.find(None).map(|entry| Client::new(&entry)) {
                        Ok(client) if client.ping().is_ok() => break client,
                        _ => std::thread::sleep(std::time::Duration::from_millis(1)),
                    }
                };
                with(&client, &asking);
                daemon.join().unwrap()
            })
        }
    }

    #[test]
    fn a_drive_runs_until_it_is_unmounted_and_leaves_no_trace_in_the_registry() {
        let Some(house) = House::new() else { return };
        for _ in 0..3 {
            let outcome = house.run(0, 0, |client, _| {
                client.unmount(false, |_| {}).unwrap();
            });
            assert_eq!(outcome, Ok(ExitStatus::Synced));
            // A program that another test is just starting holds a copy of the lock until it runs.
            let gone = || house.registry.list().unwrap().is_empty();
            let mut waits = 500;
            while !gone() && waits > 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
                waits -= 1;
            }
            assert!(gone());
        }
    }

    #[test]
    fn a_signal_unmounts_and_says_what_is_pending() {
        let Some(house) = House::new() else { return };
        let outcome = house.run(0, 4096, |_, stop| stop.because(End::Signal));
        assert_eq!(outcome, Ok(ExitStatus::Pending));
    }

    #[test]
    fn a_drive_in_use_survives_a_signal_and_ends_with_the_next() {
        let Some(house) = House::new() else { return };
        let outcome = house.run(1, 0, |client, stop| {
            stop.because(End::Signal);
            client.ping().unwrap();
            stop.because(End::Signal);
        });
        assert_eq!(outcome, Ok(ExitStatus::Synced));
    }

    #[test]
    fn a_drive_that_does_not_open_leaves_its_place_free() {
        let Some(house) = House::new() else { return };
        let args = house.args();
        let outcome = run(
            &args,
            Format::Json,
            &house.registry,
            Stop::channel(),
            |_, _, _| Err(UserError::new("no", "no", "no")),
        );
        assert_eq!(outcome.unwrap_err().code, "no");
        assert!(house.registry.list().unwrap().is_empty());
        house
            .run(0, 0, |client, _| {
                client.unmount(true, |_| {}).unwrap();
            })
            .unwrap();
    }
}
