//! `pst inventory`: one line per object, with a fingerprint by which a later version is compared.
//!
//! What a fingerprint is made of, and promises, [`pst::scan`] says: of the two blocks that a node names;
//! with `--blocks` of all blocks; with `--content` of what the object says.

use std::path::Path;

use pst::inventory::Inventory;
use pst::scan::{Depth, scan};
use serde::Serialize;

use super::{explain, open};
use crate::error::Outcome;
use crate::exit::ExitStatus;
use crate::output::Output;

#[derive(Serialize)]
struct Line {
    nid: String,
    parent: String,
    kind: &'static str,
    fingerprint: String,
    /// Bytes of all its values, where they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// `None`: the content itself.
pub(super) fn run(path: &Path, depth: Option<Depth>, out: &mut Output) -> Outcome {
    let pst = open(path)?;
    let mut show = |line: Line| {
        out.result(&line, |out| {
            let Line {
                nid,
                parent,
                kind,
                fingerprint,
                ..
            } = &line;
            out.line(format_args!(
                "{nid:<12} {parent:<12} {kind:<10} {fingerprint}"
            ))
        })
    };
    if let Some(depth) = depth {
        for row in scan(&pst, depth).map_err(|e| explain(path, &e))? {
            show(Line {
                nid: row.nid().to_string(),
                parent: row.entry.nid_parent.to_string(),
                kind: row.kind.name(),
                fingerprint: sync::hex::encode(&row.print),
                size: None,
            })?;
        }
        return Ok(ExitStatus::Synced);
    }
    let inventory = Inventory::read(&pst).map_err(|e| explain(path, &e))?;
    for row in inventory.rows.values() {
        show(Line {
            nid: row.nid.to_string(),
            parent: row.parent.to_string(),
            kind: row.kind.name(),
            fingerprint: sync::hex::encode(&row.fingerprint),
            size: Some(row.size),
        })?;
    }
    Ok(ExitStatus::Synced)
}
