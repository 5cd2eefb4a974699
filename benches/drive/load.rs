//! What programs do, in slices of a second or less, and the figures of many rounds of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{Advice, fadvise};

use crate::mounts::Mount;

/// Writes and flushes of one slice.
const FLUSHES: u32 = 1500;
/// Operations in a slice of the mix: some 120 MB are written.
const MIX: u32 = 12_000;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Reads of 4 KiB anywhere, from the kernel's page cache.
    Hits,
    /// The whole file from its start, from the file system's own cache and not the kernel's.
    Sequential,
    /// 4 KiB written anywhere, and flushed, each.
    Flush,
    /// 70 reads to 30 writes of 512 bytes to 64 KiB at multiples of 512, a flush after 32 writes.
    Mix,
}

impl Load {
    pub fn name(self) -> &'static str {
        match self {
            Self::Hits => "hits",
            Self::Sequential => "sequential",
            Self::Flush => "flush",
            Self::Mix => "mix",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Hits => "page-cache hits",
            Self::Sequential => "sequential warm reads",
            Self::Flush => "write 4 KiB and flush",
            Self::Mix => "PST-like mix",
        }
    }

    /// Least ratio of ours to these.
    pub fn targets(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Hits | Self::Flush => &[("native", 0.9)],
            Self::Sequential => &[("rclone", 2.0)],
            Self::Mix => &[("bare fuser", 0.9), ("mergerfs", 1.3)],
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Sequential => "MB/s",
            _ => "operations/s",
        }
    }

    /// One slice on an open file: how much, and the rate.
    fn slice(self, at: &Target, seed: u64) -> Result<(f64, f64)> {
        let mut random = Random(seed);
        let mut buf = vec![(seed % 251) as u8; 128 << 10];
        if self == Self::Sequential && at.drops {
            fadvise(&at.file, 0, None, Advice::DontNeed)?;
        }
        let start = Instant::now();
        let amount = match self {
            Self::Hits => {
                for _ in 0..20_000 {
                    let from = random.below(at.len / 4096) * 4096;
                    at.file.read_exact_at(&mut buf[..4096], from)?;
                }
                20_000.0
            }
            Self::Sequential => {
                for from in (0..at.len).step_by(buf.len()) {
                    at.file.read_exact_at(&mut buf, from)?;
                }
                at.len as f64 / 1e6
            }
            Self::Flush => {
                // Long enough that what the slices of others leave the disk to do is little of it.
                for _ in 0..FLUSHES {
                    let to = random.below(at.len / 4096) * 4096;
                    at.file.write_all_at(&buf[..4096], to)?;
                    at.file.sync_all()?;
                }
                f64::from(FLUSHES)
            }
            Self::Mix => {
                let mut writes = 0;
                // Long enough for what a journal puts off to come due within.
                for _ in 0..MIX {
                    let len = 512 * (1 + random.below(128)) as usize;
                    let place = random.below((at.len - len as u64) / 512) * 512;
                    if random.below(10) < 7 {
                        at.file.read_exact_at(&mut buf[..len], place)?;
                    } else {
                        at.file.write_all_at(&buf[..len], place)?;
                        writes += 1;
                        if writes % 32 == 0 {
                            at.file.sync_all()?;
                        }
                    }
                }
                f64::from(MIX)
            }
        };
        Ok((amount, amount / start.elapsed().as_secs_f64()))
    }
}

struct Target {
    file: File,
    len: u64,
    /// Whether what it keeps in the kernel's page cache can be dropped and is still at hand below.
    drops: bool,
}

/// Numbers that look random (SplitMix64), the same for all.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

/// The figures of one load.
pub struct Rounds {
    load: Load,
    all: Vec<Row>,
}

struct Row {
    label: &'static str,
    /// One per round.
    rates: Vec<f64>,
    /// Processor time that its server took for a thousand units of work, in seconds.
    cpu: f64,
}

impl Rounds {
    /// Runs `rounds` rounds after one that is thrown away.
    pub fn run(load: Load, mounts: &[Mount], rounds: u64) -> Result<Self> {
        let mut targets = Vec::new();
        for mount in mounts {
            let file = mount.file()?;
            let len = file.metadata()?.len();
            // Into every cache on the way.
            let mut buf = vec![0; 1 << 20];
            for from in (0..len).step_by(buf.len()) {
                file.read_exact_at(&mut buf, from)?;
            }
            let drops = mount.server().is_some();
            targets.push(Target { file, len, drops });
        }
        let row = |m: &Mount| Row {
            label: m.label,
            rates: Vec::new(),
            cpu: 0.0,
        };
        let mut all: Vec<Row> = mounts.iter().map(row).collect();
        let mut done = 0.0;
        for round in 0..=rounds {
            for turn in 0..targets.len() {
                let i = (turn + round as usize) % targets.len();
                let before = mounts[i].cpu_seconds();
                let (amount, rate) = load.slice(&targets[i], round + 1)?;
                // What it does behind the program's back is its own cost, and not the next one's.
                settle(&mounts[i]);
                if round > 0 {
                    all[i].rates.push(rate);
                    all[i].cpu += mounts[i].cpu_seconds() - before;
                    done = amount * round as f64;
                }
            }
        }
        for row in &mut all {
            row.cpu *= 1000.0 / done;
        }
        Ok(Self { load, all })
    }

    fn of(&self, label: &str) -> Option<&[f64]> {
        let found = self.all.iter().find(|r| r.label == label);
        found.map(|r| r.rates.as_slice())
    }

    /// The median of the rounds' ratios of one to another.
    pub fn ratio(&self, ours: &str, theirs: &str) -> Option<f64> {
        let pairs = self.of(ours)?.iter().zip(self.of(theirs)?);
        Some(median(pairs.map(|(a, b)| a / b).collect()))
    }

    /// Prints the table.
    pub fn print(&self) {
        let (title, unit) = (self.load.title(), self.load.unit());
        println!("\n### {title}\n");
        println!(
            "| {} rounds | {unit} | slowest–fastest round | over native | fastest over native's | server's processor time of 1000, ms |",
            self.all.first().map_or(0, |r| r.rates.len())
        );
        println!("|---|---:|---:|---:|---:|---:|");
        let best = |label| self.of(label).map_or(f64::NAN, fastest);
        for row in &self.all {
            let (label, rates) = (row.label, &row.rates);
            println!(
                "| {label} | {:.0} | {:.0}–{:.0} | {:.2} | {:.2} | {:.1} |",
                median(rates.clone()),
                rates.iter().copied().fold(f64::INFINITY, f64::min),
                best(label),
                self.ratio(label, "native").unwrap_or(f64::NAN),
                best(label) / best("native"),
                row.cpu * 1e3,
            );
        }
    }
}

/// Waits until the server rests.
fn settle(mount: &Mount) {
    for _ in 0..30 {
        let before = mount.cpu_seconds();
        std::thread::sleep(Duration::from_millis(50));
        if mount.cpu_seconds() <= before {
            break;
        }
    }
}

fn fastest(of: &[f64]) -> f64 {
    of.iter().copied().fold(0.0, f64::max)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}
