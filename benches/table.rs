//! The whole program beside its peers, each a process of its own, in one run on the same file: wall time,
//! processor time and peak memory. Then the bytes that three edits ship, beside xdelta3 and rsync.
//!
//! `PSTSYNCD_BENCH_MB` sets the file's size (250 without), `PSTSYNCD_BENCH_RUNS` the runs per line (5; the
//! first is thrown away). Files are read into the page cache before each run. A peer that is missing is named.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outlook_pst::UnicodePstFile;
use outlook_pst::messaging::folder::{Folder as _, UnicodeFolder};
use outlook_pst::messaging::message::{Message as _, UnicodeMessage};
use outlook_pst::messaging::store::{Store as _, UnicodeStore};
use outlook_pst::ndb::node_id::NodeId;
use pst::messaging::tags;

/// Ends after this long: a peer that takes longer is measured once.
const LONG: Duration = Duration::from_secs(15);

fn main() -> Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        // A peer that is a library: this program runs itself.
        [mode, file] if mode == "outlook-pst-walk" => outlook_pst_walk(Path::new(file)),
        args if args.iter().any(|a| a == "--bench") => table(),
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

/// The subject of every message, through Microsoft's `outlook-pst` crate: folders and contents tables say
/// which, and each message is then opened, as the others do it.
fn outlook_pst_walk(path: &Path) -> Result<()> {
    let store = UnicodeStore::read(Rc::new(UnicodePstFile::open(path)?))?;
    let mut queue = vec![store.properties().ipm_sub_tree_entry_id()?];
    let (mut found, mut failed) = (0u64, 0u64);
    while let Some(id) = queue.pop() {
        let folder = UnicodeFolder::read(Rc::clone(&store), &id)?;
        let id_of = |row: u32| store.properties().make_entry_id(NodeId::from(row));
        if let Some(table) = folder.hierarchy_table() {
            for row in table.rows_matrix() {
                queue.push(id_of(u32::from(row.id()))?);
            }
        }
        let Some(table) = folder.contents_table() else {
            continue;
        };
        for row in table.rows_matrix() {
            let id = id_of(u32::from(row.id()))?;
            match UnicodeMessage::read(Rc::clone(&store), &id, None) {
                Ok(m) if m.properties().get(tags::SUBJECT).is_some() => found += 1,
                _ => failed += 1,
            }
        }
    }
    println!("{found} messages, {failed} unreadable");
    Ok(())
}

/// What one program took.
struct Cost {
    wall: Duration,
    cpu: f64,
    peak_kib: u64,
    runs: usize,
}

/// A program to measure. Its output goes nowhere; a directory it fills is made anew for each run.
struct Peer {
    label: &'static str,
    program: PathBuf,
    args: Vec<OsString>,
    /// It writes into this directory, which must be there before (`true`) or must not (`false`).
    fills: Option<(PathBuf, bool)>,
}

impl Peer {
    fn new(label: &'static str, program: impl AsRef<OsStr>, args: &[&dyn AsRef<OsStr>]) -> Self {
        Self {
            label,
            program: PathBuf::from(program.as_ref()),
            args: args.iter().map(|a| a.as_ref().to_owned()).collect(),
            fills: None,
        }
    }

    fn filling(mut self, dir: &Path, exists: bool) -> Self {
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
fn missing(program: &Path) -> Option<String> {
    let there = if program.components().count() > 1 {
        program.is_file()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    (!there).then(|| format!("{} is not installed", program.display()))
}

/// Prints one task: our line first, the peers' with the ratio to it.
fn task(title: &str, peers: &[Peer], runs: u64, report: &Path) {
    println!("\n### {title}\n");
    println!("| program | wall, s | processor, s | peak, MB | wall / ours | runs |");
    println!("|---|---:|---:|---:|---:|---:|");
    let mut ours = None;
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
            }
            Err(e) => println!("| {} | skipped: {e} | | | | |", peer.label),
        }
    }
}

fn table() -> Result<()> {
    let (megabytes, runs) = (
        number("PSTSYNCD_BENCH_MB", 250),
        number("PSTSYNCD_BENCH_RUNS", 5).max(1),
    );
    if let Some(missing) = missing(Path::new("/usr/bin/time")) {
        println!("skipped: {missing} (Debian package: time)");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let file = support::generated(dir.path(), megabytes)?;
    let report = at("time.txt");
    let program = env!("CARGO_BIN_EXE_pstsyncd");
    let me = std::env::current_exe()?;

    let walk = [
        Peer::new(
            "pstsyncd pst ls -l",
            program,
            &[&"pst", &"ls", &"-l", &file],
        ),
        Peer::new("lspst", "lspst", &[&file]),
        Peer::new("outlook-pst crate", &me, &[&"outlook-pst-walk", &file]),
    ];
    task(
        "Walk: every folder, every message with its subject",
        &walk,
        runs,
        &report,
    );

    let out = at("export/all");
    let target = at("export/all");
    let everything = [
        Peer::new(
            "pstsyncd pst dump --json",
            program,
            &[&"pst", &"dump", &"--json", &file],
        ),
        Peer::new(
            "readpst -r (writes mbox files)",
            "readpst",
            &[&"-q", &"-r", &"-D", &"-j", &"0", &"-o", &out, &file],
        )
        .filling(&out, true),
        Peer::new(
            "pffexport (writes a file per item)",
            "pffexport",
            &[&"-q", &"-t", &target, &file],
        )
        .filling(&target, false),
    ];
    task(
        "Everything: every property, body and attachment read",
        &everything,
        runs,
        &report,
    );
    let _ = fs::remove_dir_all(at("export"));

    let info = [
        Peer::new("pstsyncd pst info", program, &[&"pst", &"info", &file]),
        Peer::new("pffinfo", "pffinfo", &[&file]),
    ];
    task("Information about the file", &info, runs, &report);

    let edited = at("edited.pst");
    fs::copy(&file, &edited)?;
    support::change_subject(&edited)?;
    let change = at("change");
    let delta = [
        Peer::new(
            "pstsyncd pst diff (no stored inventory)",
            program,
            &[&"pst", &"diff", &file, &edited, &"-o", &change],
        ),
        Peer::new(
            "xdelta3 -e",
            "xdelta3",
            &[
                &"-q",
                &"-f",
                &"-B",
                &"536870912",
                &"-e",
                &"-s",
                &file,
                &edited,
                &change,
            ],
        ),
    ];
    task(
        "Delta of two whole files that differ in one subject",
        &delta,
        runs,
        &report,
    );
    fs::remove_file(&edited)?;
    fs::remove_file(&file)?;
    shipped(dir.path(), program)
}

/// Changes a PST in place.
type Edit = fn(&Path) -> Result<()>;

/// Bytes for one subject changed, one message deleted, one added with 3 KB of noise.
fn shipped(dir: &Path, program: &str) -> Result<()> {
    println!("\n### Bytes shipped\n");
    let old = support::generated(dir, 50)?;
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
        fs::copy(&old, &new)?;
        for step in steps {
            step(&new)?;
        }
        let (plain, packed) = ours(dir, program, &old, &new)?;
        let or = |r: Result<u64>| r.map_or_else(|e| format!("skipped: {e}"), |n| n.to_string());
        println!(
            "| {name} | {plain} | {packed} | {} | {} |",
            or(xdelta3(dir, &old, &new)),
            or(rsync(dir, &old, &new))
        );
    }
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
        .args(["-q", "-f", "-9", "-B", "536870912", "-e", "-s"])
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
    let sum = field("Total bytes sent:").zip(field("Total bytes received:"));
    let (sent, received) = sum.context("no figures from rsync --stats")?;
    Ok(sent + received)
}
