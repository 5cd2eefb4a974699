//! What the check says about real files: every finding is listed and explained in docs/CHECK.md.
//!
//! `PSTSYNCD_BLESS=1` writes the list anew; the explanations are written by hand.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;

use pst::check::{Options, Severity, check_storage};
use support::{bytes, doc, shared};

#[test]
fn findings_on_real_files_are_listed_and_explained() {
    let Some(dir) = shared() else { return };
    let mut names: Vec<_> = std::fs::read_dir(dir.join("corpus"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "pst" || e == "ost"))
        .collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    let mut list = String::from("| file | findings |\n|---|---|\n");
    let mut codes = BTreeSet::new();
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let data = std::fs::read(&path).unwrap();
        let said = match check_storage(bytes(data), &Options::default()) {
            Ok(report) => {
                for f in &report.findings {
                    println!("{name}: {f}");
                }
                let sound = report.count(Severity::Error) == 0;
                assert!(sound || name == "broken-header.pst", "{name}");
                codes.extend(report.counts.keys().map(|c| c.name()));
                let each = report.counts.iter().map(|(c, n)| match n {
                    1 => format!("`{c}`"),
                    n => format!("`{c}` {n} times"),
                });
                each.collect::<Vec<_>>().join(", ")
            }
            Err(e) => format!("not checked: {e}"),
        };
        writeln!(list, "| {name} | {said} |").unwrap();
    }
    let text = doc::section("CHECK.md", "corpus", &list);
    for code in codes {
        assert!(
            text.contains(&format!("\n* `{code}`: ")),
            "{code} occurs in real files and is not explained"
        );
    }
}
