//! A real mail writer's write calls, replayed on a drive over an SMB server at the other end of a link,
//! signed and encrypted: passed through they are on the share byte for byte, cached they reach it as
//! mail objects by the agent beside it.

mod far;
mod net;
mod support;

use std::fs::OpenOptions;

use far::Far;
use support::{port, sha256, skip, trace};

/// The file after each trace.
const AFTER: [(&str, &str); 2] = [
    (
        "edits-11",
        "e751c184ed3d0f7e3731ebea10f5406fc1aef91b490ce0db16be0b288a80883c",
    ),
    (
        "edits-12",
        "9882397832f33f2c7f5e44978b1d53f51092dc2c1db27e05772892c71d2d92ec",
    ),
];

fn far(share: &str) -> Option<Far> {
    let Some(mail) = trace::mail_pst() else {
        skip::skipped("traces", "no traces on this machine");
        return None;
    };
    let far = Far::new(share)?;
    std::fs::write(far.on_share(), mail).expect("writes");
    Some(far)
}

fn replay(far: &Far, name: &str) {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(far.on_drive());
    let file = file.expect("opens on the drive");
    for call in trace::calls(name) {
        trace::replay(&file, &call);
    }
    file.sync_all().expect("flushes");
}

fn passed_through(share: &str) {
    let Some(mut far) = far(share) else { return };
    far.mount("drive", "online", &[]);
    for (name, digest) in AFTER {
        replay(&far, name);
        assert_eq!(sha256(&far.on_drive()), digest, "{name} on the drive");
        assert_eq!(sha256(&far.on_share()), digest, "{name} on the share");
    }
    far.unmount("drive");
}

#[test]
fn passed_through_signed() {
    passed_through("");
}

#[test]
fn passed_through_encrypted() {
    passed_through("smb encrypt = required");
}

#[test]
fn cached_and_synced_by_the_agent() {
    let Some(mut far) = far("smb encrypt = required") else {
        return;
    };
    far.start_agent();
    far.mount("drive", "cached", &[]);
    for (name, digest) in AFTER {
        replay(&far, name);
        assert_eq!(sha256(&far.on_drive()), digest, "{name} on the drive");
        let before = sha256(&far.on_share());
        let answer = far.synced();
        let report = &answer["files"][0];
        assert_eq!(report["outcome"], "synced", "{answer}");
        assert!(report["verified_at"].is_string(), "{answer}");
        assert_ne!(sha256(&far.on_share()), before, "nothing reached the share");
        far.assert_synced();
    }
    far.unmount("drive");
}
