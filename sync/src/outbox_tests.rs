//! The bytes of what is on its way, and what is swept away.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use pst::Bid;
use pst::inventory::{Kind, Row};

use super::*;
use crate::database::Drift;

fn row(nid: u32, fingerprint: u8) -> SyncedRow {
    SyncedRow {
        ours: true,
        remote_nid: Nid(nid + 0x20),
        row: Row {
            nid: Nid(nid),
            parent: Nid(0x8022),
            kind: Kind::Message,
            bid_data: Bid(0x1234),
            bid_sub: Bid(0),
            fingerprint: [fingerprint; 32],
            size: 1000,
            search_key: Some([3; 16]),
            cells: 7,
        },
        drift: Some(Drift {
            parent: Nid(0x8042),
            fingerprint: [8; 32],
        }),
        detailed: true,
    }
}

fn synced(sequence: u64, rows: &[(u32, u8)]) -> Synced {
    Synced {
        head: Head {
            lineage: 1,
            bid_next: 2,
            epoch: 3,
            generation: Generation {
                len: 4,
                root: [5; 32],
            },
            sequence,
            verified_at_ms: 7,
        },
        rows: rows.iter().map(|(n, f)| (Nid(*n), row(*n, *f))).collect(),
    }
}

fn outstanding() -> Outstanding {
    Outstanding {
        sequence: 9,
        package: b"package".to_vec(),
        base: Generation {
            len: 10,
            root: [11; 32],
        },
        expected: [12; 32],
        counts: Counts {
            added: 1,
            updated: 2,
            moved: 3,
            deleted: 4,
        },
        after: synced(9, &[(0x24, 1), (0x44, 2), (0x84, 4)]),
        proposed: [(Nid(0x84), Nid(0xA4))].into_iter().collect(),
    }
}

fn outbox(dir: &tempfile::TempDir) -> Outbox {
    Outbox::new(dir.path().join("outgoing"))
}

#[test]
fn what_was_put_is_there_for_its_own_state_alone() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(&dir);
    let key = [1; 16];
    let before = synced(8, &[(0x24, 1), (0x44, 9), (0x64, 3)]);
    assert_eq!(outbox.load(&key, Some(&before)).unwrap(), None);
    for before in [Some(&before), None] {
        outbox.put(&key, before, &outstanding()).unwrap();
        assert_eq!(outbox.load(&key, before).unwrap(), Some(outstanding()));
        assert_eq!(outbox.load(&[2; 16], before).unwrap(), None);
        assert_eq!(
            outbox.load(&key, before).unwrap(),
            Some(outstanding()),
            "and stays"
        );
        let other = synced(7, &[]);
        assert_eq!(outbox.load(&key, Some(&other)).unwrap(), None);
        assert_eq!(outbox.load(&key, before).unwrap(), None, "dropped");
    }
    // One takes the place of another, and nothing is left behind.
    outbox.put(&key, None, &outstanding()).unwrap();
    outbox.put(&key, None, &outstanding()).unwrap();
    outbox.clear(&key).unwrap();
    outbox.clear(&key).unwrap();
    let left = fs::read_dir(dir.path().join("outgoing")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn only_rows_that_differ_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(&dir);
    let many: Vec<(u32, u8)> = (1..2000).map(|n| (n * 0x20 + 4, 1)).collect();
    let before = synced(8, &many);
    let mut out = outstanding();
    out.after = synced(9, &many);
    out.after.rows.insert(Nid(0x24), row(0x24, 99));
    outbox.put(&[1; 16], Some(&before), &out).unwrap();
    let len = fs::metadata(outbox.path(&[1; 16])).unwrap().len();
    assert!(len < 1024, "{len} bytes");
    assert_eq!(outbox.load(&[1; 16], Some(&before)).unwrap(), Some(out));
}

/// A change of these bytes needs another version: packages of before lie on disks.
#[test]
fn the_file_has_these_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(&dir);
    let before = synced(8, &[(0x24, 1), (0x44, 9), (0x64, 3)]);
    outbox.put(&[1; 16], Some(&before), &outstanding()).unwrap();
    let bytes = fs::read(outbox.path(&[1; 16])).unwrap();
    assert_eq!(bytes.len(), GOLDEN.0);
    assert_eq!(bytes[8], 1, "version of the record");
    assert_eq!(&bytes[bytes.len() - 7..], b"package");
    assert_eq!(hex::encode(blake3::hash(&bytes).as_bytes()), GOLDEN.1);
}

const GOLDEN: (usize, &str) = (
    641,
    "cc59f179ace1f9c68cef665413c253556422aefcebf30d7fff60dbf21ca9a481",
);

#[test]
fn what_nobody_asks_for_goes_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(&dir);
    outbox.sweep(SystemTime::now());
    outbox.put(&[1; 16], None, &outstanding()).unwrap();
    let half = outbox.path(&[2; 16]).with_extension(HALF);
    fs::write(&half, b"half").unwrap();
    outbox.sweep(SystemTime::now());
    assert!(!half.exists());
    // A clock that runs backwards keeps it, too.
    for now in [
        SystemTime::now() + KEPT - Duration::from_secs(60),
        SystemTime::now() - KEPT * 2,
    ] {
        outbox.sweep(now);
        assert!(outbox.path(&[1; 16]).exists());
    }
    outbox.sweep(SystemTime::now() + KEPT + Duration::from_secs(60));
    assert!(!outbox.path(&[1; 16]).exists());
}

#[test]
fn a_large_package_leaves_the_journal_its_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut outbox = outbox(&dir);
    assert!((outbox.free)(dir.path()).unwrap() > 0);
    outbox.free = |_| Ok(RESERVE);
    let mut out = outstanding();
    outbox.put(&[1; 16], None, &out).expect("a small one goes");
    out.package = vec![7; 2 << 20];
    let error = outbox.put(&[1; 16], None, &out).expect_err("no room");
    assert!(error.to_string().contains("no room"), "{error}");
    // The one before is still whole.
    let kept = outbox.load(&[1; 16], None).unwrap();
    assert_eq!(kept, Some(outstanding()));
    outbox.free = |_| Ok(RESERVE + (3 << 20));
    outbox.put(&[1; 16], None, &out).expect("there is room");
    assert_eq!(outbox.load(&[1; 16], None).unwrap(), Some(out));
}
