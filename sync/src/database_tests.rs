//! The bytes of the sync database, the layout before this one, and what damage comes to.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use pst::Bid;
use pst::inventory::Kind;

use super::*;
use crate::hex;

fn head() -> Head {
    Head {
        lineage: 1,
        bid_next: 2,
        epoch: 3,
        generation: Generation {
            len: 4,
            root: [5; 32],
        },
        sequence: 6,
        verified_at_ms: 7,
    }
}

fn row(nid: u32) -> SyncedRow {
    SyncedRow {
        ours: true,
        remote_nid: Nid(nid + 0x20),
        row: Row {
            nid: Nid(nid),
            parent: Nid(0x8022),
            kind: Kind::Message,
            bid_data: Bid(0x1234),
            bid_sub: Bid(0),
            fingerprint: [9; 32],
            size: 1000,
            search_key: None,
            cells: 0,
        },
        drift: Some(Drift {
            parent: Nid(0x8042),
            fingerprint: [8; 32],
        }),
        detailed: false,
    }
}

fn synced(nids: &[u32]) -> Synced {
    Synced {
        head: head(),
        rows: nids.iter().map(|n| (Nid(*n), row(*n))).collect(),
    }
}

fn open(dir: &tempfile::TempDir) -> SyncDatabase {
    SyncDatabase::new(KvStore::open(&dir.path().join("db")).expect("opens"))
}

#[test]
fn records_have_these_bytes() {
    let bytes = |put: Write| -> String {
        // The value of a write is private to the store: it goes through one.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        let store = KvStore::open(&path).expect("opens");
        store.commit(vec![put]).expect("commits");
        drop(store);
        let db = sled::open(path.join("data")).expect("opens");
        let (_, value) = db.iter().next().expect("one").expect("reads");
        assert_eq!(value[0], 1, "version of the record");
        hex::encode(&value[5..])
    };
    let (fives, nines) = ("05".repeat(32), "09".repeat(32));
    let eights = "08".repeat(32);
    let record = HeadRecord {
        lineage: 1,
        bid_next: 2,
        epoch: 3,
        len: 4,
        root: [5; 32],
        sequence: 6,
        verified_at_ms: 7,
    };
    let head = [
        "0100000000000000",
        "0200000000000000",
        "0300000000000000",
        "0400000000000000",
        &fives,
        "0600000000000000",
        "0700000000000000",
    ];
    assert_eq!(bytes(Write::put(vec![1], &record).unwrap()), head.concat());
    let one = row(0x20_0024);
    let record = SyncedRecord {
        ours: one.ours,
        remote_nid: one.remote_nid.0,
        row: RowRecord::from(&one.row),
        drift: Some(DriftRecord {
            parent: 0x8042,
            fingerprint: [8; 32],
        }),
        detailed: true,
    };
    let row = [
        // ours, NID there
        "01",
        "44002000",
        // NID, parent, kind, BIDs, fingerprint, size, no search key, cells
        "24002000",
        "22800000",
        "01000000",
        "3412000000000000",
        "0000000000000000",
        &nines,
        "e803000000000000",
        "00",
        "0000000000000000",
        // drift: parent, fingerprint; the detail is stored
        "01",
        "42800000",
        &eights,
        "01",
    ];
    assert_eq!(bytes(Write::put(vec![1], &record).unwrap()), row.concat());
    let record = DetailRecord {
        fingerprint: [9; 32],
        detail: vec![1, 2, 3],
    };
    let detail = [&nines, "0300000000000000", "010203"];
    assert_eq!(
        bytes(Write::put(vec![1], &record).unwrap()),
        detail.concat()
    );
}

#[test]
fn the_layout_before_is_read_and_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = open(&dir);
    let prefix = prefix("a.pst", "far");
    let old_row = |nid: u32| {
        let one = row(nid);
        let text = [
            "01",
            &hex::encode(&one.remote_nid.0.to_le_bytes()),
            &hex::encode(&nid.to_le_bytes()),
            "22800000",
            "01000000",
            "3412000000000000",
            "0000000000000000",
            &"09".repeat(32),
            "e803000000000000",
            "00",
            "01",
            "42800000",
            &"08".repeat(32),
        ]
        .concat();
        let pairs: Vec<u8> = text
            .as_bytes()
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect();
        let config = bincode::config::legacy();
        let (record, used): (SyncedRecord1, usize) =
            bincode::decode_from_slice(&pairs, config).expect("decodes");
        assert_eq!(used, pairs.len());
        Write::put(key(&prefix, ROW_1, nid), &record).unwrap()
    };
    let record = HeadRecord {
        lineage: 1,
        bid_next: 2,
        epoch: 3,
        len: 4,
        root: [5; 32],
        sequence: 6,
        verified_at_ms: 7,
    };
    let writes = vec![
        Write::put(key(&prefix, HEAD_1, 0), &record).unwrap(),
        old_row(0x24),
        old_row(0x44),
    ];
    database.store.commit(writes).expect("commits");
    let found = database
        .load("a.pst", "far")
        .expect("loads")
        .expect("known");
    assert_eq!(found, synced(&[0x24, 0x44]));

    // One of them went away meanwhile.
    let after = synced(&[0x44]);
    let none = BTreeMap::new();
    database
        .store("a.pst", "far", Some(&found), &after, &none)
        .expect("stores");
    assert_eq!(database.load("a.pst", "far").expect("loads"), Some(after));
    let keys = database.store.keys(&prefix).expect("lists");
    assert_eq!(keys, [key(&prefix, HEAD, 0), key(&prefix, ROW, 0x44)]);
}

#[test]
fn no_row_of_an_earlier_state_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = open(&dir);
    let none = BTreeMap::new();
    let store = |before: Option<&Synced>, after: &Synced| {
        database
            .store("a.pst", "far", before, after, &none)
            .expect("stores");
    };
    store(None, &synced(&[0x24, 0x44]));
    // Another container is not touched by any of this.
    database
        .store("b.pst", "far", None, &synced(&[0x64]), &none)
        .expect("stores");
    // A damaged row: the state is unknown, and what is stored next is all there is.
    let prefix = prefix("a.pst", "far");
    let damaged = Write::put(key(&prefix, ROW, 0x24), &7u8).unwrap();
    database.store.commit(vec![damaged]).expect("commits");
    assert_eq!(database.load("a.pst", "far").expect("loads"), None);
    store(None, &synced(&[0x44]));
    assert_eq!(
        database.load("a.pst", "far").expect("loads"),
        Some(synced(&[0x44]))
    );
    // A damaged head is an unknown state, too.
    let damaged = Write::put(key(&prefix, HEAD, 0), &7u8).unwrap();
    database.store.commit(vec![damaged]).expect("commits");
    assert_eq!(database.load("a.pst", "far").expect("loads"), None);
    assert_eq!(
        database.load("b.pst", "far").expect("loads"),
        Some(synced(&[0x64]))
    );
}

#[test]
fn a_detail_is_given_for_its_version_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = open(&dir);
    let detail = Detail::default();
    let stored = StoredDetail {
        fingerprint: [9; 32],
        detail: detail.encode().expect("encodes"),
    };
    let before = synced(&[0x24]);
    let details = [(Nid(0x24), stored)].into_iter().collect();
    database
        .store("a.pst", "far", None, &before, &details)
        .expect("stores");
    let get = |nid, fingerprint| database.detail("a.pst", "far", Nid(nid), &[fingerprint; 32]);
    assert_eq!(get(0x24, 9), Some(detail));
    assert_eq!(get(0x24, 8), None);
    assert_eq!(get(0x44, 9), None);
    // It goes with its row.
    let none = BTreeMap::new();
    database
        .store("a.pst", "far", Some(&before), &synced(&[]), &none)
        .expect("stores");
    assert_eq!(get(0x24, 9), None);
}
