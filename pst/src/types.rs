//! The identifiers of the node database layer: NIDs, BIDs and BREFs.

use std::fmt;

/// A node ID ([MS-PST] 2.2.2.1): 5 bits of type, 27 bits of index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nid(pub u32);

/// The low five bits of a [`Nid`] ([MS-PST] 2.2.2.1). Unknown types are kept as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NidType(pub u8);

impl NidType {
    /// Heap node inside a node (`NID_TYPE_HID`).
    pub const HID: Self = Self(0x00);
    /// Internal node.
    pub const INTERNAL: Self = Self(0x01);
    /// Normal folder object: a property context.
    pub const NORMAL_FOLDER: Self = Self(0x02);
    /// Search folder object: a property context.
    pub const SEARCH_FOLDER: Self = Self(0x03);
    /// Normal message object: a property context.
    pub const NORMAL_MESSAGE: Self = Self(0x04);
    /// Attachment object: a property context, in a message's subnodes.
    pub const ATTACHMENT: Self = Self(0x05);
    /// Queue of changed objects for search folders.
    pub const SEARCH_UPDATE_QUEUE: Self = Self(0x06);
    /// Criteria of a search folder.
    pub const SEARCH_CRITERIA_OBJECT: Self = Self(0x07);
    /// Associated (FAI) message object: a property context.
    pub const ASSOC_MESSAGE: Self = Self(0x08);
    /// Contents table index (internal).
    pub const CONTENTS_TABLE_INDEX: Self = Self(0x0A);
    /// Receive-folder table.
    pub const RECEIVE_FOLDER_TABLE: Self = Self(0x0B);
    /// Outgoing queue table.
    pub const OUTGOING_QUEUE_TABLE: Self = Self(0x0C);
    /// Hierarchy table of a folder: a table context.
    pub const HIERARCHY_TABLE: Self = Self(0x0D);
    /// Contents table of a folder: a table context.
    pub const CONTENTS_TABLE: Self = Self(0x0E);
    /// Associated contents (FAI) table of a folder: a table context.
    pub const ASSOC_CONTENTS_TABLE: Self = Self(0x0F);
    /// Contents table of a search folder: a table context.
    pub const SEARCH_CONTENTS_TABLE: Self = Self(0x10);
    /// Attachment table of a message: a table context.
    pub const ATTACHMENT_TABLE: Self = Self(0x11);
    /// Recipient table of a message: a table context.
    pub const RECIPIENT_TABLE: Self = Self(0x12);
    /// Internal, persisted view-related.
    pub const SEARCH_TABLE_INDEX: Self = Self(0x13);
    /// A subnode of the LTP layer (value or row matrix).
    pub const LTP: Self = Self(0x1F);
}

impl Nid {
    /// Message store node (NID_MESSAGE_STORE).
    pub const MESSAGE_STORE: Self = Self(0x21);
    /// Named-property map (NID_NAME_TO_ID_MAP).
    pub const NAME_TO_ID_MAP: Self = Self(0x61);
    /// Special template node for an empty folder (NID_NORMAL_FOLDER_TEMPLATE).
    pub const NORMAL_FOLDER_TEMPLATE: Self = Self(0xA1);
    /// Special template node for an empty search folder (NID_SEARCH_FOLDER_TEMPLATE).
    pub const SEARCH_FOLDER_TEMPLATE: Self = Self(0xC1);
    /// Root folder of the store (NID_ROOT_FOLDER).
    pub const ROOT_FOLDER: Self = Self(0x122);
    /// Queue of pending search-related updates (NID_SEARCH_MANAGEMENT_QUEUE).
    pub const SEARCH_MANAGEMENT_QUEUE: Self = Self(0x1E1);
    /// Folder search activity list (NID_SEARCH_ACTIVITY_LIST).
    pub const SEARCH_ACTIVITY_LIST: Self = Self(0x201);
    /// Search domain objects (NID_SEARCH_DOMAIN_OBJECT).
    pub const SEARCH_DOMAIN_OBJECT: Self = Self(0x261);
    /// Search gatherer queue (NID_SEARCH_GATHERER_QUEUE).
    pub const SEARCH_GATHERER_QUEUE: Self = Self(0x281);
    /// Attachment table template, and the NID of the table in a message's subnodes.
    pub const ATTACHMENT_TABLE: Self = Self(0x671);
    /// Recipient table template, and the NID of the table in a message's subnodes.
    pub const RECIPIENT_TABLE: Self = Self(0x692);

    /// Builds a NID from its type and its 27-bit index.
    #[must_use]
    pub const fn new(kind: NidType, index: u32) -> Self {
        Self((index << 5) | (kind.0 as u32 & 0x1F))
    }

    /// The type: the low five bits.
    #[must_use]
    pub const fn kind(self) -> NidType {
        NidType((self.0 & 0x1F) as u8)
    }

    /// The index: the high 27 bits.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 >> 5
    }

    /// The NID with the same index and another type: a folder's tables share its index.
    #[must_use]
    pub const fn with_kind(self, kind: NidType) -> Self {
        Self::new(kind, self.index())
    }
}

impl fmt::Debug for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:X}", self.0)
    }
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:X}", self.0)
    }
}

/// A block ID ([MS-PST] 2.2.2.2): bit 0 is reserved and ignored in look-ups, bit 1 marks an
/// internal block (XBLOCK, XXBLOCK, SLBLOCK, SIBLOCK). Pages have BIDs of their own counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bid(pub u64);

impl Bid {
    /// No block.
    pub const NONE: Self = Self(0);

    /// The BID as it is compared: without the reserved bit 0.
    #[must_use]
    pub const fn key(self) -> u64 {
        self.0 & !1
    }

    /// Whether this is the null BID.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.key() == 0
    }

    /// Whether the block holds no application data but other BIDs.
    #[must_use]
    pub const fn is_internal(self) -> bool {
        self.0 & 2 != 0
    }
}

impl fmt::Debug for Bid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:X}", self.0)
    }
}

impl fmt::Display for Bid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:X}", self.0)
    }
}

/// A BREF ([MS-PST] 2.2.2.4): which block or page, and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Bref {
    /// The block's or page's BID.
    pub bid: Bid,
    /// Its absolute file offset in bytes.
    pub ib: u64,
}
