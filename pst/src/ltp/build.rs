//! Building nodes: what property contexts and tables have in common, and property contexts
//! ([MS-PST] 2.3.3).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bag::PropBag;
use super::bth::build_bth;
use super::heap::{ClientSig, Hid};
use super::heap_build::{HeapBuilder, MAX_ITEM};
use super::prop::{ObjectValue, PropType, ValueData};
use crate::ndb::{Ndb, NodeContent, NodeData, Subnodes};
use crate::{Nid, NidType, PstError, Result};

/// First index of the NIDs given to values in subnodes: low indexes belong to well-known
/// subnodes such as a message's recipient table.
const FIRST_SUBNODE_INDEX: u32 = 0x401;

/// Builds the content of a property context that holds exactly `bag`.
///
/// Values longer than [`MAX_ITEM`] bytes go to subnodes of type LTP; values and objects that lie
/// in the file `same` are shared with it, those of other files are copied when the content is
/// written. The blocks are those of the format of `same`, of a Unicode file without one. Further subnodes (recipients, attachments) are added with [`insert_subnode`].
///
/// # Errors
/// [`PstError::Refused`] for a value whose length does not fit its type or objects with clashing
/// NIDs, [`PstError::Limit`] for more than a heap holds, and what reading other files gives.
pub fn build_pc(bag: &PropBag, same: Option<&Arc<Ndb>>) -> Result<NodeContent> {
    let mut sink = ValueSink::new(ClientSig::PROPERTIES, same);
    sink.reserve_objects(bag);
    let header = sink.heap.alloc(&[0; 8])?;
    sink.heap.set_user_root(header);
    let mut entries = Vec::with_capacity(bag.len());
    for p in bag {
        let kind = p.tag.prop_type();
        let raw = match kind.fixed_size() {
            Some(n) if n <= 4 => {
                let bytes = p.data.bytes().filter(|b| b.len() == n).ok_or_else(|| {
                    PstError::Refused(format!(
                        "property {}: {} bytes where its type has {n}",
                        p.tag,
                        p.data.len()
                    ))
                })?;
                bytes.iter().rev().fold(0, |v, b| (v << 8) | u32::from(*b))
            }
            _ => sink.put(kind, &p.data)?,
        };
        let mut data = kind.0.to_le_bytes().to_vec();
        data.extend_from_slice(&raw.to_le_bytes());
        entries.push((p.tag.id().into(), data));
    }
    build_bth(&mut sink.heap, header, 2, 6, &entries)?;
    Ok(sink.finish())
}

/// Adds a subnode to built content.
///
/// # Errors
/// [`PstError::Refused`] if the NID is taken or the subnodes are those of a file.
pub fn insert_subnode(content: &mut NodeContent, nid: Nid, sub: NodeContent) -> Result<()> {
    if matches!(content.subnodes, Subnodes::None) {
        content.subnodes = Subnodes::Tree(BTreeMap::new());
    }
    match &mut content.subnodes {
        Subnodes::Tree(t) if !t.contains_key(&nid) => {
            t.insert(nid, sub);
            Ok(())
        }
        _ => Err(PstError::Refused(format!("subnode {nid} cannot be added"))),
    }
}

/// Takes values and puts them where they belong: heap or subnode.
pub(crate) struct ValueSink<'a> {
    pub heap: HeapBuilder,
    subnodes: BTreeMap<Nid, NodeContent>,
    reserved: Vec<Nid>,
    next: u32,
    same: Option<&'a Arc<Ndb>>,
}

impl<'a> ValueSink<'a> {
    pub fn new(sig: ClientSig, same: Option<&'a Arc<Ndb>>) -> Self {
        Self {
            heap: match same {
                Some(file) => HeapBuilder::for_format(sig, file.format()),
                None => HeapBuilder::new(sig),
            },
            subnodes: BTreeMap::new(),
            reserved: Vec::new(),
            next: FIRST_SUBNODE_INDEX,
            same,
        }
    }

    /// Objects bring their NIDs along: no value may be given one of them.
    pub fn reserve_objects(&mut self, bag: &PropBag) {
        self.reserved
            .extend(bag.iter().filter_map(|p| match &p.data {
                ValueData::Object(o) => Some(o.nid),
                _ => None,
            }));
    }

    /// A subnode of type LTP with this data.
    pub fn put_subnode(&mut self, data: NodeData) -> Result<Nid> {
        loop {
            let nid = Nid::new(NidType::LTP, self.next);
            self.next += 1;
            if self.next >= 1 << 27 {
                return Err(PstError::Limit {
                    what: "subnodes of a node",
                    found: self.next.into(),
                    limit: (1 << 27) - 1,
                });
            }
            if self.reserved.contains(&nid) || self.subnodes.contains_key(&nid) {
                continue;
            }
            self.subnodes.insert(
                nid,
                NodeContent {
                    data,
                    subnodes: Subnodes::None,
                },
            );
            return Ok(nid);
        }
    }

    /// The HNID under which a value was put.
    pub fn put(&mut self, kind: PropType, value: &ValueData) -> Result<u32> {
        match value {
            ValueData::Object(o) if kind == PropType::OBJECT => self.put_object(o),
            _ if kind == PropType::OBJECT || matches!(value, ValueData::Object(_)) => Err(
                PstError::Refused(format!("type {kind:?} does not fit its value")),
            ),
            _ if value.is_empty() => Ok(0),
            _ if value.len() > MAX_ITEM as u64 => {
                Ok(self.put_subnode(value.to_node_data(self.same))?.0)
            }
            _ => Ok(self.heap.alloc(&value.read(MAX_ITEM as u64)?)?.0),
        }
    }

    fn put_object(&mut self, object: &ObjectValue) -> Result<u32> {
        if object.nid == Nid(0) && object.content.is_none() {
            return Ok(0);
        }
        if let Some(source) = &object.content {
            // HID-like NIDs would be taken for heap items by readers of the subnode tree.
            if object.nid.kind() == NidType::HID || self.subnodes.contains_key(&object.nid) {
                return Err(PstError::Refused(format!("object with NID {}", object.nid)));
            }
            let content = source.to_content(self.same)?;
            self.subnodes.insert(object.nid, content);
        }
        let mut item = object.nid.0.to_le_bytes().to_vec();
        item.extend_from_slice(&object.size.to_le_bytes());
        Ok(self.heap.alloc(&item)?.0)
    }

    pub fn finish(self) -> NodeContent {
        NodeContent {
            data: NodeData::Blocks(self.heap.finish()),
            subnodes: if self.subnodes.is_empty() {
                Subnodes::None
            } else {
                Subnodes::Tree(self.subnodes)
            },
        }
    }
}

/// The HID of the `n`-th item (1-based) of a heap's first block: builders allocate their fixed
/// parts first, in the order that other writers use.
pub(crate) const fn fixed_hid(n: u16) -> Hid {
    Hid::new(0, n)
}
