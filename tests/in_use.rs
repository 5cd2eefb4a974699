//! Unmounting a drive that a program uses, and what a remount knows of work done offline.

mod support;

use std::fs::{self, File};
use std::io::Read;

use support::Rig;

#[test]
fn a_drive_in_use_stays_mounted_and_usable() {
    let mut rig = Rig::new(&pst::create_empty(b"drive in use 000").expect("a PST"));
    rig.mount("cached");
    let drive = rig.path("drive");
    let drive = drive.to_str().expect("UTF-8");
    let mut open = File::open(rig.on_drive()).expect("opens");
    // Twice: a refusal must not make the next answer a lie.
    for verb in [&["unmount", drive][..], &["unmount", "--now", drive]] {
        let (code, answer) = rig.run(verb);
        assert_eq!(code, 5, "{answer}");
        assert_eq!(answer["error"]["code"], "in-use", "{answer}");
        assert!(fs::read_dir(drive).expect("lists").next().is_some());
    }
    let mut head = [0; 4];
    open.read_exact(&mut head).expect("reads on");
    assert_eq!(&head, b"!BDN");
    drop(open);
    rig.unmount();
    assert!(fs::read_dir(drive).expect("lists").next().is_none());
}

#[test]
fn work_done_offline_waits_through_a_remount_and_reaches_the_share() {
    let mut rig = Rig::new(&pst::create_empty(b"drive offline 00").expect("a PST"));
    rig.mount("cached");
    let (drive, share) = (rig.path("drive"), rig.path("share"));
    rig.ok(&["mode", "offline"]);
    fs::create_dir_all(drive.join("a/b")).expect("makes");
    fs::write(drive.join("a/b/x"), b"first").expect("writes");
    fs::rename(drive.join("a/b/x"), drive.join("a/z")).expect("renames");
    fs::write(drive.join("a/b/x"), b"second").expect("writes");
    fs::write(drive.join("gone"), b"gone").expect("writes");
    fs::remove_file(drive.join("gone")).expect("removes");
    let (code, answer) = rig.run(&["unmount", drive.to_str().expect("UTF-8")]);
    assert_eq!(code, 4, "it refuses: {answer}");
    rig.unmount_now();
    rig.mount("offline");
    let (_, status) = rig.run(&["status"]);
    let paths: Vec<&str> = status["files"]
        .as_array()
        .expect("files")
        .iter()
        .filter_map(|f| f["path"].as_str())
        .collect();
    assert!(
        paths.contains(&"a/z") && paths.contains(&"a/b/x"),
        "{paths:?}"
    );
    assert!(
        !paths.contains(&"gone"),
        "removed is not pending: {paths:?}"
    );
    rig.ok(&["mode", "cached"]);
    rig.ok(&["sync", "now"]);
    assert_eq!(fs::read(share.join("a/z")).expect("there"), b"first");
    assert_eq!(fs::read(share.join("a/b/x")).expect("there"), b"second");
    assert!(!share.join("gone").exists());
    rig.unmount();
}
