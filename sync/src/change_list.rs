//! The change list: the ordered work to do on one container.
//!
//! Every entry names one object and one thing that happens to it. An object that was edited and
//! moved has two entries. Fingerprints guard each entry: it is done only on the state that it was
//! made for, and is skipped where it is already done (so applying twice changes nothing).
//!
//! An update carries the whole object, or a [`Patch`]: then the carrier holds only what is new, and the
//! rest is taken from the object as it is on the target. What comes out must have the fingerprint that
//! the entry names, so a patch that does not fit changes nothing.
//!
//! docs/CHANGE-LIST.md has the bytes.
//!
//! The order is part of the format: message and raw deletes, folders (parents before children),
//! messages, raw nodes, folder deletes (children before parents).

use bincode::{Decode, Encode};
use pst::Nid;
use pst::inventory::Kind;

/// A content fingerprint: BLAKE3, independent of layout.
pub type Fingerprint = [u8; 32];

/// What happens to the object. NIDs are those of the target, except that an added object proposes
/// its source NID, which the applier replaces where it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Action {
    /// The object is new.
    Add {
        /// NID of its folder.
        parent: u32,
        /// Its NID in the carrier.
        carrier: u32,
        /// Fingerprint after the change.
        after: Fingerprint,
    },
    /// The object's content is replaced by the carrier's, or patched with it.
    Update {
        /// Its NID in the carrier.
        carrier: u32,
        /// Fingerprint before the change.
        before: Fingerprint,
        /// Fingerprint after the change.
        after: Fingerprint,
        /// How the carrier's object is laid over the target's; `None`: it replaces it.
        patch: Option<Patch>,
    },
    /// The object changes its folder.
    Move {
        /// NID of the folder before.
        from: u32,
        /// NID of the folder after.
        to: u32,
    },
    /// The object is gone.
    Delete {
        /// Fingerprint before the change.
        before: Fingerprint,
    },
}

/// An update that leaves most of an object as it is. Never for raw nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Patch {
    /// The object itself comes first, then the embedded messages that are patched, each after the
    /// level that refers to it. A list and no tree: nothing from outside recurses.
    pub levels: Vec<Level>,
}

/// What becomes of a folder, a message or an embedded message. Properties of the carrier's object are
/// set; everything that is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Level {
    /// Properties that go, by [`pst::canonical::CanonKey::number`].
    pub removed: Vec<u64>,
    /// The carrier's recipients replace those of the target.
    pub recipients: bool,
    /// The attachments in their new order; `None`: they stay.
    pub attachments: Option<Vec<Piece>>,
}

/// Where an attachment comes from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Piece {
    /// The target's attachment at this index, before the change; each at most once.
    Kept(u32),
    /// The carrier's attachment at this index.
    Carried(u32),
    /// The target's attachment, with what the carrier's says laid over it, but for
    /// PidTagAttachMethod: that says what the carrier holds.
    Patched {
        /// Index at the target, before the change; each at most once.
        before: u32,
        /// Index at the carrier.
        carried: u32,
        /// Properties that go, by [`pst::canonical::CanonKey::number`].
        removed: Vec<u64>,
        /// The level of its embedded message; `None`: that stays.
        level: Option<u32>,
    },
}

/// What kind of object a change is about, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum ObjectKind {
    /// A folder.
    Folder,
    /// A message with its recipients and attachments.
    Message,
    /// An associated (FAI) message.
    Associated,
    /// A raw node.
    Raw,
}

impl ObjectKind {
    /// The word for users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Message => "message",
            Self::Associated => "associated message",
            Self::Raw => "raw node",
        }
    }
}

impl From<Kind> for ObjectKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Folder => Self::Folder,
            Kind::Message => Self::Message,
            Kind::Associated => Self::Associated,
            Kind::Raw => Self::Raw,
        }
    }
}

impl From<ObjectKind> for Kind {
    fn from(kind: ObjectKind) -> Self {
        match kind {
            ObjectKind::Folder => Self::Folder,
            ObjectKind::Message => Self::Message,
            ObjectKind::Associated => Self::Associated,
            ObjectKind::Raw => Self::Raw,
        }
    }
}

/// One entry of the change list.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// The kind of object.
    pub kind: ObjectKind,
    /// Its NID on the target (proposed, for an added object).
    pub nid: u32,
    /// What happens to it.
    pub action: Action,
}

impl Change {
    /// The NID, typed.
    #[must_use]
    pub const fn nid(&self) -> Nid {
        Nid(self.nid)
    }
}

/// How many objects a change list adds, updates, moves and deletes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Objects added.
    pub added: usize,
    /// Objects whose content changed.
    pub updated: usize,
    /// Objects that changed their folder.
    pub moved: usize,
    /// Objects deleted.
    pub deleted: usize,
}

impl Counts {
    /// Counts the entries of a change list.
    #[must_use]
    pub fn of(changes: &[Change]) -> Self {
        changes.iter().fold(Self::default(), |mut c, change| {
            match change.action {
                Action::Add { .. } => c.added += 1,
                Action::Update { .. } => c.updated += 1,
                Action::Move { .. } => c.moved += 1,
                Action::Delete { .. } => c.deleted += 1,
            }
            c
        })
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            added: self.added.saturating_add(other.added),
            updated: self.updated.saturating_add(other.updated),
            moved: self.moved.saturating_add(other.moved),
            deleted: self.deleted.saturating_add(other.deleted),
        }
    }
}
