//! `cache`: looking into a drive's cache without its daemon or its share.
//!
//! None of them changes the cache: journal and metadata are read as the next mount would read them,
//! and what recovery would write stays in memory. While the drive is mounted they are refused: then
//! `status` and the drive itself say the same, and say it as of now.

mod export;
mod ls;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use vfs::inspect::{Fault, Inspection};

use crate::cli::{CacheAt, CacheCommand};
use crate::control::registry::absolute;
use crate::daemon::paths::{StateDir, state_base};
use crate::daemon::patterns::Patterns;
use crate::error::{Outcome, UserError};
use crate::output::{Output, count};

/// Carries out a verb of `cache`.
///
/// # Errors
/// There is no such cache, a daemon uses it, or it is damaged; the command's own.
pub fn run(command: &CacheCommand, out: &mut Output) -> Outcome {
    match command {
        CacheCommand::Ls { at, pending } => ls::run(at, *pending, out),
        CacheCommand::Verify { at, against } => verify::run(at, against.as_deref(), out),
        CacheCommand::Export(args) => export::run(args, out),
    }
}

/// The state directory that is meant: the one that is named, that of the share that is named, or the only
/// one there is.
fn locate(at: &CacheAt) -> Result<PathBuf, UserError> {
    if let Some(dir) = &at.state_dir {
        return Ok(absolute(dir));
    }
    if let Some(share) = &at.share {
        // The share may be gone: then its name is taken as it was given.
        let share = share.canonicalize().unwrap_or_else(|_| absolute(share));
        return StateDir::locate(None, "drive", &share);
    }
    let base = state_base()?.join("drives");
    let mut found: Vec<PathBuf> = match fs::read_dir(&base) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    found.retain(|dir| dir.join("drive").is_dir());
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(UserError::new(
            "no-cache",
            format!("there is no cache under {}", base.display()),
            "name it with --cache DIR",
        )),
        (Some(last), false) => {
            found.push(last);
            let names: Vec<String> = found.iter().map(|d| d.display().to_string()).collect();
            Err(UserError::new(
                "many-caches",
                format!("there are {} caches: {}", names.len(), names.join(", ")),
                "name one with --cache DIR, or its share with --share",
            ))
        }
    }
}

/// Opens the cache in this state directory.
fn open(state_dir: &Path) -> Result<Inspection, vfs::Error> {
    // They only say what is shown as a container here.
    let patterns = Patterns::read(state_dir).unwrap_or_default();
    Inspection::open(&state_dir.join("drive"), patterns.monitor, patterns.pin)
}

/// Opens it also where its journal is damaged: what can be read of it is read, and what cannot is listed.
fn salvage(state_dir: &Path) -> Result<(Inspection, Vec<Fault>), vfs::Error> {
    match open(state_dir) {
        Ok(inspection) => Ok((inspection, Vec::new())),
        Err(vfs::Error::Damaged { .. }) => {
            let patterns = Patterns::read(state_dir).unwrap_or_default();
            let dir = state_dir.join("drive");
            let inspection = Inspection::salvage(&dir, patterns.monitor, patterns.pin)?;
            let lost = inspection.lost();
            Ok((inspection, lost))
        }
        Err(error) => Err(error),
    }
}

/// Why a cache does not open, for people.
fn not_opened(state_dir: &Path, error: &vfs::Error) -> UserError {
    let dir = state_dir.display();
    match error {
        vfs::Error::Locked(_) => UserError::new(
            "cache-in-use",
            format!("a mounted drive uses the cache in {dir}"),
            "see `pstsyncd status` and the drive itself, or unmount it first",
        ),
        vfs::Error::NotFound(_) => UserError::new(
            "no-cache",
            format!("there is no cache in {dir}"),
            "name the directory that mount was given with --cache or --state-dir",
        ),
        vfs::Error::Damaged { .. } => UserError::new(
            "cache-damaged",
            format!("the cache in {dir} is damaged: {error}"),
            "keep a copy of the directory before anything else, and report it; what lies in its \
             data folder may still be read",
        ),
        error => UserError::new(
            "cache-not-opened",
            format!("the cache in {dir} cannot be read: {error}"),
            "check the disk, and that the directory is yours",
        ),
    }
}

/// The journal lacks these changes, for people.
fn journal_damaged(state_dir: &Path, lost: &[Fault], next: &str) -> UserError {
    let places = match lost.len() {
        1 => "one place".to_owned(),
        n => format!("{} places", count(n as u64)),
    };
    UserError::new(
        "journal-damaged",
        format!(
            "the journal of the cache in {} is damaged in {places}: files may lack changes",
            state_dir.display()
        ),
        next,
    )
}
