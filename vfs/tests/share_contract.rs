//! What every share must do, whatever it is: the same cases on a directory, on an SMB server with
//! signed and with encrypted sessions, and on old dialects.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::path::Path;

use common::pattern;
use common::smbd::{Options, Smbd};
use vfs::share::dir::DirShare;
use vfs::{Kind, SetAttr, Share};

fn kind<T>(answer: std::io::Result<T>) -> ErrorKind {
    match answer {
        Ok(_) => panic!("was allowed"),
        Err(e) => e.kind(),
    }
}

fn read(share: &dyn Share, path: &str) -> Vec<u8> {
    let file = share.open(path, false).unwrap();
    let mut buf = vec![0; file.stat().unwrap().size as usize + 10];
    let n = file.read_at(0, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

/// All of it, on the share and beside it: `root` is the directory behind the share.
fn contract(share: &dyn Share, root: &Path) {
    names_and_listings(share);
    contents(share, root);
    sizes(share);
    stamps(share, root);
    renames(share);
    removals(share, root);
    attributes(share, root);
    open_files_keep_working(share);
    paths_stay_inside(share);
    assert!(share.statfs().unwrap().total > 0);
    share.probe().unwrap();
    let left: Vec<_> = share.list("").unwrap();
    assert!(left.is_empty(), "{left:?}");
}

fn names_and_listings(share: &dyn Share) {
    assert_eq!(share.stat("").unwrap().kind, Kind::Dir);
    assert!(share.list("").unwrap().is_empty());
    assert_eq!(kind(share.stat("none")), ErrorKind::NotFound);
    assert_eq!(kind(share.list("none")), ErrorKind::NotFound);
    assert_eq!(kind(share.open("none", false)), ErrorKind::NotFound);
    assert_eq!(kind(share.stat("none/none")), ErrorKind::NotFound);
    assert_eq!(kind(share.unlink("none")), ErrorKind::NotFound);
    assert_eq!(kind(share.rmdir("none")), ErrorKind::NotFound);
    assert_eq!(
        kind(share.rename("none", "new", false)),
        ErrorKind::NotFound
    );
    assert_eq!(kind(share.create("none/f", 0o600)), ErrorKind::NotFound);
    let long = "l".repeat(200);
    let names = [
        "a",
        "B c.txt",
        "\u{e4}\u{f6}\u{1f600}",
        &long,
        ".hidden",
        "~x",
    ];
    share.mkdir("names", 0o700).unwrap();
    for name in names {
        share.create(&format!("names/{name}"), 0o600).unwrap();
    }
    share.mkdir("names/sub", 0o700).unwrap();
    let mut found: Vec<_> = share
        .list("names")
        .unwrap()
        .into_iter()
        .map(|e| (e.name, e.attr.kind))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut wanted: Vec<_> = names
        .map(|n| (n.to_owned(), Kind::File))
        .into_iter()
        .collect();
    wanted.push(("sub".to_owned(), Kind::Dir));
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, wanted);
    for e in share.list("names").unwrap() {
        let at = format!("names/{}", e.name);
        let attr = share.stat(&at).unwrap();
        assert_eq!((attr.kind, attr.size), (e.attr.kind, e.attr.size), "{at}");
        assert_eq!(attr.file_id, e.attr.file_id, "{at}");
        assert!(attr.file_id != 0);
        match attr.kind {
            Kind::Dir => share.rmdir(&at).unwrap(),
            _ => share.unlink(&at).unwrap(),
        }
    }
    // More entries than one answer holds.
    for i in 0..700 {
        share.mkdir(&format!("names/{i:04}{long}"), 0o700).unwrap();
    }
    let mut many: Vec<_> = share.list("names").unwrap();
    many.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(many.len(), 700);
    for (i, e) in many.iter().enumerate() {
        assert_eq!(e.name, format!("{i:04}{long}"));
        share.rmdir(&format!("names/{}", e.name)).unwrap();
    }
    // A path longer than the 260 characters of old Windows programs.
    let mut deep = "names".to_owned();
    for _ in 0..4 {
        deep = format!("{deep}/{long}");
        share.mkdir(&deep, 0o700).unwrap();
    }
    share.create(&format!("{deep}/f"), 0o600).unwrap();
    assert_eq!(share.list(&deep).unwrap().len(), 1);
    share.unlink(&format!("{deep}/f")).unwrap();
    while let Some((up, _)) = deep.rsplit_once('/') {
        share.rmdir(&deep).unwrap();
        deep = up.to_owned();
    }
    share.rmdir("names").unwrap();
}

fn contents(share: &dyn Share, root: &Path) {
    let data = pattern(3_000_001, 7);
    let file = share.create("c", 0o600).unwrap();
    assert_eq!(kind(share.create("c", 0o600)), ErrorKind::AlreadyExists);
    file.write_all_at(0, &data).unwrap();
    file.sync().unwrap();
    assert_eq!(std::fs::read(root.join("c")).unwrap(), data);
    assert!(read(share, "c") == data);
    // At odd places, across the pieces that a request is cut into.
    for (at, len) in [(0, 1), (1, 262_144), (262_143, 2), (100_000, 2_500_000)] {
        let mut buf = vec![0; len];
        assert_eq!(file.read_at(at as u64, &mut buf).unwrap(), len);
        assert!(buf == data[at..at + len], "{at} {len}");
    }
    let mut buf = vec![0; 100];
    assert_eq!(file.read_at(2_999_990, &mut buf).unwrap(), 11);
    assert_eq!(file.read_at(3_000_001, &mut buf).unwrap(), 0);
    assert_eq!(file.read_at(1 << 40, &mut buf).unwrap(), 0);
    assert_eq!(file.read_at(0, &mut []).unwrap(), 0);
    file.write_all_at(0, &[]).unwrap();
    file.write_all_at(2_999_000, &[9; 5000]).unwrap();
    assert_eq!(file.stat().unwrap().size, 3_004_000);
    // Many at once on one handle.
    std::thread::scope(|scope| {
        for t in 0..8u64 {
            let file = &file;
            scope.spawn(move || {
                for i in 0..20 {
                    let at = (t * 20 + i) * 4096;
                    file.write_all_at(at, &[t as u8; 4096]).unwrap();
                    let mut back = [0; 4096];
                    assert_eq!(file.read_at(at, &mut back).unwrap(), 4096);
                    assert_eq!(back, [t as u8; 4096]);
                }
            });
        }
    });
    // Another handle sees what this one wrote; a reader cannot write.
    let reader = share.open("c", false).unwrap();
    let mut one = [0];
    reader.read_at(20 * 4096, &mut one).unwrap();
    assert_eq!(one, [1]);
    assert!(reader.write_all_at(0, b"x").is_err());
    assert!(reader.set_len(0).is_err());
    reader.sync().unwrap();
    let second = share.open("c", true).unwrap();
    second.write_all_at(0, b"second").unwrap();
    file.read_at(0, &mut one).unwrap();
    assert_eq!(&one, b"s");
    drop((file, reader, second));
    assert_eq!(kind(share.list("c")), ErrorKind::NotADirectory);
    assert!(share.rmdir("c").is_err());
    share.unlink("c").unwrap();
}

fn sizes(share: &dyn Share) {
    let file = share.create("s", 0o600).unwrap();
    file.write_all_at(0, b"abcdef").unwrap();
    file.set_len(3).unwrap();
    file.set_len(8).unwrap();
    assert_eq!(read(share, "s"), b"abc\0\0\0\0\0");
    // Beyond 4 GiB, in both directions.
    let far = (5 << 30) + 3;
    file.write_all_at(far, b"far").unwrap();
    assert_eq!(file.stat().unwrap().size, far + 3);
    assert_eq!(share.stat("s").unwrap().size, far + 3);
    let listed = share.list("").unwrap();
    assert_eq!(listed.first().unwrap().attr.size, far + 3);
    let mut buf = [1; 8];
    assert_eq!(file.read_at(far - 2, &mut buf).unwrap(), 5);
    assert_eq!(&buf[..5], b"\0\0far");
    file.sync().unwrap();
    drop(file);
    share.unlink("s").unwrap();
}

fn stamps(share: &dyn Share, root: &Path) {
    let file = share.create("t", 0o600).unwrap();
    file.write_all_at(0, &pattern(5000, 1)).unwrap();
    file.sync().unwrap();
    drop(file);
    let before = share.stamp("t").unwrap();
    assert_eq!(before, share.stamp("t").unwrap());
    assert_eq!(before, share.open("t", true).unwrap().stamp().unwrap());
    assert_eq!(before.file_id, share.stat("t").unwrap().file_id);
    // Another file of the same name, length and times.
    let times = std::fs::metadata(root.join("t"))
        .unwrap()
        .modified()
        .unwrap();
    std::fs::write(root.join("u"), pattern(5000, 1)).unwrap();
    let other = std::fs::File::options()
        .write(true)
        .open(root.join("u"))
        .unwrap();
    other.set_modified(times).unwrap();
    std::fs::rename(root.join("u"), root.join("t")).unwrap();
    assert_ne!(before, share.stamp("t").unwrap());
    // A changed head with the old times.
    let before = share.stamp("t").unwrap();
    std::fs::write(root.join("t"), pattern(5000, 2)).unwrap();
    let same = std::fs::File::options()
        .write(true)
        .open(root.join("t"))
        .unwrap();
    same.set_modified(times).unwrap();
    assert_ne!(before, share.stamp("t").unwrap());
    share.unlink("t").unwrap();
}

fn renames(share: &dyn Share) {
    let put = |name: &str| {
        let file = share.create(name, 0o600).unwrap();
        file.write_all_at(0, name.as_bytes()).unwrap();
    };
    put("a");
    put("b");
    assert_eq!(
        kind(share.rename("a", "b", false)),
        ErrorKind::AlreadyExists
    );
    assert_eq!(read(share, "b"), b"b");
    share.rename("a", "b", true).unwrap();
    assert_eq!(read(share, "b"), b"a");
    assert_eq!(kind(share.stat("a")), ErrorKind::NotFound);
    share.rename("b", "B", true).unwrap();
    assert_eq!(share.list("").unwrap().first().unwrap().name, "B");
    share.mkdir("d", 0o700).unwrap();
    share.mkdir("e", 0o700).unwrap();
    share.rename("B", "d/b", false).unwrap();
    // A directory takes the place of an empty one, never of a full one.
    assert!(share.rename("e", "d", true).is_err());
    share.rename("d", "e", true).unwrap();
    assert_eq!(read(share, "e/b"), b"a");
    assert!(share.rename("e", "e/b/x", false).is_err());
    assert!(share.rename("e", "none/x", false).is_err());
    share.unlink("e/b").unwrap();
    share.rmdir("e").unwrap();
}

fn removals(share: &dyn Share, root: &Path) {
    share.mkdir("d", 0o700).unwrap();
    assert_eq!(kind(share.mkdir("d", 0o700)), ErrorKind::AlreadyExists);
    share.create("d/f", 0o400).unwrap();
    assert_eq!(kind(share.rmdir("d")), ErrorKind::DirectoryNotEmpty);
    assert!(share.unlink("d").is_err());
    assert!(root.join("d/f").exists());
    // Who may remove names from the directory may remove a read-only file.
    share.unlink("d/f").unwrap();
    share.rmdir("d").unwrap();
    assert!(!root.join("d").exists());
}

fn attributes(share: &dyn Share, root: &Path) {
    share.create("m", 0o600).unwrap();
    let at = |mtime: i64| SetAttr {
        mtime: Some(mtime),
        ..SetAttr::default()
    };
    // Shares count in 100 ns.
    for mtime in [
        1_000_000_000_123_456_700,
        5_000_000_000,
        4_000_000_000_000_000_000,
    ] {
        share.set_attr("m", &at(mtime)).unwrap();
        assert_eq!(share.stat("m").unwrap().mtime, mtime);
    }
    // Also while it is open for writing, and for good.
    let file = share.open("m", true).unwrap();
    file.write_all_at(0, b"x").unwrap();
    file.sync().unwrap();
    share.set_attr("m", &at(7_000_000_000)).unwrap();
    drop(file);
    assert_eq!(share.stat("m").unwrap().mtime, 7_000_000_000);
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    share.set_attr("m", &mode(0o400)).unwrap();
    assert_eq!(share.stat("m").unwrap().mode & 0o600, 0o400);
    assert_eq!(share.stat("m").unwrap().mtime, 7_000_000_000);
    share.set_attr("m", &mode(0o600)).unwrap();
    assert_eq!(share.stat("m").unwrap().mode & 0o600, 0o600);
    share.set_attr("m", &SetAttr::default()).unwrap();
    assert_eq!(kind(share.set_attr("none", &at(0))), ErrorKind::NotFound);
    assert!(root.join("m").exists());
    share.unlink("m").unwrap();
}

fn open_files_keep_working(share: &dyn Share) {
    let file = share.create("o", 0o600).unwrap();
    file.write_all_at(0, b"one").unwrap();
    share.rename("o", "p", false).unwrap();
    file.write_all_at(3, b"two").unwrap();
    assert_eq!(read(share, "p"), b"onetwo");
    // The name is free at once, although the file is open.
    share.unlink("p").unwrap();
    assert_eq!(kind(share.stat("p")), ErrorKind::NotFound);
    let again = share.create("p", 0o600).unwrap();
    again.write_all_at(0, b"new").unwrap();
    let mut buf = [0; 6];
    assert_eq!(file.read_at(0, &mut buf).unwrap(), 6);
    assert_eq!(&buf, b"onetwo");
    file.write_all_at(0, b"ONE").unwrap();
    assert_eq!(read(share, "p"), b"new");
    // Replaced while both are open.
    let other = share.create("q", 0o600).unwrap();
    other.write_all_at(0, b"other").unwrap();
    share.rename("q", "p", true).unwrap();
    assert_eq!(again.read_at(0, &mut buf).unwrap(), 3);
    assert_eq!(read(share, "p"), b"other");
    other.write_all_at(0, b"OTHER").unwrap();
    assert_eq!(read(share, "p"), b"OTHER");
    drop((file, again, other));
    share.unlink("p").unwrap();
}

fn paths_stay_inside(share: &dyn Share) {
    for path in ["..", "../x", "a/../../x", "/etc/passwd", "a//b", "a\0b"] {
        assert!(share.stat(path).is_err(), "{path}");
        assert!(share.open(path, false).is_err(), "{path}");
        assert!(share.create(path, 0o600).is_err(), "{path}");
        assert!(share.rename(path, "x", true).is_err(), "{path}");
    }
}

#[test]
fn directory() {
    let tmp = tempfile::tempdir().unwrap();
    contract(&DirShare::open(tmp.path()).unwrap(), tmp.path());
}

fn over_smb(options: Options) {
    let tmp = tempfile::tempdir().unwrap();
    let Some(server) = Smbd::start(tmp.path(), options) else {
        return;
    };
    contract(&server.share(), tmp.path());
}

#[test]
fn smb_signed() {
    over_smb(Options::default());
}

#[test]
fn smb_share_that_requires_encryption() {
    over_smb(Options {
        share: "smb encrypt = required",
        ..Options::default()
    });
}

#[test]
fn smb_server_that_requires_encryption() {
    over_smb(Options {
        global: "smb encrypt = required",
        ..Options::default()
    });
}

#[test]
fn smb_old_dialects() {
    for dialect in ["SMB2_10", "SMB3_00", "SMB3_02"] {
        let global = format!("server max protocol = {dialect}");
        over_smb(Options {
            global: &global,
            ..Options::default()
        });
    }
}
