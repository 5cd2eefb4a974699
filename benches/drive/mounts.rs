//! The peers, each mounted over a directory of its own that holds the same file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};

/// Name of the file under load.
pub const FILE: &str = "data.pst";

/// Longest wait for a mount, and for the drive to have fetched what it keeps.
const PATIENCE: Duration = Duration::from_secs(600);

/// A directory under test.
pub struct Mount {
    pub label: &'static str,
    pub dir: PathBuf,
    server: Option<Child>,
}

/// All of them, the file system below first.
pub struct Mounts {
    pub all: Vec<Mount>,
}

impl Mounts {
    /// Mounts every peer that is installed, over a file of `megabytes` each.
    pub fn new(dir: &Path, megabytes: u64) -> Result<Self> {
        let mut all = vec![Mount {
            label: "native",
            dir: source(dir, "native", megabytes)?,
            server: None,
        }];
        all.push(drive(dir, &source(dir, "share", megabytes)?)?);
        let me = std::env::current_exe()?;
        let cache = dir.join("rclone-cache").display().to_string();
        let rclone = ["mount", "--vfs-cache-mode", "full", "--cache-dir", &cache];
        let peers: [(&'static str, &Path, &[&str], &[&str]); 4] = [
            ("bare fuser", &me, &["bare"], &[]),
            ("mergerfs", Path::new("mergerfs"), &["-f"], &[]),
            (
                "bindfs",
                Path::new("bindfs"),
                &["-f", "--multithreaded"],
                &[],
            ),
            ("rclone", Path::new("rclone"), &rclone, &[]),
        ];
        for (label, program, before, after) in peers {
            if !installed(program) {
                println!("skipped: {label} is not installed");
                continue;
            }
            let from = source(dir, label, megabytes)?;
            let to = dir.join(format!("{label} mounted"));
            fs::create_dir_all(&to)?;
            let mut command = Command::new(program);
            command.args(before).arg(&from).arg(&to).args(after);
            all.push(Mount::serve(label, command, to)?);
        }
        drop_pages(dir)?;
        Ok(Self { all })
    }
}

/// Drops what the page cache holds of all files below `dir`, so that all of them come back in the same way: pages
/// that a copy made are larger than those that reads make, and writes to them slower.
fn drop_pages(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if entry.metadata()?.dev() != fs::metadata(dir)?.dev() {
            // A mountpoint: what lies below it is met elsewhere.
        } else if kind.is_dir() {
            drop_pages(&entry.path())?;
        } else if kind.is_file() && entry.metadata()?.len() > 1 << 20 {
            let file = File::open(entry.path())?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Whether a program is there: by its path, or by its name among the installed ones.
pub fn installed(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A directory with the file, whose bytes are those of a simple counter: nothing compresses or dedups here.
fn source(dir: &Path, label: &str, megabytes: u64) -> Result<PathBuf> {
    let at = dir.join(label);
    fs::create_dir_all(&at)?;
    let mut file = File::create(at.join(FILE))?;
    for mb in 0..megabytes {
        let block: Vec<u8> = (0..1 << 17)
            .flat_map(|i: u64| (mb << 17 | i).to_le_bytes())
            .collect();
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(at)
}

/// Our daemon over `share`, in state *cached*, with every pinned file wholly fetched.
pub fn drive(dir: &Path, share: &Path) -> Result<Mount> {
    let to = dir.join("drive");
    fs::create_dir_all(&to)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pstsyncd"));
    command
        .args(["mount", "--mode", "cached", "--share"])
        .arg(share)
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg(&to);
    let mount = Mount::serve("pstsyncd", command, to)?;
    let deadline = Instant::now() + PATIENCE;
    while !whole(&mount.dir)? {
        if Instant::now() > deadline {
            bail!("the drive does not finish fetching");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(mount)
}

/// Whether the drive has every file it knows and nothing left to fetch.
fn whole(mountpoint: &Path) -> Result<bool> {
    let out = Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
        .args(["--json", "status", "--drive"])
        .arg(mountpoint)
        .output()?;
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&out.stdout) else {
        bail!("no status: {}", String::from_utf8_lossy(&out.stderr));
    };
    let cache = &status["cache"];
    Ok(cache["pinned_files"].as_u64() > Some(0)
        && cache["incomplete"].as_array().is_some_and(Vec::is_empty)
        && cache["filling"].is_null())
}

impl Mount {
    fn serve(label: &'static str, mut command: Command, dir: PathBuf) -> Result<Self> {
        let log = File::create(dir.with_extension("log"))?;
        let below = fs::metadata(&dir)?.dev();
        let server = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| label.to_owned())?;
        let mut mount = Self {
            label,
            dir,
            server: Some(server),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if fs::metadata(&mount.dir).is_ok_and(|m| m.dev() != below) {
                return Ok(mount);
            }
            let ended = match &mut mount.server {
                Some(server) => server.try_wait()?.is_some(),
                None => true,
            };
            // bindfs and mergerfs may go on in the background.
            if Instant::now() > deadline || ended {
                let said = fs::read_to_string(mount.dir.with_extension("log"));
                bail!("{label} does not mount: {}", said.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The file under load.
    pub fn file(&self) -> Result<File> {
        let path = self.dir.join(FILE);
        let open = File::options().read(true).write(true).open(&path);
        open.with_context(|| path.display().to_string())
    }

    /// Processor time that its server has taken, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = self
            .server()
            .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        // Behind the name in parentheses: the 12th and 13th field, in ticks of 10 ms.
        let fields = stat.as_deref().and_then(|s| s.rsplit_once(") "));
        let ticks = fields.map_or(0, |(_, rest)| {
            let of = rest.split(' ').skip(11).take(2);
            of.filter_map(|f| f.parse::<u64>().ok()).sum()
        });
        ticks as f64 / 100.0
    }

    /// Number of the process that serves it.
    pub fn server(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let helper = Command::new("fusermount3")
            .arg("-u")
            .arg(&self.dir)
            .status();
        if !helper.is_ok_and(|s| s.success()) {
            let _ = server.kill();
        }
        let _ = server.wait();
        let _ = Command::new("fusermount3")
            .args(["-q", "-u"])
            .arg(&self.dir)
            .stderr(Stdio::null())
            .status();
    }
}
