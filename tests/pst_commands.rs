//! The `pst` commands from outside: what they say about files, sound and unsound.

#![allow(clippy::unwrap_used)]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/skip.rs"]
mod skip;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use machine::{Machine, stdout};

/// A node database without a store: what is a PST by its header and not by its content.
fn bare_pst() -> Vec<u8> {
    pst::ndb::Ndb::create_empty_ndb()
}

#[test]
fn what_is_no_sound_pst_is_named_with_a_next_step_and_left_as_it_is() {
    let machine = Machine::new();
    let good = bare_pst();
    let mut bad_crc = good.clone();
    bad_crc[300] ^= 0xFF;
    let mut bad_page = good.clone();
    let root = u64::from_le_bytes(good[224..232].try_into().unwrap());
    bad_page[usize::try_from(root).unwrap()] ^= 0xFF;
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("empty.pst", Vec::new(), "not-a-pst"),
        (
            "text.pst",
            b"Dear diary, this is no PST. ".repeat(100),
            "not-a-pst",
        ),
        ("head.pst", good[..100].to_vec(), "pst-damaged"),
        ("cut.pst", good[..good.len() / 2].to_vec(), "pst-damaged"),
        ("crc.pst", bad_crc, "pst-damaged"),
        ("page.pst", bad_page, "pst-damaged"),
    ];
    for (name, bytes, code) in cases {
        std::fs::write(machine.path(name), &bytes).unwrap();
        for verb in ["info", "ls", "dump", "check"] {
            let error = machine.refused(&["pst", verb, name], 5, code);
            assert!(error["message"].as_str().unwrap().contains(name), "{error}");
        }
        assert_eq!(std::fs::read(machine.path(name)).unwrap(), bytes);
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let machine = Machine::new();
    let fifo = machine.path("pipe.pst");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    for verb in ["info", "ls", "dump", "check"] {
        machine.refused(&["pst", verb, "nowhere.pst"], 5, "not-found");
        machine.refused(&["pst", verb, "share"], 5, "not-a-file");
        machine.refused(&["pst", verb, "pipe.pst"], 5, "not-a-file");
    }
}

/// Its structure is sound; what makes it a mail store is missing.
#[test]
fn check_lists_its_findings_and_ends_with_5_where_one_is_an_error() {
    let machine = Machine::new();
    std::fs::write(machine.path("bare.pst"), bare_pst()).unwrap();
    let out = machine.run(&["pst", "check", "bare.pst", "--json"]);
    assert_eq!(out.status.code(), Some(5));
    let lines: Vec<serde_json::Value> = stdout(&out)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let (summary, findings) = lines.split_last().unwrap();
    let errors = findings
        .iter()
        .filter(|f| f["finding"]["severity"] == "error")
        .count();
    assert!(errors > 0);
    assert_eq!(summary["summary"]["errors"], errors);
    let missing = findings
        .iter()
        .filter(|f| f["finding"]["code"] == "required-node")
        .count();
    assert_eq!(summary["summary"]["codes"]["required-node"], missing);
    assert_eq!(missing, 6, "{findings:?}");
    let error: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(error["error"]["code"], "check-failed");
}

/// Counts of folders, messages and associated messages, as libpff and readpst agree on them.
#[test]
fn real_files_are_told_as_other_readers_tell_them() {
    let root = std::env::var_os("PSTSYNCD_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        std::path::PathBuf::from,
    );
    let corpus = root.join("corpus");
    if !corpus.exists() {
        return skip::skipped("corpus", "no corpus on this machine");
    }
    let machine = Machine::new();
    for (name, messages, version, encoding) in [
        ("enron.pst", 71, 23, "permute"),
        ("tika-testPST.pst", 7, 23, "permute"),
        ("many-small.pst", 72, 23, "permute"),
        ("ansi-32bit.pst", 1, 14, "permute"),
        ("ansi-contacts.pst", 1, 14, "permute"),
        ("ost2013-4k.ost", 183, 36, "none"),
    ] {
        let file = corpus.join(name);
        let file = file.to_str().unwrap();
        let info = machine.run(&["pst", "info", file, "--json"]);
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["messages"], messages, "{name}");
        assert_eq!(
            (&info["version"], &info["encoding"]),
            (&version.into(), &encoding.into()),
            "{name}"
        );
        assert_eq!(info["editable"], version != 36, "{name}");
        let ls = machine.run(&["pst", "ls", "-l", file, "--json"]);
        assert_eq!(ls.status.code(), Some(0));
        let items: Vec<serde_json::Value> = stdout(&ls)
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let of = |kind: &str| items.iter().filter(|i| i["kind"] == kind).count() as u64;
        assert_eq!(info["messages"], of("message"), "{name}");
        assert_eq!(info["folders"], of("folder"), "{name}");
        assert_eq!(info["associated"], of("associated"), "{name}");
        let counted: u64 = items.iter().filter_map(|i| i["messages"].as_u64()).sum();
        assert_eq!(info["messages"], counted, "{name}");
        // What a person sees has no control characters, whatever the subjects hold.
        let human = machine.run(&["pst", "ls", "-l", file]);
        assert!(
            !stdout(&human).chars().any(|c| c.is_control() && c != '\n'),
            "{name}"
        );
        if name == "ansi-contacts.pst" {
            assert!(stdout(&human).contains("連絡先 (Contact dedicated)/"));
        }
        let check = machine.run(&["pst", "check", file]);
        assert_eq!(check.status.code(), Some(0), "{name}: {}", stdout(&check));
        let dump = machine.run(&["pst", "dump", file]);
        assert_eq!(
            dump.stdout,
            machine.run(&["pst", "dump", file, "--json"]).stdout
        );
        let kinds = stdout(&dump)
            .lines()
            .filter(|l| l.contains("\"kind\":\"message\""))
            .count();
        assert_eq!(info["messages"], kinds, "{name}");
    }
}

/// An empty PST, and the same with one message in its top folder.
fn two_versions() -> (Vec<u8>, Vec<u8>) {
    use pst::ltp::{PropBag, PropValue};
    use pst::messaging::{MessageData, Transaction, tags};
    let old = pst::create_empty(b"command line ...").unwrap();
    let file = std::sync::Arc::new(storage::MemStorage::from(old.clone()));
    let mut edit = Transaction::begin(std::sync::Arc::clone(&file) as _).unwrap();
    let folder = edit.ipm_subtree().unwrap();
    let props: PropBag = [
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, "Tea at \u{1b}[31mfive"),
    ]
    .into_iter()
    .collect();
    let message = MessageData {
        props,
        ..MessageData::default()
    };
    edit.add_message(folder, None, &message, false).unwrap();
    edit.finish().unwrap().commit(&*file).unwrap();
    (old, file.to_vec())
}

#[test]
fn what_diff_writes_apply_does_once() {
    let machine = Machine::new();
    let (old, new) = two_versions();
    std::fs::write(machine.path("old.pst"), &old).unwrap();
    std::fs::write(machine.path("new.pst"), &new).unwrap();
    let json = |args: &[&str]| {
        let out = machine.run(&[args, &["--json"]].concat());
        assert_eq!(
            out.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let lines = stdout(&out);
        lines
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect::<Vec<serde_json::Value>>()
    };
    let lines = json(&["pst", "diff", "old.pst", "new.pst", "-o", "changes"]);
    let (summary, changes) = lines.split_last().unwrap();
    let summary = &summary["summary"];
    assert_eq!(
        (&summary["added"], &summary["deleted"]),
        (&1.into(), &0.into())
    );
    let written = std::fs::metadata(machine.path("changes")).unwrap();
    assert_eq!(summary["bytes"], written.len());
    assert_eq!(written.permissions().mode() & 0o777, 0o600);
    assert_eq!(changes[0]["change"]["action"], "added");
    assert_eq!(changes[0]["change"]["name"], "Tea at \u{1b}[31mfive");
    let human = stdout(&machine.run(&["pst", "diff", "old.pst", "new.pst"]));
    assert!(human.contains("Tea at \\u{1b}[31mfive"), "{human}");

    let report = &json(&["pst", "apply", "old.pst", "changes"])[0];
    assert_eq!(
        (&report["done"], &report["verified"]),
        (&1.into(), &true.into())
    );
    let dump = |file: &str| stdout(&machine.run(&["pst", "dump", file]));
    assert_eq!(dump("old.pst"), dump("new.pst"));
    let after = std::fs::read(machine.path("old.pst")).unwrap();
    assert_ne!(after, old);
    let again = &json(&["pst", "apply", "old.pst", "changes"])[0];
    assert_eq!(
        (&again["done"], &again["written_bytes"]),
        (&0.into(), &0.into())
    );
    assert_eq!(std::fs::read(machine.path("old.pst")).unwrap(), after);
    let same = &json(&["pst", "diff", "old.pst", "new.pst"])[0];
    assert_eq!(
        (&same["summary"]["added"], &same["summary"]["updated"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn diff_and_apply_refuse_what_would_cost_mail() {
    let machine = Machine::new();
    let (old, new) = two_versions();
    std::fs::write(machine.path("old.pst"), &old).unwrap();
    std::fs::write(machine.path("new.pst"), &new).unwrap();
    std::fs::write(machine.path("text"), "Dear diary").unwrap();
    let diff = |output: &str| {
        let line = ["pst", "diff", "old.pst", "new.pst", "-o", output];
        machine.refused(&line, 5, "output-is-pst");
    };
    std::fs::copy(machine.path("new.pst"), machine.path("other.pst")).unwrap();
    diff("old.pst");
    diff("new.pst");
    diff("other.pst");
    diff("share");
    machine.refused(&["pst", "diff", "old.pst", "nowhere.pst"], 5, "not-found");
    machine.refused(&["pst", "diff", "text", "new.pst"], 5, "not-a-pst");
    machine.refused(&["pst", "apply", "old.pst", "text"], 5, "not-a-change-list");
    machine.refused(
        &["pst", "apply", "old.pst", "new.pst"],
        5,
        "not-a-change-list",
    );
    machine.run(&["pst", "diff", "old.pst", "new.pst", "-o", "changes"]);
    machine.refused(&["pst", "apply", "text", "changes"], 5, "not-a-pst");
    // A byte of it changed on the way.
    let mut bytes = std::fs::read(machine.path("changes")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(machine.path("damaged"), bytes).unwrap();
    machine.refused(
        &["pst", "apply", "old.pst", "damaged"],
        5,
        "not-a-change-list",
    );
    // Held by a lock, and merely open in another program, which this test is.
    let held = std::fs::File::open(machine.path("old.pst")).unwrap();
    machine.refused(&["pst", "apply", "old.pst", "changes"], 5, "in-use");
    held.lock().unwrap();
    machine.refused(&["pst", "apply", "old.pst", "changes"], 5, "in-use");
    drop(held);
    assert_eq!(std::fs::read(machine.path("old.pst")).unwrap(), old);
    assert_eq!(std::fs::read(machine.path("new.pst")).unwrap(), new);
    assert_eq!(std::fs::read(machine.path("other.pst")).unwrap(), new);
}
