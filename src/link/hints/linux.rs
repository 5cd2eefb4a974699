//! Hints on Linux: rtnetlink says when something changed, NetworkManager (where it is) whether the
//! connection is metered and what it is called, sysfs where the power comes from.
//!
//! A thread of its own asks, so that a program that hangs delays nobody. NetworkManager is asked
//! through `busctl` and `nmcli`, each for two seconds at most; where they are missing nothing is known.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::{Hints, NetworkHints};

/// How often is looked for changes.
const TICK: Duration = Duration::from_secs(1);
/// How often NetworkManager is asked without one.
const REFRESH: Duration = Duration::from_secs(60);
/// A program that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bound of what a program may say, in bytes.
const MAX_SAID: u64 = 64 << 10;
/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
/// (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// The hints of a Linux system.
pub struct LinuxHints(Arc<Mutex<Hints>>);

impl LinuxHints {
    /// Begins to look.
    #[must_use]
    pub fn start() -> Self {
        let hints = Arc::new(Mutex::new(Hints::default()));
        let weak = Arc::downgrade(&hints);
        let spawned = std::thread::Builder::new()
            .name("network-hints".into())
            .spawn(move || look_on(&weak));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to watch the network with");
        }
        Self(hints)
    }
}

impl NetworkHints for LinuxHints {
    fn look(&self) -> Hints {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn look_on(hints: &Weak<Mutex<Hints>>) {
    let socket = listen();
    if let Err(error) = &socket {
        tracing::info!(%error, "changes of the network are not heard of");
    }
    let mut asked: Option<Instant> = None;
    loop {
        let changed = socket.as_ref().is_ok_and(drain);
        let on_battery = on_battery(Path::new("/sys/class/power_supply"));
        let due = changed || asked.is_none_or(|at| at.elapsed() >= REFRESH);
        let fresh = due.then(|| (metered(), networks()));
        if due {
            asked = Some(Instant::now());
        }
        let Some(hints) = hints.upgrade() else { return };
        {
            let mut hints = hints.lock().unwrap_or_else(PoisonError::into_inner);
            hints.on_battery = on_battery;
            hints.changes += u64::from(changed);
            if let Some((metered, networks)) = fresh {
                hints.metered = metered;
                hints.networks = networks;
            }
        }
        drop(hints);
        std::thread::sleep(TICK);
    }
}

fn listen() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::RAW;
    // NETLINK_ROUTE is protocol 0, the default.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

/// Whether anything was said since the last look. What exactly does not matter, so nothing of it is
/// taken apart.
fn drain(socket: &OwnedFd) -> bool {
    let mut any = false;
    let mut buffer = [0; 8192];
    // Bounded: a network that changes all the time is looked at again in a second.
    for _ in 0..256 {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok(_) => any = true,
            // More was said than the queue holds.
            Err(rustix::io::Errno::NOBUFS) => any = true,
            Err(_) => break,
        }
    }
    any
}

/// No mains that delivers, and a battery that does: on battery. No battery: not. No supplies: unknown.
fn on_battery(supplies: &Path) -> Option<bool> {
    let read = |dir: &Path, name: &str| {
        fs::read_to_string(dir.join(name)).map_or(String::new(), |t| t.trim().to_owned())
    };
    let (mut mains, mut draining, mut any) = (None, false, false);
    for entry in fs::read_dir(supplies).ok()?.flatten() {
        let dir = entry.path();
        match read(&dir, "type").as_str() {
            "Mains" | "USB" => {
                any = true;
                let online = read(&dir, "online") == "1";
                mains = Some(mains.unwrap_or(false) || online);
            }
            // A mouse's battery says nothing about the machine.
            "Battery" if read(&dir, "scope") != "Device" => {
                any = true;
                draining |= read(&dir, "status") == "Discharging";
            }
            _ => {}
        }
    }
    any.then_some(draining && mains != Some(true))
}

/// NM_METERED: 1 yes, 2 no, 3 and 4 the same as guesses.
fn metered() -> Option<bool> {
    let said = said(
        "busctl",
        &[
            "--system",
            "get-property",
            "org.freedesktop.NetworkManager",
            "/org/freedesktop/NetworkManager",
            "org.freedesktop.NetworkManager",
            "Metered",
        ],
    )?;
    read_metered(&said)
}

fn read_metered(said: &str) -> Option<bool> {
    match said.trim() {
        "u 1" | "u 3" => Some(true),
        "u 2" | "u 4" => Some(false),
        _ => None,
    }
}

fn networks() -> Option<Vec<String>> {
    let said = said(
        "nmcli",
        &["-t", "-f", "NAME,TYPE", "connection", "show", "--active"],
    )?;
    Some(read_networks(&said))
}

/// Lines of NAME:TYPE, colons in the name escaped.
fn read_networks(said: &str) -> Vec<String> {
    said.lines()
        .filter_map(|line| line.rsplit_once(':'))
        .filter(|(_, kind)| *kind != "loopback")
        .map(|(name, _)| name.replace("\\:", ":").replace("\\\\", "\\"))
        .take(32)
        .collect()
}

/// What a program says, if it is there, ends well and in time.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let out = child.stdout.take()?;
    // Not joined: a child of the program's own may hold the pipe for as long as it likes.
    let (sender, text) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = out.take(MAX_SAID).read_to_string(&mut text);
        let _ = sender.send(read.map(|_| text));
    });
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    status.filter(std::process::ExitStatus::success)?;
    text.recv_timeout(PATIENCE).ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_read_as_the_kernel_shows_it() {
        let temp = tempfile::tempdir().unwrap();
        let supply = |name: &str, fields: &[(&str, &str)]| {
            let dir = temp.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            for (field, value) in fields {
                fs::write(dir.join(field), format!("{value}\n")).unwrap();
            }
        };
        assert_eq!(on_battery(&temp.path().join("missing")), None);
        assert_eq!(on_battery(temp.path()), None, "no supplies at all");
        supply(
            "mouse",
            &[
                ("type", "Battery"),
                ("scope", "Device"),
                ("status", "Discharging"),
            ],
        );
        assert_eq!(on_battery(temp.path()), None, "a mouse's battery");
        supply("AC", &[("type", "Mains"), ("online", "1")]);
        supply("BAT0", &[("type", "Battery"), ("status", "Charging")]);
        assert_eq!(on_battery(temp.path()), Some(false));
        supply("AC", &[("online", "0")]);
        supply("BAT0", &[("status", "Discharging")]);
        assert_eq!(on_battery(temp.path()), Some(true));
        supply("dock", &[("type", "USB"), ("online", "1")]);
        assert_eq!(on_battery(temp.path()), Some(false), "powered by the dock");
    }

    #[test]
    fn network_manager_is_understood_and_nothing_else() {
        assert_eq!(read_metered("u 1\n"), Some(true));
        assert_eq!(read_metered("u 3\n"), Some(true));
        assert_eq!(read_metered("u 4\n"), Some(false));
        assert_eq!(read_metered("u 0\n"), None);
        assert_eq!(read_metered("nonsense"), None);
        let said = "Hotel\\: Wifi:802-11-wireless\nlo:loopback\nWired 1:802-3-ethernet\nodd\n";
        assert_eq!(read_networks(said), ["Hotel: Wifi", "Wired 1"]);
    }

    #[test]
    fn programs_that_are_missing_fail_or_hang_say_nothing() {
        assert_eq!(said("pstsyncd-no-such-program", &[]), None);
        assert_eq!(said("false", &[]), None);
        assert_eq!(said("echo", &["yes"]).as_deref(), Some("yes\n"));
        let began = Instant::now();
        assert_eq!(said("sleep", &["600"]), None);
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn netlink_can_be_listened_to_and_is_quiet_where_nothing_changes() {
        let Ok(socket) = listen() else {
            return crate::skip::skipped("netlink", "no rtnetlink socket");
        };
        // Others may change the network meanwhile; that looking never blocks is what counts.
        let _ = drain(&socket);
    }
}
