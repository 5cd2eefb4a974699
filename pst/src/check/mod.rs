//! Consistency checks: what is wrong with a file, where, and by which rule of [MS-PST].
//!
//! [`check`] looks at the structure of the node database: header, trees, blocks, reference
//! counts, allocation maps. It never stops at the first finding and never changes anything. A
//! file without findings of severity [`Severity::Error`] can be edited.

mod ltp;
mod refs;
mod space;
mod trees;

use std::collections::BTreeMap;
use std::fmt;

pub use ltp::check_ltp;

use crate::PstError;
use crate::ndb::{BbtEntry, NbtEntry, Ndb};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; real files have it and programs cope: leaked space, an old density list.
    Info,
    /// Against the format, without danger to data.
    Warning,
    /// Data is lost, unreachable or in danger at the next write.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name of the kind of finding, for programs.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// File offset of the structure in bytes; 0 where none applies.
    pub offset: u64,
    /// What was found, and what was expected.
    pub detail: String,
    /// The section of [MS-PST] that says so.
    pub section: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} at {:#x}: {} ([MS-PST] {})",
            self.severity, self.code, self.offset, self.detail, self.section
        )
    }
}

/// What the parts of the check share.
pub(crate) struct Checker<'a> {
    ndb: &'a Ndb,
    findings: Vec<Finding>,
    nodes: Vec<NbtEntry>,
    /// Blocks by BID key.
    blocks: BTreeMap<u64, BbtEntry>,
    /// Offsets of all reachable B-tree pages.
    pages: Vec<u64>,
}

impl Checker<'_> {
    fn add(
        &mut self,
        code: &'static str,
        severity: Severity,
        offset: u64,
        section: &'static str,
        detail: impl Into<String>,
    ) {
        self.findings.push(Finding {
            code,
            severity,
            offset,
            detail: detail.into(),
            section,
        });
    }

    fn failed(&mut self, code: &'static str, offset: u64, section: &'static str, e: &PstError) {
        let offset = match e {
            PstError::Corrupt { offset: at, .. } | PstError::Io { offset: at, .. } if *at > 0 => {
                *at
            }
            _ => offset,
        };
        self.add(code, Severity::Error, offset, section, e.to_string());
    }

    fn header(&mut self) {
        let h = self.ndb.header();
        let (valid, torn) = (h.amap_valid, h.torn);
        if torn {
            self.add(
                "header-torn",
                Severity::Warning,
                524,
                "2.2.2.6",
                "a header checksum is wrong: a writer stopped in the middle of its work",
            );
        }
        if valid > 2 {
            let detail = format!("fAMapValid is {valid}");
            self.add("maps-flag", Severity::Warning, 248, "2.2.2.5", detail);
        } else if valid == 0 {
            self.add(
                "maps-invalid",
                Severity::Warning,
                248,
                "2.6.1.3.7",
                "the allocation maps are marked invalid: a writer stopped in the middle; \
                 the next edit recomputes them",
            );
        }
    }
}

/// Checks the structure of a node database. Findings come in a fixed order.
#[must_use]
pub fn check(ndb: &Ndb) -> Vec<Finding> {
    let mut checker = Checker {
        ndb,
        findings: Vec::new(),
        nodes: Vec::new(),
        blocks: BTreeMap::new(),
        pages: Vec::new(),
    };
    checker.header();
    checker.trees();
    checker.blocks();
    checker.references();
    checker.space();
    checker.findings
}

/// The worst severity among findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|f| f.severity).max()
}
