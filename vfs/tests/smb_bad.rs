//! A share that is not what it should be: portals, networks that cut or falsify, full and read-only
//! shares, files that others hold, clocks that are wrong, names that no file can have. Each time the
//! program gets the right answer, nothing is lost, and the server is not stormed. (Accounts, unknown
//! shares, DFS, silence, and strangers on the port are in `smb.rs`.)
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::proxy::{Proxy, Way};
use common::smbd::{Options, Smbd};
use common::{Rig, open_rw, pattern, put_file, read_all, skip};
use vfs::path::Patterns;
use vfs::share::smb::{Retry, SmbConfig, SmbError, SmbShare};
use vfs::{Drive, Error, PushOutcome, ROOT, Share, State};

fn drive_on(rig: &Rig, smb: SmbConfig) -> Arc<Drive> {
    let mut config = rig.config(State::Online);
    config.share = Arc::new(SmbShare::new(smb).unwrap());
    Drive::open(config).unwrap()
}

/// By way of the proxy.
fn through(server: &Smbd, proxy: &Proxy) -> SmbConfig {
    let mut config = server.config("share");
    config.address.port = proxy.port();
    config.silence = Duration::from_millis(1500);
    config
}

fn at_last<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pushed(drive: &Drive, path: &str) -> bool {
    matches!(
        drive.push_opaque(path, "d", "h"),
        Ok(PushOutcome::Pushed(_))
    )
}

#[test]
fn a_portal_is_no_link_and_is_not_stormed() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("m.pst"), pattern(50_000, 1)).unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    for bad in [Way::Portal, Way::Closed] {
        let proxy = Proxy::new(Way::To(server.port()));
        let rig = Rig::bare();
        let drive = drive_on(&rig, through(&server, &proxy));
        drive.fill().unwrap();
        let h = open_rw(&drive, "m.pst");
        drive.write(h, 0, b"before").unwrap();
        drive.fsync(h).unwrap();
        proxy.turn(bad);
        let before = proxy.connects();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            drive.write(h, 10, b"meanwhile").unwrap();
            assert_eq!(drive.read(h, 10, 9).unwrap(), b"meanwhile");
            let e = drive.probe().unwrap_err();
            assert!(e.is_link(), "{e}");
            // Programs that go on asking for what is not in the cache.
            let _ = drive.lookup(ROOT, "unknown");
        }
        drive.fsync(h).unwrap();
        drive.release(h).unwrap();
        // Waits of 0.2, 0.4, 0.8 s and so on, a quarter less at the least.
        let tries = proxy.connects() - before;
        assert!((1..=8).contains(&tries), "{bad:?}: {tries} connections");
        proxy.turn(Way::To(server.port()));
        at_last("sent", || pushed(&drive, "m.pst").then_some(()));
        let got = std::fs::read(tmp.path().join("m.pst")).unwrap();
        assert_eq!(
            (&got[..6], &got[10..19]),
            (&b"before"[..], &b"meanwhile"[..])
        );
    }
}

/// One session: reads the old content, writes the new, lists. `Err` must be the link's fault.
fn session(config: SmbConfig) -> std::io::Result<()> {
    let share = SmbShare::new(config)?;
    let mut buf = vec![0; 5000];
    let file = share.open("f", true)?;
    assert_eq!(file.read_at(0, &mut buf)?, 5000);
    assert!(
        buf == pattern(5000, 1) || buf == pattern(5000, 2),
        "read what was never written"
    );
    file.write_all_at(0, &pattern(5000, 2))?;
    file.sync()?;
    let names: Vec<_> = share.list("")?.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["f"]);
    assert_eq!(share.stat("f")?.size, 5000);
    assert_eq!(share.stat("none").unwrap_err().kind(), {
        // Where the link fails just here it must not say "not there".
        match share.stat("f") {
            Ok(_) => ErrorKind::NotFound,
            Err(e) => return Err(e),
        }
    });
    Ok(())
}

#[test]
fn a_network_that_cuts_or_falsifies_never_lies() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("f");
    std::fs::write(&path, pattern(5000, 1)).unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let cases = std::env::var("VFS_SMB_CUTS").map_or(20, |n| n.parse::<usize>().unwrap());
    // One session answers about 9,000 bytes.
    let step = 9000 / cases;
    let (mut failed, mut whole) = (0, 0);
    for n in 0..cases {
        let at = n * step + n % 7;
        for way in [
            Way::Cut(server.port(), at + 1),
            Way::Bent(server.port(), at),
        ] {
            std::fs::write(&path, pattern(5000, 1)).unwrap();
            let proxy = Proxy::new(way);
            let mut config = through(&server, &proxy);
            config.silence = Duration::from_millis(400);
            match session(config) {
                Ok(()) => {
                    assert_eq!(std::fs::read(&path).unwrap(), pattern(5000, 2));
                    whole += 1;
                }
                Err(e) => {
                    assert!(vfs::error::is_link_error(&e), "{way:?}: {e:?}");
                    let got = std::fs::read(&path).unwrap();
                    assert!(
                        got == pattern(5000, 1) || got == pattern(5000, 2),
                        "{way:?}"
                    );
                    failed += 1;
                }
            }
            assert!(
                proxy.connects() <= 3,
                "{way:?}: {} connections",
                proxy.connects()
            );
        }
    }
    assert!(failed > cases, "{failed} failed, {whole} went well");
}

#[test]
fn a_full_share_is_said_and_nothing_is_lost() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("small");
    std::fs::create_dir(&root).unwrap();
    let mount = |args: &[&str]| {
        let mut c = Command::new(args[0]);
        c.args(&args[1..])
            .arg(&root)
            .output()
            .is_ok_and(|o| o.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"]) {
        return skip::skipped("tmpfs", "no small volume can be mounted here");
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&root);
    std::fs::write(root.join("m.pst"), pattern(100_000, 1)).unwrap();
    std::fs::write(root.join("ballast"), vec![1; 3 << 20]).unwrap();
    let Some(server) = Smbd::start(&root, Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let drive = drive_on(&rig, server.config("share"));
    drive.fill().unwrap();
    // Online the program is told.
    let h = open_rw(&drive, "m.pst");
    let big = pattern(1_500_000, 3);
    let told = big
        .chunks(250_000)
        .enumerate()
        .find_map(|(n, part)| drive.write(h, n as u64 * 250_000, part).err());
    assert!(matches!(told, Some(Error::NoSpace(_))), "{told:?}");
    drive.write(h, 0, b"still works").unwrap();
    drive.fsync(h).unwrap();
    drive.release(h).unwrap();
    assert_eq!(read_all(&drive, "m.pst").unwrap()[..11], *b"still works");
    // What was accepted while the share was not asked waits for room there.
    drive.set_state(State::Cached);
    put_file(&drive, ROOT, "new.pst", &big);
    drive.set_state(State::Online);
    let e = SmbShare::new(server.config("share"))
        .unwrap()
        .create("x", 0o600)
        .and_then(|f| f.write_all_at(0, &big))
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::StorageFull, "{e}");
    assert_eq!(SmbError::of(&e).unwrap().retry, Retry::Later);
    std::fs::remove_file(root.join("x")).unwrap();
    for _ in 0..3 {
        let _ = drive.reintegrate("d", "h");
        assert!(!pushed(&drive, "new.pst"), "it does not fit");
        assert!(read_all(&drive, "new.pst").unwrap() == big);
    }
    std::fs::remove_file(root.join("ballast")).unwrap();
    at_last("room was made", || {
        let _ = drive.reintegrate("d", "h");
        let _ = pushed(&drive, "new.pst");
        (std::fs::read(root.join("new.pst")).is_ok_and(|b| b == big)).then_some(())
    });
    assert!(read_all(&drive, "new.pst").unwrap() == big);
}

#[test]
fn what_others_hold_and_what_may_not_be_written_is_said_to_the_program() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("m.pst"), pattern(9000, 1)).unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let mut smb = server.config("share");
    smb.alone = Patterns::new(&["**/*.pst"]);
    let drive = drive_on(&rig, smb);
    let mut smb = server.config("share");
    smb.alone = Patterns::new(&["**/*.pst"]);
    let others = SmbShare::new(smb).unwrap();
    let theirs = others.open("m.pst", true).unwrap();
    let node = drive.find("m.pst").unwrap();
    let e = drive.open_file(node, true, true).unwrap_err();
    assert!(matches!(e, Error::Busy(_)), "{e}");
    assert!(read_all(&drive, "m.pst").unwrap() == pattern(9000, 1));
    drop(theirs);
    // And the other way round: a program of another computer is refused while one has it open here.
    let h = open_rw(&drive, "m.pst");
    let e = others.open("m.pst", true).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::ResourceBusy);
    assert!(e.to_string().contains("another program or computer"), "{e}");
    // On a flip our hold is given up.
    drive.fill().unwrap();
    drive.set_state(State::Cached);
    at_last("given up", || others.open("m.pst", true).ok());
    drive.write(h, 0, b"local").unwrap();
    drive.release(h).unwrap();

    let options = Options {
        share: "read only = yes",
        ..Options::default()
    };
    let server = Smbd::start(tmp.path(), options).unwrap();
    let rig = Rig::bare();
    let drive = drive_on(&rig, server.config("share"));
    let node = drive.find("m.pst").unwrap();
    for e in [
        drive.open_file(node, true, true).err(),
        drive.create(ROOT, "new", 0o600, None).err(),
        drive.mkdir(ROOT, "dir", 0o700, None).err(),
        drive.unlink(ROOT, "m.pst").err(),
        drive.rename(ROOT, "m.pst", ROOT, "n.pst", true).err(),
    ] {
        assert!(matches!(e, Some(Error::Access(_))), "{e:?}");
    }
    assert!(read_all(&drive, "m.pst").unwrap() == pattern(9000, 1));
}

#[test]
fn a_clock_that_is_wrong_does_not_hide_changes() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.pst");
    let set = |data: &[u8], seconds: u64| {
        std::fs::write(&path, data).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(at).unwrap();
    };
    set(&pattern(9000, 1), 4_102_444_800);
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let drive = drive_on(&rig, server.config("share"));
    drive.fill().unwrap();
    assert!(read_all(&drive, "m.pst").unwrap() == pattern(9000, 1));
    // Same length, each time by a clock that went back, or far ahead.
    for (n, seconds) in [1_000_000_000, 1, 4_000_000_000, 999]
        .into_iter()
        .enumerate()
    {
        let new = pattern(9000, 10 + n as u8);
        set(&new, seconds);
        assert!(
            read_all(&drive, "m.pst").unwrap() == new,
            "the clock says {seconds}"
        );
        // What is written here is not taken for another's because the server's clock differs.
        let h = open_rw(&drive, "m.pst");
        drive.write(h, 0, b"ours").unwrap();
        drive.fsync(h).unwrap();
        drive.release(h).unwrap();
        assert_eq!(read_all(&drive, "m.pst").unwrap()[..4], *b"ours");
        assert_eq!(std::fs::read(&path).unwrap()[..4], *b"ours");
        drive.fill().unwrap();
    }
}

#[test]
fn names_that_lead_elsewhere_lead_nowhere() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("root");
    std::fs::create_dir_all(root.join("dir")).unwrap();
    std::fs::write(tmp.path().join("x"), b"outside").unwrap();
    // The server hands out whatever its disk has: to Windows' eyes these are paths.
    for name in [
        "..\\x", "dir\\f", "\\x", "...", " .. ", "con", "a:b", "tail.",
    ] {
        std::fs::write(root.join(name), b"odd").unwrap();
    }
    let options = Options {
        share: "mangled names = no",
        ..Options::default()
    };
    let Some(server) = Smbd::start(&root, options) else {
        return;
    };
    let share = server.share();
    for path in [
        "../x",
        "dir/../../x",
        "..",
        "a/../x",
        "/x",
        "dir//f",
        "x\0y",
        ".",
    ] {
        for e in [
            share.open(path, false).err(),
            share.create(path, 0o600).err(),
            share.unlink(path).err(),
            share.rename("con", path, true).err(),
        ] {
            let e = e.unwrap_or_else(|| panic!("{path:?} was taken"));
            assert_eq!(e.kind(), ErrorKind::InvalidInput, "{path:?}: {e}");
        }
    }
    assert_eq!(std::fs::read(tmp.path().join("x")).unwrap(), b"outside");
    // A listing is whole and has names of this directory only, or is none (R3).
    match share.list("") {
        Ok(entries) => {
            let mut opened = 0;
            assert_eq!(entries.len(), 9, "{entries:?}");
            for e in entries {
                assert!(vfs::path::check_name(&e.name).is_ok(), "{:?}", e.name);
                // One with a backslash cannot be asked for: to the server that is a path.
                if e.attr.kind == vfs::Kind::File
                    && let Ok(file) = share.open(&e.name, false)
                {
                    let mut buf = [0; 16];
                    let n = file.read_at(0, &mut buf).unwrap();
                    assert_eq!(&buf[..n], b"odd", "{:?} leads elsewhere", e.name);
                    opened += 1;
                }
            }
            assert!(
                opened >= 1,
                "only what Windows cannot name is refused there"
            );
        }
        Err(e) => assert_eq!(e.kind(), ErrorKind::InvalidData, "{e}"),
    }

    // As servers are by default, they give such files names that can be asked for.
    let server = Smbd::start(&root, Options::default()).unwrap();
    let share = server.share();
    let entries = share.list("").unwrap();
    assert_eq!(entries.len(), 9, "{entries:?}");
    for e in entries.iter().filter(|e| e.attr.kind == vfs::Kind::File) {
        let mut buf = [0; 16];
        let file = share.open(&e.name, false).unwrap();
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 3, "{:?}", e.name);
        assert_eq!(&buf[..3], b"odd");
    }
}
