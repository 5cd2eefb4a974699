//! `pst diff`: what happened to the mail between two versions of a PST, and the change list with its
//! carrier as one file.
//!
//! With `--json`: one line `{"change":…}` per object, then one line `{"summary":…}`.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pst::inventory::Inventory;
use pst::messaging::{Index, tags};
use pst::{Nid, Pst};
use serde::Serialize;
use sync::{Action, Change, Counts, ObjectKind, Package, compare, compile_with, details_from};

use super::{explain, explain_sync, open, text_of};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

#[derive(Serialize)]
struct Shown {
    action: &'static str,
    kind: &'static str,
    nid: String,
    /// The folders above it, the outermost first.
    path: Vec<String>,
    /// Its name or subject, where it has one.
    name: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    old: String,
    new: String,
    added: usize,
    updated: usize,
    moved: usize,
    deleted: usize,
    /// Bytes of the change list with its carrier.
    bytes: u64,
    /// Bytes of it as it goes over a link.
    packed_bytes: u64,
    /// Bytes of the newer version, for comparison.
    file_bytes: u64,
    output: Option<String>,
}

pub(super) fn run(old: &Path, new: &Path, output: Option<&Path>, out: &mut Output) -> Outcome {
    if let Some(output) = output {
        check_output(output, &[old, new])?;
    }
    let (base, target) = (open(old)?, open(new)?);
    let before = Inventory::read(&base).map_err(|e| explain(old, &e))?;
    let after = Inventory::read(&target).map_err(|e| explain(new, &e))?;
    let changes = compare(&before, &after);
    let counts = Counts::of(&changes);
    let names = Names {
        old: (&base, &*base.index().map_err(|e| explain(old, &e))?),
        new: (&target, &*target.index().map_err(|e| explain(new, &e))?),
    };
    let shown: Vec<Shown> = changes.iter().map(|c| names.shown(c)).collect();
    let listed = changes
        .into_iter()
        .map(|c| (c.nid(), c))
        .map(|(nid, c)| (c, nid))
        .collect();
    let package: Package = compile_with(&target, listed, &mut details_from(&base))
        .map_err(|e| explain_sync(new, &e))?;
    let bytes = package.encode().map_err(|e| explain_sync(new, &e))?;
    let packed = sync::wire::frame(&bytes).map_err(|e| {
        UserError::new(
            "compression",
            format!("the change list cannot be compressed: {e}"),
            "free memory, then run the command again",
        )
    })?;
    if let Some(output) = output {
        write_whole(output, &bytes)?;
    }
    let summary = Summary {
        old: old.display().to_string(),
        new: new.display().to_string(),
        added: counts.added,
        updated: counts.updated,
        moved: counts.moved,
        deleted: counts.deleted,
        bytes: bytes.len() as u64,
        packed_bytes: packed.len() as u64,
        file_bytes: target.ndb().header().file_eof,
        output: output.map(|p| p.display().to_string()),
    };
    for change in &shown {
        out.result(&serde_json::json!({ "change": change }), |out| {
            let Shown {
                action,
                kind,
                nid,
                path,
                name,
            } = change;
            let mut place: Vec<String> = path.iter().map(|p| clean(p)).collect();
            place.push(name.as_deref().map_or_else(|| nid.clone(), clean));
            out.line(format_args!("{action:<8} {kind:<18} {}", place.join("/")))
        })?;
    }
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        out.line(format_args!(
            "{} added, {} updated, {} moved, {} deleted; the change list takes {} for a file of {}",
            count(summary.added as u64),
            count(summary.updated as u64),
            count(summary.moved as u64),
            count(summary.deleted as u64),
            size(summary.bytes),
            size(summary.file_bytes)
        ))?;
        match &summary.output {
            Some(file) => out.line(format_args!("Written to {}", clean(file))),
            None => out.line("Nothing was written: name a file with -o to keep it"),
        }
    })?;
    Ok(ExitStatus::Synced)
}

/// Where to look for what an object is called.
struct Names<'a> {
    old: (&'a Pst, &'a Index),
    new: (&'a Pst, &'a Index),
}

impl Names<'_> {
    fn shown(&self, change: &Change) -> Shown {
        let (action, (pst, index)) = match change.action {
            Action::Add { .. } => ("added", self.new),
            Action::Update { .. } => ("updated", self.new),
            Action::Move { .. } => ("moved", self.new),
            Action::Delete { .. } => ("deleted", self.old),
        };
        let nid = change.nid();
        let (parent, name) = match change.kind {
            ObjectKind::Folder => (
                index.folders.get(&nid).map(|f| f.parent),
                text_of(pst, nid, tags::DISPLAY_NAME),
            ),
            ObjectKind::Message | ObjectKind::Associated => (
                pst.ndb().node(nid).ok().flatten().map(|n| n.nid_parent),
                text_of(pst, nid, tags::SUBJECT),
            ),
            ObjectKind::Raw => (None, None),
        };
        let path = parent
            .filter(|p| *p != nid)
            .map_or_else(Vec::new, |p| folders(pst, index, p));
        Shown {
            action,
            kind: change.kind.name(),
            nid: nid.to_string(),
            path,
            name,
        }
    }
}

/// The names from the outermost folder down to `nid`; the root folder is not named.
fn folders(pst: &Pst, index: &Index, mut nid: Nid) -> Vec<String> {
    let mut path = Vec::new();
    // The index holds only what hangs below the root, so this ends; the bound is for the reader.
    while nid != Nid::ROOT_FOLDER && path.len() <= index.folders.len() {
        let Some(folder) = index.folders.get(&nid) else {
            break;
        };
        path.push(text_of(pst, nid, tags::DISPLAY_NAME).unwrap_or_else(|| format!("({nid})")));
        nid = folder.parent;
    }
    path.reverse();
    path
}

/// The output must be neither an input nor any other PST: a slip of the order of arguments would cost
/// mail.
fn check_output(output: &Path, inputs: &[&Path]) -> Result<(), UserError> {
    let refused = |what: String| {
        Err(UserError::new(
            "output-is-pst",
            what,
            "name another file with -o",
        ))
    };
    let Ok(meta) = fs::metadata(output) else {
        return Ok(());
    };
    for input in inputs {
        if fs::metadata(input).is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino())) {
            return refused(format!(
                "the output {} is one of the inputs",
                output.display()
            ));
        }
    }
    if !meta.is_file() {
        return refused(format!("the output {} is not a file", output.display()));
    }
    let mut magic = [0; 4];
    let read = fs::File::open(output).and_then(|mut f| f.read_exact(&mut magic));
    if read.is_ok() && &magic == b"!BDN" {
        return refused(format!(
            "the output {} is a PST, and would be lost",
            output.display()
        ));
    }
    Ok(())
}

/// Writes a file of mail (0600) so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), UserError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part: PathBuf = path.with_file_name(name);
    let failed = |e| UserError::file("write", path, &e);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.map_err(failed)
}
