//! Builds the node of a message from its data ([MS-PST] 2.4.5, 2.4.6).
//!
//! A message is one node: a property context, and as subnodes the recipient table (always), the
//! attachment table and the attachments (where there are any). Where an old version of the message
//! lies in the same file, equal large values and equal attachments share its blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::read::{AttachmentData, MAX_EMBED_DEPTH, MAX_MESSAGE_PARTS, MessageData};
use super::row_cells::{cells_in, code_page};
use super::tags;
use super::value::reuse_streams;
use crate::canonical::{RecordAttachment, with_attach_flag};
use crate::ltp::{
    NameMap, NodeSource, ObjectValue, PropBag, PropTag, PropType, PropValue, TableBuilder,
    ValueData, build_pc,
};
use crate::ndb::{Ndb, NdbTransaction, NodeContent, Subnodes};
use crate::{Bid, Nid, NidType, PstError, Result};

/// What building needs to know about the file that is written.
pub(super) struct Builder<'a> {
    /// The file under the transaction; what lies in it is shared.
    pub base: &'a Arc<Ndb>,
    /// Its name map: attachments of two versions are compared under it.
    pub names: &'a NameMap,
    /// Columns of every new recipient table.
    pub recipient_columns: &'a [PropTag],
    /// Columns of every new attachment table.
    pub attachment_columns: &'a [PropTag],
    /// Hands out the NIDs of attachments and embedded messages. They are unique over the whole file,
    /// as Outlook has them: libpff looks inner subnodes up among the outer ones first, and embedded
    /// messages among all messages of the file ([`embedded_nid`]).
    pub nids: &'a mut NdbTransaction,
}

/// An old version of a message, to share blocks with.
pub(super) struct OldMessage {
    pub data: MessageData,
    /// The subnodes of its attachments, in their order; `None` for a row without a subnode.
    pub attachments: Vec<Option<(Bid, Bid)>>,
}

/// Subnodes of an old version's attachments by fingerprint.
type Reusable = BTreeMap<[u8; 32], Vec<(Bid, Bid)>>;

impl Builder<'_> {
    /// The content of a message's node.
    pub fn message(
        &mut self,
        message: &MessageData,
        old: Option<&OldMessage>,
    ) -> Result<NodeContent> {
        let parts = count_parts(message, 0)?;
        if parts > MAX_MESSAGE_PARTS {
            return Err(PstError::Limit {
                what: "parts of one message",
                found: parts as u64,
                limit: MAX_MESSAGE_PARTS as u64,
            });
        }
        self.level(message, old)
    }

    fn level(&mut self, message: &MessageData, old: Option<&OldMessage>) -> Result<NodeContent> {
        let mut props = normalised(message);
        if let Some(old) = old {
            reuse_streams(&mut props, &old.data.props)?;
        }
        let mut content = build_pc(&props, Some(self.base))?;
        let mut subnodes = match std::mem::take(&mut content.subnodes) {
            Subnodes::None => BTreeMap::new(),
            Subnodes::Tree(tree) => tree,
            Subnodes::Existing(_) | Subnodes::Patched(_) => {
                return Err(PstError::Refused(
                    "a built property context has foreign subnodes".into(),
                ));
            }
        };
        subnodes.insert(Nid::RECIPIENT_TABLE, self.recipients(&message.recipients)?);
        if !message.attachments.is_empty() {
            let mut table = TableBuilder::new(self.attachment_columns)?;
            let page = code_page(&message.props);
            let mut reuse = old
                .map(|o| self.old_attachments(o))
                .transpose()?
                .unwrap_or_default();
            for (i, attachment) in message.attachments.iter().enumerate() {
                let nid = self.nids.alloc_nid(NidType::ATTACHMENT)?;
                let same = if reuse.is_empty() {
                    None
                } else {
                    let fingerprint = RecordAttachment::new(attachment, self.names)?.fingerprint();
                    reuse.get_mut(&fingerprint).and_then(Vec::pop)
                };
                let node = match same {
                    Some((bid_data, bid_sub)) => NodeSource::stored(self.base, bid_data, bid_sub)
                        .to_content(Some(self.base))?,
                    None => {
                        self.attachment(attachment, old.and_then(|o| o.data.attachments.get(i)))?
                    }
                };
                subnodes.insert(nid, node);
                let row = cells_in(&attachment.props, self.attachment_columns, page);
                table.row(nid.0, &row)?;
            }
            subnodes.insert(Nid::ATTACHMENT_TABLE, table.build(Some(self.base))?);
        }
        content.subnodes = Subnodes::Tree(subnodes);
        Ok(content)
    }

    fn recipients(&self, recipients: &[PropBag]) -> Result<NodeContent> {
        // Those columns that these recipients have, and all of the template (2.4.5.3.2), but of no
        // property two: the table is the one home of these properties, in the type they came with.
        let used: BTreeSet<PropTag> = recipients
            .iter()
            .flat_map(PropBag::iter)
            .map(|value| value.tag)
            .collect();
        let ids: BTreeSet<u16> = used.iter().map(|tag| tag.id()).collect();
        let template = self.recipient_columns.iter().copied();
        let columns: Vec<PropTag> = template
            .filter(|tag| !ids.contains(&tag.id()))
            .chain(used)
            .collect();
        let mut table = TableBuilder::new(&columns)?;
        for (i, props) in recipients.iter().enumerate() {
            let id = u32::try_from(i).map_err(|_| too_many("recipients", i))?;
            table.row(id, props)?;
        }
        table.build(Some(self.base))
    }

    fn attachment(
        &mut self,
        attachment: &AttachmentData,
        old: Option<&AttachmentData>,
    ) -> Result<NodeContent> {
        let mut props = attachment.props.clone();
        if let Some(old) = old {
            reuse_streams(&mut props, &old.props)?;
        }
        if let Some(message) = &attachment.embedded {
            let old = old.and_then(|o| o.embedded.as_deref()).map(|m| OldMessage {
                data: m.clone(),
                attachments: Vec::new(),
            });
            let content = self.level(message, old.as_ref())?;
            let size = props.i32(tags::ATTACH_SIZE).map_or(0, i32::cast_unsigned);
            props.insert(PropValue {
                tag: PropTag::new(tags::ATTACH_DATA, PropType::OBJECT),
                data: ValueData::Object(ObjectValue {
                    nid: embedded_nid(self.nids.alloc_nid(NidType::NORMAL_MESSAGE)?),
                    size,
                    content: Some(NodeSource::built(content)),
                }),
            });
        }
        build_pc(&props, Some(self.base))
    }

    /// The subnodes of an old version's attachments by fingerprint; the first of equal ones last,
    /// so that popping keeps their order.
    fn old_attachments(&self, old: &OldMessage) -> Result<Reusable> {
        let mut out = Reusable::new();
        for (data, bids) in old.data.attachments.iter().zip(&old.attachments).rev() {
            if let Some(bids) = bids {
                out.entry(RecordAttachment::new(data, self.names)?.fingerprint())
                    .or_default()
                    .push(*bids);
            }
        }
        Ok(out)
    }
}

/// The NID of an embedded message: in the upper half of the numbers, which no message in a folder
/// has. One that came with its number from another file would else meet an embedded message of
/// that number, perhaps its own, and libpff would take the one for the other.
const fn embedded_nid(fresh: Nid) -> Nid {
    const UPPER_HALF: u32 = 1 << 26;
    Nid::new(NidType::NORMAL_MESSAGE, fresh.index() | UPPER_HALF)
}

/// A message's properties with what follows from its attachments made right
/// ([MS-PST] 2.4.6: `mfHasAttach`).
pub(super) fn normalised(message: &MessageData) -> PropBag {
    let mut props = message.props.clone();
    props.remove(tags::LTP_ROW_ID);
    props.remove(tags::LTP_ROW_VER);
    let has = !message.attachments.is_empty();
    if let Some(flags) = props.get(tags::MESSAGE_FLAGS)
        && flags.tag.prop_type() == PropType::I32
        && let Some(flags) = flags.as_i32()
    {
        props.insert(PropValue::i32(
            tags::MESSAGE_FLAGS,
            with_attach_flag(flags, has),
        ));
    }
    if props
        .get(tags::HAS_ATTACHMENTS)
        .is_some_and(|v| v.tag.prop_type() == PropType::BOOL)
    {
        props.insert(PropValue::bool(tags::HAS_ATTACHMENTS, has));
    }
    props
}

fn too_many(what: &'static str, n: usize) -> PstError {
    PstError::Limit {
        what,
        found: n as u64,
        limit: u64::from(u32::MAX),
    }
}

fn count_parts(message: &MessageData, depth: usize) -> Result<usize> {
    if depth > MAX_EMBED_DEPTH {
        return Err(PstError::Limit {
            what: "depth of embedded messages",
            found: depth as u64,
            limit: MAX_EMBED_DEPTH as u64,
        });
    }
    let mut n = 1 + message.recipients.len() + message.attachments.len();
    for m in message
        .attachments
        .iter()
        .filter_map(|a| a.embedded.as_deref())
    {
        n = n.saturating_add(count_parts(m, depth + 1)?);
    }
    Ok(n)
}
