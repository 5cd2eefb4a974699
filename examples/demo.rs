//! The main job, end to end, with real parts: a share, an agent over TLS, a mounted drive, a mail
//! program that edits a PST through it, and the PST on the share brought up to date.
//!
//! ```text
//! demo [--pst FILE] [--megabytes N] [--keep]
//! ```
//!
//! Everything happens in a temporary directory and on loopback; nothing is left running.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;

#[derive(Parser)]
struct Args {
    /// The PST to work on (a copy of it is used); without it one is made.
    #[arg(long)]
    pst: Option<PathBuf>,
    /// Size of the PST that is made.
    #[arg(long, default_value_t = 50)]
    megabytes: u64,
    /// Leave the files in place and say where.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::from(5)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let mut demo = Demo::set_up(args)?;
    let played = demo.play();
    let result = demo.tear_down().and(played);
    if args.keep {
        println!("\nEverything is kept in {}", demo.home.display());
    } else {
        fs::remove_dir_all(&demo.home)?;
    }
    result?;
    println!(
        "\nDone in {:.1} s; nothing is left running.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// One stage of the demo, for the closing table.
struct Row {
    stage: &'static str,
    objects: String,
    shipped: Option<u64>,
    rsync: Option<u64>,
    size: u64,
    verified: bool,
}

struct Demo {
    bin: PathBuf,
    writer: PathBuf,
    home: PathBuf,
    on_share: PathBuf,
    on_drive: PathBuf,
    agent: Option<Child>,
    mounted: bool,
    rows: Vec<Row>,
}

impl Demo {
    fn set_up(args: &Args) -> Result<Self> {
        let here = std::env::current_exe()?;
        let examples = here.parent().context("the demo has no directory")?;
        let bin = examples
            .parent()
            .context("no target directory")?
            .join("pstsyncd");
        ensure!(
            bin.is_file(),
            "{} is missing: run `cargo build` first",
            bin.display()
        );
        let home = std::env::temp_dir().join(format!("pstsyncd-demo-{}", std::process::id()));
        for dir in ["share/Mail", "drive", "state", "agent"] {
            fs::create_dir_all(home.join(dir))?;
        }
        let demo = Self {
            bin,
            writer: examples.join("mail_writer"),
            on_share: home.join("share/Mail/work.pst"),
            on_drive: home.join("drive/Mail/work.pst"),
            home,
            agent: None,
            mounted: false,
            rows: Vec::new(),
        };
        if let Err(error) = demo.provide_pst(args) {
            fs::remove_dir_all(&demo.home)?;
            return Err(error);
        }
        Ok(demo)
    }

    fn provide_pst(&self, args: &Args) -> Result<()> {
        heading("A PST on a share");
        match &args.pst {
            Some(pst) => {
                fs::copy(pst, &self.on_share)
                    .with_context(|| format!("cannot copy {}", pst.display()))?;
            }
            None => {
                let megabytes = args.megabytes.to_string();
                let share = path(&self.on_share);
                echo(&run_program(
                    &self.writer,
                    &["create", share, "--megabytes", &megabytes],
                )?);
            }
        }
        echo(&self.pstsyncd(&["pst", "info", path(&self.on_share)])?);
        Ok(())
    }

    fn play(&mut self) -> Result<()> {
        self.start_agent()?;
        self.mount()?;
        self.online()?;
        self.cached()?;
        self.offline()?;
        self.table();
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        heading("An agent beside the share (TLS on loopback)");
        let mut child = Command::new(&self.bin)
            .args([
                "agent",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--json",
                "--root",
            ])
            .arg(self.home.join("share"))
            .arg("--state-dir")
            .arg(self.home.join("agent"))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.home.join("agent.log"))?)
            .spawn()
            .context("cannot start the agent")?;
        let stdout = child.stdout.take().context("the agent has no output")?;
        self.agent = Some(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "the agent did not start: {}",
            fs::read_to_string(self.home.join("agent.log"))?.trim()
        );
        let answer: Value = serde_json::from_str(&line)?;
        println!(
            "listening on {}, CA pinned by {}",
            text(&answer, "url"),
            text(&answer, "ca_fingerprint")
        );
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        heading("A drive over it");
        let home = |name: &str| path(&self.home.join(name)).to_owned();
        echo(&self.pstsyncd(&[
            "mount",
            "--share",
            &home("share"),
            &home("drive"),
            "--state-dir",
            &home("state"),
            "--agent-invitation",
            &home("agent/client.json"),
            "--background",
            "--auto-sync",
            "off",
        ])?);
        self.mounted = true;
        Ok(())
    }

    fn online(&mut self) -> Result<()> {
        heading("Online: a mail program edits the PST on the drive, writes pass through");
        self.edit(1)?;
        self.compare_dumps()?;
        self.rows.push(Row {
            stage: "online",
            objects: "passed through".into(),
            shipped: None,
            rsync: None,
            size: fs::metadata(&self.on_share)?.len(),
            verified: true,
        });
        Ok(())
    }

    fn cached(&mut self) -> Result<()> {
        heading("Cached: the link is poor, writes go to the journal, objects are shipped");
        echo(&self.pstsyncd(&["mode", "cached"])?);
        self.edit(2)?;
        self.sync("cached")
    }

    fn offline(&mut self) -> Result<()> {
        heading("Offline: no link; edits are journaled and wait");
        echo(&self.pstsyncd(&["mode", "offline"])?);
        self.edit(3)?;
        let refused = self.command(&["sync", "now"]).output()?;
        println!(
            "$ pstsyncd sync now    (exit code {:?})",
            refused.status.code().unwrap_or(-1)
        );
        ensure!(
            refused.status.code() == Some(4),
            "sync while offline must exit with 4"
        );
        echo(&String::from_utf8_lossy(&refused.stderr));
        heading("The link is back");
        echo(&self.pstsyncd(&["mode", "cached"])?);
        self.sync("offline")
    }

    fn edit(&self, seed: u64) -> Result<()> {
        println!("$ mail_writer edit {}", self.shorten(&self.on_drive));
        let seed = seed.to_string();
        echo(&run_program(
            &self.writer,
            &["edit", path(&self.on_drive), "--seed", &seed],
        )?);
        Ok(())
    }

    fn sync(&mut self, stage: &'static str) -> Result<()> {
        self.show_status()?;
        let rsync = self.rsync_bytes()?;
        let before = self.home.join("before.pst");
        fs::copy(&self.on_share, &before)?;
        let answer = self.pstsyncd(&["sync", "now", "--json"])?;
        let last = answer.lines().last().unwrap_or_default();
        let report: Value = serde_json::from_str(last).with_context(|| answer.clone())?;
        let report = report["files"].get(0).context("nothing was synced")?;
        let objects = format!(
            "{} added, {} updated, {} moved, {} deleted",
            report["added"], report["updated"], report["moved"], report["deleted"]
        );
        let shipped = report["shipped_bytes"]
            .as_u64()
            .context("no shipped_bytes")?;
        let verified = report["outcome"] == "synced" && report["verified_at"].is_string();
        println!("$ pstsyncd sync now");
        println!(
            "change list: {objects}; {shipped} bytes shipped; verified by the agent: {verified}"
        );
        ensure!(verified, "the agent did not verify: {report}");
        println!("What that did to the PST on the share:");
        let package = self.home.join("changes");
        let args = [
            "pst",
            "diff",
            path(&before),
            path(&self.on_share),
            "-o",
            path(&package),
        ];
        echo(&output(&mut self.command(&args))?);
        fs::remove_file(before)?;
        self.compare_dumps()?;
        let size = fs::metadata(&self.on_drive)?.len();
        self.rows.push(Row {
            stage,
            objects,
            shipped: Some(shipped),
            rsync,
            size,
            verified,
        });
        Ok(())
    }

    /// Changes wait here, so `status` ends with 2.
    fn show_status(&self) -> Result<()> {
        println!("$ pstsyncd status");
        let output = self.command(&["status"]).output()?;
        ensure!(
            output.status.code() == Some(2),
            "status must say that changes are pending"
        );
        echo(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    fn compare_dumps(&self) -> Result<()> {
        let drive = self.pstsyncd(&["pst", "dump", path(&self.on_drive), "--json"])?;
        let share = self.pstsyncd(&["pst", "dump", path(&self.on_share), "--json"])?;
        if drive != share {
            fs::write(self.home.join("drive.jsonl"), &drive)?;
            fs::write(self.home.join("share.jsonl"), &share)?;
            let line = drive.lines().zip(share.lines()).find(|(a, b)| a != b);
            bail!(
                "the dumps differ (kept in {}): {line:?}",
                self.home.display()
            );
        }
        println!(
            "dumps equal: {} objects on the drive and on the share",
            drive.lines().count()
        );
        Ok(())
    }

    /// What `rsync -z` would move to bring the share's file up to date, both directions.
    fn rsync_bytes(&self) -> Result<Option<u64>> {
        let copy = self.home.join("rsync-copy.pst");
        fs::copy(&self.on_share, &copy)?;
        let output = Command::new("rsync")
            .args(["-z", "--no-whole-file", "--checksum", "--stats"])
            .args([&self.on_drive, &copy])
            .env("LC_ALL", "C")
            .output();
        let Ok(output) = output else { return Ok(None) };
        fs::remove_file(copy)?;
        let stats = String::from_utf8_lossy(&output.stdout).replace(',', "");
        let figure = |name: &str| -> u64 {
            let line = stats
                .lines()
                .find(|l| l.starts_with(name))
                .unwrap_or_default();
            line.rsplit(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        Ok(Some(
            figure("Total bytes sent") + figure("Total bytes received"),
        ))
    }

    fn table(&self) {
        heading("What went over the wire");
        println!(
            "{:<8} {:<45} {:>10} {:>10} {:>12}  verified",
            "stage", "objects", "shipped", "rsync -z", "file"
        );
        let bytes = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        for row in &self.rows {
            println!(
                "{:<8} {:<45} {:>10} {:>10} {:>12}  {}",
                row.stage,
                row.objects,
                bytes(row.shipped),
                bytes(row.rsync),
                row.size,
                if row.verified {
                    "yes, dumps equal"
                } else {
                    "NO"
                },
            );
        }
    }

    fn tear_down(&mut self) -> Result<()> {
        if self.mounted {
            heading("Unmount");
            let drive = path(&self.home.join("drive")).to_owned();
            echo(&self.pstsyncd(&["unmount", &drive])?);
            self.mounted = false;
        }
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bin);
        // The demo's own runtime directory: drives of the user who runs it are not touched.
        command.args(args).env("XDG_RUNTIME_DIR", &self.home);
        command
    }

    fn pstsyncd(&self, args: &[&str]) -> Result<String> {
        if !args.contains(&"--json") {
            let shown: Vec<String> = args.iter().map(|a| self.shorten(Path::new(a))).collect();
            println!("$ pstsyncd {}", shown.join(" "));
        }
        output(&mut self.command(args))
    }

    fn shorten(&self, path: &Path) -> String {
        path.display()
            .to_string()
            .replace(&format!("{}/", self.home.display()), "")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            eprintln!("while cleaning up: {error:#}");
        }
    }
}

fn run_program(program: &Path, args: &[&str]) -> Result<String> {
    output(Command::new(program).args(args))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn echo(text: &str) {
    for line in text.lines() {
        println!("   {line}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the demo's own paths are UTF-8")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}
