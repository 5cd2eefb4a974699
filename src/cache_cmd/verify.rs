//! `cache verify`: journal and metadata by their checksums, cache files by what they should hold, PSTs
//! by their own structure; and what is a copy of the share's against the share, where it is named.
//!
//! With `--json`: one line `{"finding":…}` each, then one line `{"summary":…}`. Ends with 5 where
//! something is wrong.

use std::path::Path;
use std::sync::Arc;

use pst::check::{Options, Severity, check_file};
use pst::ndb::Ndb;
use serde::Serialize;
use storage::ReadAt;
use vfs::Kind;
use vfs::inspect::{Fault, Inspection};
use vfs::share::dir::DirShare;

use crate::cli::CacheAt;
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};
use crate::pst_cmd::progress::Bar;

#[derive(Serialize)]
struct Finding<'a> {
    code: &'a str,
    path: &'a str,
    offset: u64,
    detail: &'a str,
}

#[derive(Serialize)]
struct Summary {
    cache: String,
    files: u64,
    /// PSTs whose structure was checked.
    containers: u64,
    /// PSTs of which parts are missing here, so that they could not be.
    incomplete: u64,
    /// Bytes that were held against the share.
    compared: u64,
    findings: u64,
}

pub(super) fn run(at: &CacheAt, against: Option<&Path>, out: &mut Output) -> Outcome {
    let dir = super::locate(at)?;
    let share = against
        .map(|dir| DirShare::open(dir).map_err(|e| UserError::file("open the share", dir, &e)))
        .transpose()?;
    let (inspection, mut faults) = match super::salvage(&dir) {
        Ok(opened) => opened,
        Err(vfs::Error::Damaged { file, offset, what }) => {
            let finding = Finding {
                code: "cache-damaged",
                path: &file,
                offset,
                detail: &what,
            };
            show(&finding, out)?;
            let error = vfs::Error::Damaged {
                file: file.clone(),
                offset,
                what: what.clone(),
            };
            return Err(super::not_opened(&dir, &error));
        }
        Err(error) => return Err(super::not_opened(&dir, &error)),
    };
    faults.extend(inspection.faults());
    let mut summary = Summary {
        cache: dir.display().to_string(),
        files: 0,
        containers: 0,
        incomplete: 0,
        compared: 0,
        findings: 0,
    };
    check_containers(&inspection, &mut summary, &mut faults);
    if let Some(share) = &share {
        summary.compared = inspection
            .compare(share, &mut faults)
            .map_err(|e| UserError::file("compare with the share", against.unwrap_or(&dir), &e))?;
    }
    for fault in &faults {
        show_fault(fault, out)?;
    }
    summary.findings = faults.len() as u64;
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        let compared = match share {
            Some(_) => format!(", {} held against the share", size(summary.compared)),
            None => String::new(),
        };
        out.line(format_args!(
            "{}: {} files and {} PSTs looked at ({} more are not here whole){compared}; {} findings",
            clean(&summary.cache),
            count(summary.files),
            count(summary.containers),
            count(summary.incomplete),
            count(summary.findings)
        ))
    })?;
    if faults.is_empty() {
        return Ok(ExitStatus::Synced);
    }
    Err(UserError::new(
        "cache-faulty",
        format!(
            "{} findings in the cache in {}",
            count(summary.findings),
            dir.display()
        ),
        "take out what is not synced with `pstsyncd cache export`, then mount with a new cache",
    ))
}

/// What begins like a PST is checked as one, whatever its name.
fn check_containers(inspection: &Inspection, summary: &mut Summary, faults: &mut Vec<Fault>) {
    let bar = Bar::new();
    let names = inspection.names();
    for (done, known) in names.iter().enumerate() {
        bar.at("checking files", done as u64, names.len() as u64);
        if known.kind != Kind::File {
            continue;
        }
        summary.files += 1;
        let Ok(content) = inspection.content(&known.path) else {
            continue;
        };
        let mut magic = [0; 4];
        let is_pst = content.size >= 512
            && content.reader.read_exact_at(0, &mut magic).is_ok()
            && magic == *b"!BDN";
        if !(is_pst || known.container && known.cached > 0) {
            continue;
        }
        if !content.holes.is_empty() {
            summary.incomplete += 1;
            continue;
        }
        if content.size == 0 {
            continue;
        }
        summary.containers += 1;
        if let Some((offset, what)) = trouble(content.reader) {
            faults.push(Fault {
                code: "container",
                path: known.path.clone(),
                offset,
                what,
            });
        }
    }
    bar.done();
}

/// The first error of a PST, and how many there are.
fn trouble(reader: Arc<dyn ReadAt>) -> Option<(u64, String)> {
    let ndb = match Ndb::open(reader) {
        Ok(ndb) => Arc::new(ndb),
        Err(error) => return Some((0, error.to_string())),
    };
    let report = check_file(&ndb, &Options::default());
    let errors = report.count(Severity::Error);
    let first = report
        .findings
        .iter()
        .find(|f| f.severity == Severity::Error)?;
    Some((
        first.offset,
        format!(
            "{} errors, the first: {} ({})",
            count(errors),
            first.detail,
            first.code
        ),
    ))
}

pub(super) fn show_fault(fault: &Fault, out: &mut Output) -> Result<(), UserError> {
    let finding = Finding {
        code: fault.code,
        path: &fault.path,
        offset: fault.offset,
        detail: &fault.what,
    };
    show(&finding, out)
}

fn show(finding: &Finding<'_>, out: &mut Output) -> Result<(), UserError> {
    out.result(&serde_json::json!({ "finding": finding }), |out| {
        out.line(format_args!(
            "{:<22} {:#012x}  {}: {}",
            finding.code,
            finding.offset,
            clean(finding.path),
            clean(finding.detail)
        ))
    })
}
