//! The whole program beside its peers, each a process of its own, in one run on the same files: wall time,
//! processor time and peak memory; the delta of one change at two sizes; the bytes that three edits
//! ship. At the end the figures that have targets, with these beside them.
//!
//! `PSTSYNCD_BENCH_MB` and `PSTSYNCD_BENCH_LARGE_MB` set the files' sizes (250 and 1200 without; 20,000
//! messages in 1200), `PSTSYNCD_BENCH_RUNS` the runs per line (5; the first is thrown away). Files are
//! read into the page cache before each run. A peer that is missing is named.
//!
//! Each part is a module with a function for its rows; words after `--` choose parts by name (walk,
//! everything, whole, shipped, ranges).

mod delta;
mod everything;
mod peer;
mod shipped;
#[path = "../support/mod.rs"]
mod support;
mod walk;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

fn main() -> Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        // A peer that is a library: this program runs itself.
        [mode, file] if mode == "outlook-pst-walk" => walk::outlook_pst_walk(Path::new(file)),
        args if args.iter().any(|a| a == "--bench") => {
            let parts = args.iter().filter(|a| *a != "--bench");
            table(
                &parts
                    .map(|a| a.to_string_lossy().into_owned())
                    .collect::<Vec<_>>(),
            )
        }
        _ => {
            println!("skipped: the table is printed by cargo bench only");
            Ok(())
        }
    }
}

/// What every part needs, and the figures that have a target.
struct Bench {
    dir: TempDir,
    program: &'static str,
    runs: u64,
    targets: Vec<(String, String, &'static str, bool)>,
}

impl Bench {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn report(&self) -> PathBuf {
        self.at("time.txt")
    }

    /// Notes a figure: what it is, its value, what it should be, and whether it is.
    fn target(&mut self, what: &str, value: String, target: &'static str, met: bool) {
        self.targets.push((what.to_owned(), value, target, met));
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn table(parts: &[String]) -> Result<()> {
    if let Some(missing) = peer::missing(Path::new("/usr/bin/time")) {
        println!("skipped: {missing} (Debian package: time)");
        return Ok(());
    }
    let mut bench = Bench {
        dir: tempfile::tempdir()?,
        program: env!("CARGO_BIN_EXE_pstsyncd"),
        runs: number("PSTSYNCD_BENCH_RUNS", 5).max(1),
        targets: Vec::new(),
    };
    let sizes = [
        number("PSTSYNCD_BENCH_MB", 250),
        number("PSTSYNCD_BENCH_LARGE_MB", 1200),
    ];
    let names = sizes.map(|mb| format!("{mb} MB"));
    let [small, large] = [
        support::generated(bench.dir.path(), sizes[0])?,
        support::generated(bench.dir.path(), sizes[1])?,
    ];
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    for (name, file) in names.iter().zip([&small, &large]) {
        if wanted("walk") {
            walk::rows(&mut bench, name, file)?;
        }
        if wanted("everything") {
            everything::rows(&bench, name, file);
        }
    }
    if wanted("whole") {
        delta::whole_files(&bench, &names[0], &small)?;
    }
    if wanted("shipped") {
        shipped::rows(&mut bench, &names[0], &small)?;
    }
    // Last: these change the files.
    if wanted("ranges") {
        delta::by_ranges(&mut bench, &[(&names[0], &small), (&names[1], &large)])?;
    }

    println!("\n### Targets\n\n| figure | measured | target | |\n|---|---:|---:|---|");
    for (what, value, target, met) in &bench.targets {
        let met = if *met { "met" } else { "**missed**" };
        println!("| {what} | {value} | {target} | {met} |");
    }
    Ok(())
}
