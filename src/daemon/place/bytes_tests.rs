//! Whatever is read is what the share holds, or what was written since; whatever the copies are.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use storage::MemStorage;
use vfs::share::Attr;
use vfs::share::Share as _;
use vfs::share::dir::DirShare;

use super::*;

/// Counts what is read of a file.
struct Counted(Box<dyn ShareFile>, Arc<AtomicU64>);

impl ShareFile for Counted {
    fn stat(&self) -> io::Result<Attr> {
        self.0.stat()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read_at(offset, buf)?;
        self.1.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

struct World {
    temp: tempfile::TempDir,
    share: DirShare,
    read: Arc<AtomicU64>,
}

impl World {
    fn new(bytes: &[u8]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), bytes).unwrap();
        let share = DirShare::open(temp.path()).unwrap();
        Self {
            temp,
            share,
            read: Arc::default(),
        }
    }

    fn open(&self, sources: Sources) -> FarStorage {
        let file = self.share.open("f", true).unwrap();
        FarStorage::new(
            Box::new(Counted(file, Arc::clone(&self.read))),
            sources,
            Arc::new(|| true),
        )
        .unwrap()
    }

    fn there(&self) -> Vec<u8> {
        std::fs::read(self.temp.path().join("f")).unwrap()
    }

    /// Bytes read of the share since the last call.
    fn read(&self) -> u64 {
        self.read.swap(0, Ordering::SeqCst)
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i / 7) as u8 ^ (i / 4096) as u8 ^ seed)
        .collect()
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetLen(u64),
    Read(u64, usize),
    Sync,
    /// What was written is read again, and its digests are known.
    Settle,
    /// The digests are those of another session.
    Learn,
}

const LONGEST: u64 = 5 * LEAF_SIZE + 1000;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let at = prop_oneof![
        0..LONGEST,
        (0..6u64).prop_map(|n| n * LEAF_SIZE),
        (1..6u64).prop_map(|n| n * LEAF_SIZE - 3)
    ];
    let len = prop_oneof![1..600usize, Just(LEAF_SIZE as usize), 1..200_000usize];
    let op = prop_oneof![
        5 => (at.clone(), len.clone(), any::<u8>()).prop_map(|(a, l, s)| Op::Write(a, l, s)),
        1 => at.clone().prop_map(Op::SetLen),
        5 => (at, len).prop_map(|(a, l)| Op::Read(a, l)),
        1 => Just(Op::Sync),
        2 => Just(Op::Settle),
        1 => Just(Op::Learn),
    ];
    proptest::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn what_is_read_is_what_is_there(
        len in 0..LONGEST as usize,
        wrong in proptest::collection::vec(0..LONGEST as usize, 0..6),
        ops in ops(),
    ) {
        let first = pattern(len, 3);
        let world = World::new(&first);
        // A copy that is the same but for some bytes, and may be longer or shorter.
        let mut copy = first.clone();
        let mut written = RangeSet::new();
        for at in wrong {
            // Mostly it is known where.
            if at % 4 != 0 {
                written.insert(at as u64..at as u64 + 100);
            }
            copy.resize(copy.len().max(at.min(len + 10) + 1), 9);
            copy[at.min(len + 10)] ^= 0x55;
        }
        let fetched = std::fs::File::options().read(true).write(true).create_new(true)
            .open(world.temp.path().join("fetched")).unwrap();
        let far = world.open(Sources {
            local: Some(Arc::new(MemStorage::from(copy))),
            written,
            fetched: Some(FileStorage::from(fetched)),
        });
        let mut truth = first;
        let mut covered = RangeSet::new();
        for op in ops {
            match op {
                Op::Write(at, n, seed) => {
                    let bytes = pattern(n, seed);
                    far.write_all_at(at, &bytes).unwrap();
                    let end = at as usize + n;
                    truth.resize(truth.len().max(end), 0);
                    truth[at as usize..end].copy_from_slice(&bytes);
                    covered.insert(at..end as u64);
                }
                Op::SetLen(to) => {
                    far.set_len(to).unwrap();
                    truth.resize(to as usize, 0);
                }
                Op::Read(at, n) => {
                    let mut buf = vec![0xEE; n];
                    let got = far.read_at(at, &mut buf).unwrap();
                    let end = truth.len().min(at as usize + n);
                    let want = truth.get(at as usize..end).unwrap_or_default();
                    prop_assert_eq!(&buf[..got], want);
                }
                Op::Sync => {
                    far.sync().unwrap();
                    prop_assert_eq!(world.there(), truth.clone());
                }
                Op::Settle => {
                    far.sync().unwrap();
                    far.forget(&covered);
                    covered.clear();
                    let leaves = Leaves::hash(&far).unwrap();
                    prop_assert_eq!(&leaves, &Leaves::hash(&MemStorage::from(truth.clone())).unwrap());
                    far.set_digests(leaves);
                }
                Op::Learn => {
                    far.sync().unwrap();
                    far.set_digests(Leaves::hash(&MemStorage::from(truth.clone())).unwrap());
                }
            }
            prop_assert_eq!(far.len().unwrap(), truth.len() as u64);
        }
        far.sync().unwrap();
        prop_assert_eq!(world.there(), truth);
    }
}

#[test]
fn only_what_is_not_here_is_read() {
    let bytes = pattern(20 * LEAF_SIZE as usize, 1);
    let world = World::new(&bytes);
    let mut copy = bytes.clone();
    copy[3 * LEAF_SIZE as usize] ^= 1;
    let far = world.open(Sources {
        local: Some(Arc::new(MemStorage::from(copy))),
        written: RangeSet::new(),
        fetched: None,
    });
    let mut same = RangeSet::new();
    same.insert(0..bytes.len() as u64);
    same.remove(3 * LEAF_SIZE..3 * LEAF_SIZE + 1);
    let leaves = far.hash(&same, Vec::new(), &|_| ()).unwrap();
    assert_eq!(
        leaves,
        Leaves::hash(&MemStorage::from(bytes.clone())).unwrap()
    );
    assert_eq!(world.read(), 1);
    far.set_digests(leaves);
    let mut all = vec![0; bytes.len()];
    far.read_exact_at(0, &mut all).unwrap();
    assert_eq!(all, bytes);
    // The one that is not here, with what reading in order fetches ahead.
    assert!(world.read() <= 2 * LEAF_SIZE);
    // Of what was written, just that is read again.
    far.write_all_at(7 * LEAF_SIZE + 100, &[9; 512]).unwrap();
    far.sync().unwrap();
    let mut changed = RangeSet::new();
    changed.insert(7 * LEAF_SIZE + 100..7 * LEAF_SIZE + 612);
    far.forget(&changed);
    let mut leaf = vec![0; LEAF_SIZE as usize];
    far.read_exact_at(7 * LEAF_SIZE, &mut leaf).unwrap();
    assert_eq!(leaf[100..612], [9; 512]);
    assert_eq!(leaf[..100], bytes[7 * LEAF_SIZE as usize..][..100]);
    assert_eq!(world.read(), 512);
}

/// Somebody wrote the file behind the known digests: what is read is refused, not mixed.
#[test]
fn a_leaf_that_is_another_is_refused() {
    let bytes = pattern(4 * LEAF_SIZE as usize, 1);
    let world = World::new(&bytes);
    let far = world.open(Sources::default());
    far.set_digests(Leaves::hash(&MemStorage::from(bytes.clone())).unwrap());
    let mut other = bytes;
    other[2 * LEAF_SIZE as usize + 5] ^= 1;
    std::fs::write(world.temp.path().join("f"), other).unwrap();
    let mut buf = [0; 10];
    far.read_exact_at(LEAF_SIZE, &mut buf).unwrap();
    let error = far.read_exact_at(2 * LEAF_SIZE, &mut buf).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
}

#[test]
fn writes_are_joined_and_later_bytes_win() {
    let calls = joined(vec![(10, vec![1; 10]), (0, vec![2; 10]), (100, vec![3; 5])]);
    let mut whole = vec![2; 10];
    whole.extend([1; 10]);
    assert_eq!(calls, vec![(0, whole), (100, vec![3; 5])]);
    let calls = joined(vec![(0, vec![1; 8]), (4, vec![2; 8]), (4, vec![3; 1])]);
    assert_eq!(calls, vec![(0, vec![1, 1, 1, 1, 3, 2, 2, 2, 2, 2, 2, 2])]);
    // What comes after two that overlap.
    let calls = joined(vec![
        (0, vec![1]),
        (0, vec![2]),
        (9, vec![3]),
        (0, vec![4; 2]),
    ]);
    assert_eq!(calls, vec![(0, vec![4; 2]), (9, vec![3])]);
    let calls = joined(vec![(5, vec![7; PIECE + 3])]);
    assert_eq!(calls.len(), 2);
    assert_eq!((calls[1].0, calls[1].1.len()), (5 + PIECE as u64, 3));
}
