//! apply(base, diff(base, new)) holds the same mail as new: on versions of real files, on a real
//! writer's edits, and again on what was applied already.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use pst::Pst;
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use storage::{MemStorage, ReadAt, WriteAt};
use support::{shared, skip, trace};
use sync::{Counts, Package, apply, compare, compile, compile_with, details_from, expected};

fn open(bytes: &[u8]) -> Pst {
    Pst::open(Arc::new(MemStorage::from(bytes.to_vec()))).expect("opens")
}

fn dumped(bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut emit = |line: &str| {
        lines.push(line.to_owned());
        Ok(())
    };
    dump(&open(bytes), DumpOptions::default(), &mut emit).expect("dumps");
    lines
}

fn applied(base: &[u8], package: &Package) -> (Vec<u8>, usize) {
    let file = Arc::new(MemStorage::from(base.to_vec()));
    let applied = apply(Arc::clone(&file) as Arc<dyn ReadAt>, package).expect("applies");
    applied
        .write_set
        .commit(file.as_ref() as &dyn WriteAt)
        .expect("commits");
    (file.to_vec(), applied.done)
}

/// Checks every promise of diff and apply on one pair; gives the encoded package's length.
fn check_pair(name: &str, old: &[u8], new: &[u8]) -> usize {
    let (base, target) = (open(old), open(new));
    let before = Inventory::read(&base).expect("inventory");
    let after = Inventory::read(&target).expect("inventory");
    let changes = compare(&before, &after);
    let counts = Counts::of(&changes);
    let listed: Vec<_> = changes.iter().map(|c| (c.clone(), c.nid())).collect();
    let whole = compile(&target, listed.clone()).expect("compiles");
    let package = compile_with(&target, listed, &mut details_from(&base)).expect("compiles");
    let encoded = package.encode().expect("encodes");
    let package = Package::decode(&encoded).expect("decodes");
    let carried = Pst::open(package.carrier.unfold().expect("unfolds"));
    if !package.carrier.is_empty() {
        let found = pst::check::check(carried.expect("a PST").ndb());
        assert!(found.is_empty(), "{name}: the carrier: {found:?}");
    }

    let (result, done) = applied(old, &package);
    assert_eq!(done, changes.len(), "{name}: every entry was work to do");
    let (got, want) = (dumped(&result), dumped(new));
    if let Some((a, b)) = got.iter().zip(&want).find(|(a, b)| a != b) {
        let at = a
            .bytes()
            .zip(b.bytes())
            .take_while(|(x, y)| x == y)
            .count()
            .saturating_sub(80);
        let around = |line: &str| line.chars().skip(at).take(400).collect::<String>();
        panic!("{name}: dumps differ:\n{}\n{}", around(a), around(b));
    }
    assert_eq!(got.len(), want.len(), "{name}");
    let digest = Inventory::read(&open(&result)).expect("inventory").digest();
    assert_eq!(
        digest,
        expected(&before, &changes, &BTreeMap::new()).digest(),
        "{name}"
    );
    assert_eq!(digest, after.digest(), "{name}");
    let errors: Vec<_> = pst::check::check(open(&result).ndb())
        .into_iter()
        .filter(|f| f.severity == pst::check::Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?}");

    assert_eq!(
        applied(old, &package).0,
        result,
        "{name}: apply is a pure function"
    );
    let (again, done) = applied(&result, &package);
    assert_eq!(
        (again == result, done),
        (true, 0),
        "{name}: applying twice changes nothing"
    );
    // Whole objects say the same as patches.
    assert_eq!(dumped(&applied(old, &whole).0), want, "{name}: whole");
    let whole = whole.encode().expect("encodes").len();
    println!(
        "{name}: {counts:?}, {} bytes; {whole} with whole objects",
        encoded.len()
    );
    encoded.len()
}

#[test]
fn a_real_writers_edits() {
    let Some(mail) = trace::mail_pst() else {
        return skip::skipped("traces", "no traces on this machine");
    };
    let mut now = mail;
    for name in ["edits-11", "edits-12"] {
        let before = now.clone();
        for call in trace::calls(name) {
            trace::replay_in_memory(&mut now, &call);
        }
        check_pair(name, &before, &now);
        check_pair(&format!("{name} backwards"), &now, &before);
    }
}

#[test]
fn versions_of_a_real_store() {
    let (Some(old), Some(new)) = (
        shared("corpus/outlook_1.pst"),
        shared("corpus/outlook_1-later.pst"),
    ) else {
        return skip::skipped("corpus", "no corpus on this machine");
    };
    let (old, new) = (
        std::fs::read(old).expect("reads"),
        std::fs::read(new).expect("reads"),
    );
    check_pair("outlook_1", &old, &new);
    check_pair("outlook_1 backwards", &new, &old);
}
