//! Compiles changes into a package: reads the added and updated objects from the source and lays
//! them into a carrier, a real PST that any reader opens.
//!
//! In the carrier, messages lie in one folder, folders beside them in another; which is which the
//! change list says. Raw nodes keep their content under NIDs of the internal type.

use std::sync::Arc;

use pst::ltp::{PropBag, PropValue};
use pst::messaging::{Transaction, tags};
use pst::{Nid, NidType, Pst};
use storage::{MemStorage, Overlay, ReadAt};

use crate::change_list::{Action, Change, ObjectKind};
use crate::error::{Result, SyncError};
use crate::package::{self, APPLY_VERSION, Carrier, Package};
use crate::raw;

/// Reads from `source` what `changes` add or update and makes the package. Each change, which
/// names the target's NIDs, comes with the object's NID in the source.
///
/// # Errors
/// A damaged source object stops the whole compile (DESIGN 6): nothing half-right is sent.
pub fn compile(source: &Pst, changes: Vec<(Change, Nid)>) -> Result<Package> {
    let carries = changes
        .iter()
        .any(|(c, _)| matches!(c.action, Action::Add { .. } | Action::Update { .. }));
    if !carries {
        return Ok(Package {
            apply_version: APPLY_VERSION,
            changes: changes.into_iter().map(|(change, _)| change).collect(),
            carrier: Carrier::default(),
        });
    }
    let empty = package::empty()?;
    let base: Arc<dyn ReadAt> = Arc::new(MemStorage::from(empty.clone()));
    let mut tx = Transaction::begin(Arc::clone(&base))?;
    let root = tx.ipm_subtree()?;
    let messages = tx.create_folder(root, None, &named_folder("Messages"))?;
    let folders = tx.create_folder(root, None, &named_folder("Folders"))?;
    let mut list = Vec::with_capacity(changes.len());
    for (mut change, nid) in changes {
        let kind = change.kind;
        let (Action::Add { carrier, .. } | Action::Update { carrier, .. }) = &mut change.action
        else {
            list.push(change);
            continue;
        };
        let placed = match kind {
            ObjectKind::Folder => {
                let props = tx.import_props(&source.folder(nid)?.props, source.names())?;
                tx.create_folder(folders, None, &props)?
            }
            ObjectKind::Message | ObjectKind::Associated => {
                let data = tx.import_message(&source.message(nid)?, source.names())?;
                let associated = kind == ObjectKind::Associated;
                tx.add_message(messages, None, &data, associated)?
            }
            ObjectKind::Raw => {
                let entry = source.ndb().node(nid)?.ok_or(SyncError::WrongBase {
                    what: "raw node",
                    nid,
                    detail: "it is not in the source",
                })?;
                let content = raw::content(source.ndb(), &entry)?;
                let placed = tx.alloc_nid(NidType::INTERNAL)?;
                tx.put_raw_node(placed, Nid(0), &content)?;
                placed
            }
        };
        *carrier = placed.0;
        list.push(change);
    }
    let io = |e: std::io::Error| SyncError::package("carrier", e.to_string());
    let image = Overlay::new(base).map_err(io)?;
    tx.finish()?.commit(&image).map_err(io)?;
    let len = image.len().map_err(io)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    image.read_exact_at(0, &mut bytes).map_err(io)?;
    Ok(Package {
        apply_version: APPLY_VERSION,
        changes: list,
        carrier: Carrier::fold(&bytes, &empty),
    })
}

fn named_folder(name: &str) -> PropBag {
    [PropValue::string(tags::DISPLAY_NAME, name)]
        .into_iter()
        .collect()
}
