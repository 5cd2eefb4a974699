//! A drive that decides its state by itself: what it measures, does, says, and still knows after a
//! restart.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::Rig;

/// What the drive notices, it notices within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(90);

fn until(rig: &Rig, what: &str, verb: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let (_, answer) = rig.run(verb);
        if wanted(&answer) {
            return answer;
        }
        let log = rig.log("state/daemon.log");
        assert!(began.elapsed() < SOON, "{what}: {answer}\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_drive_by_itself_measures_decides_explains_and_remembers() {
    let mut rig = Rig::new(&pst::create_empty(b"link test 000001").expect("a PST"));
    rig.mount("auto");
    let status = until(&rig, "never whole", &["status"], |s| {
        s["files"][0]["fully_cached"] == true && s["state"] == "online"
    });
    assert_eq!(status["policy"], "auto", "{status}");
    let text = "what passes through is measured".repeat(10_000);
    fs::write(rig.path("drive/Mail/note.txt"), &text).expect("writes");
    let link = until(&rig, "nothing is measured", &["link"], |l| {
        l["round_trip_ms"]["value"].is_f64() && l["up_bits_per_second"]["value"].is_f64()
    });
    assert_eq!(link["reachable"], true, "{link}");
    let why = rig.ok(&["mode", "explain"]);
    assert_eq!(why["state"], "online", "{why}");
    let looked = why["figures"].as_array().expect("figures");
    assert!(
        looked.iter().any(|f| f["condition"] == "rate < 4 Mbit/s"),
        "{why}"
    );

    // The share goes. Programs notice nothing, and the drive says what is the matter.
    fs::rename(rig.path("share"), rig.path("away")).expect("moves");
    let began = Instant::now();
    // By way of "cached" where a failed call counts before the link is known to be lost.
    while rig.run(&["status"]).1["state"] != "offline" {
        assert!(began.elapsed() < SOON, "{}", rig.log("state/daemon.log"));
        fs::write(rig.path("drive/Mail/note.txt"), &text).expect("no error of ours");
        std::thread::sleep(Duration::from_millis(300));
    }
    let (code, status) = rig.run(&["status"]);
    assert_eq!(
        (code, &status["state"]),
        (4, &Value::from("offline")),
        "{status}"
    );
    assert_eq!(status["reason"], "the share does not answer", "{status}");
    let change = &status["changes"][0];
    assert_eq!(
        (&change["from"], &change["to"]),
        (&"online".into(), &"offline".into())
    );

    // By hand for a time; online never goes for want of a link, and says so.
    let mode = rig.ok(&["mode", "online", "--for", "3s"]);
    assert_eq!(mode["state"], "online", "{mode}");
    let reason = mode["reason"].as_str().expect("a reason");
    assert!(reason.contains("the cache serves"), "{mode}");
    let read = fs::read_to_string(rig.path("drive/Mail/note.txt")).expect("reads");
    assert!(read == text, "the cache serves what was written");
    fs::rename(rig.path("away"), rig.path("share")).expect("moves back");
    until(&rig, "never goes back", &["mode", "explain"], |why| {
        why["policy"] == "auto" && why["until"].is_null()
    });
    let (code, error) = rig.run(&["mode", "rules"]);
    assert_eq!(
        (code, &error["error"]["code"]),
        (5, &"no-rules".into()),
        "{error}"
    );
    let mode = rig.ok(&["mode", "cached"]);
    assert_eq!(mode["policy"], "cached", "{mode}");
    until(&rig, "never back", &["status"], |s| s["state"] == "cached");
    let before = rig.run(&["link"]).1["changes"].clone();
    let reasons = before.as_array().expect("changes").len();
    assert!(reasons >= 3, "{before}");
    rig.unmount();
    rig.mount("cached");
    let after = rig.run(&["link"]).1["changes"].clone();
    assert_eq!(after, before, "what was is known after a restart");
    let output = rig.command(&["mode", "explain"]).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("because   by hand"), "{text}");
    rig.unmount();
}
