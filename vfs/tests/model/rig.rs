//! What both worlds stand on: a share that goes wrong on command, a state directory in memory that
//! loses what was not flushed, and a drive that can be opened again.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfs::disk::crash::CrashDisk;
use vfs::share::dir::DirShare;
use vfs::share::fault::{Fault, FaultControl, FaultShare};
use vfs::share::smb::SmbShare;
use vfs::{Drive, DriveConfig, Error, PushOutcome, Reintegrated, Share, State};

use super::common::smbd::{Options, Smbd};
use super::op::{Op, Rng};

/// Room on the state directory's volume.
const ROOM: u64 = 1 << 20;

/// Where shares lie: in memory where that can be, for a flush there never takes as long as a stall.
fn shares() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    }
}

/// Serves the shares of all worlds, where the test runs over SMB.
static SERVER: Mutex<Option<Smbd>> = Mutex::new(None);

/// The server, for as long as this is held.
pub struct Serving(());

impl Serving {
    /// `None` where there is no smbd.
    pub fn start() -> Option<Self> {
        let server = Smbd::start(&shares(), Options::default())?;
        *SERVER.lock().unwrap() = Some(server);
        Some(Self(()))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        *SERVER.lock().unwrap() = None;
    }
}

/// A folder of the server's share, where there is one.
fn served(at: &Path) -> Option<SmbShare> {
    let server = SERVER.lock().unwrap();
    let config = server.as_ref()?.config(&format!(
        "share/{}",
        at.file_name().unwrap().to_str().unwrap()
    ));
    let share = SmbShare::new(config).unwrap();
    share.connect().unwrap();
    Some(share)
}

pub struct Rig {
    /// Removed with the rig.
    pub tmp: tempfile::TempDir,
    at_share: tempfile::TempDir,
    share: Arc<dyn Share>,
    pub faults: FaultControl,
    disk: CrashDisk,
    room: Arc<AtomicU64>,
    drive: Option<Arc<Drive>>,
    /// Every file is kept here whole: then no call fails for the share's sake.
    pub whole: bool,
    /// A write passed through while the disk was full, so its bytes may not be here: until all is
    /// fetched again, not whole.
    lacking: bool,
    /// A fault waits for its call, or met one since all was well.
    pub faulty: bool,
}

impl Rig {
    /// Chosen by the seed: which files are kept whole.
    pub fn new(seed: u64) -> Self {
        let mut choice = Rng(seed ^ 0x5eed);
        let tmp = tempfile::tempdir().unwrap();
        let at_share = tempfile::tempdir_in(shares()).unwrap();
        let (share, faults): (Arc<dyn Share>, _) = match served(at_share.path()) {
            Some(share) => {
                let (share, faults) = FaultShare::new(share);
                (Arc::new(share), faults)
            }
            None => {
                let (share, faults) = FaultShare::new(DirShare::open(at_share.path()).unwrap());
                (Arc::new(share), faults)
            }
        };
        Self {
            tmp,
            at_share,
            share,
            faults,
            disk: CrashDisk::default(),
            room: Arc::new(AtomicU64::new(ROOM)),
            drive: None,
            whole: choice.next(3) > 0,
            lacking: false,
            faulty: false,
        }
    }

    pub fn share(&self, path: &str) -> PathBuf {
        self.at_share.path().join(path)
    }

    pub fn d(&self) -> &Drive {
        self.drive.as_deref().unwrap()
    }

    pub fn start(&mut self, state: State) {
        let mut c = DriveConfig::new(self.share.clone(), "unused");
        c.disk = Some(Arc::new(self.disk.clone()));
        c.state = state;
        c.background = false;
        c.attr_life = Duration::ZERO;
        c.stall_budget = Duration::from_millis(400);
        c.flush_budget = Duration::from_millis(800);
        c.segment_len = 8 << 10;
        c.unwritten_limit = 12 << 10;
        c.direct_append = 1500;
        c.reserve = 0;
        let room = self.room.clone();
        c.available = Some(Arc::new(move || room.load(Ordering::SeqCst)));
        c.pins = Some(if self.whole {
            vec!["**".to_owned()]
        } else {
            Vec::new()
        });
        self.drive = Some(Drive::open(c).unwrap());
    }

    /// Everything works again, and what was left behind has ended.
    pub fn heal(&mut self) {
        self.faults.heal();
        self.room.store(ROOM, Ordering::SeqCst);
        for _ in 0..2000 {
            // Asks, where the link counts as down.
            let _ = self.d().statfs();
            if self.faults.hanging() == 0 && self.d().status().link_up {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.faulty = false;
    }

    /// The process is gone, and begins anew.
    pub fn kill(&mut self) {
        let state = self.d().state();
        if self.faults.hanging() > 0 {
            // A call of a process that died does not go on in the next one's.
            self.heal();
        }
        self.drive = None;
        self.start(state);
    }

    /// Programs are done; then the power goes.
    pub fn power(&mut self, seed: u64) {
        self.heal();
        let state = self.d().state();
        self.d().sync_all().unwrap();
        self.drive = None;
        self.disk = self.disk.survivor(seed);
        self.start(State::Online);
        if self.whole {
            self.d().fill().unwrap();
        }
        self.lacking = false;
        self.d().set_state(state);
    }

    /// What happens to the drive itself. `false`: the operation is not of that kind.
    pub fn happens(&mut self, op: &Op) -> bool {
        match op {
            Op::State(state) => self.d().set_state(*state),
            Op::Checkpoint => self.d().checkpoint().unwrap(),
            Op::Fault { n, after } => {
                self.faulty = true;
                self.faults.at(
                    *n,
                    if *after {
                        Fault::FailAfter(ErrorKind::ConnectionReset)
                    } else {
                        Fault::Fail(ErrorKind::TimedOut)
                    },
                );
            }
            Op::Hang { n } => {
                self.faulty = true;
                self.faults.at(*n, Fault::Hang);
            }
            Op::Heal => self.heal(),
            Op::Refuse { n } => self.refuse(*n),
            // With calls in doubt at the same time nothing could be told.
            Op::Tight if self.faulty => {}
            Op::Tight => self.room.store(0, Ordering::SeqCst),
            Op::Fill => drop(self.d().fill()),
            _ => return false,
        }
        true
    }

    /// A sync that meets a refusal. What it leaves waits; nothing of it is lost, or becomes another's.
    pub fn refuse(&mut self, n: u64) {
        const EACCES: i32 = 13;
        if self.d().state() != State::Online || self.faulty || self.faults.hanging() > 0 {
            return;
        }
        self.faults.at(n, Fault::Errno(EACCES));
        let _ = self.sync();
        self.faults.heal();
    }

    /// After an operation: there is room again.
    pub fn relax(&mut self, op: &Op) {
        if !matches!(op, Op::Tight) {
            let wrote = matches!(op, Op::Write { .. } | Op::Append { .. });
            let tight = self.room.load(Ordering::SeqCst) == 0;
            self.lacking |= tight && wrote && self.d().state() == State::Online;
            self.room.store(ROOM, Ordering::SeqCst);
        }
    }

    /// Brings everything to the share, as far as it goes.
    pub fn sync(&self) -> (Vec<Reintegrated>, Vec<PushOutcome>, Option<Error>) {
        let (mut brought, mut pushed, mut failed) = (Vec::new(), Vec::new(), None);
        match self.d().reintegrate("D", "H") {
            Ok(all) => brought = all,
            Err(e) => return (brought, pushed, Some(e)),
        }
        let mut dirty = self.d().status().dirty_opaque;
        let containers = self.d().containers();
        dirty.extend(containers.into_iter().filter(|c| c.dirty).map(|c| c.path));
        for path in dirty {
            match self.d().push_opaque(&path, "D", "H") {
                Ok(outcome) => pushed.push(outcome),
                Err(e) => failed = Some(e),
            }
        }
        (brought, pushed, failed)
    }

    /// Whether every file is here whole, so that no call fails for the share's sake.
    pub fn all_here(&self) -> bool {
        self.whole && !self.lacking
    }

    /// Where not every file is here whole: what a call may answer for the share's sake.
    pub fn excused(&self, e: &Error) -> bool {
        match e {
            Error::NoSpace(_) => true,
            Error::NotCached(_) | Error::Link(_) | Error::ShareChanged(_) => !self.all_here(),
            _ => false,
        }
    }
}
