//! Makes an empty PST ([MS-PST] 2.7): the mandatory nodes, as Outlook makes them.
//!
//! The bytes depend on the caller's seed alone, so that two machines can make the same file. The
//! seed becomes the store's record key, which marks the EntryIDs of the file as its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::{MemStorage, ReadAt};

use super::schema::{
    self, ASSOC_CONTENTS_TEMPLATE, CONTENTS_TEMPLATE, HIERARCHY_TEMPLATE, SEARCH_CONTENTS_TEMPLATE,
};
use super::tags;
use crate::ltp::{
    Guid, NameMapEdit, PropBag, PropName, PropTag, PropType, PropValue, TableEdit, build_pc,
};
use crate::ndb::format::{ANSI, UNICODE};
use crate::ndb::{CryptMethod, Format, Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use crate::{Nid, NidType, PstError, Result};

/// The top of the user's folders ("IPM subtree").
pub const IPM_SUBTREE: Nid = Nid(0x8022);
/// The parent of the user's search folders.
pub const SEARCH_ROOT: Nid = Nid(0x8042);
/// The wastebasket.
pub const DELETED_ITEMS: Nid = Nid(0x8062);
/// "SPAM Search Folder 2", which every Outlook expects.
const SPAM_SEARCH_FOLDER: Nid = Nid(0x2223);

/// The bytes of an empty Unicode PST: the root folder, "Top of Personal Folders" with "Deleted
/// Items", the search root and the spam search folder, templates, an empty name map. Equal seeds
/// give equal bytes; every file that people use should have a seed of its own.
///
/// # Errors
/// None that depends on the outside; the engine's own refusals are passed on.
pub fn create_empty(seed: &[u8; 16]) -> Result<Vec<u8>> {
    create_empty_as(seed, &UNICODE, CryptMethod::Permute)
}

/// As [`create_empty`], of any format that is written and with any encoding of the data. An ANSI store
/// has PtypString8 where a Unicode store has PtypString, in its templates and its own properties.
///
/// # Errors
/// [`PstError::Refused`] for a format that is only read.
pub fn create_empty_as(
    seed: &[u8; 16],
    format: &'static Format,
    crypt: CryptMethod,
) -> Result<Vec<u8>> {
    let image = Arc::new(MemStorage::from(Ndb::create_empty_as(format, crypt)?));
    let base = Arc::new(Ndb::open(Arc::clone(&image) as Arc<dyn ReadAt>)?);
    let mut tx = NdbTransaction::begin(Arc::clone(&base))?;
    for (nid, parent, content) in nodes(seed, &base)? {
        tx.put_node(nid, parent, &content)?;
    }
    let io = |source| PstError::Io { offset: 0, source };
    tx.finish()?.commit(&*image).map_err(io)?;
    let len = image.len().map_err(io)?;
    let len = usize::try_from(len).map_err(|_| PstError::Limit {
        what: "size of an empty PST",
        found: len,
        limit: usize::MAX as u64,
    })?;
    let mut bytes = vec![0; len];
    image.read_exact_at(0, &mut bytes).map_err(io)?;
    Ok(bytes)
}

fn nodes(seed: &[u8; 16], base: &Arc<Ndb>) -> Result<Vec<(Nid, Nid, NodeContent)>> {
    let key = derive(seed, "record key");
    let file = Some(base);
    let kind = text_type(base.format());
    let new_table = |tags: &[PropTag]| TableEdit::new(&schema::columns_as(tags, kind));
    let mut out = vec![
        (
            Nid::MESSAGE_STORE,
            Nid(0),
            build_pc(&store(&key, seed, kind), file)?,
        ),
        (Nid::NAME_TO_ID_MAP, Nid(0), name_map(base)?),
        (Nid::SEARCH_MANAGEMENT_QUEUE, Nid(0), NodeContent::default()),
        (
            Nid::SEARCH_ACTIVITY_LIST,
            Nid(0),
            bytes(SPAM_SEARCH_FOLDER.0.to_le_bytes().to_vec()),
        ),
        (Nid::SEARCH_DOMAIN_OBJECT, Nid(0), NodeContent::default()),
        (RECEIVE_FOLDERS, Nid(0), receive_folders(base)?),
        (
            OUTGOING_QUEUE,
            Nid(0),
            new_table(&OUTGOING_COLUMNS)?.build(file)?,
        ),
    ];
    for template in [
        HIERARCHY_TEMPLATE,
        CONTENTS_TEMPLATE,
        ASSOC_CONTENTS_TEMPLATE,
        SEARCH_CONTENTS_TEMPLATE,
        Nid::ATTACHMENT_TABLE,
        Nid::RECIPIENT_TABLE,
    ] {
        out.push((
            template,
            Nid(0),
            new_table(schema::columns(template))?.build(file)?,
        ));
    }
    let folders: [(Nid, Nid, &str, Option<&str>); 5] = [
        (Nid::ROOT_FOLDER, Nid::ROOT_FOLDER, "", None),
        (
            IPM_SUBTREE,
            Nid::ROOT_FOLDER,
            "Top of Personal Folders",
            None,
        ),
        (SEARCH_ROOT, Nid::ROOT_FOLDER, "Search Root", None),
        (
            DELETED_ITEMS,
            IPM_SUBTREE,
            "Deleted Items",
            Some("Deleted Items folder"),
        ),
        (
            SPAM_SEARCH_FOLDER,
            Nid::ROOT_FOLDER,
            "SPAM Search Folder 2",
            None,
        ),
    ];
    let mut bags = BTreeMap::new();
    for (nid, parent, name, comment) in folders {
        let mut props = PropBag::from_iter([
            text(kind, tags::DISPLAY_NAME, name),
            PropValue::i32(tags::CONTENT_COUNT, 0),
            PropValue::i32(tags::CONTENT_UNREAD, 0),
            PropValue::bool(
                tags::SUBFOLDERS,
                folders.iter().any(|f| f.1 == nid && f.0 != nid),
            ),
        ]);
        if let Some(comment) = comment {
            props.insert(text(kind, tags::COMMENT, comment));
        }
        out.push((nid, parent, build_pc(&props, file)?));
        bags.insert(nid, (parent, props));
    }
    for (nid, ..) in folders {
        if nid.kind() == NidType::SEARCH_FOLDER {
            let criteria = PropBag::from_iter([PropValue::i32(0x660B, 0)]);
            out.push((
                nid.with_kind(NidType::SEARCH_UPDATE_QUEUE),
                Nid(0),
                NodeContent::default(),
            ));
            out.push((
                nid.with_kind(NidType::SEARCH_CRITERIA_OBJECT),
                Nid(0),
                build_pc(&criteria, file)?,
            ));
            let table = new_table(schema::columns(SEARCH_CONTENTS_TEMPLATE))?.build(file)?;
            out.push((nid.with_kind(NidType::SEARCH_CONTENTS_TABLE), Nid(0), table));
            continue;
        }
        let mut hierarchy = new_table(schema::columns(HIERARCHY_TEMPLATE))?;
        for (child, (_, props)) in bags
            .iter()
            .filter(|(c, (parent, _))| *parent == nid && **c != nid)
        {
            hierarchy.put_row(child.0, props)?;
        }
        out.push((
            nid.with_kind(NidType::HIERARCHY_TABLE),
            Nid(0),
            hierarchy.build(file)?,
        ));
        for table in [NidType::CONTENTS_TABLE, NidType::ASSOC_CONTENTS_TABLE] {
            let content = new_table(schema::columns(schema::template_of(table)))?.build(file)?;
            out.push((nid.with_kind(table), Nid(0), content));
        }
    }
    out.sort_by_key(|(nid, ..)| *nid);
    Ok(out)
}

const RECEIVE_FOLDERS: Nid = Nid(0x62B);
const OUTGOING_QUEUE: Nid = Nid(0x64C);
const OUTGOING_COLUMNS: [PropTag; 5] = [
    PropTag(0x0039_0040),
    PropTag(0x0E10_0003),
    PropTag(0x0E14_0003),
    PropTag(0x67F2_0003),
    PropTag(0x67F3_0003),
];

/// The receive-folder table: every class of message goes to the root, as Outlook starts out.
fn receive_folders(base: &Arc<Ndb>) -> Result<NodeContent> {
    let kind = text_type(base.format());
    let columns = [
        PropTag(0x001A_001F),
        PropTag(0x6605_0003),
        PropTag(0x67F2_0003),
        PropTag(0x67F3_0003),
    ];
    let mut table = TableEdit::new(&schema::columns_as(&columns, kind))?;
    let row = [
        text(kind, tags::MESSAGE_CLASS, ""),
        PropValue::new(PropTag(0x6605_0003), Nid::ROOT_FOLDER.0.to_le_bytes()),
    ];
    table.put_row(1, &PropBag::from_iter(row))?;
    table.build(Some(base))
}

/// A name map with a first name of each kind, as Outlook's own new files have them: libpff refuses a
/// map whose streams are empty.
fn name_map(base: &Arc<Ndb>) -> Result<NodeContent> {
    let mut names = NameMapEdit::new();
    names.id(&PropName::number(PSETID_APPOINTMENT, 0x8205))?;
    names.id(&PropName::string(PS_INTERNET_HEADERS, "content-class"))?;
    names.build(Some(base))
}

/// PSETID_Appointment ([MS-OXPROPS] 1.3.2).
const PSETID_APPOINTMENT: Guid = Guid([
    0x02, 0x20, 0x06, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0x46,
]);
/// PS_INTERNET_HEADERS ([MS-OXPROPS] 1.3.2).
const PS_INTERNET_HEADERS: Guid = Guid([
    0x86, 0x03, 0x02, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0x46,
]);

/// The message store's properties ([MS-PST] 2.4.3.1).
fn store(key: &[u8; 16], seed: &[u8; 16], kind: PropType) -> PropBag {
    let entry_id = |nid: Nid| {
        let mut id = vec![0; 4];
        id.extend_from_slice(key);
        id.extend_from_slice(&nid.0.to_le_bytes());
        id
    };
    let mut history = vec![1, 0, 0, 0];
    history.extend_from_slice(&derive(seed, "replica"));
    history.extend_from_slice(&[1, 0, 0, 0]);
    PropBag::from_iter([
        PropValue::binary(0x0E34, history),
        PropValue::i32(0x0E38, 0),
        PropValue::binary(tags::RECORD_KEY, key.to_vec()),
        text(kind, tags::DISPLAY_NAME, "Personal Folders"),
        // PidTagValidFolderMask: subtree, wastebasket and finder are valid.
        PropValue::i32(0x35DF, 0x89),
        PropValue::binary(tags::IPM_SUBTREE, entry_id(IPM_SUBTREE)),
        PropValue::binary(0x35E3, entry_id(DELETED_ITEMS)),
        PropValue::binary(0x35E7, entry_id(SEARCH_ROOT)),
        PropValue::bool(0x6633, true),
        PropValue::i32(0x66FA, 0x000E_000D),
        // PidTagPstPassword: none.
        PropValue::i32(0x67FF, 0),
    ])
}

/// The type of text that programs expect in a store of this format.
fn text_type(format: &Format) -> PropType {
    if *format == ANSI {
        PropType::STRING8
    } else {
        PropType::UNICODE
    }
}

/// A property of plain ASCII, of the store's type of text.
fn text(kind: PropType, id: u16, value: &str) -> PropValue {
    if kind == PropType::STRING8 {
        PropValue::new(PropTag::new(id, kind), value)
    } else {
        PropValue::string(id, value)
    }
}

fn derive(seed: &[u8; 16], what: &str) -> [u8; 16] {
    let mut h = blake3::Hasher::new();
    h.update(b"pstsyncd empty PST\0");
    h.update(what.as_bytes());
    h.update(&[0]);
    h.update(seed);
    let mut out = [0; 16];
    h.finalize_xof().fill(&mut out);
    out
}

fn bytes(data: Vec<u8>) -> NodeContent {
    NodeContent {
        data: NodeData::Bytes(data),
        subnodes: Subnodes::None,
    }
}
