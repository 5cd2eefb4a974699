//! Reads that are begun on nobody's thread: what they answer, and that a server which stalls or goes
//! keeps no program longer than any other read.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::smbd::{Options, Smbd};
use common::{Rig, open_rw, pattern, read_all};
use vfs::share::smb::SmbShare;
use vfs::{Drive, State};

const LEN: usize = 700_000;

struct Bed {
    server: Smbd,
    drive: Arc<Drive>,
    data: Vec<u8>,
    budget: Duration,
    _rig: Rig,
    _root: tempfile::TempDir,
}

fn bed() -> Option<Bed> {
    let root = tempfile::tempdir().unwrap();
    let data = pattern(LEN, 3);
    std::fs::write(root.path().join("m.bin"), &data).unwrap();
    let server = Smbd::start(root.path(), Options::default())?;
    let rig = Rig::bare();
    let mut config = rig.config(State::Online);
    config.share = Arc::new(SmbShare::new(server.config("share")).unwrap());
    let drive = Drive::open(config).unwrap();
    Some(Bed {
        server,
        drive,
        data,
        budget: rig.budget,
        _rig: rig,
        _root: root,
    })
}

impl Bed {
    /// Whether it was begun, and then what it answered.
    fn read(&self, handle: u64, at: u64, len: usize) -> Option<vfs::Result<Vec<u8>>> {
        let (tx, rx) = mpsc::channel();
        let range = at..at + len as u64;
        let back = self.drive.begin_read(handle, range, tx, |tx, answer| {
            tx.send(answer).unwrap();
        });
        if back.is_some() {
            return None;
        }
        let answer = rx.recv_timeout(Duration::from_secs(30)).expect("an answer");
        Some(match answer {
            Ok(data) => Ok(data),
            Err(was) => self.drive.read_on(handle, at, len, &was),
        })
    }
}

#[test]
fn they_answer_what_the_share_has() {
    let Some(bed) = bed() else { return };
    let handle = open_rw(&bed.drive, "m.bin");
    for (at, len) in [
        (0, 4096),
        (123_457, 1),
        (LEN - 10, 4096),
        (LEN, 10),
        (300_000, 256 << 10),
    ] {
        let end = LEN.min(at + len);
        let got = bed.read(handle, at as u64, len).expect("begun").unwrap();
        assert!(got == bed.data[at..end], "{at}, {len}");
    }
    // More than one request: as any other read.
    assert!(bed.read(handle, 0, LEN).is_none());
    // Many at once, answered in any order.
    let (tx, rx) = mpsc::channel();
    for i in 0..150_u64 {
        let (at, tx) = (i * 4096, tx.clone());
        let back = bed
            .drive
            .begin_read(handle, at..at + 4096, (), move |(), answer| {
                tx.send((at as usize, answer.unwrap())).unwrap();
            });
        assert!(back.is_none());
    }
    for _ in 0..150 {
        let (at, got) = rx.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(got == bed.data[at..at + 4096], "{at}");
    }
    // What was written is what is read.
    bed.drive.write(handle, 8192, b"new").unwrap();
    assert_eq!(bed.read(handle, 8192, 3).unwrap().unwrap(), b"new");
    bed.drive.release(handle).unwrap();
    assert!(bed.read(handle, 0, 10).is_none(), "a closed handle");
}

#[test]
fn a_server_that_stalls_costs_one_budget() {
    let Some(bed) = bed() else { return };
    let handle = open_rw(&bed.drive, "m.bin");
    bed.read(handle, 0, 10).expect("begun").unwrap();
    bed.server.pause();
    let begun = Instant::now();
    let e = bed.read(handle, 4096, 10).expect("begun").unwrap_err();
    assert!(e.is_link(), "{e}");
    let took = begun.elapsed();
    assert!(took >= bed.budget, "{took:?}");
    assert!(took < bed.budget * 2 + Duration::from_secs(5), "{took:?}");
    bed.server.resume();
    // The file is read again when the server is back.
    let end = Instant::now() + Duration::from_secs(60);
    while bed.drive.read(handle, 0, 10).is_err() {
        assert!(Instant::now() < end, "not within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        bed.drive.read(handle, 4096, 10).unwrap(),
        bed.data[4096..4106]
    );
}

#[test]
fn a_cached_file_goes_on_from_its_cache() {
    let Some(bed) = bed() else { return };
    bed.drive.set_state(State::Cached);
    assert_eq!(read_all(&bed.drive, "m.bin").unwrap(), bed.data);
    bed.drive.set_state(State::Online);
    let handle = open_rw(&bed.drive, "m.bin");
    assert_eq!(
        bed.read(handle, 0, 10).expect("begun").unwrap(),
        bed.data[..10]
    );
    bed.server.pause();
    let got = bed.read(handle, 4096, 10).expect("begun").unwrap();
    assert_eq!(got, bed.data[4096..4106]);
    assert!(
        bed.read(handle, 0, 10).is_none(),
        "it is served from the cache now"
    );
}

#[test]
fn a_server_that_was_restarted_is_asked_anew() {
    let Some(mut bed) = bed() else { return };
    let handle = open_rw(&bed.drive, "m.bin");
    bed.read(handle, 0, 10).expect("begun").unwrap();
    bed.server.kill();
    assert!(bed.server.run());
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        // Begun or not, as the connection's end was noticed or not.
        let read = bed
            .read(handle, 4096, 10)
            .unwrap_or_else(|| bed.drive.read(handle, 4096, 10));
        match read {
            Ok(data) => return assert_eq!(data, bed.data[4096..4106]),
            Err(e) => assert!(e.is_link(), "{e}"),
        }
        assert!(Instant::now() < end, "not within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}
