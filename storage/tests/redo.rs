//! The redo log: every cut of a commit is finished, every foreign edit is noticed and left alone.
#![allow(clippy::unwrap_used, reason = "a failing helper fails the test")]

use std::io;
use std::path::Path;

use proptest::prelude::*;
use storage::{
    CrashOp, CrashStorage, Fate, FaultOn, FaultStorage, Generation, LEAF_SIZE, Leaves, Loaded,
    MemStorage, Outcome, Phase, ReadAt, RedoError, RedoLog, WriteAt, WriteSet,
};

fn load(path: &Path) -> RedoLog {
    match RedoLog::load(path).unwrap() {
        Loaded::Complete(log) => log,
        other => panic!("{other:?}"),
    }
}

/// The log as a finder reads it back from the disk.
fn log_of(change: &WriteSet, base: &[u8]) -> RedoLog {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let made = RedoLog::create(&path, change, &MemStorage::from(base), b"who").unwrap();
    let read = load(&path);
    assert_eq!(made, read);
    read
}

fn target_of(change: &WriteSet, base: &[u8]) -> Vec<u8> {
    let mem = MemStorage::from(base);
    change.commit(&mem).unwrap();
    mem.into_vec()
}

#[derive(Debug, Clone)]
struct Case {
    base: Vec<u8>,
    change: WriteSet,
}

/// Bases of one short leaf mostly, of several leaves sometimes; writes that overlap each other
/// within and across phases, cross leaf and sector borders, rewrite what is there, or grow.
fn any_case() -> impl Strategy<Value = Case> {
    let small = (0usize..3000, 1usize..3000, 1usize..1200);
    let large = (60_000usize..140_000, 60_000usize..200_000, 1usize..70_000);
    let shape = prop_oneof![5 => small.boxed(), 1 => large.boxed()];
    (shape, any::<bool>()).prop_flat_map(|((base_len, target_len, max), same_len)| {
        let target_len = if same_len { base_len } else { target_len };
        let write = (0.0f64..1.0, 1..=max, 0u8..4, any::<u8>());
        let phases = prop::collection::vec(prop::collection::vec(write, 0..4), 0..5);
        phases.prop_map(move |phases| {
            let base: Vec<u8> = (0..base_len).map(|i| (i * 7 % 256) as u8).collect();
            let fill = |at: usize, n: usize, kind: u8, byte: u8| match kind {
                0 => vec![0; n],
                1 => (at..at + n).map(|i| (i * 7 % 256) as u8).collect(), // the base's own bytes
                _ => (0..n).map(|i| (i as u8).wrapping_mul(31) ^ byte).collect(),
            };
            let phases = phases.into_iter().enumerate().map(|(i, writes)| Phase {
                name: format!("phase {i}"),
                writes: writes
                    .into_iter()
                    .map(|(at, n, kind, byte)| {
                        let at = (at * target_len as f64) as usize;
                        let n = n.min(target_len - at);
                        (at as u64, fill(at, n, kind, byte).into())
                    })
                    .collect(),
            });
            let change = WriteSet {
                base_len: base_len as u64,
                target_len: target_len as u64,
                phases: phases.collect(),
            };
            Case { base, change }
        })
    })
}

fn assert_recovers(log: &RedoLog, image: Vec<u8>, target: &[u8]) -> CrashStorage {
    let was = image.clone();
    let storage = CrashStorage::new(image);
    let outcome = log.recover(&storage).unwrap();
    let wanted = if was == target {
        Outcome::AlreadyDone
    } else {
        Outcome::Finished
    };
    assert_eq!(outcome, wanted);
    assert!(
        storage.synced() == target,
        "durable bytes are not the target"
    );
    assert_eq!(storage.history().last(), Some(&CrashOp::Sync));
    assert_eq!(log.recover(&storage).unwrap(), Outcome::AlreadyDone);
    storage
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Cut after every operation of the commit; of what was not synced, nothing, everything or a
    /// random torn subset survives; then recovery itself is cut the same way and run again.
    #[test]
    fn every_cut_is_finished(case in any_case(), seed in any::<u64>()) {
        let Case { base, change } = case;
        let target = target_of(&change, &base);
        let log = log_of(&change, &base);
        prop_assert_eq!(log.base(), Generation::of(&MemStorage::from(&base[..])).unwrap());
        prop_assert_eq!(log.target(), Generation::of(&MemStorage::from(&target[..])).unwrap());

        let storage = CrashStorage::new(base.clone());
        change.commit(&storage).unwrap();
        let history = storage.history();
        for cut in 0..=history.len() {
            let at = CrashStorage::replay(base.clone(), &history[..cut]).unwrap();
            let seeds = (0..3).map(|i| at.survivor_seed(seed ^ (cut as u64) << 8 ^ i));
            for image in seeds.chain([at.synced(), at.live()]) {
                let recovered = assert_recovers(&log, image.clone(), &target).history();
                let again = seed as usize % (recovered.len() + 1);
                let twice = CrashStorage::replay(image, &recovered[..again]).unwrap();
                assert_recovers(&log, twice.survivor_seed(seed ^ 99), &target);
            }
        }
    }

    /// One byte of a touched leaf, anywhere on the way, set to a value that neither the base nor
    /// any write has there: noticed, and nothing is written.
    #[test]
    fn a_foreign_byte_is_noticed(case in any_case(), seed in any::<u64>(), place in 0.0f64..1.0) {
        let Case { base, change } = case;
        let log = log_of(&change, &base);
        let storage = CrashStorage::new(base.clone());
        change.commit(&storage).unwrap();
        let history = storage.history();
        let cut = seed as usize % (history.len() + 1);
        let mut image =
            CrashStorage::replay(base.clone(), &history[..cut]).unwrap().survivor_seed(seed);
        let touched = change.covered().aligned(LEAF_SIZE);
        let places: Vec<u64> = touched.within(0..image.len() as u64).flatten().collect();
        prop_assume!(!places.is_empty());
        let at = places[(place * places.len() as f64) as usize];
        let known: Vec<u8> = change.phases.iter().flat_map(|p| &p.writes)
            .filter_map(|(o, d)| at.checked_sub(*o).and_then(|i| d.bytes()?.get(i as usize).copied()))
            .chain([base.get(at as usize).copied().unwrap_or(0), image[at as usize]])
            .collect();
        image[at as usize] = (0..=255).find(|b| !known.contains(b)).unwrap();
        let storage = CrashStorage::new(image.clone());
        prop_assert_eq!(
            log.recover(&storage).unwrap(), Outcome::Foreign { leaf: at / LEAF_SIZE });
        prop_assert!(storage.history().is_empty());
        prop_assert_eq!(storage.live(), image);
    }
}

/// AMap invalid | blocks in free space and growth | header | maps: the shape of a PST commit.
fn pst_like() -> (Vec<u8>, WriteSet) {
    let base: Vec<u8> = (0..150_000u32).map(|i| (i / 3) as u8).collect();
    let phase = |name: &str, writes: &[(u64, usize, u8)]| Phase {
        name: name.into(),
        writes: writes
            .iter()
            .map(|(at, n, b)| (*at, vec![*b; *n].into()))
            .collect(),
    };
    let change = WriteSet {
        base_len: 150_000,
        target_len: 150_000 + 9000,
        phases: vec![
            phase("invalid", &[(248, 1, 0)]),
            phase(
                "blocks",
                &[(65_000, 1024, 1), (150_000, 8192, 2), (70_016, 64, 3)],
            ),
            phase("header", &[(0, 564, 4)]),
            phase("maps", &[(17_408, 512, 5), (248, 1, 2)]),
        ],
    };
    (base, change)
}

#[test]
fn every_subset_of_every_cut_of_a_pst_like_commit() {
    let (base, change) = pst_like();
    let (target, log) = (target_of(&change, &base), log_of(&change, &base));
    let storage = CrashStorage::new(base.clone());
    change.commit(&storage).unwrap();
    let history = storage.history();
    let mut states = 0;
    for cut in 0..=history.len() {
        let at = CrashStorage::replay(base.clone(), &history[..cut]).unwrap();
        for mask in 0..1u64 << at.pending().len() {
            assert_recovers(&log, at.survivor_mask(mask), &target);
            states += 1;
        }
    }
    assert!(states > 30, "{states}");
}

#[test]
fn every_subset_of_every_cut_of_a_shrink() {
    let base: Vec<u8> = (0..140_000u32).map(|i| (i % 253) as u8).collect();
    let change = WriteSet {
        base_len: 140_000,
        target_len: 66_000,
        phases: vec![
            Phase {
                name: "a".into(),
                writes: vec![(10, vec![1; 600].into()), (65_500, vec![2; 100].into())],
            },
            Phase {
                name: "b".into(),
                writes: vec![(0, vec![3; 20].into())],
            },
        ],
    };
    let (target, log) = (target_of(&change, &base), log_of(&change, &base));
    let storage = CrashStorage::new(base.clone());
    change.commit(&storage).unwrap();
    let history = storage.history();
    for cut in 0..=history.len() {
        let at = CrashStorage::replay(base.clone(), &history[..cut]).unwrap();
        for mask in 0..1u64 << at.pending().len() {
            assert_recovers(&log, at.survivor_mask(mask), &target);
        }
    }
    // A shrink that somebody else made before our phases were through is not ours.
    let mut early = base.clone();
    early.truncate(66_000);
    let early = MemStorage::from(early);
    assert!(matches!(
        log.recover(&early).unwrap(),
        Outcome::Foreign { .. }
    ));
    // Nor is a change in the part that is to be cut away: it would be lost.
    let mut edited = base;
    edited[139_000] ^= 1;
    let edited = MemStorage::from(edited);
    assert_eq!(log.recover(&edited).unwrap(), Outcome::Foreign { leaf: 2 });
}

#[test]
fn a_later_phase_without_an_earlier_one_is_not_ours() {
    let (base, change) = pst_like();
    let log = log_of(&change, &base);
    let image = MemStorage::from(base);
    // The header, and of the blocks only what lies in the header's leaf: that leaf alone could be
    // a cut in the header's phase, the next leaf only one before it.
    image.write_all_at(0, &[4; 564]).unwrap();
    image.write_all_at(65_000, &[1; 536]).unwrap();
    assert_eq!(log.recover(&image).unwrap(), Outcome::Foreign { leaf: 1 });
}

#[test]
fn another_writer_from_the_same_base_is_noticed_inside_our_ranges() {
    let (base, change) = pst_like();
    let log = log_of(&change, &base);
    let mut theirs = change.clone();
    for (_, bytes) in theirs.phases.iter_mut().flat_map(|p| &mut p.writes) {
        let changed: Vec<u8> = bytes.to_vec().unwrap().iter().map(|b| b ^ 0x40).collect();
        *bytes = changed.into();
    }
    let image = MemStorage::from(target_of(&theirs, &base));
    assert!(matches!(
        log.recover(&image).unwrap(),
        Outcome::Foreign { .. }
    ));
}

#[test]
fn a_foreign_length_is_noticed() {
    let (base, change) = pst_like();
    let log = log_of(&change, &base);
    for len in [0, 149_999, 159_001, 400_000] {
        let image = MemStorage::from(&base[..]);
        image.set_len(len).unwrap();
        assert_eq!(
            log.recover(&image).unwrap(),
            Outcome::Foreign {
                leaf: len / LEAF_SIZE
            }
        );
        assert_eq!(image.len().unwrap(), len);
    }
}

#[test]
fn a_recovery_that_fails_anywhere_can_be_repeated() {
    let (base, change) = pst_like();
    let (target, log) = (target_of(&change, &base), log_of(&change, &base));
    let half = CrashStorage::new(base.clone());
    change.commit(&half).unwrap();
    let history = half.history();
    for cut in [0, 3, history.len() - 2] {
        let mut failures = 0;
        for nth in 0.. {
            let storage = CrashStorage::replay(base.clone(), &history[..cut]).unwrap();
            let faulty = FaultStorage::new(storage, FaultOn::Any, nth, io::ErrorKind::TimedOut);
            let result = log.recover(&faulty);
            if !faulty.has_failed() {
                assert_eq!(result.unwrap(), Outcome::Finished);
                break;
            }
            assert_eq!(
                result.unwrap_err().kind(),
                io::ErrorKind::TimedOut,
                "operation {nth}"
            );
            failures += 1;
            assert_recovers(&log, faulty.into_inner().survivor_seed(nth), &target);
        }
        assert!(failures > 10, "{failures}");
    }
}

#[test]
fn a_fault_fails_once_or_for_good_and_never_reaches_the_storage() {
    let faulty = FaultStorage::new(
        CrashStorage::new(vec![]),
        FaultOn::Writes,
        1,
        io::ErrorKind::StorageFull,
    );
    faulty.write_all_at(0, b"a").unwrap();
    faulty.sync().unwrap();
    let error = faulty.write_all_at(1, b"b").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    faulty.write_all_at(1, b"c").unwrap();
    assert_eq!(
        (faulty.operations(), faulty.inner().live()),
        (3, b"ac".to_vec())
    );

    let dead = FaultStorage::new(
        MemStorage::new(),
        FaultOn::Any,
        0,
        io::ErrorKind::BrokenPipe,
    )
    .for_good();
    assert!(dead.len().is_err() && dead.sync().is_err() && dead.set_len(1).is_err());
}

#[test]
fn a_torn_write_keeps_the_chosen_sectors() {
    let storage = CrashStorage::new(vec![0; 2048]);
    storage.write_all_at(500, &[1; 1100]).unwrap(); // sectors 0 (12 bytes), 1, 2, 3 (64 bytes)
    let image = storage.survivor(|_, _| Fate::Torn(0b1001));
    let kept: Vec<usize> = (0..2048).filter(|i| image[*i] == 1).collect();
    assert_eq!(kept, (500..512).chain(1536..1600).collect::<Vec<_>>());
    storage.sync().unwrap();
    storage.set_len(10).unwrap();
    assert_eq!(storage.survivor_mask(0).len(), 2048);
    assert_eq!(storage.survivor_mask(1).len(), 10);
}

#[test]
fn create_refuses_what_is_not_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (base, change) = pst_like();
    let stale = Leaves::hash(&MemStorage::from(vec![1u8; 150_000])).unwrap();
    let mem = MemStorage::from(&base[..]);
    let result = RedoLog::create_with_leaves(&path, &change, &mem, &stale, b"");
    assert!(matches!(result, Err(RedoError::Base(_))), "{result:?}");
    let short = MemStorage::from(&base[1..]);
    assert!(matches!(
        RedoLog::create(&path, &change, &short, b""),
        Err(RedoError::Base(_))
    ));
    let result = RedoLog::create(&path, &change, &mem, &vec![0; storage::MAX_META + 1]);
    assert!(
        matches!(result, Err(RedoError::TooLarge { field: "meta", .. })),
        "{result:?}"
    );
    assert!(matches!(RedoLog::load(&path).unwrap(), Loaded::Absent));

    let leaves = Leaves::hash(&mem).unwrap();
    RedoLog::create_with_leaves(&path, &change, &mem, &leaves, b"m").unwrap();
    let again = RedoLog::create(&path, &change, &mem, b"");
    assert!(matches!(again, Err(RedoError::Exists(_))), "{again:?}");
    assert_eq!(load(&path).meta(), b"m");
}
