//! The inventory: a row per object, with a fingerprint that does not depend on layout.
//!
//! Inside one lineage (one physical life of a file, no gap in what we know of its writes) equal
//! BIDs mean equal bytes, because blocks are never rewritten: [`Inventory::update`] then reads only
//! what changed. Outside it, [`Inventory::read`] reads everything.

use std::collections::BTreeMap;

use crate::canonical::Record;
use crate::delta::{Trust, since};
use crate::derived::ObjectKind;
pub use crate::derived::ObjectKind as Kind;
use crate::ltp::PropertyContext;
use crate::messaging::{Pst, read_message};
use crate::ndb::NbtEntry;
use crate::{Bid, Nid, Result};

/// One object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The object's node.
    pub nid: Nid,
    /// The folder that holds it; for a raw node whatever the node says.
    pub parent: Nid,
    /// What it is.
    pub kind: ObjectKind,
    /// Its data tree; comparable inside one lineage only.
    pub bid_data: Bid,
    /// Its subnode tree; comparable inside one lineage only.
    pub bid_sub: Bid,
    /// [`Record::fingerprint`]: what the object says, wherever it lies. Folders: without counts.
    pub fingerprint: [u8; 32],
    /// Bytes of all its values, attachments included.
    pub size: u64,
    /// PidTagSearchKey, hashed to 16 bytes where it has another length.
    pub search_key: Option<[u8; 16]>,
    /// [`Record::cells_hash`]: what its row in the folder's contents table adds to it; 0 for nothing.
    pub cells: u64,
}

impl Row {
    /// Reads the row of a node.
    pub(crate) fn read(pst: &Pst, kind: ObjectKind, entry: &NbtEntry) -> Result<Self> {
        let (ndb, names) = (pst.ndb(), pst.names());
        let (data, sub) = (entry.bid_data, entry.bid_sub);
        let record = match kind {
            ObjectKind::Folder => {
                Record::folder(&PropertyContext::open(ndb, data, sub)?.bag()?, names)?
            }
            ObjectKind::Message | ObjectKind::Associated => {
                let associated = kind == ObjectKind::Associated;
                let mut record =
                    Record::message(&read_message(ndb, data, sub)?, associated, names)?;
                record.lay_cells(&pst.cells_in(entry.nid, entry.nid_parent)?)?;
                record
            }
            ObjectKind::Raw => Record::raw(ndb, names, entry)?,
        };
        Ok(Self {
            nid: entry.nid,
            parent: entry.nid_parent,
            kind,
            bid_data: data,
            bid_sub: sub,
            fingerprint: record.fingerprint(),
            size: record.size(),
            search_key: record.search_key(),
            cells: record.cells_hash(),
        })
    }

    /// The row that an object must have after a change, as far as that can be known beforehand: where
    /// it lies in the file and how large it is are not.
    #[must_use]
    pub const fn expected(nid: Nid, parent: Nid, kind: ObjectKind, fingerprint: [u8; 32]) -> Self {
        Self {
            nid,
            parent,
            kind,
            bid_data: Bid::NONE,
            bid_sub: Bid::NONE,
            fingerprint,
            size: 0,
            search_key: None,
            cells: 0,
        }
    }
}

/// All objects of a file, in NID order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// The rows by NID.
    pub rows: BTreeMap<Nid, Row>,
}

impl Inventory {
    /// Reads every object of the file.
    ///
    /// # Errors
    /// The first object that cannot be read: a part of an inventory would look like deletes.
    pub fn read(pst: &Pst) -> Result<Self> {
        Self::update(pst, &Self::default())
    }

    /// Reads the objects that changed since `previous` and keeps the other rows' fingerprints.
    /// The caller guarantees that `previous` is of the same lineage, or is empty.
    ///
    /// # Errors
    /// As [`Inventory::read`].
    pub fn update(pst: &Pst, previous: &Self) -> Result<Self> {
        let delta = since(previous, pst, Trust::Lineage { bid_next: Bid(0) })?;
        if previous.rows.is_empty() {
            return Ok(Self { rows: delta.after });
        }
        let mut now = previous.clone();
        delta.apply(&mut now);
        Ok(now)
    }

    /// BLAKE3 over (NID, parent, kind, fingerprint) in NID order: two sides with the same digest hold
    /// the same objects in the same places under the same NIDs.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd inventory\0\x01");
        h.update(&(self.rows.len() as u64).to_le_bytes());
        for row in self.rows.values() {
            h.update(&row.nid.0.to_le_bytes());
            h.update(&row.parent.0.to_le_bytes());
            h.update(&[row.kind as u8]);
            h.update(&row.fingerprint);
        }
        *h.finalize().as_bytes()
    }
}

impl Pst {
    /// The canonical record of an object.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    pub fn record(&self, kind: ObjectKind, nid: Nid) -> Result<Record> {
        match kind {
            ObjectKind::Folder => Record::folder(&self.folder(nid)?.props, self.names()),
            ObjectKind::Message | ObjectKind::Associated => {
                let associated = kind == ObjectKind::Associated;
                let mut record = Record::message(&self.message(nid)?, associated, self.names())?;
                record.lay_cells(&self.cells(nid)?)?;
                Ok(record)
            }
            ObjectKind::Raw => match self.ndb().node(nid)? {
                Some(entry) => Record::raw(self.ndb(), self.names(), &entry),
                None => Err(crate::messaging::not_found("node", nid)),
            },
        }
    }

    /// The layout-independent fingerprint of an object ([`Record::fingerprint`]).
    ///
    /// # Errors
    /// As [`Pst::record`].
    pub fn fingerprint(&self, kind: ObjectKind, nid: Nid) -> Result<[u8; 32]> {
        Ok(self.record(kind, nid)?.fingerprint())
    }
}

/// [`Pst::fingerprint`] of the object `nid`.
///
/// # Errors
/// As [`Pst::record`].
pub fn fingerprint_node(pst: &Pst, nid: Nid, kind: ObjectKind) -> Result<[u8; 32]> {
    pst.fingerprint(kind, nid)
}
