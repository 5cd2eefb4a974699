//! docs/CHANGE-LIST.md says which nodes are not sent; what the program does is `pst::derived`.
#![allow(clippy::expect_used)]

use std::collections::BTreeSet;

use pst::derived::is_derived_node;
use pst::{Nid, NidType};

const PAGE: &str = include_str!("../../docs/CHANGE-LIST.md");

/// The NIDs and the types in the first column of the table.
fn listed() -> (BTreeSet<u32>, BTreeSet<u8>) {
    let table = PAGE.split("<!-- derived -->").nth(1).expect("the table");
    let (mut nids, mut types) = (BTreeSet::new(), BTreeSet::new());
    for row in table.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let first = row.split('|').nth(1).expect("a column").trim();
        let hex = |text: &str| {
            let digits = text.trim().strip_prefix("0x").expect("hexadecimal");
            u32::from_str_radix(digits, 16).expect("a number")
        };
        match first.strip_prefix("type ") {
            Some(kind) => drop(types.insert(u8::try_from(hex(kind)).expect("a type"))),
            None => nids.extend(first.split(',').map(hex)),
        }
    }
    (nids, types)
}

#[test]
fn the_page_lists_what_is_derived_and_nothing_else() {
    let (nids, types) = listed();
    assert!(nids.len() > 5 && types.len() > 5, "{nids:x?} {types:x?}");
    for kind in 0..0x20u8 {
        // An index that no node of the list has.
        let nid = Nid::new(NidType(kind), 0x7777);
        assert_eq!(
            is_derived_node(nid),
            types.contains(&kind),
            "type {kind:#x}"
        );
    }
    for nid in 0..0x2_0000 {
        let nid = Nid(nid);
        let said = nids.contains(&nid.0) || types.contains(&nid.kind().0);
        assert_eq!(is_derived_node(nid), said, "{nid}");
    }
}
