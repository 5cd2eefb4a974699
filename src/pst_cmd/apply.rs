//! `pst apply`: does to a PST what `pst diff` wrote down.
//!
//! The result is worked out in memory first and must be exactly what the change list says; then it is
//! written in ordered, flushed phases, each of which leaves a valid PST, and read again. A run that
//! was cut short is simply run again: what is done already is skipped. While another program holds
//! the file, nothing is written.

use std::fs::{self, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use pst::Pst;
use pst::inventory::Inventory;
use pst::ndb::EditOptions;
use serde::Serialize;
use storage::{FileStorage, ReadAt, ScratchDir};
use sync::{Counts, MAX_PACKAGE, Package, apply_with, as_current, expected};

use super::{explain, explain_sync, open_file};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

/// Bytes of a package beside its record: head and digest.
const PACKAGE_FRAME: u64 = 64;

#[derive(Serialize)]
struct Report {
    file: String,
    added: usize,
    updated: usize,
    moved: usize,
    deleted: usize,
    /// Entries that changed something; the others were done already.
    done: usize,
    /// Added objects whose NID was taken: what it was to be, and what it is.
    remapped: Vec<(String, String)>,
    written_bytes: u64,
    /// The file was read again and holds what was worked out.
    verified: bool,
}

pub(super) fn run(path: &Path, changes: &Path, out: &mut Output) -> Outcome {
    let package = read_package(changes)?;
    let file = open_alone(path)?;
    let base: Arc<dyn ReadAt> = Arc::clone(&file) as _;
    let failed = |e| explain(path, &e);
    let io = |e| UserError::file("change", path, &e);

    let before = Inventory::read(&Pst::open(Arc::clone(&base)).map_err(failed)?).map_err(failed)?;
    // What is large waits in a temporary file until it is written.
    let options = EditOptions {
        scratch: Some(Arc::new(ScratchDir::new(std::env::temp_dir()))),
        memory: 64 << 20,
        ..EditOptions::default()
    };
    let applied =
        apply_with(Arc::clone(&base), &package, &options).map_err(|e| explain_sync(path, &e))?;
    let result = applied.write_set.preview(base).map_err(io)?;
    // Held against what the change list says, not against what came out.
    let result: Arc<dyn ReadAt> = Arc::new(result);
    let after = Pst::open(Arc::clone(&result)).map_err(failed)?;
    let changes =
        as_current(&package, &after, &applied.nid_map).map_err(|e| explain_sync(path, &e))?;
    let wanted = expected(&before, &changes, &applied.nid_map).digest();
    let worked_out = inventory_after(result, &before).map_err(failed)?.digest();
    if worked_out != wanted {
        return Err(UserError::new(
            "not-exact",
            format!(
                "the changes cannot be applied to {} exactly",
                path.display()
            ),
            "nothing was written; make them again with pst diff, from the same older version",
        ));
    }

    applied
        .write_set
        .commit(&*file)
        .map_err(|e| cut_short(path, &e))?;
    let verified = inventory_after(Arc::clone(&file) as _, &before)
        .map_err(failed)?
        .digest()
        == wanted;
    if !verified {
        return Err(UserError::new(
            "not-verified",
            format!(
                "{} holds something else than was written to it",
                path.display()
            ),
            "look for a program that writes to it, and check the disk",
        ));
    }
    let counts = Counts::of(&package.changes);
    let report = Report {
        file: path.display().to_string(),
        added: counts.added,
        updated: counts.updated,
        moved: counts.moved,
        deleted: counts.deleted,
        done: applied.done,
        remapped: applied
            .nid_map
            .iter()
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .collect(),
        written_bytes: applied.write_set.payload(),
        verified,
    };
    out.result(&report, |out| {
        if report.done == 0 {
            let name = clean(&report.file);
            return out.line(format_args!(
                "Nothing to do: {name} holds all of it already"
            ));
        }
        out.line(format_args!(
            "{}: {} added, {} updated, {} moved, {} deleted; {} written, read again and verified",
            clean(&report.file),
            count(report.added as u64),
            count(report.updated as u64),
            count(report.moved as u64),
            count(report.deleted as u64),
            size(report.written_bytes)
        ))?;
        for (proposed, given) in &report.remapped {
            out.line(format_args!("{proposed} was taken: the object is {given}"))?;
        }
        Ok(())
    })?;
    Ok(ExitStatus::Synced)
}

fn inventory_after(file: Arc<dyn ReadAt>, before: &Inventory) -> pst::Result<Inventory> {
    Inventory::update(&Pst::open(file)?, before)
}

fn cut_short(path: &Path, error: &std::io::Error) -> UserError {
    UserError {
        code: "cut-short".to_owned(),
        next: "the file is a valid PST, as before or as after: run the command again".to_owned(),
        ..UserError::file("write all of the change to", path, error)
    }
}

fn read_package(path: &Path) -> Result<Package, UserError> {
    let file = open_file(path)?;
    let failed = |e| UserError::file("read", path, &e);
    let wrong = |detail: String| {
        UserError::new(
            "not-a-change-list",
            format!("{} is no change list: {detail}", path.display()),
            "name a file that pstsyncd pst diff wrote",
        )
    };
    let len = file.len().map_err(failed)?;
    let too_long = || wrong(format!("{} is more than one may have", size(len)));
    let bound = MAX_PACKAGE as u64 + PACKAGE_FRAME;
    let len = usize::try_from(len.min(bound + 1)).map_err(|_| too_long())?;
    if len as u64 > bound {
        return Err(too_long());
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(0, &mut bytes).map_err(failed)?;
    Package::decode(&bytes).map_err(|e| wrong(e.to_string()))
}

/// Opens the PST for writing, as long as nobody else has it open.
fn open_alone(path: &Path) -> Result<Arc<FileStorage>, UserError> {
    // What cannot even be read is told as by the other commands.
    drop(open_file(path)?);
    let failed = |e: std::io::Error| UserError::file("write to", path, &e);
    let file = FileStorage::open(path).map_err(failed)?;
    let in_use = |by: String| {
        UserError::new(
            "in-use",
            format!("{} is in use by another program{by}", path.display()),
            "close it there, then run the command again",
        )
    };
    match file.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(String::new())),
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    match other_user(path) {
        Some(pid) => Err(in_use(format!(" (process {pid})"))),
        None => Ok(Arc::new(file)),
    }
}

/// A process, not ours, that has the file open. Programs that lock nothing are seen here, as far as this
/// user may see them; Samba holds real descriptors for its clients.
fn other_user(path: &Path) -> Option<u32> {
    let wanted = fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok());
        let Some(pid) = pid.filter(|p| *p != std::process::id()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for entry in open.flatten() {
            // The kernel tells the inode by itself; asking the file system waits as long as that
            // does not answer, and any process may hold a file of one that hangs.
            let info = process.path().join("fdinfo").join(entry.file_name());
            let inode = fs::read_to_string(info).ok().and_then(|text| {
                let line = text.lines().find_map(|l| l.strip_prefix("ino:"))?;
                line.trim().parse::<u64>().ok()
            });
            if inode == Some(wanted.1)
                && fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == wanted)
            {
                return Some(pid);
            }
        }
    }
    None
}
