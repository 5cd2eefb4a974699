//! The command line from outside: arguments, exit codes, and what is said about bad input.

#![allow(clippy::unwrap_used)]

#[path = "support/skip.rs"]
mod skip;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// A machine of its own: no drives, no state but in its own directory.
struct Machine {
    temp: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["run", "share", "mnt"] {
            std::fs::create_dir(temp.path().join(dir)).unwrap();
        }
        std::fs::set_permissions(temp.path().join("run"), PermissionsExt::from_mode(0o700))
            .unwrap();
        Self { temp }
    }

    fn path(&self, name: &str) -> String {
        self.temp.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::cargo_bin("pstsyncd")
            .unwrap()
            .args(args)
            .env("PSTSYNCD_RUNTIME_DIR", self.temp.path().join("run"))
            .env("XDG_STATE_HOME", self.temp.path().join("state"))
            .env("HOME", self.temp.path())
            .env_remove("RUST_LOG")
            .current_dir(self.temp.path())
            .output()
            .unwrap()
    }

    /// Runs it as a person and as a program, and checks that both are told the same failure:
    /// this exit code, this error code, one sentence and one next step, and nothing on standard output.
    #[track_caller]
    fn refused(&self, args: &[&str], exit: i32, code: &str) -> serde_json::Value {
        let human = self.run(args);
        let text = String::from_utf8(human.stderr).unwrap();
        assert_eq!(human.status.code(), Some(exit), "{text}");
        let told: Vec<_> = text
            .lines()
            .skip_while(|l| !l.starts_with("error: "))
            .collect();
        assert_eq!(told.len(), 2, "{text}");
        assert!(told[1].starts_with(" next: "), "{text}");
        assert!(human.stdout.is_empty());
        let json = self.run(&[args, &["--json"]].concat());
        assert_eq!(json.status.code(), Some(exit));
        assert!(json.stdout.is_empty());
        let text = String::from_utf8(json.stderr).unwrap();
        let error: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let error = error["error"].clone();
        assert_eq!(error["code"], code, "{text}");
        assert_eq!(
            told[0],
            format!("error: {}", error["message"].as_str().unwrap())
        );
        assert_eq!(
            told[1],
            format!(" next: {}", error["next"].as_str().unwrap())
        );
        error
    }

    /// What the commands left in the machine's own directory.
    fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn help_and_version_succeed_and_name_every_verb_and_exit_code() {
    let machine = Machine::new();
    let help = machine.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = stdout(&help);
    for word in [
        "mount",
        "unmount",
        "mode",
        "status",
        "sync",
        "agent",
        "pst",
        "completions",
    ] {
        assert!(text.contains(&format!("\n  {word}")), "{word} in {text}");
    }
    assert!(text.contains("0 synced, 2 pending, 3 conflicts, 4 offline, 5 error"));
    for verb in ["info", "ls", "dump", "check", "diff", "apply"] {
        let help = machine.run(&["pst", verb, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(stdout(&help).contains("--json"), "{verb}");
    }
    let version = machine.run(&["--version"]);
    assert_eq!(
        stdout(&version).trim(),
        concat!("pstsyncd ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_end_with_5_and_claps_own_text() {
    let machine = Machine::new();
    for args in [
        &[][..],
        &["fly"],
        &["mount"],
        &["mount", "--share", "share"],
        &["mount", "--share", "share", "mnt", "--agent", "https://a"],
        &["mode", "sometimes"],
        &["pst", "apply", "only-one"],
        &["status", "--dirve", "x"],
        &["agent", "serve", "--root", "share"],
    ] {
        let out = machine.run(args);
        assert_eq!(out.status.code(), Some(5), "{args:?}");
        let text = String::from_utf8(out.stderr).unwrap();
        let claps = text.contains("Usage: pstsyncd") || text.contains("try '--help'");
        assert!(claps, "{args:?}: {text}");
    }
}

#[test]
fn completions_are_written_for_every_shell() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = machine.run(&["completions", shell]);
        assert_eq!(out.status.code(), Some(0));
        assert!(stdout(&out).contains("agent-invitation"), "{shell}");
    }
}

#[test]
fn without_a_drive_the_commands_say_so_and_end_offline() {
    let machine = Machine::new();
    for args in [
        &["status"][..],
        &["mode"],
        &["mode", "cached"],
        &["sync", "now"],
        &["unmount"],
    ] {
        let error = machine.refused(args, 4, "no-drive");
        assert!(error["next"].as_str().unwrap().contains("pstsyncd mount"));
    }
    machine.refused(&["status", "--drive", "mnt"], 4, "no-such-drive");
    machine.refused(&["unmount", "mnt", "--now"], 4, "no-such-drive");
}

#[test]
fn policies_of_later_versions_are_refused_and_not_taken_silently() {
    let machine = Machine::new();
    for policy in ["auto", "rules"] {
        let mount = ["mount", "--share", "share", "mnt", "--mode", policy];
        machine.refused(&mount, 5, "not-in-this-version");
        let error = machine.refused(&["mode", policy], 5, "not-in-this-version");
        assert!(
            error["next"]
                .as_str()
                .unwrap()
                .contains("online, cached or offline")
        );
    }
}

#[test]
fn a_mount_that_cannot_be_says_why_and_leaves_nothing() {
    let machine = Machine::new();
    std::fs::write(machine.path("file"), "x").unwrap();
    std::fs::create_dir(machine.path("full")).unwrap();
    std::fs::write(machine.path("full/x"), "x").unwrap();
    let before = machine.left();
    for background in [false, true] {
        let check = |args: &[&str], code: &str| {
            let mut line = vec!["mount"];
            line.extend(background.then_some("--background"));
            line.extend(args);
            machine.refused(&line, 5, code);
        };
        check(&["--share", "nowhere", "mnt"], "share-missing");
        check(&["--share", "file", "mnt"], "share-not-directory");
        check(
            &["--share", "smb://server/mail", "mnt"],
            "not-in-this-version",
        );
        check(&["--share", r"\\server\mail", "mnt"], "not-in-this-version");
        check(&["--share", "share", "nowhere"], "mountpoint-missing");
        check(&["--share", "share", "file"], "mountpoint-not-directory");
        check(&["--share", "share", "full"], "mountpoint-not-empty");
        check(&["--share", "share", "/proc"], "mountpoint-busy");
        check(&["--share", "share", "share"], "paths-overlap");
        check(
            &["--share", "share", "mnt", "--state-dir", "share/state"],
            "paths-overlap",
        );
    }
    for (args, code) in [
        (["--share", "share", "nowhere"], "mountpoint-missing"),
        (["--share", "share", "file"], "mountpoint-not-directory"),
        (["--share", "share", "full"], "mountpoint-not-empty"),
        (["--share", "share", "/proc"], "mountpoint-busy"),
        (["--share", "share", "share"], "paths-overlap"),
    ] {
        machine.refused(&[&["mount"][..], &args].concat(), 5, code);
    }
    let inside = [
        "mount",
        "--share",
        "share",
        "mnt",
        "--state-dir",
        "share/state",
    ];
    machine.refused(&inside, 5, "paths-overlap");
    assert_eq!(machine.left(), before);
}

/// Found only by the process in the background, which takes the directory: the pipe carries it here.
#[test]
fn what_fails_in_the_background_is_told_by_the_command() {
    let machine = Machine::new();
    std::fs::create_dir(machine.path("state")).unwrap();
    std::fs::set_permissions(machine.path("state"), PermissionsExt::from_mode(0o700)).unwrap();
    let lock = std::fs::File::create(machine.path("state/lock")).unwrap();
    lock.lock().unwrap();
    let line = [
        "mount",
        "--background",
        "--share",
        "share",
        "mnt",
        "--state-dir",
        "state",
    ];
    machine.refused(&line, 5, "state-dir-in-use");
    let log = std::fs::metadata(machine.path("state/daemon.log")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
}

#[test]
fn agents_are_checked_before_anything_is_made() {
    let machine = Machine::new();
    std::fs::write(machine.path("token"), "t0ken\n").unwrap();
    std::fs::write(machine.path("client.json"), "{").unwrap();
    let before = machine.left();
    let mount = ["mount", "--share", "share", "mnt"];
    let with = |agent: &[&str], code: &str| {
        machine.refused(&[&mount[..], agent].concat(), 5, code);
    };
    let pin = "ab".repeat(32);
    with(
        &[
            "--agent",
            "http://a",
            "--agent-pin",
            &pin,
            "--agent-token-file",
            "token",
        ],
        "bad-agent-url",
    );
    with(
        &[
            "--agent",
            "https://a",
            "--agent-pin",
            "zz",
            "--agent-token-file",
            "token",
        ],
        "bad-agent-pin",
    );
    with(
        &[
            "--agent",
            "https://a",
            "--agent-pin",
            &pin,
            "--agent-token-file",
            "nowhere",
        ],
        "not-found",
    );
    with(&["--agent-invitation", "client.json"], "bad-invitation");
    assert_eq!(machine.left(), before);
}

#[test]
fn an_agent_that_cannot_serve_says_why() {
    let machine = Machine::new();
    let serve = |root: &str, listen: &str, code: &str| {
        machine.refused(
            &["agent", "serve", "--root", root, "--listen", listen],
            5,
            code,
        );
    };
    serve("nowhere", "127.0.0.1:0", "root-missing");
    serve("share", "here", "bad-address");
    serve("share", "127.0.0.1:99999", "bad-address");
    assert!(!Path::new(&machine.path("state")).exists());
}

#[test]
fn a_bad_log_filter_is_an_error_and_not_ignored() {
    let machine = Machine::new();
    let out = Command::cargo_bin("pstsyncd")
        .unwrap()
        .args(["status"])
        .env("PSTSYNCD_RUNTIME_DIR", machine.path("run"))
        .env("RUST_LOG", "sync=loud=er")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(5));
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("RUST_LOG is not a log filter")
    );
}

#[test]
fn a_runtime_directory_open_to_others_is_refused() {
    let machine = Machine::new();
    std::fs::set_permissions(machine.path("run"), PermissionsExt::from_mode(0o777)).unwrap();
    machine.refused(&["status"], 5, "runtime-dir-unsafe");
}

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

/// Its structure is sound; that there is no store in it is found when the objects are read.
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
    let unreadable = findings
        .iter()
        .any(|f| f["finding"]["code"] == "object-unreadable");
    assert!(unreadable, "{findings:?}");
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
    for (name, messages) in [
        ("enron.pst", 71),
        ("tika-testPST.pst", 7),
        ("many-small.pst", 72),
    ] {
        let file = corpus.join(name);
        let file = file.to_str().unwrap();
        let info = machine.run(&["pst", "info", file, "--json"]);
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["messages"], messages, "{name}");
        assert_eq!(
            (&info["version"], &info["encoding"]),
            (&23.into(), &"permute".into())
        );
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

#[test]
fn output_that_nobody_reads_ends_the_command_without_a_word() {
    let machine = Machine::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
        .args(["completions", "bash"])
        .current_dir(machine.path("."))
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(5));
    assert!(
        out.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
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

#[test]
fn an_agent_says_how_to_reach_it_and_ends_when_asked() {
    use std::io::{BufRead, BufReader};
    let machine = Machine::new();
    let start = |listen: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
            .args([
                "agent",
                "serve",
                "--root",
                "share",
                "--json",
                "--state-dir",
                "agent",
            ])
            .args(["--listen", listen])
            .current_dir(machine.path("."))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut agent = start("127.0.0.1:0");
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(
        said["url"]
            .as_str()
            .unwrap()
            .starts_with("https://127.0.0.1:"),
        "{said}"
    );
    assert_eq!(said["ca_fingerprint"].as_str().unwrap().len(), 64);
    let invitation = said["invitation"].as_str().unwrap();
    let invitation = Path::new(&machine.path(".")).join(invitation);
    let mode = std::fs::metadata(invitation).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // One agent per state directory, and per port.
    let port = said["addr"].as_str().unwrap().to_owned();
    let serve = ["agent", "serve", "--root", "share", "--listen"];
    let same_state = [&serve[..], &["127.0.0.1:0", "--state-dir", "agent"]].concat();
    machine.refused(&same_state, 5, "state-dir-in-use");
    let same_port = [&serve[..], &[port.as_str(), "--state-dir", "agent2"]].concat();
    let error = machine.refused(&same_port, 5, "cannot-listen");
    assert!(
        error["message"].as_str().unwrap().contains("in use"),
        "{error}"
    );
    let pid = rustix::process::Pid::from_child(&agent);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = agent.wait().unwrap();
    assert_eq!(ended.code(), Some(0));
}
