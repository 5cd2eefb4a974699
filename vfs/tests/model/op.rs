//! The alphabet: what programs, the world and others do, and how often.

use vfs::State;

/// `SplitMix64`.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below.max(1)
    }

    fn index(&mut self, below: usize) -> usize {
        self.next(below as u64) as usize
    }

    fn flag(&mut self) -> bool {
        self.next(2) == 1
    }
}

/// Up to three names deep; links have names of their own, so that no path leads through one.
pub const PATHS: [&str; 14] = [
    "a",
    "b.pst",
    "c",
    "a/a",
    "a/b",
    "b/a.pst",
    "b/c",
    "a/b/a.pst",
    "a/b/c",
    "b/a/a",
    "b",
    "c/c",
    "l",
    "a/l",
];
/// Where links begin among these.
pub const LINKS: usize = 12;
/// Open handles at most.
pub const HANDLES: usize = 4;

/// One operation. `p`, `a`, `b` count paths, `h` open handles (where files are shared: paths); what
/// does not apply does nothing, so that any part of a sequence is one.
#[derive(Debug, Clone)]
pub enum Op {
    Mkdir {
        p: usize,
        mode: u32,
    },
    Create {
        p: usize,
    },
    Open {
        p: usize,
    },
    Close {
        h: usize,
    },
    Write {
        h: usize,
        at: u64,
        len: usize,
        seed: u8,
    },
    Append {
        h: usize,
        len: usize,
        seed: u8,
    },
    Read {
        h: usize,
        at: u64,
        len: usize,
    },
    Cut {
        h: usize,
        size: u64,
    },
    CutPath {
        p: usize,
        size: u64,
    },
    Reserve {
        h: usize,
        at: u64,
        len: u64,
        keep: bool,
    },
    Zero {
        h: usize,
        at: u64,
        len: u64,
        keep: bool,
    },
    Flush {
        h: usize,
    },
    FlushNames,
    Symlink {
        p: usize,
        to: usize,
    },
    Remove {
        p: usize,
    },
    Rename {
        a: usize,
        b: usize,
        replace: bool,
    },
    Link {
        a: usize,
        b: usize,
    },
    Chmod {
        p: usize,
        mode: u32,
    },
    Time {
        p: usize,
        ns: i64,
    },
    SetX {
        p: usize,
        name: u8,
        value: u8,
    },
    DropX {
        p: usize,
        name: u8,
    },
    Snapshot {
        p: usize,
    },
    /// Compares: everything, or this file.
    Look {
        p: usize,
    },
    State(State),
    Checkpoint,
    Kill,
    Shutdown,
    Power {
        seed: u64,
    },
    /// The `n`-th share call from now fails: before, or after it took effect.
    Fault {
        n: u64,
        after: bool,
    },
    Hang {
        n: u64,
    },
    Heal,
    /// A sync whose `n`-th share call is refused.
    Refuse {
        n: u64,
    },
    /// The state directory's volume is full for one operation.
    Tight,
    Fill,
    Sync,
    TheirWrite {
        p: usize,
        at: u64,
        len: usize,
    },
    TheirReplace {
        p: usize,
    },
    TheirMake {
        p: usize,
    },
    TheirRemove {
        p: usize,
    },
    TheirRename {
        a: usize,
        b: usize,
    },
}

fn world(rng: &mut Rng) -> Op {
    match rng.next(46) {
        0..12 => Op::State([State::Online, State::Cached, State::Offline][rng.index(3)]),
        12..17 => Op::Checkpoint,
        17..21 => Op::Kill,
        21..23 => Op::Shutdown,
        23..25 => Op::Power {
            seed: rng.next(1 << 40),
        },
        25..33 => Op::Fault {
            n: 1 + rng.next(6),
            after: rng.flag(),
        },
        33 => match rng.next(5) {
            0 => Op::Hang { n: 1 + rng.next(6) },
            _ => Op::Heal,
        },
        34..36 => Op::Heal,
        36..38 => Op::Tight,
        38 => Op::Fill,
        39..41 => Op::Refuse {
            n: 1 + rng.next(12),
        },
        _ => Op::Sync,
    }
}

/// What programs and the world do, and nobody else.
pub fn alone(rng: &mut Rng) -> Op {
    let p = rng.index(PATHS.len());
    let h = rng.index(HANDLES);
    let at = rng.next(9000);
    let len = match rng.next(10) {
        0 => 3000 + rng.index(3000),
        1..4 => 1 + rng.index(3000),
        _ => 1 + rng.index(300),
    };
    let mode = [0o755, 0o700, 0o750, 0o711][rng.index(4)];
    match rng.next(172) {
        0..6 => Op::Mkdir { p, mode },
        6..14 => Op::Create { p },
        14..24 => Op::Open { p },
        24..31 => Op::Close { h },
        31..49 => Op::Write {
            h,
            at,
            len,
            seed: rng.next(256) as u8,
        },
        49..54 => Op::Append {
            h,
            len,
            seed: rng.next(256) as u8,
        },
        54..59 => Op::Read { h, at, len },
        59..63 => Op::Cut { h, size: at },
        63..65 => Op::CutPath { p, size: at },
        65..67 => Op::Reserve {
            h,
            at,
            len: len as u64,
            keep: rng.flag(),
        },
        67..70 => Op::Zero {
            h,
            at,
            len: len as u64,
            keep: rng.flag(),
        },
        70..74 => Op::Flush { h },
        74..75 => Op::FlushNames,
        75..77 => Op::Symlink {
            p: LINKS + rng.index(2),
            to: rng.index(LINKS),
        },
        77..85 => Op::Remove { p },
        85..99 => Op::Rename {
            a: p,
            b: rng.index(PATHS.len()),
            replace: rng.next(3) > 0,
        },
        99..101 => Op::Chmod { p, mode },
        101..103 => Op::Time {
            p,
            ns: 1000 * (1 + rng.next(1_000_000) as i64),
        },
        103..106 => Op::SetX {
            p,
            name: rng.next(3) as u8,
            value: rng.next(256) as u8,
        },
        106..107 => Op::DropX {
            p,
            name: rng.next(3) as u8,
        },
        107..109 => Op::Snapshot { p },
        109..115 => Op::Link {
            a: p,
            b: rng.index(PATHS.len()),
        },
        115..131 => Op::Look { p },
        _ => world(rng),
    }
}

/// What programs, the world and others do.
pub fn shared(rng: &mut Rng) -> Op {
    let p = rng.index(super::shared::FILES.len());
    let other = rng.index(super::shared::FILES.len());
    let at = rng.next(9000);
    let most = if rng.next(6) == 0 { 4000 } else { 300 };
    let len = 1 + rng.index(most);
    match rng.next(150) {
        0..8 => Op::Create { p },
        8..28 => Op::Write {
            h: p,
            at,
            len,
            seed: 0,
        },
        28..34 => Op::Append { h: p, len, seed: 0 },
        34..39 => Op::Cut { h: p, size: at },
        39..45 => Op::Remove { p },
        45..55 => Op::Rename {
            a: p,
            b: other,
            replace: rng.next(4) > 0,
        },
        55..70 => Op::Look { p },
        70..72 => Op::Time {
            p,
            ns: 1000 * (1 + rng.next(1_000_000) as i64),
        },
        72..74 => Op::FlushNames,
        74..84 => Op::TheirWrite { p, at, len },
        84..91 => Op::TheirReplace { p },
        91..96 => Op::TheirMake { p },
        96..100 => Op::TheirRemove { p },
        100..104 => Op::TheirRename { a: p, b: other },
        _ => world(rng),
    }
}
