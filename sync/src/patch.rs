//! Lays a patch over an object: pure, and checked by what comes out.

use std::collections::BTreeSet;

use pst::canonical::{Edits, Record, RecordAttachment};
use pst::ltp::{NameMap, PropBag};
use pst::messaging::{AttachmentData, MAX_EMBED_DEPTH, MessageData, tags};

use crate::change_list::{Level, Patch, Piece};
use crate::error::{Result, SyncError};

/// A message with its record, so that what is kept need not be read again.
pub(crate) struct Known {
    pub(crate) data: MessageData,
    pub(crate) record: Record,
}

/// The properties of a folder after `patch`; `carried` is in the ids of the target.
pub(crate) fn folder(
    before: PropBag,
    carried: PropBag,
    patch: &Patch,
    names: &NameMap,
) -> Result<PropBag> {
    let level = level_of(patch, 0)?;
    Ok(lay(before, carried, &level.removed, names))
}

/// The message after `patch`; `carried` is in the ids of the target, whose name map is `names`.
pub(crate) fn message(
    before: Known,
    carried: MessageData,
    patch: &Patch,
    associated: bool,
    names: &NameMap,
) -> Result<Known> {
    Patching {
        patch,
        names,
        used: BTreeSet::new(),
    }
    .level(before, carried, 0, 0, associated)
}

struct Patching<'a> {
    patch: &'a Patch,
    names: &'a NameMap,
    /// Levels that were laid: each is laid once.
    used: BTreeSet<u32>,
}

impl Patching<'_> {
    fn level(
        &mut self,
        before: Known,
        carried: MessageData,
        index: u32,
        depth: usize,
        associated: bool,
    ) -> Result<Known> {
        if !self.used.insert(index) || depth > MAX_EMBED_DEPTH {
            return Err(refused("a level is used twice, or too deep"));
        }
        let level = level_of(self.patch, index)?;
        let Known { data, record } = before;
        let mut out = MessageData {
            props: lay(data.props, carried.props, &level.removed, self.names),
            recipients: if level.recipients {
                carried.recipients
            } else {
                data.recipients
            },
            attachments: Vec::new(),
        };
        let mut records = Vec::new();
        match &level.attachments {
            None => {
                out.attachments = data.attachments;
                records = record.attachments;
            }
            Some(pieces) => {
                let old = data.attachments.into_iter().zip(record.attachments);
                let mut old: Vec<Option<(AttachmentData, RecordAttachment)>> =
                    old.map(Some).collect();
                let mut new: Vec<Option<AttachmentData>> =
                    carried.attachments.into_iter().map(Some).collect();
                for piece in pieces {
                    let (data, record) = self.piece(piece, &mut old, &mut new, depth)?;
                    out.attachments.push(data);
                    records.push(record);
                }
            }
        }
        let record = Record::assemble(&out, records, associated, self.names)?;
        Ok(Known { data: out, record })
    }

    fn piece(
        &mut self,
        piece: &Piece,
        old: &mut [Option<(AttachmentData, RecordAttachment)>],
        new: &mut [Option<AttachmentData>],
        depth: usize,
    ) -> Result<(AttachmentData, RecordAttachment)> {
        match piece {
            Piece::Kept(before) => take(old, *before),
            Piece::Carried(carried) => {
                let data = take(new, *carried)?;
                let record = RecordAttachment::new(&data, self.names)?;
                Ok((data, record))
            }
            Piece::Patched {
                before,
                carried,
                removed,
                level,
            } => {
                let (before, known) = take(old, *before)?;
                let mut carried = take(new, *carried)?;
                // It says what the carrier holds, not what the attachment is.
                carried.props.remove(tags::ATTACH_METHOD);
                let embedded = match (level, before.embedded, known.message, carried.embedded) {
                    (None, kept, ..) => kept,
                    (Some(level), Some(data), Some(record), Some(carried)) => {
                        let before = Known {
                            data: *data,
                            record: *record,
                        };
                        let after = self.level(before, *carried, *level, depth + 1, false)?;
                        Some(Box::new(after.data))
                    }
                    _ => return Err(refused("an embedded message is not there")),
                };
                let data = AttachmentData {
                    props: lay(before.props, carried.props, removed, self.names),
                    embedded,
                };
                let record = RecordAttachment::new(&data, self.names)?;
                Ok((data, record))
            }
        }
    }
}

/// `before` without what is removed, with what is carried.
fn lay(mut before: PropBag, carried: PropBag, removed: &[u64], names: &NameMap) -> PropBag {
    before.extend(carried);
    Edits::strip(removed, &mut before, names);
    before
}

fn level_of(patch: &Patch, index: u32) -> Result<&Level> {
    patch
        .levels
        .get(index as usize)
        .ok_or_else(|| refused("a level is missing"))
}

fn take<T>(list: &mut [Option<T>], index: u32) -> Result<T> {
    list.get_mut(index as usize)
        .and_then(Option::take)
        .ok_or_else(|| refused("an attachment is missing, or used twice"))
}

fn refused(detail: &'static str) -> SyncError {
    SyncError::package("patch", detail)
}
