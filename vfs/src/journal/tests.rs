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
    let mut seen = Vec::new();
    let j = Journal::open(Arc::new(store.clone()), len, after, 0, |lsn, r, _| {
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
    bytes[64 + 16 + 30] ^= 1;
    store.put(seq, bytes);
    // The mark lies behind the damage, so only the caller's metadata can know.
    let answer = Journal::open(Arc::new(store.clone()), 4096, 0, 10, |_, _, _| Ok(true));
    assert!(matches!(answer.map(drop), Err(Error::Damaged { .. })));
    // And where a later segment's header knows, no metadata is needed.
    let store = MemStore::default();
    let (j, _) = open(&store, 256).unwrap();
    for i in 0..20 {
        let lsn = put(&j, i, b"payload");
        j.sync(lsn).unwrap();
    }
    drop(j);
    let seq = store.list().unwrap()[0];
    let mut bytes = store.bytes(seq).unwrap();
    bytes[64 + 16 + 30] ^= 1;
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
    let j = Journal::open(Arc::new(store.clone()), 4096, 0, 0, |_, _, _| Ok(true)).unwrap();
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
    let j = Journal::open(Arc::new(store.clone()), 1 << 16, 0, 0, |_, _, _| Ok(true)).unwrap();
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
        let j = Journal::open(Arc::new(store.clone()), 300, 0, 0, |lsn, _, sure| {
            if sure {
                through = lsn;
            }
            Ok(true)
        });
        (j.unwrap(), through)
    };
    let (j, first) = sure(&store);
    assert!(first >= flushed[0] && first >= *lsns.last().unwrap());
    j.mark().unwrap();
    drop(j);
    assert!(sure(&store).1 >= first);
}
