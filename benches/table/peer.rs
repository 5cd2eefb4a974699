//! Other programs and ours, each a process of its own: what they take, and a table of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Ends after this long: a peer that takes longer is measured once.
const LONG: Duration = Duration::from_secs(15);

/// What one program took.
pub struct Cost {
    pub wall: Duration,
    pub cpu: f64,
    pub peak_kib: u64,
    pub runs: usize,
}

/// A program to measure. Its output goes nowhere; a directory it fills is made anew for each run.
pub struct Peer {
    pub label: &'static str,
    program: PathBuf,
    args: Vec<OsString>,
    /// It writes into this directory, which must be there before (`true`) or must not (`false`).
    fills: Option<(PathBuf, bool)>,
}

impl Peer {
    pub fn new(
        label: &'static str,
        program: impl AsRef<OsStr>,
        args: &[&dyn AsRef<OsStr>],
    ) -> Self {
        Self {
            label,
            program: PathBuf::from(program.as_ref()),
            args: args.iter().map(|a| a.as_ref().to_owned()).collect(),
            fills: None,
        }
    }

    pub fn filling(mut self, dir: &Path, exists: bool) -> Self {
        self.fills = Some((dir.to_path_buf(), exists));
        self
    }

    fn once(&self, report: &Path) -> Result<(Duration, f64, u64)> {
        if let Some((dir, exists)) = &self.fills {
            let parent = dir.parent().context("no parent directory")?;
            let _ = fs::remove_dir_all(parent);
            fs::create_dir_all(if *exists { dir } else { parent })?;
        }
        let _ = fs::remove_file(report);
        // Into the page cache, where the machine may have dropped it: disks are not compared here.
        for input in self.args.iter().map(Path::new).filter(|p| p.is_file()) {
            std::io::copy(&mut fs::File::open(input)?, &mut std::io::sink())?;
        }
        let start = Instant::now();
        // GNU time counts one process alone, whatever this one has used.
        let done = Command::new("/usr/bin/time")
            .args(["-q", "-f", "%U %S %M", "-o"])
            .arg(report)
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        let wall = start.elapsed();
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("it failed: {}", said.lines().last().unwrap_or("silently"));
        }
        let text = fs::read_to_string(report)?;
        let mut fields = text.split_whitespace();
        let mut field = || fields.next().context("no figures from /usr/bin/time");
        let cpu = field()?.parse::<f64>()? + field()?.parse::<f64>()?;
        Ok((wall, cpu, field()?.parse()?))
    }

    /// Runs it `runs` times after one to warm up: medians, and the highest peak.
    fn measure(&self, runs: u64, report: &Path) -> Result<Cost> {
        if let Some(missing) = missing(&self.program) {
            bail!("{missing}");
        }
        let mut all = Vec::new();
        let first = self.once(report)?;
        if first.0 > LONG {
            all.push(first);
        } else {
            for _ in 0..runs {
                all.push(self.once(report)?);
            }
        }
        all.sort_by_key(|run| run.0);
        let middle = &all[all.len() / 2];
        Ok(Cost {
            wall: middle.0,
            cpu: middle.1,
            peak_kib: all.iter().map(|r| r.2).max().unwrap_or(0),
            runs: all.len(),
        })
    }
}

/// Why a program cannot be run here.
pub fn missing(program: &Path) -> Option<String> {
    let there = if program.components().count() > 1 {
        program.is_file()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    (!there).then(|| format!("{} is not installed", program.display()))
}

/// Prints one task: our line first, the peers' with the ratio to it. What was measured, in their order.
pub fn task(title: &str, peers: &[Peer], runs: u64, report: &Path) -> Vec<Option<Cost>> {
    println!("\n### {title}\n");
    println!("| program | wall, s | processor, s | peak, MB | wall / ours | runs |");
    println!("|---|---:|---:|---:|---:|---:|");
    let mut ours = None;
    let mut costs = Vec::new();
    for peer in peers {
        match peer.measure(runs, report) {
            Ok(cost) => {
                let wall = cost.wall.as_secs_f64();
                let base = *ours.get_or_insert(wall);
                println!(
                    "| {} | {wall:.3} | {:.2} | {:.1} | {:.2} | {} |",
                    peer.label,
                    cost.cpu,
                    cost.peak_kib as f64 / 1024.0,
                    wall / base,
                    cost.runs
                );
                costs.push(Some(cost));
            }
            Err(e) => {
                println!("| {} | skipped: {e} | | | | |", peer.label);
                costs.push(None);
            }
        }
    }
    costs
}
