//! Shared by the drive's tests.
#![allow(clippy::unwrap_used)]
#![allow(dead_code)]

#[path = "../../../tests/support/port.rs"]
pub mod port;
pub mod proxy;
#[path = "../../../tests/support/skip.rs"]
pub mod skip;
pub mod smbd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vfs::share::dir::DirShare;
use vfs::share::fault::{FaultControl, FaultShare};
use vfs::{Drive, DriveConfig, Share, State};

pub struct Rig {
    pub tmp: tempfile::TempDir,
    pub faults: FaultControl,
    share: Arc<dyn Share>,
    pub budget: Duration,
    /// Serves the share, where the test runs over SMB; ends after the share.
    pub server: Option<smbd::Smbd>,
}

/// Whether this is a test program whose drives have an SMB server for their share: those named
/// `smb_*` run the cases of the other programs so.
pub fn over_smb() -> bool {
    module_path!().starts_with("smb_")
}

/// Whether that server takes encrypted connections only: those named `smb_sealed_*`.
fn sealed() -> bool {
    module_path!().starts_with("smb_sealed_")
}

/// What makes a server's share take encrypted connections only.
const SEALED: &str = "smb encrypt = required";

impl Rig {
    pub fn new() -> Self {
        Self::build(over_smb().then_some(smbd::Options {
            share: if sealed() { SEALED } else { "" },
            ..smbd::Options::default()
        }))
    }

    /// One whose share is a directory, whatever the test program.
    pub fn bare() -> Self {
        Self::build(None)
    }

    /// Over an SMB server in another place, which the calling thread reaches; `sealed`: encrypted.
    pub fn far(host: smbd::Host, sealed: bool) -> Option<Self> {
        let rig = Self::build(Some(smbd::Options {
            host: Some(host),
            share: if sealed { SEALED } else { "" },
            ..smbd::Options::default()
        }));
        rig.server.is_some().then_some(rig)
    }

    fn build(smb: Option<smbd::Options>) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("share");
        std::fs::create_dir(&root).unwrap();
        let server = smb.and_then(|options| smbd::Smbd::start(&root, options));
        let (share, faults): (Arc<dyn Share>, _) = match &server {
            Some(server) => {
                let (share, faults) = FaultShare::new(server.share());
                (Arc::new(share), faults)
            }
            None => {
                let (share, faults) = FaultShare::new(DirShare::open(&root).unwrap());
                (Arc::new(share), faults)
            }
        };
        Self {
            tmp,
            faults,
            share,
            budget: Duration::from_secs(2),
            server,
        }
    }

    pub fn config(&self, state: State) -> DriveConfig {
        self.settings(self.share.clone(), "state", state)
    }

    /// As [`Rig::config`], for another drive on the same share: with a connection and a state of its own.
    pub fn another(&self, name: &str, state: State) -> DriveConfig {
        let share: Arc<dyn Share> = match &self.server {
            Some(server) => Arc::new(server.share()),
            None => Arc::new(DirShare::open(self.tmp.path().join("share")).unwrap()),
        };
        self.settings(share, name, state)
    }

    fn settings(&self, share: Arc<dyn Share>, at: &str, state: State) -> DriveConfig {
        let mut c = DriveConfig::new(share, self.tmp.path().join(at));
        c.state = state;
        c.background = false;
        c.attr_life = Duration::ZERO;
        c.stall_budget = self.budget;
        c.flush_budget = self.budget;
        c.segment_len = 1 << 16;
        c
    }

    pub fn drive(&self, state: State) -> Arc<Drive> {
        Drive::open(self.config(state)).unwrap()
    }

    pub fn share_file(&self, path: &str) -> PathBuf {
        self.tmp.path().join("share").join(path)
    }

    pub fn put(&self, path: &str, data: &[u8]) {
        let p = self.share_file(path);
        std::fs::create_dir_all(p.parent().unwrap()).unwrap();
        std::fs::write(p, data).unwrap();
    }

    pub fn get(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.share_file(path)).unwrap()
    }
}

/// The share answers again, as far as the drive knows.
pub fn heal(rig: &Rig, d: &Drive) {
    rig.faults.heal();
    for _ in 0..4000 {
        let _ = d.statfs();
        if d.status().link_up {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the link stays down");
}

pub fn open_rw(d: &Drive, path: &str) -> u64 {
    d.open_file(d.find(path).unwrap(), true, true)
        .unwrap()
        .handle
}

pub fn read_all(d: &Drive, path: &str) -> vfs::Result<Vec<u8>> {
    let o = d.open_file(d.find(path)?, true, false)?;
    let size = d.getattr(d.find(path)?)?.attr.size;
    let got = d.read(o.handle, 0, size as usize + 10);
    d.release(o.handle).unwrap();
    got
}

pub fn put_file(d: &Drive, parent: u64, name: &str, data: &[u8]) {
    let (_, o) = d.create(parent, name, 0o644, None).unwrap();
    d.write(o.handle, 0, data).unwrap();
    d.release(o.handle).unwrap();
}

pub fn fuse_missing() -> bool {
    if Path::new("/dev/fuse").exists() {
        return false;
    }
    skip::skipped("fuse", "no /dev/fuse");
    true
}

/// A program, from the path or from where cargo installs.
pub fn installed(program: &str) -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .map(|c| c.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}
