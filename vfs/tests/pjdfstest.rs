//! The POSIX suite pjdfstest (the crate `pjdfstest`, installed by scripts/bootstrap.sh) natively and
//! on the mount, online, cached and offline, by root with `allow_other` and `default_permissions`:
//! what passes natively passes here, but for what the drive does not offer on purpose (docs/SEMANTICS.md),
//! named below with the reason. An entry that passes is an error too.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Rig, fuse_missing, skip};
use vfs::State;
use vfs::fuse::{MountOptions, mount};

/// All that this kernel's own file systems know; the users are the system's.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Cases that need what the drive does not offer.
const NOT_OFFERED: &str = include_str!("pjd/not_offered.txt");

/// What each case came to: its outcome, and what it said.
fn run(suite: &Path, config: &Path, at: &Path) -> BTreeMap<String, (String, String)> {
    let out = Command::new(suite)
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(at)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut cases = BTreeMap::new();
    let mut last = None;
    for line in text.lines() {
        if let Some(said) = line.strip_prefix('\t') {
            if let Some((_, all)) = last.as_ref().and_then(|name| cases.get_mut(name)) {
                *all = format!("{all} {said}");
            }
            continue;
        }
        let mut words = line.split_whitespace();
        if let (Some(name), Some(outcome @ ("ok" | "FAILED" | "skipped"))) =
            (words.next(), words.next())
        {
            let case = (outcome.to_owned(), String::new());
            assert!(cases.insert(name.to_owned(), case).is_none(), "{name}");
            last = Some(name.to_owned());
        }
    }
    assert!(
        cases.len() > 300,
        "{text}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    cases
}

fn compare(state: State) {
    if fuse_missing() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip::skipped("root", "the cases act as several users");
    }
    let Some(suite) = common::installed("pjdfstest") else {
        return skip::skipped(
            "pjdfstest",
            "pjdfstest is not installed (scripts/bootstrap.sh)",
        );
    };
    let rig = Rig::new();
    let open_to_all = |dir: &Path| {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (native, at) = (rig.tmp.path().join("native"), rig.tmp.path().join("mnt"));
    let config = rig.tmp.path().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).unwrap();
    std::fs::create_dir(&native).unwrap();
    std::fs::create_dir(&at).unwrap();
    for dir in [rig.tmp.path(), &rig.share_file(""), &native, &at] {
        open_to_all(dir);
    }
    let mut settings = rig.config(State::Online);
    settings.attr_life = Duration::from_secs(1);
    let drive = vfs::Drive::open(settings).unwrap();
    let options = MountOptions {
        allow_other: true,
        default_permissions: true,
        ..MountOptions::default()
    };
    let mut handle = mount(drive.clone(), &at, &options).unwrap();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
    drive.set_state(state);
    let (want, got) = (run(&suite, &config, &native), run(&suite, &config, &at));
    let count = |outcome: &str| got.values().filter(|c| c.0 == outcome).count();
    let not_offered: BTreeSet<&str> = NOT_OFFERED
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    let mut wrong = Vec::new();
    for (name, (outcome, _)) in &want {
        let (here, said) = got.get(name).unwrap();
        if (here == outcome) == not_offered.contains(name.as_str()) {
            wrong.push(format!("{name}: {outcome} natively, {here} here:{said}"));
        }
    }
    println!(
        "pjdfstest, {state:?}: {} ok, {} failed, {} skipped of {}",
        count("ok"),
        count("FAILED"),
        count("skipped"),
        got.len()
    );
    handle.unmount().unwrap();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn as_natively_online() {
    compare(State::Online);
}

#[test]
fn as_natively_cached() {
    compare(State::Cached);
}

#[test]
fn as_natively_offline() {
    compare(State::Offline);
}
