use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use storage::{MemStorage, ReadAt};

use super::record::MetaRecord;
use super::store::MemStore;
use super::*;

type Seen = Vec<(u64, u64, Vec<u8>)>;

fn open(store: &MemStore, len: u64) -> Result<(Journal, Seen)> {
    open_after(store, len, 0)
}

fn open_after(store: &MemStore, len: u64, after: u64) -> Result<(Journal, Seen)> {
    let start = Start {
        after,
        ..Start::default()
    };
    open_as(store, len, start)
}

fn open_as(store: &MemStore, len: u64, start: Start) -> Result<(Journal, Seen)> {
    let mut seen = Vec::new();
    let j = Journal::open(Arc::new(store.clone()), len, start, |lsn, r, _| {
        if let Record::Write { offset, data, .. } = r {
            seen.push((lsn, offset, data.to_vec()));
        }
        Ok(true)
    })?;
    Ok((j, seen))
}

fn put(j: &Journal, offset: u64, data: &[u8]) -> u64 {
    j.append(&Record::Write {
        file: 1,
        offset,
        time: 0,
        data,
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Cut the store at every byte: recovery yields a prefix, at least through what was flushed
    /// before the cut, and the journal goes on from there.
    #[test]
    fn any_cut_yields_a_prefix(
        writes in prop::collection::vec((0u64..1000, prop::collection::vec(any::<u8>(), 0..120)), 1..14),
        segment in 200u64..600,
    ) {
        let store = MemStore::default();
        let (j, _) = open(&store, segment).unwrap();
        let all: Seen = writes.iter().map(|(o, d)| (put(&j, *o, d), *o, d.clone())).collect();
        drop(j);
        let seqs = store.list().unwrap();
        for &seq in &seqs {
            let whole = store.bytes(seq).unwrap();
            for cut in 0..whole.len() {
                let cut_store = store.fork();
                let mut bytes = whole.clone();
                // What was not written yet: zeros.
                bytes[cut..].fill(0);
                cut_store.put(seq, bytes);
                let (j, seen) = open(&cut_store, segment).unwrap();
                prop_assert!(all.starts_with(&seen), "cut {cut} of segment {seq}");
                // Life goes on, and a second recovery sees the same plus the new record.
                let lsn = put(&j, 7, b"new");
                prop_assert_eq!(lsn, seen.len() as u64 + 1);
                j.sync(lsn).unwrap();
                drop(j);
                let (_, again) = open(&cut_store, segment).unwrap();
                prop_assert_eq!(&again[..seen.len()], &seen[..]);
                prop_assert_eq!(&again[seen.len()].2[..], b"new");
                prop_assert_eq!(again.len(), seen.len() + 1);
            }
        }
    }

    #[test]
    fn records_round_trip_and_noise_does_not_panic(
        data in prop::collection::vec(any::<u8>(), 0..200), file: u64, offset in 0u64..1 << 60, name: String,
    ) {
        let _ = Record::decode(&data);
        let mut out = Vec::new();
        let r = Record::Write { file, offset, time: -3, data: &data };
        r.encode(&mut out);
        prop_assert_eq!(Record::decode(&out).unwrap(), r);
        out.clear();
        let r = Record::Meta(MetaRecord::Placed { id: file, share: Some((offset, name)), attr: None });
        r.encode(&mut out);
        prop_assert_eq!(Record::decode(&out).unwrap(), r);
        out.push(0);
        prop_assert!(Record::decode(&out).is_err());
    }
}

#[test]
fn damage_before_a_flush_is_refused() {
    let store = MemStore::default();
    let (j, _) = open(&store, 4096).unwrap();
    for i in 0..10 {
        put(&j, i, b"payload");
    }
    j.sync(10).unwrap();
    j.append(&Record::Synced { through: 10 }).unwrap();
    j.sync(11).unwrap();
    drop(j);
    let seq = store.list().unwrap()[0];
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 24 + 30] ^= 1;
    store.put(seq, bytes);
    // The caller's metadata knows,
    let start = Start {
        known: 10,
        ..Start::default()
    };
    let answer = open_as(&store, 4096, start);
    assert!(matches!(answer.map(drop), Err(Error::Damaged { .. })));
    // but the mark behind the damage is enough,
    assert!(matches!(
        open(&store, 4096).map(drop),
        Err(Error::Damaged { .. })
    ));
    // and so is a later segment's header.
    let store = MemStore::default();
    let (j, _) = open(&store, 256).unwrap();
    for i in 0..20 {
        let lsn = put(&j, i, b"payload");
        j.sync(lsn).unwrap();
    }
    drop(j);
    let seq = store.list().unwrap()[0];
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 24 + 30] ^= 1;
    store.put(seq, bytes);
    assert!(matches!(
        open(&store, 256).map(drop),
        Err(Error::Damaged { .. })
    ));
}

#[test]
fn released_segments_go_and_numbers_continue() {
    let store = MemStore::default();
    let (j, _) = open(&store, 256).unwrap();
    for i in 0..20 {
        put(&j, i, &[i as u8; 50]);
    }
    j.sync(20).unwrap();
    let before = store.list().unwrap().len();
    j.release(10).unwrap();
    assert!(store.list().unwrap().len() < before);
    drop(j);
    let (j, seen) = open_after(&store, 256, 10).unwrap();
    assert!(seen[0].0 == 11 && seen.last().unwrap().0 == 20);
    j.release(20).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(put(&j, 0, b"x"), 21);
}

/// A store whose flushes can be made to fail, and counts them.
#[derive(Clone, Default)]
struct Flaky {
    inner: MemStore,
    fail: Arc<AtomicBool>,
    syncs: Arc<AtomicU64>,
}

struct FlakyFile(Arc<dyn WriteAt>, Flaky);

impl ReadAt for FlakyFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }
}

impl WriteAt for FlakyFile {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        if self.1.fail.load(Ordering::SeqCst) {
            Err(io::Error::other("disk"))
        } else {
            Ok(())
        }
    }
}

impl JournalStore for Flaky {
    fn list(&self) -> io::Result<Vec<u64>> {
        self.inner.list()
    }
    fn create(&self, seq: u64, len: u64) -> io::Result<Arc<dyn WriteAt>> {
        Ok(Arc::new(FlakyFile(
            self.inner.create(seq, len)?,
            self.clone(),
        )))
    }
    fn open(&self, seq: u64) -> io::Result<Arc<dyn WriteAt>> {
        self.inner.open(seq)
    }
    fn remove(&self, seq: u64) -> io::Result<()> {
        self.inner.remove(seq)
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
    fn prepare(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_first_failed_flush_poisons() {
    let store = Flaky::default();
    let j = Journal::open(
        Arc::new(store.clone()),
        4096,
        Start::default(),
        |_, _, _| Ok(true),
    )
    .unwrap();
    let lsn = put(&j, 0, b"a");
    store.fail.store(true, Ordering::SeqCst);
    assert!(matches!(j.sync(lsn), Err(Error::Poisoned(_))));
    store.fail.store(false, Ordering::SeqCst);
    // The disk is well again, but what was lost cannot be known.
    assert!(matches!(j.sync(lsn), Err(Error::Poisoned(_))));
    let r = Record::Write {
        file: 1,
        offset: 0,
        time: 0,
        data: b"b",
    };
    assert!(matches!(j.append(&r), Err(Error::Poisoned(_))));
}

#[test]
fn waiters_share_a_flush_and_direct_files_go_first() {
    let store = Flaky::default();
    let j = Journal::open(
        Arc::new(store.clone()),
        1 << 16,
        Start::default(),
        |_, _, _| Ok(true),
    )
    .unwrap();
    let direct = Flaky::default();
    let file: Arc<dyn WriteAt> = Arc::new(FlakyFile(Arc::new(MemStorage::new()), direct.clone()));
    let r = MetaRecord::Direct {
        file: 1,
        offset: 0,
        len: 1,
        crc: 0,
        time: 0,
    };
    let lsn = j.append_direct(&Record::Meta(r), 1, &file).unwrap();
    let last = put(&j, 0, b"a");
    j.sync(lsn).unwrap();
    assert_eq!(direct.syncs.load(Ordering::SeqCst), 1);
    assert_eq!(j.durable(), last);
    let before = store.syncs.load(Ordering::SeqCst);
    j.sync(last).unwrap();
    assert_eq!(store.syncs.load(Ordering::SeqCst), before);
}

/// The head of a later segment may be all that says what was flushed. Where a gap takes that
/// segment, the journal says it again before anything relies on it.
#[test]
fn what_a_lost_segment_said_is_said_again() {
    let store = MemStore::default();
    let (j, _) = open(&store, 300).unwrap();
    let lsns: Vec<u64> = (0..6).map(|i| put(&j, i, &[i as u8; 60])).collect();
    drop(j);
    let (j, _) = open(&store, 300).unwrap();
    let flushed: Vec<u64> = (0..3).map(|i| put(&j, i, &[7; 60])).collect();
    j.sync(flushed[0]).unwrap();
    let seqs = store.list().unwrap();
    // One more segment, whose head says what is flushed; then the record before it is lost.
    let last = *seqs.last().unwrap();
    let begun = (0..9).map(|i| put(&j, i, &[8; 60])).last().unwrap();
    assert!(begun > flushed[2] && store.list().unwrap().len() > seqs.len());
    drop(j);
    let whole = store.bytes(last).unwrap();
    let at = whole
        .windows(60)
        .rposition(|w| w == [8; 60] || w == [7; 60]);
    let mut bytes = whole.clone();
    bytes[at.unwrap()] ^= 1;
    store.put(last, bytes);

    let sure = |store: &MemStore| {
        let mut through = 0;
        let j = Journal::open(
            Arc::new(store.clone()),
            300,
            Start::default(),
            |lsn, _, sure| {
                if sure {
                    through = lsn;
                }
                Ok(true)
            },
        );
        (j.unwrap(), through)
    };
    let (j, first) = sure(&store);
    assert!(first >= flushed[0] && first >= *lsns.last().unwrap());
    j.mark().unwrap();
    drop(j);
    assert!(sure(&store).1 >= first);
}

/// A journal of ten records in one segment, of which the first `flushed` were flushed at once.
fn ten(flushed: u64, more: u64) -> (MemStore, u64) {
    let store = MemStore::default();
    let (j, _) = open(&store, 1 << 16).unwrap();
    for i in 0..flushed {
        put(&j, i, &[i as u8; 40]);
    }
    j.sync(flushed).unwrap();
    for i in 0..more {
        put(&j, flushed + i, &[9; 40]);
    }
    drop(j);
    let seq = store.list().unwrap()[0];
    (store, seq)
}

/// Bytes of one record of `ten` in its segment: header of 24, kind, three numbers, 40 bytes.
const ONE: usize = (24 + 25 + 40usize).next_multiple_of(8);

fn is_damaged<T>(answer: Result<T>) -> bool {
    matches!(answer.map(drop), Err(Error::Damaged { .. }))
}

/// Each bit of each flushed record, and of the header: whatever flips is seen, as the next record says
/// that they had been flushed. Nothing but the tail is ever dropped.
#[test]
fn a_flipped_bit_in_what_was_flushed_is_never_a_torn_tail() {
    let (store, seq) = ten(6, 1);
    let whole = store.bytes(seq).unwrap();
    let (_, all) = open(&store, 1 << 16).unwrap();
    assert_eq!(all.len(), 7);
    let mut refused = 0;
    for bit in 0..(64 + 6 * ONE) * 8 {
        let copy = store.fork();
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        copy.put(seq, bytes.clone());
        match open(&copy, 1 << 16) {
            // Padding, which nobody reads.
            Ok((_, seen)) => assert_eq!(seen, all, "bit {bit}"),
            Err(Error::Damaged { .. }) => refused += 1,
            // A version that is not known yet, and its checksum.
            Err(e) => panic!("bit {bit}: {e}"),
        }
        // What is refused stays as it is, for whoever can read it.
        if bit % 7 == 0 {
            assert_eq!(copy.bytes(seq).unwrap(), bytes);
        }
    }
    assert!(refused > 6 * 80 * 8, "{refused}");
}

/// Nothing was written after the flush, and the system was not down since: what lies behind says enough.
/// After a power cut it does not, and a mark at rest does.
#[test]
fn the_last_group_is_known_by_what_lies_behind_it() {
    let (store, seq) = ten(6, 0);
    let hurt = |store: &MemStore| {
        let mut bytes = store.bytes(seq).unwrap();
        bytes[64 + 2 * ONE + 50] ^= 1;
        store.put(seq, bytes);
    };
    let copy = store.fork();
    hurt(&copy);
    let unbroken = Start {
        unbroken: true,
        ..Start::default()
    };
    assert!(is_damaged(open_as(&copy, 1 << 16, unbroken)));
    let (j, seen) = open(&copy, 1 << 16).unwrap();
    assert_eq!(seen.len(), 2);
    drop(j);
    // The torn end was ended: it does not pass for damage from now on.
    let (_, seen) = open_as(&copy, 1 << 16, unbroken).unwrap();
    assert_eq!(seen.len(), 2);

    let copy = store.fork();
    let (j, _) = open(&copy, 1 << 16).unwrap();
    let before = j.last();
    j.mark_at_rest().unwrap();
    let marked = j.last();
    j.mark_at_rest().unwrap();
    assert_eq!(
        (marked, j.last()),
        (before + 1, marked),
        "one mark is enough"
    );
    drop(j);
    hurt(&copy);
    assert!(is_damaged(open(&copy, 1 << 16)));
}

/// A record that nobody needs any more may be bad.
#[test]
fn damage_in_what_was_released_is_none() {
    let (store, seq) = ten(6, 2);
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 2 * ONE + 60] ^= 4;
    store.put(seq, bytes);
    for (after, whole) in [(2, false), (3, true), (5, true), (30, true)] {
        let start = Start {
            after,
            known: after,
            unbroken: true,
            ..Start::default()
        };
        let answer = open_as(&store.fork(), 1 << 16, start);
        if !whole {
            assert!(is_damaged(answer));
            continue;
        }
        let lsns: Vec<u64> = answer.unwrap().1.iter().map(|s| s.0).collect();
        assert_eq!(lsns, (after + 1..9).collect::<Vec<_>>());
    }
}

/// What a power cut leaves of records that were never flushed is any part of them: no damage.
#[test]
fn pieces_of_an_unflushed_tail_are_dropped() {
    let (store, seq) = ten(4, 5);
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 5 * ONE..64 + 6 * ONE].fill(0);
    store.put(seq, bytes);
    let (j, seen) = open(&store, 1 << 16).unwrap();
    assert_eq!(seen.len(), 5);
    let lsn = put(&j, 0, b"new");
    j.sync(lsn).unwrap();
    drop(j);
    let (_, seen) = open(&store, 1 << 16).unwrap();
    assert_eq!((seen.len(), &seen[5].2[..]), (6, &b"new"[..]));
}

#[test]
fn what_can_be_read_of_a_damaged_journal_is_read() {
    let (store, seq) = ten(6, 2);
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 2 * ONE + 60] ^= 4;
    bytes[64 + 4 * ONE] = 0xff;
    bytes[64 + 4 * ONE + 2] = 0xff;
    store.put(seq, bytes.clone());
    assert!(is_damaged(open(&store, 1 << 16)));
    let salvage = Start {
        salvage: true,
        ..Start::default()
    };
    let (j, seen) = open_as(&store, 1 << 16, salvage).unwrap();
    let lsns: Vec<u64> = seen.iter().map(|s| s.0).collect();
    assert_eq!(lsns, [1, 2, 4, 6, 7, 8]);
    let lost: Vec<_> = j
        .lost()
        .iter()
        .map(|l| (l.first, l.last, l.write))
        .collect();
    assert_eq!(lost, [(3, Some(3), Some((1, 2, 40))), (5, Some(5), None)]);
    assert_eq!(store.bytes(seq).unwrap(), bytes, "nothing was written");
    drop(j);
    // The head of the segment: one bit is mended, for reading.
    bytes[17] ^= 8;
    store.put(seq, bytes);
    assert!(is_damaged(open(&store, 1 << 16)));
    let (_, seen) = open_as(&store, 1 << 16, salvage).unwrap();
    assert_eq!(seen.len(), 6);
}

/// A program may write the journal's own bytes to the drive: they are not taken for records.
#[test]
fn records_within_a_payload_are_none() {
    let store = MemStore::default();
    let (j, _) = open(&store, 1 << 16).unwrap();
    put(&j, 0, b"one");
    let seq = store.list().unwrap()[0];
    let copy = store.bytes(seq).unwrap()[64..1024].to_vec();
    for shift in 0..8 {
        put(&j, 1, &copy[..512 + shift]);
        put(&j, 2, &copy[shift..512]);
    }
    let last = j.last();
    drop(j);
    let mut bytes = store.bytes(seq).unwrap();
    // The second record is torn, so that what lies in the others is looked at.
    bytes[64 + 56 + 30] ^= 1;
    store.put(seq, bytes);
    let salvage = Start {
        salvage: true,
        unbroken: true,
        ..Start::default()
    };
    let (j, seen) = open_as(&store, 1 << 16, salvage).unwrap();
    let lsns: Vec<u64> = seen.iter().map(|s| s.0).collect();
    let expected: Vec<u64> = (1..=last).filter(|l| *l != 2).collect();
    assert_eq!(lsns, expected);
    assert_eq!(j.lost().len(), 1);
}

/// A segment of version 2, made by another program after the description of that version: it is read,
/// the journal goes on behind it, and what is torn there is a torn tail as ever.
#[test]
fn segments_of_version_2_are_read() {
    let store = MemStore::default();
    let old = include_bytes!("../../tests/data/journal-v2.seg");
    store.put(7, old.to_vec());
    let (j, seen) = open(&store, 4096).unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[1], (2, 100, b"second".to_vec()));
    let lsn = put(&j, 5, b"new");
    j.sync(lsn).unwrap();
    drop(j);
    let (_, again) = open(&store, 4096).unwrap();
    assert_eq!(again[..3], seen[..]);
    assert_eq!(again[3], (5, 5, b"new".to_vec()), "the fourth was a mark");
    // Damage before what its mark speaks of.
    let mut bytes = old.to_vec();
    bytes[64 + 20] ^= 1;
    let torn = MemStore::default();
    torn.put(7, bytes);
    let (_, seen) = open(&torn, 4096).unwrap();
    assert!(seen.is_empty());
}
