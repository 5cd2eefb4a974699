//! The registry of findings: one row says all about a code, and nothing can be reported without a row.
//!
//! docs/CHECK.md shows this table; a test holds the two together, and another plants a defect for
//! each code and fails for a code without one.

use std::fmt;

use super::{Level, Severity};

macro_rules! codes {
    ($($variant:ident $name:literal $severity:ident $level:ident $section:literal
       $meaning:literal $advice:ident;)*) => {
        /// A kind of finding.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        #[allow(missing_docs)] // Each row's meaning is its documentation.
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order in which the check looks.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, for programs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How much a finding of this kind matters.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// The depth of check at which it is found.
            #[must_use]
            pub const fn level(self) -> Level {
                match self { $(Self::$variant => Level::$level,)* }
            }

            /// The section of [MS-PST] that says how it should be.
            #[must_use]
            pub const fn section(self) -> &'static str {
                match self { $(Self::$variant => $section,)* }
            }

            /// What is wrong, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// What to do about it.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

impl Code {
    /// The code with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.name() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

const BACKUP: &str = "Restore the file from a backup, or repair a copy with Outlook's scanpst.";
const SCANPST: &str = "Copy the file, then let Outlook's scanpst rebuild the copy.";
const REPAIR_MAPS: &str = "Run `pst check --repair-maps` while no other program has the file open.";
const NEXT_EDIT: &str =
    "Nothing: the next edit of ours puts it right; `--repair-maps` does so now.";
const NOTHING: &str = "Nothing: programs cope with it.";
const REWRITE: &str =
    "Nothing at once: the object is readable, and is written right when it is next changed.";
const OUTLOOK: &str = "Open the file in Outlook once: it brings this up to date by itself.";

codes! {
    HeaderDamaged "header-damaged" Error Structure "2.2.2.6"
        "The header's checksum or a field of it is wrong: the file cannot be opened." BACKUP;
    FileCut "file-cut" Error Structure "2.2.2.5"
        "The file is shorter than its header says: its end is missing." BACKUP;
    TreeRoot "tree-root" Error Structure "2.2.2.5"
        "The root page of a B-tree is damaged: nothing in the file can be found." BACKUP;
    HeaderTorn "header-torn" Warning Structure "2.2.2.6"
        "One of the header's two checksums is wrong: a writer stopped in the middle of its work." NEXT_EDIT;
    MapsFlag "maps-flag" Warning Structure "2.2.2.5"
        "fAMapValid has a value that is not defined." NEXT_EDIT;
    MapsInvalid "maps-invalid" Warning Structure "2.6.1.3.7"
        "The allocation maps are marked invalid: a writer stopped in the middle of its work." NEXT_EDIT;
    NidCounter "nid-counter" Warning Structure "2.2.2.6"
        "rgnid is behind a node that exists: a writer that trusts it hands out a NID twice." REWRITE;
    NbtPage "nbt-page" Error Structure "2.2.2.7.7"
        "A page of the node B-tree is damaged: the nodes below it cannot be found." BACKUP;
    BbtPage "bbt-page" Error Structure "2.2.2.7.7"
        "A page of the block B-tree is damaged: the blocks below it cannot be found." BACKUP;
    BtreeSharedPage "btree-shared-page" Error Structure "2.2.2.7.7"
        "A B-tree page is reached twice." SCANPST;
    BtreeOrder "btree-order" Error Structure "2.2.2.7.7"
        "A key lies outside the range that the page above gives its page: a search does not find it." SCANPST;
    BtreeKey "btree-key" Warning Structure "2.2.2.7.7.2"
        "The key above a page is not the page's first key." NOTHING;
    BtreeFill "btree-fill" Warning Structure "2.2.2.7.7.1"
        "cEntMax of a B-tree page is not the number of entries that fit, or is less than cEnt." NOTHING;
    BtreeEmptyPage "btree-empty-page" Warning Structure "2.2.2.7.7"
        "A page below the root of a B-tree holds no entry." NOTHING;
    PageBid "page-bid" Warning Structure "2.2.2.6"
        "A page's BID is not below bidNextP: the next page could get the same." NOTHING;
    NodeType "node-type" Info Structure "2.2.2.1"
        "Nodes of a type that is not documented." NOTHING;
    BlockBid "block-bid" Error Structure "2.2.2.6"
        "A block's BID is not below bidNextB: the next block could get the same." NEXT_EDIT;
    BlockAlignment "block-alignment" Error Structure "2.2.2.8"
        "A block does not begin at a multiple of 64 bytes (512 in an OST with 4 KiB pages)." SCANPST;
    BlockDamaged "block-damaged" Error Structure "2.2.2.8.1"
        "A block's checksum, signature or trailer is wrong, or it cannot be read." BACKUP;
    BlockMissing "block-missing" Error Structure "2.2.2.7.7.3"
        "A node names a block that the block B-tree does not know." BACKUP;
    BlockKind "block-kind" Error Structure "2.2.2.8.3"
        "A data block where a block of subnodes must be." BACKUP;
    BlockOrphan "block-orphan" Info Structure "2.2.2.7.7.3"
        "A block to which nothing refers: its space is lost." SCANPST;
    CrefLow "cref-low" Error Structure "2.2.2.7.7.3.1"
        "A block has more references than its count says: deleting one of its users would free it." SCANPST;
    CrefHigh "cref-high" Info Structure "2.2.2.7.7.3.1"
        "A block has fewer references than its count says: its space is never given back." SCANPST;
    DataTree "data-tree" Error Structure "2.2.2.8.3.2"
        "An XBLOCK or XXBLOCK is malformed." BACKUP;
    DataTotal "data-total" Error Structure "2.2.2.8.3.2.1"
        "lcbTotal of an XBLOCK or XXBLOCK is not the number of bytes below it." BACKUP;
    DataBlockSize "data-block-size" Warning Structure "2.2.2.8.3.2.1"
        "A data block before the last of an XBLOCK is not full: readers that seek miss their place." NOTHING;
    SubnodeTree "subnode-tree" Error Structure "2.2.2.8.3.3"
        "An SLBLOCK or SIBLOCK is malformed." BACKUP;
    SubnodeOrder "subnode-order" Warning Structure "2.2.2.8.3.3"
        "The NIDs in an SLBLOCK or SIBLOCK do not rise: a search may miss one." SCANPST;
    FileEof "file-eof" Warning Structure "2.6.1.1.2"
        "ibFileEof is not at the end of an AMap's span." NEXT_EDIT;
    FileLonger "file-longer" Info Structure "2.2.2.5"
        "The file goes on behind ibFileEof." NOTHING;
    AMapLast "amap-last" Warning Structure "2.2.2.5"
        "ibAMapLast is not the place of the last AMap." REPAIR_MAPS;
    Outside "outside" Error Structure "2.2.2.7.2"
        "A page or block lies in the header's area, or passes the end of its AMap's span." SCANPST;
    Overlap "overlap" Error Structure "2.2.2.7.2"
        "Two structures lie in the same place: one of them is lost." BACKUP;
    AMapPage "amap-page" Error Structure "2.2.2.7.2"
        "An AMap page is damaged: what is free in its span is unknown." REPAIR_MAPS;
    MapPage "map-page" Warning Structure "2.2.2.7.3"
        "A PMap, FMap or FPMap page is damaged; they are not used any more, but must be there." REPAIR_MAPS;
    UsedButFree "used-but-free" Error Structure "2.2.2.7.2"
        "Space that is in use is marked free: the next writer overwrites it." REPAIR_MAPS;
    Leaked "leaked" Info Structure "2.2.2.7.2"
        "Space is marked used but holds nothing." REPAIR_MAPS;
    AMapFree "amap-free" Warning Structure "2.2.2.5"
        "cbAMapFree is not the free space that the AMaps show." REPAIR_MAPS;
    DList "dlist" Info Structure "2.2.2.7.4"
        "The density list is not valid; other programs use its place for other things." NOTHING;
    DListStale "dlist-stale" Info Structure "2.2.2.7.4.2"
        "An entry of the density list is not what the AMap says; it is a hint only." NOTHING;

    Nodes "nodes" Error Content "2.2.2.7.7"
        "The node B-tree cannot be walked to its end: what follows was not checked." BACKUP;
    Unfolding "unfolding" Error Content "2.2.2.8.3"
        "References repeat so often that the file unfolds to far more than it holds: not all was checked." SCANPST;
    Subnodes "subnodes" Error Content "2.2.2.8.3.3"
        "A node's subnodes cannot be read." BACKUP;
    SubnodeDepth "subnode-depth" Error Content "2.2.2.8.3.3"
        "Subnodes nest deeper than any program goes." SCANPST;
    SubnodeUnused "subnode-unused" Info Content "2.3.3.2"
        "A subnode for a value to which no property or cell refers: its space is lost." NOTHING;
    Heap "heap" Error Content "2.3.1.2"
        "A node's data is not the heap that its type asks for." BACKUP;
    HeapBlock "heap-block" Error Content "2.3.1.5"
        "A block of a heap cannot be read or has no page map." BACKUP;
    HeapMap "heap-map" Error Content "2.3.1.5"
        "The page map of a heap block puts items outside the block or before one another." BACKUP;
    HeapFirstItem "heap-first-item" Warning Content "2.3.1.5"
        "The first item of a heap block does not follow the block's header." NOTHING;
    HeapFreeCount "heap-free-count" Info Content "2.3.1.5"
        "cFree of a heap block is not the number of its empty items; strict readers reject the object." REWRITE;
    HeapFill "heap-fill" Info Content "2.3.1.2"
        "A fill level of a heap block is not what its map says; it is a hint for the next writer." NOTHING;
    HeapReserved "heap-reserved" Info Content "2.3.1.2"
        "A heap of an undocumented kind where a property or table context is expected." NOTHING;
    BthOrder "bth-order" Error Content "2.3.2"
        "The keys of a BTH do not rise: a search may miss a property or row." SCANPST;
    Properties "properties" Error Content "2.3.3"
        "A property context cannot be read." BACKUP;
    PropertyValue "property-value" Error Content "2.3.3.3"
        "A property's value is not where the property says." BACKUP;
    PropertySize "property-size" Warning Content "2.3.3.3"
        "A property's value has a length that its type does not allow." REWRITE;
    PropertyMulti "property-multi" Warning Content "2.3.3.4.2"
        "The offsets of a multi-valued property do not rise inside its value." REWRITE;
    Table "table" Error Content "2.3.4"
        "A table context cannot be read." BACKUP;
    TableColumns "table-columns" Warning Content "2.3.4.1"
        "The columns of a table are not sorted by tag, or row id or row version is missing." NOTHING;
    TableRow "table-row" Error Content "2.3.4.4"
        "A row that the index names is not in the matrix." BACKUP;
    TableRowTwice "table-row-twice" Error Content "2.3.4.3"
        "Two row ids point to the same row." SCANPST;
    TableRowId "table-row-id" Error Content "2.3.4.4.1"
        "A row carries another id than the index gives it." SCANPST;
    TableCell "table-cell" Error Content "2.3.4.4.2"
        "A cell's value is not where the cell says." SCANPST;
    TableUnlistedRows "table-unlisted-rows" Info Content "2.3.4.4"
        "The matrix holds more rows than the index names." NOTHING;
    NameMap "name-map" Error Content "2.4.7"
        "The map of named properties cannot be read." BACKUP;
    NameBuckets "name-buckets" Info Content "2.4.7.5"
        "The number of hash buckets of the name map is not 251." NOTHING;
    NameBucket "name-bucket" Info Content "2.4.7.6"
        "A name is not in the hash bucket in which readers look for it." NOTHING;
    NameStray "name-stray" Info Content "2.4.7.6"
        "A hash bucket of the name map lists what the entry stream does not have." NOTHING;
    NameTwice "name-twice" Info Content "2.4.7.1"
        "One property id has two names, or one name two ids." NOTHING;
    NameUnknown "name-unknown" Info Content "2.4.7"
        "A property with an id of 0x8000 or above that has no name." NOTHING;

    RequiredNode "required-node" Error Messages "2.7.1"
        "A node without which a file is no mail store is missing." BACKUP;
    ExpectedNode "expected-node" Warning Messages "2.7.1"
        "A node that a mail store should have is missing." OUTLOOK;
    TemplateRows "template-rows" Warning Messages "2.7.3.3"
        "A template table has rows: new tables made from it would have them too." NOTHING;
    StoreProperty "store-property" Warning Messages "2.4.3.1"
        "The message store lacks a property that it must have." OUTLOOK;
    StoreEntry "store-entry" Warning Messages "2.4.3.2"
        "An EntryID in the message store leads to no folder of this file." OUTLOOK;
    FolderProperty "folder-property" Info Messages "2.4.4.1.1"
        "A folder lacks a property that it must have." OUTLOOK;
    FolderTable "folder-table" Warning Messages "2.4.4"
        "One of a folder's tables is missing." OUTLOOK;
    FolderUnreachable "folder-unreachable" Error Messages "2.4.4.1.2"
        "A folder's parents do not lead to the root: no program shows it." SCANPST;
    MessageUnreachable "message-unreachable" Error Messages "2.4.5.2"
        "A message's parent is no folder: no program shows it." SCANPST;
    HierarchyRowMissing "hierarchy-row-missing" Error Messages "2.4.4.4"
        "A folder has no row in its parent's hierarchy table: Outlook does not show it." SCANPST;
    HierarchyRowStray "hierarchy-row-stray" Warning Messages "2.4.4.4"
        "A row of a hierarchy table stands for no folder below this one." SCANPST;
    HierarchyCopy "hierarchy-copy" Warning Messages "2.4.4.4.1"
        "A row of a hierarchy table says other than the folder itself." OUTLOOK;
    ContentsRowMissing "contents-row-missing" Error Messages "2.4.4.5"
        "A message has no row in its folder's contents table: Outlook does not show it." SCANPST;
    ContentsRowStray "contents-row-stray" Warning Messages "2.4.4.5"
        "A row of a contents table stands for no message of the folder." SCANPST;
    ContentsCopy "contents-copy" Warning Messages "2.4.4.5.1"
        "A row of a contents table says other than the message itself." OUTLOOK;
    FolderCount "folder-count" Warning Messages "2.4.4.1.1"
        "A folder's count of messages is not the number of rows in its contents table." OUTLOOK;
    FolderUnread "folder-unread" Warning Messages "2.4.4.1.1"
        "A folder's count of unread messages is not the number of unread rows in its contents table." OUTLOOK;
    FolderSubfolders "folder-subfolders" Warning Messages "2.4.4.1.1"
        "A folder says that it has sub-folders where there are none, or none where there are." OUTLOOK;
    MessageProperty "message-property" Info Messages "2.4.5.1.1"
        "A message lacks a property that it must have." REWRITE;
    MessageRecipients "message-recipients" Warning Messages "2.4.5.3"
        "A message has no recipient table." REWRITE;
    AttachmentRowMissing "attachment-row-missing" Error Messages "2.4.6.1"
        "An attachment has no row in its message's attachment table: no program shows it." SCANPST;
    AttachmentRowStray "attachment-row-stray" Warning Messages "2.4.6.1"
        "A row of an attachment table stands for no attachment." REWRITE;
    AttachmentFlag "attachment-flag" Warning Messages "2.4.5.1.1"
        "A message's flags say that it has attachments where there are none, or none where there are." REWRITE;
    AttachmentProperty "attachment-property" Info Messages "2.4.6.2.1"
        "An attachment lacks a property that it must have." REWRITE;
    EmbeddedMissing "embedded-missing" Error Messages "2.4.6.2.2"
        "An attachment that is a message has no message in it." BACKUP;
    SearchFolderParts "search-folder-parts" Info Messages "2.4.8.6"
        "A search folder lacks its criteria, its update queue or its contents table." OUTLOOK;
    QueueLength "queue-length" Warning Messages "2.4.8.3"
        "A queue of search updates is no whole number of items: it must not be processed." OUTLOOK;
    QueueHead "queue-head" Warning Messages "2.4.8.3"
        "The head of a queue of search updates is not at an item of it." OUTLOOK;
    QueueItem "queue-item" Info Messages "2.4.8.1.1"
        "An item of a queue of search updates is of an unknown type." NOTHING;
    SearchList "search-list" Info Messages "2.4.8.4.2"
        "The search activity list or search domain is no list of nodes of this file." OUTLOOK;
}
