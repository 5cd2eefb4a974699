//! A rig of real parts for the end-to-end tests: a share, an agent over TLS, a mounted drive and
//! the `pstsyncd` binary. Everything is on loopback, in a temporary directory, and stopped by pid.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use port::Port;

pub mod editor;
pub mod port;
pub mod readers;
pub mod skip;
pub mod trace;

/// Where the shared corpus and traces are, if this machine has them.
pub fn shared(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PSTSYNCD_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join(part);
    path.exists().then_some(path)
}

/// A running agent, and a drive when mounted. Dropped: all of it is stopped.
pub struct Rig {
    pub home: TempDir,
    agent: Option<Child>,
    agent_port: Port,
    mounted: Option<u32>,
    /// Whether a drive that is mounted syncs by itself: most tests say when.
    pub auto_sync: bool,
    /// Where the cache is, given as one that is carried about; `None`: in a state directory.
    pub cache: Option<PathBuf>,
}

impl Rig {
    /// A share with one PST in it, and an agent beside it.
    pub fn new(pst: &[u8]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        for dir in ["share/Mail", "drive", "state", "agent"] {
            fs::create_dir_all(home.path().join(dir)).expect("directories");
        }
        fs::write(home.path().join("share/Mail/work.pst"), pst).expect("the PST on the share");
        let mut rig = Self {
            home,
            agent: None,
            agent_port: Port::take(),
            mounted: None,
            auto_sync: false,
            cache: None,
        };
        rig.start_agent();
        rig
    }

    /// Starts the agent; always at the same place, so that a mounted drive finds it again.
    pub fn start_agent(&mut self) {
        let listen = format!("127.0.0.1:{}", self.agent_port.number());
        let mut child = self
            .command(&["agent", "serve", "--json", "--listen", &listen])
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
        assert!(
            line.contains("\"url\""),
            "agent: {line}{}",
            self.log("agent.log")
        );
    }

    pub fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("kill");
            agent.wait().expect("wait");
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn on_share(&self) -> PathBuf {
        self.path("share/Mail/work.pst")
    }

    pub fn on_drive(&self) -> PathBuf {
        self.path("drive/Mail/work.pst")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pstsyncd"));
        command
            .args(args)
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env("XDG_STATE_HOME", self.path("states"));
        command
    }

    /// Runs `pstsyncd ARGS --json`; gives the exit code and the last JSON line of its output.
    pub fn run(&self, args: &[&str]) -> (i32, Value) {
        let output = self
            .command(args)
            .arg("--json")
            .output()
            .expect("pstsyncd runs");
        let code = output.status.code().unwrap_or(-1);
        (code, last_json(&output))
    }

    /// As [`Rig::run`], which must succeed.
    pub fn ok(&self, args: &[&str]) -> Value {
        let (code, answer) = self.run(args);
        assert_eq!(code, 0, "pstsyncd {args:?} answered {answer}");
        answer
    }

    pub fn try_mount(&self, mode: &str) -> Output {
        self.mount_command(mode).output().expect("pstsyncd runs")
    }

    fn mount_command(&self, mode: &str) -> Command {
        let mut command = self.command(&["mount", "--background", "--json", "--mode", mode]);
        let auto = if self.auto_sync { "on" } else { "off" };
        command.args(["--auto-sync", auto]);
        command.arg("--share").arg(self.path("share"));
        match &self.cache {
            Some(cache) => command.arg("--cache").arg(cache),
            None => command.arg("--state-dir").arg(self.path("state")),
        };
        command
            .arg("--agent-invitation")
            .arg(self.path("agent/client.json"));
        command.arg(self.path("drive"));
        command
    }

    pub fn mount(&mut self, mode: &str) {
        self.mount_with(mode, &[], &[]);
    }

    /// With further arguments and environment.
    pub fn mount_with(&mut self, mode: &str, more: &[&str], env: &[(&str, &std::ffi::OsStr)]) {
        let mut command = self.mount_command(mode);
        command.args(more).envs(env.iter().copied());
        let output = command.output().expect("pstsyncd runs");
        let answer = last_json(&output);
        let code = output.status.code();
        assert_eq!(code, Some(0), "mount answered {answer}");
        let pid = answer["pid"].as_u64().expect("a pid");
        self.mounted = Some(u32::try_from(pid).expect("a pid"));
    }

    pub fn unmount(&mut self) {
        if self.mounted.take().is_some() {
            let drive = self.path("drive");
            self.ok(&["unmount", drive.to_str().expect("UTF-8")]);
        }
    }

    /// Leaves what is pending in the journal.
    pub fn unmount_now(&mut self) {
        if self.mounted.take().is_some() {
            let drive = self.path("drive");
            let (code, answer) = self.run(&["unmount", "--now", drive.to_str().expect("UTF-8")]);
            assert_eq!(code, 2, "pending is said: {answer}");
        }
    }

    /// `kill -9` of the daemon; the dead mount stays, as it would for a user.
    pub fn kill_daemon(&mut self) {
        let pid = self.mounted.take().expect("mounted").to_string();
        let status = Command::new("kill")
            .args(["-9", &pid])
            .status()
            .expect("kill");
        assert!(status.success());
        // The kernel tears the connection down when the last of its threads is gone.
        for _ in 0..500 {
            if !Path::new("/proc").join(&pid).exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the daemon did not die");
    }

    /// The canonical dump of a PST.
    pub fn dump(&self, pst: &Path) -> String {
        let output = self
            .command(&["pst", "dump", "--json"])
            .arg(pst)
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Asserts that drive and share hold the same mail.
    pub fn assert_equal_dumps(&self) {
        let (drive, share) = (self.dump(&self.on_drive()), self.dump(&self.on_share()));
        let differing = drive.lines().zip(share.lines()).find(|(a, b)| a != b);
        assert!(drive == share, "dumps differ: {differing:?}");
        assert!(drive.lines().count() > 3, "an empty dump proves nothing");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(pid) = self.mounted.take() {
            let drive = self.path("drive");
            let _ = self.command(&["unmount", "--now"]).arg(&drive).output();
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.path("drive"))
            .output();
        self.stop_agent();
    }
}

fn last_json(output: &Output) -> Value {
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        if let Some(value) = text
            .lines()
            .rev()
            .find_map(|l| serde_json::from_str(l).ok())
        {
            return value;
        }
    }
    Value::String(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The example mail program, which cargo builds for the tests, about to edit a PST.
pub fn edit(pst: &Path) -> Command {
    let exe = std::env::current_exe().expect("this test has a path");
    let target = exe.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let mut command = Command::new(target.join("examples/mail_writer"));
    command.arg("edit").arg(pst);
    command
}

/// All of a file's bytes, read through its own handle.
pub fn read_all(path: &Path) -> Vec<u8> {
    let file = File::open(path).expect("opens");
    let len = file.metadata().expect("metadata").len();
    let mut bytes = vec![0; usize::try_from(len).expect("fits")];
    file.read_exact_at(&mut bytes, 0).expect("reads");
    bytes
}

/// The SHA-256 of a file, by coreutils.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum")
        .arg(path)
        .output()
        .expect("sha256sum");
    String::from_utf8_lossy(&output.stdout)
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned()
}
