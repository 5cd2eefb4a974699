//! An SMB server of a test's own: Debian's smbd on a free port of the loopback, with a directory
//! of the test as its share, run by whoever runs the test. It is a process group, so that it can
//! be killed, stopped and continued whole, and is killed when dropped.
//!
//! That it is up is proven by a logon with a password that no other server has: a connection alone could be
//! answered by another test's server, and one to a free port of the range that connections leave from even by
//! itself.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vfs::share::smb::{Password, SmbAddress, SmbConfig, SmbShare};

use super::skip;

pub struct Smbd {
    dir: tempfile::TempDir,
    port: u16,
    user: String,
    password: String,
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

/// A number that no other server of this machine's tests has drawn yet, as good as surely.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A free port below those that connections leave from: nothing takes it while its server restarts.
fn free_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let first = range.and_then(|r| r.split_whitespace().next()?.parse().ok());
    let below = first.filter(|f| *f > 20_000).unwrap_or(32_768u64);
    loop {
        let port = u16::try_from(10_000 + random() % (below - 10_000)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// What differs between the servers of the tests.
#[derive(Default, Clone, Copy)]
pub struct Options<'a> {
    pub global: &'a str,
    pub share: &'a str,
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
        let conf = format!(
            "[global]\n\
             server role = standalone server\nworkgroup = TEST\nnetbios name = PSTTEST\n\
             disable netbios = yes\ninterfaces = 127.0.0.1/8\nbind interfaces only = yes\n\
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
        let password = format!("s3cret {:016x}", random());
        let mut add = Command::new(pdbedit)
            .arg("-s")
            .arg(dir.path().join("smb.conf"))
            .args(["-a", "-t", "-u", &user])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let twice = format!("{password}\n{password}\n");
        let mut stdin = add.stdin.take().unwrap();
        stdin.write_all(twice.as_bytes()).unwrap();
        drop(stdin);
        let added = add.wait_with_output().unwrap();
        assert!(added.status.success(), "{added:?}");
        let mut server = Self {
            dir,
            port: 0,
            user,
            password,
            child: None,
        };
        let mut last = String::new();
        for _ in 0..5 {
            server.port = free_port();
            match server.launch() {
                Ok(()) => return Some(server),
                Err(e) => last = e,
            }
        }
        panic!("smbd does not start: {last}\n{}", server.log());
    }

    /// Starts the server anew on its port.
    pub fn run(&mut self) {
        if let Err(e) = self.launch() {
            panic!("smbd does not start again: {e}\n{}", self.log());
        }
    }

    fn launch(&mut self) -> Result<(), String> {
        self.kill();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = Command::new(tool("smbd").unwrap())
            .arg("-F")
            .arg("-s")
            .arg(self.dir.path().join("smb.conf"))
            .args(["--no-process-group", "-p", &self.port.to_string()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            // Of its own: a client that was refused once may wait before it tries again.
            let answer = SmbShare::new(self.config("share")).and_then(|share| share.connect());
            let child = self.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                return Err(format!("it ended: {status}"));
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() > end => return Err(e.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

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
        let text = format!("smb://{}@127.0.0.1:{}/{share}", self.user, self.port);
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
