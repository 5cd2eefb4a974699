//! The core paths in one process, measured by criterion: walk, inventory, delta, compile, apply.
//!
//! The file lies in the page cache: what is measured is our own work, not the disk's.
//! `PSTSYNCD_BENCH_CORE_MB` sets its size (32 without).

mod support;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pst::delta::{Reach, Relation, Trust, between, since};
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::ltp::PropertyContext;
use pst::messaging::{Step, tags};
use pst::scan::{Depth, scan};
use pst::{Nid, Pst};
use storage::{FileStorage, ReadAt};
use sync::{Package, apply, compare, compile};

/// Opens the file and reads the subject of every message, folder by folder; counts them.
fn walk(path: &Path) -> Result<usize> {
    let pst = support::open(path)?;
    let tree = pst.folder_tree()?;
    let order: Vec<Nid> = tree.folders.keys().copied().collect();
    let mut found = 0;
    pst.each_message::<pst::PstError>(&tree, &order, &mut |step| {
        if let Step::Message(message) = step {
            let entry = &message.entry;
            let context = PropertyContext::open(pst.ndb(), entry.bid_data, entry.bid_sub)?;
            found += usize::from(context.get(tags::SUBJECT)?.is_some());
        }
        Ok(())
    })?;
    Ok(found)
}

/// Opens the file and brings a known inventory up to date.
fn update(path: &Path, previous: &Inventory) -> Result<Inventory> {
    Ok(Inventory::update(&support::open(path)?, previous)?)
}

/// From the base's inventory and the changed file to the change list with its carrier.
fn delta(path: &Path, base: &Inventory) -> Result<Package> {
    let pst = support::open(path)?;
    let now = Inventory::update(&pst, base)?;
    let changes: Vec<_> = compare(base, &now)
        .into_iter()
        .map(|change| {
            let nid = change.nid();
            (change, nid)
        })
        .collect();
    Ok(compile(&pst, changes)?)
}

/// A stage that fails is a bug of ours: a benchmark has nothing to measure then.
fn must<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e:#}"))
}

fn core(c: &mut Criterion) {
    let megabytes = std::env::var("PSTSYNCD_BENCH_CORE_MB")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(32);
    let dir = must(
        "temporary directory",
        tempfile::tempdir().map_err(Into::into),
    );
    let base = must("generator", support::generated(dir.path(), megabytes));
    let changed = dir.path().join("changed.pst");
    must("copy", std::fs::copy(&base, &changed).map_err(Into::into));
    let ranges = must(
        "edit",
        support::change_subject_to(&changed, "Another subject"),
    );
    let pst = must("open", support::open(&base));
    let bid_next = must("last block", pst.ndb().next_bid().map_err(Into::into));
    let count = must("messages", support::messages(&pst)).len() as u64;
    let before = must("inventory", Inventory::read(&pst).map_err(Into::into));
    let package = must("delta", delta(&changed, &before));
    assert_eq!(package.changes.len(), 1, "one subject is one change");

    let mut group = c.benchmark_group("messages");
    group.sample_size(10);
    group.throughput(Throughput::Elements(count));
    group.bench_function("walk", |b| b.iter(|| must("walk", walk(black_box(&base)))));
    group.bench_function("scan", |b| {
        b.iter(|| {
            must(
                "scan",
                support::open(&base).and_then(|p| Ok(scan(&p, Depth::Named)?)),
            )
        });
    });
    group.bench_function("inventory_read", |b| {
        b.iter(|| must("read", update(&base, &Inventory::default())));
    });
    group.bench_function("dump", |b| {
        b.iter(|| {
            let pst = must("open", support::open(&base));
            let mut bytes = 0;
            let done = dump(&pst, DumpOptions::default(), &mut |line| {
                bytes += line.len();
                Ok(())
            });
            must("dump", done.map_err(Into::into));
            bytes
        });
    });
    group.finish();

    // What happened to one message: this must not grow with the file, and what of it does shows here.
    let mut group = c.benchmark_group("one_change");
    group.sample_size(20);
    group.bench_function("open_and_index", |b| {
        b.iter(|| {
            must(
                "index",
                support::open(&changed).and_then(|p| Ok(p.index()?)),
            )
        });
    });
    group.bench_function("delta_by_ranges", |b| {
        b.iter(|| {
            let now = must("open", support::open(&changed));
            let trust = Trust::Written {
                bid_next,
                ranges: &ranges,
            };
            let delta = must("delta", since(&before, &now, trust).map_err(Into::into));
            assert_eq!((delta.reach, delta.changes.len()), (Reach::Ranges, 1));
        });
    });
    group.bench_function("delta_of_two_versions", |b| {
        b.iter(|| {
            let (old, new) = (
                must("open", support::open(&base)),
                must("open", support::open(&changed)),
            );
            let delta = between(&old, &new, Relation::SameLineage);
            let delta = must("delta", delta.map_err(Into::into));
            assert_eq!((delta.reach, delta.changes.len()), (Reach::Pages, 1));
        });
    });
    group.bench_function("inventory_update", |b| {
        b.iter(|| must("update", update(&changed, &before)));
    });
    group.bench_function("diff_and_compile", |b| {
        b.iter(|| must("delta", delta(&changed, &before)));
    });
    let file = must(
        "open",
        FileStorage::open_read_only(&base).map_err(Into::into),
    );
    let file: Arc<dyn ReadAt> = Arc::new(file);
    group.bench_function("apply", |b| {
        b.iter(|| {
            let done = must(
                "apply",
                apply(Arc::clone(&file), &package).map_err(Into::into),
            );
            assert_eq!(done.done, 1);
            done.write_set
        });
    });
    group.finish();

    // Ten thousand messages into an empty file, in one transaction, as a first sync does it: those of
    // the file, over and over.
    let source = must("open", support::open(&base));
    let mail: Vec<_> = must("messages", support::messages(&source))
        .into_iter()
        .cycle()
        .take(10_000)
        .map(|(_, nid)| nid)
        .collect();
    let mut group = c.benchmark_group("transaction");
    group.sample_size(10);
    group.throughput(Throughput::Elements(mail.len() as u64));
    group.bench_function("add_messages", |b| {
        b.iter(|| must("add", add_all(&source, &mail)));
    });
    group.finish();
}

/// Reads messages and adds them to a new file in memory; the bytes that this writes.
fn add_all(source: &Pst, mail: &[Nid]) -> Result<u64> {
    let empty = pst::create_empty(b"benchmark of add")?;
    let mut tx = pst::messaging::Transaction::begin(Arc::new(storage::MemStorage::from(empty)))?;
    let top = tx.ipm_subtree()?;
    for nid in mail {
        let message = tx.import_message(&source.message(*nid)?, source.names())?;
        tx.add_message(top, None, &message, false)?;
    }
    Ok(tx.finish()?.payload())
}

criterion_group!(benches, core);
criterion_main!(benches);
