//! The estimate held against a link whose rate and round trip are known: calls over a simulated link,
//! in simulated time.

use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;
use vfs::share::measured::{Ended, Payload, Use};

use super::estimate::Estimator;
use super::{Figure, Figures};

/// A link as a shaper makes it: one queue in each direction, and a delay.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Bits a second.
    rate: f64,
    /// Seconds.
    round_trip: f64,
    /// Most that the server thinks about a call, in seconds.
    think: f64,
}

/// What every message carries besides its payload, in bytes.
const HEADER: f64 = 150.0;

struct World {
    link: Link,
    estimator: Estimator,
    now: f64,
    up_free: f64,
    down_free: f64,
    /// Ends of calls: time negated (a heap gives the largest), thread, call, carried.
    ends: BinaryHeap<End>,
    seed: u64,
    /// All large transfers go this way.
    only_up: Option<bool>,
}

#[derive(PartialEq)]
struct End(f64, usize, u64, Payload);

impl Eq for End {}
impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0).then(other.2.cmp(&self.2))
    }
}

impl World {
    fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            estimator: Estimator::default(),
            now: 0.0,
            up_free: 0.0,
            down_free: 0.0,
            ends: BinaryHeap::new(),
            seed: seed | 1,
            only_up: None,
        }
    }

    /// From 0 to 1, the same for the same seed.
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One call: its request queues upwards, its answer downwards.
    fn call(&mut self, thread: usize, payload: Payload) {
        let Link {
            rate,
            round_trip,
            think,
        } = self.link;
        let at = Duration::from_secs_f64(self.now);
        let call = self.estimator.begin(at, payload, Use::Exchange);
        self.up_free = self.up_free.max(self.now) + (payload.up as f64 + HEADER) * 8.0 / rate;
        let thinks = self.random() * think;
        let there = self.up_free + round_trip / 2.0 + thinks;
        self.down_free = self.down_free.max(there) + (payload.down as f64 + HEADER) * 8.0 / rate;
        let end = self.down_free + round_trip / 2.0;
        self.ends.push(End(end, thread, call, payload));
    }

    /// A program's next call: mostly small questions, and pieces of what it reads and writes.
    fn next(&mut self, thread: usize, largest: u64) {
        let dice = self.random();
        let size = (self.random() * largest as f64) as u64;
        let size = size.max(largest / 4);
        let payload = if dice < 0.4 {
            Payload::default()
        } else if self.only_up.unwrap_or(dice < 0.7) {
            Payload { up: size, down: 0 }
        } else {
            Payload { up: 0, down: size }
        };
        self.call(thread, payload);
    }

    /// So many threads work for so many seconds.
    fn work(&mut self, threads: usize, seconds: f64, largest: u64) {
        let until = self.now + seconds;
        if self.ends.is_empty() {
            for thread in 0..threads {
                self.next(thread, largest);
            }
        }
        while let Some(End(at, thread, call, payload)) = self.ends.pop() {
            if at > until {
                self.ends.push(End(at, thread, call, payload));
                break;
            }
            self.now = at;
            let now = Duration::from_secs_f64(at);
            self.estimator.end(now, call, payload, Ended::Answered);
            self.next(thread, largest);
        }
        self.now = until;
    }

    /// What is under way ends, and nothing else begins.
    fn rest(&mut self) {
        while let Some(End(at, _, call, payload)) = self.ends.pop() {
            self.now = at;
            let now = Duration::from_secs_f64(at);
            self.estimator.end(now, call, payload, Ended::Answered);
        }
    }

    fn figures(&self) -> Figures {
        self.estimator.figures(Duration::from_secs_f64(self.now))
    }

    /// The estimate is as near as is promised.
    fn check(&self, what: &str) {
        let figures = self.figures();
        let off =
            |f: Option<Figure>, of: f64| f.map_or(f64::INFINITY, |f| (f.value / of - 1.0).abs());
        let Link {
            rate, round_trip, ..
        } = self.link;
        let (mut up, mut down) = (off(figures.up, rate), off(figures.down, rate));
        match self.only_up {
            Some(true) => down = 0.0,
            Some(false) => up = 0.0,
            None => {}
        }
        // Questions that never have the link to themselves show no more than a bound.
        let trip = match self.only_up {
            Some(_) => 0.0,
            None => off(figures.round_trip, round_trip * 1e3),
        };
        assert!(
            up <= 0.25 && down <= 0.25 && trip <= 0.20,
            "{what}: {:?}: off by {up:.2} up, {down:.2} down, {trip:.2} round trip: {figures:?}",
            self.link
        );
    }
}

const MBIT: f64 = 1e6;

fn link(mbit: f64, ms: f64) -> Link {
    Link {
        rate: mbit * MBIT,
        round_trip: ms / 1e3,
        think: ms / 1e3 * 0.05,
    }
}

#[test]
fn after_ten_seconds_of_traffic_it_is_near() {
    for mbit in [1.0, 4.0, 20.0, 100.0] {
        for ms in [5.0, 30.0, 120.0] {
            for threads in [1, 3] {
                // As a program would: no piece takes seconds.
                let largest = ((mbit * MBIT / 8.0 * 0.7) as u64).clamp(64 << 10, 1 << 20);
                if threads > 1 && ms > 50.0 {
                    // They do not fill it: then the estimate is no more than what was used.
                    continue;
                }
                let mut world = World::new(link(mbit, ms), 7);
                if threads > 1 {
                    // A question that waits behind others' data in the other direction makes the
                    // estimate a lower bound, so here one direction at a time.
                    world.only_up = Some(mbit > 10.0);
                }
                world.work(threads, 10.0, largest);
                world.check(&format!("{threads} threads"));
            }
        }
    }
}

#[test]
fn it_follows_a_link_that_changes() {
    for (seed, ms) in [(3, 10.0), (4, 30.0)] {
        let mut world = World::new(link(100.0, ms), seed);
        for mbit in [100.0, 1.0, 100.0, 5.0, 50.0, 1.0] {
            world.link = link(mbit, ms * if mbit < 10.0 { 4.0 } else { 1.0 });
            world.work(1, 12.0, 128 << 10);
            world.check(&format!("seed {seed}"));
        }
    }
}

#[test]
fn think_time_of_the_server_is_not_the_links() {
    // 20 ms on a disk for each call, whatever its size.
    let mut world = World::new(link(50.0, 10.0), 5);
    for i in 0..300_u64 {
        let at = |s: f64| Duration::from_secs_f64(s);
        let large = Payload {
            up: 0,
            down: (1 + i % 8) * (64 << 10),
        };
        for (payload, thinks) in [(Payload::default(), 0.0), (large, 0.02)] {
            let call = world.estimator.begin(at(world.now), payload, Use::Exchange);
            world.now += 0.01 + thinks + payload.down as f64 * 8.0 / world.link.rate;
            let now = at(world.now);
            world.estimator.end(now, call, payload, Ended::Answered);
        }
    }
    let rate = world.figures().down.unwrap().value;
    assert!((rate / world.link.rate - 1.0).abs() < 0.25, "{rate}");
}

#[test]
fn what_fails_is_loss_and_what_hangs_is_silence() {
    let mut estimator = Estimator::default();
    let at = Duration::from_millis;
    for i in 0..100 {
        let call = estimator.begin(at(i * 100), Payload::default(), Use::Exchange);
        let how = if i % 10 == 5 {
            Ended::Failed
        } else {
            Ended::Answered
        };
        estimator.end(at(i * 100 + 10), call, Payload::default(), how);
    }
    let loss = estimator.figures(at(10_000)).loss.unwrap();
    assert!((loss.value - 0.1).abs() < 0.04, "{loss:?}");
    assert!(estimator.reach(at(10_000)).is_up(), "single failures");
    // A failed call says nothing about the round trip, however fast it failed.
    let trip = estimator.figures(at(10_000)).round_trip.unwrap();
    assert!((trip.value - 10.0).abs() < 0.1, "{trip:?}");
    let hangs = estimator.begin(at(10_000), Payload::default(), Use::Exchange);
    assert!(estimator.reach(at(12_000)).is_doubtful());
    assert!(estimator.reach(at(12_900)).is_up());
    assert!(!estimator.reach(at(14_000)).is_up());
    estimator.end(at(17_000), hangs, Payload::default(), Ended::Answered);
    assert!(estimator.reach(at(17_000)).is_up());
    // A flush may take its time.
    estimator.begin(at(20_000), Payload::default(), Use::Work);
    assert!(estimator.reach(at(29_000)).is_up());
}

#[test]
fn a_full_link_is_not_a_dead_one() {
    let at = Duration::from_secs_f64;
    let large = Payload {
        up: 0,
        down: 1 << 20,
    };
    for hears in [true, false] {
        let mut world = World::new(link(1.0, 20.0), 11);
        world.work(1, 10.0, 64 << 10);
        world.rest();
        // 1 MiB takes 8.4 s, and a question waits behind it.
        let now = world.now + 10.0;
        world.estimator.begin(at(now), large, Use::Exchange);
        let asks = now + 0.1;
        world
            .estimator
            .begin(at(asks), Payload::default(), Use::Exchange);
        for tenth in 0..80 {
            let t = now + f64::from(tenth) / 10.0;
            if hears {
                world.estimator.heard(at(t));
            }
            let reach = world.estimator.reach(at(t));
            assert!(reach.is_up(), "after {tenth} tenths: {reach:?}");
        }
        // Where bytes are seen coming, none for three seconds are a dead link; else the time that the
        // transfer takes counts.
        let dies = if hears { 11.5 } else { 14.0 };
        assert!(!world.estimator.reach(at(now + dies)).is_up());
        let trust = world.estimator.figures(at(now + 60.0)).down.unwrap();
        assert!((trust.value / MBIT - 1.0).abs() < 0.25, "{trust:?}");
        assert!(trust.age > at(50.0), "{trust:?}");
    }
}

#[test]
fn a_dead_link_keeps_its_last_rate_and_what_hung_says_nothing() {
    let at = Duration::from_secs_f64;
    let mut world = World::new(link(20.0, 20.0), 12);
    world.work(1, 10.0, 256 << 10);
    world.rest();
    let before = world.figures().down.unwrap();
    let piece = Payload {
        up: 0,
        down: 64 << 10,
    };
    let now = world.now + 1.0;
    let hung = world.estimator.begin(at(now), piece, Use::Exchange);
    let question = world
        .estimator
        .begin(at(now + 1.0), Payload::default(), Use::Exchange);
    for second in [5.0, 20.0, 40.0] {
        let reach = world.estimator.reach(at(now + second));
        assert!(!reach.is_up(), "{reach:?}");
        let shown = world.estimator.figures(at(now + second)).down.unwrap();
        assert_eq!(shown.value, before.value, "after {second} s");
        assert!(shown.age > at(second) && shown.confidence < before.confidence);
    }
    // TCP brings both in the end.
    let (end, answered) = (at(now + 41.0), Ended::Answered);
    world
        .estimator
        .end(end, question, Payload::default(), answered);
    world.estimator.end(end, hung, piece, answered);
    assert!(world.estimator.reach(end).is_up());
    let after = world.estimator.figures(at(now + 42.0));
    assert_eq!(after.down.unwrap().value, before.value);
    assert!(after.round_trip.unwrap().value < 40.0, "{after:?}");
}

#[test]
fn one_transfer_that_hangs_alone_is_a_doubt_and_no_death() {
    let at = Duration::from_secs_f64;
    let mut estimator = Estimator::default();
    let piece = Payload {
        up: 0,
        down: 64 << 10,
    };
    estimator.heard(at(0.0));
    estimator.begin(at(0.0), piece, Use::Exchange);
    assert!(estimator.reach(at(30.0)).is_doubtful());
    assert!(estimator.reach(at(30.0)).is_up());
    estimator.begin(at(30.0), Payload::default(), Use::Exchange);
    assert!(!estimator.reach(at(31.5)).is_up());
}

#[test]
fn a_large_transfer_that_does_not_move_is_a_bound_already() {
    let mut world = World::new(link(100.0, 10.0), 9);
    world.work(1, 10.0, 256 << 10);
    let fast = world.figures().up.unwrap().value;
    assert!(fast > 50.0 * MBIT, "{fast}");
    let at = |s: f64| Duration::from_secs_f64(s);
    let up = Payload {
        up: 1 << 20,
        down: 0,
    };
    world.estimator.begin(at(20.0), up, Use::Exchange);
    let slow = world.estimator.figures(at(28.0)).up.unwrap();
    assert!(slow.value < 1.3 * MBIT, "{slow:?}");
}

#[test]
fn confidence_grows_with_traffic_and_fades_with_age() {
    let mut world = World::new(link(10.0, 20.0), 1);
    world.work(1, 1.0, 64 << 10);
    let early = world.figures().round_trip.unwrap().confidence;
    world.work(1, 10.0, 64 << 10);
    let later = world.figures().round_trip.unwrap().confidence;
    assert!(later > early && later > 0.7, "{early} {later}");
    let old = world.estimator.figures(Duration::from_secs(11 + 120));
    let old = old.round_trip.unwrap();
    assert!(old.confidence < later / 3.0 && old.age > Duration::from_secs(110));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever calls come, figures are numbers in their ranges, and nothing is kept without bound.
    #[test]
    fn figures_stay_figures(calls in proptest::collection::vec(
        (0_u64..3_000_000, 0_u64..2_000_000, any::<bool>(), any::<bool>(), 0_u64..5_000), 1..300)
    ) {
        let mut estimator = Estimator::default();
        let mut now = 0;
        let mut open = Vec::new();
        for (bytes, wait, up, fails, keep) in calls {
            now += wait;
            let with = if up {
                Payload { up: bytes, down: 0 }
            } else {
                Payload { up: 0, down: bytes }
            };
            open.push((estimator.begin(Duration::from_micros(now), with, Use::Exchange), with));
            if keep % 3 != 0 {
                now += keep;
                let (call, with) = open.swap_remove(keep as usize % open.len());
                let how = if fails { Ended::Failed } else { Ended::Answered };
                estimator.end(Duration::from_micros(now), call, with, how);
                // Ending twice, or what never began, is nothing.
                estimator.end(Duration::from_micros(now), call, with, how);
            }
            let figures = estimator.figures(Duration::from_micros(now));
            for figure in [figures.up, figures.down, figures.round_trip, figures.jitter, figures.loss]
                .into_iter()
                .flatten()
            {
                prop_assert!(figure.value.is_finite() && figure.value >= 0.0, "{figures:?}");
                prop_assert!((0.0..=1.0).contains(&figure.confidence), "{figures:?}");
            }
            prop_assert!(figures.loss.is_none_or(|l| l.value <= 1.0));
        }
    }
}
