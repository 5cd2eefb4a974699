//! The named property map, reading ([MS-PST] 2.4.7).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::bag::PropBag;
use super::node::NodeSource;
use super::pc::PropertyContext;
use super::text::{Text, utf16le};
use crate::ndb::Ndb;
use crate::ndb::bytes::{slice, u16_at, u32_at};
use crate::{Nid, PstError, Result};

/// PidTagNameidBucketCount.
pub(crate) const BUCKET_COUNT: u16 = 0x0001;
/// PidTagNameidStreamGuid.
pub(crate) const STREAM_GUID: u16 = 0x0002;
/// PidTagNameidStreamEntry.
pub(crate) const STREAM_ENTRY: u16 = 0x0003;
/// PidTagNameidStreamString.
pub(crate) const STREAM_STRING: u16 = 0x0004;
/// PidTagNameidBucketBase: the first hash bucket.
pub(crate) const BUCKET_BASE: u16 = 0x1000;
/// Longest stream that is read. Ids end at 0xFFFF, so that real streams stay far below it.
const STREAM_LIMIT: u64 = 16 << 20;

/// A property set GUID, in stored byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// No property set (wGuid index 0).
    pub const NONE: Self = Self([0; 16]);
    /// PS_MAPI (wGuid index 1): {00020328-0000-0000-C000-000000000046}.
    pub const PS_MAPI: Self = Self(mapi_guid(0x28));
    /// PS_PUBLIC_STRINGS (wGuid index 2): {00020329-0000-0000-C000-000000000046}.
    pub const PS_PUBLIC_STRINGS: Self = Self(mapi_guid(0x29));
}

const fn mapi_guid(low: u8) -> [u8; 16] {
    [low, 0x03, 0x02, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0x46]
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = self.0;
        let a = u32::from_le_bytes([a0, a1, a2, a3]);
        let (b, c) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        let [d0, d1, e @ ..] = rest;
        write!(f, "{a:08X}-{b:04X}-{c:04X}-{d0:02X}{d1:02X}-")?;
        e.iter().try_for_each(|x| write!(f, "{x:02X}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The part of a name below its property set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NameKind {
    /// A numeric name (LID).
    Number(u32),
    /// A string name, as the UTF-16LE bytes that the map stores.
    String(Vec<u8>),
}

/// The name of a named property: what stays the same from file to file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PropName {
    /// The property set.
    pub guid: Guid,
    /// The name in it.
    pub kind: NameKind,
}

impl PropName {
    /// A numeric name.
    #[must_use]
    pub const fn number(guid: Guid, id: u32) -> Self {
        Self {
            guid,
            kind: NameKind::Number(id),
        }
    }

    /// A string name.
    #[must_use]
    pub fn string(guid: Guid, name: &str) -> Self {
        Self {
            guid,
            kind: NameKind::String(utf16le(name)),
        }
    }
}

impl fmt::Display for PropName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NameKind::Number(n) => write!(f, "{{{}}}:{n:#06x}", self.guid),
            NameKind::String(s) => write!(f, "{{{}}}:{}", self.guid, Text::from_utf16le(s).text),
        }
    }
}

/// The three streams and the buckets, as stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams {
    pub bag: PropBag,
    pub guids: Vec<u8>,
    pub entries: Vec<u8>,
    pub strings: Vec<u8>,
}

impl Streams {
    pub(crate) fn from_bag(bag: PropBag) -> Result<Self> {
        let stream = |id| {
            bag.get(id)
                .map_or(Ok(Vec::new()), |v| v.data.read(STREAM_LIMIT))
        };
        Ok(Self {
            guids: stream(STREAM_GUID)?,
            entries: stream(STREAM_ENTRY)?,
            strings: stream(STREAM_STRING)?,
            bag,
        })
    }

    /// The GUID at `index` of a NAMEID's wGuid ([MS-PST] 2.4.7.1).
    pub(crate) fn guid(&self, index: u16) -> Result<Guid> {
        Ok(match index {
            0 => Guid::NONE,
            1 => Guid::PS_MAPI,
            2 => Guid::PS_PUBLIC_STRINGS,
            n => {
                let at = 16 * (usize::from(n) - 3);
                let b = slice(&self.guids, at, 16, "PidTagNameidStreamGuid")?;
                Guid(b.try_into().unwrap_or_default())
            }
        })
    }

    /// The name that one 8-byte NAMEID of the entry stream stands for, and its property id.
    pub(crate) fn entry(&self, b: &[u8]) -> Result<(u16, PropName)> {
        let number = u32_at(b, 0, "NAMEID.dwPropertyID")?;
        let w = u16_at(b, 4, "NAMEID.wGuid")?;
        let index = u16_at(b, 6, "NAMEID.wPropIdx")?;
        let id = index
            .checked_add(0x8000)
            .filter(|id| *id >= 0x8000)
            .ok_or_else(|| PstError::corrupt("NAMEID.wPropIdx", 6, format!("{index:#06x}")))?;
        let guid = self.guid(w >> 1)?;
        if w & 1 == 0 {
            return Ok((id, PropName::number(guid, number)));
        }
        let at = number as usize;
        let len = u32_at(&self.strings, at, "PidTagNameidStreamString")? as usize;
        let start = at.saturating_add(4);
        let name = slice(&self.strings, start, len, "PidTagNameidStreamString")?.to_vec();
        Ok((
            id,
            PropName {
                guid,
                kind: NameKind::String(name),
            },
        ))
    }
}

/// The map between property ids of 0x8000 and above and their names.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    names: BTreeMap<u16, PropName>,
    ids: HashMap<PropName, u16>,
}

impl NameMap {
    /// Reads the map of a file; a file without one has no named properties.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the map is malformed, and what reading gives.
    pub fn read(ndb: &Arc<Ndb>) -> Result<Self> {
        match ndb.node(Nid::NAME_TO_ID_MAP)? {
            Some(n) => Self::from_source(&NodeSource::stored(ndb, n.bid_data, n.bid_sub)),
            None => Ok(Self::default()),
        }
    }

    /// Reads the map in any node, stored or just built.
    ///
    /// # Errors
    /// As [`NameMap::read`].
    pub fn from_source(source: &NodeSource) -> Result<Self> {
        Self::from_streams(&Streams::from_bag(
            PropertyContext::open_source(source)?.bag()?,
        )?)
    }

    pub(crate) fn from_streams(streams: &Streams) -> Result<Self> {
        let mut map = Self::default();
        if !streams.entries.len().is_multiple_of(8) {
            return Err(PstError::corrupt(
                "PidTagNameidStreamEntry",
                0,
                format!("{} bytes, not a multiple of 8", streams.entries.len()),
            ));
        }
        // Each name has a string of its own; a crafted map could name one long string over and over.
        let limit = streams.strings.len() as u64 * 4 + 65_536;
        let mut named = 0u64;
        for b in streams.entries.chunks_exact(8) {
            let (id, name) = streams.entry(b)?;
            if let NameKind::String(s) = &name.kind {
                named = named.saturating_add(s.len() as u64);
            }
            if named > limit {
                return Err(PstError::Limit {
                    what: "bytes of property names",
                    found: named,
                    limit,
                });
            }
            map.insert(id, name);
        }
        Ok(map)
    }

    pub(crate) fn insert(&mut self, id: u16, name: PropName) {
        // Where a file names one thing twice, its first id is the one that a look-up gives.
        self.ids.entry(name.clone()).or_insert(id);
        self.names.entry(id).or_insert(name);
    }

    /// The name of a property id.
    #[must_use]
    pub fn name(&self, id: u16) -> Option<&PropName> {
        self.names.get(&id)
    }

    /// The property id of a name.
    #[must_use]
    pub fn id(&self, name: &PropName) -> Option<u16> {
        self.ids.get(name).copied()
    }

    /// All (id, name) in id order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u16, &PropName)> {
        self.names.iter().map(|(id, n)| (*id, n))
    }

    /// How many ids have a name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no named properties.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
