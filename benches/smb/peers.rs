//! The clients that are measured, each with a session and a file of its own to write.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, fadvise};
use vfs::Share;
use vfs::share::smb::SmbShare;

use crate::smbd::Smbd;
use crate::{Load, places};

/// The file that is read.
const FILE: &str = "data.bin";
/// What a program reads and writes at once.
const BLOCK: usize = 1 << 20;
/// Reads on the way at once in [`Load::Threads`].
const AT_ONCE: usize = 8;
/// Longest wait for a mount.
const PATIENCE: Duration = Duration::from_secs(60);
/// How the bare library is called in the tables.
pub const BARE: &str = "bare smb2";

/// A client of the server.
pub trait Peer {
    /// How it is called in the tables.
    fn label(&self) -> &'static str;
    /// The time that a load takes; `None` where it cannot do that.
    fn slice(&mut self, load: Load, seed: u64, len: u64) -> Result<Option<Duration>>;
}

/// A megabyte of the file: nothing compresses or repeats here.
fn block(mb: u64) -> Vec<u8> {
    (0..BLOCK as u64 / 8)
        .flat_map(|i| (mb << 17 | i).to_le_bytes())
        .collect()
}

/// Makes the file that is read.
pub fn make(dir: &Path, len: u64) -> Result<()> {
    let mut file = File::create(dir.join(FILE))?;
    for mb in 0..len >> 20 {
        file.write_all(&block(mb))?;
    }
    Ok(file.sync_all()?)
}

/// Whether these are the bytes at `at` of the file, by their first eight.
fn right(data: &[u8], at: u64) -> bool {
    data.first_chunk() == Some(&(at / 8).to_le_bytes())
}

/// Our daemon, mounted.
pub struct Drive {
    dir: PathBuf,
    server: Child,
}

impl Drive {
    /// Mounts the share in state *online*; nothing is fetched ahead into the cache.
    pub fn mount(dir: &Path, server: &Smbd) -> Result<Self> {
        let password = dir.join("password");
        fs::write(&password, server.password())?;
        fs::set_permissions(&password, PermissionsExt::from_mode(0o600))?;
        let to = dir.join("drive");
        fs::create_dir(&to)?;
        let below = fs::metadata(&to)?.dev();
        let log = File::create(dir.join("drive.log"))?;
        let child = Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
            .args(["mount", "--mode", "online", "--pin", "nothing", "--share"])
            .arg(server.address("share").to_string())
            .arg("--password-file")
            .arg(&password)
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg(&to)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut drive = Self {
            dir: to,
            server: child,
        };
        let end = Instant::now() + PATIENCE;
        while !fs::metadata(&drive.dir).is_ok_and(|m| m.dev() != below) {
            let ended = drive.server.try_wait()?.is_some();
            if ended || Instant::now() > end {
                let said = fs::read_to_string(dir.join("drive.log")).unwrap_or_default();
                bail!("the drive is not mounted: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(drive)
    }

    /// The file, of which the kernel holds nothing.
    fn cold(&self) -> Result<File> {
        let file = File::open(self.dir.join(FILE))?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(file)
    }
}

impl Peer for Drive {
    fn label(&self) -> &'static str {
        "pstsyncd"
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
                    .open(self.dir.join("ours.bin"))?;
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

impl Drop for Drive {
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

/// The client library that the drive's share is built on, by its README: one client, a download or writer
/// for whole files, a reader for positions.
pub struct Bare {
    runtime: tokio::runtime::Runtime,
    client: smb2::SmbClient,
    tree: smb2::Tree,
}

impl Bare {
    /// Signs in.
    pub fn connect(server: &Smbd) -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let address = format!("127.0.0.1:{}", server.port());
        let (client, tree) = runtime.block_on(async {
            let mut client = smb2::connect(&address, server.user(), server.password()).await?;
            let tree = client.connect_share("share").await?;
            anyhow::Ok((client, tree))
        })?;
        Ok(Self {
            runtime,
            client,
            tree,
        })
    }
}

impl Peer for Bare {
    fn label(&self) -> &'static str {
        BARE
    }

    fn slice(&mut self, load: Load, seed: u64, len: u64) -> Result<Option<Duration>> {
        let (client, tree) = (&mut self.client, &self.tree);
        self.runtime.block_on(async {
            let start = Instant::now();
            match load {
                Load::Read => {
                    let mut download = client.download(tree, FILE).await?;
                    let mut at = 0;
                    while let Some(chunk) = download.next_chunk().await {
                        let chunk = chunk?;
                        ensure!(at % 8 != 0 || right(&chunk, at), "other bytes at {at}");
                        at += chunk.len() as u64;
                    }
                    ensure!(at == len, "{at} bytes of {len}");
                }
                Load::Write => {
                    let mut writer = client.create_file_writer(tree, "bare.bin").await?;
                    let mut buf = vec![0; BLOCK];
                    for at in (0..len).step_by(BLOCK) {
                        buf.fill((seed + at) as u8);
                        writer.write_chunk(&buf).await?;
                    }
                    ensure!(writer.finish().await? == len, "not all was written");
                }
                Load::Random | Load::Threads => {
                    let reader = std::sync::Arc::new(client.open_file_reader(tree, FILE).await?);
                    let all = places(seed, len);
                    let tasks = if load == Load::Random { 1 } else { AT_ONCE };
                    let work: Vec<_> = all
                        .chunks(all.len().div_ceil(tasks))
                        .map(|part| {
                            let (reader, part) = (reader.clone(), part.to_vec());
                            tokio::spawn(async move {
                                for at in part {
                                    let data = reader.read_at(at, 4096).await?;
                                    let whole = data.len() == 4096 && right(&data, at);
                                    ensure!(whole, "other bytes at {at}");
                                }
                                anyhow::Ok(())
                            })
                        })
                        .collect();
                    for task in work {
                        task.await??;
                    }
                }
            }
            Ok(Some(start.elapsed()))
        })
    }
}

/// The drive's share by itself: no mount and no cache. As on the drive, a write is answered before the next one
/// begins; what is read is not read ahead.
pub struct Alone(SmbShare);

impl Alone {
    /// Signs in.
    pub fn connect(server: &Smbd) -> Self {
        Self(server.share())
    }
}

impl Peer for Alone {
    fn label(&self) -> &'static str {
        "our share, no mount"
    }

    fn slice(&mut self, load: Load, seed: u64, len: u64) -> Result<Option<Duration>> {
        let mut buf = vec![0; BLOCK];
        let start = Instant::now();
        match load {
            Load::Read => {
                let file = self.0.open(FILE, false)?;
                for at in (0..len).step_by(BLOCK) {
                    ensure!(file.read_at(at, &mut buf)? == BLOCK, "cut at {at}");
                    ensure!(right(&buf, at), "other bytes at {at}");
                }
            }
            Load::Write => {
                let file = match self.0.create("alone.bin", 0o600) {
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        let file = self.0.open("alone.bin", true)?;
                        file.set_len(0)?;
                        file
                    }
                    other => other?,
                };
                for at in (0..len).step_by(BLOCK) {
                    buf.fill((seed + at) as u8);
                    file.write_all_at(at, &buf)?;
                }
                file.sync()?;
            }
            Load::Random | Load::Threads => {
                let file = self.0.open(FILE, false)?;
                let threads = if load == Load::Random { 1 } else { AT_ONCE };
                scattered(seed, len, threads, |at, buf| Ok(file.read_at(at, buf)?))?;
            }
        }
        Ok(Some(start.elapsed()))
    }
}

/// Reads 4 KiB in all places of a slice, on so many threads.
fn scattered(
    seed: u64,
    len: u64,
    threads: usize,
    read: impl Fn(u64, &mut [u8]) -> Result<usize> + Sync,
) -> Result<()> {
    let (all, read) = (places(seed, len), &read);
    std::thread::scope(|scope| {
        let work: Vec<_> = all
            .chunks(all.len().div_ceil(threads))
            .map(|part| {
                scope.spawn(move || -> Result<()> {
                    let mut buf = [0; 4096];
                    for at in part {
                        let whole = read(*at, &mut buf)? == buf.len();
                        ensure!(whole && right(&buf, *at), "other bytes at {at}");
                    }
                    Ok(())
                })
            })
            .collect();
        work.into_iter()
            .try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })
}

/// Samba's own client: `get` and `put`, a process and a session each.
pub struct SmbClient {
    service: String,
    port: String,
    login: PathBuf,
    source: PathBuf,
}

impl SmbClient {
    /// Checks that it is there.
    pub fn new(dir: &Path, server: &Smbd) -> Result<Self> {
        let login = dir.join("smbclient.login");
        let text = format!(
            "username = {}\npassword = {}\n",
            server.user(),
            server.password()
        );
        fs::write(&login, text)?;
        fs::set_permissions(&login, PermissionsExt::from_mode(0o600))?;
        // In memory, so that no disk of ours counts against it.
        let source = Path::new("/dev/shm").join(format!("pstsyncd-bench-{}", std::process::id()));
        Ok(Self {
            service: "//127.0.0.1/share".to_owned(),
            port: server.port().to_string(),
            login,
            source,
        })
    }

    fn run(&self, command: &str) -> Result<()> {
        let out = Command::new("smbclient")
            .args([&self.service, "-p", &self.port, "-A"])
            .arg(&self.login)
            .args(["-c", command])
            .output()
            .context("smbclient")?;
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        ensure!(
            out.status.success() && !said.contains("NT_STATUS"),
            "smbclient: {said}"
        );
        Ok(())
    }
}

impl Peer for SmbClient {
    fn label(&self) -> &'static str {
        "smbclient"
    }

    fn slice(&mut self, load: Load, seed: u64, len: u64) -> Result<Option<Duration>> {
        let start = match load {
            Load::Read => {
                let start = Instant::now();
                self.run(&format!("get {FILE} /dev/null"))?;
                start
            }
            Load::Write => {
                if fs::metadata(&self.source).is_ok_and(|m| m.len() == len) {
                    let file = File::options().write(true).open(&self.source)?;
                    file.write_all_at(&seed.to_le_bytes(), 0)?;
                } else {
                    let mut file = File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&self.source)?;
                    for mb in 0..len >> 20 {
                        file.write_all(&block(mb))?;
                    }
                }
                let start = Instant::now();
                self.run(&format!("put {} theirs.bin", self.source.display()))?;
                start
            }
            // It has no such command.
            Load::Random | Load::Threads => return Ok(None),
        };
        Ok(Some(start.elapsed()))
    }
}

impl Drop for SmbClient {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.source);
    }
}
