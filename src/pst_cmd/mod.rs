//! `pst`: commands that work on PST files without a daemon.
//!
//! All of them but `apply` and the repairs of `check` open the file for reading only. Numbers are counted, not taken from
//! the file's own counters, which may lag behind.

mod alone;
mod apply;
mod check;
mod diff;
mod dump;
mod info;
mod inventory;
mod ls;
pub(crate) mod progress;
mod repair;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pst::ltp::{CodePage, PropValue, PropertyContext};
use pst::messaging::{code_page, tags};
use pst::ndb::NbtEntry;
use pst::scan::Depth;
use pst::{Nid, Pst, PstError};
use storage::FileStorage;
use sync::SyncError;

use crate::cli::PstCommand;
use crate::error::{Outcome, UserError, plain};
use crate::output::Output;

/// Carries out a verb of `pst`.
///
/// # Errors
/// The file is missing, is no PST, or is damaged; the command's own.
pub fn run(command: &PstCommand, out: &mut Output) -> Outcome {
    match command {
        PstCommand::Info(args) => info::run(&args.file, out),
        PstCommand::Ls { file, long } => ls::run(&file.file, *long, out),
        PstCommand::Inventory {
            file,
            blocks,
            content,
        } => {
            let depth = if *blocks { Depth::All } else { Depth::Named };
            inventory::run(&file.file, (!content).then_some(depth), out)
        }
        PstCommand::Dump(args) => dump::run(&args.file, out),
        PstCommand::Check(args) if args.repair_maps => {
            repair::repair(&args.file, args.exclusive, out)
        }
        PstCommand::Check(args) => match &args.restore_maps {
            Some(backup) => repair::restore(&args.file, backup, args.exclusive, out),
            None => check::run(&args.file, out),
        },
        PstCommand::Diff { old, new, output } => diff::run(old, new, output.as_deref(), out),
        PstCommand::Apply { file, changes } => apply::run(file, changes, out),
    }
}

/// Opens a PST for reading.
///
/// # Errors
/// It is missing, no regular file, no PST, or damaged.
pub fn open(path: &Path) -> Result<Pst, UserError> {
    Pst::open(Arc::new(open_file(path)?)).map_err(|e| explain(path, &e))
}

/// Opens a file for reading, as long as it is a regular one: a pipe would be waited for, and a directory
/// read as nonsense.
///
/// # Errors
/// It is missing, cannot be read, or is no regular file.
pub fn open_file(path: &Path) -> Result<FileStorage, UserError> {
    let failed = |e: &std::io::Error| UserError::file("read", path, e);
    let meta = fs::metadata(path).map_err(|e| failed(&e))?;
    if !meta.is_file() {
        return Err(UserError::new(
            "not-a-file",
            format!("{} is not a file", path.display()),
            "name a PST file",
        ));
    }
    FileStorage::open_read_only(path).map_err(|e| failed(&e))
}

/// An error of the engine with the file's name, and what to do.
#[must_use]
pub fn explain(path: &Path, error: &PstError) -> UserError {
    let name = path.display();
    match error {
        PstError::NotPst(why) => UserError::new(
            "not-a-pst",
            format!("{name} is not a PST file: {why}"),
            "name an Outlook data file (.pst or .ost)",
        ),
        PstError::Unsupported(what) => UserError::new(
            "pst-unsupported",
            format!("{name} is of a format that this version does not read: {what}"),
            "use a Unicode PST (Outlook 2003 and later)",
        ),
        PstError::Corrupt { .. } => UserError::new(
            "pst-damaged",
            format!("{name} is damaged: {}", bare(error)),
            "restore it from a backup, or repair a copy with Outlook's scanpst",
        ),
        PstError::Io { offset, source } => UserError::new(
            "pst-io",
            format!(
                "cannot read {name} at offset {offset:#x}: {}",
                plain(source)
            ),
            "check the disk or the link, then run the command again",
        ),
        PstError::Limit { .. } => UserError::new(
            "pst-limit",
            format!("{name} exceeds a bound of the program: {error}"),
            "look at it with pstsyncd pst check: a damaged file often does",
        ),
        _ => UserError::new(
            "pst-failed",
            format!("{name}: {error}"),
            "look at it with pstsyncd pst check",
        ),
    }
}

/// An error of the sync engine about this file.
#[must_use]
pub fn explain_sync(path: &Path, error: &SyncError) -> UserError {
    let name = path.display();
    match error {
        SyncError::Pst(error) => explain(path, error),
        SyncError::WrongBase { .. } => UserError::new(
            "wrong-base",
            format!("{name} is not what the changes were made for: {error}"),
            "apply them to the older version that pst diff was given",
        ),
        SyncError::Package { field, detail } => UserError::new(
            "package-refused",
            format!("the change list for {name} is refused: {field}: {detail}"),
            "make it again with this version's pstsyncd pst diff",
        ),
        other => UserError::new(
            "sync-failed",
            format!("{name}: {other}"),
            "look at the file with pstsyncd pst check",
        ),
    }
}

fn context(pst: &Pst, entry: &NbtEntry) -> pst::Result<PropertyContext> {
    PropertyContext::open(pst.ndb(), entry.bid_data, entry.bid_sub)
}

/// A text property of an object, for people; none where it cannot be read.
fn text_of(pst: &Pst, nid: Nid, id: u16) -> Option<String> {
    let entry = pst.ndb().node(nid).ok()??;
    let page = page_of(pst, |id| context(pst, &entry).ok()?.get(id).ok()?);
    let text = text(context(pst, &entry).ok()?.get(id).ok()?, page)?;
    Some(if id == tags::SUBJECT {
        without_prefix_mark(&text).to_owned()
    } else {
        text
    })
}

/// The code page of an object's 8-bit text: its own, else the store's.
fn page_of(pst: &Pst, get: impl Fn(u16) -> Option<PropValue>) -> Option<CodePage> {
    let named = [tags::MESSAGE_CODEPAGE, tags::INTERNET_CODEPAGE];
    let props = named.into_iter().filter_map(get).collect();
    code_page(&props).or_else(|| pst.code_page().ok().flatten())
}

/// Some writers store the terminating NUL with the text.
fn text(value: Option<PropValue>, page: Option<CodePage>) -> Option<String> {
    let value = value?;
    let text = match page {
        Some(page) => value.as_text_in(page)?,
        None => value.as_text()?,
    };
    Some(text.text.trim_end_matches('\0').to_owned())
}

/// A stored subject may begin with U+0001 and a character that tells the length of its prefix
/// ([MS-PST] 2.5.3.1.1.1).
fn without_prefix_mark(subject: &str) -> &str {
    match subject.strip_prefix('\u{1}') {
        Some(rest) => rest
            .char_indices()
            .nth(1)
            .and_then(|(at, _)| rest.get(at..))
            .unwrap_or(""),
        None => subject,
    }
}

/// How the engine begins a sentence about a damaged file.
const DAMAGED: &str = "damaged PST: ";

/// The engine's sentence without the words that ours has already.
fn bare(error: &PstError) -> String {
    let text = error.to_string();
    match text.strip_prefix(DAMAGED) {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_before_a_subject_is_not_shown() {
        assert_eq!(without_prefix_mark("plain"), "plain");
        assert_eq!(without_prefix_mark("\u{1}\u{5}RE: it"), "RE: it");
        assert_eq!(without_prefix_mark("\u{1}\u{1}"), "");
        assert_eq!(without_prefix_mark("\u{1}"), "");
    }

    #[test]
    fn every_engine_error_names_the_file_and_a_step() {
        let path = Path::new("/mail/a.pst");
        let errors = [
            (PstError::NotPst("why"), "not-a-pst"),
            (PstError::Unsupported("wVer 14".into()), "pst-unsupported"),
            (PstError::corrupt("dwMagic", 0, "x"), "pst-damaged"),
            (
                PstError::Io {
                    offset: 5,
                    source: std::io::ErrorKind::TimedOut.into(),
                },
                "pst-io",
            ),
            (
                PstError::Limit {
                    what: "depth",
                    found: 9,
                    limit: 8,
                },
                "pst-limit",
            ),
            (
                PstError::NotFound {
                    what: "node",
                    id: "0x21".into(),
                },
                "pst-failed",
            ),
            (PstError::Refused("no".into()), "pst-failed"),
        ];
        for (error, code) in errors {
            let user = explain(path, &error);
            assert_eq!(user.code, code);
            assert!(user.message.contains("/mail/a.pst"), "{user}");
            assert!(!user.next.is_empty());
        }
        let damaged = explain(path, &PstError::corrupt("dwMagic", 0, "x"));
        assert_eq!(
            damaged.message,
            "/mail/a.pst is damaged: dwMagic at offset 0x0: x"
        );
    }
}
