//! A drive that may use only so much of the link: what it sends and takes, to the share and to the agent, at the
//! rates that hold now; and how one says so.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use pst::ltp::{PropBag, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use support::Rig;
use support::editor::{Random, edited};

/// At this rate that many bytes take at least so long, whatever was saved up.
fn at_least(bytes: usize, bits_per_second: f64) -> Duration {
    let left = bytes.saturating_sub(64 << 10);
    Duration::from_secs_f64(left as f64 * 8.0 / bits_per_second)
}

fn with_attachment(edit: &mut Transaction, data: &[u8]) {
    let folder = edit.ipm_subtree().expect("a top folder");
    let props = PropBag::from_iter([
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, "noise"),
    ]);
    let attachment = AttachmentData {
        props: PropBag::from_iter([
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::binary(tags::ATTACH_DATA, data.to_vec()),
        ]),
        embedded: None,
    };
    let message = MessageData {
        props,
        attachments: vec![attachment],
        ..MessageData::default()
    };
    edit.add_message(folder, None, &message, false)
        .expect("adds");
}

#[test]
fn what_goes_to_the_share_and_to_the_agent_keeps_to_the_limit() {
    let mut random = Random(7);
    let mut rig = Rig::new(&support::editor::empty());
    rig.mount_with("online", &["--limit", "800k"], &[]);
    let limit = rig.ok(&["limit"]);
    assert_eq!(limit["up_bits_per_second"], 800_000, "{limit}");
    assert_eq!(limit["by"], "by mount --limit", "{limit}");
    assert_eq!(rig.ok(&["status"])["limit"], limit);

    // Passed through, by programs that know nothing of it.
    let data = random.bytes(200_000);
    let began = Instant::now();
    fs::write(rig.path("drive/Mail/noise.bin"), &data).expect("no error for a limit of ours");
    fs::File::open(rig.path("drive/Mail/noise.bin"))
        .and_then(|file| file.sync_all())
        .expect("flushes");
    assert!(
        began.elapsed() >= at_least(data.len(), 800e3),
        "{:?}",
        began.elapsed()
    );
    assert!(fs::read(rig.path("share/Mail/noise.bin")).expect("there") == data);

    // By the agent.
    rig.ok(&["mode", "cached"]);
    let old = fs::read(rig.on_drive()).expect("reads");
    let letter = random.bytes(250_000);
    let new = edited(&old, |edit| with_attachment(edit, &letter));
    fs::write(rig.on_drive(), &new).expect("writes");
    let began = Instant::now();
    rig.ok(&["sync", "now"]);
    assert!(
        began.elapsed() >= at_least(letter.len(), 800e3),
        "{:?}",
        began.elapsed()
    );
    rig.assert_equal_dumps();

    // By hand: at once, and over a restart.
    let limit = rig.ok(&["limit", "up 2M", "--for", "1h"]);
    assert_eq!(limit["up_bits_per_second"], 2_000_000, "{limit}");
    assert!(
        limit["down_bits_per_second"].is_null() && limit["until"].is_string(),
        "{limit}"
    );
    rig.unmount();
    rig.mount_with("online", &["--limit", "800k"], &[]);
    let limit = rig.ok(&["limit"]);
    assert_eq!(
        (&limit["by"], &limit["up_bits_per_second"]),
        (&"by hand".into(), &2_000_000.into())
    );
    assert_eq!(rig.ok(&["limit", "default"])["up_bits_per_second"], 800_000);
    let none = rig.ok(&["limit", "unlimited"]);
    assert!(none["up_bits_per_second"].is_null(), "{none}");
    let (code, wrong) = rig.run(&["limit", "5"]);
    assert_eq!(code, 5, "{wrong}");
}

/// The changes of a container too that are made without an agent.
#[test]
fn what_is_placed_in_a_directory_keeps_to_the_limit() {
    let mut random = Random(9);
    let mut rig = Rig::new(&support::editor::empty());
    rig.mount_with("cached", &["--placement", "local"], &[]);
    let old = fs::read(rig.on_drive()).expect("reads");
    let letter = random.bytes(250_000);
    let new = edited(&old, |edit| with_attachment(edit, &letter));
    fs::write(rig.on_drive(), &new).expect("writes");
    rig.ok(&["limit", "up 800k"]);
    let began = Instant::now();
    rig.ok(&["sync", "now"]);
    // To the redo log, and to the container.
    let least = at_least(2 * letter.len(), 800e3);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    rig.assert_equal_dumps();
    // What is compared is read within the limit as well.
    rig.ok(&["limit", "down 800k"]);
    let newer = edited(&new, |edit| with_attachment(edit, b"small"));
    fs::write(rig.on_drive(), &newer).expect("writes");
    let began = Instant::now();
    rig.ok(&["sync", "now"]);
    let least = at_least(new.len(), 800e3);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    rig.assert_equal_dumps();
}

/// Nobody waits for the limit at the end: neither who unmounts, nor a process that nobody sees any more.
#[test]
fn a_drive_is_unmounted_at_once_behind_a_limit() {
    let mut rig = Rig::new(&support::editor::empty());
    fs::write(rig.path("share/Mail/big.pst"), vec![7; 3 << 20]).expect("writes");
    // Fetching it ahead takes minutes.
    rig.mount_with("cached", &["--limit", "64k"], &[]);
    let began = Instant::now();
    rig.unmount();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

/// A day is played to the daemon: its clock, and the system's hints.
#[test]
fn a_day_of_limits_is_followed() {
    let mut rig = Rig::new(&support::editor::empty());
    fs::write(
        rig.path("limits"),
        "when metered then up 64k down 256k\n\
         when time 09:00-17:00 then 500k # others work too\n",
    )
    .expect("writes");
    let day = rig.path("day.json");
    let play = |time: &str, more: &str| {
        let (h, m) = time.split_once(':').expect("a time");
        let minute = h.parse::<u16>().expect("h") * 60 + m.parse::<u16>().expect("m");
        let link = r#"{"up":5e7,"down":5e7,"round_trip":10}"#;
        let text = format!(r#"{{"minute":{minute},"stay_ms":500,"link":{link}{more}}}"#);
        fs::write(day.with_extension("new"), text).expect("writes");
        fs::rename(day.with_extension("new"), &day).expect("renames");
    };
    play("08:59", "");
    let limits = rig.path("limits");
    let more = [
        "--limit-rules",
        limits.to_str().expect("UTF-8"),
        "--limit",
        "up 40M",
    ];
    rig.mount_with("auto", &more, &[("PSTSYNCD_TEST_DAY", day.as_os_str())]);
    for (time, more, up, down, by, state) in [
        (
            "08:59",
            "",
            Some(40_000_000),
            None,
            "no rule holds",
            "online",
        ),
        (
            "09:00",
            "",
            Some(500_000),
            Some(500_000),
            "line 2: when time 09:00-17:00 then 500k",
            "cached",
        ),
        (
            "10:00",
            r#","metered":true"#,
            Some(64_000),
            Some(256_000),
            "line 1: when metered then up 64k down 256k",
            "cached",
        ),
        (
            "17:00",
            "",
            Some(40_000_000),
            None,
            "no rule holds",
            "online",
        ),
    ] {
        play(time, more);
        let began = Instant::now();
        loop {
            let status = rig.run(&["status"]).1;
            let limit = &status["limit"];
            let as_wanted = limit["up_bits_per_second"].as_u64() == up
                && limit["down_bits_per_second"].as_u64() == down
                && limit["by"] == by
                // What may not be used of a link is not there: it is judged so.
                && status["state"] == state;
            if as_wanted {
                break;
            }
            assert!(
                began.elapsed() < Duration::from_secs(90),
                "{time}: {status}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    rig.unmount();
}
