//! A process that writes through the drive is killed (SIGKILL) at random moments. Whatever it had
//! said was acknowledged is there afterwards, and what is unsynced is known.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::smbd::{Options, Smbd};
use common::{over_smb, pattern};
use vfs::share::dir::DirShare;
use vfs::share::smb::{Password, SmbAddress, SmbConfig, SmbShare};
use vfs::{Drive, DriveConfig, Error, PushOutcome, Share, State};

const SIZE: usize = 200_000;
const STEP: u64 = 4000;

/// The directory `share`, or the server that serves it.
fn share(root: &Path) -> Arc<dyn Share> {
    let Ok(at) = std::env::var("PSTSYNCD_KILL_SMB") else {
        return Arc::new(DirShare::open(root.join("share")).unwrap());
    };
    let password = Password::new(std::env::var("PSTSYNCD_KILL_PASSWORD").unwrap());
    let config = SmbConfig::new(SmbAddress::parse(&at).unwrap(), password);
    Arc::new(SmbShare::new(config).unwrap())
}

fn open(share: Arc<dyn Share>, root: &Path, state: State, background: bool) -> Arc<Drive> {
    let mut c = DriveConfig::new(share, root.join("state"));
    c.state = state;
    c.segment_len = 64 << 10;
    c.unwritten_limit = 128 << 10;
    c.direct_append = 8000;
    c.background = background;
    Drive::open(c).unwrap()
}

/// What write `i` is: anywhere in the file, or (every 7th) a longer append.
fn write_of(i: u64, size: u64) -> (u64, Vec<u8>) {
    let x = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let len = if i.is_multiple_of(7) {
        9000
    } else {
        1 + (x % STEP)
    };
    let offset = if i.is_multiple_of(7) { size } else { x % size };
    (offset, pattern(len as usize, i as u8))
}

fn apply(model: &mut Vec<u8>, i: u64) {
    let (offset, data) = write_of(i, model.len() as u64);
    let end = offset as usize + data.len();
    if model.len() < end {
        model.resize(end, 0);
    }
    model[offset as usize..end].copy_from_slice(&data);
}

/// The process that gets killed: not a test of its own.
#[test]
fn child() {
    let Ok(root) = std::env::var("PSTSYNCD_KILL_ROOT") else {
        return;
    };
    let from: u64 = std::env::var("PSTSYNCD_KILL_FROM")
        .unwrap()
        .parse()
        .unwrap();
    let state = match std::env::var("PSTSYNCD_KILL_STATE").unwrap().as_str() {
        "online" => State::Online,
        _ => State::Offline,
    };
    let root = Path::new(&root);
    let d = open(share(root), root, state, true);
    let node = d.find("m.pst").unwrap();
    let h = d.open_file(node, true, true).unwrap().handle;
    let mut size = d.getattr(node).unwrap().attr.size;
    let mut out = std::io::stdout().lock();
    for i in from.. {
        let (offset, data) = write_of(i, size);
        d.write(h, offset, &data).unwrap();
        size = size.max(offset + data.len() as u64);
        if i.is_multiple_of(11) {
            d.fsync(h).unwrap();
        }
        writeln!(out, "acked {i}").unwrap();
        out.flush().unwrap();
        if size > 3_000_000 {
            d.truncate_handle(h, SIZE as u64).unwrap();
            size = SIZE as u64;
            writeln!(out, "cut {i}").unwrap();
            out.flush().unwrap();
        }
    }
}

/// The name of [`child`] as the test program has it.
fn child_test() -> String {
    let inside = module_path!().split_once("::");
    inside.map_or("child".to_owned(), |(_, module)| format!("{module}::child"))
}

/// Brings the file to the share. A server may need a moment to notice that who had it open is dead.
fn push(d: &Drive) {
    for _ in 0..500 {
        match d.push_opaque("m.pst", "d", "h") {
            Err(Error::Busy(_)) => std::thread::sleep(Duration::from_millis(20)),
            pushed => {
                assert!(matches!(pushed, Ok(PushOutcome::Pushed(_))), "{pushed:?}");
                return;
            }
        }
    }
    panic!("the file stays in use");
}

#[test]
fn nothing_acknowledged_is_lost_by_kill() {
    let rounds: u32 = std::env::var("VFS_KILLS")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(if over_smb() { 30 } else { 100 });
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    std::fs::create_dir(root.join("share")).unwrap();
    let mut model = pattern(SIZE, 0);
    std::fs::write(root.join("share/m.pst"), &model).unwrap();
    let server = match over_smb() {
        true => match Smbd::start(&root.join("share"), Options::default()) {
            None => return,
            server => server,
        },
        false => None,
    };
    let open = |state| {
        let share = match &server {
            Some(server) => Arc::new(server.share()),
            None => share(root),
        };
        open(share, root, state, false)
    };
    open(State::Online).fill().unwrap();
    let mut next = 1;
    let mut total = 0;
    for round in 0..rounds {
        let state = if round.is_multiple_of(2) {
            "offline"
        } else {
            "online"
        };
        let mut child = Command::new(std::env::current_exe().unwrap());
        if let Some(server) = &server {
            child
                .env("PSTSYNCD_KILL_SMB", server.address("share").to_string())
                .env("PSTSYNCD_KILL_PASSWORD", server.password());
        }
        let mut child = child
            .args([&child_test(), "--exact", "--nocapture"])
            .env("PSTSYNCD_KILL_ROOT", root)
            .env("PSTSYNCD_KILL_FROM", next.to_string())
            .env("PSTSYNCD_KILL_STATE", state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        // After a number of acknowledgements, and then some while it goes on.
        let stop_after = 1 + u64::from(round) * 13 % 90;
        let mut acked = 0;
        let mut killed = false;
        for line in out.lines() {
            let line = line.unwrap();
            if line.starts_with("cut ") {
                model.resize(SIZE, 0);
            } else if let Some(i) = line.strip_prefix("acked ") {
                let i: u64 = i.parse().unwrap();
                apply(&mut model, i);
                next = i + 1;
                acked += 1;
            }
            if acked >= stop_after && !killed {
                std::thread::sleep(Duration::from_micros(u64::from(round) * 97 % 3000));
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(acked > 0, "the child did not write");
        total += acked;
        // What was in flight when it died may be there or not.
        let d = open(State::Offline);
        let got = common::read_all(&d, "m.pst").unwrap();
        let mut with_next = model.clone();
        apply(&mut with_next, next);
        let mut cut = model.clone();
        cut.truncate(SIZE);
        let in_flight = model.len() > 3_000_000 && got == cut;
        if got == with_next {
            model = with_next;
            next += 1;
        } else if in_flight {
            model = cut;
        }
        assert_eq!(got.len(), model.len(), "round {round}");
        let at = got.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!(at, None, "round {round}: first difference");
        let s = d.file_status("m.pst").unwrap();
        assert!(s.dirty && s.unsynced > 0, "{s:?}");
        if state == "online" {
            // And in the end it can all be brought to the share.
            d.set_state(State::Online);
            push(&d);
            assert!(
                std::fs::read(root.join("share/m.pst")).unwrap() == model,
                "round {round}"
            );
            assert_eq!(d.file_status("m.pst").unwrap().unsynced, 0);
        }
    }
    println!("{rounds} kills, {total} acknowledged writes, none lost");
}
