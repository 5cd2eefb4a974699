//! The bodies of the fuzz targets, with mutations of their seeds that are the same each time: a short run
//! for the ordinary build. `PSTSYNCD_FUZZ_CASES` sets how many per seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use bodies::surgery::Patient;

/// Numbers that look random and are the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

fn cases() -> usize {
    std::env::var("PSTSYNCD_FUZZ_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(150)
}

/// A few changes of a few bytes: interesting numbers, flips, copies from elsewhere, a cut.
fn mutated(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    const NUMBERS: [u8; 10] = [0, 1, 2, 0x7F, 0x80, 0xFF, 0xFE, 0x20, 0x40, 0x10];
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(6) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = rng.below(bytes.len());
        match rng.below(8) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1..4 => bytes[at] = NUMBERS[rng.below(NUMBERS.len())],
            4 | 5 => {
                let n = [2, 4, 8, 24, 64][rng.below(5)].min(bytes.len() - at);
                let from = rng.below(bytes.len() - n + 1);
                bytes.copy_within(from..from + n, at);
            }
            6 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xFF),
            _ if rng.below(8) == 0 => bytes.truncate(at),
            _ => bytes[at] = rng.below(256) as u8,
        }
    }
    bytes
}

fn run(target: &str) {
    let body = bodies::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .unwrap()
        .1;
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    let mut runs = 0;
    for (name, seed) in bodies::seeds(target) {
        body(&seed);
        for _ in 0..cases() {
            let mut input = mutated(&seed, &mut rng);
            // Whole files: behind their checksums, where the fuzzer's build goes too.
            if matches!(target, "walk" | "check") && name != "ansi" {
                let mut file = Patient::new(input);
                file.reseal();
                input = file.bytes;
            }
            body(&input);
            runs += 1;
        }
    }
    println!("{target}: {runs} mutations");
    assert!(runs >= cases());
}

#[test]
fn walk() {
    run("walk");
}

#[test]
fn check() {
    run("check");
}

#[test]
fn apply() {
    run("apply");
}

#[test]
fn structures() {
    run("structures");
}
