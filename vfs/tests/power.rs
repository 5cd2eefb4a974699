//! Power cuts: the disk under the state directory loses what was not flushed (bytes by sectors,
//! lengths, names), at any call, also in the middle of a recovery. Whatever a flush acknowledged is
//! there afterwards; the whole drive is as it was after some prefix of what programs did; a second
//! recovery finds the same; and in the end everything reaches the share.
//!
//! `VFS_POWER_CUTS` sets how many (default 150), `VFS_POWER_SEED` where to begin.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::pattern;
use vfs::disk::Disk as _;
use vfs::disk::crash::CrashDisk;
use vfs::share::dir::DirShare;
use vfs::{Drive, DriveConfig, Kind, PushOutcome, ROOT, State};

/// Files by path; `None`: a directory.
type Tree = BTreeMap<String, Option<Arc<Vec<u8>>>>;

struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

fn config(share: &Path, disk: &CrashDisk, state: State) -> DriveConfig {
    let mut c = DriveConfig::new(Arc::new(DirShare::open(share).unwrap()), "unused");
    c.disk = Some(Arc::new(disk.clone()));
    c.state = state;
    c.background = false;
    c.attr_life = Duration::ZERO;
    c.segment_len = 24 << 10;
    c.unwritten_limit = 48 << 10;
    c.direct_append = 6 << 10;
    c.cache_size = Some(4 << 20);
    c
}

const NAMES: [&str; 6] = ["a.pst", "b.bin", "d/c.txt", "d/e.pst", "f.doc", "d2/g"];

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// What programs did, printed when the test fails: the last life whole.
#[derive(Default)]
struct Trace(Vec<String>);

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.join("\n"));
        }
    }
}

/// What a step was.
#[derive(Debug)]
enum Step {
    /// A change of this file's bytes.
    Bytes(&'static str),
    /// A change of names.
    Names,
    /// A flush of this file: with its name, and all names.
    Flush(&'static str),
    FlushNames,
    FlushAll,
    Nothing,
}

/// One step of a program, and what the tree is after it.
fn step(d: &Drive, tree: &mut Tree, rng: &mut Rng, trace: &mut Trace) -> vfs::Result<Step> {
    let path = NAMES[rng.next(6) as usize];
    let (dir, name) = split(path);
    let kind = rng.next(100);
    let mut told = |what: String| trace.0.push(format!("{path}: {what}"));
    let Some(data) = tree.get(path).cloned() else {
        // Not there: made, its directory first.
        let parent = if dir.is_empty() {
            ROOT
        } else if tree.contains_key(dir) {
            d.find(dir)?
        } else {
            tree.insert(dir.to_owned(), None);
            told("its directory".to_owned());
            d.mkdir(ROOT, dir, 0o755, None)?;
            return Ok(Step::Names);
        };
        tree.insert(path.to_owned(), Some(Arc::default()));
        told("create".to_owned());
        let (_, opened) = d.create(parent, name, 0o644, None)?;
        d.release(opened.handle)?;
        return Ok(Step::Names);
    };
    let old = data.unwrap();
    let node = d.find(path)?;
    match kind {
        0..55 => {
            let at = match rng.next(3) {
                0 => old.len() as u64,
                1 => rng.next(old.len() as u64 + 1),
                _ => rng.next(old.len() as u64 + 3000),
            };
            let len = match rng.next(8) {
                0 => 9000,
                1 => 6200,
                _ => 1 + rng.next(3000),
            };
            let bytes = pattern(len as usize, rng.next(256) as u8);
            let mut new = old.to_vec();
            let end = (at + len) as usize;
            if new.len() < end {
                new.resize(end, 0);
            }
            new[at as usize..end].copy_from_slice(&bytes);
            tree.insert(path.to_owned(), Some(Arc::new(new)));
            told(format!("write {at}+{len} ({} before)", old.len()));
            let h = d.open_file(node, true, true)?.handle;
            let done = d.write(h, at, &bytes);
            let closed = d.release(h);
            done.and(closed).map(|()| Step::Bytes(path))
        }
        55..65 => {
            let size = rng.next(40_000);
            let mut new = old.to_vec();
            new.resize(size as usize, 0);
            told(format!("cut to {size} ({} before)", old.len()));
            tree.insert(path.to_owned(), Some(Arc::new(new)));
            d.truncate(node, size).map(|()| Step::Bytes(path))
        }
        65..80 => {
            told("flush".to_owned());
            let h = d.open_file(node, true, true)?.handle;
            let done = d.fsync(h);
            let closed = d.release(h);
            done.and(closed).map(|()| Step::Flush(path))
        }
        80..84 => {
            told("flush names".to_owned());
            d.fsync_dir().map(|()| Step::FlushNames)
        }
        84..89 => {
            let to = NAMES[rng.next(6) as usize];
            let (to_dir, to_name) = split(to);
            if to == path || (!to_dir.is_empty() && !tree.contains_key(to_dir)) {
                return Ok(Step::Nothing);
            }
            let (from, into) = (at_dir(d, dir)?, at_dir(d, to_dir)?);
            told(format!("rename to {to} (there: {})", tree.contains_key(to)));
            let moved = tree.remove(path).unwrap();
            tree.insert(to.to_owned(), moved);
            d.rename(from, name, into, to_name, true)
                .map(|()| Step::Names)
        }
        89..92 => {
            let parent = at_dir(d, dir)?;
            tree.remove(path);
            told("remove".to_owned());
            d.unlink(parent, name).map(|()| Step::Names)
        }
        92..97 => {
            told("checkpoint".to_owned());
            d.checkpoint().map(|()| Step::FlushAll)
        }
        _ => {
            told("sync".to_owned());
            sync(d).map(|()| Step::Nothing)
        }
    }
}

fn at_dir(d: &Drive, dir: &str) -> vfs::Result<u64> {
    if dir.is_empty() {
        Ok(ROOT)
    } else {
        d.find(dir)
    }
}

/// Everything to the share. Nobody else changes it, so nothing may look like a conflict.
fn sync(d: &Drive) -> vfs::Result<()> {
    for done in d.reintegrate("d", "h")? {
        let plain = matches!(done.outcome, vfs::ReintegratedOutcome::Done);
        assert!(plain, "{done:?}");
    }
    let mut dirty = d.status().dirty_opaque;
    let containers = d.containers();
    dirty.extend(
        containers
            .iter()
            .filter(|c| c.dirty)
            .map(|c| c.path.clone()),
    );
    for path in dirty {
        let pushed = d.push_opaque(&path, "d", "h")?;
        assert!(
            !matches!(pushed, PushOutcome::Conflict(_)),
            "{path}: {pushed:?}"
        );
    }
    Ok(())
}

fn whole(d: &Drive) -> vfs::Result<Tree> {
    let mut tree = Tree::new();
    let mut stack = vec![(ROOT, String::new())];
    while let Some((node, at)) = stack.pop() {
        for e in d.readdir(node)? {
            let path = vfs::path::join(&at, &e.name);
            if e.kind == Kind::Dir {
                tree.insert(path.clone(), None);
                stack.push((e.id, path));
            } else {
                let data = common::read_all(d, &path)?;
                tree.insert(path, Some(Arc::new(data)));
            }
        }
    }
    Ok(tree)
}

fn on_share(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for e in std::fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if path.is_dir() {
                tree.insert(name, None);
                stack.push(path);
            } else {
                tree.insert(name, Some(Arc::new(std::fs::read(path).unwrap())));
            }
        }
    }
    tree
}

fn differs(a: &Tree, b: &Tree) -> String {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let mut out = String::new();
    for k in keys {
        match (a.get(k), b.get(k)) {
            (Some(Some(x)), Some(Some(y))) if x != y => {
                let at = x.iter().zip(y.iter()).position(|(a, b)| a != b);
                out += &format!("{k}: {} and {} bytes, first at {at:?}; ", x.len(), y.len());
            }
            (x, y) if x.is_some() != y.is_some() => {
                out += &format!("{k}: {} and {}; ", x.is_some(), y.is_some());
            }
            _ => {}
        }
    }
    out
}

/// What a chain of lives on one disk came to.
#[derive(Default)]
struct Count {
    cuts: u64,
    online: u64,
    /// Cuts in the middle of a recovery.
    midway: u64,
    slowest: Duration,
}

/// Some lives in a row on one disk, so that a recovery stands on a recovery.
fn chain(number: u64, count: &mut Count) {
    let tmp = tempfile::tempdir().unwrap();
    let share = tmp.path();
    std::fs::write(share.join("a.pst"), pattern(20_000, 1)).unwrap();
    std::fs::write(share.join("b.bin"), pattern(9000, 2)).unwrap();
    // Every third on a stick as they are sold: a rename is no single step there.
    let mut disk = if number.is_multiple_of(3) {
        CrashDisk::fat()
    } else {
        CrashDisk::default()
    };
    Drive::open(config(share, &disk, State::Online))
        .unwrap()
        .shutdown()
        .unwrap();
    let mut tree = on_share(share);
    for life in 0..12u64 {
        let seed = number * 1000 + life;
        let mut rng = Rng(seed);
        let through = rng.next(4) == 0;
        let state = if through {
            State::Online
        } else {
            State::Cached
        };
        let context = format!("seed {number}, life {life}, {state:?}");
        let mut trace = Trace(vec![format!("{context}:")]);
        let d = Drive::open(config(share, &disk, state)).unwrap();
        if through {
            // What is not on the share yet is journaled, not passed through: the simple
            // rule below is for a clean start.
            sync(&d).unwrap();
            count.online += 1;
        }
        let power = rng.next(700);
        disk.cut_after(power);
        let mut states = vec![tree.clone()];
        // The state that must be reached at least, and where files and names changed last.
        let mut flushed = 0;
        let mut touched = BTreeMap::new();
        let mut names = 0;
        for _ in 0..400 {
            match step(&d, &mut tree, &mut rng, &mut trace) {
                Ok(what) => {
                    states.push(tree.clone());
                    let at = states.len() - 1;
                    let reached = match what {
                        Step::Bytes(path) => {
                            touched.insert(path, at);
                            continue;
                        }
                        Step::Names => {
                            names = at;
                            continue;
                        }
                        Step::Nothing => continue,
                        Step::Flush(path) => names.max(*touched.get(path).unwrap_or(&0)),
                        Step::FlushNames => names,
                        Step::FlushAll => at,
                    };
                    flushed = flushed.max(reached);
                }
                Err(e) => {
                    assert!(disk.is_cut(), "{context}: {e}");
                    trace.0.push(format!("the power is gone: {e}"));
                    states.push(tree.clone());
                    break;
                }
            }
        }
        drop(d);
        if through {
            // The share was there all the time: it has all but perhaps the last step.
            flushed = states.len().saturating_sub(2);
        }
        let cut = disk.survivor(rng.next(1 << 40));
        count.cuts += 1;
        // Power may go again in the middle of the recovery.
        let mut after = cut;
        for _ in 0..rng.next(3) {
            after.cut_after(rng.next(40));
            let began = Instant::now();
            drop(Drive::open(config(share, &after, state)));
            count.slowest = count.slowest.max(began.elapsed());
            after = after.survivor(rng.next(1 << 40));
            count.midway += 1;
            trace.0.push("and again in the recovery".to_owned());
        }
        let began = Instant::now();
        let d = Drive::open(config(share, &after, state)).unwrap_or_else(|e| {
            panic!("{context}: {e}");
        });
        count.slowest = count.slowest.max(began.elapsed());
        let found = whole(&d).unwrap_or_else(|e| panic!("{context}: {e}"));
        let at = states.iter().rposition(|s| *s == found);
        assert!(
            at.is_some_and(|at| at >= flushed),
            "{context}: found {at:?} of {}, flushed {flushed}; to the last: {}; to the flushed: {}",
            states.len() - 1,
            differs(&found, states.last().unwrap()),
            differs(&found, &states[flushed]),
        );
        // A recovery is for good: cut right after it, the next one finds the same.
        drop(d);
        let again = after.survivor(rng.next(1 << 40));
        let d = Drive::open(config(share, &again, state)).unwrap();
        let second = whole(&d).unwrap();
        assert!(second == found, "{context}: {}", differs(&second, &found));
        if through {
            // What was passed through and not flushed here, the share alone knows about. It was
            // looked at; that this was our own hand must not be forgotten again, or a later
            // replacement would keep it as another's (which loses nothing, either).
            d.checkpoint().unwrap();
        }
        // And what the share lacks is known.
        if rng.next(3) == 0 || life == 11 {
            trace.0.push("all to the share".to_owned());
            sync(&d).unwrap();
            let there = on_share(share);
            assert!(
                there == found,
                "{context}, share: {}",
                differs(&there, &found)
            );
        }
        drop(d);
        disk = again;
        tree = found;
    }
}

#[test]
fn nothing_flushed_is_lost_by_a_power_cut() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let (cuts, first) = (number("VFS_POWER_CUTS", 150), number("VFS_POWER_SEED", 1));
    let mut count = Count::default();
    for at in first.. {
        chain(at, &mut count);
        if count.cuts >= cuts {
            break;
        }
    }
    println!(
        "{} power cuts ({} passed through, {} more in recoveries): nothing lost; \
         slowest recovery {:?}",
        count.cuts, count.online, count.midway, count.slowest
    );
    assert!(count.slowest < Duration::from_secs(2), "a slow recovery");
}

/// Power goes at every call of a checkpoint, on a stick whose renames are two changes: the metadata's old
/// file may be gone without the new one having its name.
#[test]
fn a_checkpoint_on_a_stick_may_be_cut_anywhere() {
    let tmp = tempfile::tempdir().unwrap();
    let share = tmp.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let (old, new) = (pattern(3000, 1), pattern(3000, 2));
    let stick = CrashDisk::fat();
    let d = Drive::open(config(&share, &stick, State::Offline)).unwrap();
    common::put_file(&d, ROOT, "a.pst", &old);
    // Until the journal does not tell the whole story any more.
    for _ in 0..40 {
        let h = d.open_file(d.find("a.pst").unwrap(), true, true).unwrap();
        d.write(h.handle, 0, &old).unwrap();
        d.release(h.handle).unwrap();
        d.checkpoint().unwrap();
    }
    let h = d.open_file(d.find("a.pst").unwrap(), true, true).unwrap();
    d.write(h.handle, 0, &new).unwrap();
    d.fsync(h.handle).unwrap();
    d.release(h.handle).unwrap();
    drop(d);
    let start = stick.survivor(1);
    let mut torn = 0;
    for cut in 0.. {
        for seed in 0..24 {
            let disk = start.survivor(1);
            let d = Drive::open(config(&share, &disk, State::Offline)).unwrap();
            disk.cut_after(cut);
            let whole = d.checkpoint().is_ok();
            drop(d);
            if whole && seed == 0 {
                // No call is left to cut.
                assert!(torn > 0, "no cut fell into a rename");
                return;
            }
            let after = disk.survivor(seed);
            torn += u32::from(after.open("meta").is_err());
            let d = Drive::open(config(&share, &after, State::Offline))
                .unwrap_or_else(|e| panic!("cut {cut}, seed {seed}: {e}"));
            let found = common::read_all(&d, "a.pst").unwrap();
            assert!(found == new, "cut {cut}, seed {seed}");
        }
    }
}
