//! `pst check`: what is wrong with a PST, where, and by which rule.
//!
//! First the structure (`pst::check`), then every object is read once. With `--json`: one line
//! `{"finding":…}` each, then one line `{"summary":…}`.

use std::path::Path;
use std::sync::Arc;

use pst::check::{Finding, Severity, check};
use pst::derived::ObjectKind;
use pst::inventory::fingerprint_node;
use pst::ndb::Ndb;
use pst::{Nid, Pst, PstError};
use serde::Serialize;

use super::{DAMAGED, bare, explain, open_file};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count};

#[derive(Serialize)]
struct Shown<'a> {
    severity: String,
    code: &'a str,
    offset: u64,
    detail: &'a str,
    section: &'a str,
}

#[derive(Default, Serialize)]
struct Summary {
    file: String,
    errors: u64,
    warnings: u64,
    infos: u64,
    /// Objects that were read whole.
    objects: u64,
}

pub(super) fn run(path: &Path, out: &mut Output) -> Outcome {
    let file = Arc::new(open_file(path)?);
    let ndb = Arc::new(Ndb::open(file).map_err(|e| explain(path, &e))?);
    let mut summary = Summary {
        file: path.display().to_string(),
        ..Summary::default()
    };
    for finding in check(&ndb) {
        show(&finding, &mut summary, out)?;
    }
    objects(ndb, &mut summary, out)?;
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        out.line(format_args!(
            "{}: {} objects read; {} errors, {} warnings, {} notes",
            clean(&summary.file),
            count(summary.objects),
            count(summary.errors),
            count(summary.warnings),
            count(summary.infos)
        ))
    })?;
    if summary.errors == 0 {
        return Ok(ExitStatus::Synced);
    }
    Err(UserError::new(
        "check-failed",
        format!("{} has {} errors", path.display(), count(summary.errors)),
        "restore it from a backup, or repair a copy with Outlook's scanpst",
    ))
}

/// Reads every object to its last byte: what the structure cannot tell (heaps, tables, values) shows here.
fn objects(ndb: Arc<Ndb>, summary: &mut Summary, out: &mut Output) -> Result<(), UserError> {
    let unreadable = |what: &str, error: &PstError| Finding {
        code: "object-unreadable",
        severity: Severity::Error,
        offset: match error {
            PstError::Corrupt { offset, .. } | PstError::Io { offset, .. } => *offset,
            _ => 0,
        },
        detail: format!("{what}: {}", bare(error)),
        section: "2.4",
    };
    let opened = Pst::from_ndb(ndb).and_then(|pst| pst.index().map(|index| (pst, index)));
    let (pst, index) = match opened {
        Ok(opened) => opened,
        Err(error) => return show(&unreadable("the store", &error), summary, out),
    };
    if let Err(error) = pst.store() {
        show(&unreadable("the store", &error), summary, out)?;
    }
    let folders = index.folders.keys().map(|nid| (*nid, ObjectKind::Folder));
    let messages = index.messages.values().flatten().map(|m| {
        (
            m.nid,
            if m.associated {
                ObjectKind::Associated
            } else {
                ObjectKind::Message
            },
        )
    });
    let raw = index.raw.keys().map(|nid| (*nid, ObjectKind::Raw));
    let all: Vec<(Nid, ObjectKind)> = folders.chain(messages).chain(raw).collect();
    for (nid, kind) in all {
        match fingerprint_node(&pst, nid, kind) {
            Ok(_) => summary.objects += 1,
            Err(error) => {
                show(
                    &unreadable(&format!("{} {nid}", kind.name()), &error),
                    summary,
                    out,
                )?;
            }
        }
    }
    Ok(())
}

fn show(finding: &Finding, summary: &mut Summary, out: &mut Output) -> Result<(), UserError> {
    match finding.severity {
        Severity::Error => summary.errors += 1,
        Severity::Warning => summary.warnings += 1,
        Severity::Info => summary.infos += 1,
    }
    let shown = Shown {
        severity: finding.severity.to_string(),
        code: finding.code,
        offset: finding.offset,
        // The engine's sentence for a damaged file, where that much is said already.
        detail: finding.detail.trim_start_matches(DAMAGED),
        section: finding.section,
    };
    out.result(&serde_json::json!({ "finding": shown }), |out| {
        let Shown {
            severity,
            code,
            offset,
            section,
            ..
        } = &shown;
        let detail = clean(shown.detail);
        out.line(format_args!(
            "{severity:<8} {code:<20} {offset:#012x}  {detail} [{section}]"
        ))
    })
}
