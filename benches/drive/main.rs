//! The drive beside its peers, in one run: `cargo bench --bench drive`, or `make bench-drive`.
//!
//! Our daemon (release build, state *cached*: every write goes through the journal), a bare pass-through of the same FUSE library
//! (`benches/support/bare.rs`), mergerfs, bindfs and rclone (`--vfs-cache-mode full`) are mounted side by side over
//! directories of one file system, which is measured too. Each load runs in short slices, one on each
//! in turn, round after round, so that whatever else the machine does hits all alike; a figure is the median of
//! the rounds, a ratio the median of the rounds' ratios. A peer that is missing is named.
//!
//! `PSTSYNCD_BENCH_DRIVE_MB` sets the file's size (256), `PSTSYNCD_BENCH_ROUNDS` the rounds (41),
//! `PSTSYNCD_BENCH_DIR` where all of it lies (the temporary directory). Words after `--`
//! choose parts: hits, sequential, flush, mix, memory. `memory` takes 12 GB there.

#[path = "../support/bare.rs"]
mod bare;
mod load;
mod memory;
mod mounts;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use load::{Load, Rounds};
use mounts::Mounts;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        // A peer that is this program itself.
        [mode, source, mountpoint] if mode == "bare" => {
            Ok(bare::serve(Path::new(source), Path::new(mountpoint))?)
        }
        args if args.iter().any(|a| a == "--bench") => table(args),
        _ => {
            println!("skipped: the table is printed by cargo bench only");
            Ok(())
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// Figures that have a target: what, measured, wanted, whether less is better.
#[derive(Default)]
struct Targets(Vec<(String, f64, f64, bool)>);

impl Targets {
    fn at_least(&mut self, what: &str, measured: f64, wanted: f64) {
        self.0.push((what.to_owned(), measured, wanted, false));
    }

    fn under(&mut self, what: &str, measured: f64, wanted: f64) {
        self.0.push((what.to_owned(), measured, wanted, true));
    }

    fn print(&self) {
        println!("\n### Targets\n\n| figure | measured | target | |\n|---|---:|---:|---|");
        for (what, measured, wanted, less) in &self.0 {
            let (sign, met) = if *less {
                ("under", measured < wanted)
            } else {
                ("at least", measured >= wanted)
            };
            let met = if met { "met" } else { "**missed**" };
            println!("| {what} | {measured:.2} | {sign} {wanted} | {met} |");
        }
    }
}

fn table(args: &[String]) -> Result<()> {
    let parts: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|a| *a != "--bench")
        .collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let base: PathBuf =
        std::env::var_os("PSTSYNCD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(&base).with_context(|| base.display().to_string())?;
    let mut targets = Targets::default();
    let loads = [Load::Hits, Load::Sequential, Load::Flush, Load::Mix];
    let loads: Vec<Load> = loads.into_iter().filter(|l| wanted(l.name())).collect();
    if !loads.is_empty() {
        let mounts = Mounts::new(dir.path(), number("PSTSYNCD_BENCH_DRIVE_MB", 256))?;
        for load in loads {
            let rounds = Rounds::run(load, &mounts.all, number("PSTSYNCD_BENCH_ROUNDS", 41))?;
            rounds.print();
            for (peer, wanted) in load.targets() {
                if let Some(ratio) = rounds.ratio("pstsyncd", peer) {
                    targets.at_least(&format!("{}: over {peer}", load.title()), ratio, *wanted);
                }
            }
        }
    }
    if wanted("memory") {
        memory::row(dir.path(), &mut targets)?;
    }
    targets.print();
    Ok(())
}
