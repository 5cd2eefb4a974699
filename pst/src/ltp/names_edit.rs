//! The named property map, appending ([MS-PST] 2.4.7.5, 2.4.7.6).
//!
//! Names are only ever added: ids are used all over the file, so that no entry can move or go.
//! A new name goes to the entry stream, to the GUID and string streams where needed, and to the
//! hash bucket in which other readers look for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::build::build_pc;
use super::names::{
    BUCKET_BASE, BUCKET_COUNT, Guid, NameKind, NameMap, PropName, STREAM_ENTRY, STREAM_GUID,
    STREAM_STRING, Streams,
};
use super::node::NodeSource;
use super::pc::PropertyContext;
use super::prop::PropValue;
use crate::ndb::bytes::u16_at;
use crate::ndb::{Ndb, NodeContent, crc};
use crate::{Nid, PstError, Result};

/// Buckets of a new map; what all writers use.
const NEW_BUCKETS: u32 = 251;
/// Longest hash bucket that is read: all names of a file in one bucket.
const BUCKET_LIMIT: u64 = 8 << 16;

/// An open edit of the map.
#[derive(Clone, Debug)]
pub struct NameMapEdit {
    streams: Streams,
    map: NameMap,
    buckets: u32,
    changed: bool,
}

impl NameMapEdit {
    /// The map of a new file: no names yet.
    #[must_use]
    pub fn new() -> Self {
        let mut streams = Streams::default();
        streams
            .bag
            .insert(PropValue::i32(BUCKET_COUNT, NEW_BUCKETS.cast_signed()));
        Self {
            streams,
            map: NameMap::default(),
            buckets: NEW_BUCKETS,
            changed: true,
        }
    }

    /// Opens the map of a file; a file without one gets a new one.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the map is malformed, and what reading gives.
    pub fn open(ndb: &Arc<Ndb>) -> Result<Self> {
        match ndb.node(Nid::NAME_TO_ID_MAP)? {
            Some(n) => Self::open_source(&NodeSource::stored(ndb, n.bid_data, n.bid_sub)),
            None => Ok(Self::new()),
        }
    }

    /// Opens the map in any node, stored or just built.
    ///
    /// # Errors
    /// As [`NameMapEdit::open`].
    pub fn open_source(source: &NodeSource) -> Result<Self> {
        let streams = Streams::from_bag(PropertyContext::open_source(source)?.bag()?)?;
        let map = NameMap::from_streams(&streams)?;
        let buckets = streams
            .bag
            .i32(BUCKET_COUNT)
            .unwrap_or_default()
            .cast_unsigned();
        // Buckets are properties from 0x1000 on, below the named ones.
        if buckets == 0 || buckets > 0x7000 {
            return Err(PstError::corrupt(
                "PidTagNameidBucketCount",
                0,
                format!("{buckets} hash buckets"),
            ));
        }
        Ok(Self {
            streams,
            map,
            buckets,
            changed: false,
        })
    }

    /// The names, with those added.
    #[must_use]
    pub const fn map(&self) -> &NameMap {
        &self.map
    }

    /// Whether a name was added.
    #[must_use]
    pub const fn changed(&self) -> bool {
        self.changed
    }

    /// The property id of a name, added if it is new.
    ///
    /// # Errors
    /// [`PstError::Limit`] when all 32,767 ids are taken, [`PstError::Refused`] for a string name
    /// that is empty or not UTF-16.
    pub fn id(&mut self, name: &PropName) -> Result<u16> {
        if let Some(id) = self.map.id(name) {
            return Ok(id);
        }
        let last = self.map.iter().last().map_or(0x7FFF, |(id, _)| id);
        let entries = self.streams.entries.len() / 8;
        let index = entries.max(usize::from(last) + 1 - 0x8000);
        let full = || PstError::Limit {
            what: "named properties",
            found: index as u64 + 1,
            limit: 0x7FFF,
        };
        // 0xFFFF is no property id.
        let index = u16::try_from(index)
            .ok()
            .filter(|i| *i < 0x7FFF)
            .ok_or_else(full)?;
        if let NameKind::String(s) = &name.kind
            && (s.is_empty() || s.len() % 2 != 0)
        {
            return Err(PstError::Refused(format!(
                "a property name of {} bytes",
                s.len()
            )));
        }

        let guid = self.guid_index(name.guid)?;
        // The entry stream says where the string lies; the bucket says its checksum.
        let (number, hash, string) = match &name.kind {
            NameKind::Number(n) => (*n, *n, 0),
            NameKind::String(s) => (self.add_string(s)?, crc(s), 1),
        };
        let w = (guid << 1) | string;
        let bucket = self.bucket(hash, w);
        let mut list = match self.streams.bag.get(bucket) {
            Some(v) => v.data.read(BUCKET_LIMIT)?,
            None => Vec::new(),
        };
        list.extend_from_slice(&nameid(hash, w, index));
        self.streams.bag.insert(PropValue::binary(bucket, list));
        self.streams
            .entries
            .extend_from_slice(&nameid(number, w, index));
        let id = 0x8000 + index;
        self.map.insert(id, name.clone());
        self.changed = true;
        Ok(id)
    }

    /// The property that is the hash bucket of a name: `hash` is its number or the checksum of
    /// its string, `w` its wGuid.
    fn bucket(&self, hash: u32, w: u16) -> u16 {
        let n = (hash ^ u32::from(w)) % self.buckets;
        BUCKET_BASE + u16::try_from(n).unwrap_or_default()
    }

    fn guid_index(&mut self, guid: Guid) -> Result<u16> {
        match guid {
            Guid::NONE => return Ok(0),
            Guid::PS_MAPI => return Ok(1),
            Guid::PS_PUBLIC_STRINGS => return Ok(2),
            _ => {}
        }
        let guids = &mut self.streams.guids;
        let at = match guids.chunks_exact(16).position(|g| g == guid.0) {
            Some(at) => at,
            None => {
                guids.truncate(guids.len() / 16 * 16);
                guids.extend_from_slice(&guid.0);
                guids.len() / 16 - 1
            }
        };
        // 15 bits of wGuid, of which three values are fixed.
        u16::try_from(at + 3)
            .ok()
            .filter(|i| *i < 0x8000)
            .ok_or(PstError::Limit {
                what: "property sets",
                found: at as u64 + 3,
                limit: 0x7FFF,
            })
    }

    fn add_string(&mut self, s: &[u8]) -> Result<u32> {
        let too_long = |n: usize| PstError::Limit {
            what: "bytes of property names",
            found: n as u64,
            limit: u32::MAX.into(),
        };
        let strings = &mut self.streams.strings;
        strings.resize(strings.len().next_multiple_of(4), 0);
        let at = u32::try_from(strings.len()).map_err(|_| too_long(strings.len()))?;
        let len = u32::try_from(s.len()).map_err(|_| too_long(s.len()))?;
        strings.extend_from_slice(&len.to_le_bytes());
        strings.extend_from_slice(s);
        strings.resize(strings.len().next_multiple_of(4), 0);
        Ok(at)
    }

    /// The map as content to be written.
    ///
    /// # Errors
    /// As [`build_pc`].
    pub fn build(&self, same: Option<&Arc<Ndb>>) -> Result<NodeContent> {
        let mut bag = self.streams.bag.clone();
        for (id, bytes) in [
            (STREAM_GUID, &self.streams.guids),
            (STREAM_ENTRY, &self.streams.entries),
            (STREAM_STRING, &self.streams.strings),
        ] {
            bag.insert(PropValue::binary(id, bytes.clone()));
        }
        build_pc(&bag, same)
    }
}

/// What is odd about a name map, for the check.
#[derive(Debug, Default)]
pub(crate) struct NameAudit {
    /// PidTagNameidBucketCount.
    pub buckets: u32,
    /// Names that are not in the hash bucket in which [MS-PST] 2.4.7.6 looks for them.
    pub unlisted: Vec<PropName>,
    /// How many records of hash buckets are not in the entry stream, or in another bucket.
    pub stray: usize,
    /// Ids with two names, and names with two ids.
    pub twice: Vec<(u16, PropName)>,
    /// The ids that have a name.
    pub ids: BTreeSet<u16>,
}

/// Looks for what is odd about a file's name map; none for a file without one.
pub(crate) fn audit_names(ndb: &Arc<Ndb>) -> Result<Option<NameAudit>> {
    let Some(n) = ndb.node(Nid::NAME_TO_ID_MAP)? else {
        return Ok(None);
    };
    let edit = NameMapEdit::open_source(&NodeSource::stored(ndb, n.bid_data, n.bid_sub))?;
    let mut listed = BTreeSet::new();
    for v in edit.streams.bag.iter() {
        let id = v.tag.id();
        let last = u32::from(BUCKET_BASE) + edit.buckets;
        if id >= BUCKET_BASE && u32::from(id) < last {
            let records = v.data.read(BUCKET_LIMIT)?;
            listed.extend(records.as_chunks::<8>().0.iter().map(|r| (id, *r)));
        }
    }
    let mut audit = NameAudit {
        buckets: edit.buckets,
        ..NameAudit::default()
    };
    for b in edit.streams.entries.chunks_exact(8) {
        let (id, name) = edit.streams.entry(b)?;
        let hash = match &name.kind {
            NameKind::Number(n) => *n,
            NameKind::String(s) => crc(s),
        };
        let w = u16_at(b, 4, "NAMEID.wGuid")?;
        let record = nameid(hash, w, id.wrapping_sub(0x8000));
        if !audit.ids.insert(id) || edit.map.id(&name) != Some(id) {
            audit.twice.push((id, name.clone()));
        }
        if !listed.remove(&(edit.bucket(hash, w), record)) {
            audit.unlisted.push(name);
        }
    }
    audit.stray = listed.len();
    Ok(Some(audit))
}

/// A NAMEID record ([MS-PST] 2.4.7.1).
fn nameid(number: u32, w: u16, index: u16) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    let ([e, f], [g, h]) = (w.to_le_bytes(), index.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

impl Default for NameMapEdit {
    fn default() -> Self {
        Self::new()
    }
}
