//! What the fuzz targets do with bytes, as plain functions: the targets call them with what the fuzzer
//! makes, and the smoke test of the ordinary build with mutations of the same seeds.
//!
//! A body returns for any bytes: typed errors are what is expected. A panic, a hang, or memory beyond the
//! limit of the run is a defect.

#![allow(dead_code)]

mod packages;
mod seeds;
pub mod structures;
#[path = "../../pst/tests/support/surgery.rs"]
pub mod surgery;

use std::sync::Arc;

use pst::Pst;
use pst::check::{Options, Severity, check_storage};
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use storage::{MemStorage, ReadAt};

pub use packages::apply;
pub use seeds::seeds;
pub use structures::structures;

/// What a target does with its input.
pub type Body = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: [(&str, Body); 4] = [
    ("walk", walk),
    ("check", check),
    ("apply", apply),
    ("structures", structures),
];

/// Writes the seeds of a target into the directory that `PSTSYNCD_SEEDS` names, where it names one: the
/// fuzzer reads its corpus after that.
pub fn write_seeds(target: &str) {
    let Some(dir) = std::env::var_os("PSTSYNCD_SEEDS").map(std::path::PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&dir).expect("makes the directory");
    for (name, seed) in seeds(target) {
        std::fs::write(dir.join(name), seed).expect("writes a seed");
    }
}

pub fn memory(data: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(MemStorage::from(data.to_vec()))
}

/// Opens a file and reads all of it that anybody reads: folders, messages, dump, inventory.
pub fn walk(data: &[u8]) {
    let Ok(pst) = Pst::open(memory(data)) else {
        return;
    };
    let _ = pst.store();
    let _ = pst.ipm_subtree();
    for folder in pst.folders().unwrap_or_default() {
        let _ = pst.folder(folder.nid);
        for message in pst.messages_of(folder.nid).unwrap_or_default() {
            let _ = pst.message(message.nid);
        }
    }
    let _ = dump(&pst, DumpOptions::default(), &mut |_| Ok(()));
    let _ = Inventory::read(&pst);
    let all: storage::RangeSet = std::iter::once(0..data.len() as u64).collect();
    let _ = pst::verify_written(memory(data), &all);
}

/// Checks a file; what the check finds sound must be readable.
pub fn check(data: &[u8]) {
    let Ok(report) = check_storage(memory(data), &Options::default()) else {
        return;
    };
    assert!(report.findings.len() < 4096, "findings are bounded");
    if report.count(Severity::Error) == 0 {
        let pst = Pst::open(memory(data)).expect("a file without errors opens");
        pst.index().expect("its nodes can be walked");
    }
}
