//! The daemon's peak memory with very many files known and very much cached.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{Targets, mounts, number};

/// Containers that are fetched whole.
const CONTAINERS: u64 = 10;

/// Fetches `PSTSYNCD_BENCH_GB` (10) gigabytes of containers, lists `PSTSYNCD_BENCH_FILES` (100,000) other files through the
/// mount, reads and writes a while, and takes the highest resident memory of all that time.
pub fn row(dir: &Path, targets: &mut Targets) -> Result<()> {
    let (files, gigabytes) = (
        number("PSTSYNCD_BENCH_FILES", 100_000),
        number("PSTSYNCD_BENCH_GB", 10),
    );
    let dir = dir.join("memory");
    let share = dir.join("share");
    for i in 0..files {
        let folder = share.join(format!("folder {:03}", i / 500));
        if i % 500 == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(format!("document number {i:06}.txt")), b"text")?;
    }
    // Holes on the share cost no disk; in the cache their zeros are written like any bytes.
    for i in 0..CONTAINERS {
        let file = File::create(share.join(format!("mail {i}.pst")))?;
        file.set_len((gigabytes << 30) / CONTAINERS)?;
    }
    let start = Instant::now();
    let mount = mounts::drive(&dir, &share)?;
    let fetched = start.elapsed();
    let pid = mount.server().context("no daemon")?;
    let after_fetch = peak_mb(pid)?;
    let mut seen = 0u64;
    let mut stack = vec![mount.dir.clone()];
    while let Some(at) = stack.pop() {
        for entry in fs::read_dir(&at)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                stack.push(entry.path());
            } else {
                seen += 1;
            }
        }
    }
    let after_list = peak_mb(pid)?;
    let block = vec![7; 64 << 10];
    for i in 0..CONTAINERS {
        let file = File::options()
            .read(true)
            .write(true)
            .open(mount.dir.join(format!("mail {i}.pst")))?;
        for n in 0..1600 {
            file.write_all_at(&block, n * 256 * 1024)?;
        }
        file.sync_all()?;
    }
    let after_writes = peak_mb(pid)?;
    println!("\n### Memory of the daemon: {seen} files known, {gigabytes} GB cached\n");
    println!("| highest resident memory, MB | |\n|---|---:|");
    println!(
        "| when all was fetched (in {:.0} s) | {after_fetch:.1} |",
        fetched.as_secs_f64()
    );
    println!("| when all was listed | {after_list:.1} |");
    println!("| when 1 GB had been written in 64 KiB pieces and flushed | {after_writes:.1} |");
    targets.under("memory of the daemon, MB", after_writes, 150.0);
    Ok(())
}

/// Highest resident memory of a process so far, in MB.
fn peak_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    let kib: f64 = kib.context("no VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}
