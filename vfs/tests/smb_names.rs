//! Names, attributes and lengths as Windows has them, on a server.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::smbd::{Options, Smbd};
use common::{Rig, open_rw, put_file, read_all};
use vfs::{Drive, Error, ROOT, SetAttr, Share, State};

fn drive_on(rig: &Rig, server: &Smbd) -> std::sync::Arc<Drive> {
    let mut config = rig.config(State::Online);
    config.share = std::sync::Arc::new(server.share());
    Drive::open(config).unwrap()
}

#[test]
fn dos_attributes_of_others_stay() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.pst");
    std::fs::write(&path, b"text").unwrap();
    let options = Options {
        // As servers keep them that serve Windows: beside the file, all of them.
        share: "store dos attributes = yes\nmap archive = no\nmap hidden = no\nmap system = no\n\
                map readonly = no",
        ..Options::default()
    };
    let Some(server) = Smbd::start(tmp.path(), options) else {
        return;
    };
    // Hidden, system and archive, set by another client.
    let set = std::process::Command::new("smbclient")
        .arg("//127.0.0.1/share")
        .args(["-p", &server.port().to_string()])
        .args(["-U", &format!("{}%{}", server.user(), server.password())])
        .args(["-c", "setmode m.pst +hsa"])
        .output();
    let Ok(set) = set else {
        return common::skip::skipped("smbclient", "no smbclient");
    };
    assert!(set.status.success(), "{set:?}");
    let attributes = || server.share().dos_attributes("m.pst").unwrap() & 0x27;
    assert_eq!(attributes(), 0x26);
    let share = server.share();
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    share.set_attr("m.pst", &mode(0o400)).unwrap();
    assert_eq!(attributes(), 0x27, "read-only is added");
    assert_eq!(share.stat("m.pst").unwrap().mode, 0o400);
    share.set_attr("m.pst", &mode(0o600)).unwrap();
    let file = share.open("m.pst", true).unwrap();
    file.write_all_at(0, b"more").unwrap();
    file.sync().unwrap();
    drop(file);
    let times = SetAttr {
        mtime: Some(1_000_000_000_000_000_000),
        ..SetAttr::default()
    };
    share.set_attr("m.pst", &times).unwrap();
    assert_eq!(attributes(), 0x26, "and the others are left alone");
    share.rename("m.pst", "n.pst", false).unwrap();
    share.rename("n.pst", "m.pst", false).unwrap();
    assert_eq!(attributes(), 0x26);
    // Hidden files are files.
    assert_eq!(share.list("").unwrap().len(), 1);
    share.unlink("m.pst").unwrap();
}

#[test]
fn case_is_kept_and_does_not_matter() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::create_dir(tmp.path().join("Mail")).unwrap();
    std::fs::write(tmp.path().join("Mail/Work.PST"), b"text").unwrap();
    std::fs::write(tmp.path().join("\u{c4}rger.txt"), b"umlaut").unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let drive = drive_on(&rig, &server);
    let a = drive.find("mail/work.pst").unwrap();
    assert_eq!(a, drive.find("MAIL/WORK.pst").unwrap(), "one file");
    assert_eq!(a, drive.find("Mail/Work.PST").unwrap());
    assert_eq!(read_all(&drive, "mAIL/wORK.pst").unwrap(), b"text");
    assert_eq!(read_all(&drive, "\u{e4}RGER.TXT").unwrap(), b"umlaut");
    let dir = drive.find("mail").unwrap();
    let e = drive.mkdir(dir, "WORK.PST", 0o700, None).unwrap_err();
    assert!(matches!(e, Error::Exists(_)), "{e}");
    // Another spelling of its own name is a rename, not a replacement.
    drive
        .rename(dir, "work.pst", dir, "WORK.pst", false)
        .unwrap();
    let names: Vec<_> = std::fs::read_dir(tmp.path().join("Mail"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["WORK.pst"]);
    assert_eq!(read_all(&drive, "Mail/Work.PST").unwrap(), b"text");
    // Offline too.
    drive.fill().unwrap();
    drive.set_state(State::Offline);
    assert_eq!(read_all(&drive, "mail/WORK.PST").unwrap(), b"text");
    for name in [
        "aux", "a:b", "tail.", "tail ", "a*", "a?b", "com1.pst", "a\\b", "a\u{1}",
    ] {
        let e = drive.create(ROOT, name, 0o600, None).unwrap_err();
        assert!(matches!(e, Error::ForbiddenName(_)), "{name:?}: {e}");
    }
}

#[test]
fn long_paths_and_long_names() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let drive = drive_on(&rig, &server);
    // Far beyond the 260 characters of old Windows programs.
    let (mut at, mut path) = (ROOT, String::new());
    for n in 0..12 {
        let name = format!("{n:02}-{}", "directory-with-a-long-name-".repeat(4));
        at = drive.mkdir(at, &name, 0o700, None).unwrap().id;
        path = format!("{path}{name}/");
    }
    assert!(path.len() > 1300);
    put_file(&drive, at, "f.pst", b"deep");
    assert_eq!(
        std::fs::read(tmp.path().join(&path).join("f.pst")).unwrap(),
        b"deep"
    );
    assert_eq!(read_all(&drive, &format!("{path}f.pst")).unwrap(), b"deep");
    // A name of the greatest length, also where its letters take more than one byte.
    for name in ["n".repeat(255), "\u{e4}".repeat(127)] {
        put_file(&drive, ROOT, &name, b"long");
        assert_eq!(std::fs::read(tmp.path().join(&name)).unwrap(), b"long");
    }
    let e = drive
        .create(ROOT, &"n".repeat(256), 0o600, None)
        .unwrap_err();
    assert!(matches!(e, Error::NameTooLong), "{e}");
    let listed = drive_on(&Rig::bare(), &server).find(&path).unwrap();
    assert_ne!(listed, ROOT);
}

#[test]
fn files_beyond_four_gigabytes() {
    const GB: u64 = 1 << 30;
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("big.pst");
    let file = std::fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.set_len(5 * GB).unwrap();
    file.write_all_at(b"beyond", 4 * GB + 100).unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let share = server.share();
    assert_eq!(share.stat("big.pst").unwrap().size, 5 * GB);
    let f = share.open("big.pst", true).unwrap();
    let mut buf = [0; 6];
    f.read_at(4 * GB + 100, &mut buf).unwrap();
    assert_eq!(&buf, b"beyond");
    // Across the limit, at the end, and past it.
    for at in [4 * GB - 3, 5 * GB - 6, 6 * GB] {
        f.write_all_at(at, b"across").unwrap();
        f.read_at(at, &mut buf).unwrap();
        assert_eq!(&buf, b"across");
        file.read_exact_at(&mut buf, at).unwrap();
        assert_eq!(&buf, b"across");
    }
    assert_eq!(f.stat().unwrap().size, 6 * GB + 6);
    assert!(f.lock(5 * GB..5 * GB + 1, true).unwrap());
    f.set_len(4 * GB + 1).unwrap();
    f.sync().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().size(), 4 * GB + 1);
    drop(f);
    // Through a drive, that fetches none of it whole.
    let rig = Rig::bare();
    let drive = drive_on(&rig, &server);
    let h = open_rw(&drive, "big.pst");
    drive.write(h, 4 * GB - 2, b"abcd").unwrap();
    assert_eq!(drive.read(h, 4 * GB - 2, 100).unwrap(), b"abcd");
    drive.fsync(h).unwrap();
    drive.release(h).unwrap();
    let e = share.open("big.pst/x", false).err().unwrap();
    assert!(
        matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        "{e}"
    );
}
