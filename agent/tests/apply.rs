//! Applying over real TLS: once, whole, on the right bytes, and answered with what was re-read.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use sync::client::{Apply, ClientError};
use sync::wire::{ErrorCode, Generation};

#[test]
fn a_package_is_applied_and_the_answer_is_what_the_file_holds() {
    let world = World::new();
    let entries = [(3, 0xaa), (4999, 0xbb), (5002, 0xcc)];
    let before = world.file();
    let state = world.client.container("box").unwrap();
    assert_eq!(state.generation, generation(&before));
    assert_eq!(state.inventory_digest, digest(&before));
    assert_eq!(state.sequences, []);

    let mut progress = Vec::new();
    let package = package(&entries);
    let want = after(&before, &entries);
    let apply = Apply {
        client: [7; 16],
        container: "box",
        sequence: 11,
        base: Some(state.generation),
        expected: digest(&want),
        package: &package,
    };
    let sent = world
        .client
        .apply(&apply, &mut |n, total| progress.push((n, total)))
        .unwrap();
    assert!(world.file() == want);
    assert_eq!(sent.answer.sequence, 11);
    assert_eq!(sent.answer.digest, *blake3::hash(&package).as_bytes());
    assert_eq!(sent.answer.generation, generation(&want));
    assert_eq!(sent.answer.inventory_digest, digest(&want));
    assert_eq!(sent.answer.bytes_written, 3 * SLOT as u64 + 1);
    assert!(!sent.answer.repeated);
    assert_eq!(progress.last(), Some(&(sent.bytes_sent, sent.bytes_sent)));
    assert_eq!(world.names(), ["box"]);

    let state = world.client.container("box").unwrap();
    assert_eq!(state.generation, generation(&want));
    assert_eq!(state.sequences, [([7; 16], 11)]);
    let inventory = world.client.inventory("box").unwrap();
    assert_eq!(inventory.generation, generation(&want));
    assert_eq!(inventory.digest, digest(&want));
    assert!(inventory.rows == want[SLOT..]);
}

#[test]
fn a_repeated_request_gets_its_first_answer_also_after_a_restart_and_a_later_change() {
    let world = World::new();
    let entries = [(1, 1)];
    let base = generation(&world.file());
    let first_state = after(&world.file(), &entries);
    let first = world.apply(1, &entries).unwrap().answer;
    let second = world.apply(2, &[(2, 2)]).unwrap().answer;
    let world = world.restart(|_| {});
    let now = world.file();
    let again = world
        .send(1, &package(&entries), Some(base), digest(&first_state))
        .unwrap()
        .answer;
    assert!(again.repeated);
    assert_eq!(
        sync::wire::ApplyAnswer {
            repeated: false,
            ..again
        },
        first
    );
    assert!(world.file() == now);
    assert_eq!(
        world.client.container("box").unwrap().generation,
        second.generation
    );
}

#[test]
fn one_of_many_at_once_is_applied_and_the_others_are_repeats() {
    let world = World::new();
    let before = world.file();
    let entries = [(9, 9)];
    let want = after(&before, &entries);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    world.send(
                        1,
                        &package(&entries),
                        Some(generation(&before)),
                        digest(&want),
                    )
                })
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().unwrap().unwrap().answer)
            .collect()
    });
    assert_eq!(answers.iter().filter(|a| !a.repeated).count(), 1);
    assert!(world.file() == want);
}

#[test]
fn a_used_sequence_is_refused_with_the_generation_that_is_there() {
    let world = World::new();
    world.apply(5, &[(1, 1)]).unwrap();
    let now = world.file();
    for sequence in [5, 4] {
        let error = world.apply(sequence, &[(2, 2)]).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::SequenceUsed));
        assert!(!error.retry());
        let ClientError::Refused(body) = error else {
            panic!()
        };
        assert_eq!(body.generation, Some(generation(&now)));
    }
    assert!(world.file() == now);
}

#[test]
fn a_wrong_base_is_refused_with_the_generation_that_is_there() {
    let world = World::new();
    let base = generation(&world.file());
    let mut other = world.file();
    other[SLOT * 100] ^= 1;
    std::fs::write(world.path(), &other).unwrap();
    let error = world
        .send(1, &package(&[(1, 1)]), Some(base), [0; 32])
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::WrongBase));
    let ClientError::Refused(body) = error else {
        panic!()
    };
    assert_eq!(body.generation, Some(generation(&other)));
    assert!(world.file() == other);
    assert_eq!(world.names(), ["box"]);
    // The sequence is still free.
    assert!(!world.apply(1, &[(1, 1)]).unwrap().answer.repeated);
}

#[test]
fn an_edit_by_others_right_after_our_own_is_noticed() {
    let world = World::new();
    let first = world.apply(1, &[(1, 1)]).unwrap().answer;
    // Same length, same header, and maybe the same tick of the file system's clock.
    let mut bytes = world.file();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(world.path(), &bytes).unwrap();
    let error = world
        .send(2, &package(&[(2, 2)]), Some(first.generation), [0; 32])
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::WrongBase));
}

#[test]
fn an_unexpected_result_is_refused_before_anything_is_written() {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let world = World::with(move |c| {
        c.steps = Some(Arc::new(move |step| seen.lock().unwrap().push(step)));
    });
    let before = world.file();
    let base = Some(generation(&before));
    assert_eq!(
        code(world.send(1, &package(&[(1, 1)]), base, [0; 32])),
        ErrorCode::NotExpected
    );
    assert!(world.file() == before);
    assert_eq!(world.names(), ["box"]);
    assert!(steps.lock().unwrap().is_empty());
}

#[test]
fn remapped_ids_come_back_and_the_digest_is_the_clients_to_check() {
    let world = World::new();
    let want = after(&world.file(), &[(SLOTS as u32, 5)]);
    let base = Some(generation(&world.file()));
    let sent = world
        .send(1, &package(&[(u32::MAX, 5)]), base, [0; 32])
        .unwrap();
    assert_eq!(sent.answer.nid_map, [(u32::MAX, SLOTS as u32)]);
    assert_eq!(sent.answer.inventory_digest, digest(&want));
    assert!(world.file() == want);
}

#[test]
fn what_the_engine_refuses_leaves_the_file_alone() {
    let world = World::new();
    let before = world.file();
    let base = Some(generation(&before));
    assert_eq!(
        code(world.send(1, b"odd", base, [0; 32])),
        ErrorCode::PackageRefused
    );
    assert_eq!(
        code(world.send(1, b"panic", base, [0; 32])),
        ErrorCode::Internal
    );
    assert_eq!(
        code(world.send(1, b"grow beyond the disk", base, [0; 32])),
        ErrorCode::DiskFull
    );
    assert!(world.file() == before);
    assert_eq!(world.names(), ["box"]);
    std::fs::write(world.dir.path().join("root/text"), b"Dear all").unwrap();
    assert_eq!(
        code(world.client.inventory("text")),
        ErrorCode::NotAContainer
    );
    assert_eq!(code(world.client.container("none")), ErrorCode::NotFound);
    // And it still works.
    world.apply(1, &[(1, 1)]).unwrap();
}

#[test]
fn a_container_in_use_defers_the_change() {
    let world = World::new();
    let before = world.file();
    let open = std::fs::File::open(world.path()).unwrap();
    let error = world.apply(1, &[(1, 1)]).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InUse));
    assert!(error.retry());
    assert!(world.file() == before);
    drop(open);
    assert!(!world.apply(1, &[(1, 1)]).unwrap().answer.repeated);
}

#[test]
fn without_leases_a_container_in_use_is_changed_as_promised() {
    let world = World::with(|c| c.exclusive = true);
    let _open = std::fs::File::open(world.path()).unwrap();
    let want = after(&world.file(), &[(1, 1)]);
    world.apply(1, &[(1, 1)]).unwrap();
    assert!(world.file() == want);
}

#[test]
fn an_empty_package_changes_nothing_and_is_remembered() {
    // No entry for any slot, but the toy counts changes in its header.
    let world = World::new();
    let want = after(&world.file(), &[]);
    let base = Some(generation(&world.file()));
    world.send(1, b"", base, digest(&want)).unwrap();
    assert!(world.file() == want);
    assert!(
        world
            .send(1, b"", base, digest(&want))
            .unwrap()
            .answer
            .repeated
    );
}

#[test]
fn stopping_finishes_a_running_change_and_its_client_gets_the_answer() {
    let (at_step, arrived) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let mut world = World::with(move |c| {
        c.steps = Some(Arc::new(move |step| {
            if step == "logged" {
                at_step.send(()).unwrap();
                wait.lock().unwrap().recv().unwrap();
            }
        }));
    });
    let want = after(&world.file(), &[(1, 1)]);
    let agent = world.agent.take().unwrap();
    let stopped = std::thread::scope(|scope| {
        let sending = scope.spawn(|| world.apply(1, &[(1, 1)]));
        // Only so that a failure ends; nothing here takes that long.
        arrived.recv_timeout(Duration::from_secs(60)).unwrap();
        let stopping = world.runtime.spawn(agent.stop());
        // Reads are refused or cut off from now on; the change is not.
        while world
            .client
            .container("other")
            .is_err_and(|e| e.code() == Some(ErrorCode::NotFound))
        {}
        assert!(!stopping.is_finished());
        release.send(()).unwrap();
        let answer = sending.join().unwrap().unwrap().answer;
        assert_eq!(answer.generation, generation(&want));
        world.runtime.block_on(stopping)
    });
    stopped.unwrap().unwrap();
    assert!(world.file() == want);
    assert_eq!(world.names(), ["box"]);
    assert!(world.client.health().unwrap_err().offline());
}

#[test]
fn a_base_of_none_takes_what_is_there() {
    let world = World::new();
    let want = after(&world.file(), &[(1, 1)]);
    let none: Option<Generation> = None;
    world
        .send(1, &package(&[(1, 1)]), none, digest(&want))
        .unwrap();
    assert!(world.file() == want);
}

/// An engine that reads something else after the change than before it.
struct Forgetful(std::sync::atomic::AtomicU32);

impl agent::Engine for Forgetful {
    fn inventory(
        &self,
        base: Arc<dyn storage::ReadAt>,
        previous: Option<&[u8]>,
    ) -> Result<agent::InventoryAnswer, agent::EngineError> {
        let mut answer = Toy.inventory(base, previous)?;
        // Calls: the base, the simulation, the re-read file.
        if self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 {
            answer.digest[0] ^= 1;
        }
        Ok(answer)
    }

    fn apply(
        &self,
        base: Arc<dyn storage::ReadAt>,
        package: &[u8],
    ) -> Result<agent::Applied, agent::EngineError> {
        Toy.apply(base, package)
    }
}

#[test]
fn what_does_not_read_back_is_not_answered_as_applied() {
    let world = World::with_engine(Arc::new(Forgetful(0.into())));
    assert_eq!(code(world.apply(1, &[(1, 1)])), ErrorCode::NotVerified);
    // Unfinished, not forgotten.
    assert_eq!(world.names(), ["box", "box.pstsyncd-redo"]);
}

#[test]
fn bytes_that_change_under_the_agent_are_not_answered_as_applied() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let path = dir.path().join("root/box");
    std::fs::write(&path, fresh()).unwrap();
    // Somebody who has the file open already, where leases are switched off.
    let other = std::fs::File::options().write(true).open(&path).unwrap();
    let world = World::on(dir, move |c| {
        c.exclusive = true;
        c.steps = Some(Arc::new(move |step| {
            if step == "committed" {
                // In the header, which the inventory does not tell of.
                std::os::unix::fs::FileExt::write_all_at(&other, b"x", 10).unwrap();
            }
        }));
    });
    assert_eq!(code(world.apply(1, &[(1, 1)])), ErrorCode::NotVerified);
}
