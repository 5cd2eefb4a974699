//! The clients that are measured, each with a session and a file of its own to write.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vfs::Share;
use vfs::share::smb::SmbShare;

use crate::smbd::Smbd;
use crate::{Load, places};

/// The file that is read.
pub const FILE: &str = "data.bin";
/// What a program reads and writes at once.
pub const BLOCK: usize = 1 << 20;
/// Reads on the way at once in [`Load::Threads`].
pub const AT_ONCE: usize = 8;
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
pub fn right(data: &[u8], at: u64) -> bool {
    data.first_chunk() == Some(&(at / 8).to_le_bytes())
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
pub fn scattered(
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
