//! Property contexts: order, and whether each value is where and as long as its property says
//! ([MS-PST] 2.3.3).

use std::collections::{BTreeMap, BTreeSet};

use super::codes::Code;
use super::content::{COPIED, Content, Copies};
use super::heap::item_len;
use crate::ltp::{BthEntry, Heap, Hnid, PropTag, PropType, read_bth};
use crate::ndb::bytes::{u16_at, u32_at};
use crate::ndb::{SubnodeEntry, crc};
use crate::{Nid, PstError, Result};

/// The subnodes of a node; none where they cannot be read.
pub(super) type Subs<'s> = Option<&'s BTreeMap<Nid, SubnodeEntry>>;

/// A property context that was read.
pub(super) struct Properties {
    heap: Heap,
    records: BTreeMap<u16, (PropType, u32)>,
    pub copies: Copies,
}

/// Where a value lies, and how long it is.
pub(super) enum Located {
    Heap(usize),
    Sub(u64),
    Nothing,
}

impl Properties {
    pub fn has(&self, id: u16) -> bool {
        self.records.contains_key(&id)
    }

    /// A PtypInteger32.
    pub fn i32(&self, id: u16) -> Option<i32> {
        match self.records.get(&id) {
            Some((PropType::I32, raw)) => Some(raw.cast_signed()),
            _ => None,
        }
    }

    /// The subnode that a PtypObject names.
    pub fn object(&self, id: u16) -> Option<Nid> {
        match self.records.get(&id) {
            Some((PropType::OBJECT, raw)) => match Hnid::from(*raw) {
                Hnid::Heap(hid) => {
                    let item = self.heap.item(hid).ok()?;
                    u32_at(&item, 0, "PtypObject.Nid").ok().map(Nid)
                }
                Hnid::Sub(nid) => Some(nid),
                Hnid::None => None,
            },
            _ => None,
        }
    }
}

impl Content<'_> {
    pub(super) fn properties(
        &mut self,
        heap: Heap,
        offset: u64,
        subnodes: Subs<'_>,
        used: &mut BTreeSet<Nid>,
    ) -> Option<Properties> {
        let entries = match read_bth(&heap, heap.user_root()) {
            Ok((h, entries)) if h.key_size == 2 && h.entry_size == 6 => entries,
            Ok((h, _)) => {
                let (key, entry) = (h.key_size, h.entry_size);
                let e =
                    PstError::corrupt("BTHHEADER", 0, format!("keys of {key}, entries of {entry}"));
                self.failed(Code::Properties, offset, &e);
                return None;
            }
            Err(e) => {
                self.failed(Code::Properties, offset, &e);
                return None;
            }
        };
        self.order("properties", &entries, offset);
        let mut records = BTreeMap::new();
        let mut copies = Copies::default();
        let mut lens = BTreeMap::new();
        let mut named_bytes = 0u64;
        for BthEntry { key, data } in &entries {
            let id = u16::try_from(*key).unwrap_or_default();
            let (Ok(kind), Ok(raw)) =
                (u16_at(data, 0, "wPropType"), u32_at(data, 2, "dwValueHnid"))
            else {
                continue;
            };
            let kind = PropType(kind);
            // A damaged tree may repeat a key: the first is what a search would find.
            if records.contains_key(&id) {
                continue;
            }
            records.insert(id, (kind, raw));
            if id >= 0x8000 && !self.named.contains_key(&id) {
                self.named.insert(id, self.place.clone());
            }
            if kind.fixed_size().is_some_and(|n| n <= 4) {
                copies.set(PropTag::new(id, kind), narrow(kind, raw));
                continue;
            }
            let tag = PropTag::new(id, kind);
            let located = match Hnid::from(raw) {
                Hnid::Sub(nid) if lens.contains_key(&nid) => {
                    Ok(Located::Sub(lens.get(&nid).copied().unwrap_or_default()))
                }
                hnid => self.locate(&heap, subnodes, kind, hnid, used),
            };
            match located {
                Ok(at) => {
                    if let (Located::Sub(n), Hnid::Sub(nid)) = (&at, Hnid::from(raw)) {
                        lens.insert(nid, *n);
                    }
                    named_bytes = named_bytes.saturating_add(match at {
                        Located::Heap(n) => n as u64,
                        Located::Sub(n) => n.min(crate::ltp::ValueData::INLINE_LIMIT),
                        Located::Nothing => 0,
                    });
                    self.value(&heap, tag, raw, &at, offset);
                    if COPIED.contains(&id) && !matches!(at, Located::Sub(_)) {
                        copies.set(tag, sum_of(&heap, raw));
                    }
                }
                Err(e) => {
                    let place = &self.place;
                    self.out.add(Code::PropertyValue, offset, || {
                        format!("{place}: property {tag}: {e}")
                    });
                }
            }
        }
        // Sane values are distinct: what readers take into memory is bounded by what is there.
        let subs: u64 = lens.values().fold(0, |sum, n| sum.saturating_add(*n));
        let most = heap.len().saturating_add(subs).saturating_mul(2) + (1 << 20);
        if named_bytes > most {
            let place = &self.place;
            self.out.add(Code::PropertyValue, offset, || {
                format!("{place}: its values have {named_bytes} bytes, in a node that holds less than {most}")
            });
        }
        Some(Properties {
            heap,
            records,
            copies,
        })
    }

    /// Finds a value without reading it. `used` gets the subnode that it is in.
    pub(super) fn locate(
        &mut self,
        heap: &Heap,
        subnodes: Subs<'_>,
        kind: PropType,
        hnid: Hnid,
        used: &mut BTreeSet<Nid>,
    ) -> Result<Located> {
        let lost = |nid: Nid| PstError::corrupt("dwValueHnid", 0, format!("no subnode {nid}"));
        match hnid {
            Hnid::None => Ok(Located::Nothing),
            Hnid::Heap(hid) if kind == PropType::OBJECT => {
                let nid = Nid(u32_at(&heap.item(hid)?, 0, "PtypObject.Nid")?);
                used.insert(nid);
                match subnodes {
                    Some(s) if !s.contains_key(&nid) => Err(lost(nid)),
                    _ => Ok(Located::Nothing),
                }
            }
            Hnid::Heap(hid) => item_len(heap, hid).map(Located::Heap),
            Hnid::Sub(nid) => {
                used.insert(nid);
                // Where the subnodes cannot be read, that has been reported.
                let Some(subnodes) = subnodes else {
                    return Ok(Located::Nothing);
                };
                let entry = subnodes.get(&nid).ok_or_else(|| lost(nid))?;
                let tree = self.ndb.data(entry.bid_data)?;
                if !self.spend_blocks(tree.internal_bids().len()) {
                    return Ok(Located::Nothing);
                }
                Ok(Located::Sub(tree.len()))
            }
        }
    }

    /// Whether a value has a length that its type allows.
    fn value(&mut self, heap: &Heap, tag: PropTag, raw: u32, at: &Located, offset: u64) {
        let kind = tag.prop_type();
        let len = match at {
            Located::Heap(n) => *n as u64,
            Located::Sub(n) => *n,
            Located::Nothing => return,
        };
        let wrong = match kind.fixed_size() {
            Some(n) => (n as u64 != len).then(|| format!("{n}")),
            None if kind == PropType::UNICODE => {
                (len % 2 != 0).then(|| "a multiple of 2".to_owned())
            }
            None if kind.is_multi() => match kind.element().fixed_size() {
                // A multi-valued boolean has a byte each, as single ones in a table.
                Some(n) => (len % n as u64 != 0).then(|| format!("a multiple of {n}")),
                None => None,
            },
            None => None,
        };
        let place = &self.place;
        if let Some(wanted) = wrong {
            self.out.add(Code::PropertySize, offset, || {
                format!("{place}: property {tag} has {len} bytes, not {wanted}")
            });
        }
        let offsets = kind.is_multi() && kind.element().fixed_size().is_none() && len > 0;
        if let (true, Hnid::Heap(hid)) = (offsets, Hnid::from(raw))
            && let Ok(item) = heap.item(hid)
            && let Err(e) = multi(&item)
        {
            self.out.add(Code::PropertyMulti, offset, || {
                format!("{place}: property {tag}: {e}")
            });
        }
    }
}

/// The count and offsets of a multi-valued property of variable size (2.3.3.4.2).
fn multi(b: &[u8]) -> Result<()> {
    let count = u32_at(b, 0, "ulCount")? as usize;
    let mut last = count
        .checked_mul(4)
        .and_then(|n| n.checked_add(4))
        .filter(|n| *n <= b.len())
        .ok_or_else(|| PstError::corrupt("ulCount", 0, format!("{count} in {} bytes", b.len())))?;
    for i in 0..count {
        let at = u32_at(b, 4 + 4 * i, "rgulDataOffsets")? as usize;
        if at < last || at > b.len() {
            let detail = format!("value {i} at {at} of {}", b.len());
            return Err(PstError::corrupt("rgulDataOffsets", 0, detail));
        }
        last = at;
    }
    Ok(())
}

/// The value of a type of up to four bytes, as both a property and a cell have it.
pub(super) fn narrow(kind: PropType, raw: u32) -> u32 {
    match kind.fixed_size() {
        Some(1) => raw & 0xFF,
        Some(2) => raw & 0xFFFF,
        _ => raw,
    }
}

/// The checksum of a value in the heap: 0 for an empty one, and where it cannot be read, which has
/// been reported.
pub(super) fn sum_of(heap: &Heap, raw: u32) -> u32 {
    match Hnid::from(raw) {
        Hnid::Heap(hid) => heap.item(hid).map_or(0, |b| crc(&b)),
        _ => 0,
    }
}
