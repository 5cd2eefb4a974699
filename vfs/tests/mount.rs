//! The drive through the kernel: a real FUSE mount.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use common::{Rig, fuse_missing, pattern};
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::{State, share::fault::Fault};

struct Mounted {
    rig: Rig,
    drive: std::sync::Arc<vfs::Drive>,
    handle: Option<MountHandle>,
    at: PathBuf,
}

fn mounted(prepare: impl FnOnce(&Rig)) -> Mounted {
    let rig = Rig::new();
    prepare(&rig);
    let drive = rig.drive(State::Online);
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let handle = mount(drive.clone(), &at, &MountOptions::default()).unwrap();
    Mounted {
        rig,
        drive,
        handle: Some(handle),
        at,
    }
}

impl Mounted {
    fn end(mut self) -> Rig {
        self.handle.take().unwrap().unmount().unwrap();
        let rig = self.rig;
        drop(self.drive);
        rig
    }
}

#[test]
fn files_directories_and_names() {
    if fuse_missing() {
        return;
    }
    let m = mounted(|r| r.put("there/a.txt", b"hello"));
    assert_eq!(fs::read(m.at.join("there/a.txt")).unwrap(), b"hello");
    fs::create_dir(m.at.join("d")).unwrap();
    fs::write(m.at.join("d/x"), b"one").unwrap();
    fs::rename(m.at.join("d/x"), m.at.join("there/y")).unwrap();
    assert!(fs::rename(m.at.join("there"), m.at.join("there/below")).is_err());
    assert!(fs::remove_dir(m.at.join("there")).is_err());
    fs::remove_dir(m.at.join("d")).unwrap();
    let mut names: Vec<_> = fs::read_dir(m.at.join("there"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a.txt", "y"]);
    assert_eq!(m.rig.get("there/y"), b"one");
    fs::set_permissions(m.at.join("there/y"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        fs::metadata(m.at.join("there/y")).unwrap().mode() & 0o777,
        0o600
    );
    let f = OpenOptions::new()
        .write(true)
        .open(m.at.join("there/y"))
        .unwrap();
    f.set_len(2).unwrap();
    f.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(77))
        .unwrap();
    drop(f);
    assert_eq!(fs::metadata(m.at.join("there/y")).unwrap().mtime(), 77);
    assert_eq!(fs::read(m.at.join("there/y")).unwrap(), b"on");
    // Removed while open: the handle goes on.
    let mut f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at.join("there/y"))
        .unwrap();
    fs::remove_file(m.at.join("there/y")).unwrap();
    assert!(!m.at.join("there/y").exists());
    f.write_all(b"XY").unwrap();
    f.seek(SeekFrom::Start(0)).unwrap();
    let mut s = String::new();
    f.read_to_string(&mut s).unwrap();
    assert_eq!(s, "XY");
    drop(f);
    m.end();
}

#[test]
fn a_container_in_every_state() {
    if fuse_missing() {
        return;
    }
    let data = pattern(3_000_000, 1);
    let m = mounted(|r| r.put("mail.pst", &data));
    m.drive.fill().unwrap();
    let path = m.at.join("mail.pst");
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut model = data;
    let mut put = |f: &File, at: usize, bytes: &[u8]| {
        f.write_all_at(bytes, at as u64).unwrap();
        model[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&f, 100, b"online");
    f.sync_all().unwrap();
    assert_eq!(m.rig.get("mail.pst")[100..106], *b"online");
    m.drive.set_state(State::Cached);
    put(&f, 5000, b"cached");
    m.drive.set_state(State::Offline);
    m.rig.faults.all(Fault::Fail(std::io::ErrorKind::TimedOut));
    put(&f, 9000, &[7; 100_000]);
    f.sync_all().unwrap();
    drop(f);
    assert_eq!(fs::read(&path).unwrap(), model);
    assert_eq!(m.drive.containers()[0].unsynced, 100_006);
    m.rig.faults.heal();
    // The share has only what was passed through.
    assert_eq!(
        m.rig.get("mail.pst")[5000..5006],
        pattern(6000, 1)[5000..5006]
    );
    let rig = m.end();
    let drive = rig.drive(State::Offline);
    assert_eq!(common::read_all(&drive, "mail.pst").unwrap(), model);
    assert_eq!(drive.containers()[0].unsynced, 100_006);
}

#[test]
fn the_link_dies_under_an_open_container() {
    if fuse_missing() {
        return;
    }
    let m = mounted(|r| r.put("mail.pst", &pattern(500_000, 2)));
    m.drive.fill().unwrap();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at.join("mail.pst"))
        .unwrap();
    f.write_all_at(b"before", 10).unwrap();
    m.rig
        .faults
        .all(Fault::Fail(std::io::ErrorKind::ConnectionReset));
    f.write_all_at(b"after", 1000).unwrap();
    f.sync_all().unwrap();
    let mut buf = [0; 5];
    f.read_exact_at(&mut buf, 1000).unwrap();
    assert_eq!(&buf, b"after");
    drop(f);
    let s = &m.drive.containers()[0];
    // What went through but was never flushed there is unsynced as well.
    assert!(s.flipped && s.unsynced == 11, "{s:?}");
    m.rig.faults.heal();
    m.end();
}

#[test]
fn a_hung_read_on_one_file_leaves_another_alone() {
    if fuse_missing() {
        return;
    }
    let m = mounted(|r| {
        r.put("slow.bin", &pattern(200_000, 3));
        r.put("quick.pst", &pattern(200_000, 4));
    });
    m.drive.fill().unwrap();
    m.drive.set_state(State::Cached);
    let quick = File::open(m.at.join("quick.pst")).unwrap();
    let slow = File::open(m.at.join("slow.bin")).unwrap();
    m.rig.faults.all_on("slow.bin", Fault::Hang);
    std::thread::scope(|s| {
        // More hung calls than dispatch threads.
        let readers: Vec<_> = (0..8)
            .map(|i| {
                let slow = &slow;
                s.spawn(move || slow.read_exact_at(&mut [0; 100], i * 20_000))
            })
            .collect();
        while m.rig.faults.hanging() == 0 {
            std::thread::yield_now();
        }
        // All of these end while the others hang: the hang ends only below.
        let mut buf = vec![0; 200_000];
        for _ in 0..20 {
            quick.read_exact_at(&mut buf, 0).unwrap();
            assert!(m.at.join("quick.pst").exists());
        }
        assert_eq!(buf, pattern(200_000, 4));
        assert!(m.rig.faults.hanging() > 0);
        m.rig.faults.heal();
        for r in readers {
            r.join().unwrap().unwrap();
        }
    });
    drop((quick, slow));
    m.end();
}

#[test]
fn errors_reach_the_application() {
    if fuse_missing() {
        return;
    }
    let m = mounted(|r| r.put("big.bin", &pattern(100_000, 5)));
    assert_eq!(fs::metadata(m.at.join("big.bin")).unwrap().len(), 100_000);
    // Whether an unlisted directory lacks a name cannot be known offline.
    m.drive.set_state(State::Offline);
    let e = File::open(m.at.join("none")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(101), "ENETUNREACH: {e}");
    m.drive.set_state(State::Online);
    assert_eq!(fs::read_dir(&m.at).unwrap().count(), 1);
    m.drive.set_state(State::Offline);
    let e = File::open(m.at.join("big.bin")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(101), "ENETUNREACH: {e}");
    assert_eq!(
        File::open(m.at.join("none")).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    m.end();
}

#[test]
fn mounting_on_nothing_is_an_error() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    let drive = rig.drive(State::Online);
    assert!(
        mount(
            drive,
            &rig.tmp.path().join("absent"),
            &MountOptions::default()
        )
        .is_err()
    );
}

/// Several programs write and read their files through the mount, with everything in the
/// background running, while the state flips and the share fails now and then.
#[test]
fn programs_work_on_while_the_state_flips() {
    if fuse_missing() {
        return;
    }
    const FILES: u8 = 3;
    let rig = Rig::new();
    for i in 0..FILES {
        rig.put(&format!("m{i}.pst"), &pattern(300_000, i));
    }
    let mut config = rig.config(State::Online);
    config.background = true;
    config.unwritten_limit = 256 << 10;
    config.direct_append = 16 << 10;
    let drive = vfs::Drive::open(config).unwrap();
    drive.fill().unwrap();
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let handle = mount(drive.clone(), &at, &MountOptions::default()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let ends: Vec<Vec<u8>> = std::thread::scope(|s| {
        let programs: Vec<_> = (0..FILES)
            .map(|i| {
                let path = at.join(format!("m{i}.pst"));
                s.spawn(move || program(&path, i))
            })
            .collect();
        let flips = s.spawn(|| {
            let mut n = 0_u64;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                n += 1;
                let states = [State::Cached, State::Offline, State::Online, State::Online];
                drive.set_state(states[n as usize % 4]);
                rig.faults
                    .at(n % 5 + 1, Fault::Fail(std::io::ErrorKind::TimedOut));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            n
        });
        let ends = programs.into_iter().map(|p| p.join().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        println!("{} flips", flips.join().unwrap());
        ends
    });
    rig.faults.heal();
    for (i, end) in ends.iter().enumerate() {
        assert!(
            fs::read(at.join(format!("m{i}.pst"))).unwrap() == *end,
            "file {i}"
        );
    }
    handle.unmount().unwrap();
    drive.set_state(State::Online);
    for (i, end) in ends.iter().enumerate() {
        let name = format!("m{i}.pst");
        let pushed = drive.push_opaque(&name, "d", "h").unwrap();
        assert!(
            !matches!(pushed, vfs::PushOutcome::Conflict(_)),
            "{pushed:?}"
        );
        assert!(rig.get(&name) == *end, "file {i} on the share");
    }
}

fn program(path: &std::path::Path, seed: u8) -> Vec<u8> {
    let mut model = pattern(300_000, seed);
    let mut x = u64::from(seed) + 1;
    let mut f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    for i in 0..1500_u64 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let at = (x >> 8) as usize % model.len();
        let len = 1 + (x >> 32) as usize % 6000;
        match x % 16 {
            0 => f.sync_data().unwrap(),
            1 => {
                let size = 200_000 + at % 200_000;
                f.set_len(size as u64).unwrap();
                model.resize(size, 0);
            }
            2 => {
                let data = pattern(20_000, i as u8);
                f.write_all_at(&data, model.len() as u64).unwrap();
                model.extend_from_slice(&data);
            }
            3 => {
                f = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap();
            }
            4..=8 => {
                let len = len.min(model.len() - at);
                let mut got = vec![0; len];
                f.read_exact_at(&mut got, at as u64).unwrap();
                assert!(got == model[at..at + len], "read {i} at {at}");
            }
            _ => {
                let data = pattern(len, i as u8);
                f.write_all_at(&data, at as u64).unwrap();
                if model.len() < at + len {
                    model.resize(at + len, 0);
                }
                model[at..at + len].copy_from_slice(&data);
            }
        }
    }
    model
}
