//! A real mail writer's write calls, replayed through the mount, reach the share as mail objects.

mod support;

use std::fs::{File, OpenOptions};

use support::trace::{self, Call};
use support::{Rig, read_all, readers, sha256, skip};

const AFTER: [(&str, &str, u64); 2] = [
    (
        "edits-11",
        "e751c184ed3d0f7e3731ebea10f5406fc1aef91b490ce0db16be0b288a80883c",
        33_488,
    ),
    (
        "edits-12",
        "9882397832f33f2c7f5e44978b1d53f51092dc2c1db27e05772892c71d2d92ec",
        135_229,
    ),
];

fn open(rig: &Rig) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(rig.on_drive())
        .expect("opens on the drive")
}

/// Our own reader must not be the judge of our own writer.
fn assert_readers_agree(rig: &Rig) {
    // The drive's file is copied first: these readers map and scan at will.
    let copy = rig.path("drive-copy.pst");
    std::fs::copy(rig.on_drive(), &copy).expect("copies");
    for (name, read) in [
        (
            "pffexport",
            readers::pffexport as fn(&std::path::Path) -> Option<readers::View>,
        ),
        ("readpst", readers::readpst),
    ] {
        let (Some(drive), Some(share)) = (read(&copy), read(&rig.on_share())) else {
            skip::skipped("readers", &format!("{name} is not installed"));
            continue;
        };
        for (folder, items) in &drive {
            assert_eq!(
                share.get(folder),
                Some(items),
                "{name} differs in folder {folder}"
            );
        }
        assert_eq!(drive.len(), share.len(), "{name}: folders");
        println!("{name}: {} folders agree", drive.len());
    }
}

#[test]
fn replayed_edits_reach_the_share() {
    let Some(mail) = trace::mail_pst() else {
        return skip::skipped("traces", "no traces on this machine");
    };
    let mut rig = Rig::new(&mail);
    rig.mount("cached");
    for (name, digest, xdelta3) in AFTER {
        let file = open(&rig);
        for call in trace::calls(name) {
            trace::replay(&file, &call);
        }
        drop(file);
        assert_eq!(
            sha256(&rig.on_drive()),
            digest,
            "the drive holds what was written"
        );
        let before = read_all(&rig.on_share());
        let answer = rig.ok(&["sync", "now"]);
        let report = &answer["files"][0];
        assert_eq!(report["outcome"], "synced", "{answer}");
        assert!(report["verified_at"].is_string(), "{answer}");
        assert_ne!(
            read_all(&rig.on_share()),
            before,
            "the share's PST was brought up to date"
        );
        println!(
            "{name}: {} added, {} updated, {} moved, {} deleted: {} bytes shipped \
             (xdelta3, holding both files: {xdelta3})",
            report["added"],
            report["updated"],
            report["moved"],
            report["deleted"],
            report["shipped_bytes"]
        );
        rig.assert_equal_dumps();
        assert_readers_agree(&rig);
        let check = rig.ok(&["pst", "check", rig.on_share().to_str().expect("UTF-8")]);
        assert_eq!(check["summary"]["errors"], 0, "{check}");
    }
    rig.unmount();
}

#[test]
fn killed_in_the_middle_of_a_replay() {
    let Some(mail) = trace::mail_pst() else {
        return skip::skipped("traces", "no traces on this machine");
    };
    let mut rig = Rig::new(&mail);
    let mut model = mail;
    let calls: Vec<Call> = trace::calls("edits-11");
    let cuts = [calls.len() / 7, calls.len() / 2, calls.len() - 3];
    let mut next = 0;
    rig.mount("cached");
    for cut in cuts {
        let file = open(&rig);
        for call in &calls[next..cut] {
            trace::replay(&file, call);
            trace::replay_in_memory(&mut model, call);
        }
        file.sync_all().expect("flushes");
        // More writes are under way when the daemon dies; that they are acknowledged is enough.
        let more = (cut + 5).min(calls.len());
        for call in &calls[cut..more] {
            trace::replay(&file, call);
            trace::replay_in_memory(&mut model, call);
        }
        next = more;
        rig.kill_daemon();
        drop(file);
        rig.mount("cached");
        assert!(
            read_all(&rig.on_drive()) == model,
            "all that was acknowledged is there"
        );
        let (_, status) = rig.run(&["status"]);
        assert!(
            status["files"][0]["pending_bytes"].as_u64() > Some(0),
            "unsynced is known: {status}"
        );
    }
    let file = open(&rig);
    for call in &calls[next..] {
        trace::replay(&file, call);
    }
    drop(file);
    assert_eq!(sha256(&rig.on_drive()), AFTER[0].1);
    rig.ok(&["sync", "now"]);
    rig.assert_equal_dumps();
    rig.unmount();
}
