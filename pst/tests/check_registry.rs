//! The registry of codes against its document.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;

use pst::check::Code;
use support::doc;

#[test]
fn the_document_shows_the_registry() {
    let mut table = String::from(
        "| code | severity | level | [MS-PST] | meaning | what to do |\n|---|---|---|---|---|---|\n",
    );
    for c in Code::ALL {
        let (level, severity) = (c.level(), c.severity());
        let (section, meaning, advice) = (c.section(), c.meaning(), c.advice());
        writeln!(
            table,
            "| `{c}` | {severity} | {level} | {section} | {meaning} | {advice} |"
        )
        .unwrap();
    }
    doc::section("CHECK.md", "codes", &table);
}

#[test]
fn names_are_unique_and_lead_back() {
    let names: BTreeSet<_> = Code::ALL.iter().map(|c| c.name()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    for c in Code::ALL {
        assert_eq!(Code::from_name(c.name()), Some(*c));
        assert!(c.section().starts_with("2."), "{c}");
        assert!(
            c.meaning().ends_with('.') && c.advice().ends_with('.'),
            "{c}"
        );
    }
}
