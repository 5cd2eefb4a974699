//! The bytes of what is stored and sent: a change here needs a new version number.

use std::io::Read as _;

use pst::inventory::{Inventory, Kind, Row};
use pst::{Bid, Nid};
use storage::{MemStorage, ReadAt as _};
use sync::{
    APPLY_VERSION, Action, Carrier, Change, Level, ObjectKind, Package, Patch, Piece, SyncError,
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
                    patch: Some(Patch {
                        levels: vec![
                            Level {
                                removed: vec![0x37],
                                recipients: true,
                                attachments: Some(vec![
                                    Piece::Kept(1),
                                    Piece::Carried(0),
                                    Piece::Patched {
                                        before: 0,
                                        carried: 1,
                                        removed: vec![],
                                        level: Some(1),
                                    },
                                ]),
                            },
                            Level::default(),
                        ],
                    }),
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
        carrier: Carrier::of(&MemStorage::from(b"!BDN".to_vec())).expect("folds"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16);
    pairs.map(|pair| byte(pair).expect("hex")).collect()
}

/// The list of [`package`], byte by byte.
fn list() -> String {
    let ones = "01".repeat(32);
    let (twos, threes, fours) = ("02".repeat(32), "03".repeat(32), "04".repeat(32));
    [
        // number of changes
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
        // by a patch of two levels
        "01",
        "0200000000000000",
        // the first: one property removed, recipients carried, three attachments
        "0100000000000000",
        "3700000000000000",
        "01",
        "01",
        "0300000000000000",
        // kept 1, carried 0
        "00000000",
        "01000000",
        "01000000",
        "00000000",
        // patched: before 0, carried 1, nothing removed, its message at level 1
        "02000000",
        "00000000",
        "01000000",
        "0000000000000000",
        "01",
        "01000000",
        // the second level: nothing removed, recipients and attachments stay
        "0000000000000000",
        "00",
        "00",
        // raw node 0x2223 moved from 0x122 to 0x8042
        "03000000",
        "23220000",
        "02000000",
        "22010000",
        "42800000",
    ]
    .concat()
}

#[test]
fn a_package_has_these_bytes() {
    let encoded = package().encode().expect("encodes");
    let (signed, digest) = encoded.split_at(encoded.len() - 32);
    assert_eq!(blake3::hash(signed).as_bytes(), digest);
    // magic; format, apply version, pattern, zero; length of the list and of the image
    let head = ["50535443", "02020200", "22010000", "0400000000000000"].concat();
    assert_eq!(hex::encode(&signed[..20]), head);
    let pattern = zstd::decode_all(include_bytes!("../src/patterns/2.zst").as_slice());
    let pattern = pattern.expect("unpacks");
    let mut frame = Vec::new();
    zstd::stream::read::Decoder::with_ref_prefix(&signed[20..], &pattern)
        .expect("a frame")
        .read_to_end(&mut frame)
        .expect("unpacks");
    assert_eq!(hex::encode(&frame), list() + &hex::encode(b"!BDN"));
    assert_eq!(Package::decode(&encoded).expect("decodes"), package());
}

#[test]
fn a_package_of_version_1_is_read() {
    let ones = "01".repeat(32);
    let (twos, threes, fours) = ("02".repeat(32), "03".repeat(32), "04".repeat(32));
    let body = [
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
    let sealed = |hex: &str| {
        let mut bytes = unhex(hex);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    };
    let found = Package::decode(&sealed(&body)).expect("decodes");
    let mut changes = package().changes;
    if let Action::Update { patch, .. } = &mut changes[2].action {
        *patch = None;
    }
    assert_eq!((found.apply_version, found.changes), (1, changes));
    assert_eq!(found.carrier.len(), 300_000);
    let mut bytes = [0; 5];
    let image = found.carrier.unfold().expect("unfolds");
    image.read_exact_at(63, &mut bytes).expect("reads");
    assert_eq!(bytes[1..4], [0xAB; 3]);

    // A length beyond the limit, and extents that reach outside.
    for (at, value) in [
        ("e093040000000000", "ffffffffffffffff"),
        ("e093040000000000", "4200000000000000"),
        ("4000000000000000", "ffffffffffffffff"),
        ("4000000000000000", "df93040000000000"),
    ] {
        let at = body.rfind(at).expect("it is there");
        let lie = [&body[..at], value, &body[at + 16..]].concat();
        let error = Package::decode(&sealed(&lie)).expect_err("refused");
        let carrier = matches!(
            error,
            SyncError::Package {
                field: "carrier",
                ..
            }
        );
        assert!(carrier, "{error}");
    }
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
fn lengths_that_lie_are_refused() {
    let good = package().encode().expect("encodes");
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good[..good.len() - 32].to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        Package::decode(&bytes).map(|_| ())
    };
    with(8, &0x122_u32.to_le_bytes()).expect("the right length");
    for list in [0, 1, 0x121, 0x123, 0x1000_0001, u32::MAX] {
        with(8, &list.to_le_bytes()).expect_err("another length of the list");
    }
    for image in [0, 3, 5, sync::MAX_CARRIER, sync::MAX_CARRIER + 1, u64::MAX] {
        with(12, &image.to_le_bytes()).expect_err("another length of the image");
    }
    let len = 0x122 + 4;
    Package::decode_within(&good, len).expect("as much as is allowed");
    Package::decode_within(&good, len - 1).expect_err("more than is allowed");
    with(6, &[1]).expect_err("an unknown pattern");
    with(7, &[1]).expect_err("a reserved byte");
    with(4, &[3]).expect_err("an unknown version");
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
        cells: 0x0102,
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
        // cells
        "0201000000000000",
    ]
    .concat();
    assert_eq!(encoded[0], 2, "version");
    assert_eq!(
        hex::encode(&encoded[5..]),
        expected,
        "after version and CRC"
    );
    assert_eq!(decode_inventory(&encoded).expect("decodes"), inventory);

    // Version 1 had no cells.
    let old = unhex(&expected[..expected.len() - 16]);
    let mut bytes = vec![1];
    bytes.extend_from_slice(&crc32fast::hash(&old).to_le_bytes());
    bytes.extend_from_slice(&old);
    let mut plain = inventory;
    for row in plain.rows.values_mut() {
        row.cells = 0;
    }
    assert_eq!(decode_inventory(&bytes).expect("decodes"), plain);
}
