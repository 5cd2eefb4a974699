//! The drive against models, by random operations: one alphabet of what programs do (names, content,
//! attributes, handles that outlive their names), of what goes wrong (states, share calls that fail, lose
//! their answer or hang, kills, power cuts, a full disk) and of what others do at the share; two
//! worlds that judge.
//!
//! * `alone`: nobody else changes the share. The same operations run on the native file system: after
//!   each, answers and bytes are equal, with no call failing where everything is cached (R12); in the end
//!   the share is equal too.
//! * `shared`: others change the share's files at any moment. Nothing that anybody wrote last is lost:
//!   it is under its name or kept beside; what the drive shows is whole versions, never mixtures, and
//!   online the share's.
//!
//! A sequence that fails is made smaller (ddmin) and printed. `VFS_MODEL_OPS` sets the operations in
//! all (100,000), `VFS_MODEL_SEED` the first seed (fixed by default; `random`: any).
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

#[path = "model/alone.rs"]
mod alone;
mod common;
#[path = "model/op.rs"]
mod op;
#[path = "model/rig.rs"]
mod rig;
#[path = "model/shared.rs"]
mod shared;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use op::{Op, Rng};

/// Operations of one sequence.
const LENGTH: u64 = 120;

/// Runs a sequence; panics where the drive and the world disagree.
type World = fn(seed: u64, ops: &[Op]);

thread_local! {
    /// What went wrong on this thread; `None`: panics are printed as usual.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of models are kept, not printed: shrinking makes many.
fn keep_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = SAID.with_borrow_mut(|said| {
                said.as_mut().is_some_and(|said| {
                    if said.is_empty() {
                        *said = info.to_string();
                    }
                    true
                })
            });
            if !kept {
                usual(info);
            }
        }));
    });
}

/// Why the sequence fails, if it does.
fn failure(world: World, seed: u64, ops: &[Op]) -> Option<String> {
    SAID.set(Some(String::new()));
    let done = catch_unwind(AssertUnwindSafe(|| world(seed, ops)));
    let said = SAID.take().unwrap_or_default();
    done.is_err().then_some(said)
}

/// The smallest sequence found that still fails, and why.
fn shrink(world: World, seed: u64, ops: &[Op], why: String) -> (Vec<Op>, String) {
    let (mut ops, mut why) = (ops.to_vec(), why);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 && Instant::now() < deadline {
        let mut at = 0;
        let mut any = false;
        while at < ops.len() && Instant::now() < deadline {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + chunk).min(ops.len()));
            match failure(world, seed, &fewer) {
                // The same failure, not any.
                Some(still) if still.lines().next() == why.lines().next() => {
                    (ops, why, any) = (fewer, still, true);
                }
                _ => at += chunk,
            }
        }
        if chunk == 1 && !any {
            break;
        }
        if !any || chunk > ops.len() {
            chunk = (chunk / 2).max(usize::from(chunk > 1));
        }
    }
    (ops, why)
}

fn run(name: &str, world: World, make: fn(&mut Rng) -> Op, part: u64) {
    keep_panics();
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let total =
        number("VFS_MODEL_OPS").unwrap_or(if common::over_smb() { 10_000 } else { 100_000 }) * part
            / 100;
    let first = match std::env::var("VFS_MODEL_SEED").as_deref() {
        Ok("random") => {
            let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
            since.unwrap().as_nanos() as u64 >> 10
        }
        _ => number("VFS_MODEL_SEED").unwrap_or(1),
    };
    let sequences = total.div_ceil(LENGTH);
    let ops_of = |seed: u64| {
        let mut rng = Rng(seed);
        (0..LENGTH).map(|_| make(&mut rng)).collect::<Vec<_>>()
    };
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None::<(u64, String)>);
    let began = Instant::now();
    // More than there are cores: a call that hangs only waits.
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    if at >= sequences {
                        return;
                    }
                    let seed = first.wrapping_add(at);
                    if let Some(why) = failure(world, seed, &ops_of(seed)) {
                        stop.store(true, Ordering::SeqCst);
                        let mut failed = failed.lock().unwrap();
                        if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *failed = Some((seed, why));
                        }
                    }
                }
            });
        }
    });
    let Some((seed, why)) = failed.into_inner().unwrap() else {
        println!(
            "{name}: {} operations from seed {first}, {:?}",
            sequences * LENGTH,
            began.elapsed()
        );
        return;
    };
    let ran = next.load(Ordering::SeqCst).min(sequences) * LENGTH;
    let (ops, last) = shrink(world, seed, &ops_of(seed), why.clone());
    let script: Vec<String> = ops.iter().map(|op| format!("    {op:?}")).collect();
    panic!(
        "{name}: seed {seed} fails, after some {ran} operations: {why}\n{} of {LENGTH} operations \
         are enough:\n{}\n{last}",
        ops.len(),
        script.join("\n"),
    );
}

#[test]
fn alone_it_is_as_natively() {
    if common::over_smb() {
        return; // No symbolic links, no modes, no hard links.
    }
    run("alone", alone::run, op::alone, 65);
}

#[test]
fn shared_with_others_nothing_is_lost() {
    let _server = match common::over_smb() {
        true => match rig::Serving::start() {
            None => return,
            server => server,
        },
        false => None,
    };
    run("shared", shared::run, op::shared, 35);
}

/// Writes passed through while the disk is full, over what is here and past it, then the share is gone.
#[test]
fn a_full_disk_under_an_open_file_loses_nothing() {
    if common::over_smb() {
        return;
    }
    use op::Op::{Chmod, Look, Open, State, Tight, Write};
    let (online, offline) = (State(vfs::State::Online), State(vfs::State::Offline));
    for at in [0, 250, 300, 900] {
        let write = Write {
            h: 0,
            at,
            len: 100,
            seed: 7,
        };
        let chmod = Chmod { p: 3, mode: 0o600 };
        let ops = [online.clone(), Open { p: 3 }, Tight, write, offline.clone()];
        // This seed keeps every file whole.
        let seed = 1_753_325_082_540_609;
        alone::run(seed, &[&ops[..], &[Look { p: 3 }, chmod]].concat());
    }
}
