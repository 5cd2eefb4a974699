//! `pst check --repair-maps` and `--restore-maps` from outside.

#![allow(clippy::unwrap_used)]

#[path = "support/machine.rs"]
mod machine;
#[path = "../pst/tests/support/surgery.rs"]
mod surgery;

use machine::{Machine, stdout};
use pst::ndb::PageType;
use surgery::Patient;

const NAME: &str = "mail.pst";
const BACKUP: &str = "mail.pst.pstsyncd-maps";

/// An empty store whose AMap calls everything free.
fn broken() -> Vec<u8> {
    let mut file = Patient::new(pst::create_empty(b"a store to break").unwrap());
    file.page(PageType::AMap, 0x4400, |page| page[..496].fill(0));
    file.bytes
}

fn json(out: &std::process::Output) -> serde_json::Value {
    serde_json::from_str(stdout(out).lines().last().unwrap()).unwrap()
}

#[test]
fn maps_are_repaired_verified_and_put_back() {
    let machine = Machine::new();
    std::fs::write(machine.path(NAME), broken()).unwrap();
    let error = machine.run(&["pst", "check", NAME]);
    assert_eq!(error.status.code(), Some(5));
    let told = String::from_utf8(error.stderr).unwrap();
    assert!(told.contains("--repair-maps"), "{told}");

    let out = machine.run(&["pst", "check", NAME, "--repair-maps", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let repair = &json(&out)["repair"];
    assert_eq!(repair["verified"], true);
    assert_eq!(repair["remaining_errors"], 0);
    assert!(repair["backup"].as_str().unwrap().ends_with(BACKUP));
    let wrong: Vec<&str> = repair["wrong"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w[0].as_str().unwrap())
        .collect();
    assert!(wrong.contains(&"used-but-free"), "{wrong:?}");
    let check = machine.run(&["pst", "check", NAME]);
    assert_eq!(check.status.code(), Some(0), "{}", stdout(&check));
    let repaired = std::fs::read(machine.path(NAME)).unwrap();

    // A second run has nothing to do, and leaves file and backup alone.
    let backup = std::fs::read(machine.path(BACKUP)).unwrap();
    let again = machine.run(&["pst", "check", NAME, "--repair-maps", "--json"]);
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(json(&again)["repair"]["backup"], serde_json::Value::Null);
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), repaired);
    assert_eq!(std::fs::read(machine.path(BACKUP)).unwrap(), backup);

    let back = machine.run(&["pst", "check", NAME, "--restore-maps", BACKUP, "--json"]);
    assert_eq!(back.status.code(), Some(0), "{back:?}");
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), broken());

    // The backup of the first repair is in the way of the next; one that is torn is not.
    machine.refused(&["pst", "check", NAME, "--repair-maps"], 5, "backup-exists");
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), broken());
    std::fs::write(machine.path(BACKUP), &backup[..backup.len() - 9]).unwrap();
    let out = machine.run(&["pst", "check", NAME, "--repair-maps"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(std::fs::read(machine.path(BACKUP)).unwrap(), backup);
}

#[test]
fn nothing_is_written_while_another_program_has_the_file_open() {
    let machine = Machine::new();
    std::fs::write(machine.path(NAME), broken()).unwrap();
    let other = std::fs::File::open(machine.path(NAME)).unwrap();
    machine.refused(&["pst", "check", NAME, "--repair-maps"], 5, "in-use");
    drop(other);
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), broken());
    assert!(!std::path::Path::new(&machine.path(BACKUP)).exists());
}

#[test]
fn damaged_trees_and_changed_files_are_refused() {
    let machine = Machine::new();
    let mut file = Patient::new(broken());
    let root = usize::try_from(file.ndb().header().bbt.ib).unwrap();
    let child = u64::from_le_bytes(file.bytes[root + 16..root + 24].try_into().unwrap());
    file.bytes[usize::try_from(child).unwrap()] ^= 1;
    std::fs::write(machine.path(NAME), &file.bytes).unwrap();
    machine.refused(
        &["pst", "check", NAME, "--repair-maps"],
        5,
        "repair-refused",
    );
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), file.bytes);
    assert!(!std::path::Path::new(&machine.path(BACKUP)).exists());

    std::fs::write(machine.path(NAME), broken()).unwrap();
    let out = machine.run(&["pst", "check", NAME, "--repair-maps"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let mut changed = Patient::new(std::fs::read(machine.path(NAME)).unwrap());
    changed.header(|h| h[40] += 1);
    std::fs::write(machine.path(NAME), &changed.bytes).unwrap();
    machine.refused(
        &["pst", "check", NAME, "--restore-maps", BACKUP],
        5,
        "changed-since",
    );
    machine.refused(
        &["pst", "check", NAME, "--restore-maps", NAME],
        5,
        "not-a-backup",
    );
    assert_eq!(std::fs::read(machine.path(NAME)).unwrap(), changed.bytes);
}
