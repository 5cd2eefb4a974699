//! An SMB server of a test's own: Debian's smbd on a port of the loopback, with a directory of the
//! test as its share, run by whoever runs the test. It is a process group, so that it can be killed,
//! stopped and continued whole, and is killed when dropped.
//!
//! That something takes connections on the port says nothing: it may be another test's server (smbd
//! sets SO_REUSEPORT, so that two of them can even have one port), or, for a port that the kernel
//! hands out to clients, the connecting socket itself. So:
//! - the port is a [`Port`], ours while the [`Smbd`] lives, also between a kill and the next run;
//! - every server has a password of its own;
//! - a server is up when a logon with that password on its share has succeeded.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vfs::share::smb::{Password, Retry, SmbAddress, SmbConfig, SmbError, SmbShare};

use super::port::Port;
use super::skip;

pub struct Smbd {
    dir: tempfile::TempDir,
    port: Port,
    user: String,
    password: String,
    address: String,
    enter: Vec<String>,
    child: Option<Child>,
}

fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

fn user() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|l| l.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// What differs between the servers of the tests.
#[derive(Default, Clone, Copy)]
pub struct Options<'a> {
    pub global: &'a str,
    pub share: &'a str,
    /// Where it runs: on this machine's loopback, if nothing else is said.
    pub host: Option<Host<'a>>,
}

/// Another place than this machine's network. Whoever starts the server must reach it.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    pub address: &'a str,
    /// What is put before a command line to run it there.
    pub enter: &'a [String],
}

impl Smbd {
    /// Serves `root` as `share`; `None` (and the test counts as skipped) where there is no smbd.
    pub fn start(root: &Path, options: Options) -> Option<Self> {
        let (Some(_), Some(pdbedit), Some(user)) = (tool("smbd"), tool("pdbedit"), user()) else {
            skip::skipped("smbd", "no smbd, or a user without a name");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        for sub in ["private", "lock", "state", "cache", "run", "ncalrpc"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let root = root.to_str().unwrap();
        let address = options.host.map_or("127.0.0.1", |h| h.address).to_owned();
        let conf = format!(
            "[global]\n\
             server role = standalone server\nworkgroup = TEST\nnetbios name = PSTTEST\n\
             disable netbios = yes\ninterfaces = {address}/8\nbind interfaces only = yes\n\
             private dir = {at}/private\nlock directory = {at}/lock\n\
             state directory = {at}/state\ncache directory = {at}/cache\n\
             pid directory = {at}/run\nncalrpc dir = {at}/ncalrpc\nlog file = {at}/log\n\
             log level = 1\nmax log size = 0\npassdb backend = smbpasswd:{at}/private/smbpasswd\n\
             map to guest = never\nload printers = no\nprinting = bsd\nprintcap name = /dev/null\n\
             disable spoolss = yes\nserver min protocol = SMB2_10\nserver signing = mandatory\n\
             {global}\n\
             [share]\npath = {root}\nread only = no\n{share}\n",
            global = options.global,
            share = options.share,
        );
        std::fs::write(dir.path().join("smb.conf"), conf).unwrap();
        let mut add = Command::new(pdbedit)
            .arg("-s")
            .arg(dir.path().join("smb.conf"))
            .args(["-a", "-t", "-u", &user])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let password = format!("s3cret {:016x}", random());
        let twice = format!("{password}\n{password}\n");
        let mut stdin = add.stdin.take().unwrap();
        stdin.write_all(twice.as_bytes()).unwrap();
        drop(stdin);
        let added = add.wait_with_output().unwrap();
        assert!(added.status.success(), "{added:?}");
        let mut server = Self {
            dir,
            port: Port::take(),
            user,
            password,
            address,
            enter: options.host.map_or(Vec::new(), |h| h.enter.to_vec()),
            child: None,
        };
        for _ in 0..5 {
            if server.run() {
                return Some(server);
            }
            server.port = Port::take();
        }
        panic!("smbd does not start: {}", server.log());
    }

    /// Starts the server on its port; whether it came up.
    pub fn run(&mut self) -> bool {
        self.kill();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let smbd = tool("smbd").unwrap();
        let mut command = match self.enter.split_first() {
            Some((enter, how)) => {
                let mut command = Command::new(enter);
                command.args(how).arg(smbd);
                command
            }
            None => Command::new(smbd),
        };
        let child = command
            .arg("-F")
            .arg("-s")
            .arg(self.dir.path().join("smb.conf"))
            .args(["--no-process-group", "-p", &self.port.number().to_string()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            // A new one each time: they wait between attempts, and long after a refusal.
            let logon = SmbShare::new(self.config("share")).unwrap().connect();
            let child = self.child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            match logon {
                Ok(()) => return true,
                Err(e) if SmbError::of(&e).is_some_and(|e| e.retry != Retry::Never) => {}
                // A stranger has the port: ours knows the password.
                Err(e) if e.to_string().contains("password") => return false,
                Err(e) => panic!("{e}\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password of the one account; no other server has it.
    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = Pid::from_child(child);
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Ends the server and all its sessions as a power cut does.
    pub fn kill(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// The server says nothing from now on, but keeps its connections: a black hole.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// The end of [`Smbd::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn address(&self, share: &str) -> SmbAddress {
        let text = format!(
            "smb://{}@{}:{}/{share}",
            self.user,
            self.address,
            self.port.number()
        );
        SmbAddress::parse(&text).unwrap()
    }

    pub fn config(&self, share: &str) -> SmbConfig {
        SmbConfig::new(self.address(share), Password::new(self.password.clone()))
    }

    pub fn share(&self) -> SmbShare {
        let share = SmbShare::new(self.config("share")).unwrap();
        if let Err(e) = share.connect() {
            panic!("{e}\n{}", self.log());
        }
        share
    }
}

impl Drop for Smbd {
    fn drop(&mut self) {
        self.kill();
    }
}
