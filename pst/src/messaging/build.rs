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
use super::value::{for_each_chunk, reuse_streams};
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

/// The attachments of an old version that were not taken up yet.
struct Reusable<'a> {
    old: &'a OldMessage,
    /// By place (see [`place`]): an attachment that was read from this very file and left alone is
    /// found without reading what it holds.
    by_place: ByHash,
    /// By content; made when one is not found by its place.
    by_content: Option<ByHash>,
    taken: BTreeSet<usize>,
}

/// Indexes of attachments by a hash; the first of equal ones last, so that popping keeps their order.
type ByHash = BTreeMap<[u8; 32], Vec<usize>>;

impl<'a> Reusable<'a> {
    fn new(old: &'a OldMessage, base: &Arc<Ndb>) -> Result<Self> {
        Ok(Self {
            old,
            by_place: Self::index(old, &mut |a| place(a, base))?,
            by_content: None,
            taken: BTreeSet::new(),
        })
    }

    fn index(
        old: &OldMessage,
        hash: &mut dyn FnMut(&AttachmentData) -> Result<[u8; 32]>,
    ) -> Result<ByHash> {
        let mut out = ByHash::new();
        for (i, data) in old.data.attachments.iter().enumerate().rev() {
            if old.attachments.get(i).copied().flatten().is_some() {
                out.entry(hash(data)?).or_default().push(i);
            }
        }
        Ok(out)
    }

    /// The subnode of an equal attachment; each is given once.
    fn take(
        &mut self,
        attachment: &AttachmentData,
        base: &Arc<Ndb>,
        names: &NameMap,
    ) -> Result<Option<(Bid, Bid)>> {
        let mut content = |a: &AttachmentData| -> Result<[u8; 32]> {
            Ok(RecordAttachment::new(a, names)?.fingerprint())
        };
        let mut found = pop(&mut self.by_place, &place(attachment, base)?, &self.taken);
        if found.is_none() && self.taken.len() < self.old.attachments.len() {
            if self.by_content.is_none() {
                self.by_content = Some(Self::index(self.old, &mut content)?);
            }
            let hash = content(attachment)?;
            found = self
                .by_content
                .as_mut()
                .and_then(|all| pop(all, &hash, &self.taken));
        }
        let Some(i) = found else {
            return Ok(None);
        };
        self.taken.insert(i);
        Ok(self.old.attachments.get(i).copied().flatten())
    }
}

fn pop(all: &mut ByHash, hash: &[u8; 32], taken: &BTreeSet<usize>) -> Option<usize> {
    let list = all.get_mut(hash)?;
    while let Some(i) = list.pop() {
        if !taken.contains(&i) {
            return Some(i);
        }
    }
    None
}

/// A hash of an attachment in which values that lie in `base` stand as the blocks that hold them.
/// Equal hashes mean equal attachments; unequal ones mean nothing.
fn place(attachment: &AttachmentData, base: &Arc<Ndb>) -> Result<[u8; 32]> {
    let mut h = blake3::Hasher::new();
    hash_place(&mut h, attachment, base)?;
    Ok(*h.finalize().as_bytes())
}

fn hash_place(h: &mut blake3::Hasher, a: &AttachmentData, base: &Arc<Ndb>) -> Result<()> {
    let bag = |h: &mut blake3::Hasher, props: &PropBag| -> Result<()> {
        h.update(&(props.len() as u64).to_le_bytes());
        for value in props {
            h.update(&value.tag.0.to_le_bytes());
            match &value.data {
                ValueData::Stream { ndb, bid, .. } if Arc::ptr_eq(ndb, base) => {
                    h.update(&[1]);
                    h.update(&bid.0.to_le_bytes());
                }
                _ => {
                    h.update(&[0]);
                    // Lengths differ by block: the bytes are hashed as one value of their own.
                    let mut inner = blake3::Hasher::new();
                    for_each_chunk(value, &mut |chunk| {
                        inner.update(chunk);
                        Ok(())
                    })?;
                    h.update(inner.finalize().as_bytes());
                }
            }
        }
        Ok(())
    };
    bag(h, &a.props)?;
    h.update(&[u8::from(a.embedded.is_some())]);
    if let Some(m) = &a.embedded {
        bag(h, &m.props)?;
        h.update(&(m.recipients.len() as u64).to_le_bytes());
        for r in &m.recipients {
            bag(h, r)?;
        }
        h.update(&(m.attachments.len() as u64).to_le_bytes());
        for inner in &m.attachments {
            hash_place(h, inner, base)?;
        }
    }
    Ok(())
}

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
                .filter(|o| !o.attachments.is_empty())
                .map(|o| Reusable::new(o, self.base))
                .transpose()?;
            for (i, attachment) in message.attachments.iter().enumerate() {
                let nid = self.nids.alloc_nid(NidType::ATTACHMENT)?;
                let same = match &mut reuse {
                    Some(reuse) => reuse.take(attachment, self.base, self.names)?,
                    None => None,
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
