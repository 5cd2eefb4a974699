//! The two namespaces. Each is held by a small program that ends when its standard input ends: when
//! the [`Net`] is dropped, or when the test's process is gone, killed or not. The server's one is a
//! namespace of processes too, so that servers and all that they started end with it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::skip;

/// The server's address, from the client's side. The addresses are the same in every test: the
/// namespaces have nothing in common.
pub const SERVER: &str = "10.77.0.2";
/// The client's address.
pub const CLIENT: &str = "10.77.0.1";
/// The device at either end.
pub const DEVICE: &str = "wire";

/// One namespace, and the program that holds it.
struct Keeper(Child);

impl Keeper {
    /// The error is the reason why there is none.
    fn start(own_processes: bool) -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.arg("--net");
        if own_processes {
            command.args(["--pid", "--fork", "--kill-child"]);
        }
        // What it is told to unmount it unmounts at the end.
        let hold = "echo up; set --; while IFS= read -r m; do set -- \"$@\" \"$m\"; done; \
            for m; do umount -l \"$m\"; done";
        let mut child = command
            .args(["--", "sh", "-c", hold])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        let said = BufReader::new(out).read_line(&mut line);
        let keeper = Self(child);
        match said {
            Ok(_) if line == "up\n" => Ok(keeper),
            _ => Err("no network namespaces may be made here".to_owned()),
        }
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Client and server, and the link between them: as fast as the machine, until something is done to
/// it. Dropped: all of it is gone, and so are the programs in the server's namespace.
pub struct Net {
    client: Keeper,
    server: Keeper,
    /// What runs a program beside the server; see [`Net::beside_server`].
    enter: Vec<String>,
}

impl Net {
    /// `None` (and the test counts as skipped) where namespaces are not to be had.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::skipped("namespaces", "network namespaces need root");
            return None;
        }
        for (program, version) in [
            ("nsenter", "--version"),
            ("ip", "-V"),
            ("tc", "-V"),
            ("nft", "--version"),
            ("ethtool", "--version"),
        ] {
            let ran = Command::new(program).arg(version).output();
            if !ran.is_ok_and(|o| o.status.success()) {
                let reason = format!("{program} is not installed (scripts/bootstrap.sh)");
                skip::skipped("namespaces", &reason);
                return None;
            }
        }
        match Self::build() {
            Ok(net) => Some(net),
            Err(reason) => {
                skip::skipped("namespaces", reason.trim());
                None
            }
        }
    }

    fn build() -> Result<Self, String> {
        let (client, server) = (Keeper::start(false)?, Keeper::start(true)?);
        let pid = server.pid();
        let enter = format!("nsenter -t {pid} -n --pid=/proc/{pid}/ns/pid_for_children --");
        let net = Self {
            enter: enter.split(' ').map(str::to_owned).collect(),
            client,
            server,
        };
        let peer = net.client.pid();
        net.server_side(&format!(
            "ip link add {DEVICE} type veth peer name {DEVICE} netns {peer}"
        ))?;
        // Offloads would hand packets of 64 KB to the shaper; addresses that the kernel finds for
        // itself would put bytes on the wire that nobody sent.
        let up = |address: &str| {
            format!(
                "ip link set lo up && ip link set {DEVICE} addrgenmode none && \
                 ip address add {address}/24 dev {DEVICE} && \
                 ethtool -K {DEVICE} tso off gso off gro off && ip link set {DEVICE} up"
            )
        };
        net.server_side(&up(SERVER))?;
        net.client_side(&up(CLIENT))?;
        Ok(net)
    }

    /// Runs a shell's line in the server's network.
    pub(super) fn server_side(&self, line: &str) -> Result<String, String> {
        run(&self.server, line)
    }

    /// Runs a shell's line in the client's network.
    pub(super) fn client_side(&self, line: &str) -> Result<String, String> {
        run(&self.client, line)
    }

    /// The client's end of the link as the kernel counts it: a line of `/proc/net/dev`.
    pub(super) fn counters(&self) -> String {
        let table = format!("/proc/{}/net/dev", self.client.pid());
        std::fs::read_to_string(table).expect("the keeper lives")
    }

    /// Moves the calling thread to the client's side, with every thread and program that it starts
    /// from then on.
    pub fn enter(&self) -> Inside {
        Inside::new(self.client.pid())
    }

    /// As [`Net::enter`], to the server's side; programs there do not end with the namespace.
    pub fn enter_server(&self) -> Inside {
        Inside::new(self.server.pid())
    }

    /// What is put before a command line to run it on the server's side, among the processes that end
    /// with it.
    pub fn beside_server(&self) -> &[String] {
        &self.enter
    }

    /// A program on the server's side.
    pub fn server_command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]).arg(program.as_ref());
        command
    }

    /// Has the kernel let go of what is mounted there at the end, whatever happens to this process:
    /// a drive whose daemon is gone would stay otherwise.
    pub fn unmount_at_the_end(&mut self, mountpoint: &Path) {
        let input = self.client.0.stdin.as_mut().expect("piped");
        writeln!(input, "{}", mountpoint.display()).expect("the keeper lives");
    }

    /// The processes that hold the namespaces.
    pub fn keepers(&self) -> [u32; 2] {
        [self.client.pid(), self.server.pid()]
    }
}

fn run(keeper: &Keeper, line: &str) -> Result<String, String> {
    let output: Output = Command::new("nsenter")
        .args([
            "-t",
            &keeper.pid().to_string(),
            "-n",
            "--",
            "sh",
            "-c",
            line,
        ])
        .output()
        .map_err(|e| format!("nsenter: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// This thread is on one side of a [`Net`]; dropped, it is back where it was.
pub struct Inside {
    before: File,
    /// It is this thread's.
    _here: PhantomData<*const ()>,
}

impl Inside {
    fn new(pid: u32) -> Self {
        let before = File::open("/proc/thread-self/ns/net").expect("this thread's network");
        let there = File::open(format!("/proc/{pid}/ns/net")).expect("the keeper lives");
        step(&there);
        Self {
            before,
            _here: PhantomData,
        }
    }
}

fn step(network: &File) {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("root may change its network");
}

impl Drop for Inside {
    fn drop(&mut self) {
        step(&self.before);
    }
}
