//! `cache ls`: every file that the cache knows, how much of it is here, and what the share lacks.
//!
//! With `--json`: one line `{"file":…}` each, then one line `{"summary":…}`. What of the
//! journal cannot be read comes first, as with `cache verify`: what is shown may lack those changes.

use serde::Serialize;
use vfs::Kind;
use vfs::inspect::Known;

use crate::cli::CacheAt;
use crate::error::Outcome;
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

#[derive(Serialize)]
struct Shown<'a> {
    path: &'a str,
    size: u64,
    cached: u64,
    unsynced: u64,
    pending: bool,
    container: bool,
    pinned: bool,
    detached: bool,
    flipped: bool,
}

#[derive(Serialize, Default)]
struct Summary {
    cache: String,
    files: u64,
    bytes: u64,
    cached: u64,
    pending_files: u64,
    unsynced: u64,
    journal: u64,
    /// Changes of names that the share has not seen.
    changes: Vec<String>,
}

pub(super) fn run(at: &CacheAt, only_pending: bool, out: &mut Output) -> Outcome {
    let dir = super::locate(at)?;
    let (inspection, lost) = super::salvage(&dir).map_err(|e| super::not_opened(&dir, &e))?;
    for fault in &lost {
        super::verify::show_fault(fault, out)?;
    }
    let mut summary = Summary {
        cache: dir.display().to_string(),
        journal: inspection.journal_bytes(),
        changes: inspection.changes(),
        ..Summary::default()
    };
    for known in inspection.names().iter().filter(|k| k.kind == Kind::File) {
        summary.files += 1;
        summary.bytes += known.size;
        summary.cached += known.cached;
        summary.pending_files += u64::from(known.pending);
        summary.unsynced += known.unsynced;
        if known.pending || !only_pending {
            show(known, out)?;
        }
    }
    let pending = summary.pending_files > 0 || !summary.changes.is_empty();
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        for change in &summary.changes {
            out.line(format_args!("waits     {}", clean(change)))?;
        }
        out.line(format_args!(
            "{}: {} files, {} of {} here; {} files with {} wait for the share",
            clean(&summary.cache),
            count(summary.files),
            size(summary.cached),
            size(summary.bytes),
            count(summary.pending_files),
            size(summary.unsynced),
        ))
    })?;
    if !lost.is_empty() {
        return Err(super::journal_damaged(
            &dir,
            &lost,
            "keep a copy of it, and take out what can be read with `pstsyncd cache export --all --partial`",
        ));
    }
    Ok(if pending {
        ExitStatus::Pending
    } else {
        ExitStatus::Synced
    })
}

fn show(known: &Known, out: &mut Output) -> Result<(), crate::error::UserError> {
    let shown = Shown {
        path: &known.path,
        size: known.size,
        cached: known.cached,
        unsynced: known.unsynced,
        pending: known.pending,
        container: known.container,
        pinned: known.pinned,
        detached: known.detached,
        flipped: known.flipped,
    };
    out.result(&serde_json::json!({ "file": shown }), |out| {
        let state = match (known.pending, known.is_whole()) {
            (true, _) => "pending",
            (false, true) => "whole",
            (false, false) if known.cached > 0 => "part",
            (false, false) => "absent",
        };
        let mut line = format!("{state:<9} {}  {}", clean(&known.path), size(known.size));
        if known.cached > 0 && !known.is_whole() {
            line.push_str(&format!(", {} here", size(known.cached)));
        }
        if known.unsynced > 0 {
            line.push_str(&format!(", {} pending", size(known.unsynced)));
        }
        if known.pinned && !known.is_whole() {
            line.push_str(", not safe yet");
        }
        out.line(line)
    })
}
