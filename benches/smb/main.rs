//! The drive passing through to an SMB server, beside other clients of the same server, in one run:
//! `cargo bench --bench smb`, or `make bench-smb`.
//!
//! Debian's smbd serves a directory on a port of the loopback, with signing mandatory. Its clients: our daemon
//! (release build, state *online*, nothing cached), the bare client library that the drive is built on, used
//! as its documentation says, the drive's share without a mount, the smallest file system over the bare library
//! (`null`: what any drive can reach at most), and smbclient. Each load runs in slices, one on each in turn, round after round,
//! so that whatever else the machine does hits all alike; a figure is the median of the rounds, a ratio the
//! median of the rounds' ratios. What the kernel keeps of the drive's files is dropped before each slice;
//! the server has all of them in memory.
//!
//! `PSTSYNCD_BENCH_SMB_MB` sets the file's size (128), `PSTSYNCD_BENCH_ROUNDS` the rounds (15),
//! `PSTSYNCD_BENCH_DIR` where all of it lies (the temporary directory), `PSTSYNCD_BENCH_SMB_SHARE` a further
//! line for the share's part of smb.conf, `PSTSYNCD_BENCH_OTHER` another build of the daemon to put beside this one,
//! `PSTSYNCD_BENCH_CALM` makes each slice wait until nothing else runs. Words after `--` choose loads: read, write, random, threads.

mod mounts;
mod null;
mod peers;
#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/skip.rs"]
mod skip;
#[allow(dead_code, clippy::unwrap_used)] // a test's server: some of it is for the tests of the share itself
#[path = "../../vfs/tests/common/smbd.rs"]
mod smbd;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use mounts::Mount;
use peers::{Alone, Bare, Peer, SmbClient};
use smbd::{Options, Smbd};

/// Random reads in a slice.
const READS: u64 = 2000;
/// What the target says of every load with a peer: at least this of the bare library's rate.
const WANTED: f64 = 0.8;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A whole file from its start.
    Read,
    /// A new file, written from its start and flushed.
    Write,
    /// 4 KiB anywhere, one after the other.
    Random,
    /// As [`Load::Random`], eight at a time.
    Threads,
}

impl Load {
    const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Random, Self::Threads];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Random => "random",
            Self::Threads => "threads",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Read => "sequential read",
            Self::Write => "sequential write, flushed",
            Self::Random => "4 KiB random reads, one at a time",
            Self::Threads => "4 KiB random reads, eight at a time",
        }
    }

    /// The rate of a slice: of what, and how much of that.
    fn amount(self, len: u64) -> (&'static str, f64) {
        match self {
            Self::Read | Self::Write => ("MB/s", len as f64 / 1e6),
            Self::Random | Self::Threads => ("reads/s", READS as f64),
        }
    }
}

/// Offsets of the reads of a slice: they look random (SplitMix64), and are the same for all.
pub fn places(seed: u64, len: u64) -> Vec<u64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    (0..READS).map(|_| next() % (len / 4096) * 4096).collect()
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A peer that is this program itself.
    if let [mode, address, user, share, mountpoint] = args.as_slice()
        && mode == "null"
    {
        return null::serve(address, user, share, Path::new(mountpoint));
    }
    if !args.iter().any(|a| a == "--bench") {
        println!("skipped: the table is printed by cargo bench only");
        return Ok(());
    }
    let chosen: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|a| *a != "--bench")
        .collect();
    let number = |variable: &str, default: u64| {
        let set = std::env::var(variable).ok();
        set.and_then(|v| v.parse().ok()).unwrap_or(default)
    };
    let base: PathBuf =
        std::env::var_os("PSTSYNCD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(&base).with_context(|| base.display().to_string())?;
    let len = number("PSTSYNCD_BENCH_SMB_MB", 128) << 20;
    let rounds = number("PSTSYNCD_BENCH_ROUNDS", 15);
    let root = dir.path().join("share");
    std::fs::create_dir(&root)?;
    peers::make(&root, len)?;
    let line = std::env::var("PSTSYNCD_BENCH_SMB_SHARE").unwrap_or_default();
    let options = Options {
        share: &line,
        ..Options::default()
    };
    let Some(server) = Smbd::start(&root, options) else {
        anyhow::bail!("there is no smbd: make bootstrap");
    };
    let mut all: Vec<Box<dyn Peer>> = Vec::new();
    let daemon = Path::new(env!("CARGO_BIN_EXE_pstsyncd"));
    all.push(Box::new(Mount::drive(
        "pstsyncd",
        daemon,
        dir.path(),
        &server,
    )?));
    match Bare::connect(&server) {
        Ok(bare) => all.push(Box::new(bare)),
        // It does not know how to reach a share that wants encryption.
        Err(e) => println!("skipped: the bare library does not reach this share: {e}"),
    }
    all.push(Box::new(Alone::connect(&server)));
    match Mount::null("bare fuser over bare smb2", dir.path(), &server) {
        Ok(null) => all.push(Box::new(null)),
        Err(e) => println!("skipped: the bare library does not reach this share: {e}"),
    }
    if let Some(other) = std::env::var_os("PSTSYNCD_BENCH_OTHER") {
        let other = Mount::drive("another pstsyncd", Path::new(&other), dir.path(), &server)?;
        all.push(Box::new(other));
    }
    all.push(Box::new(SmbClient::new(dir.path(), &server)?));
    let mut verdicts = Vec::new();
    for load in Load::ALL {
        if !chosen.is_empty() && !chosen.contains(&load.name()) {
            continue;
        }
        let rows = measure(load, &mut all, len, rounds)?;
        print(load, &all, &rows, len);
        let mut rates = rows.iter().map(|r| r.rates.as_ref());
        if let (Some(Some(ours)), Some(Some(bare))) = (rates.next(), rates.next())
            && all.get(1).is_some_and(|p| p.label() == peers::BARE)
        {
            verdicts.push((load.title(), median(&ratios(ours, bare))));
        }
    }
    println!("\n### Targets\n\n| figure | measured | target | |\n|---|---:|---:|---|");
    for (title, ratio) in verdicts {
        let met = if ratio >= WANTED { "met" } else { "**missed**" };
        println!(
            "| {title}: over {} | {ratio:.2} | at least {WANTED} | {met} |",
            peers::BARE
        );
    }
    Ok(())
}

/// What one peer did.
#[derive(Default)]
struct Row {
    /// Of each round; `None` where it cannot do this.
    rates: Option<Vec<f64>>,
    /// Ticks that all processors together were busy during its slices, and idle.
    spent: (u64, u64),
}

fn measure(load: Load, all: &mut [Box<dyn Peer>], len: u64, rounds: u64) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = all
        .iter()
        .map(|_| Row {
            rates: Some(Vec::new()),
            ..Row::default()
        })
        .collect();
    let (_, amount) = load.amount(len);
    let calm = std::env::var_os("PSTSYNCD_BENCH_CALM").is_some();
    // The first round is thrown away.
    for round in 0..=rounds {
        for turn in 0..all.len() {
            let i = (turn + round as usize) % all.len();
            if calm {
                wait_for_calm();
            }
            let before = spent();
            match all[i].slice(load, round + 1, len)? {
                Some(took) if round > 0 => {
                    if let Some(rates) = &mut rows[i].rates {
                        rates.push(amount / took.as_secs_f64());
                    }
                    let (after, spent) = (spent(), &mut rows[i].spent);
                    *spent = (spent.0 + after.0 - before.0, spent.1 + after.1 - before.1);
                }
                Some(_) => {}
                None => rows[i].rates = None,
            }
        }
    }
    Ok(rows)
}

/// How long all processors together were busy, and idle, in ticks of the system's.
fn spent() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (ticks.iter().take(8).sum::<u64>() - idle, idle)
}

/// Waits, half a minute at most, until the processors had next to nothing to do for a fifth of a second.
fn wait_for_calm() {
    for _ in 0..150 {
        let before = spent();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let after = spent();
        if (after.0 - before.0) * 10 < after.1 - before.1 {
            return;
        }
    }
}

fn print(load: Load, all: &[Box<dyn Peer>], rows: &[Row], len: u64) {
    let (unit, _) = load.amount(len);
    let rounds = rows.iter().filter_map(|r| r.rates.as_ref()).map(Vec::len);
    let rounds = rounds.max().unwrap_or(0);
    println!("\n### {}\n", load.title());
    println!(
        "| {rounds} rounds | {unit} | slowest–fastest round | over the bare library, slowest–fastest | all processors busy |"
    );
    println!("|---|---:|---:|---:|---:|");
    let bare = all
        .iter()
        .position(|p| p.label() == peers::BARE)
        .and_then(|i| rows[i].rates.as_ref());
    for (peer, row) in all.iter().zip(rows) {
        let Some(rates) = &row.rates else {
            println!("| {} | cannot | | | |", peer.label());
            continue;
        };
        let over = bare.map_or(String::new(), |bare| {
            let all = ratios(rates, bare);
            let (least, most) = ends(&all);
            format!("{:.2}, {least:.2}–{most:.2}", median(&all))
        });
        let (least, most) = ends(rates);
        println!(
            "| {} | {:.0} | {least:.0}–{most:.0} | {over} | {:.0} % |",
            peer.label(),
            median(rates),
            row.spent.0 as f64 * 100.0 / (row.spent.0 + row.spent.1).max(1) as f64,
        );
    }
}

fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

fn ends(of: &[f64]) -> (f64, f64) {
    let least = of.iter().copied().fold(f64::INFINITY, f64::min);
    (least, of.iter().copied().fold(0.0, f64::max))
}

fn median(of: &[f64]) -> f64 {
    let mut of = of.to_vec();
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}
