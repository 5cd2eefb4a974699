//! The clients that are mounted: our daemon, and the file system of `null`, each a process of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, fadvise};

use crate::Load;
use crate::peers::{AT_ONCE, BLOCK, FILE, Peer, right, scattered};
use crate::smbd::Smbd;

/// Longest wait for a mount.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted file system.
pub struct Mount {
    label: &'static str,
    dir: PathBuf,
    server: Child,
}

impl Mount {
    /// A daemon of ours that mounts the share in state *online*; nothing is fetched ahead into the cache.
    pub fn drive(label: &'static str, daemon: &Path, dir: &Path, server: &Smbd) -> Result<Self> {
        let own = dir.join(label);
        fs::create_dir(&own)?;
        let password = own.join("password");
        fs::write(&password, server.password())?;
        fs::set_permissions(&password, PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(daemon);
        command
            .args(["mount", "--mode", "online", "--pin", "nothing", "--share"])
            .arg(server.address("share").to_string())
            .arg("--password-file")
            .arg(&password)
            .arg("--state-dir")
            .arg(own.join("state"));
        Self::start(label, command, &own, "")
    }

    /// The file system of [`crate::null`].
    pub fn null(label: &'static str, dir: &Path, server: &Smbd) -> Result<Self> {
        let own = dir.join(label);
        fs::create_dir(&own)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["null", &format!("127.0.0.1:{}", server.port())])
            .args([server.user(), "share"]);
        Self::start(label, command, &own, server.password())
    }

    fn start(label: &'static str, mut command: Command, own: &Path, input: &str) -> Result<Self> {
        let dir = own.join("mounted");
        fs::create_dir(&dir)?;
        let below = fs::metadata(&dir)?.dev();
        let (log, said) = (File::create(own.join("log"))?, own.join("log"));
        let mut child = command
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut stdin = child.stdin.take().context("no input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let mut mount = Self {
            label,
            dir,
            server: child,
        };
        let end = Instant::now() + PATIENCE;
        while !fs::metadata(&mount.dir).is_ok_and(|m| m.dev() != below) {
            let ended = mount.server.try_wait()?.is_some();
            if ended || Instant::now() > end {
                let said = fs::read_to_string(said).unwrap_or_default();
                bail!("{label} is not mounted: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(mount)
    }

    /// The file, of which the kernel holds nothing.
    fn cold(&self) -> Result<File> {
        let file = File::open(self.dir.join(FILE))?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(file)
    }
}

impl Peer for Mount {
    fn label(&self) -> &'static str {
        self.label
    }

    fn slice(&mut self, load: Load, seed: u64, len: u64) -> Result<Option<Duration>> {
        let mut buf = vec![0; BLOCK];
        match load {
            Load::Read => {
                drop(self.cold()?);
                let start = Instant::now();
                let mut file = File::open(self.dir.join(FILE))?;
                for at in (0..len).step_by(BLOCK) {
                    file.read_exact(&mut buf)?;
                    ensure!(right(&buf, at), "other bytes at {at}");
                }
                drop(file);
                Ok(Some(start.elapsed()))
            }
            Load::Write => {
                let start = Instant::now();
                let mut file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(self.dir.join(format!("{}.bin", self.label)))?;
                for at in (0..len).step_by(BLOCK) {
                    buf.fill((seed + at) as u8);
                    file.write_all(&buf)?;
                }
                file.sync_all()?;
                drop(file);
                Ok(Some(start.elapsed()))
            }
            Load::Random | Load::Threads => {
                let file = self.cold()?;
                // What a database or Outlook does: the kernel shall not read ahead.
                fadvise(&file, 0, None, Advice::Random)?;
                let threads = if load == Load::Random { 1 } else { AT_ONCE };
                let start = Instant::now();
                scattered(seed, len, threads, |at, buf| {
                    file.read_exact_at(buf, at)?;
                    Ok(buf.len())
                })?;
                Ok(Some(start.elapsed()))
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let asked = Command::new("fusermount3")
            .arg("-u")
            .arg(&self.dir)
            .status();
        if !asked.is_ok_and(|s| s.success()) {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}
