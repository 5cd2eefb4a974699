//! `pst check`: what is wrong with a PST, where, and by which rule (docs/CHECK.md lists the codes).
//!
//! With `--json`: one line `{"finding":…}` each, then one line `{"summary":…}`. Of each code the first
//! findings are shown; the summary counts all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pst::check::{Finding, Level, Options, Report, Severity, check_file};
use pst::ndb::Ndb;
use serde::Serialize;

use super::{DAMAGED, explain, open_file};
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

#[derive(Serialize)]
struct Summary {
    file: String,
    errors: u64,
    warnings: u64,
    infos: u64,
    /// How many findings there are of each code, those that are not shown included.
    codes: BTreeMap<&'static str, u64>,
    /// Nodes that were looked at.
    nodes: u64,
    /// Blocks that were read and verified.
    blocks: u64,
}

impl Summary {
    fn of(path: &Path, report: &Report) -> Self {
        Self {
            file: path.display().to_string(),
            errors: report.count(Severity::Error),
            warnings: report.count(Severity::Warning),
            infos: report.count(Severity::Info),
            codes: report.counts.iter().map(|(c, n)| (c.name(), *n)).collect(),
            nodes: report.nodes,
            blocks: report.blocks,
        }
    }
}

pub(super) fn run(path: &Path, out: &mut Output) -> Outcome {
    let file = Arc::new(open_file(path)?);
    let ndb = Arc::new(Ndb::open(file).map_err(|e| explain(path, &e))?);
    let bar = super::progress::Bar::new();
    let tell = |level: Level, done: u64, all: u64| bar.at(&format!("checking {level}"), done, all);
    let options = Options {
        progress: Some(&tell),
        ..Options::default()
    };
    let report = check_file(&ndb, &options);
    bar.done();
    for finding in &report.findings {
        show(finding, out)?;
    }
    if !out.is_json() {
        for code in report.counts.keys() {
            let more = report.dropped(*code);
            if more > 0 {
                out.line(format_args!(
                    "{:<8} {:<22} and {} more of them",
                    code.severity(),
                    code,
                    count(more)
                ))?;
            }
        }
    }
    let summary = Summary::of(path, &report);
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        out.line(format_args!(
            "{}: {} nodes and {} blocks looked at; {} errors, {} warnings, {} notes",
            clean(&summary.file),
            count(summary.nodes),
            count(summary.blocks),
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
        advice(&report),
    ))
}

/// What to do about the errors: the maps alone can be rebuilt here.
fn advice(report: &Report) -> &'static str {
    let errors = report
        .counts
        .keys()
        .filter(|c| c.severity() == Severity::Error);
    let maps = ["amap-page", "used-but-free"];
    if errors.into_iter().all(|c| maps.contains(&c.name())) {
        "close it everywhere, then run pstsyncd pst check --repair-maps on it"
    } else {
        "restore it from a backup, or repair a copy with Outlook's scanpst"
    }
}

fn show(finding: &Finding, out: &mut Output) -> Result<(), UserError> {
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
            "{severity:<8} {code:<22} {offset:#012x}  {detail} [{section}]"
        ))
    })
}
