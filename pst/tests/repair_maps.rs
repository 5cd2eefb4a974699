//! Rebuilding allocation maps: what is wrong becomes right, what is kept comes back, every cut is safe.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::sync::Arc;

use pst::PstError;
use pst::check::{Code, Options, Severity, check_storage};
use pst::ndb::format::{DLIST_OFFSET, FIRST_AMAP, amap_offset};
use pst::ndb::{Ndb, PageType};
use pst::repair::{MapBackup, MapRepair};
use storage::{CrashStorage, Fate, MemStorage, ReadAt};
use support::surgery::Patient;
use support::{Rng, bytes, mail, shared};

/// A store of two AMaps, so that there is more than one of everything.
fn store() -> Vec<u8> {
    let file = mail::empty();
    let mut tx = mail::begin(&file);
    let inbox = tx
        .create_folder(pst::messaging::IPM_SUBTREE, None, &mail::folder("Inbox"))
        .unwrap();
    for n in 0..5 {
        let mut m = mail::message(n, 200, n % 2 == 0);
        m.recipients.push(mail::recipient("to"));
        let noise = Rng(u64::from(n) + 1).bytes(60_000);
        m.attachments.push(mail::attachment("a.bin", noise));
        tx.add_message(inbox, None, &m, false).unwrap();
    }
    mail::commit(&tx.finish().unwrap(), &file);
    file.to_vec()
}

fn page(p: &mut Patient, kind: PageType, ib: u64, edit: impl FnOnce(&mut [u8])) {
    p.page(kind, ib, edit);
}

/// The store with its maps broken in each way that a repair puts right.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let break_it = |edit: &dyn Fn(&mut Patient)| {
        let mut p = Patient::new(store());
        edit(&mut p);
        p.bytes
    };
    let second = amap_offset(1);
    vec![
        ("header-torn", break_it(&|p| p.bytes[524] ^= 1)),
        ("maps-flag", break_it(&|p| p.header(|h| h[248] = 9))),
        ("maps-invalid", break_it(&|p| p.header(|h| h[248] = 0))),
        ("amap-last", break_it(&|p| p.header(|h| h[192] ^= 2))),
        ("amap-free", break_it(&|p| p.header(|h| h[201] ^= 2))),
        (
            "amap-page",
            break_it(&|p| p.bytes[second as usize + 7] ^= 1),
        ),
        (
            "map-page",
            break_it(&|p| p.bytes[FIRST_AMAP as usize + 0x207] ^= 1),
        ),
        (
            "used-but-free",
            break_it(&|p| {
                page(p, PageType::AMap, FIRST_AMAP, |b| b[..496].fill(0));
                page(p, PageType::AMap, second, |b| b[..496].fill(0));
            }),
        ),
        (
            "leaked",
            break_it(&|p| page(p, PageType::AMap, second, |b| b[..496].fill(0xFF))),
        ),
        (
            "dlist",
            break_it(&|p| p.bytes[DLIST_OFFSET as usize + 9] ^= 1),
        ),
        (
            "dlist-stale",
            break_it(&|p| page(p, PageType::DList, DLIST_OFFSET, |b| b[10] ^= 0x10)),
        ),
        ("file-eof", break_it(&|p| p.header(|h| h[185] -= 2))),
    ]
}

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(data.to_vec())).unwrap())
}

fn lines(data: &[u8]) -> Vec<String> {
    mail::lines(&pst::Pst::open(bytes(data.to_vec())).unwrap())
}

fn findings(data: &[u8]) -> Vec<&'static str> {
    let report = check_storage(bytes(data.to_vec()), &Options::default()).unwrap();
    report.counts.keys().map(|c| c.name()).collect()
}

/// The file after the repair, and the backup as it is read back.
fn repaired(data: &[u8]) -> (Vec<u8>, MapBackup) {
    let repair = MapRepair::plan(&open(data), None).unwrap();
    assert!(!repair.is_empty());
    let file = MemStorage::from(data.to_vec());
    repair.write_set.commit(&file).unwrap();
    let backup = MapBackup::decode(&repair.backup.encode()).unwrap();
    assert_eq!(backup, repair.backup);
    (file.into_vec(), backup)
}

fn restored(data: &[u8], backup: &MapBackup) -> Result<Vec<u8>, PstError> {
    let file = MemStorage::from(data.to_vec());
    backup.restore(&file)?.commit(&file).unwrap();
    Ok(file.into_vec())
}

#[test]
fn what_is_wrong_with_maps_becomes_right_and_comes_back_on_demand() {
    let clean = store();
    assert_eq!(findings(&clean), Vec::<&str>::new());
    assert!(MapRepair::plan(&open(&clean), None).unwrap().is_empty());
    for (code, data) in broken() {
        assert!(
            findings(&data).contains(&code),
            "{code}: {:?}",
            findings(&data)
        );
        let (fixed, backup) = repaired(&data);
        // A header before the end of the file leaves the rest behind it.
        assert_eq!(findings(&fixed), Vec::<&str>::new(), "{code}");
        assert_eq!(lines(&fixed), lines(&clean), "{code}");
        assert_eq!(restored(&fixed, &backup).unwrap(), data, "{code}");
        // Twice is once.
        assert_eq!(restored(&data, &backup).unwrap(), data, "{code}");
    }
}

#[test]
fn only_maps_and_the_header_are_written() {
    let (_, data) = broken().remove(7);
    let repair = MapRepair::plan(&open(&data), None).unwrap();
    let map_pages: Vec<u64> = (0..4)
        .flat_map(|i| {
            pst::ndb::format::map_pages(i)
                .into_iter()
                .map(move |(_, o)| amap_offset(i) + o)
        })
        .chain([DLIST_OFFSET])
        .collect();
    for (at, payload) in repair.write_set.phases.iter().flat_map(|p| &p.writes) {
        let map = map_pages.contains(at) && payload.len() == 512;
        assert!(map || (*at == 0 && payload.len() == 564), "{at:#x}");
    }
    assert!(repair.backup.kept() < 8 * 512);
}

#[test]
fn damaged_trees_are_refused_and_nothing_is_written() {
    let mut p = Patient::new(store());
    p.header(|h| h[248] = 0);
    let root = p.ndb().header().bbt.ib as usize;
    let child = u64::from_le_bytes(p.bytes[root + 16..root + 24].try_into().unwrap());
    p.bytes[child as usize + 3] ^= 1;
    let Err(PstError::Refused(why)) = MapRepair::plan(&open(&p.bytes), None) else {
        panic!("not refused");
    };
    assert!(why.contains("bbt-page"), "{why}");
    // A node that names a lost block: its space would be given away.
    let mut p = Patient::new(store());
    p.header(|h| h[248] = 0);
    p.leaf(PageType::Nbt, 0x21, |e| e[9] ^= 0x40);
    assert!(matches!(
        MapRepair::plan(&open(&p.bytes), None),
        Err(PstError::Refused(_))
    ));
}

#[test]
fn a_backup_fits_no_other_state_of_the_file() {
    let (_, data) = broken().remove(5);
    let (fixed, backup) = repaired(&data);
    // An edit after the repair.
    let file = Arc::new(MemStorage::from(fixed.clone()));
    let mut tx = mail::begin(&file);
    tx.create_folder(pst::messaging::IPM_SUBTREE, None, &mail::folder("Later"))
        .unwrap();
    mail::commit(&tx.finish().unwrap(), &file);
    assert!(matches!(
        restored(&file.to_vec(), &backup),
        Err(PstError::Refused(_))
    ));
    // A file of another length, a backup that is cut or bent.
    assert!(restored(&fixed[..fixed.len() - 64], &backup).is_err());
    let whole = backup.encode();
    for cut in [0, 7, 27, 60, whole.len() - 33, whole.len() - 1] {
        assert!(MapBackup::decode(&whole[..cut]).is_err(), "{cut}");
    }
    for at in (0..whole.len()).step_by(97) {
        let mut bent = whole.clone();
        bent[at] ^= 0x10;
        assert!(MapBackup::decode(&bent).is_err(), "{at}");
    }
}

/// Every cut of a repair and of its undoing: the file opens, holds its mail, has no error that it did not
/// have, can be repaired again, and can be taken back to where it was.
#[test]
fn every_cut_is_safe_and_can_be_finished_or_undone() {
    let clean = lines(&store());
    let mut cases = 0;
    for (code, data) in broken() {
        let before = findings(&data);
        let repair = MapRepair::plan(&open(&data), None).unwrap();
        let whole = CrashStorage::new(data.clone());
        repair.write_set.commit(&whole).unwrap();
        let fixed = whole.live();
        let undo = CrashStorage::new(fixed.clone());
        repair.backup.restore(&undo).unwrap().commit(&undo).unwrap();
        for (from, history) in [(&data, whole.history()), (&fixed, undo.history())] {
            for cut in 0..=history.len() {
                let storage = CrashStorage::replay(from.clone(), &history[..cut]).unwrap();
                let n = storage.pending().len();
                let mut images = vec![storage.synced(), storage.live()];
                for i in 0..n {
                    images.push(
                        storage.survivor(|at, _| if at == i { Fate::Kept } else { Fate::Lost }),
                    );
                    images.push(
                        storage.survivor(|at, _| if at == i { Fate::Lost } else { Fate::Kept }),
                    );
                    for mask in [1, 2] {
                        images.push(storage.survivor(|at, _| {
                            if at == i {
                                Fate::Torn(mask)
                            } else {
                                Fate::Kept
                            }
                        }));
                    }
                }
                images.sort();
                images.dedup();
                for image in images {
                    cases += 1;
                    assert_eq!(lines(&image), clean, "{code}");
                    let report = check_storage(bytes(image.clone()), &Options::default()).unwrap();
                    let worse = report
                        .counts
                        .keys()
                        .find(|c| c.severity() == Severity::Error && !before.contains(&c.name()));
                    assert_eq!(worse, None, "{code}, cut {cut}");
                    assert_eq!(
                        restored(&image, &repair.backup).unwrap(),
                        data,
                        "{code}, cut {cut}"
                    );
                    let again = MapRepair::plan(&open(&image), None).unwrap();
                    let file = MemStorage::from(image);
                    again.write_set.commit(&file).unwrap();
                    assert_eq!(findings(&file.to_vec()), Vec::<&str>::new(), "{code}");
                }
            }
        }
    }
    println!("{cases} crash images");
    assert!(cases > 300, "{cases}");
}

#[test]
fn real_files_lose_their_leaks_and_nothing_else() {
    let Some(dir) = shared() else { return };
    for name in [
        "enron.pst",
        "outlook_1-later.pst",
        "ansi-32bit.pst",
        "contacts.pst",
    ] {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let (fixed, backup) = repaired(&data);
        let left = findings(&fixed);
        for code in pst::repair::REPAIRED {
            assert!(!left.contains(&code.name()), "{name}: {left:?}");
        }
        assert_eq!(lines(&fixed), lines(&data), "{name}");
        assert_eq!(restored(&fixed, &backup).unwrap(), data, "{name}");
        assert!(backup.encode().len() < data.len() / 50 + 8192, "{name}");
    }
    let ost = std::fs::read(dir.join("corpus/ost2013-4k.ost")).unwrap();
    assert!(matches!(
        MapRepair::plan(&open(&ost), None),
        Err(PstError::Refused(_))
    ));
    let _ = Code::ALL;
}

#[test]
fn storage_lengths_are_those_of_the_file() {
    let (_, data) = broken().remove(11);
    let (fixed, backup) = repaired(&data);
    assert!(fixed.len() >= data.len());
    let back = restored(&fixed, &backup).unwrap();
    assert_eq!(MemStorage::from(back).len().unwrap(), data.len() as u64);
}
