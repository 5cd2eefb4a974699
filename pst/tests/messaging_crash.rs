//! Every cut of every commit, and every failing operation, leaves the mail before or after it.
//!
//! A scripted sequence of edits as programs make them (add, update, move and delete of messages,
//! folders and attachments, named properties, growth over several spans with their map pages) is
//! committed to a storage that loses what was not synced. At each operation of each commit these
//! subsets of the unsynced operations survive: all, none, each single one lost, each single one alone
//! kept, random halves, and torn writes. Each image must open, dump exactly as the state before or
//! after, pass the check, and after the next edit be free of any finding, leaks included.
//!
//! `PSTSYNCD_CRASH_ALL=1` does all of that; without, every fifth of the images in which a single
//! operation differs is looked at, another fifth at each cut, and every third image is edited.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use pst::check::{Severity, check, check_ltp};
use pst::ltp::{Guid, PropName, PropValue};
use pst::messaging::{Transaction, tags};
use pst::ndb::{CryptMethod, Format};
use pst::{Nid, Pst, create_empty_as};
use storage::{CrashStorage, Fate, FaultOn, FaultStorage, MemStorage, ReadAt, WriteSet};
use support::mail::{SEED, attachment, embedded, folder, lines, message, recipient};
use support::{FORMATS, Rng};

type Names = BTreeMap<&'static str, Nid>;
type Step = fn(&mut Transaction, &mut Names) -> pst::Result<()>;

fn data(n: usize, seed: u64) -> Vec<u8> {
    Rng(seed | 1).bytes(n)
}

/// The edits, in order. Each is a transaction of its own.
const SCRIPT: [(&str, Step); 11] = [
    ("folders and messages", |tx, names| {
        let top = tx.ipm_subtree()?;
        let inbox = tx.create_folder(top, None, &folder("Inbox"))?;
        let sub = tx.create_folder(inbox, None, &folder("Projects"))?;
        names.extend([("inbox", inbox), ("sub", sub)]);
        for (name, n) in [("one", 1), ("two", 2), ("three", 3)] {
            let mut m = message(n, 300 * n as usize, n == 2);
            m.recipients.push(recipient("bob"));
            names.insert(name, tx.add_message(inbox, None, &m, false)?);
        }
        Ok(())
    }),
    ("attachments and an embedded message", |tx, names| {
        let mut m = message(4, 5_000, false);
        m.attachments = vec![
            attachment("small.bin", data(3_000, 4)),
            attachment("large.bin", data(90_000, 5)),
            embedded(message(5, 4_000, true)),
        ];
        let four = tx.add_message(names["sub"], None, &m, false)?;
        names.insert("four", four);
        Ok(())
    }),
    ("a new named property", |tx, names| {
        let id = tx.named_id(&PropName::number(Guid([7; 16]), 0x8123))?;
        let mut m = tx.base().message(names["one"])?;
        m.props.insert(PropValue::i32(id, 77));
        tx.update_message(names["one"], &m)
    }),
    ("an attachment more, one less", |tx, names| {
        let mut m = tx.base().message(names["four"])?;
        m.attachments.remove(0);
        m.attachments.push(attachment("other.bin", data(20_000, 6)));
        m.props.insert(PropValue::string(tags::SUBJECT, "changed"));
        tx.update_message(names["four"], &m)
    }),
    ("a move", |tx, names| {
        tx.move_message(names["two"], names["sub"])
    }),
    ("growth over spans, with a PMap page", |tx, names| {
        let mut m = message(6, 100, true);
        m.attachments.push(attachment("huge.bin", data(700_000, 8)));
        let six = tx.add_message(names["inbox"], None, &m, false)?;
        names.insert("six", six);
        Ok(())
    }),
    ("a delete", |tx, names| tx.delete_message(names["four"])),
    ("a hidden message, a renamed folder", |tx, names| {
        tx.add_message(names["inbox"], None, &message(7, 900, true), true)?;
        tx.update_folder(names["sub"], &folder("Old projects"))
    }),
    ("a folder moves", |tx, names| {
        let top = tx.ipm_subtree()?;
        tx.move_folder(names["sub"], top)
    }),
    ("freed space is used again", |tx, names| {
        let mut m = message(8, 2_000, false);
        m.attachments.push(attachment("again.bin", data(60_000, 9)));
        tx.add_message(names["sub"], None, &m, false).map(|_| ())
    }),
    ("a folder with all in it is deleted", |tx, names| {
        tx.delete_folder(names["inbox"])
    }),
];

/// An empty store that fills seven spans, so that the script grows past the eighth.
fn start(format: &'static Format) -> Vec<u8> {
    let crypt = CryptMethod::Permute;
    let file = Arc::new(MemStorage::from(
        create_empty_as(&SEED, format, crypt).unwrap(),
    ));
    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
    let top = tx.ipm_subtree().unwrap();
    let mut m = message(0, 10, true);
    m.attachments.push(attachment("fill", data(1_650_000, 3)));
    tx.add_message(top, None, &m, false).unwrap();
    tx.finish().unwrap().commit(&*file).unwrap();
    file.to_vec()
}

fn open(image: &[u8]) -> Pst {
    Pst::open(Arc::new(MemStorage::from(image))).unwrap()
}

/// All that people would see, and the raw nodes, as one digest.
fn logical(pst: &Pst) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for line in lines(pst) {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize()
}

fn no_errors(pst: &Pst) {
    let mut findings = check(pst.ndb());
    findings.extend(check_ltp(pst.ndb()));
    findings.retain(|f| f.severity == Severity::Error);
    assert!(findings.is_empty(), "{findings:#?}");
}

/// An edit of the image leaves a file without any finding. (The AMaps are recomputed in it where
/// the image has them invalid.)
fn next_edit_cleans(image: &[u8]) {
    let file = Arc::new(MemStorage::from(image));
    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
    let top = tx.ipm_subtree().unwrap();
    tx.add_message(top, None, &message(99, 500, true), false)
        .unwrap();
    tx.finish().unwrap().commit(&*file).unwrap();
    let pst = Pst::open(file).unwrap();
    let findings = check(pst.ndb());
    assert!(findings.is_empty(), "{findings:#?}");
    let findings = check_ltp(pst.ndb());
    assert!(findings.is_empty(), "{findings:#?}");
}

#[derive(Default)]
struct Seen {
    all: bool,
    images: usize,
    before: usize,
    after: usize,
    known: BTreeSet<[u8; 32]>,
}

impl Seen {
    /// Looks at one image that a crash may leave.
    fn look(&mut self, image: &[u8], before: &blake3::Hash, after: &blake3::Hash, what: &str) {
        if !self.known.insert(*blake3::hash(image).as_bytes()) {
            return;
        }
        self.images += 1;
        let pst = open(image);
        let now = logical(&pst);
        assert!(
            now == *before || now == *after,
            "{what}: neither the state before nor the one after"
        );
        if now == *before {
            self.before += 1;
        } else {
            self.after += 1;
        }
        no_errors(&pst);
        if self.all || self.images.is_multiple_of(3) {
            next_edit_cleans(image);
        }
    }
}

/// Commits `set` to `image`, with every cut.
fn all_cuts(image: &[u8], set: &WriteSet, seen: &mut Seen, what: &str) {
    let all = seen.all;
    let whole = CrashStorage::new(image.to_vec());
    set.commit(&whole).unwrap();
    let history = whole.history();
    let (before, after) = (logical(&open(image)), logical(&open(&whole.live())));
    assert_ne!(before, after, "{what}");
    let (old, new) = (seen.before, seen.after);
    let mut rng = Rng(image.len() as u64 | 1);
    for cut in 0..=history.len() {
        let storage = CrashStorage::replay(image.to_vec(), &history[..cut]).unwrap();
        let n = storage.pending().len();
        seen.look(&storage.synced(), &before, &after, what);
        seen.look(&storage.live(), &before, &after, what);
        for i in (0..n).filter(|i| all || (i + cut) % 5 == 0) {
            let pick = |at: usize, fate: Fate, others: Fate| {
                storage.survivor(|j, _| if j == at { fate } else { others })
            };
            let torn = Fate::Torn(rng.next());
            for image in [
                pick(i, Fate::Lost, Fate::Kept),
                pick(i, Fate::Kept, Fate::Lost),
                pick(i, torn, Fate::Kept),
            ] {
                seen.look(&image, &before, &after, what);
            }
        }
        for _ in 0..if n > 1 { 2 } else { 0 } {
            let mask: Vec<bool> = (0..n).map(|_| rng.below(2) == 0).collect();
            let half = storage.survivor(|j, _| if mask[j] { Fate::Kept } else { Fate::Lost });
            seen.look(&half, &before, &after, what);
        }
    }
    assert!(seen.before > old && seen.after > new, "{what}: one-sided");
}

/// Plays the script; hands each step's image and write set to `f`, which gives the next image.
fn play(format: &'static Format, mut f: impl FnMut(usize, &str, &[u8], WriteSet) -> Vec<u8>) {
    let mut image = start(format);
    let mut names = Names::new();
    for (i, (what, step)) in SCRIPT.iter().enumerate() {
        let mut tx = Transaction::begin(Arc::new(MemStorage::from(&image[..]))).unwrap();
        step(&mut tx, &mut names).unwrap();
        image = f(i, what, &image, tx.finish().unwrap());
    }
}

fn committed(image: &[u8], set: &WriteSet, phases: usize) -> Vec<u8> {
    let file = MemStorage::from(image);
    let mut part = set.clone();
    part.phases.truncate(phases);
    part.commit(&file).unwrap();
    file.into_vec()
}

#[test]
fn every_cut_of_every_commit_is_before_or_after() {
    for format in FORMATS {
        let mut seen = Seen {
            all: std::env::var("PSTSYNCD_CRASH_ALL").is_ok(),
            ..Seen::default()
        };
        play(format, |i, what, image, set| {
            all_cuts(image, &set, &mut seen, what);
            // Some edits go on from a file whose maps a crash left invalid: here from one whose
            // new header is durable, and whose AMaps are still those before.
            let phases = if i % 3 == 1 { 3 } else { set.phases.len() };
            let next = committed(image, &set, phases);
            let ndb = pst::ndb::Ndb::open(Arc::new(MemStorage::from(&next[..]))).unwrap();
            assert_eq!(ndb.header().maps_valid(), phases > 3);
            next
        });
        println!(
            "{}: {} edits, {} images: {} as before, {} as after",
            format.name,
            SCRIPT.len(),
            seen.images,
            seen.before,
            seen.after
        );
        assert!(seen.images > 300, "{}", seen.images);
    }
}

#[test]
fn every_failing_operation_leaves_before_or_after() {
    let mut cases = 0;
    for format in FORMATS {
        play(format, |_, what, image, set| {
            let done = committed(image, &set, set.phases.len());
            let (before, after) = (logical(&open(image)), logical(&open(&done)));
            for on in [FaultOn::Writes, FaultOn::Syncs, FaultOn::Any] {
                for for_good in [false, true] {
                    for nth in 0.. {
                        let mut target = FaultStorage::new(
                            MemStorage::from(image),
                            on,
                            nth,
                            io::ErrorKind::StorageFull,
                        );
                        if for_good {
                            target = target.for_good();
                        }
                        let result = set.commit(&target);
                        if !target.has_failed() {
                            result.unwrap();
                            break;
                        }
                        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
                        cases += 1;
                        let left = target.into_inner().to_vec();
                        let pst = open(&left);
                        let now = logical(&pst);
                        assert!(now == before || now == after, "{what}: operation {nth}");
                        no_errors(&pst);
                        if nth % 8 == 0 {
                            next_edit_cleans(&left);
                        }
                    }
                }
            }
            done
        });
    }
    println!("{cases} failing operations in commits");
    assert!(cases > 500, "{cases}");
}

/// A read that fails while an edit is worked out is an error, or does not matter: it never changes
/// what is written, and nothing is written before the edit is worked out.
#[test]
fn a_failing_read_never_makes_another_edit() {
    let mut cases = 0;
    for format in FORMATS {
        let mut names_before = Names::new();
        play(format, |i, what, image, set| {
            let step = SCRIPT[i].1;
            let mut names = Names::new();
            for nth in 0.. {
                let file = FaultStorage::new(
                    MemStorage::from(image),
                    FaultOn::Reads,
                    nth,
                    io::ErrorKind::TimedOut,
                );
                let file = Arc::new(file);
                names = names_before.clone();
                let mut edit = || -> pst::Result<WriteSet> {
                    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>)?;
                    step(&mut tx, &mut names)?;
                    tx.finish()
                };
                let result = edit();
                cases += 1;
                assert!(file.inner().to_vec() == image);
                let failed = file.has_failed();
                match result {
                    Ok(found) => assert!(
                        found == set,
                        "{what}: read {nth} failed and another edit came of it"
                    ),
                    Err(e) => assert!(failed && e.retryable(), "{what}: read {nth}: {e}"),
                }
                if !failed {
                    break;
                }
            }
            names_before = names;
            committed(image, &set, set.phases.len())
        });
    }
    println!("{cases} failing reads");
    assert!(cases > 1_000, "{cases}");
}
