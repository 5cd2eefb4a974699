//! Consistency checks: what is wrong with a file, where, and by which rule of [MS-PST].
//!
//! [`check_storage`] is the one entry: it looks at everything, from the header to the counts of the
//! folders, never stops at the first finding and never changes anything. [`Code`] lists what it may
//! find. A file without findings of severity [`Severity::Error`] can be edited.
//!
//! It promises to end, in memory that is linear in the size of the file (under half of it even for
//! a file made to be hard; a few per cent of it for mail) and in time that is O(n log n): of each
//! code only the first findings are kept, shared structures are looked at once, and what repeats
//! without end is given up with a finding of its own.
//!
//! [`check`] and [`check_ltp`] run a part of it, for those who work on one layer.

mod codes;
mod collect;
mod content;
mod folders;
mod heap;
mod message;
mod names;
mod place;
mod properties;
mod refs;
mod search;
mod space;
mod store;
mod structure;
mod table;
mod trees;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use storage::ReadAt;

pub use codes::Code;

use crate::ndb::Ndb;
use crate::{PstError, Result};
use collect::Findings;
use content::Content;
use structure::Structure;

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
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// How deep a check goes. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The node database: header, trees, blocks, references, allocation maps.
    Structure,
    /// What the nodes hold: heaps, properties, tables, the name map.
    Content,
    /// The mail store: required nodes, folders, messages, counts, search queues.
    Messages,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Structure => "structure",
            Self::Content => "content",
            Self::Messages => "messages",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name of its [`Code`].
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

/// Told how far a check is: the level, what is done and what there is, in bytes of the file for
/// [`Level::Structure`], in nodes for the others.
pub type Progress<'a> = &'a dyn Fn(Level, u64, u64);

/// How to check.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How deep.
    pub level: Level,
    /// How many findings of one code are kept; the rest are counted.
    pub per_code: usize,
    /// Told how far it is.
    pub progress: Option<Progress<'a>>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            level: Level::Messages,
            per_code: 20,
            progress: None,
        }
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("level", &self.level)
            .field("per_code", &self.per_code)
            .finish_non_exhaustive()
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, in a fixed order; of each code the first [`Options::per_code`].
    pub findings: Vec<Finding>,
    /// How many there are of each code, those that were not kept included.
    pub counts: BTreeMap<Code, u64>,
    /// Nodes in the node B-tree, as far as it could be walked.
    pub nodes: u64,
    /// Blocks in the block B-tree, as far as it could be walked. Each was read.
    pub blocks: u64,
}

impl Report {
    /// How many findings there are of this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> u64 {
        let of = |(code, n): (&Code, &u64)| if code.severity() == severity { *n } else { 0 };
        self.counts.iter().map(of).sum()
    }

    /// How many findings of this code are counted but not kept.
    #[must_use]
    pub fn dropped(&self, code: Code) -> u64 {
        let kept = self.findings.iter().filter(|f| f.code == code.name());
        let all = self.counts.get(&code).copied().unwrap_or_default();
        all - kept.count() as u64
    }

    /// The worst severity.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.counts.keys().map(|c| c.severity()).max()
    }
}

/// Checks a file.
///
/// A file too damaged to be opened gives a report of one finding.
///
/// # Errors
/// [`PstError::NotPst`] and [`PstError::Unsupported`] for what is no PST that could be checked,
/// [`PstError::Io`] where not even the header can be read.
pub fn check_storage(storage: Arc<dyn ReadAt>, options: &Options<'_>) -> Result<Report> {
    match Ndb::open(storage) {
        Ok(ndb) => Ok(check_file(&Arc::new(ndb), options)),
        Err(e @ (PstError::Corrupt { .. } | PstError::Limit { .. })) => {
            let mut found = Findings::new(options.per_code.max(1));
            let code = match &e {
                PstError::Corrupt {
                    field: "ibFileEof", ..
                } => Code::FileCut,
                PstError::Corrupt { offset, .. } if *offset >= 1024 => Code::TreeRoot,
                _ => Code::HeaderDamaged,
            };
            found.failed(code, 0, "", &e);
            Ok(found.report(0, 0))
        }
        Err(e) => Err(e),
    }
}

/// Checks an open file.
#[must_use]
pub fn check_file(ndb: &Arc<Ndb>, options: &Options<'_>) -> Report {
    let mut found = Findings::new(options.per_code);
    let mut structure = Structure::new(ndb, &mut found, options.progress);
    structure.run();
    let (nodes, blocks) = structure.into_parts();
    if options.level >= Level::Content {
        let messages = options.level >= Level::Messages;
        let mut content = Content::new(ndb, &mut found, blocks, options.progress, messages);
        content.run(&nodes);
        let facts = content.into_facts();
        if messages {
            store::check(ndb, &mut found, &nodes, &facts);
            folders::check(&mut found, &nodes, &facts);
            search::check(ndb, &mut found, &nodes);
        }
    }
    found.report(nodes.len() as u64, blocks)
}

/// Checks the node database alone ([`Level::Structure`]); every finding is kept. For files that
/// are no mail store, and for those who work below the mail.
#[must_use]
pub fn check(ndb: &Ndb) -> Vec<Finding> {
    let mut found = Findings::new(usize::MAX);
    Structure::new(ndb, &mut found, None).run();
    found.report(0, 0).findings
}

/// Checks what the nodes hold, and nothing else ([`Level::Content`]); of each code the first
/// finding is kept.
#[must_use]
pub fn check_ltp(ndb: &Arc<Ndb>) -> Vec<Finding> {
    let options = Options {
        level: Level::Content,
        per_code: 1,
        progress: None,
    };
    let mut findings = check_file(ndb, &options).findings;
    let content =
        |f: &Finding| Code::from_name(f.code).is_some_and(|c| c.level() == Level::Content);
    findings.retain(content);
    findings.sort_by_key(|f| f.code);
    findings
}

/// The worst severity among findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|f| f.severity).max()
}
