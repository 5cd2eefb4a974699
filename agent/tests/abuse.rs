//! What happens to containers behind the agent's back: replaced, deleted, turned into something
//! else, the disk full, many clients at once. Nothing is half-changed, everything answers.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../tests/support/skip.rs"]
mod skip;

use std::process::Command;
use std::sync::Arc;

use common::*;
use sync::client::{AgentClient, Apply, Timeouts};
use sync::wire::ErrorCode;

#[test]
fn two_clients_take_turns_and_a_late_one_is_told_so() {
    let world = World::new();
    for turn in 0..20u64 {
        let before = world.file();
        let entries = [((turn % 7) as u32, turn as u8)];
        let expected = digest(&after(&before, &entries));
        let send = |client: u8, base| {
            let apply = Apply {
                client: [client; 16],
                container: "box",
                sequence: turn + 1,
                base: Some(base),
                expected,
                package: &package(&entries),
            };
            world.client.apply(&apply, &mut |_, _| {})
        };
        let (one, two) = if turn % 2 == 0 { (1, 2) } else { (2, 1) };
        send(one, generation(&before)).unwrap();
        assert_eq!(world.file(), after(&before, &entries));
        assert_eq!(code(send(two, generation(&before))), ErrorCode::WrongBase);
        assert_eq!(world.file(), after(&before, &entries));
    }
    assert_eq!(world.names(), ["box"]);
}

#[test]
fn a_container_that_was_replaced_between_is_another_base() {
    let world = World::new();
    world.apply(1, &[(1, 1)]).unwrap();
    let stale = generation(&world.file());
    let mut other = fresh();
    other[SLOT * 9] ^= 0xff;
    let root = world.dir.path().join("root");
    std::fs::write(root.join("new"), &other).unwrap();
    std::fs::rename(root.join("new"), world.path()).unwrap();
    let expected = digest(&after(&other, &[(2, 2)]));
    let sent = world.send(2, &package(&[(2, 2)]), Some(stale), expected);
    assert_eq!(code(sent), ErrorCode::WrongBase);
    assert_eq!(world.file(), other);
    let sent = world.send(2, &package(&[(2, 2)]), Some(generation(&other)), expected);
    sent.unwrap();
    assert_eq!(world.file(), after(&other, &[(2, 2)]));
}

#[test]
fn a_container_that_is_gone_or_something_else_is_refused_and_comes_back() {
    let world = World::new();
    let bytes = world.file();
    let path = world.path();
    let aside = world.dir.path().join("aside");
    let expected = digest(&after(&bytes, &[(2, 2)]));
    let send = |sequence| {
        let base = Some(generation(&bytes));
        code(world.send(sequence, &package(&[(2, 2)]), base, expected))
    };
    std::fs::rename(&path, &aside).unwrap();
    assert_eq!(send(1), ErrorCode::NotFound);
    std::fs::create_dir(&path).unwrap();
    assert_eq!(send(2), ErrorCode::NotAContainer);
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(&aside, &path).unwrap();
    assert_eq!(send(3), ErrorCode::BadPath);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::net::UnixListener::bind(&path).unwrap();
    let refused = send(4);
    assert_ne!(refused, ErrorCode::Internal);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    assert_eq!(send(5), ErrorCode::WrongBase);
    std::fs::rename(&aside, &path).unwrap();
    world.apply(6, &[(2, 2)]).unwrap();
    assert_eq!(world.file(), after(&bytes, &[(2, 2)]));
    assert_eq!(world.names(), ["box"]);
}

#[test]
fn a_path_of_any_length_is_answered() {
    let world = World::new();
    for len in [255, 256, 4095, 4096, 60_000] {
        for name in ["n".repeat(len), "d/".repeat(len / 2) + "n"] {
            let refused = code(world.client.container(&name));
            assert!(
                matches!(
                    refused,
                    ErrorCode::NotFound
                        | ErrorCode::BadPath
                        | ErrorCode::BadRequest
                        | ErrorCode::Storage
                ),
                "{len}: {refused:?}"
            );
        }
    }
}

/// A sidecar of one container copied beside another by whoever can write to the share.
#[test]
fn a_sidecar_of_another_container_changes_nothing() {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&stop);
    let world = World::with(|c| {
        c.steps = Some(Arc::new(move |at| {
            let fail = at == "logged" && flag.load(std::sync::atomic::Ordering::SeqCst);
            assert!(!fail, "as the test wants");
        }));
    });
    let root = world.dir.path().join("root");
    let mut other = fresh();
    other[SLOT * 3] ^= 0x77;
    std::fs::write(root.join("other"), &other).unwrap();
    assert_eq!(code(world.apply(1, &[(2, 2)])), ErrorCode::Internal);
    stop.store(false, std::sync::atomic::Ordering::SeqCst);
    std::fs::copy(
        root.join("box.pstsyncd-redo"),
        root.join("other.pstsyncd-redo"),
    )
    .unwrap();
    let state = world.client.container("other").unwrap();
    assert_eq!(state.generation, generation(&other));
    assert_eq!(std::fs::read(root.join("other")).unwrap(), other);
    assert!(root.join("other.pstsyncd-aside-1").exists());
    assert_eq!(
        world.client.container("box").unwrap().sequences,
        [([7; 16], 1)]
    );
}

#[test]
fn many_changes_at_once_are_done_one_after_the_other() {
    let world = World::new();
    for n in 0..6 {
        std::fs::write(world.dir.path().join(format!("root/box{n}")), fresh()).unwrap();
    }
    let base = generation(&fresh());
    std::thread::scope(|scope| {
        for worker in 0..12u8 {
            let invitation = &world.invitation;
            scope.spawn(move || {
                let client = AgentClient::new(invitation, Timeouts::default()).unwrap();
                let container = format!("box{}", worker % 6);
                let entries = [(u32::from(worker), worker + 1)];
                let expected = digest(&after(&fresh(), &entries));
                let bytes = package(&entries);
                let apply = Apply {
                    client: [worker; 16],
                    container: &container,
                    sequence: 1,
                    base: Some(base),
                    expected,
                    package: &bytes,
                };
                match client.apply(&apply, &mut |_, _| {}) {
                    Ok(_) => {}
                    Err(e) => assert!(
                        matches!(e.code(), Some(ErrorCode::WrongBase | ErrorCode::InUse)),
                        "{e:?}"
                    ),
                }
            });
        }
    });
    for n in 0..6u8 {
        let file = std::fs::read(world.dir.path().join(format!("root/box{n}"))).unwrap();
        let one_of = [n, n + 6].map(|w| after(&fresh(), &[(u32::from(w), w + 1)]));
        assert!(
            one_of.contains(&file),
            "box{n} took exactly one of two changes"
        );
    }
}

/// On a file system of its own that is too small for the growth, or for the redo log.
#[test]
fn a_full_disk_leaves_the_container_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&root)
        .status();
    if !mount.is_ok_and(|s| s.success()) {
        return skip::skipped("full-disk", "no right to mount a file system");
    }
    std::fs::write(root.join("box"), fresh()).unwrap();
    let _mounted = Mounted(root);
    let world = World::on(dir, |_| {});
    let before = world.file();
    // The growth fits by itself, its redo log beside it does not.
    for (sequence, slots) in [(1, 12_000u32), (2, 9_000), (3, 30_000)] {
        let entries: Vec<(u32, u8)> = (5_000..slots).map(|s| (s, 7)).collect();
        let result = world.apply(sequence, &entries);
        if result.is_err() {
            assert_eq!(code(result), ErrorCode::DiskFull);
            assert_eq!(world.file(), before, "{slots}");
            assert_eq!(world.names(), ["box"], "{slots}");
        } else {
            assert!(slots < 10_000, "{slots} cannot fit");
            std::fs::write(world.path(), &before).unwrap();
        }
    }
    world.apply(10, &[(3, 3)]).unwrap();
    assert_eq!(world.file(), after(&before, &[(3, 3)]));
}

/// Unmounts when the test ends, however it ends.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(done.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

#[test]
fn a_root_that_was_moved_away_is_not_worked_on() {
    let world = World::new();
    let bytes = world.file();
    let (root, aside) = (
        world.dir.path().join("root"),
        world.dir.path().join("aside"),
    );
    std::fs::rename(&root, &aside).unwrap();
    std::fs::create_dir(&root).unwrap();
    let expected = digest(&after(&bytes, &[(2, 2)]));
    let send = || world.send(1, &package(&[(2, 2)]), Some(generation(&bytes)), expected);
    assert_eq!(code(send()), ErrorCode::Storage);
    assert_eq!(std::fs::read(aside.join("box")).unwrap(), bytes);
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&aside, &root).unwrap();
    send().unwrap();
    assert_eq!(world.file(), after(&bytes, &[(2, 2)]));
}
