//! What only an SMB share can meet: accounts, other clients, servers that die, fall silent, come
//! back, or are none.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::port::Port;
use common::smbd::{Options, Smbd};
use common::{Rig, open_rw, pattern};
use vfs::path::Patterns;
use vfs::share::smb::{Password, Retry, SmbAddress, SmbConfig, SmbError, SmbShare};
use vfs::{Share, State};

fn server(root: &std::path::Path) -> Option<Smbd> {
    Smbd::start(root, Options::default())
}

/// What the share said, for people; the drive must take it as `link` or not.
fn said(e: &std::io::Error, retry: Retry, link: bool) -> String {
    let smb = SmbError::of(e).unwrap_or_else(|| panic!("not of the share: {e:?}"));
    assert_eq!(smb.retry, retry, "{e}");
    assert_eq!(vfs::error::is_link_error(e), link, "{e:?}");
    let text = e.to_string();
    assert!(!text.contains("s3cret"));
    assert!(!text.ends_with('.') && text.len() < 200, "{text}");
    text
}

fn failure<T>(answer: std::io::Result<T>) -> std::io::Error {
    match answer {
        Ok(_) => panic!("was allowed"),
        Err(e) => e,
    }
}

/// Calls until it works: a new session may have to wait for its turn.
fn at_last<T>(mut call: impl FnMut() -> std::io::Result<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match call() {
            Ok(value) => return value,
            Err(e) if Instant::now() < end => {
                assert!(vfs::error::is_link_error(&e), "{e:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_wrong_password_is_said_and_not_tried_again() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(server) = server(tmp.path()) else {
        return;
    };
    let wrong = |user: &str| {
        let mut address = server.address("share");
        if !user.is_empty() {
            address.user = user.to_owned();
        }
        let password = Password::new("wr0ng".to_owned());
        let share = SmbShare::new(SmbConfig::new(address, password)).unwrap();
        let text = said(&failure(share.connect()), Retry::Never, true);
        assert!(text.contains("password"), "{text}");
        assert!(!text.contains("wr0ng"));
        share
    };
    let share = wrong("");
    let logons = || server.log().matches("NT_STATUS_WRONG_PASSWORD").count();
    let before = logons();
    for _ in 0..50 {
        assert!(share.probe().is_err() && share.stat("x").is_err());
    }
    assert_eq!(
        logons(),
        before,
        "an account that is asked for so often gets locked"
    );
    wrong("nobody-of-this-name");
}

#[test]
fn unknown_and_forbidden_shares_are_said() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::create_dir(tmp.path().join("sub")).unwrap();
    std::fs::write(tmp.path().join("file"), b"x").unwrap();
    let Some(server) = Smbd::start(
        tmp.path(),
        Options {
            share: "[forbidden]\npath = /\nvalid users = nobody-of-this-name\n\
                    [dfs]\npath = /\nmsdfs root = yes\n",
            ..Options::default()
        },
    ) else {
        return;
    };
    let refused = |share: &str| {
        let share = SmbShare::new(server.config(share)).unwrap();
        said(&failure(share.connect()), Retry::Never, true)
    };
    assert!(refused("other").contains("no share named other"));
    assert!(refused("forbidden").contains("may not use the share"));
    assert!(refused("dfs").contains("DFS"));
    assert!(refused("share/none").contains("no directory none"));
    assert!(refused("share/file").contains("not a directory"));
    let sub = SmbShare::new(server.config("share/sub")).unwrap();
    sub.create("f", 0o600).unwrap();
    assert!(tmp.path().join("sub/f").exists());
}

#[test]
fn a_read_only_share_is_said() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("f"), b"text").unwrap();
    let options = Options {
        share: "read only = yes",
        ..Options::default()
    };
    let Some(server) = Smbd::start(tmp.path(), options) else {
        return;
    };
    let share = server.share();
    let mut buf = [0; 4];
    share
        .open("f", false)
        .unwrap()
        .read_at(0, &mut buf)
        .unwrap();
    assert_eq!(&buf, b"text");
    for e in [
        failure(share.open("f", true)),
        failure(share.create("g", 0o600)),
        failure(share.unlink("f")),
        failure(share.mkdir("d", 0o700)),
        failure(share.rename("f", "g", false)),
    ] {
        assert_eq!(e.kind(), ErrorKind::PermissionDenied);
        said(&e, Retry::Never, false);
    }
}

#[test]
fn encryption_can_be_insisted_on() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(with) = server(tmp.path()) else {
        return;
    };
    let ask = |server: &Smbd| {
        let mut config = server.config("share");
        config.encrypt = true;
        SmbShare::new(config).unwrap()
    };
    let share = ask(&with);
    share.create("f", 0o600).unwrap();
    assert!(share.stat("f").is_ok());
    for global in ["server max protocol = SMB2_10", "smb encrypt = off"] {
        let options = Options {
            global,
            ..Options::default()
        };
        let without = Smbd::start(tmp.path(), options).unwrap();
        let text = said(&failure(ask(&without).connect()), Retry::Never, true);
        assert!(text.contains("encrypt"), "{global}: {text}");
    }
}

#[test]
fn what_is_open_for_writing_is_seen_so_by_others_and_the_other_way_round() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ["m.pst", "a.txt"] {
        std::fs::write(tmp.path().join(name), b"0123456789").unwrap();
    }
    let Some(server) = server(tmp.path()) else {
        return;
    };
    let client = || {
        let mut config = server.config("share");
        config.alone = Patterns::new(&["**/*.pst"]);
        SmbShare::new(config).unwrap()
    };
    let (ours, others) = (client(), client());
    let file = ours.open("m.pst", true).unwrap();
    // We ourselves are not kept out, nor are readers.
    let second = ours.open("M.PST", true).unwrap();
    let reader = ours.open("m.pst", false).unwrap();
    second.write_all_at(0, b"x").unwrap();
    others.open("m.pst", false).unwrap();
    let e = failure(others.open("m.pst", true));
    assert_eq!(e.kind(), ErrorKind::ResourceBusy);
    said(&e, Retry::Later, false);
    // Until the last of our writers closes.
    drop(file);
    failure(others.open("m.pst", true));
    drop((second, reader));
    let theirs = others.open("m.pst", true).unwrap();
    failure(ours.open("m.pst", true));
    drop(theirs);
    // What is no container is open to all.
    let file = ours.open("a.txt", true).unwrap();
    let theirs = others.open("a.txt", true).unwrap();
    theirs.write_all_at(0, b"theirs").unwrap();
    let mut buf = [0; 6];
    file.read_at(0, &mut buf).unwrap();
    assert_eq!(&buf, b"theirs");
}

#[test]
fn open_files_outlive_a_restart_of_the_server_if_they_are_still_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let names = [
        "same", "flushed", "dirty", "changed", "replaced", "gone", "moved",
    ];
    for name in names {
        std::fs::write(tmp.path().join(name), pattern(9000, 3)).unwrap();
    }
    let Some(mut server) = server(tmp.path()) else {
        return;
    };
    let share = server.share();
    let open = |name: &str| {
        let file = share.open(name, true).unwrap();
        file.stamp().unwrap();
        file
    };
    let files = names.map(open);
    let [same, flushed, dirty, changed, replaced, gone, moved] = &files;
    flushed.write_all_at(0, b"flushed").unwrap();
    flushed.sync().unwrap();
    dirty.write_all_at(0, b"dirty").unwrap();
    share.rename("moved", "to", false).unwrap();
    // smbd writes down the time of a change two seconds after it.
    std::thread::sleep(Duration::from_millis(2500));
    flushed.sync().unwrap();

    server.kill();
    assert!(vfs::error::is_link_error(&failure(share.stat("same"))));
    assert!(vfs::error::is_link_error(&failure(
        same.read_at(0, &mut [0; 8])
    )));
    std::fs::write(tmp.path().join("changed"), pattern(9000, 4)).unwrap();
    std::fs::write(tmp.path().join("new"), pattern(9000, 3)).unwrap();
    let times = std::fs::metadata(tmp.path().join("replaced")).unwrap();
    let new = std::fs::File::options()
        .write(true)
        .open(tmp.path().join("new"))
        .unwrap();
    new.set_modified(times.modified().unwrap()).unwrap();
    std::fs::rename(tmp.path().join("new"), tmp.path().join("replaced")).unwrap();
    std::fs::remove_file(tmp.path().join("gone")).unwrap();
    assert!(server.run());

    let mut buf = [0; 9000];
    at_last(|| same.read_at(0, &mut buf));
    assert_eq!(buf[..], pattern(9000, 3));
    assert_eq!(flushed.read_at(0, &mut buf).unwrap(), 9000);
    assert_eq!(&buf[..7], b"flushed");
    assert_eq!(moved.read_at(0, &mut buf).unwrap(), 9000);
    for (file, what) in [
        (dirty, "after a write"),
        (changed, "changed or replaced"),
        (replaced, "changed or replaced"),
        (gone, "gone"),
    ] {
        for _ in 0..2 {
            let e = failure(file.read_at(0, &mut buf));
            let text = said(&e, Retry::Never, true);
            assert!(text.contains(what), "{text}");
            assert!(file.write_all_at(0, b"x").is_err());
            assert!(file.sync().is_err());
        }
    }
    // Nothing of it was written to files that were not ours any more.
    assert_eq!(
        std::fs::read(tmp.path().join("replaced")).unwrap(),
        pattern(9000, 3)
    );
    // Those that are the same can be written, and a new open sees the new files.
    same.write_all_at(0, b"again").unwrap();
    same.sync().unwrap();
    let fresh = share.open("changed", true).unwrap();
    fresh.read_at(0, &mut buf).unwrap();
    assert_eq!(buf[..], pattern(9000, 4));
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_comes_back() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("f"), b"0123456789").unwrap();
    let Some(server) = server(tmp.path()) else {
        return;
    };
    let mut config = server.config("share");
    config.silence = Duration::from_millis(1500);
    let share = SmbShare::new(config).unwrap();
    let file = share.open("f", true).unwrap();
    file.stamp().unwrap();
    server.pause();
    let begin = Instant::now();
    let answers = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|i| {
                let (share, file) = (&share, &file);
                scope.spawn(move || match i % 4 {
                    0 => file.read_at(0, &mut [0; 4]).map(drop),
                    1 => share.stat("f").map(drop),
                    2 => share.list("").map(drop),
                    _ => share.open("f", false).map(drop),
                })
            })
            .collect();
        calls
            .into_iter()
            .map(|c| c.join().unwrap())
            .collect::<Vec<_>>()
    });
    let took = begin.elapsed();
    for answer in answers {
        assert!(vfs::error::is_link_error(&failure(answer)));
    }
    // Once the silence, once more for an attempt at a new session; a loaded machine adds to it.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let begin = Instant::now();
    assert!(share.stat("f").is_err());
    assert!(begin.elapsed() < Duration::from_secs(15));
    server.resume();
    at_last(|| share.stat("f"));
    at_last(|| file.read_at(0, &mut [0; 4]));
    file.write_all_at(0, b"again").unwrap();
}

#[test]
fn a_slow_answer_is_no_silence() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("f"), pattern(4 << 20, 5)).unwrap();
    let Some(server) = server(tmp.path()) else {
        return;
    };
    // The server is let run 1 ms of every 60: the whole takes long, no silence does.
    let mut config = server.config("share");
    config.silence = Duration::from_secs(3);
    let share = SmbShare::new(config).unwrap();
    let file = share.open("f", false).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                server.pause();
                std::thread::sleep(Duration::from_millis(60));
                server.resume();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut buf = vec![0; 4 << 20];
        let n = file.read_at(0, &mut buf);
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(n.unwrap(), 4 << 20);
        assert!(buf == pattern(4 << 20, 5));
    });
}

/// Answers every connection with `answer` and closes it.
fn impostor(answer: Vec<u8>) -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buf = [0; 512];
            let _ = stream.read(&mut buf);
            let _ = stream.write_all(&answer);
        }
    });
    port
}

#[test]
fn what_is_no_server_is_said() {
    let connect = |port: u16| {
        let text = format!("smb://jo@127.0.0.1:{port}/share");
        let address = SmbAddress::parse(&text).unwrap();
        let mut config = SmbConfig::new(address, Password::new("x".to_owned()));
        config.silence = Duration::from_millis(700);
        failure(SmbShare::new(config).unwrap().connect())
    };
    let mut smb = vec![0, 0, 0, 80];
    smb.extend_from_slice(b"\xfeSMB");
    smb.extend_from_slice(&[0xff; 76]);
    for answer in [
        Vec::new(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        vec![0, 0xff, 0xff, 0xff, 1, 2, 3],
        vec![0, 0, 0, 0],
        vec![0; 4096],
        vec![0xff; 4096],
        smb,
    ] {
        let e = connect(impostor(answer.clone()));
        let text = said(&e, Retry::Soon, true);
        assert!(!text.is_empty(), "{answer:?}");
    }
    // Nobody there; and one that takes the connection and says nothing.
    let port = Port::take();
    let socket = TcpListener::bind(("127.0.0.1", port.number())).unwrap();
    let text = said(&connect(port.number()), Retry::Soon, true);
    assert!(text.contains("does not answer"), "{text}");
    drop(socket);
    let text = said(&connect(port.number()), Retry::Soon, true);
    assert!(text.contains("refuses"), "{text}");
}

#[test]
fn another_directory_in_the_roots_place_is_not_the_share() {
    let tmp = tempfile::tempdir().unwrap();
    let (root, away) = (tmp.path().join("root"), tmp.path().join("away"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("f"), b"x").unwrap();
    let Some(server) = server(&root) else {
        return;
    };
    let share = server.share();
    share.stat("f").unwrap();
    // As when a volume of the server is not mounted: the place is there, and empty.
    std::fs::rename(&root, &away).unwrap();
    std::fs::create_dir(&root).unwrap();
    for e in [
        failure(share.stat("f")),
        failure(share.open("f", false)),
        failure(share.list("")),
        failure(share.probe()),
        failure(share.unlink("f")),
    ] {
        assert!(vfs::error::is_link_error(&e), "{e:?}");
    }
    std::fs::remove_dir(&root).unwrap();
    assert!(vfs::error::is_link_error(&failure(share.stat("f"))));
    std::fs::rename(&away, &root).unwrap();
    at_last(|| share.probe());
    assert_eq!(share.list("").unwrap().len(), 1);
}

#[test]
fn the_drive_goes_on_from_its_cache_while_the_server_is_away() {
    for silent in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("share");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("m.pst"), pattern(100_000, 1)).unwrap();
        let Some(mut server) = server(&root) else {
            return;
        };
        let rig = Rig::new();
        let mut config = rig.config(State::Online);
        let mut smb = server.config("share");
        smb.silence = Duration::from_secs(3);
        config.share = Arc::new(SmbShare::new(smb).unwrap());
        let drive = vfs::Drive::open(config).unwrap();
        drive.fill().unwrap();
        let h = open_rw(&drive, "m.pst");
        drive.write(h, 0, b"before").unwrap();
        drive.fsync(h).unwrap();
        if silent {
            server.pause();
        } else {
            server.kill();
        }
        // No error, and what is written is read.
        let begin = Instant::now();
        for i in 0..100u64 {
            drive.write(h, i * 1000, &[i as u8; 500]).unwrap();
            assert_eq!(drive.read(h, i * 1000, 500).unwrap(), [i as u8; 500]);
        }
        drive.fsync(h).unwrap();
        // One stall budget (2 s), with room for a loaded machine.
        assert!(begin.elapsed() < Duration::from_secs(15));
        assert!(!drive.file_status("m.pst").unwrap().passed_through);
        drive.release(h).unwrap();
        if silent {
            server.resume();
        } else {
            assert!(server.run());
        }
        let end = Instant::now() + Duration::from_secs(60);
        let sent = loop {
            match drive.push_opaque("m.pst", "d", "h") {
                Ok(sent) => break sent,
                Err(e) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(100));
                    drop(e);
                }
                Err(e) => panic!("{e}"),
            }
        };
        assert!(matches!(sent, vfs::PushOutcome::Pushed(_)), "{sent:?}");
        let got = std::fs::read(root.join("m.pst")).unwrap();
        for i in 0..100 {
            assert_eq!(got[i * 1000..][..500], [i as u8; 500]);
        }
        drop(drive);
    }
}

#[test]
fn servers_start_one_beside_the_other() {
    // By hand: `VFS_SMBD_STARTS=200`, with builds beside.
    let starts = std::env::var("VFS_SMBD_STARTS").map_or(8, |n| n.parse::<usize>().unwrap());
    std::thread::scope(|scope| {
        for t in 0..4 {
            scope.spawn(move || {
                for n in (t..starts).step_by(4) {
                    let tmp = tempfile::tempdir().unwrap();
                    let Some(mut server) = server(tmp.path()) else {
                        return;
                    };
                    let name = format!("made-by-{n}");
                    server.share().create(&name, 0o600).unwrap();
                    assert!(tmp.path().join(&name).exists(), "another server's share");
                    server.kill();
                    assert!(server.run());
                    server.share().stat(&name).unwrap();
                }
            });
        }
    });
}
