//! Change lists and carriers from someone who means harm: an error, or a valid file; never a panic,
//! never a folder whose tables lie.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::sync::{Arc, OnceLock};

use common::*;
use proptest::prelude::*;
use pst::inventory::Inventory;
use pst::ltp::{PropValue, build_pc};
use pst::messaging::{AttachmentData, tags};
use pst::{Nid, Pst};
use storage::{MemStorage, Overlay, ReadAt, WriteAt as _};
use sync::{
    Action, Carrier, Change, Envelope, Level, ObjectKind, Package, Patch, Piece, apply, compare,
    compile,
};

struct Stage {
    base: Mailbox,
    /// NIDs of every kind, there and not there.
    nids: Vec<u32>,
    /// Fingerprints that guard entries.
    fingerprints: Vec<[u8; 32]>,
    /// A real change list with a carrier of every kind of object.
    real: Package,
    carried: Vec<u32>,
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let base = Mailbox::new(4);
        let props = [PropValue::string(tags::DISPLAY_NAME, "Sub")]
            .into_iter()
            .collect();
        let inbox = base.inbox();
        let raw = |text: &str| {
            let props = [PropValue::string(tags::SUBJECT, text)]
                .into_iter()
                .collect();
            build_pc(&props, None).expect("builds")
        };
        base.edit(|tx| {
            let sub = tx.create_folder(inbox, None, &props).expect("creates");
            let subsub = tx.create_folder(sub, None, &props).expect("creates");
            tx.add_message(subsub, None, &message("deep"), false)
                .expect("adds");
            tx.add_message(sub, None, &message("hidden"), true)
                .expect("adds");
            tx.put_raw_node(Nid(0x0F01), Nid(0), &raw("raw"))
                .expect("puts");
        });
        let after = base.twin();
        after.edit(|tx| {
            let new = tx.create_folder(inbox, None, &props).expect("creates");
            let mut data = message("new");
            data.attachments.push(AttachmentData {
                props: [
                    PropValue::string(0x3707, "a.bin"),
                    PropValue::binary(tags::ATTACH_DATA, [7; 9000]),
                    PropValue::i32(tags::ATTACH_METHOD, 1),
                ]
                .into_iter()
                .collect(),
                embedded: None,
            });
            tx.add_message(new, None, &data, false).expect("adds");
            tx.add_message(new, None, &message("new hidden"), true)
                .expect("adds");
            tx.put_raw_node(Nid(0x0F01), Nid(0), &raw("changed"))
                .expect("puts");
            tx.put_raw_node(Nid(0x0F21), Nid(0), &raw("new"))
                .expect("puts");
        });
        let (old, new) = (base.pst(), after.pst());
        let (from, to) = (
            Inventory::read(&old).expect("reads"),
            Inventory::read(&new).expect("reads"),
        );
        let changes = compare(&from, &to).into_iter().map(|c| {
            let nid = c.nid();
            (c, nid)
        });
        let real = compile(&new, changes.collect()).expect("compiles");
        let mut nids: Vec<u32> = new
            .ndb()
            .nodes()
            .map(|n| n.expect("a node").nid.0)
            .collect();
        nids.extend([
            0,
            0x1F,
            0x22,
            0x8002,
            0x0080_0044,
            0x0080_0022,
            0x0080_0023,
            0x0080_0028,
            u32::MAX,
        ]);
        let carried = real.changes.iter().filter_map(|c| match c.action {
            Action::Add { carrier, .. } | Action::Update { carrier, .. } => Some(carrier),
            _ => None,
        });
        // No tables: what a raw node says is its writer's matter, but the checks would tell.
        let carried = carried.chain([0, 0x122, 0x21, 0x61]).collect();
        let rows = from.rows.values().chain(to.rows.values());
        let fingerprints = rows.map(|r| r.fingerprint).chain([[0; 32]]).collect();
        Stage {
            base,
            nids,
            fingerprints,
            real,
            carried,
        }
    })
}

fn kind() -> impl Strategy<Value = ObjectKind> {
    prop_oneof![
        Just(ObjectKind::Folder),
        Just(ObjectKind::Message),
        Just(ObjectKind::Associated),
        Just(ObjectKind::Raw),
    ]
}

/// A patch; its indexes lead anywhere.
fn patch() -> impl Strategy<Value = Patch> {
    let removed = || prop::collection::vec(prop_oneof![0..0x4000u64, any::<u64>()], 0..3);
    let piece = prop_oneof![
        (0..3u32).prop_map(Piece::Kept),
        (0..3u32).prop_map(Piece::Carried),
        (0..3u32, 0..3u32, removed(), prop::option::of(0..3u32)).prop_map(
            |(before, carried, removed, level)| Piece::Patched {
                before,
                carried,
                removed,
                level
            }
        ),
    ];
    let attachments = prop::option::of(prop::collection::vec(piece, 0..4));
    let level =
        (removed(), any::<bool>(), attachments).prop_map(|(removed, recipients, attachments)| {
            Level {
                removed,
                recipients,
                attachments,
            }
        });
    prop::collection::vec(level, 0..3).prop_map(|levels| Patch { levels })
}

/// An entry; most guards are right, so that it gets somewhere.
fn entry() -> impl Strategy<Value = Change> {
    let any = || any::<prop::sample::Index>();
    (
        kind(),
        any(),
        any(),
        any(),
        any(),
        0..6u8,
        prop::bool::weighted(0.9),
        prop::option::of(patch()),
    )
        .prop_map(
            |(kind, nid, parent, carrier, fingerprint, what, honest, patch)| {
                let s = stage();
                let nid = *nid.get(&s.nids);
                let inventory = Inventory::read(&s.base.pst()).expect("reads");
                let row = inventory.rows.get(&Nid(nid));
                let kind = match row {
                    Some(row) if honest => row.kind.into(),
                    _ => kind,
                };
                let stray = *fingerprint.get(&s.fingerprints);
                let before = row.map_or(stray, |r| r.fingerprint);
                let (parent, carrier) = (*parent.get(&s.nids), *carrier.get(&s.carried));
                let action = match what {
                    0 | 1 => Action::Add {
                        parent,
                        carrier,
                        after: stray,
                    },
                    2 => Action::Update {
                        carrier,
                        before,
                        after: stray,
                        patch,
                    },
                    3 => Action::Move {
                        from: row.map_or(parent, |r| r.parent.0),
                        to: parent,
                    },
                    _ => Action::Delete { before },
                };
                Change { kind, nid, action }
            },
        )
}

/// Applies to a copy; what comes out must be a valid file, with nothing lost that has no entry.
fn try_out(package: &Package) {
    let s = stage();
    let file = Arc::new(MemStorage::from(s.base.0.to_vec()));
    let Ok(applied) = apply(Arc::clone(&file) as Arc<dyn ReadAt>, package) else {
        return;
    };
    applied.write_set.commit(file.as_ref()).expect("commits");
    let pst = Pst::open(file).expect("opens");
    pst.ipm_subtree().expect("the store is whole");
    assert_eq!(faults(&pst), Vec::<String>::new(), "{:?}", package.changes);
    let (before, after) = (
        Inventory::read(&s.base.pst()).expect("reads"),
        Inventory::read(&pst).expect("every object is whole"),
    );
    for row in before.rows.values() {
        let named = package.changes.iter().any(|c| c.nid() == row.nid);
        assert!(
            named
                || after
                    .rows
                    .get(&row.nid)
                    .is_some_and(|now| now.kind == row.kind),
            "{row:?} is gone without an entry: {:?}",
            package.changes
        );
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(150),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn change_lists_that_make_no_sense(changes in prop::collection::vec(entry(), 1..8)) {
        let package = Package { changes, ..stage().real.clone() };
        try_out(&package);
    }

    /// Bytes of the list or of the carrier are flipped, and every length and digest is right again.
    #[test]
    fn packages_that_were_tampered_with(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), list in any::<bool>()) {
        let mut envelope = Envelope::open(&stage().real.encode().expect("encodes")).expect("opens");
        if list {
            for (at, to) in flips {
                let at = at.index(envelope.list.len());
                envelope.list[at] = to;
            }
        } else {
            let len = envelope.carrier.len() as usize;
            let mut image = vec![0; len];
            envelope.carrier.unfold().expect("unfolds").read_exact_at(0, &mut image).expect("reads");
            // Most of a carrier is the skeleton: half of the flips go where the mail is.
            for (i, (at, to)) in flips.into_iter().enumerate() {
                let at = if i % 2 == 0 { at.index(len) } else { len - 1 - at.index(len / 8) };
                image[at] = to;
            }
            envelope.carrier = Carrier::of(&MemStorage::from(image)).expect("folds");
        }
        if let Ok(package) = Package::decode(&envelope.seal().expect("seals")) {
            try_out(&package);
        }
    }

    /// Bytes of the compressed frame are flipped.
    #[test]
    fn frames_that_were_tampered_with(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = stage().real.encode().expect("encodes");
        let end = bytes.len() - 32;
        for (at, to) in flips {
            bytes[5 + at.index(end - 5)] = to;
        }
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(digest.as_bytes());
        if let Ok(package) = Package::decode(&bytes) {
            try_out(&package);
        }
    }
}

#[test]
fn a_carrier_that_claims_gigabytes_takes_none() {
    let real = &stage().real;
    let before = resident();
    const CLAIM: u64 = 600 << 20;
    // The real carrier, then zeros, as far as a carrier may reach or less.
    let claim = |len| {
        let image = Overlay::new(real.carrier.unfold().expect("unfolds")).expect("an overlay");
        image.set_len(len).expect("grows");
        Carrier::of(&image)
    };
    let carrier = claim(CLAIM).expect("folds");
    let package = Package {
        carrier,
        ..real.clone()
    };
    let encoded = package.encode().expect("encodes");
    let decoded = Package::decode(&encoded).expect("decodes");
    assert_eq!(decoded.carrier.len(), CLAIM);
    try_out(&decoded);
    assert!(
        resident() < before + (256 << 20),
        "memory was taken on somebody's word"
    );
    claim(sync::MAX_CARRIER + 1).expect_err("more than a carrier may be");
}

/// The most memory that this process ever had, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
