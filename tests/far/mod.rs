//! The whole product over a link: smbd and the agent at one end, the daemon with its mounted drive and
//! the test's own thread at the other (see `net/`). Everything ends with it.
//!
//! Whoever includes this module has `net` and `support` beside it.
#![allow(dead_code)] // Not every test needs all of it.

#[allow(clippy::unwrap_used)]
#[path = "../../vfs/tests/common/smbd.rs"]
pub mod smbd;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::net::spaces::Inside;
use crate::net::{Net, SERVER};
use crate::{port, skip};
use smbd::{Host, Options, Smbd};

const AGENT_PORT: u16 = 8443;

/// Makes a PST of so many megabytes, or of as many as `PSTSYNCD_POOR_LINK_MB` says.
pub fn make_pst(at: &Path, megabytes: u64) {
    let set = std::env::var("PSTSYNCD_POOR_LINK_MB").ok();
    let megabytes = set.map_or(megabytes, |n| n.parse().expect("a number"));
    let example = crate::support::edit(at);
    let status = Command::new(example.get_program())
        .args(["create", at.to_str().expect("UTF-8"), "--megabytes"])
        .arg(megabytes.to_string())
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("runs").success());
}

/// See the head of this file. Its thread is on the client's side.
pub struct Far {
    pub home: TempDir,
    agent: Option<Child>,
    /// Mountpoints that have a daemon, with its process.
    mounted: Vec<(PathBuf, u64)>,
    pub server: Smbd,
    /// Where drives find the server, if not at its own port: a proxy's.
    pub port: Option<u16>,
    _inside: Inside,
    pub net: Net,
}

impl Far {
    /// A share with one PST on it, `Mail/work.pst`, and an agent beside it. `None` (and the test counts
    /// as skipped) where one of the parts is not to be had.
    pub fn new(share: &str) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            skip::skipped("fuse", "no /dev/fuse");
            return None;
        }
        let net = Net::new()?;
        let home = tempfile::tempdir().expect("a temporary directory");
        for dir in ["share/Mail", "drive", "agent", "run"] {
            fs::create_dir_all(home.path().join(dir)).expect("directories");
        }
        let _inside = net.enter();
        let options = Options {
            share,
            host: Some(Host {
                address: SERVER,
                enter: net.beside_server(),
            }),
            ..Options::default()
        };
        let server = Smbd::start(&home.path().join("share"), options)?;
        let password = home.path().join("password");
        fs::write(&password, server.password()).expect("writes");
        fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).expect("its mode");
        Some(Self {
            home,
            agent: None,
            mounted: Vec::new(),
            server,
            port: None,
            _inside,
            net,
        })
    }

    /// Starts the agent beside the server.
    pub fn start_agent(&mut self) {
        let mut child = self
            .net
            .server_command(env!("CARGO_BIN_EXE_pstsyncd"))
            .args(["agent", "serve", "--json"])
            .args(["--listen", &format!("{SERVER}:{AGENT_PORT}")])
            .arg("--root")
            .arg(self.path("share"))
            .arg("--state-dir")
            .arg(self.path("agent"))
            .stdout(Stdio::piped())
            .stderr(File::create(self.path("agent.log")).expect("a log"))
            .spawn()
            .expect("the agent starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        self.agent = Some(child);
        let log = fs::read_to_string(self.path("agent.log")).unwrap_or_default();
        assert!(line.contains("\"url\""), "agent: {line}{log}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn on_share(&self) -> PathBuf {
        self.path("share/Mail/work.pst")
    }

    pub fn on_drive(&self) -> PathBuf {
        self.path("drive/Mail/work.pst")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pstsyncd"));
        command.args(args).env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs `pstsyncd ARGS --json`; gives the exit code and the last JSON line of its output.
    pub fn run(&self, args: &[&str]) -> (i32, Value) {
        let output = self.command(args).arg("--json").output().expect("runs");
        (output.status.code().unwrap_or(-1), last_json(&output))
    }

    /// As [`Far::run`], which must succeed.
    pub fn ok(&self, args: &[&str]) -> Value {
        let (code, answer) = self.run(args);
        let log = || fs::read_to_string(self.path("drive-state/daemon.log")).unwrap_or_default();
        assert_eq!(code, 0, "pstsyncd {args:?} answered {answer}\n{}", log());
        answer
    }

    /// `sync now`, until nothing waits: the server may hold a file that was just closed a moment longer, and
    /// the sync is put off then.
    pub fn synced(&self) -> Value {
        let args = ["sync", "now"];
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            let (code, answer) = self.run(&args);
            match code {
                0 => return answer,
                2 => std::thread::sleep(Duration::from_millis(200)),
                _ => break,
            }
        }
        self.ok(&args)
    }

    /// Mounts a drive over the share at the directory `at`, which is made, with a state of its own.
    pub fn mount(&mut self, at: &str, mode: &str, more: &[&str]) {
        let mountpoint = self.path(at);
        fs::create_dir_all(&mountpoint).expect("a mountpoint");
        self.net.unmount_at_the_end(&mountpoint);
        let mut share = self.server.address("share").to_string();
        if let Some(port) = self.port {
            share = share.replace(&format!(":{}/", self.server.port()), &format!(":{port}/"));
        }
        let output = self
            .command(&["mount", "--background", "--json", "--mode", mode])
            .args(["--auto-sync", "off", "--share", &share])
            .arg("--password-file")
            .arg(self.path("password"))
            .arg("--state-dir")
            .arg(self.path(&format!("{at}-state")))
            .args(self.agent.iter().map(|_| "--agent-invitation"))
            .args(self.agent.iter().map(|_| self.path("agent/client.json")))
            .args(more)
            .arg(&mountpoint)
            .output()
            .expect("pstsyncd runs");
        let answer = last_json(&output);
        assert!(output.status.success(), "mount answered {answer}");
        let pid = answer["pid"].as_u64().expect("a pid");
        self.mounted.push((mountpoint, pid));
    }

    /// Kills the daemon of a drive, and takes its dead mount away.
    pub fn kill(&mut self, at: &str) {
        let mountpoint = self.path(at);
        let place = self.mounted.iter().position(|(m, _)| *m == mountpoint);
        let (mountpoint, pid) = self.mounted.remove(place.expect("mounted"));
        let kill = Command::new("kill").args(["-9", &pid.to_string()]).output();
        assert!(kill.expect("runs").status.success());
        let umount = Command::new("umount").arg("-l").arg(mountpoint).output();
        assert!(umount.expect("runs").status.success());
    }

    /// Stops the agent.
    pub fn stop_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill().expect("kills");
        agent.wait().expect("waits");
    }

    pub fn unmount(&mut self, at: &str) {
        let mountpoint = self.path(at);
        self.mounted.retain(|(m, _)| *m != mountpoint);
        self.ok(&["unmount", mountpoint.to_str().expect("UTF-8")]);
    }

    /// The canonical dump of a PST.
    pub fn dump(&self, pst: &Path) -> String {
        let output = self.command(&["pst", "dump", "--json"]).arg(pst).output();
        let output = output.expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Asserts that drive and share hold the same mail, and that the share's PST is whole.
    pub fn assert_synced(&self) {
        let (drive, share) = (self.dump(&self.on_drive()), self.dump(&self.on_share()));
        let differing = drive.lines().zip(share.lines()).find(|(a, b)| a != b);
        assert!(drive == share, "dumps differ: {differing:?}");
        assert!(drive.lines().count() > 3, "an empty dump proves nothing");
        let check = self.ok(&["pst", "check", self.on_share().to_str().expect("UTF-8")]);
        assert_eq!(check["summary"]["errors"], 0, "{check}");
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // It must not wait for a server, nor for a link that the test left slow or dead.
        for (mountpoint, pid) in &self.mounted {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            let _ = Command::new("umount").arg("-l").arg(mountpoint).output();
        }
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn last_json(output: &Output) -> Value {
    let text = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s).into_owned());
    let lines = text.iter().flat_map(|t| t.lines().rev());
    lines
        .filter_map(|l| serde_json::from_str(l).ok())
        .next()
        .unwrap_or_else(|| Value::String(text.concat()))
}
