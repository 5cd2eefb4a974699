//! A change that a crash cuts short is finished at the next start, or set aside if somebody else
//! changed the file, and its sequence is known either way.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use common::*;
use sync::client::{AgentClient, Timeouts, load_invitation};
use sync::wire::ErrorCode;

const ENTRIES: [(u32, u8); 3] = [(3, 0xaa), (4999, 0xbb), (5002, 0xcc)];
/// `SIGXFSZ`: by default it ends a process that writes beyond its limit.
const OVER_LIMIT: i32 = 25;

#[test]
fn a_change_that_fails_after_its_log_is_durable_is_finished() {
    for (step, done) in [
        ("logged", false),
        ("committed", false),
        ("verified", false),
        ("recorded", true),
    ] {
        let world = World::with(|c| {
            c.steps = Some(Arc::new(move |at| {
                assert_ne!(at, step, "as the test wants");
            }));
        });
        let before = world.file();
        let want = after(&before, &ENTRIES);
        assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Internal);
        assert_eq!(world.names(), ["box", "box.pstsyncd-redo"], "{step}");
        assert!(
            world.file()
                == if step == "logged" {
                    before.clone()
                } else {
                    want.clone()
                }
        );
        assert_private(&world.dir.path().join("root/box.pstsyncd-redo"));

        let world = world.restart(|_| {});
        assert_eq!(world.names(), ["box"], "{step}");
        assert!(world.file() == want, "{step}");
        let state = world.client.container("box").unwrap();
        assert_eq!(state.sequences, [([7; 16], 1)], "{step}, {done}");
        let base = Some(generation(&before));
        let again = world
            .send(1, &package(&ENTRIES), base, digest(&want))
            .unwrap()
            .answer;
        assert!(again.repeated, "{step}");
        assert_eq!(again.generation, generation(&want));
        assert_eq!(again.inventory_digest, digest(&want));
    }
}

#[test]
fn the_next_request_finishes_it_without_a_restart() {
    let fail = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&fail);
    let world = World::with(|c| {
        c.steps = Some(Arc::new(move |at| {
            assert!(
                at != "logged" || !flag.load(std::sync::atomic::Ordering::SeqCst),
                "as the test wants"
            );
        }));
    });
    let want = after(&world.file(), &ENTRIES);
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Internal);
    fail.store(false, std::sync::atomic::Ordering::SeqCst);
    // A read finds it too: what it tells must not be a half-changed file.
    assert_eq!(
        world.client.container("box").unwrap().generation,
        generation(&want)
    );
    assert!(world.file() == want);
    assert_eq!(world.names(), ["box"]);
}

#[test]
fn a_log_that_fits_no_state_of_the_file_is_set_aside() {
    let world = World::with(|c| {
        c.steps = Some(Arc::new(|at| assert_ne!(at, "logged", "as the test wants")));
    });
    let before = world.file();
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Internal);
    let mut other = world.file();
    other[SLOT * 4 + 1] ^= 0x55;
    std::fs::write(world.path(), &other).unwrap();
    let world = world.restart(|_| {});
    assert!(world.file() == other);
    assert_eq!(world.names(), ["box", "box.pstsyncd-aside-1"]);
    // It was never applied, and says so.
    let want = digest(&after(&before, &ENTRIES));
    let base = Some(generation(&before));
    assert_eq!(
        code(world.send(1, &package(&ENTRIES), base, want)),
        ErrorCode::WrongBase
    );
    assert_eq!(world.client.container("box").unwrap().sequences, []);
    world.apply(1, &ENTRIES).unwrap();
}

#[test]
fn a_damaged_log_is_set_aside() {
    let world = World::with(|c| {
        c.steps = Some(Arc::new(|at| assert_ne!(at, "logged", "as the test wants")));
    });
    let before = world.file();
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Internal);
    let log = world.dir.path().join("root/box.pstsyncd-redo");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    let world = world.restart(|_| {});
    assert!(world.file() == before);
    assert_eq!(world.names(), ["box", "box.pstsyncd-aside-1"]);
}

#[test]
fn an_unfinished_change_waits_while_the_file_is_in_use() {
    let world = World::with(|c| {
        c.steps = Some(Arc::new(|at| assert_ne!(at, "logged", "as the test wants")));
    });
    let before = world.file();
    let want = after(&before, &ENTRIES);
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Internal);
    let open = std::fs::File::open(world.path()).unwrap();
    let world = world.restart(|_| {});
    assert!(world.file() == before);
    assert_eq!(code(world.client.container("box")), ErrorCode::InUse);
    drop(open);
    assert_eq!(
        world.client.container("box").unwrap().generation,
        generation(&want)
    );
}

#[test]
fn planted_links_are_not_followed() {
    let world = World::new();
    let outside = world.dir.path().join("outside");
    std::fs::write(&outside, b"precious").unwrap();
    let root = world.dir.path().join("root");
    std::os::unix::fs::symlink(&outside, root.join("box.pstsyncd-redo.tmp")).unwrap();
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Storage);
    std::fs::remove_file(root.join("box.pstsyncd-redo.tmp")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("box.pstsyncd-redo")).unwrap();
    assert_eq!(code(world.apply(1, &ENTRIES)), ErrorCode::Storage);
    assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
}

fn assert_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{}", path.display());
}

/// Runs in a process of its own, for [`kill_9_at_each_step`]: an agent that kills itself.
#[test]
fn child_that_is_killed() {
    let (Ok(dir), Ok(step)) = (
        std::env::var("AGENT_TEST_DIR"),
        std::env::var("AGENT_TEST_STEP"),
    ) else {
        return;
    };
    let mut config = config(Path::new(&dir));
    let runtime = runtime();
    if step == "limited" {
        let kind = tokio::signal::unix::SignalKind::from_raw(OVER_LIMIT);
        let _guard = runtime.enter();
        // Once installed, the handler stays: writes then fail instead.
        drop(tokio::signal::unix::signal(kind).unwrap());
    }
    config.steps = Some(Arc::new(move |at| {
        if step == "limited" && at == "logged" {
            let limit = Some(fresh().len() as u64);
            let limits = rustix::process::Rlimit {
                current: limit,
                maximum: limit,
            };
            rustix::process::setrlimit(rustix::process::Resource::Fsize, limits).unwrap();
        }
        if at == step {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
            std::thread::park();
        }
    }));
    let _agent = runtime
        .block_on(agent::start(config, Arc::new(Toy)))
        .unwrap();
    println!("\nready");
    std::thread::park();
}

/// Starts [`child_that_is_killed`] and waits until it serves.
fn child(dir: &Path, step: &str) -> (Child, AgentClient) {
    std::fs::create_dir(dir.join("root")).unwrap();
    std::fs::write(dir.join("root/box"), fresh()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_is_killed", "--exact", "--nocapture"])
        .env("AGENT_TEST_DIR", dir)
        .env("AGENT_TEST_STEP", step)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "ready"),
        "the child did not start"
    );
    let invitation = load_invitation(&dir.join("state/client.json")).unwrap();
    (
        child,
        AgentClient::new(&invitation, Timeouts::default()).unwrap(),
    )
}

#[test]
fn kill_9_at_each_step() {
    for step in ["logged", "committed", "verified", "recorded", "dropped"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, client) = child(dir.path(), step);
        let before = fresh();
        let want = after(&before, &ENTRIES);
        let package = package(&ENTRIES);
        let apply = sync::client::Apply {
            client: [7; 16],
            container: "box",
            sequence: 1,
            base: Some(generation(&before)),
            expected: digest(&want),
            package: &package,
        };
        let error = client.apply(&apply, &mut |_, _| {}).unwrap_err();
        assert!(error.offline() && error.retry(), "{step}: {error:?}");
        assert!(!child.wait().unwrap().success());

        let world = World::on(dir, |_| {});
        assert!(world.file() == want, "{step}");
        assert_eq!(world.names(), ["box"], "{step}");
        let again = world.client.apply(&apply, &mut |_, _| {}).unwrap().answer;
        assert!(again.repeated, "{step}");
        assert_eq!(again.generation, generation(&want), "{step}");
    }
}

#[test]
fn a_write_that_fails_keeps_the_log_and_the_next_agent_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, client) = child(dir.path(), "limited");
    let before = fresh();
    let want = after(&before, &ENTRIES);
    let package = package(&ENTRIES);
    let apply = sync::client::Apply {
        client: [7; 16],
        container: "box",
        sequence: 1,
        base: Some(generation(&before)),
        expected: digest(&want),
        package: &package,
    };
    let error = client.apply(&apply, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Storage), "{error:?}");
    assert!(error.retry());
    assert!(std::fs::read(dir.path().join("root/box")).unwrap() == before);
    assert!(dir.path().join("root/box.pstsyncd-redo").exists());
    child.kill().unwrap();
    child.wait().unwrap();

    let world = World::on(dir, |_| {});
    assert!(world.file() == want);
    assert_eq!(world.names(), ["box"]);
    assert!(
        world
            .client
            .apply(&apply, &mut |_, _| {})
            .unwrap()
            .answer
            .repeated
    );
}
