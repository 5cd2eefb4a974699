//! `pst check --repair-maps` and `--restore-maps`: the allocation maps of a PST, and nothing else.
//!
//! What a repair replaces is durable in a file beside the PST before the first write: FILE.pstsyncd-maps,
//! in the format that `pst::repair` describes. A whole backup is never overwritten. While another program
//! holds the PST, nothing is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pst::check::{Level, Options, Report, check_storage};
use pst::ndb::Ndb;
use pst::repair::{MAX_BACKUP, MapBackup, MapRepair, REPAIRED};
use serde::Serialize;
use storage::{FileStorage, ReadAt, WriteSet};

use super::alone::{lease, open_alone, undisturbed};
use super::progress::Bar;
use super::{explain, open_file};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

#[derive(Serialize)]
struct Repaired {
    file: String,
    /// The codes of what was wrong with the maps, and how often.
    wrong: Vec<(&'static str, u64)>,
    /// Where what was replaced is kept; none where nothing was wrong.
    backup: Option<String>,
    written_bytes: u64,
    /// Errors that are none of the maps'.
    remaining_errors: u64,
    /// The file was checked again, and its maps are right.
    verified: bool,
}

#[derive(Serialize)]
struct Restored {
    file: String,
    backup: String,
    written_bytes: u64,
}

/// The backup's name: the PST's own, and a suffix.
fn backup_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pstsyncd-maps");
    PathBuf::from(name)
}

pub(super) fn repair(path: &Path, exclusive: bool, out: &mut Output) -> Outcome {
    let file = open_alone(path)?;
    lease(path, &file, exclusive)?;
    let ndb = Arc::new(Ndb::open(Arc::clone(&file) as _).map_err(|e| explain(path, &e))?);
    let bar = Bar::new();
    let tell = |_: Level, done: u64, all: u64| bar.at("checking", done, all);
    let plan = MapRepair::plan(&ndb, Some(&tell)).map_err(|e| refused(path, &e))?;
    bar.done();
    let mut report = Repaired {
        file: path.display().to_string(),
        wrong: wrong(&plan.before),
        backup: None,
        written_bytes: 0,
        remaining_errors: pst::repair::remaining(&plan.before),
        verified: true,
    };
    if !plan.is_empty() {
        let backup = backup_path(path);
        keep(&backup, &plan.backup.encode())?;
        if !undisturbed(&file, exclusive) {
            // Nothing was written; the backup belongs to nothing.
            let _ = fs::remove_file(&backup);
            return Err(in_use(path));
        }
        plan.write_set
            .commit(&*file)
            .map_err(|e| cut_short(path, &backup, &e))?;
        report.written_bytes = plan.write_set.payload();
        report.backup = Some(backup.display().to_string());
        report.verified = verify(path, &file)?;
    }
    if !report.verified {
        return Err(UserError::new(
            "not-verified",
            format!(
                "{} holds something else than was written to it",
                path.display()
            ),
            "look for a program that writes to it, and check the disk",
        ));
    }
    out.result(&serde_json::json!({ "repair": report }), |out| {
        let name = clean(&report.file);
        match &report.backup {
            None => out.line(format_args!("Nothing to do: the maps of {name} are right")),
            Some(backup) => {
                for (code, n) in &report.wrong {
                    out.line(format_args!("repaired {code:<22} {}", count(*n)))?;
                }
                out.line(format_args!(
                    "{name}: {} of maps written, checked again and right; what was replaced is in {}",
                    size(report.written_bytes),
                    clean(backup)
                ))
            }
        }
    })?;
    if report.remaining_errors == 0 {
        return Ok(ExitStatus::Synced);
    }
    Err(UserError::new(
        "check-failed",
        format!(
            "the maps of {} are right, but it has {} other errors",
            path.display(),
            count(report.remaining_errors)
        ),
        "see them with pstsyncd pst check, and restore the file from a backup",
    ))
}

pub(super) fn restore(path: &Path, from: &Path, exclusive: bool, out: &mut Output) -> Outcome {
    let backup = read_backup(from)?;
    let file = open_alone(path)?;
    lease(path, &file, exclusive)?;
    let set: WriteSet = backup.restore(&*file).map_err(|e| match &e {
        pst::PstError::Refused(why) => UserError::new(
            "changed-since",
            format!("the maps of {} are not put back: {why}", path.display()),
            "keep the file as it is; run pstsyncd pst check on it",
        ),
        _ => explain(path, &e),
    })?;
    if !undisturbed(&file, exclusive) {
        return Err(in_use(path));
    }
    set.commit(&*file).map_err(|e| cut_short(path, from, &e))?;
    let report = Restored {
        file: path.display().to_string(),
        backup: from.display().to_string(),
        written_bytes: set.payload(),
    };
    out.result(&serde_json::json!({ "restore": report }), |out| {
        out.line(format_args!(
            "{}: {} put back from {}; its maps are as wrong as they were",
            clean(&report.file),
            size(report.written_bytes),
            clean(&report.backup)
        ))
    })?;
    Ok(ExitStatus::Synced)
}

/// What of a report is about the maps.
fn wrong(report: &Report) -> Vec<(&'static str, u64)> {
    let maps = report.counts.iter().filter(|(c, _)| REPAIRED.contains(c));
    maps.map(|(c, n)| (c.name(), *n)).collect()
}

/// Makes the backup durable, under its name, before anything is written. One that is whole stays.
fn keep(path: &Path, bytes: &[u8]) -> Result<(), UserError> {
    let failed = |e: &io::Error| UserError::file("write the backup", path, e);
    if path.exists() {
        if read_backup(path).is_ok() {
            return Err(UserError::new(
                "backup-exists",
                format!(
                    "{} is there already, from an earlier repair",
                    path.display()
                ),
                "move it away, or put it back with --restore-maps; then run the command again",
            ));
        }
        // It never became whole, so the repair that it was for wrote nothing.
        fs::remove_file(path).map_err(|e| failed(&e))?;
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| failed(&e))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let durable = written.and_then(|()| File::open(parent.unwrap_or(Path::new(".")))?.sync_all());
    durable.map_err(|e| {
        let _ = fs::remove_file(path);
        failed(&e)
    })
}

fn read_backup(path: &Path) -> Result<MapBackup, UserError> {
    let file = open_file(path)?;
    let failed = |e: &io::Error| UserError::file("read", path, e);
    let none = |why: String| {
        UserError::new(
            "not-a-backup",
            format!("{} is no backup of maps: {why}", path.display()),
            "name the file that pst check --repair-maps wrote beside the PST",
        )
    };
    let len = file.len().map_err(|e| failed(&e))?;
    if len > MAX_BACKUP {
        return Err(none(format!("{} is more than one may have", size(len))));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(0, &mut bytes).map_err(|e| failed(&e))?;
    MapBackup::decode(&bytes).map_err(|e| none(super::bare(&e)))
}

/// Checks the file again, from the disk's side of things as far as this process sees it.
fn verify(path: &Path, file: &Arc<FileStorage>) -> Result<bool, UserError> {
    let options = Options {
        level: Level::Structure,
        ..Options::default()
    };
    let report = check_storage(Arc::clone(file) as _, &options).map_err(|e| explain(path, &e))?;
    let maps_right = REPAIRED.iter().all(|c| !report.counts.contains_key(c));
    Ok(maps_right)
}

fn refused(path: &Path, error: &pst::PstError) -> UserError {
    match error {
        pst::PstError::Refused(why) => UserError::new(
            "repair-refused",
            format!("the maps of {} cannot be rebuilt: {why}", path.display()),
            "restore the file from a backup, or repair a copy with Outlook's scanpst",
        ),
        other => explain(path, other),
    }
}

fn in_use(path: &Path) -> UserError {
    UserError::new(
        "in-use",
        format!("another program asked for {}", path.display()),
        "nothing was written; run the command again when it is closed",
    )
}

fn cut_short(path: &Path, backup: &Path, error: &io::Error) -> UserError {
    UserError {
        code: "cut-short".to_owned(),
        next: format!(
            "the file is a valid PST; go on with --restore-maps {}, or move that away and repair again",
            backup.display()
        ),
        ..UserError::file("write all of the maps of", path, error)
    }
}
