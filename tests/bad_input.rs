//! Whatever is wrong, the user gets one clear sentence with the next step and a non-zero exit;
//! nothing is left half-made and the file is unharmed.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use support::{Rig, skip};

/// The sentence of a failed command: what went wrong and what to do.
fn complaint(output: &Output) -> String {
    assert_ne!(output.status.code(), Some(0), "it must fail");
    assert_ne!(output.status.code(), None, "it must not be killed");
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert!(!text.is_empty(), "it must say why");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn small_pst() -> Vec<u8> {
    pst::create_empty(b"bad input tests!").expect("an empty PST")
}

#[test]
fn a_missing_share() {
    let mut rig = Rig::new(&small_pst());
    rig.stop_agent();
    fs::remove_dir_all(rig.path("share")).expect("removes");
    let text = complaint(&rig.try_mount("online"));
    assert!(text.contains("share"), "{text}");
}

#[test]
fn a_missing_mountpoint_and_one_that_is_a_file() {
    let rig = Rig::new(&small_pst());
    fs::remove_dir(rig.path("drive")).expect("removes");
    let text = complaint(&rig.try_mount("online"));
    assert!(text.contains("drive"), "{text}");
    fs::write(rig.path("drive"), "no directory").expect("writes");
    let text = complaint(&rig.try_mount("online"));
    assert!(text.contains("directory"), "{text}");
}

#[test]
fn a_busy_mountpoint() {
    let mut rig = Rig::new(&small_pst());
    if !Path::new("/dev/fuse").exists() {
        return skip::skipped("fuse", "no /dev/fuse on this machine");
    }
    rig.mount("online");
    let text = complaint(&rig.try_mount("online"));
    assert!(
        text.contains("mounted") || text.contains("in use"),
        "{text}"
    );
    assert_eq!(
        support::read_all(&rig.on_drive()),
        small_pst(),
        "the first drive goes on"
    );
    rig.unmount();
}

#[test]
fn a_port_in_use() {
    let rig = Rig::new(&small_pst());
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("an address").to_string();
    let share = rig.path("share");
    let state = rig.path("agent2");
    let output = rig
        .command(&["agent", "serve", "--listen", &address])
        .args([
            "--root".as_ref(),
            share.as_os_str(),
            "--state-dir".as_ref(),
            state.as_os_str(),
        ])
        .output()
        .expect("runs");
    assert!(complaint(&output).contains("in use"));
}

#[test]
fn files_that_are_no_sound_pst() {
    let rig = Rig::new(&small_pst());
    let good = small_pst();
    let mut bad_crc = good.clone();
    bad_crc[300] ^= 0xFF;
    let cases: [(&str, Vec<u8>); 4] = [
        ("empty.pst", Vec::new()),
        (
            "text.pst",
            b"Dear diary, this is no PST at all. ".repeat(100),
        ),
        ("cut.pst", good[..good.len() / 2].to_vec()),
        ("crc.pst", bad_crc),
    ];
    for (name, bytes) in cases {
        let path = rig.path(name);
        fs::write(&path, &bytes).expect("writes");
        for verb in ["info", "ls", "inventory", "dump", "check"] {
            let output = rig
                .command(&["pst", verb])
                .arg(&path)
                .output()
                .expect("runs");
            let text = complaint(&output) + &String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(name), "{verb} {name}: {text}");
            let output = rig
                .command(&["pst", verb, "--json"])
                .arg(&path)
                .output()
                .expect("runs");
            assert_eq!(output.status.code(), Some(5), "{verb} {name}");
        }
        assert_eq!(fs::read(&path).expect("reads"), bytes, "{name} is unharmed");
    }
    if let Some(broken) = support::shared("corpus/broken-header.pst") {
        let output = rig
            .command(&["pst", "info"])
            .arg(&broken)
            .output()
            .expect("runs");
        assert!(complaint(&output).contains("broken-header.pst"));
    } else {
        skip::skipped("corpus", "no corpus on this machine");
    }
}

#[test]
fn changes_that_are_no_change_list() {
    let rig = Rig::new(&small_pst());
    let path = rig.path("changes");
    fs::write(&path, b"not a change list").expect("writes");
    let before = fs::read(rig.on_share()).expect("reads");
    let output = rig
        .command(&["pst", "apply"])
        .args([rig.on_share(), path])
        .output()
        .expect("runs");
    complaint(&output);
    assert_eq!(fs::read(rig.on_share()).expect("reads"), before);
}

#[test]
fn an_agent_that_is_down() {
    let mut rig = Rig::new(&small_pst());
    rig.mount("cached");
    let mut writer = support::edit(&rig.on_drive());
    assert!(writer.status().expect("runs").success());
    rig.stop_agent();
    let before = fs::read(rig.on_share()).expect("reads");
    let (code, answer) = rig.run(&["sync", "now"]);
    assert_eq!(code, 4, "{answer}");
    assert_eq!(fs::read(rig.on_share()).expect("reads"), before);
    // Nothing was lost: with the agent back, at another port, the invitation is read anew.
    rig.unmount_now();
    rig.start_agent();
    rig.mount("cached");
    rig.ok(&["sync", "now"]);
    rig.assert_equal_dumps();
    rig.unmount();
}

#[test]
fn an_unknown_agent_is_not_trusted() {
    let mut rig = Rig::new(&small_pst());
    let invitation = rig.path("agent/client.json");
    let known = fs::read_to_string(&invitation).expect("reads");
    let mut forged: serde_json::Value = serde_json::from_str(&known).expect("JSON");
    let pin = forged["ca_fingerprint"].as_str().expect("a pin").to_owned();
    let other = if pin.starts_with('0') { "1" } else { "0" };
    forged["ca_fingerprint"] = format!("{other}{}", &pin[1..]).into();
    fs::write(&invitation, forged.to_string()).expect("writes");
    rig.mount("cached");
    assert!(
        support::edit(&rig.on_drive())
            .status()
            .expect("runs")
            .success()
    );
    let before = fs::read(rig.on_share()).expect("reads");
    let (code, answer) = rig.run(&["sync", "now"]);
    assert_ne!(code, 0, "{answer}");
    assert!(answer.to_string().contains("certificate"), "{answer}");
    assert_eq!(
        fs::read(rig.on_share()).expect("reads"),
        before,
        "nothing was sent"
    );
}
