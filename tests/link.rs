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
    // For a time: that outlives a restart, and a kill.
    rig.ok(&["mode", "offline", "--for", "1h"]);
    rig.unmount();
    rig.mount("cached");
    let why = rig.ok(&["mode", "explain"]);
    assert_eq!(why["policy"], "offline", "{why}");
    assert_eq!(why["until"][1], "cached", "{why}");
    rig.ok(&["mode", "cached"]);
    rig.unmount();
    rig.mount("cached");
    let why = rig.ok(&["mode", "explain"]);
    assert_eq!(why["policy"], "cached", "{why}");
    assert!(why["until"].is_null(), "{why}");
    rig.unmount();
}

const FIVE: &str = r#"# A day with five rules.
when network "HotelWifi" or metered then cached
when on battery and not time 07:00-22:00 then offline
when rate < 2M or rtt > 80ms then cached
when time 08:00-18:00 and (up >= 20M) then online   # at work
otherwise auto
"#;

/// Five rules through the mounted drive: the day is played to the daemon (clock, hints and figures; the
/// minimum stay is half a second), the share really goes and comes back.
#[test]
fn a_day_by_five_rules_is_followed_and_explained() {
    let mut rig = Rig::new(&pst::create_empty(b"day test 0000001").expect("a PST"));
    fs::write(rig.path("rules"), FIVE).expect("writes");
    let day = rig.path("day.json");
    let good = r#"{"up":5e7,"down":5e7,"round_trip":10}"#;
    let play = |time: &str, more: &str, link: &str| {
        let (h, m) = time.split_once(':').expect("a time");
        let minute = h.parse::<u16>().expect("h") * 60 + m.parse::<u16>().expect("m");
        let text = format!(r#"{{"minute":{minute},"stay_ms":500,"link":{link}{more}}}"#);
        // Renamed into place: the daemon never sees half of it.
        fs::write(day.with_extension("new"), text).expect("writes");
        fs::rename(day.with_extension("new"), &day).expect("renames");
    };
    play("06:30", "", good);
    let rules = rig.path("rules");
    let more = ["--rules", rules.to_str().expect("UTF-8")];
    rig.mount_with("rules", &more, &[("PSTSYNCD_TEST_DAY", day.as_os_str())]);
    let slow = r#"{"up":1e6,"down":5e7,"round_trip":10}"#;
    let far = r#"{"up":5e7,"down":5e7,"round_trip":200}"#;
    let (share, away) = (rig.path("share"), rig.path("away"));
    for (time, more, link, line, state) in [
        ("06:30", "", good, Some(6), "online"),
        ("08:30", "", good, Some(5), "online"),
        ("10:00", "", slow, Some(4), "cached"),
        ("11:00", "", far, Some(4), "cached"),
        ("12:00", "lost", good, Some(5), "offline"),
        ("12:30", "back", good, Some(5), "online"),
        ("13:00", r#","metered":true"#, good, Some(2), "cached"),
        ("17:00", "", good, Some(5), "online"),
        (
            "19:00",
            r#","networks":["HotelWifi"]"#,
            good,
            Some(2),
            "cached",
        ),
        ("21:59", r#","on_battery":true"#, good, Some(6), "online"),
        ("23:00", r#","on_battery":true"#, good, Some(3), "offline"),
        ("23:30", r#","on_battery":false"#, good, Some(6), "online"),
    ] {
        match more {
            "lost" => fs::rename(&share, &away).expect("the share goes"),
            "back" => fs::rename(&away, &share).expect("the share comes back"),
            _ => {}
        }
        let more = if more.starts_with(',') { more } else { "" };
        play(time, more, link);
        let line = line.map_or(Value::Null, Value::from);
        let why = until(&rig, time, &["mode", "explain"], |why| {
            // What asks the share is somebody who looks.
            let _ = fs::read_dir(rig.path("drive/Mail"));
            why["state"] == state && why["rule_line"] == line && why["held"].is_null()
        });
        assert_eq!(why["wanted"], state, "{time}: {why}");
        assert_eq!(why["policy"], "rules", "{time}: {why}");
        let reason = why["reason"].as_str().expect("a reason");
        assert!(
            reason.contains(&format!("line {line}")) || state == "offline",
            "{time}: {why}"
        );
        let status = rig.run(&["status"]).1;
        assert_eq!(status["state"], state, "{time}: {status}");
        let note = rig.path("drive/Mail/note.txt");
        fs::write(&note, time).expect("no error of ours");
        assert_eq!(fs::read_to_string(&note).expect("reads"), time);
    }
    rig.ok(&["mode", "cached"]);
    rig.unmount();
}
