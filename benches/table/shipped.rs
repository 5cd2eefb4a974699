//! The bytes that three edits ship, beside xdelta3 and rsync, which hold both files or talk both ways.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::peer::missing;
use crate::{Bench, support};

/// Changes a PST in place.
type Edit = fn(&Path) -> Result<()>;

/// Bytes for one subject changed, one message deleted, one added with 3 KB of noise.
pub fn rows(bench: &mut Bench, size: &str, old: &Path) -> Result<()> {
    println!("\n### Bytes shipped, {size}\n");
    let (dir, program) = (bench.dir.path().to_path_buf(), bench.program);
    let dir = dir.as_path();
    let new = dir.join("new.pst");
    println!("\n| edit | pst diff | on a link | xdelta3 -9 | rsync -z |");
    println!("|---|---:|---:|---:|---:|");
    let edits: [(&str, &[Edit]); 4] = [
        ("one subject changed", &[support::change_subject]),
        ("one message deleted", &[support::delete_message]),
        ("one added, 3 KB of noise attached", &[support::add_message]),
        (
            "all three",
            &[
                support::change_subject,
                support::delete_message,
                support::add_message,
            ],
        ),
    ];
    for (name, steps) in edits {
        fs::copy(old, &new)?;
        for step in steps {
            step(&new)?;
        }
        let (plain, packed) = ours(dir, program, old, &new)?;
        let or = |r: Result<u64>| r.map_or_else(|e| format!("skipped: {e}"), |n| n.to_string());
        println!(
            "| {name} | {plain} | {packed} | {} | {} |",
            or(xdelta3(dir, old, &new)),
            or(rsync(dir, old, &new))
        );
        if steps.len() > 1 {
            bench.target(
                &format!("shipped bytes, {size}, {name}"),
                packed.to_string(),
                "under 6,144",
                packed < 6144,
            );
        }
    }
    fs::remove_file(&new)?;
    Ok(())
}

fn ours(dir: &Path, program: &str, old: &Path, new: &Path) -> Result<(u64, u64)> {
    let out = Command::new(program)
        .args(["--json", "pst", "diff"])
        .args([old, new])
        .arg("-o")
        .arg(dir.join("package"))
        .output()?;
    let text = String::from_utf8(out.stdout)?;
    let summary = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .find_map(|l| l.get("summary").cloned())
        .with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?;
    let field = |name: &str| summary.get(name).and_then(serde_json::Value::as_u64);
    let (plain, packed) = (field("bytes"), field("packed_bytes"));
    Ok((
        plain.context("no bytes in the summary")?,
        packed.context("no packed_bytes in the summary")?,
    ))
}

fn xdelta3(dir: &Path, old: &Path, new: &Path) -> Result<u64> {
    if let Some(missing) = missing(Path::new("xdelta3")) {
        bail!("{missing}");
    }
    let delta = dir.join("delta.vcdiff");
    // -B: the source window must hold the whole file, else it forgets the far parts of it.
    let status = Command::new("xdelta3")
        .args(["-q", "-f", "-9", "-B", "2147483648", "-e", "-s"])
        .args([old, new, &delta])
        .status()?;
    if !status.success() {
        bail!("xdelta3 failed");
    }
    Ok(fs::metadata(delta)?.len())
}

/// What rsync says it sent and received: its delta algorithm between two local files.
fn rsync(dir: &Path, old: &Path, new: &Path) -> Result<u64> {
    if let Some(missing) = missing(Path::new("rsync")) {
        bail!("{missing}");
    }
    let target = dir.join("rsync.pst");
    fs::copy(old, &target)?;
    let out = Command::new("rsync")
        .args([
            "-z",
            "--no-whole-file",
            "--inplace",
            "--ignore-times",
            "--stats",
        ])
        .args([new, &target])
        .output()?;
    let text = String::from_utf8(out.stdout)?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.replace(',', "").trim().parse().ok()
    };
    fs::remove_file(&target)?;
    let sum = field("Total bytes sent:").zip(field("Total bytes received:"));
    let (sent, received) = sum.context("no figures from rsync --stats")?;
    Ok(sent + received)
}
