//! What was done while the share was away reaches it without a command, once it is back.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::Rig;

/// A share that is back is synced to within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(90);

fn rig() -> Rig {
    let mut rig = Rig::new(&pst::create_empty(b"auto sync test 0").expect("a PST"));
    rig.auto_sync = true;
    rig
}

/// Asks for the status until it is as wanted.
fn until(rig: &Rig, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let (_, status) = rig.run(&["status"]);
        if wanted(&status) {
            return status;
        }
        let logs = rig.log("state/daemon.log");
        assert!(began.elapsed() < SOON, "{what}: {status}\n{logs}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn nothing_waits(status: &Value) -> bool {
    let files = status["files"].as_array().expect("files");
    status["pending_bytes"] == 0 && files.iter().all(|f| f["sync"] == "synced")
}

fn edit(rig: &Rig, operations: &str) {
    let status = support::edit(&rig.on_drive())
        .args(["--operations", operations])
        .status()
        .expect("the mail program runs");
    assert!(status.success(), "the mail program sees no error");
}

#[test]
fn a_share_that_returns_is_brought_up_to_date_without_a_command() {
    let mut rig = rig();
    rig.mount("online");
    until(&rig, "never whole", |s| {
        s["files"][0]["fully_cached"] == true && s["auto_sync"]["on"] == true
    });
    let before = support::read_all(&rig.on_share());
    // The share goes, as a mounted one does: its directory is another.
    fs::rename(rig.path("share"), rig.path("away")).expect("moves");
    edit(&rig, "6");
    fs::write(rig.path("drive/Mail/note.txt"), b"a note").expect("writes");
    let status = until(&rig, "does not say what it waits for", |s| {
        s["auto_sync"]["waits_for"] == "the share to answer"
    });
    assert!(!nothing_waits(&status), "{status}");
    assert_eq!(
        support::read_all(&rig.path("away/Mail/work.pst")),
        before,
        "nothing reaches a share that is away"
    );
    fs::rename(rig.path("away"), rig.path("share")).expect("moves back");
    until(&rig, "never synced", nothing_waits);
    assert_ne!(support::read_all(&rig.on_share()), before);
    rig.assert_equal_dumps();
    let note = fs::read(rig.path("share/Mail/note.txt")).expect("the note is there");
    assert_eq!(note, b"a note");
    rig.unmount();
}

#[test]
fn what_fails_says_when_it_is_tried_next_and_why_it_failed() {
    let mut rig = rig();
    rig.mount("cached");
    until(&rig, "never whole", |s| {
        s["files"][0]["fully_cached"] == true
    });
    rig.ok(&["mode", "offline"]);
    edit(&rig, "3");
    let status = until(&rig, "does not say that it is offline", |s| {
        s["auto_sync"]["waits_for"] == "the drive to be taken online"
    });
    assert!(!nothing_waits(&status), "{status}");
    // The share can be used again, but its agent is gone.
    rig.stop_agent();
    rig.ok(&["mode", "cached"]);
    let status = until(&rig, "never fails", |s| {
        s["auto_sync"]["last_failure"].is_string() && s["auto_sync"]["next_try"].is_string()
    });
    let why = status["auto_sync"]["last_failure"].as_str().expect("why");
    assert!(why.contains("Mail/work.pst"), "{why}");
    let output = rig.command(&["status"]).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains("auto ") && text.contains("last try: "),
        "{text}"
    );
    rig.unmount_now();
    // Another drive, with an agent that answers, goes on where that one ended.
    rig.start_agent();
    rig.mount("cached");
    until(&rig, "never synced", nothing_waits);
    rig.assert_equal_dumps();
    rig.unmount();
}

#[test]
fn switched_off_nothing_is_synced_until_it_is_asked_for() {
    let mut rig = rig();
    rig.auto_sync = false;
    rig.mount("cached");
    edit(&rig, "3");
    std::thread::sleep(Duration::from_secs(6));
    let (_, status) = rig.run(&["status"]);
    assert_eq!(status["auto_sync"]["on"], false, "{status}");
    assert!(!nothing_waits(&status), "{status}");
    rig.ok(&["sync", "now"]);
    rig.assert_equal_dumps();
    rig.unmount();
}
