//! Range sets, overlays, write sets and leaves against naive models.
#![allow(clippy::unwrap_used, reason = "a failing helper fails the test")]

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use storage::{
    CrashStorage, FileStorage, Generation, LEAF_SIZE, Leaves, MemStorage, Overlay, Phase, RangeSet,
    ReadAt, ScratchDir, WriteAt, WriteSet,
};

const SPACE: u64 = 64;

fn model(set: &RangeSet) -> Vec<bool> {
    (0..SPACE).map(|i| set.contains(i)).collect()
}

fn ranges(bits: &[bool]) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for (i, _) in bits.iter().enumerate().filter(|(_, b)| **b) {
        let i = i as u64;
        match out.last_mut() {
            Some(last) if last.end == i => last.end = i + 1,
            _ => out.push(i..i + 1),
        }
    }
    out
}

fn any_range() -> impl Strategy<Value = Range<u64>> {
    (0..SPACE, 0..SPACE).prop_map(|(a, b)| a..b)
}

fn any_bits() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(any::<bool>(), SPACE as usize)
}

proptest! {
    #[test]
    fn range_set_inserts_and_removes_like_a_bit_vector(
        ops in prop::collection::vec((any::<bool>(), any_range()), 0..40)
    ) {
        let (mut set, mut bits) = (RangeSet::new(), vec![false; SPACE as usize]);
        for (insert, r) in ops {
            if insert { set.insert(r.clone()) } else { set.remove(r.clone()) }
            for i in r { bits[i as usize] = insert; }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), ranges(&bits));
            prop_assert_eq!(set.total(), bits.iter().filter(|b| **b).count() as u64);
            prop_assert_eq!(set.count(), ranges(&bits).len());
        }
        prop_assert_eq!(model(&set), bits);
    }

    #[test]
    fn range_set_answers_like_a_bit_vector(
        a in any_bits(), b in any_bits(), window in any_range(), unit in 0u64..9, len in 0..SPACE
    ) {
        let set: RangeSet = ranges(&a).into_iter().collect();
        let other: RangeSet = ranges(&b).into_iter().collect();
        let clipped = |want: bool| {
            let bits: Vec<bool> = (0..SPACE)
                .map(|i| window.contains(&i) && a[i as usize] == want).collect();
            ranges(&bits)
        };
        prop_assert_eq!(set.within(window.clone()).collect::<Vec<_>>(), clipped(true));
        prop_assert_eq!(set.gaps(window.clone()), clipped(false));
        prop_assert_eq!(set.intersects(window.clone()), !clipped(true).is_empty());
        prop_assert_eq!(set.contains_range(window.clone()), clipped(false).is_empty());
        let zip = |f: fn(bool, bool) -> bool| {
            let bits: Vec<bool> = a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect();
            ranges(&bits).into_iter().collect::<RangeSet>()
        };
        let mut union = set.clone();
        union.union_with(&other);
        prop_assert_eq!(union, zip(|a, b| a || b));
        let mut minus = set.clone();
        minus.subtract(&other);
        prop_assert_eq!(minus, zip(|a, b| a && !b));
        prop_assert_eq!(set.intersection(&other), zip(|a, b| a && b));
        let mut cut = set.clone();
        cut.truncate(len);
        prop_assert!((0..SPACE).all(|i| cut.contains(i) == (i < len && a[i as usize])));
        let aligned = set.aligned(unit);
        let u = unit.max(1);
        for i in 0..SPACE {
            let block = i / u * u..(i / u + 1) * u;
            prop_assert_eq!(aligned.contains(i), set.intersects(block));
        }
        let span = a.iter().position(|b| *b).map(|first| {
            first as u64..a.iter().rposition(|b| *b).unwrap() as u64 + 1
        });
        prop_assert_eq!(set.span(), span);
    }
}

#[test]
fn range_set_at_the_edges_of_u64() {
    let mut set = RangeSet::from(u64::MAX - 1..u64::MAX);
    set.insert(0..1);
    assert!(set.contains(u64::MAX - 1) && !set.contains(u64::MAX));
    assert_eq!(set.gaps(0..u64::MAX), vec![1..u64::MAX - 1]);
    assert_eq!(set.aligned(4096).span(), Some(0..u64::MAX));
    set.insert(0..u64::MAX);
    assert_eq!((set.count(), set.total()), (1, u64::MAX));
    set.truncate(7);
    assert_eq!(set, RangeSet::from(0..7));
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..120, prop::collection::vec(1u8..=255, 0..40)).prop_map(|(o, d)| Op::Write(o, d)),
        1 => (0u64..140).prop_map(Op::SetLen),
    ]
}

fn run(storage: &dyn WriteAt, op: &Op) {
    match op {
        Op::Write(at, data) => storage.write_all_at(*at, data).unwrap(),
        Op::SetLen(len) => storage.set_len(*len).unwrap(),
    }
}

/// The independent model: a plain vector.
fn run_naive(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(_, data) if data.is_empty() => {}
        Op::Write(at, data) => {
            let end = *at as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(data);
        }
        Op::SetLen(len) => bytes.resize(*len as usize, 0),
    }
}

fn content(storage: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0xEE; storage.len().unwrap() as usize];
    storage.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

proptest! {
    #[test]
    fn overlay_memory_and_file_read_like_a_vector(
        base in prop::collection::vec(any::<u8>(), 0..100),
        ops in prop::collection::vec(any_op(), 0..25),
        from in 0u64..150, want in 0usize..150, memory in 0u64..60,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = FileStorage::create_new(dir.path().join("f")).unwrap();
        file.write_all_at(0, &base).unwrap();
        let mem = MemStorage::from(base.clone());
        let untouched = MemStorage::from(base.clone());
        let overlay = Overlay::new(&untouched).unwrap();
        let scratch = Arc::new(ScratchDir::new(dir.path()));
        let spilled = Overlay::with_scratch(&untouched, scratch, memory).unwrap();
        let mut naive = base.clone();
        for op in &ops {
            run_naive(&mut naive, op);
            for storage in [&file as &dyn WriteAt, &mem, &overlay, &spilled] {
                run(storage, op);
                prop_assert_eq!(content(storage), naive.clone());
                let mut buf = vec![0xEE; want];
                let n = storage.read_at(from, &mut buf).unwrap();
                let tail = naive.get(from as usize..).unwrap_or_default();
                prop_assert_eq!(&buf[..n], &tail[..want.min(tail.len())]);
            }
            for overlay in [&overlay, &spilled] {
                // What is not dirty is the base's; extents are inside, disjoint, and say what is read.
                let dirty = overlay.dirty();
                for gap in dirty.gaps(0..naive.len() as u64) {
                    let r = gap.start as usize..gap.end as usize;
                    prop_assert_eq!(&naive[r.clone()], &base[r]);
                }
                prop_assert!(dirty.span().is_none_or(|s| s.end <= naive.len() as u64));
                let mut zero = dirty.clone();
                let mut last = 0;
                for (at, bytes) in overlay.extents() {
                    prop_assert!(at >= last && !bytes.is_empty());
                    last = at + bytes.len();
                    prop_assert!(dirty.contains_range(at..last));
                    prop_assert_eq!(&bytes.to_vec().unwrap()[..], &naive[at as usize..last as usize]);
                    zero.remove(at..last);
                }
                for r in zero.iter() {
                    prop_assert!(naive[r.start as usize..r.end as usize].iter().all(|b| *b == 0));
                }
            }
        }
        prop_assert_eq!(untouched.to_vec(), base.clone());
        // Its write set leads the base to what the overlay reads as.
        for overlay in [&overlay, &spilled] {
            let target = MemStorage::from(base.clone());
            let set = overlay.to_write_set("all");
            prop_assert_eq!(content(&set.preview(&untouched).unwrap()), naive.clone());
            overlay.reset();
            prop_assert_eq!(content(overlay), untouched.to_vec());
            prop_assert!(overlay.dirty().is_empty());
            // What was written later does not reach a write set made before.
            overlay.write_all_at(0, &[0xAB; 200]).unwrap();
            set.commit(&target).unwrap();
            prop_assert_eq!(target.to_vec(), naive.clone());
        }
    }

    #[test]
    fn commit_applies_phases_in_order_and_syncs_each(
        base in prop::collection::vec(any::<u8>(), 0..100),
        target_len in 0u64..140,
        phases in prop::collection::vec(
            prop::collection::vec((0u64..120, prop::collection::vec(any::<u8>(), 0..30)), 0..5), 0..5),
    ) {
        let set = WriteSet {
            base_len: base.len() as u64,
            target_len,
            phases: phases.into_iter().map(|writes| Phase {
                name: "p".into(),
                writes: writes.into_iter().map(|(at, d)| (at, d.into())).collect(),
            }).collect(),
        };
        let storage = CrashStorage::new(base.clone());
        if set.phases.iter().flat_map(|p| &p.writes).any(|(at, d)| at + d.len() > target_len) {
            prop_assert!(set.commit(&storage).is_err());
            prop_assert!(storage.history().is_empty());
            return Ok(());
        }
        let mut naive = base.clone();
        let mut ends = Vec::new();
        for phase in &set.phases {
            for (at, data) in &phase.writes {
                run_naive(&mut naive, &Op::Write(*at, data.to_vec().unwrap()));
            }
            ends.push(naive.clone());
        }
        naive.resize(target_len as usize, 0);
        set.commit(&storage).unwrap();
        prop_assert_eq!(storage.synced(), naive.clone());
        prop_assert!(storage.pending().is_empty());
        prop_assert_eq!(content(&set.preview(MemStorage::from(base.clone())).unwrap()), naive);
        // Each phase's end was synced before the next phase's first write: what a crash that
        // loses all it can leaves after the n-th sync is exactly the n-th end.
        let history = storage.history();
        let syncs = history.iter().enumerate()
            .filter(|(_, op)| **op == storage::CrashOp::Sync).map(|(i, _)| i);
        for (end, at) in ends.iter().zip(syncs) {
            let cut = CrashStorage::replay(base.clone(), &history[..=at]).unwrap().synced();
            let n = end.len();
            prop_assert_eq!(&cut[..n.min(cut.len())], &end[..]);
            prop_assert!(cut[n..].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn a_sparse_cut_and_growth_need_no_memory() {
    let overlay = Overlay::new(MemStorage::from(vec![7; 10])).unwrap();
    overlay.set_len(4).unwrap();
    overlay.set_len(1 << 50).unwrap();
    overlay.write_all_at((1 << 50) - 1, &[9]).unwrap();
    let mut buf = [1; 8];
    overlay.read_exact_at(0, &mut buf).unwrap();
    assert_eq!(buf, [7, 7, 7, 7, 0, 0, 0, 0]);
    assert_eq!(overlay.dirty(), RangeSet::from(4..1 << 50));
    let set = overlay.to_write_set("x");
    assert_eq!((set.payload(), set.target_len), (7, 1 << 50));
}

#[test]
fn a_write_that_overflows_is_an_error() {
    let mem = MemStorage::new();
    let overlay = Overlay::new(&mem).unwrap();
    assert!(mem.write_all_at(u64::MAX, &[1, 2]).is_err());
    assert!(overlay.write_all_at(u64::MAX, &[1, 2]).is_err());
    let end = mem.write_all_at(u64::MAX - 5, &[1]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::OutOfMemory);
    assert_eq!(mem.len().unwrap(), 0);
}

#[test]
fn commit_refuses_another_base() {
    let mem = MemStorage::from(vec![1; 9]);
    let set = WriteSet {
        base_len: 8,
        target_len: 8,
        phases: vec![Phase::new("p")],
    };
    assert_eq!(
        set.commit(&mem).unwrap_err().kind(),
        std::io::ErrorKind::InvalidInput
    );
}

fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        0usize..3000,
        (0usize..4, -2isize..3).prop_map(|(leaf, d)| (leaf * 65536).saturating_add_signed(d)),
        60_000usize..200_000,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rehash_of_what_changed_equals_a_full_hash(
        old_len in any_len(), new_len in any_len(),
        writes in prop::collection::vec((0.0f64..1.0, 1usize..70_000), 0..4),
    ) {
        let storage = MemStorage::from((0..old_len).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let mut leaves = Leaves::hash(&storage).unwrap();
        let old = leaves.clone();
        storage.set_len(new_len as u64).unwrap();
        let mut changed = RangeSet::new();
        for (at, n) in writes {
            let at = (at * new_len as f64) as usize;
            let n = n.min(new_len - at);
            storage.write_all_at(at as u64, &vec![0xAB; n]).unwrap();
            changed.insert(at as u64..(at + n) as u64);
        }
        leaves.rehash(&storage, &changed).unwrap();
        let full = Leaves::hash(&storage).unwrap();
        prop_assert_eq!(&leaves, &full);
        prop_assert_eq!(leaves.generation(), Generation::of(&storage).unwrap());
        // Naive: hash the chunks here, and compare which differ.
        let bytes = storage.to_vec();
        let naive: Vec<[u8; 32]> =
            bytes.chunks(LEAF_SIZE as usize).map(|c| *blake3::hash(c).as_bytes()).collect();
        prop_assert_eq!(full.digests(), &naive[..]);
        for i in 0..naive.len() as u64 {
            let differs = old.get(i) != full.get(i);
            prop_assert_eq!(full.differing(&old).contains(i * LEAF_SIZE), differs);
        }
        prop_assert_eq!(
            Leaves::from_parts(new_len as u64, naive.clone()).unwrap().generation(),
            full.generation());
        prop_assert!(Leaves::from_parts(new_len as u64 + LEAF_SIZE, naive).is_none());
    }
}

#[test]
fn the_root_is_as_documented() {
    let bytes = vec![5u8; 65_537];
    let mut text = b"pstsyncd generation 1\0".to_vec();
    text.extend_from_slice(&65_537u64.to_le_bytes());
    text.extend_from_slice(blake3::hash(&bytes[..65_536]).as_bytes());
    text.extend_from_slice(blake3::hash(&bytes[65_536..]).as_bytes());
    let generation = Generation::of(&MemStorage::from(bytes)).unwrap();
    assert_eq!(generation.root, *blake3::hash(&text).as_bytes());
    assert_eq!(generation.len, 65_537);
}
