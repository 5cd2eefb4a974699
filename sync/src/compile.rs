//! Compiles changes into a package: reads the added and updated objects from the source and lays
//! them into a carrier, a real PST that any reader opens.
//!
//! In the carrier, messages lie in one folder, folders beside them in another; which is which the
//! change list says. Raw nodes keep their content under NIDs of the internal type. Of an object whose
//! older version is known by its [`Detail`] only what changed is laid in.

use std::sync::Arc;

use pst::canonical::{AttachmentEdit, Detail, Edits, Record};
use pst::ltp::{NameMap, PropBag, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::{Nid, NidType, Pst};
use storage::{MemStorage, Overlay, ReadAt};

use crate::change_list::{Action, Change, Fingerprint, Level, ObjectKind, Patch, Piece};
use crate::error::{Result, SyncError};
use crate::package::{self, APPLY_VERSION, Carrier, Package};
use crate::raw;

/// Gives the detail of the version with this fingerprint of the object that has this NID in the source,
/// as far as it is known.
pub type Details<'a> = dyn FnMut(Nid, &Fingerprint) -> Result<Option<Detail>> + 'a;

/// Reads from `source` what `changes` add or update and makes the package; objects are sent whole.
/// Each change, which names the target's NIDs, comes with the object's NID in the source.
///
/// # Errors
/// A damaged source object stops the whole compile (DESIGN 6): nothing half-right is sent.
pub fn compile(source: &Pst, changes: Vec<(Change, Nid)>) -> Result<Package> {
    compile_with(source, changes, &mut |_, _| Ok(None))
}

/// As [`compile`]; of updated objects whose older version `details` knows only what changed is sent.
///
/// # Errors
/// As [`compile`], and what `details` fails with.
pub fn compile_with(
    source: &Pst,
    changes: Vec<(Change, Nid)>,
    details: &mut Details<'_>,
) -> Result<Package> {
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
    let io = |e: std::io::Error| SyncError::package("carrier", e.to_string());
    let skeleton = package::skeleton().map_err(io)?;
    let base: Arc<dyn ReadAt> = Arc::new(MemStorage::from(skeleton.to_vec()));
    let mut laying = Laying::begin(source, Arc::clone(&base))?;
    let mut list = Vec::with_capacity(changes.len());
    for (mut change, nid) in changes {
        laying.lay(&mut change, nid, details)?;
        list.push(change);
    }
    let image = Overlay::new(base).map_err(io)?;
    laying.tx.finish()?.commit(&image).map_err(io)?;
    Ok(Package {
        apply_version: APPLY_VERSION,
        changes: list,
        carrier: Carrier::of(&image)?,
    })
}

/// The details of a container that is at hand: the older version of both.
///
/// # Errors
/// The closure fails if an object that it is asked for cannot be read.
pub fn details_from(base: &Pst) -> impl FnMut(Nid, &Fingerprint) -> Result<Option<Detail>> + '_ {
    |nid, before| {
        let Some(kind) = base.index()?.kind(nid) else {
            return Ok(None);
        };
        let record = base.record(kind, nid)?;
        Ok((record.fingerprint() == *before).then(|| Detail::of(&record)))
    }
}

/// A carrier being filled.
struct Laying<'a> {
    source: &'a Pst,
    tx: Transaction,
    messages: Nid,
    folders: Nid,
}

impl<'a> Laying<'a> {
    fn begin(source: &'a Pst, skeleton: Arc<dyn ReadAt>) -> Result<Self> {
        let tx = Transaction::begin(skeleton)?;
        let root = tx.ipm_subtree()?;
        let of_root = tx.base().folders()?.into_iter();
        // Of the sub-folders of an empty PST only the wastebasket comes before them.
        let mut made =
            of_root.filter(|f| f.parent == root && f.nid != pst::messaging::DELETED_ITEMS);
        let missing = || SyncError::package("carrier", "the skeleton lacks a folder");
        let messages = made.next().ok_or_else(missing)?.nid;
        let folders = made.next().ok_or_else(missing)?.nid;
        Ok(Self {
            source,
            tx,
            messages,
            folders,
        })
    }

    /// Lays what `change` adds or updates into the carrier, and notes where it lies.
    fn lay(&mut self, change: &mut Change, nid: Nid, details: &mut Details<'_>) -> Result<()> {
        let kind = change.kind;
        let (carrier, patch) = match &mut change.action {
            Action::Add { carrier, .. } => (carrier, None),
            Action::Update {
                carrier,
                before,
                patch,
                ..
            } => {
                let known = match kind {
                    ObjectKind::Raw => None,
                    _ => details(nid, before)?,
                };
                (carrier, known.map(|known| (known, patch)))
            }
            Action::Move { .. } | Action::Delete { .. } => return Ok(()),
        };
        *carrier = match kind {
            ObjectKind::Folder => self.folder(nid, patch)?.0,
            ObjectKind::Message => self.message(nid, false, patch)?.0,
            ObjectKind::Associated => self.message(nid, true, patch)?.0,
            ObjectKind::Raw => self.raw(nid)?.0,
        };
        Ok(())
    }

    fn folder(&mut self, nid: Nid, known: Option<(Detail, &mut Option<Patch>)>) -> Result<Nid> {
        let names = self.source.names();
        let mut props = self.source.folder(nid)?.props;
        if let Some((before, patch)) = known {
            let edits = Edits::between(&before, &Record::folder(&props, names)?);
            // A folder has a name in any file: an empty one, if none is given.
            let name = props.get(tags::DISPLAY_NAME).cloned();
            props = Edits::pick(&edits.set, &props, names);
            props.extend(name);
            let removed = edits.removed;
            *patch = Some(Patch {
                levels: vec![Level {
                    removed,
                    ..Level::default()
                }],
            });
        }
        let props = self.tx.import_props(&props, names)?;
        Ok(self.tx.create_folder(self.folders, None, &props)?)
    }

    fn message(
        &mut self,
        nid: Nid,
        associated: bool,
        known: Option<(Detail, &mut Option<Patch>)>,
    ) -> Result<Nid> {
        let names = self.source.names();
        let mut message = self.source.message(nid)?;
        let cells = self.source.cells(nid)?;
        if let Some((before, patch)) = known {
            let now = Record::message(&message, associated, names)?;
            let edits = Edits::between(&before, &now);
            let mut levels = Vec::new();
            message = only(&message, &edits, names, &mut levels)?;
            *patch = Some(Patch { levels });
        }
        let data = self.tx.import_message(&message, names)?;
        let placed = self
            .tx
            .add_message(self.messages, None, &data, associated)?;
        if !cells.is_empty() {
            self.tx.set_cells(placed, &cells)?;
        }
        Ok(placed)
    }

    fn raw(&mut self, nid: Nid) -> Result<Nid> {
        let ndb = self.source.ndb();
        let entry = ndb.node(nid)?.ok_or(SyncError::WrongBase {
            what: "raw node",
            nid,
            detail: "it is not in the source",
        })?;
        let content = raw::content(ndb, &entry)?;
        let placed = self.tx.alloc_nid(NidType::INTERNAL)?;
        self.tx.put_raw_node(placed, Nid(0), &content)?;
        Ok(placed)
    }
}

/// What is always carried of a message: without these, other readers take it for none.
const MESSAGE_ALWAYS: [u16; 2] = [tags::MESSAGE_CLASS, tags::SEARCH_KEY];
/// PidTagAttachMethod afByReference ([MS-OXCMSG] 2.2.2.9): the content is not here.
const BY_REFERENCE: i32 = 2;

/// Of a message what `edits` say has changed; how it is to be laid over the older version goes into
/// `levels`.
fn only(
    message: &MessageData,
    edits: &Edits,
    names: &NameMap,
    levels: &mut Vec<Level>,
) -> Result<MessageData> {
    let index = levels.len();
    levels.push(Level {
        removed: edits.removed.clone(),
        recipients: edits.recipients,
        attachments: None,
    });
    let mut out = MessageData {
        props: with(&edits.set, &message.props, &MESSAGE_ALWAYS, names),
        ..MessageData::default()
    };
    if edits.recipients {
        out.recipients.clone_from(&message.recipients);
    }
    let Some(attachments) = &edits.attachments else {
        return Ok(out);
    };
    let mut pieces = Vec::with_capacity(attachments.len());
    for (edit, now) in attachments.iter().zip(&message.attachments) {
        let carried = number(out.attachments.len())?;
        pieces.push(match edit {
            AttachmentEdit::Kept(before) => Piece::Kept(number(*before)?),
            AttachmentEdit::New => {
                out.attachments.push(now.clone());
                Piece::Carried(carried)
            }
            AttachmentEdit::Edited {
                before,
                set,
                removed,
                message,
            } => {
                let (level, embedded) = match (message, &now.embedded) {
                    (Some(edits), Some(embedded)) => {
                        let level = number(levels.len())?;
                        let embedded = only(embedded, edits, names, levels)?;
                        (Some(level), Some(Box::new(embedded)))
                    }
                    _ => (None, None),
                };
                let mut props = Edits::pick(set, &now.props, names);
                // The method says what is carried, so that others can read it; it is never laid over
                // the target's.
                let method = match (&embedded, now.props.get(tags::ATTACH_METHOD)) {
                    (Some(_), Some(method)) => method.clone(),
                    _ => PropValue::i32(tags::ATTACH_METHOD, BY_REFERENCE),
                };
                props.insert(method);
                out.attachments.push(AttachmentData { props, embedded });
                Piece::Patched {
                    before: number(*before)?,
                    carried,
                    removed: removed.clone(),
                    level,
                }
            }
        });
    }
    if let Some(level) = levels.get_mut(index) {
        level.attachments = Some(pieces);
    }
    Ok(out)
}

/// The properties in `set`, and those with the ids in `always`.
fn with(
    set: &std::collections::BTreeSet<pst::canonical::CanonKey>,
    props: &PropBag,
    always: &[u16],
    names: &NameMap,
) -> PropBag {
    let mut out = Edits::pick(set, props, names);
    out.extend(always.iter().filter_map(|id| props.get(*id).cloned()));
    out
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| SyncError::package("patch", format!("{n} attachments")))
}
