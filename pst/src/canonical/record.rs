//! Builds the canonical record of a folder, a message or a raw node.

use std::sync::Arc;

use crate::derived::{ObjectKind, Place, is_content_cell, is_derived_prop};
use crate::ltp::{NameKind, NameMap, PropBag, PropValue, PropertyContext, ValueData};
use crate::messaging::{AttachmentData, MessageData, by_key, for_each_chunk, tags};
use crate::ndb::{NbtEntry, Ndb};
use crate::{NidType, Result};

/// Values of at most this many bytes stand in the record as they are; longer ones as BLAKE3 and length.
pub const SHORT_VALUE: u64 = 256;
/// Bytes that are gathered before they are hashed; more than [`SHORT_VALUE`].
const HASHED_PIECE: usize = 64 << 10;

/// The name-resolved key of a property. The order of the variants is the order in a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CanonKey {
    /// A property with an id of its own, below 0x8000.
    Id(u16),
    /// A named property: GUID (as stored) and number.
    Number([u8; 16], u32),
    /// A named property: GUID and string (UTF-16LE), both as stored.
    Text([u8; 16], Vec<u8>),
    /// An id at or above 0x8000 that the file's name map does not know.
    Unmapped(u16),
}

/// A property value in its canonical form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CanonValue {
    /// The stored bytes.
    Short(Vec<u8>),
    /// BLAKE3 of the stored bytes, and how many they are.
    Long {
        /// BLAKE3 of the value.
        hash: [u8; 32],
        /// Length in bytes.
        len: u64,
    },
}

/// One property of a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CanonProp {
    /// What the property is.
    pub key: CanonKey,
    /// Its type ([MS-OXCDATA] 2.11.1).
    pub prop_type: u16,
    /// Its value.
    pub value: CanonValue,
}

/// One attachment of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordAttachment {
    /// Properties, sorted by key.
    pub props: Vec<CanonProp>,
    /// The embedded message.
    pub message: Option<Box<Record>>,
}

/// The canonical form of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What the object is.
    pub kind: ObjectKind,
    /// Properties, sorted by key.
    pub props: Vec<CanonProp>,
    /// Recipients in table order, each with its properties sorted by key.
    pub recipients: Vec<Vec<CanonProp>>,
    /// Attachments in table order.
    pub attachments: Vec<RecordAttachment>,
    /// What a message's row in its folder's contents table says beside the message: only cells that
    /// are content ([`crate::derived::is_content_cell`]). Empty for an embedded message.
    pub cells: Vec<CanonProp>,
    /// For a raw node: BLAKE3 over its decoded data and subnode tree, and its data bytes.
    pub raw: Option<([u8; 32], u64)>,
}

impl Record {
    /// The record of a folder. `names` is the name map of the file that `props` came from.
    ///
    /// # Errors
    /// If a streamed value cannot be read.
    pub fn folder(props: &PropBag, names: &NameMap) -> Result<Self> {
        Ok(Self {
            props: canon_props(props, names, Place::Folder, None)?,
            ..Self::empty(ObjectKind::Folder)
        })
    }

    /// The record of a message without its cells. `names` is the name map of the file that the
    /// message came from.
    ///
    /// # Errors
    /// If a streamed value cannot be read.
    pub fn message(message: &MessageData, associated: bool, names: &NameMap) -> Result<Self> {
        let attachments = message
            .attachments
            .iter()
            .map(|a| RecordAttachment::new(a, names))
            .collect::<Result<Vec<_>>>()?;
        Self::assemble(message, attachments, associated, names)
    }

    /// As [`Record::message`], with the records of the attachments at hand: what they hold is not
    /// read again.
    ///
    /// # Errors
    /// If a streamed value cannot be read.
    pub fn assemble(
        message: &MessageData,
        attachments: Vec<RecordAttachment>,
        associated: bool,
        names: &NameMap,
    ) -> Result<Self> {
        let kind = if associated {
            ObjectKind::Associated
        } else {
            ObjectKind::Message
        };
        let mut record = Self::empty(kind);
        record.props = canon_props(
            &message.props,
            names,
            Place::Message,
            Some(!attachments.is_empty()),
        )?;
        for r in &message.recipients {
            record
                .recipients
                .push(canon_props(r, names, Place::Recipient, None)?);
        }
        record.attachments = attachments;
        Ok(record)
    }

    /// The record of a raw node: its bytes, whatever they mean. Of a search folder its properties
    /// without counts: those follow from the search's result, which is derived.
    ///
    /// # Errors
    /// If its data cannot be read.
    pub fn raw(ndb: &Arc<Ndb>, names: &NameMap, entry: &NbtEntry) -> Result<Self> {
        let (bid_data, bid_sub) = (entry.bid_data, entry.bid_sub);
        let search_folder = if entry.nid.kind() == NidType::SEARCH_FOLDER {
            PropertyContext::open(ndb, bid_data, bid_sub)
                .and_then(|pc| Self::folder(&pc.bag()?, names))
                .ok()
        } else {
            None
        };
        let raw = match search_folder {
            Some(folder) => (folder.fingerprint(), folder.size()),
            None => super::hash_tree(ndb, bid_data, bid_sub)?,
        };
        Ok(Self {
            raw: Some(raw),
            ..Self::empty(ObjectKind::Raw)
        })
    }

    const fn empty(kind: ObjectKind) -> Self {
        Self {
            kind,
            props: Vec::new(),
            recipients: Vec::new(),
            attachments: Vec::new(),
            cells: Vec::new(),
            raw: None,
        }
    }

    /// Sets the cells of a message's row, except those that only repeat what the message says itself.
    ///
    /// # Errors
    /// If a streamed value cannot be read.
    pub fn lay_cells(&mut self, cells: &PropBag) -> Result<()> {
        let mut cells = canon_cells(cells)?;
        cells.retain(|c| self.props.binary_search(c).is_err());
        self.cells = cells;
        Ok(())
    }

    /// The value of a property below 0x8000, if it is short.
    #[must_use]
    pub fn short(&self, id: u16) -> Option<(u16, &[u8])> {
        let i = self
            .props
            .binary_search_by(|p| p.key.cmp(&CanonKey::Id(id)))
            .ok()?;
        match self.props.get(i) {
            Some(CanonProp {
                prop_type,
                value: CanonValue::Short(b),
                ..
            }) => Some((*prop_type, b)),
            _ => None,
        }
    }

    /// Bytes of all values, attachments included: the layout-independent size of the object.
    #[must_use]
    pub fn size(&self) -> u64 {
        let attachments: u64 = self
            .attachments
            .iter()
            .map(|a| props_size(&a.props) + a.message.as_ref().map_or(0, |m| m.size()))
            .sum();
        let recipients: u64 = self.recipients.iter().map(|r| props_size(r)).sum();
        props_size(&self.props) + recipients + attachments + self.raw.map_or(0, |(_, len)| len)
    }

    /// PidTagSearchKey as 16 bytes: as stored where it has that length, else hashed to it.
    #[must_use]
    pub fn search_key(&self) -> Option<[u8; 16]> {
        let hashed = |bytes: &[u8]| {
            let mut out = [0; 16];
            for (o, b) in out.iter_mut().zip(blake3::hash(bytes).as_bytes()) {
                *o = *b;
            }
            out
        };
        let (prop_type, bytes) = self.short(tags::SEARCH_KEY)?;
        if prop_type != tags::PT_BINARY || bytes.is_empty() {
            return None;
        }
        Some(<[u8; 16]>::try_from(bytes).unwrap_or_else(|_| hashed(bytes)))
    }
}

impl RecordAttachment {
    /// The record of one attachment.
    ///
    /// # Errors
    /// If a streamed value cannot be read.
    pub fn new(a: &AttachmentData, names: &NameMap) -> Result<Self> {
        let message = match &a.embedded {
            Some(m) => Some(Box::new(Record::message(m, false, names)?)),
            None => None,
        };
        Ok(Self {
            props: canon_props(&a.props, names, Place::Attachment, Some(message.is_some()))?,
            message,
        })
    }
}

fn props_size(props: &[CanonProp]) -> u64 {
    props
        .iter()
        .map(|p| match &p.value {
            CanonValue::Short(b) => b.len() as u64,
            CanonValue::Long { len, .. } => *len,
        })
        .sum()
}

/// The key of a property id under a file's name map.
pub(crate) fn canon_key(id: u16, names: &NameMap) -> CanonKey {
    if id < 0x8000 {
        return CanonKey::Id(id);
    }
    match names.name(id) {
        Some(name) => match &name.kind {
            NameKind::Number(n) => CanonKey::Number(name.guid.0, *n),
            NameKind::String(s) => CanonKey::Text(name.guid.0, s.clone()),
        },
        None => CanonKey::Unmapped(id),
    }
}

/// `holds`: for a message whether it has attachments, for an attachment whether it has an embedded
/// message; what follows from that is normalised or left out.
fn canon_props(
    bag: &PropBag,
    names: &NameMap,
    place: Place,
    holds: Option<bool>,
) -> Result<Vec<CanonProp>> {
    let mut out = Vec::with_capacity(bag.len());
    for (key, value) in by_key(bag, names) {
        let id = value.tag.id();
        if is_derived_prop(place, id) {
            continue;
        }
        if place == Place::Attachment && id == tags::ATTACH_DATA && holds == Some(true) {
            continue; // the embedded message stands in the record itself
        }
        let mut canon = CanonProp {
            key,
            prop_type: value.tag.prop_type().0,
            value: canon_value(value)?,
        };
        if place == Place::Message && id == tags::MESSAGE_FLAGS && canon.prop_type == tags::PT_I32 {
            normalise_flags(&mut canon.value, holds == Some(true));
        }
        out.push(canon);
    }
    Ok(out)
}

/// The cells of a message's row that are content, in canonical form: a cell that says nothing is left
/// out.
pub(crate) fn canon_cells(cells: &PropBag) -> Result<Vec<CanonProp>> {
    let mut out = Vec::new();
    for value in cells.iter().filter(|v| is_content_cell(v.tag.0)) {
        let canon = canon_value(value)?;
        if !matches!(&canon, CanonValue::Short(b) if b.iter().all(|b| *b == 0)) {
            out.push(CanonProp {
                key: CanonKey::Id(value.tag.id()),
                prop_type: value.tag.prop_type().0,
                value: canon,
            });
        }
    }
    Ok(out)
}

/// `mfHasAttach` follows from the attachment table; writers are careless with it.
fn normalise_flags(value: &mut CanonValue, has_attachments: bool) {
    if let CanonValue::Short(bytes) = value
        && let Ok(raw) = <[u8; 4]>::try_from(bytes.as_slice())
    {
        *bytes = with_attach_flag(i32::from_le_bytes(raw), has_attachments)
            .to_le_bytes()
            .to_vec();
    }
}

/// PidTagMessageFlags with `mfHasAttach` as it must be.
pub(crate) const fn with_attach_flag(flags: i32, has_attachments: bool) -> i32 {
    if has_attachments {
        flags | tags::FLAG_HAS_ATTACH
    } else {
        flags & !tags::FLAG_HAS_ATTACH
    }
}

/// A value in canonical form, hashed chunk by chunk when it is long. Packed multi-valued values are
/// packed anew: writers may leave gaps in them.
pub(crate) fn canon_value(value: &PropValue) -> Result<CanonValue> {
    let repacked = match value.elements() {
        Some(elements) => PropValue::multi(value.tag, &elements).ok(),
        None => None,
    };
    let value = repacked.as_ref().unwrap_or(value);
    if let ValueData::Bytes(bytes) = &value.data {
        let len = bytes.len() as u64;
        return Ok(if len <= SHORT_VALUE {
            CanonValue::Short(bytes.clone())
        } else {
            let hash = *blake3::hash(bytes).as_bytes();
            CanonValue::Long { hash, len }
        });
    }
    // BLAKE3 is several times as fast on long pieces as on single data blocks, whose length is no
    // multiple of its own chunks.
    let mut piece = Vec::new();
    let mut len = 0u64;
    let mut hasher = blake3::Hasher::new();
    for_each_chunk(value, &mut |chunk| {
        len = len.saturating_add(chunk.len() as u64);
        piece.extend_from_slice(chunk);
        if piece.len() >= HASHED_PIECE {
            hasher.update(&piece);
            piece.clear();
        }
        Ok(())
    })?;
    Ok(if len <= SHORT_VALUE {
        CanonValue::Short(piece)
    } else {
        hasher.update(&piece);
        CanonValue::Long {
            hash: *hasher.finalize().as_bytes(),
            len,
        }
    })
}
