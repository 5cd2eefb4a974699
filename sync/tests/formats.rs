//! The bytes of what is stored and sent: a change here needs a new version number.

use pst::inventory::{Inventory, Kind, Row};
use pst::{Bid, Nid};
use sync::{
    APPLY_VERSION, Action, Carrier, Change, Extent, ObjectKind, Package, SyncError,
    decode_inventory, encode_inventory, hex,
};

fn package() -> Package {
    let change = |kind, nid, action| Change { kind, nid, action };
    Package {
        apply_version: APPLY_VERSION,
        changes: vec![
            change(
                ObjectKind::Message,
                0x20_0024,
                Action::Delete { before: [1; 32] },
            ),
            change(
                ObjectKind::Folder,
                0x8082,
                Action::Add {
                    parent: 0x8022,
                    carrier: 0x80A2,
                    after: [2; 32],
                },
            ),
            change(
                ObjectKind::Associated,
                0x20_0048,
                Action::Update {
                    carrier: 0x20_0064,
                    before: [3; 32],
                    after: [4; 32],
                },
            ),
            change(
                ObjectKind::Raw,
                0x2223,
                Action::Move {
                    from: 0x122,
                    to: 0x8042,
                },
            ),
        ],
        carrier: Carrier {
            len: 300_000,
            extents: vec![Extent {
                offset: 64,
                bytes: vec![0xAB; 3],
            }],
        },
    }
}

#[test]
fn a_package_has_these_bytes() {
    let encoded = package().encode().expect("encodes");
    let (body, digest) = encoded.split_at(encoded.len() - 32);
    assert_eq!(blake3::hash(body).as_bytes(), digest);
    let ones = "01".repeat(32);
    let (twos, threes, fours) = ("02".repeat(32), "03".repeat(32), "04".repeat(32));
    let expected = [
        // magic, format version, length of the record
        "50535443",
        "01000000",
        "f100000000000000",
        // apply version, version of the empty PST, number of changes
        "01",
        "01",
        "0400000000000000",
        // message 0x200024 deleted
        "01000000",
        "24002000",
        "03000000",
        &ones,
        // folder 0x8082 added to 0x8022, carrier 0x80A2
        "00000000",
        "82800000",
        "00000000",
        "22800000",
        "a2800000",
        &twos,
        // associated message 0x200048 updated from carrier 0x200064
        "02000000",
        "48002000",
        "01000000",
        "64002000",
        &threes,
        &fours,
        // raw node 0x2223 moved from 0x122 to 0x8042
        "03000000",
        "23220000",
        "02000000",
        "22010000",
        "42800000",
        // carrier: length, one extent at 64 of three bytes
        "e093040000000000",
        "0100000000000000",
        "4000000000000000",
        "0300000000000000",
        "ababab",
    ]
    .concat();
    assert_eq!(hex::encode(body), expected);
    assert_eq!(Package::decode(&encoded).expect("decodes"), package());
}

#[test]
fn a_damaged_package_is_refused() {
    let encoded = package().encode().expect("encodes");
    for len in 0..encoded.len() {
        assert!(Package::decode(&encoded[..len]).is_err(), "cut at {len}");
    }
    for at in 0..encoded.len() {
        let mut bad = encoded.clone();
        bad[at] ^= 0x10;
        assert!(Package::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn a_carrier_that_reaches_outside_is_refused() {
    for (len, offset) in [(300_000, 299_999), (300_000, u64::MAX), (u64::MAX, 0)] {
        let mut package = package();
        package.carrier.len = len;
        package.carrier.extents[0].offset = offset;
        let encoded = package.encode().expect("encodes");
        let error = Package::decode(&encoded).expect_err("refused");
        assert!(
            matches!(
                error,
                SyncError::Package {
                    field: "carrier",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn an_inventory_has_these_bytes() {
    let row = Row {
        nid: Nid(0x20_0024),
        parent: Nid(0x8082),
        kind: Kind::Message,
        bid_data: Bid(0x1234),
        bid_sub: Bid(0x5678),
        fingerprint: [9; 32],
        size: 1000,
        search_key: Some([7; 16]),
    };
    let inventory = Inventory {
        rows: [(row.nid, row)].into_iter().collect(),
    };
    let encoded = encode_inventory(&inventory).expect("encodes");
    let (fingerprint, search_key) = ("09".repeat(32), "07".repeat(16));
    let expected = [
        // number of rows, NID, parent, kind
        "0100000000000000",
        "24002000",
        "82800000",
        "01000000",
        // BIDs, fingerprint, size, search key
        "3412000000000000",
        "7856000000000000",
        &fingerprint,
        "e803000000000000",
        "01",
        &search_key,
    ]
    .concat();
    assert_eq!(encoded[0], 1, "version");
    assert_eq!(
        hex::encode(&encoded[5..]),
        expected,
        "after version and CRC"
    );
    assert_eq!(decode_inventory(&encoded).expect("decodes"), inventory);
}
