//! Gathering findings in bounded memory: of each code the first few are kept, all are counted.

use std::collections::BTreeMap;

use super::codes::Code;
use super::{Finding, Level, Report};
use crate::PstError;

/// Longest detail that is kept, in bytes: names from the file may be longer.
const MAX_DETAIL: usize = 600;

#[derive(Debug)]
pub(super) struct Findings {
    per_code: usize,
    kept: Vec<Finding>,
    counts: BTreeMap<Code, u64>,
}

impl Findings {
    pub fn new(per_code: usize) -> Self {
        Self {
            per_code,
            kept: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Counts a finding, and keeps it if it is among the first of its code.
    pub fn add(&mut self, code: Code, offset: u64, detail: impl FnOnce() -> String) {
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count > self.per_code as u64 {
            return;
        }
        let mut detail = detail();
        if detail.len() > MAX_DETAIL {
            let end = (0..=MAX_DETAIL)
                .rev()
                .find(|i| detail.is_char_boundary(*i))
                .unwrap_or_default();
            detail.truncate(end);
            detail.push_str(" …");
        }
        self.kept.push(Finding {
            code: code.name(),
            severity: code.severity(),
            offset,
            detail,
            section: code.section(),
        });
    }

    /// As [`Findings::add`], with the place that an error names where it names one of the file.
    pub fn failed(&mut self, code: Code, offset: u64, what: &str, e: &PstError) {
        let offset = match e {
            // The fields below the pages and blocks carry offsets inside their structure.
            PstError::Corrupt { offset: at, .. } | PstError::Io { offset: at, .. }
                if *at > 0 && code.level() == Level::Structure =>
            {
                *at
            }
            _ => offset,
        };
        self.add(code, offset, || {
            if what.is_empty() {
                e.to_string()
            } else {
                format!("{what}: {e}")
            }
        });
    }

    pub fn report(self, nodes: u64, blocks: u64) -> Report {
        Report {
            findings: self.kept,
            counts: self.counts,
            nodes,
            blocks,
        }
    }
}
