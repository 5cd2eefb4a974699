//! Deltas: of two whole files beside xdelta3, and of one change in files of two sizes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pst::Pst;
use pst::delta::{Reach, Trust, since};
use pst::inventory::Inventory;
use storage::FileStorage;

use crate::peer::{Peer, task};
use crate::{Bench, support};

/// Two whole files that differ in one subject, and nothing stored of either.
pub fn whole_files(bench: &Bench, name: &str, file: &Path) -> Result<()> {
    let (edited, change) = (bench.at("edited.pst"), bench.at("change"));
    fs::copy(file, &edited)?;
    support::change_subject(&edited)?;
    let peers = [
        Peer::new(
            "pstsyncd pst diff (no stored inventory)",
            bench.program,
            &[&"pst", &"diff", &file, &edited, &"-o", &change],
        ),
        Peer::new(
            "xdelta3 -e",
            "xdelta3",
            &[
                &"-q",
                &"-f",
                &"-B",
                &"2147483648",
                &"-e",
                &"-s",
                &file,
                &edited,
                &change,
            ],
        ),
    ];
    let title = format!("Delta of two whole files that differ in one subject, {name}");
    task(&title, &peers, bench.runs, &bench.report());
    fs::remove_file(&edited)?;
    Ok(())
}

/// One changed subject, found by the ranges that were written: the file opened, the delta made. In this
/// process, since the stored inventory is in the memory of the one who keeps it. Changes the files.
pub fn by_ranges(bench: &mut Bench, files: &[(&str, &Path)]) -> Result<()> {
    println!("\n### Delta of one changed message, by written ranges\n");
    println!(
        "| file | objects known | bytes written | median, ms | fastest, ms | over the first |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let mut first = None;
    for (name, file) in files {
        // The second change: the first may make the file grow.
        support::change_subject_to(file, "A first other subject")?;
        let pst = support::open(file)?;
        let (known, bid_next) = (Inventory::read(&pst)?, pst.ndb().next_bid()?);
        drop(pst);
        let ranges = support::change_subject_to(file, "A second other subject")?;
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..bench.runs.max(1) * 40 {
            let start = Instant::now();
            let pst = Pst::open(Arc::new(FileStorage::open_read_only(file)?))?;
            let trust = Trust::Written {
                bid_next,
                ranges: &ranges,
            };
            let delta = since(&known, &pst, trust)?;
            times.push(start.elapsed());
            ensure!(
                delta.reach == Reach::Ranges && delta.changes.len() == 1,
                "{:?}: {:?}",
                delta.reach,
                delta.changes
            );
        }
        times.sort_unstable();
        let middle = times[times.len() / 2].as_secs_f64() * 1e3;
        let over = middle / *first.get_or_insert(middle);
        println!(
            "| {name} | {} | {} | {middle:.3} | {:.3} | {over:.2} |",
            known.rows.len(),
            ranges.total(),
            times[0].as_secs_f64() * 1e3
        );
        if over != 1.0 {
            bench.target(
                &format!("delta by ranges: {name} over {}", files[0].0),
                format!("{over:.2}"),
                "at most 1.3",
                over <= 1.3,
            );
        }
    }
    Ok(())
}
