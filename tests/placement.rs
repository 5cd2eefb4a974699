//! Which way mail objects take to a PST on an SMB server: written there from here, over whatever link there
//! is, or by the agent beside it, without a byte written over SMB.
//!
//! `PSTSYNCD_POOR_LINK_MB` sets how large the PST is (3 by default).

mod far;
mod net;
mod support;

use std::fs::{self, OpenOptions};
use std::process::Stdio;
use std::time::{Duration, Instant};

use far::{Far, make_pst};
use serde_json::Value;
use support::{edit, port, skip};

const RATE: u64 = 1_000_000;

fn edits(far: &Far, count: u32, seed: u32) {
    let status = edit(&far.on_drive())
        .args(["--operations", &count.to_string()])
        .args(["--seed", &seed.to_string()])
        .status();
    assert!(status.expect("runs").success(), "the mail program fails");
}

fn wait_whole(far: &Far) {
    within(far, 600, "whole", |status| {
        let files = status["files"].as_array().cloned().unwrap_or_default();
        files.iter().any(|f| f["fully_cached"] == true)
    });
}

fn within(far: &Far, seconds: u64, what: &str, done: impl Fn(&Value) -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let (_, status) = far.run(&["status"]);
        if done(&status) {
            return;
        }
        assert!(Instant::now() < end, "not {what}: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The way that the PST would take now, and why.
fn planned(far: &Far) -> (String, String) {
    let (code, plan) = far.run(&["sync", "--plan"]);
    assert_eq!(code, 2, "{plan}");
    let files = plan["files"].as_array().expect("files");
    assert_eq!(files.len(), 1, "{plan}");
    let text = |field: &str| files[0][field].as_str().expect("text").to_owned();
    assert_eq!(text("path"), "Mail/work.pst");
    (text("way"), text("why"))
}

#[test]
fn without_an_agent_a_poor_link_carries_what_changed() {
    let Some(mut far) = Far::new("") else { return };
    make_pst(&far.on_share(), 3);
    let size = fs::metadata(far.on_share()).expect("there").len();
    far.mount("drive", "online", &[]);
    wait_whole(&far);
    far.ok(&["mode", "cached"]);
    far.net.shape(RATE);
    // The second time the share's file holds the same mail in other bytes.
    for seed in 1..=3 {
        edits(&far, 7, seed);
        let (way, why) = planned(&far);
        assert_eq!((&way[..], &why[..]), ("local", "there is no agent"));
        let before = far.net.passed();
        let began = Instant::now();
        let answer = far.synced();
        if std::env::var("DBG").is_ok() {
            println!(
                "{}",
                fs::read_to_string(far.path("drive-state/daemon.log")).unwrap()
            );
        }
        let took = began.elapsed();
        let ours = far.net.passed().since(before).total();
        assert_eq!(answer["files"][0]["outcome"], "synced", "{answer}");
        far.assert_synced();
        println!(
            "7 edits of a PST of {size} bytes, written from here at {RATE} bit/s: {ours} bytes on the wire, \
             {:.1} s",
            took.as_secs_f64()
        );
        assert!(ours * 5 < size, "{ours} bytes of {size}");
    }
    let (code, plan) = far.run(&["sync", "--plan"]);
    assert_eq!(code, 0, "{plan}");
    far.net.unshape();
    // The drive's copy becomes the share's file again, by what differs.
    let before = far.net.passed();
    far.ok(&["mode", "online"]);
    within(&far, 120, "attached", |status| {
        status["files"][0]["note"].is_null()
    });
    let ours = far.net.passed().since(before).total();
    println!("{ours} bytes to follow the share's file again");
    assert!(ours * 2 < size, "{ours} bytes of {size}");
    assert!(support::sha256(&far.on_drive()) == support::sha256(&far.on_share()));
    let beside: Vec<_> = fs::read_dir(far.path("share/Mail"))
        .expect("lists")
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    far.unmount("drive");
}

/// What is cut in the middle of a sync.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Link,
    Server,
    Daemon,
    All,
}

/// The link, the server, the daemon go in the middle of a sync, at many moments (`PSTSYNCD_PLACEMENT_CUTS`, 6
/// by default). Whoever opens the file then finds it whole; when all are back the sync goes on, and nothing is
/// done twice.
#[test]
fn what_is_cut_in_the_middle_leaves_a_whole_file() {
    let Some(mut far) = Far::new("") else { return };
    let set = std::env::var("PSTSYNCD_PLACEMENT_CUTS").ok();
    let cuts: u32 = set.map_or(6, |n| n.parse().expect("a number"));
    make_pst(&far.on_share(), 3);
    far.mount("drive", "online", &[]);
    wait_whole(&far);
    far.ok(&["mode", "cached"]);
    let sidecar = far.path("share/Mail/work.pst.pstsyncd-redo");
    let mut begun = 0;
    for round in 0..cuts {
        let cut = [Cut::Link, Cut::Daemon, Cut::Server, Cut::All][round as usize % 4];
        edits(&far, 6, 10 + round);
        far.net.shape(RATE);
        let mut sync = far
            .command(&["sync", "now", "--json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        // Now and then just after the log came, when the file itself is written.
        let wait = Duration::from_millis(u64::from(round) * 1237 % 4000);
        let end = Instant::now()
            + if round % 2 == 0 {
                Duration::from_secs(20)
            } else {
                wait
            };
        while Instant::now() < end && !(round % 2 == 0 && sidecar.exists()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(wait / 20);
        if matches!(cut, Cut::Link | Cut::All) {
            far.net.down();
        }
        if matches!(cut, Cut::Server | Cut::All) {
            far.server.kill();
        }
        if matches!(cut, Cut::Daemon | Cut::All) {
            far.kill("drive");
        }
        std::thread::sleep(Duration::from_millis(300));
        begun += u32::from(sidecar.exists());
        let copy = far.path("cut.pst");
        fs::copy(far.on_share(), &copy).expect("copies");
        let output = far.command(&["pst", "inventory"]).arg(&copy).output();
        assert!(output.expect("runs").status.success(), "{round}, {cut:?}");
        far.net.up();
        far.net.unshape();
        if matches!(cut, Cut::Server | Cut::All) {
            assert!(far.server.run());
        }
        let _ = sync.wait();
        if matches!(cut, Cut::Daemon | Cut::All) {
            far.mount("drive", "cached", &[]);
        }
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let (code, answer) = far.run(&["sync", "now"]);
            if code == 0 {
                break;
            }
            assert!(Instant::now() < end, "{round}, {cut:?}: {answer}");
            std::thread::sleep(Duration::from_millis(500));
        }
        far.assert_synced();
    }
    let beside: Vec<_> = fs::read_dir(far.path("share/Mail"))
        .expect("lists")
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    println!("{cuts} cuts, {begun} of them with a change begun");
    assert!(begun > 0);
    far.unmount("drive");
}

/// Online from here, cached by the agent; and by the agent nothing is written over SMB: the share allows
/// nobody to.
#[test]
fn cached_by_the_agent_without_a_write_over_smb() {
    let Some(mut far) = Far::new("read only = yes") else {
        return;
    };
    make_pst(&far.on_share(), 3);
    far.start_agent();
    far.mount("drive", "cached", &[]);
    wait_whole(&far);
    edits(&far, 5, 1);
    let (way, why) = planned(&far);
    assert_eq!((&way[..], &why[..]), ("split", "the drive is not online"));
    far.synced();
    far.assert_synced();
    edits(&far, 5, 2);
    far.synced();
    far.assert_synced();
    far.unmount("drive");
}

#[test]
fn online_from_here_without_the_agent() {
    let Some(mut far) = Far::new("") else { return };
    make_pst(&far.on_share(), 3);
    far.start_agent();
    far.mount("drive", "cached", &[]);
    wait_whole(&far);
    far.stop_agent();
    for seed in 1..=2 {
        edits(&far, 5, seed);
        let (way, _) = planned(&far);
        assert_eq!(way, "split");
        // It was never reached, so it has nothing in hand.
        far.ok(&["mode", "online"]);
        let (way, why) = planned(&far);
        assert_eq!((&way[..], &why[..]), ("local", "the drive is online"));
        far.synced();
        far.assert_synced();
        far.ok(&["mode", "cached"]);
    }
    far.unmount("drive");
}

/// What cannot be written there waits, and the user is told why.
#[test]
fn a_share_that_may_not_be_written_is_said() {
    let Some(mut far) = Far::new("read only = yes") else {
        return;
    };
    make_pst(&far.on_share(), 3);
    far.mount("drive", "cached", &[]);
    wait_whole(&far);
    edits(&far, 3, 1);
    let before = support::sha256(&far.on_share());
    let (code, answer) = far.run(&["sync", "now"]);
    assert_eq!(code, 5, "{answer}");
    let error = &answer["files"][0]["error"];
    println!("{error}");
    let said = error["message"].as_str().expect("a sentence");
    assert!(
        said.starts_with("Mail/work.pst may not be changed"),
        "{said}"
    );
    assert_eq!(support::sha256(&far.on_share()), before);
}

/// A program at another machine has the PST open for writing: the sync waits, and says why.
#[test]
fn a_pst_that_others_write_waits() {
    let Some(mut far) = Far::new("") else { return };
    make_pst(&far.on_share(), 3);
    far.mount("drive", "cached", &[]);
    wait_whole(&far);
    edits(&far, 3, 1);
    far.mount("other", "online", &[]);
    let mut options = OpenOptions::new();
    let theirs = options
        .read(true)
        .write(true)
        .open(far.path("other/Mail/work.pst"));
    let theirs = theirs.expect("opens");
    let drive = far.path("drive");
    let sync = ["sync", "now", "--drive", drive.to_str().expect("UTF-8")];
    let before = support::sha256(&far.on_share());
    let (code, answer) = far.run(&sync);
    assert_eq!(code, 2, "{answer}");
    let error = answer["files"][0]["error"]["message"].as_str();
    assert!(error.is_some_and(|e| e.contains("in use")), "{answer}");
    assert_eq!(support::sha256(&far.on_share()), before);
    drop(theirs);
    let end = Instant::now() + Duration::from_secs(30);
    while far.run(&sync).0 != 0 {
        assert!(Instant::now() < end, "it stays in use");
        std::thread::sleep(Duration::from_millis(200));
    }
    far.assert_synced();
    far.unmount("other");
    far.unmount("drive");
}
