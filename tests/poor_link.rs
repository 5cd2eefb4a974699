//! Twenty messages of a large PST are edited on a drive whose link carries 1 Mbit/s: what they take to
//! reach the share's PST, verified, in bytes on the wire, beside a plain copy of the file, `rsync -z`, and
//! the same edits by a program that opens the PST straight over SMB.
//!
//! `PSTSYNCD_POOR_LINK_MB` sets how large the PST is (6 by default; 250 for the full run).

mod far;
mod net;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use far::{Far, make_pst};
use net::SERVER;
use support::{edit, port, skip};
use vfs::Share;

const RATE: u64 = 1_000_000;
const RSYNC_PORT: u16 = 8730;

fn twenty_edits(pst: &Path) -> Duration {
    let began = Instant::now();
    let status = edit(pst).args(["--operations", "20"]).status();
    assert!(status.expect("runs").success(), "the mail program fails");
    began.elapsed()
}

/// What `work` puts on the wire.
fn bytes(far: &Far, work: impl FnOnce()) -> u64 {
    let before = far.net.passed();
    work();
    far.net.passed().since(before).total()
}

/// A plain copy to the share, by the SMB client alone.
fn copied(far: &Far, from: &Path) {
    let share = far.server.share();
    let data = std::fs::read(from).expect("reads");
    let made = share.create("copy.pst", 0o644).expect("creates");
    for (i, piece) in data.chunks(1 << 20).enumerate() {
        made.write_all_at((i << 20) as u64, piece).expect("writes");
    }
    made.sync().expect("flushes");
    drop(made);
    assert!(std::fs::read(far.path("share/copy.pst")).expect("reads") == data);
}

/// `rsync -z` of the edited file over the one that the other end has, to a daemon there.
fn rsynced(far: &Far, old: &Path, new: &Path) -> u64 {
    let there = far.path("rsync");
    std::fs::create_dir(&there).expect("a directory");
    std::fs::copy(old, there.join("work.pst")).expect("copies");
    let conf = far.path("rsyncd.conf");
    let text = format!(
        "use chroot = no\n[pst]\npath = {}\nread only = no\nuid = 0\ngid = 0\n",
        there.display()
    );
    std::fs::write(&conf, text).expect("writes");
    let mut daemon = far
        .net
        .server_command("rsync")
        .args(["--daemon", "--no-detach", "--config"])
        .arg(&conf)
        .args(["--address", SERVER, "--port", &RSYNC_PORT.to_string()])
        .spawn()
        .expect("rsync runs");
    let url = format!("rsync://{SERVER}:{RSYNC_PORT}/pst/work.pst");
    let began = Instant::now();
    let count = loop {
        let mut ok = false;
        let count = bytes(far, || {
            let status = Command::new("rsync")
                // Times are equal within a second, and sizes often: it must look inside.
                .args(["-z", "--ignore-times", "--inplace"])
                .arg(new)
                .arg(&url)
                .stderr(Stdio::null())
                .status();
            ok = status.expect("runs").success();
        });
        if ok {
            break count;
        }
        let waited = began.elapsed() < Duration::from_secs(60);
        assert!(waited, "rsync never succeeds");
        std::thread::sleep(Duration::from_millis(100));
    };
    let same = support::sha256(new) == support::sha256(&there.join("work.pst"));
    assert!(same, "rsync made another file");
    let _ = daemon.kill();
    let _ = daemon.wait();
    count
}

#[test]
fn twenty_edited_messages_reach_the_share_over_a_poor_link() {
    let Some(mut far) = Far::new("") else { return };
    make_pst(&far.on_share(), 6);
    let before = far.path("before.pst");
    std::fs::copy(far.on_share(), &before).expect("copies");
    let size = std::fs::metadata(&before).expect("there").len();
    far.start_agent();
    // While the link is good the drive takes the file whole.
    far.mount("drive", "online", &[]);
    let began = Instant::now();
    loop {
        let (_, status) = far.run(&["status"]);
        let files = status["files"].as_array().cloned().unwrap_or_default();
        if files.iter().any(|f| f["fully_cached"] == true) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(600), "never whole");
        std::thread::sleep(Duration::from_millis(100));
    }
    far.ok(&["mode", "cached"]);
    far.net.shape(RATE);
    let editing = twenty_edits(&far.on_drive());
    let began = Instant::now();
    let mut answer = serde_json::Value::Null;
    let ours = bytes(&far, || answer = far.synced());
    let took = began.elapsed();
    let report = &answer["files"][0];
    assert_eq!(report["outcome"], "synced", "{answer}");
    assert!(report["verified_at"].is_string(), "{answer}");
    far.assert_synced();
    far.net.unshape();

    let after = far.path("after.pst");
    std::fs::copy(far.on_drive(), &after).expect("copies");
    let copy = bytes(&far, || copied(&far, &after));
    let rsync = rsynced(&far, &before, &after);
    // The same edits on the same PST, by a drive that keeps nothing.
    std::fs::copy(&before, far.path("share/Mail/straight.pst")).expect("copies");
    far.mount("straight", "online", &["--pin", "nothing"]);
    let straight_pst = far.path("straight/Mail/straight.pst");
    let straight = bytes(&far, || {
        twenty_edits(&straight_pst);
    });
    println!(
        "20 edits of a PST of {size} bytes, {:.1} s for the program; synced and verified in {:.1} s at \
         {RATE} bit/s ({} bytes shipped).\nBytes on the wire: {ours}; plain copy {copy}; rsync -z \
         {rsync}; straight over SMB {straight}",
        editing.as_secs_f64(),
        took.as_secs_f64(),
        report["shipped_bytes"],
    );
    // Less than the mail weighs with a wide margin, however small the file is.
    assert!(ours * 5 < copy, "{ours} bytes beside {copy} for a copy");
    assert!(ours < straight, "{ours} bytes beside {straight} straight");
    far.unmount("straight");
    far.unmount("drive");
}
