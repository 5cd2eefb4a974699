//! Real files as two other readers see them: wherever libpff and libpst agree about a file, the
//! engine says the same; where it differs from one of them, the difference stands in the table below
//! and is explained in docs/COMPATIBILITY.md under the name that the table gives.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod facts;
mod libpff;
mod libpst;
mod lzfu;
mod ours;
mod rules;
mod rust;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use facts::{Bag, FACETS, FOLDER, Facts, RECIPIENT, both, count, minus};
use ours::Known;
use pst::messaging::Pst;
use rules::{RULES, Reader, Side};
use storage::FileStorage;

/// The file whose 8-bit text is Japanese, which the other readers show as Windows-1252 or as raw
/// bytes. The comparison does the same; the text itself has a test of its own.
const JAPANESE: &str = "ansi-contacts.pst";

fn storage(path: &Path) -> Arc<FileStorage> {
    Arc::new(FileStorage::open_read_only(path).unwrap())
}

/// What no rule explains of a difference.
fn unexplained(
    (known, ours): (&Known, &Facts),
    difference: &Bag,
    (reader, side, facet): (Reader, Side, &str),
    used: &mut BTreeSet<usize>,
) -> Vec<String> {
    let mut out = Vec::new();
    for (statement, n) in difference {
        let mut rules = RULES.iter().enumerate();
        let found = rules.find(|(_, r)| {
            (r.reader, r.side) == (reader, side) && (r.explains)(known, ours, facet, statement)
        });
        match found {
            Some((i, _)) => {
                used.insert(i);
            }
            None => out.push(format!("{n} x {statement}")),
        }
    }
    out
}

#[test]
fn the_engine_says_what_libpff_and_libpst_agree_on() {
    let Some(dir) = support::shared() else { return };
    let (mut wrong, mut used, mut total) = (Vec::new(), BTreeSet::new(), 0);
    for file in support::readable_files() {
        let path = dir.join("corpus").join(file);
        let (ours, known) = ours::facts(storage(&path), file == JAPANESE);
        let (Some(pff), Some(pst)) = (libpff::facts(&path, &known.top), libpst::facts(&path))
        else {
            support::skip::skipped("readers", "pffexport or readpst is not installed");
            return;
        };
        assert!(count(&ours.of(FOLDER)) > 3, "{file}");
        for facet in FACETS {
            let (own, pff, pst) = (ours.of(facet), pff.of(facet), pst.of(facet));
            let agreed = both(&pff, &pst);
            total += count(&agreed);
            for statement in minus(&agreed, &own).keys() {
                wrong.push(format!("{file} {facet}: both others say {statement}"));
            }
            let differences = [
                (Reader::Libpff, Side::TheirsAlone, minus(&pff, &own)),
                (Reader::Libpff, Side::OursAlone, minus(&own, &pff)),
                (Reader::Libpst, Side::TheirsAlone, minus(&pst, &own)),
                (Reader::Libpst, Side::OursAlone, minus(&own, &pst)),
            ];
            let mut explained = Vec::new();
            for (reader, side, difference) in &differences {
                let about = (*reader, *side, facet);
                let left = unexplained((&known, &ours), difference, about, &mut used);
                explained.push(count(difference));
                for statement in left {
                    wrong.push(format!("{file} {facet} {reader:?} {side:?}: {statement}"));
                }
            }
            if !own.is_empty() {
                println!(
                    "{file} {facet}: {} ours, {} libpff, {} libpst, {} in both; libpff alone {}, \
                     not in libpff {}, libpst alone {}, not in libpst {}",
                    count(&own),
                    count(&pff),
                    count(&pst),
                    count(&agreed),
                    explained[0],
                    explained[1],
                    explained[2],
                    explained[3]
                );
            }
        }
    }
    println!("{total} statements that both others make are ours too");
    assert!(wrong.is_empty(), "{wrong:#?}");
    let dead = RULES.iter().enumerate().filter(|(i, _)| !used.contains(i));
    let dead: Vec<_> = dead.map(|(_, r)| (r.name, r.reader, r.side)).collect();
    assert!(dead.is_empty(), "rules that explain nothing: {dead:?}");
    assert!(total > 900, "{total}");
}

/// Statements about recipients without the folder, and only of messages in folders.
fn of_recipients(facts: &Facts) -> Bag {
    let mut out = Bag::new();
    for (statement, n) in facts.of(RECIPIENT) {
        let (place, rest) = statement.split_once('|').unwrap();
        if !rest.contains(">|") && !place.contains('>') {
            *out.entry(rest.to_owned()).or_default() += n;
        }
    }
    out
}

#[test]
fn recipients_are_those_that_libpff_and_outlook_pst_agree_on() {
    let Some(dir) = support::shared() else { return };
    let mut total = 0;
    for file in support::UNICODE_FILES {
        let path = dir.join("corpus").join(file);
        let (ours, known) = ours::facts(storage(&path), false);
        let Some(pff) = libpff::facts(&path, &known.top) else {
            support::skip::skipped("readers", "pffexport is not installed");
            return;
        };
        let pst = Pst::open(storage(&path)).unwrap();
        let index = pst.index().unwrap();
        let messages = index.messages.values().flatten();
        let messages: Vec<_> = messages.filter(|m| !m.associated).map(|m| m.nid).collect();
        let (theirs, read) = rust::recipients(&path, &messages);
        let agreed = both(&of_recipients(&pff), &theirs);
        println!(
            "{file}: outlook-pst reads {read} of {} messages; {} recipients in both others",
            messages.len(),
            count(&agreed)
        );
        let own = of_recipients(&ours);
        assert_eq!(minus(&agreed, &own), Bag::new(), "{file}");
        // What it alone says, libpff's export leaves out: meetings have no recipients there.
        assert_eq!(minus(&theirs, &own), Bag::new(), "{file}");
        total += count(&agreed);
    }
    assert!(total > 50, "{total}");
}

#[test]
fn every_rule_is_explained_in_the_documentation() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/COMPATIBILITY.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for rule in &RULES {
        assert!(
            docs.contains(&format!("**{}.**", rule.name)),
            "{}",
            rule.name
        );
    }
}

#[test]
fn eight_bit_text_is_read_in_the_code_page_of_its_store() {
    let Some(dir) = support::shared() else { return };
    let path = dir.join("corpus").join(JAPANESE);
    let pst = Pst::open(storage(&path)).unwrap();
    let page = pst.code_page().unwrap().unwrap();
    let mut names: Vec<String> = pst
        .folders()
        .unwrap()
        .iter()
        .filter_map(|f| pst.folder(f.nid).unwrap().props.get(0x3001).cloned())
        .map(|name| name.as_text_in(page).unwrap())
        .map(|text| {
            assert!(text.lossless, "{}", text.text);
            text.text
        })
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "",
            "IPM_COMMON_VIEWS",
            "Outlook データ ファイルのトップ",
            "削除済みアイテム",
            "検索ルート",
            "連絡先 (Contact dedicated)"
        ]
    );
}
