//! What is *not* content: the one list of derived and per-file nodes and properties.
//!
//! Dump, fingerprint, inventory and sync all ask this module, so that they never disagree about
//! what an object is. Two files with the same mail differ in everything listed here and in
//! nothing else that the engine writes.
//!
//! # Derived nodes (neither listed nor sent)
//!
//! | node | why |
//! |---|---|
//! | 0x61 name-to-id map | ids at and above 0x8000 are per file ([MS-PST] 2.4.7); objects are listed with their property names instead |
//! | 0x1E1 search management queue | pending work of this file's search engine, emptied by it (2.4.8.4.1) |
//! | 0x201 search activity list | the NIDs of this file's search folders that are live (2.4.8.4.2); writers other than the search engine SHOULD NOT touch it |
//! | 0x261 search domain object | the folders that any search criterion names (2.4.8.4.3): follows from the criteria (type 0x07, which are content) and this file's folder NIDs |
//! | 0x281, 0x2A1, 0x321 gatherer | this machine's content indexer: queue, context, folder list (2.4.8.5); others MUST NOT modify them |
//! | type 0x06 search update queue | pending work for one search folder (2.4.8.6.3) |
//! | type 0x0A, 0x13 table indexes | internal indexes over tables |
//! | type 0x0D, 0x0E, 0x0F hierarchy, contents and associated contents tables | copies of the child objects' properties (2.4.4.3) |
//! | type 0x10 search contents table | result of a search: NIDs of messages of this file (2.4.8.6.2) |
//! | type 0x11, 0x12 at top level | templates: an empty attachment and recipient table (2.4.5.3.1, 2.4.6.1.1) |
//!
//! # Derived properties
//!
//! See [`is_derived_prop`]: row bookkeeping of tables, and the properties that [MS-PST] 2.5 computes
//! from the NID and the store's record key. A writer may store them; they say nothing about the mail.
//! [`is_folder_count`] lists the counts of a folder (search folders included): shown in a dump (they must be right) but kept
//! out of a folder's fingerprint, since adding a message must not change the folder object.

use crate::{Nid, NidType};

/// What an object is, for everything that lists objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ObjectKind {
    /// A normal folder that is reachable from the root folder.
    Folder = 1,
    /// A normal message in such a folder.
    Message = 2,
    /// An associated (FAI) message in such a folder.
    Associated = 3,
    /// Any other node that is not derived: carried as it is.
    Raw = 4,
}

impl ObjectKind {
    /// The name used in dumps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Message => "message",
            Self::Associated => "associated",
            Self::Raw => "raw",
        }
    }

    /// The kind with the given number, as stored in records.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Folder),
            2 => Some(Self::Message),
            3 => Some(Self::Associated),
            4 => Some(Self::Raw),
            _ => None,
        }
    }
}

/// Whether a top-level node is derived: see the table at the head of this module.
#[must_use]
pub const fn is_derived_node(nid: Nid) -> bool {
    matches!(nid.0, 0x61 | 0x1E1 | 0x201 | 0x261 | 0x281 | 0x2A1 | 0x321)
        || matches!(
            nid.kind(),
            NidType::SEARCH_UPDATE_QUEUE
                | NidType::CONTENTS_TABLE_INDEX
                | NidType::HIERARCHY_TABLE
                | NidType::CONTENTS_TABLE
                | NidType::ASSOC_CONTENTS_TABLE
                | NidType::SEARCH_CONTENTS_TABLE
                | NidType::ATTACHMENT_TABLE
                | NidType::RECIPIENT_TABLE
                | NidType::SEARCH_TABLE_INDEX
        )
}

/// Where a property stands; the same id may be derived in one place and content in another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a folder's property context.
    Folder,
    /// In a message's property context, embedded or not.
    Message,
    /// In an attachment's property context.
    Attachment,
    /// In a row of the recipient table. Its EntryId, RecordKey and SearchKey name the recipient
    /// and are content.
    Recipient,
}

/// Whether a property is derived or per file, and so neither dumped, hashed nor sent.
#[must_use]
pub const fn is_derived_prop(place: Place, id: u16) -> bool {
    match id {
        // PidTagLtpParentNid, PidTagLtpRowId, PidTagLtpRowVer: bookkeeping of table rows (2.3.4.4).
        0x67F1..=0x67F3 => true,
        // PidTagStoreRecordKey, PidTagStoreEntryId, PidTagMappingSignature, PidTagStoreProvider:
        // the store's record key in other words (2.5.2).
        0x0FF8 | 0x0FFA | 0x0FFB | 0x3414 => true,
        // PidTagRecordKey, PidTagEntryId, PidTagParentEntryId: the NID in other words (2.4.3.2).
        0x0FF9 | 0x0FFF | 0x0E09 => !matches!(place, Place::Recipient),
        // PidTagObjectType is what the object is (2.5.3.1); a recipient's is content.
        0x0FFE => !matches!(place, Place::Recipient),
        // PidTagHasAttachments follows from the attachment table (2.5.3.1).
        0x0E1B => matches!(place, Place::Message),
        // PidTagAttachNumber is the NID of the attachment's subnode (2.5.2.5).
        0x0E21 => matches!(place, Place::Attachment),
        _ => false,
    }
}

/// Whether a cell of a contents table is content although the message itself has no such property, by
/// its whole tag ([MS-PST] 2.5.3.1).
///
/// The rule: PidTagMessageStatus is the row's (SPGET_MSGSTATUS), and part of the message where it is not 0;
/// one that the message itself carries is what a new row begins with. Everything else that rows hold and messages do not is not mail: row bookkeeping;
/// PidTagRepl* and an OST's replication state (PidTagChangeKey, PidTagPredecessorChangeList, 0x6612,
/// 0x6623, 0x6628, PidTagLastModificationTime of a server's copy); PidTagConversationId, which follows
/// from index and topic ([MS-OXOMSG] 2.2.1.2); copies that lag behind (PidTagMessageSize).
#[must_use]
pub const fn is_content_cell(tag: u32) -> bool {
    tag == 0x0E17_0003
}

/// Whether a folder property is a count of what the folder holds: PidTagContentCount,
/// PidTagContentUnreadCount, PidTagSubfolders, PidTagAssociatedContentCount,
/// PidTagPstHiddenCount, PidTagPstHiddenUnread.
#[must_use]
pub const fn is_folder_count(id: u16) -> bool {
    matches!(id, 0x3602 | 0x3603 | 0x360A | 0x3617 | 0x6635 | 0x6636)
}

/// The name that [MS-PST] 2.4.1 gives a well-known NID, or the name of its type.
#[must_use]
pub const fn meaning(nid: Nid) -> &'static str {
    match nid.0 {
        0x21 => "message store",
        0x61 => "name-to-id map",
        0xA1 => "normal folder template",
        0xC1 => "search folder template",
        0x122 => "root folder",
        0x1E1 => "search management queue",
        0x201 => "search activity list",
        0x261 => "search domain object",
        0x281 => "search gatherer queue",
        0x2A1 => "search gatherer descriptor",
        0x321 => "search gatherer folder queue",
        _ => match nid.kind().0 {
            0x01 => "internal node",
            0x02 => "folder outside the hierarchy",
            0x03 => "search folder",
            0x04 => "message outside the hierarchy",
            0x05 => "attachment outside a message",
            0x06 => "search update queue",
            0x07 => "search criteria",
            0x08 => "associated message outside the hierarchy",
            0x0B => "receive-folder table",
            0x0C => "outgoing queue table",
            0x0D => "hierarchy table",
            0x0E => "contents table",
            0x0F => "associated contents table",
            0x10 => "search contents table",
            0x11 => "attachment table template",
            0x12 => "recipient table template",
            _ => "unknown node",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_tables_and_templates_are_derived_and_the_store_is_not() {
        for nid in [
            0x61, 0x1E1, 0x201, 0x261, 0x281, 0x12D, 0x802E, 0x802F, 0x2226, 0x2230, 0x671, 0x692,
        ] {
            assert!(is_derived_node(Nid(nid)), "{nid:#x}");
        }
        for nid in [0x21, 0x122, 0x2223, 0x2227, 0x62B, 0x200024, 0x8022, 0xE01] {
            assert!(!is_derived_node(Nid(nid)), "{nid:#x}");
        }
    }

    #[test]
    fn an_entry_id_is_content_for_a_recipient_only() {
        assert!(is_derived_prop(Place::Message, 0x0FFF));
        assert!(!is_derived_prop(Place::Recipient, 0x0FFF));
        assert!(is_derived_prop(Place::Recipient, 0x67F2));
        assert!(!is_derived_prop(Place::Message, 0x0037));
    }

    #[test]
    fn kinds_survive_their_number() {
        for k in [
            ObjectKind::Folder,
            ObjectKind::Message,
            ObjectKind::Associated,
            ObjectKind::Raw,
        ] {
            assert_eq!(ObjectKind::from_u8(k as u8), Some(k));
        }
        assert_eq!(ObjectKind::from_u8(0), None);
        assert_eq!(ObjectKind::from_u8(5), None);
    }
}
