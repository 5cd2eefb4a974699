//! The share vanishes and returns, again and again, under programs that hold PSTs open all the
//! while (R1, R12): no program sees an error, none waits for long, nothing that was read goes back
//! in time, and in the end the share has what the programs wrote.
//!
//! The programs are processes of their own (this test's executable, called again for one of the
//! `part_of_` tests with what to do in an environment variable; without it these do nothing), and
//! use a real mount.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::{Drive, Event, PushOutcome, State};

use crate::common::{self, Rig, pattern};

const WHAT: &str = "VFS_TEST_PART";

/// No call of a program may take longer.
const LONGEST: Duration = Duration::from_secs(3);
/// For what must happen some time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first part of a written file: records that a reader can judge by themselves.
const RECORD: usize = 512;
const RECORDS: usize = 1024;
/// What follows is written anyhow, cut and grown.
const REST: usize = 400_000;
const STEADY: usize = 700_000;

fn record(slot: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = pattern(RECORD, slot as u8 ^ sequence as u8);
    bytes[..8].copy_from_slice(&slot.to_le_bytes());
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc(&bytes[..RECORD - 4]);
    bytes[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |h: u32, b| {
        h.rotate_left(5) ^ u32::from(*b).wrapping_mul(0x9E37_79B9)
    })
}

/// The sequence number of a record that is whole.
fn sequence(slot: u64, bytes: &[u8]) -> Option<u64> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let n = word(8);
    (word(0) == slot && record(slot, n) == bytes).then_some(n)
}

fn begin() -> Vec<u8> {
    let mut data: Vec<u8> = (0..RECORDS as u64).flat_map(|i| record(i, 0)).collect();
    data.extend(pattern(REST, 9));
    data
}

/// Counts a program's calls, and keeps the slowest.
struct Calls {
    done: u64,
    slowest: (Duration, &'static str),
}

impl Calls {
    fn time<T>(&mut self, what: &'static str, call: impl FnOnce() -> std::io::Result<T>) -> T {
        let began = Instant::now();
        LATE.store(0, Ordering::SeqCst);
        let answer = call();
        let late = Duration::from_micros(LATE.load(Ordering::SeqCst));
        let took = began.elapsed().saturating_sub(late);
        if took > self.slowest.0 {
            self.slowest = (took, what);
        }
        self.done += 1;
        if self.done.is_multiple_of(10) {
            println!("calls {}", self.done);
        }
        answer.unwrap_or_else(|e| panic!("{what} after {took:?}: {e}"))
    }

    fn end(&self) {
        let (took, what) = self.slowest;
        println!("calls {}", self.done);
        println!("slowest {} {what}", took.as_millis());
    }
}

/// How long this machine kept a thread waiting that had only slept, in microseconds, at most since
/// it was last set to 0: no fault of the drive.
static LATE: AtomicU64 = AtomicU64::new(0);

fn watch_the_machine() {
    const STEP: Duration = Duration::from_millis(20);
    std::thread::spawn(|| {
        loop {
            let began = Instant::now();
            std::thread::sleep(STEP);
            let late = began.elapsed().saturating_sub(STEP).as_micros();
            LATE.fetch_max(late as u64, Ordering::SeqCst);
        }
    });
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Set when whoever started this program closes its standard input.
fn told_to_end() -> Arc<AtomicBool> {
    let end = Arc::new(AtomicBool::new(false));
    let told = end.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::SeqCst);
    });
    end
}

/// Pages that the kernel kept would answer for the drive.
fn forget_pages(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// A file whose reads all come to the drive.
fn direct(path: &Path) -> std::io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A file's hash by a program that maps it: git does so with files of this size.
fn mapped_hash(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut git = Command::new("git");
    git.args(["hash-object", "--no-filters", "--"]).arg(path);
    let output = git.current_dir("/").output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(std::io::Error::other(format!("{output:?}"))),
    }
}

#[test]
fn part_of_reading() {
    let Ok(at) = std::env::var(WHAT) else { return };
    let at = PathBuf::from(at);
    let end = told_to_end();
    watch_the_machine();
    let mut calls = Calls {
        done: 0,
        slowest: (Duration::ZERO, ""),
    };
    let mut random = Random(77);
    let held = calls.time("open", || File::open(at.join("held.pst")));
    let steady = calls.time("open", || File::open(at.join("steady.pst")));
    let unbuffered = ["held.pst", "steady.pst"].map(|f| calls.time("open", || direct(&at.join(f))));
    let model = pattern(STEADY, 3);
    let mut seen = vec![0; RECORDS];
    let copy = mapped_hash(&at.parent().unwrap().join("models/steady")).unwrap();
    let mut mapped = 0;
    while !end.load(Ordering::SeqCst) {
        if random.below(8) == 0 {
            forget_pages(&held);
            forget_pages(&steady);
        }
        match random.below(100) {
            0 => {
                forget_pages(&steady);
                let hash = calls.time("mapped read", || mapped_hash(&at.join("steady.pst")));
                assert_eq!(hash, copy);
                mapped += 1;
            }
            1..=3 => {
                let names = calls.time("list", || {
                    fs::read_dir(&at)?.collect::<std::io::Result<Vec<_>>>()
                });
                assert_eq!(names.len(), 3, "{names:?}");
            }
            4..=6 => {
                let meta = calls.time("stat", || fs::metadata(at.join("steady.pst")));
                assert_eq!(meta.len(), STEADY as u64);
            }
            7..=9 => {
                let mut byte = [0];
                let again = calls.time("open", || File::open(at.join("steady.pst")));
                let from = random.below(STEADY);
                calls.time("read", || again.read_exact_at(&mut byte, from as u64));
                assert_eq!(byte[0], model[from]);
                calls.time("close", || {
                    drop(again);
                    Ok(())
                });
            }
            10..=50 => {
                let from = random.below(STEADY);
                let mut buf = vec![0; (1 + random.below(60_000)).min(STEADY - from)];
                let file = [&steady, &unbuffered[1]][random.below(2)];
                calls.time("read", || file.read_exact_at(&mut buf, from as u64));
                assert!(buf == model[from..from + buf.len()], "a wrong byte");
            }
            _ => {
                let slot = random.below(RECORDS);
                let mut buf = [0; RECORD];
                // A read beside a write may see part of it, as on any disk: but not for ever.
                let n = (0..1000)
                    .find_map(|_| {
                        let from = (slot * RECORD) as u64;
                        let file = [&held, &unbuffered[0]][random.below(2)];
                        calls.time("read", || file.read_exact_at(&mut buf, from));
                        sequence(slot as u64, &buf)
                    })
                    .expect("a torn record");
                assert!(n >= seen[slot], "a record went back in time");
                seen[slot] = n;
            }
        }
    }
    println!("mapped {mapped}");
    calls.end();
}

/// A file that is written, and what it must hold.
struct Written {
    path: PathBuf,
    file: File,
    model: Vec<u8>,
    sequence: u64,
}

impl Written {
    fn open(calls: &mut Calls, path: PathBuf) -> Self {
        let file = calls.time("open", || {
            OpenOptions::new().read(true).write(true).open(&path)
        });
        Self {
            path,
            file,
            model: begin(),
            sequence: 0,
        }
    }

    fn reopen(&mut self, calls: &mut Calls) {
        let mut o = OpenOptions::new();
        let file = calls.time("open", || o.read(true).write(true).open(&self.path));
        let old = std::mem::replace(&mut self.file, file);
        calls.time("close", || {
            drop(old);
            Ok(())
        });
    }

    fn put(&mut self, calls: &mut Calls, at: usize, bytes: &[u8]) {
        calls.time("write", || self.file.write_all_at(bytes, at as u64));
        if self.model.len() < at + bytes.len() {
            self.model.resize(at + bytes.len(), 0);
        }
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn step(&mut self, calls: &mut Calls, random: &mut Random) {
        let first = RECORDS * RECORD;
        match random.below(16) {
            0..=7 => {
                let slot = random.below(RECORDS);
                self.sequence += 1;
                let bytes = record(slot as u64, self.sequence);
                self.put(calls, slot * RECORD, &bytes);
            }
            8..=10 => {
                let at = first + random.below(self.model.len() - first);
                let bytes = pattern(1 + random.below(5000), self.sequence as u8);
                self.put(calls, at, &bytes);
            }
            11 => {
                let size = first + REST / 2 + random.below(REST);
                calls.time("truncate", || self.file.set_len(size as u64));
                self.model.resize(size, 0);
            }
            12 | 13 => {
                forget_pages(&self.file);
                let at = random.below(self.model.len());
                let mut buf = vec![0; (1 + random.below(9000)).min(self.model.len() - at)];
                calls.time("read", || self.file.read_exact_at(&mut buf, at as u64));
                assert!(buf == self.model[at..at + buf.len()], "a wrong byte");
            }
            14 => calls.time("fsync", || self.file.sync_all()),
            _ => calls.time("fdatasync", || self.file.sync_data()),
        }
    }
}

#[test]
fn part_of_writing() {
    let Ok(at) = std::env::var(WHAT) else { return };
    let at = PathBuf::from(at);
    let end = told_to_end();
    watch_the_machine();
    let mut calls = Calls {
        done: 0,
        slowest: (Duration::ZERO, ""),
    };
    let mut random = Random(5);
    let mut held = Written::open(&mut calls, at.join("held.pst"));
    let mut again = Written::open(&mut calls, at.join("again.pst"));
    let mut steps = 0_u64;
    while !end.load(Ordering::SeqCst) {
        held.step(&mut calls, &mut random);
        again.step(&mut calls, &mut random);
        steps += 1;
        if steps.is_multiple_of(50) {
            // All closed for a moment, so that the next open may see the share again: now and then
            // for as long as a busy machine needs to bring over what was written.
            let pause = if steps.is_multiple_of(500) { 400 } else { 20 };
            let old = std::mem::replace(&mut again.file, File::open("/dev/null").unwrap());
            calls.time("close", || {
                drop(old);
                Ok(())
            });
            std::thread::sleep(Duration::from_millis(pause));
            again.reopen(&mut calls);
        }
    }
    for w in [&held, &again] {
        calls.time("fsync", || w.file.sync_all());
        let name = w.path.file_name().unwrap();
        fs::write(at.parent().unwrap().join("models").join(name), &w.model).unwrap();
    }
    calls.end();
}

/// A program of ours at work, as seen from outside.
struct Program {
    child: Child,
    calls: Arc<AtomicU64>,
    said: std::thread::JoinHandle<String>,
}

impl Program {
    fn start(test: &str, at: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("vanish::{test}"), "--nocapture"])
            .env(WHAT, at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let (count, out) = (calls.clone(), child.stdout.take().unwrap());
        let said = std::thread::spawn(move || {
            let mut rest = String::new();
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                match line.strip_prefix("calls ").and_then(|n| n.parse().ok()) {
                    Some(n) => count.store(n, Ordering::SeqCst),
                    None => rest = rest + &line + "\n",
                }
            }
            rest
        });
        Self { child, calls, said }
    }

    /// Waits until it made `more` calls from now on.
    fn go_on(&mut self, more: u64) {
        let (from, began) = (self.calls.load(Ordering::SeqCst), Instant::now());
        while self.calls.load(Ordering::SeqCst) < from + more {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "a program ended: {ended:?}");
            assert!(began.elapsed() < PATIENCE, "a program stands still");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it: what it said, and its slowest call.
    fn end(mut self) -> (String, Duration) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        let said = self.said.join().unwrap();
        assert!(status.success(), "a program failed: {said}");
        let slowest = said.lines().find_map(|l| l.strip_prefix("slowest "));
        let slowest = slowest.unwrap_or_else(|| panic!("{said}"));
        let ms = slowest.split(' ').next().unwrap().parse().unwrap();
        println!(
            "{} calls, the slowest {slowest}",
            self.calls.load(Ordering::SeqCst)
        );
        (said, Duration::from_millis(ms))
    }
}

/// Brings what the share lacks there; what it still lacks, and why.
fn catch_up(drive: &Drive) -> Vec<String> {
    let mut lacks = Vec::new();
    if let Err(e) = drive.reintegrate("D", "H") {
        lacks.push(format!("names: {e}"));
    }
    for name in ["held.pst", "again.pst", "steady.pst"] {
        match drive.push_opaque(name, "D", "H") {
            Ok(PushOutcome::Clean | PushOutcome::Pushed(_)) => {}
            Ok(other) => panic!("{name}: {other:?}"),
            // An earlier call has not come back yet, or the file is just being opened.
            Err(e @ (vfs::Error::Busy(_) | vfs::Error::Link(_))) => {
                lacks.push(format!("{name}: {e}"));
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let status = drive.status();
    lacks.extend(status.dirty_opaque.iter().map(|f| format!("{f:?}")));
    let dirty = drive.containers().into_iter().filter(|c| c.dirty);
    lacks.extend(dirty.map(|c| c.path));
    lacks
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mounted(rig: &Rig) -> (Arc<Drive>, MountHandle, PathBuf) {
    let mut config = rig.config(State::Online);
    config.background = true;
    // Longer than a program may wait: where the cache has everything it must not count.
    config.flush_budget = Duration::from_secs(10);
    config.unwritten_limit = 1 << 20;
    let drive = Drive::open(config).unwrap();
    drive.fill().unwrap();
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let handle = mount(drive.clone(), &at, &MountOptions::default()).unwrap();
    (drive, handle, at)
}

/// How the share goes away and comes back.
pub trait Outage {
    /// The `n`-th time, from 0.
    fn begin(&mut self, n: u64);
    fn end(&mut self);
}

/// How often a share is to vanish.
pub fn times(usual: u64) -> u64 {
    let set = std::env::var("VFS_FAILOVER_TIMES").ok();
    set.map_or(usual, |n| n.parse().unwrap())
}

/// The share vanishes `times` times under two programs; how often it took an open file with it.
pub fn vanishing(rig: &Rig, times: u64, outage: &mut dyn Outage) -> u64 {
    for name in ["held.pst", "again.pst"] {
        rig.put(name, &begin());
    }
    rig.put("steady.pst", &pattern(STEADY, 3));
    fs::create_dir(rig.tmp.path().join("models")).unwrap();
    fs::write(rig.tmp.path().join("models/steady"), pattern(STEADY, 3)).unwrap();
    let (drive, mut handle, at) = mounted(rig);
    let events = drive.subscribe();
    let mut writer = Program::start("part_of_writing", &at);
    let mut reader = Program::start("part_of_reading", &at);
    let mut through = 0;
    for n in 0..times {
        // Up: everything that waited is brought over while the programs go on, and a file that is
        // opened sees the share again.
        let began = Instant::now();
        while !drive.file_status("again.pst").unwrap().passed_through {
            let lacks = catch_up(&drive);
            assert!(
                began.elapsed() < PATIENCE,
                "never passes through again: {lacks:?}, {:?}",
                drive.file_status("again.pst")
            );
        }
        reader.go_on(20);
        through += u64::from(drive.file_status("again.pst").unwrap().passed_through);
        outage.begin(n);
        writer.go_on(60);
        reader.go_on(60);
        outage.end();
    }
    let flips = events
        .try_iter()
        .filter(|e| matches!(e, Event::Flipped(_)))
        .count() as u64;
    let slowest = [writer.end(), reader.end()].map(|(said, slowest)| {
        if let Some(mapped) = said.lines().find_map(|l| l.strip_prefix("mapped ")) {
            assert!(mapped.parse::<u64>().unwrap() > 0, "nothing was mapped");
        }
        slowest
    });
    println!(
        "vanished {times} times, {through} of them under a file passed through, {flips} flips"
    );
    until("not everything reaches the share", || {
        catch_up(&drive).is_empty()
    });
    handle.unmount().unwrap();
    drop((drive, handle));
    for name in ["held.pst", "again.pst"] {
        let model = fs::read(rig.tmp.path().join("models").join(name)).unwrap();
        assert!(rig.get(name) == model, "{name} on the share");
        let drive = rig.drive(State::Offline);
        assert!(common::read_all(&drive, name).unwrap() == model, "{name}");
    }
    assert!(rig.get("steady.pst") == pattern(STEADY, 3));
    assert_eq!(fs::read_dir(rig.share_file("")).unwrap().count(), 3);
    for took in slowest {
        assert!(took < LONGEST, "a call took {took:?}");
    }
    flips
}
