//! Property contexts, reading ([MS-PST] 2.3.3).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bag::PropBag;
use super::bth::read_bth;
use super::heap::{ClientSig, Heap, Hnid};
use super::node::{Blocks, Budget, NodeSource, SubnodeMap};
use super::prop::{ObjectValue, PropTag, PropType, PropValue, ValueData};
use crate::ndb::Ndb;
use crate::ndb::bytes::{u16_at, u32_at};
use crate::{Bid, Nid, PstError, Result};

/// An open property context: the property list is in memory, values are read when asked for.
pub struct PropertyContext {
    heap: Heap,
    subnodes: SubnodeMap,
    records: BTreeMap<u16, (PropType, u32)>,
}

impl std::fmt::Debug for PropertyContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PropertyContext")
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl PropertyContext {
    /// Opens the property context of a node or subnode.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if it is none, and what reading gives.
    pub fn open(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<Self> {
        Self::open_source(&NodeSource::stored(ndb, bid_data, bid_sub))
    }

    /// Opens the property context in any node, stored or just built.
    ///
    /// # Errors
    /// As [`PropertyContext::open`].
    pub fn open_source(source: &NodeSource) -> Result<Self> {
        let heap = Heap::open_as(source, ClientSig::PROPERTIES)?;
        let (header, entries) = read_bth(&heap, heap.user_root())?;
        if header.key_size != 2 || header.entry_size != 6 {
            return Err(PstError::corrupt(
                "BTHHEADER",
                0,
                format!(
                    "a property context with keys of {} and entries of {}",
                    header.key_size, header.entry_size
                ),
            ));
        }
        let mut records = BTreeMap::new();
        for e in entries {
            let id = u16::try_from(e.key).unwrap_or_default();
            let kind = PropType(u16_at(&e.data, 0, "wPropType")?);
            let value = u32_at(&e.data, 2, "dwValueHnid")?;
            // A damaged tree may repeat a key: the first is what a search would find.
            records.entry(id).or_insert((kind, value));
        }
        Ok(Self {
            heap,
            subnodes: source.subnodes(),
            records,
        })
    }

    /// The tags of all properties, in id order.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = PropTag> {
        self.records
            .iter()
            .map(|(id, (t, _))| PropTag::new(*id, *t))
    }

    /// The property with this id.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where its value cannot be found, and what reading gives.
    pub fn get(&self, id: u16) -> Result<Option<PropValue>> {
        let Some(&(kind, raw)) = self.records.get(&id) else {
            return Ok(None);
        };
        let tag = PropTag::new(id, kind);
        let data = match kind.fixed_size() {
            Some(n) if n <= 4 => {
                ValueData::Bytes(raw.to_le_bytes().get(..n).unwrap_or_default().to_vec())
            }
            _ => read_value(&self.heap, &self.subnodes, kind, raw)?,
        };
        Ok(Some(PropValue { tag, data }))
    }

    /// All properties.
    ///
    /// # Errors
    /// As [`PropertyContext::get`], for the first property that fails.
    pub fn bag(&self) -> Result<PropBag> {
        let mut bag = PropBag::new();
        let mut budget = Budget::new(self.heap.len(), &self.subnodes);
        for id in self.records.keys() {
            if let Some(v) = self.get(*id)? {
                budget.spend(&v.data)?;
                bag.insert(v);
            }
        }
        Ok(bag)
    }

    /// All properties that can be read, and what was wrong with the others: for files that are
    /// damaged in single values.
    #[must_use]
    pub fn bag_lenient(&self) -> (PropBag, Vec<(PropTag, PstError)>) {
        let mut bag = PropBag::new();
        let mut errors = Vec::new();
        let mut budget = Budget::new(self.heap.len(), &self.subnodes);
        for (id, (kind, _)) in &self.records {
            let value = self.get(*id).and_then(|v| {
                v.as_ref().map_or(Ok(()), |v| budget.spend(&v.data))?;
                Ok(v)
            });
            match value {
                Ok(v) => bag.extend(v),
                Err(e) => errors.push((PropTag::new(*id, *kind), e)),
            }
        }
        (bag, errors)
    }

    /// The subnode with this NID: an attachment, a recipient table, an object's content.
    ///
    /// # Errors
    /// What reading gives.
    pub fn subnode(&self, nid: Nid) -> Result<Option<NodeSource>> {
        self.subnodes.get(nid)
    }

    /// The heap below, for the check.
    #[must_use]
    pub const fn heap(&self) -> &Heap {
        &self.heap
    }
}

/// The value behind an HNID ([MS-PST] 2.3.3.2): shared by property contexts and table cells.
pub(crate) fn read_value(
    heap: &Heap,
    subnodes: &SubnodeMap,
    kind: PropType,
    raw: u32,
) -> Result<ValueData> {
    if kind == PropType::OBJECT {
        // A heap item of {nid, size}; 2.3.3.5.
        return match Hnid::from(raw) {
            Hnid::None => Ok(ValueData::Object(ObjectValue {
                nid: Nid(0),
                size: 0,
                content: None,
            })),
            Hnid::Heap(hid) => {
                let b = heap.item(hid)?;
                let nid = Nid(u32_at(&b, 0, "PtypObject.Nid")?);
                let size = u32_at(&b, 4, "PtypObject.ulSize")?;
                Ok(ValueData::Object(ObjectValue {
                    nid,
                    size,
                    content: subnodes.get(nid)?,
                }))
            }
            Hnid::Sub(nid) => Ok(ValueData::Object(ObjectValue {
                nid,
                size: 0,
                content: subnodes.get(nid)?,
            })),
        };
    }
    match Hnid::from(raw) {
        Hnid::None => Ok(ValueData::Bytes(Vec::new())),
        Hnid::Heap(hid) => heap.item(hid).map(ValueData::Bytes),
        Hnid::Sub(nid) => Blocks::open(&subnodes.require(nid, "dwValueHnid")?)?.value(),
    }
}
