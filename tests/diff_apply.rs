//! apply(base, diff(base, new)) holds the same mail as new, and is the same bytes in another process:
//! on versions of real files, on every state that a real writer left behind, on files that have nothing to
//! do with each other, and on versions that a random mail program of our own makes.
//!
//! `PSTSYNCD_PAIRS` sets the number of generated pairs (200 without), and with 1,000 or more every file
//! of the corpus is also held against every other one, instead of against the next.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::{Pst, PstError};
use storage::{MemStorage, ReadAt, WriteAt};
use support::editor::{Random, edited, empty, random_edits};
use support::{shared, skip, trace};
use sync::{Counts, Package, apply, compare, compile, compile_with, details_from, expected};

/// Where the child finds its pairs.
const PAIRS: &str = "PSTSYNCD_PAIRS_DIR";

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

fn pairs() -> u64 {
    std::env::var("PSTSYNCD_PAIRS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(200)
}

/// From two versions to the package as it is sent.
struct Diff {
    before: Inventory,
    after: Inventory,
    changes: Vec<sync::Change>,
    encoded: Vec<u8>,
    /// The same with whole objects instead of patches.
    whole: Vec<u8>,
}

fn diff(old: &[u8], new: &[u8]) -> Diff {
    let (base, target) = (open(old), open(new));
    let before = Inventory::read(&base).expect("inventory");
    let after = Inventory::read(&target).expect("inventory");
    let changes = compare(&before, &after);
    let listed: Vec<_> = changes.iter().map(|c| (c.clone(), c.nid())).collect();
    let whole = compile(&target, listed.clone()).expect("compiles");
    let package = compile_with(&target, listed, &mut details_from(&base)).expect("compiles");
    if !package.carrier.is_empty() {
        let carried = Pst::open(package.carrier.unfold().expect("unfolds")).expect("a PST");
        let found = pst::check::check(carried.ndb());
        assert!(found.is_empty(), "the carrier: {found:?}");
    }
    Diff {
        encoded: package.encode().expect("encodes"),
        whole: whole.encode().expect("encodes"),
        before,
        after,
        changes,
    }
}

/// The file after an apply, how many entries did something, and a digest of the writes in their order.
fn applied(base: &[u8], package: &[u8]) -> (Vec<u8>, usize, blake3::Hash) {
    let package = Package::decode(package).expect("decodes");
    let file = Arc::new(MemStorage::from(base.to_vec()));
    let applied = apply(Arc::clone(&file) as Arc<dyn ReadAt>, &package).expect("applies");
    let mut h = blake3::Hasher::new();
    let set = &applied.write_set;
    h.update(&set.base_len.to_le_bytes());
    h.update(&set.target_len.to_le_bytes());
    for phase in &set.phases {
        h.update(&(phase.writes.len() as u64).to_le_bytes());
        for (at, bytes) in &phase.writes {
            h.update(&at.to_le_bytes());
            h.update(&bytes.len().to_le_bytes());
            h.update(&bytes.to_vec().expect("reads"));
        }
    }
    for (from, to) in &applied.nid_map {
        h.update(&from.0.to_le_bytes());
        h.update(&to.0.to_le_bytes());
    }
    set.commit(file.as_ref() as &dyn WriteAt).expect("commits");
    (file.to_vec(), applied.done, h.finalize())
}

/// The kinds of errors that a check finds.
fn errors(bytes: &[u8]) -> BTreeSet<String> {
    pst::check::check(open(bytes).ndb())
        .into_iter()
        .filter(|f| f.severity == pst::check::Severity::Error)
        .map(|f| f.code.to_string())
        .collect()
}

/// A line of a dump without what counts a folder's content: bookkeeping, which a file that the engine writes
/// has, and which other writers leave out here and there.
fn without_counts(line: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(line).expect("JSON");
    if let Some(props) = value.get_mut("props").and_then(|p| p.as_array_mut()) {
        let counts = ["0x3602", "0x3603", "0x360a", "0x3617", "0x6635", "0x6636"];
        props.retain(|p| !p["tag"].as_str().is_some_and(|tag| counts.contains(&tag)));
    }
    value.to_string()
}

/// What a pair comes to, for the second run.
struct Outcome {
    name: String,
    line: String,
    package: usize,
    counts: Counts,
}

/// Checks every promise of diff and apply on one pair.
/// Versions of one file keep the bookkeeping of its writer; a file that becomes another one keeps its own.
fn check_pair(name: &str, old: &[u8], new: &[u8], versions: bool) -> Outcome {
    let Diff {
        before,
        after,
        changes,
        encoded,
        whole,
    } = diff(old, new);
    let (result, done, writes) = applied(old, &encoded);
    assert_eq!(done, changes.len(), "{name}: every entry was work to do");
    let (mut got, mut want) = (dumped(&result), dumped(new));
    if !versions {
        for line in got.iter_mut().chain(&mut want) {
            *line = without_counts(line);
        }
    }
    if let Some((a, b)) = got.iter().zip(&want).find(|(a, b)| a != b) {
        let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y);
        let at = same.count().saturating_sub(80);
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
    let (faults, known) = (errors(&result), errors(old));
    assert!(
        faults.is_subset(&known),
        "{name}: {faults:?}, before {known:?}"
    );
    let (again, done, _) = applied(&result, &encoded);
    assert!(
        again == result && done == 0,
        "{name}: applying twice changes nothing"
    );
    // Whole objects say the same as patches.
    let mut same = dumped(&applied(old, &whole).0);
    if !versions {
        same.iter_mut()
            .for_each(|line| *line = without_counts(line));
    }
    assert!(same == want, "{name}: whole objects say something else");
    println!(
        "{name}: {:?}, {} bytes; {} with whole objects",
        Counts::of(&changes),
        encoded.len(),
        whole.len()
    );
    Outcome {
        name: name.to_owned(),
        line: format!("{} {writes}", blake3::hash(&encoded)),
        package: encoded.len(),
        counts: Counts::of(&changes),
    }
}

/// Pairs, checked here and once more by another process: whose hash maps have other seeds, and where
/// memory lies elsewhere.
struct Twice {
    dir: tempfile::TempDir,
    done: Vec<Outcome>,
}

impl Twice {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            done: Vec::new(),
        }
    }

    fn pair(&mut self, name: &str, old: &[u8], new: &[u8]) -> (usize, Counts) {
        self.check(name, old, new, true)
    }

    fn check(&mut self, name: &str, old: &[u8], new: &[u8], versions: bool) -> (usize, Counts) {
        let outcome = check_pair(name, old, new, versions);
        let path = self.dir.path().join(format!("{:06}", self.done.len()));
        std::fs::write(path.with_extension("old"), old).expect("writes");
        std::fs::write(path.with_extension("new"), new).expect("writes");
        let told = (outcome.package, outcome.counts);
        self.done.push(outcome);
        if self.done.len() >= 50 {
            self.again();
        }
        told
    }

    fn again(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let out = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child_that_does_it_again", "--nocapture"])
            .env(PAIRS, self.dir.path())
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{text}");
        let lines: Vec<&str> = text
            .lines()
            .filter_map(|l| l.strip_prefix("pair "))
            .collect();
        assert_eq!(lines.len(), self.done.len(), "{text}");
        for (outcome, line) in self.done.iter().zip(lines) {
            assert_eq!(
                outcome.line, line,
                "{}: another process, other bytes",
                outcome.name
            );
        }
        *self = Self::new();
    }
}

#[test]
fn child_that_does_it_again() {
    let Some(dir) = std::env::var_os(PAIRS) else {
        return;
    };
    let mut text = String::from("\n");
    for i in 0.. {
        let path = Path::new(&dir).join(format!("{i:06}"));
        let Ok(old) = std::fs::read(path.with_extension("old")) else {
            break;
        };
        let new = std::fs::read(path.with_extension("new")).expect("reads");
        let encoded = diff(&old, &new).encoded;
        let (_, _, writes) = applied(&old, &encoded);
        writeln!(text, "pair {} {writes}", blake3::hash(&encoded)).expect("text");
    }
    print!("{text}");
}

#[test]
fn a_real_writers_edits() {
    let Some(mail) = trace::mail_pst() else {
        return skip::skipped("traces", "no traces on this machine");
    };
    let mut twice = Twice::new();
    let mut now = mail;
    for name in ["edits-11", "edits-12"] {
        let first = now.clone();
        let mut last = now.clone();
        let mut known = Inventory::read(&open(&now)).expect("inventory");
        let mut states = 0;
        for call in trace::calls(name) {
            trace::replay_in_memory(&mut now, &call);
            let header = matches!(call, trace::Call::Write { offset, .. } if offset < 564);
            let Some(found) = header.then(|| consistent(&now, &known)).flatten() else {
                continue;
            };
            if found.digest() != known.digest() {
                states += 1;
                known = found;
                // Each state is looked for; not each is worth its minute in every run.
                if pairs() >= 1000 || states % 8 == 0 {
                    twice.pair(&format!("{name}, state {states}"), &last, &now);
                    last.clone_from(&now);
                }
            }
        }
        println!("{name}: {states} states");
        assert!(states >= 8, "{name} has states on its way: {states}");
        let (bytes, counts) = twice.pair(name, &first, &now);
        println!("{name}: {bytes} bytes, {counts:?}");
        twice.pair(&format!("{name} backwards"), &now, &first);
    }
    twice.again();
}

/// The file's objects, where its writer is between two commits. It keeps BIDs, and so `known` holds.
fn consistent(file: &[u8], known: &Inventory) -> Option<Inventory> {
    let pst = Pst::open(Arc::new(MemStorage::from(file.to_vec()))).ok()?;
    let valid = pst.ndb().header().maps_valid();
    valid.then(|| Inventory::update(&pst, known).ok()).flatten()
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
    let mut twice = Twice::new();
    twice.pair("outlook_1", &old, &new);
    twice.pair("outlook_1 backwards", &new, &old);
    twice.again();
}

/// A file's name, and what is in it.
type NamedFile = (String, Vec<u8>);

/// The files of the corpus that can be written, by format: what cannot be opened is no base.
fn corpus() -> Option<BTreeMap<u16, Vec<NamedFile>>> {
    let mut out: BTreeMap<u16, Vec<NamedFile>> = BTreeMap::new();
    let mut paths: Vec<_> = std::fs::read_dir(shared("corpus")?)
        .expect("lists")
        .map(|e| e.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "pst"))
    {
        let bytes = std::fs::read(path).expect("reads");
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let reader: Arc<dyn ReadAt> = Arc::new(MemStorage::from(bytes.clone()));
        match Pst::open(reader) {
            Ok(pst) if Inventory::read(&pst).is_ok() => {
                let version = pst.ndb().header().version;
                out.entry(version).or_default().push((name, bytes));
            }
            Ok(_)
            | Err(PstError::Corrupt { .. } | PstError::NotPst(_) | PstError::Unsupported(_)) => {
                println!("{name}: cannot be read");
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
    Some(out)
}

#[test]
fn files_that_have_nothing_to_do_with_each_other() {
    let Some(corpus) = corpus() else {
        return skip::skipped("corpus", "no corpus on this machine");
    };
    let every = pairs() >= 1000;
    let mut twice = Twice::new();
    let mut count = 0;
    for files in corpus.values() {
        for (i, (a, old)) in files.iter().enumerate() {
            for (j, (b, new)) in files.iter().enumerate() {
                let next = j == (i + 1) % files.len();
                if i != j && (every || next) {
                    twice.check(&format!("{a} to {b}"), old, new, false);
                    count += 1;
                }
            }
        }
    }
    twice.again();
    println!("{count} pairs");
    assert!(count >= 8, "{count}");
}

#[test]
fn generated_versions() {
    let mut twice = Twice::new();
    let mut actions = Counts::default();
    let mut random = Random(1);
    let mut file = empty();
    for n in 0..pairs() {
        // A new file now and then; else the versions follow each other.
        if n % 25 == 0 {
            random = Random(n + 77);
            let filled = edited(&empty(), |tx| {
                let top = tx.ipm_subtree().expect("a top folder");
                let name = pst::ltp::PropValue::string(pst::messaging::tags::DISPLAY_NAME, "Mail");
                tx.create_folder(top, None, &[name].into_iter().collect())
                    .expect("creates");
            });
            let steps = random.below(30);
            file = random_edits(&filled, &mut random, steps);
        }
        let steps = 1 + random.below(6);
        let new = random_edits(&file, &mut random, steps);
        let name = format!("generated {n}");
        let (_, counts) = twice.pair(&name, &file, &new);
        actions.added += counts.added;
        actions.updated += counts.updated;
        actions.moved += counts.moved;
        actions.deleted += counts.deleted;
        if random.below(4) == 0 {
            twice.pair(&format!("{name} backwards"), &new, &file);
        }
        file = new;
    }
    twice.again();
    println!("{actions:?}");
    let Counts {
        added,
        updated,
        moved,
        deleted,
    } = actions;
    assert!(
        added > 20 && updated > 20 && moved > 5 && deleted > 10,
        "{actions:?}"
    );
}
