//! Property tags, types and values ([MS-OXCDATA] 2.9 and 2.11).
//!
//! Values are kept as the raw little-endian bytes that the PST stores, so that reading and
//! writing again loses nothing; the typed getters are views that never change what is stored.
//! A Unicode string is its UTF-16LE bytes without terminator as stored; multi-valued properties
//! are kept in the packed form of [MS-PST] 2.3.3.4.2.

use std::fmt;
use std::sync::Arc;

use storage::Payload;

use super::node::NodeSource;
use super::text::{Text, utf16le};
use crate::ndb::{Ndb, NodeData};
use crate::{Bid, Nid, PstError, Result};

/// A property's type: the low 16 bits of its tag ([MS-OXCDATA] 2.11.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PropType(pub u16);

impl PropType {
    /// PtypUnspecified.
    pub const UNSPECIFIED: Self = Self(0x0000);
    /// PtypNull.
    pub const NULL: Self = Self(0x0001);
    /// PtypInteger16: 2 bytes.
    pub const I16: Self = Self(0x0002);
    /// PtypInteger32: 4 bytes.
    pub const I32: Self = Self(0x0003);
    /// PtypFloating32: 4 bytes.
    pub const F32: Self = Self(0x0004);
    /// PtypFloating64: 8 bytes.
    pub const F64: Self = Self(0x0005);
    /// PtypCurrency: 8 bytes.
    pub const CURRENCY: Self = Self(0x0006);
    /// PtypFloatingTime: 8 bytes.
    pub const FLOATING_TIME: Self = Self(0x0007);
    /// PtypErrorCode: 4 bytes.
    pub const ERROR: Self = Self(0x000A);
    /// PtypBoolean: 1 byte.
    pub const BOOL: Self = Self(0x000B);
    /// PtypObject: a subnode.
    pub const OBJECT: Self = Self(0x000D);
    /// PtypInteger64: 8 bytes.
    pub const I64: Self = Self(0x0014);
    /// PtypString8: bytes in the store's code page.
    pub const STRING8: Self = Self(0x001E);
    /// PtypString: UTF-16LE.
    pub const UNICODE: Self = Self(0x001F);
    /// PtypTime: 8 bytes, FILETIME.
    pub const TIME: Self = Self(0x0040);
    /// PtypGuid: 16 bytes.
    pub const GUID: Self = Self(0x0048);
    /// PtypServerId: variable.
    pub const SERVER_ID: Self = Self(0x00FB);
    /// PtypRestriction: variable.
    pub const RESTRICTION: Self = Self(0x00FD);
    /// PtypRuleAction: variable.
    pub const RULE_ACTION: Self = Self(0x00FE);
    /// PtypBinary: variable.
    pub const BINARY: Self = Self(0x0102);
    /// The bit that makes a type multi-valued.
    pub const MULTI: u16 = 0x1000;

    /// Whether the type is multi-valued.
    #[must_use]
    pub const fn is_multi(self) -> bool {
        self.0 & Self::MULTI != 0
    }

    /// The type of one element: the type itself where it is not multi-valued.
    #[must_use]
    pub const fn element(self) -> Self {
        Self(self.0 & !Self::MULTI)
    }

    /// Bytes of a fixed-size value, `None` where the size varies. Types this engine does not
    /// know count as four inline bytes where their number is below PtypInteger64, so that they
    /// survive a rewrite in place; all others are variable.
    #[must_use]
    pub const fn fixed_size(self) -> Option<usize> {
        match self.0 {
            0x0002 => Some(2),
            0x000B => Some(1),
            0x0005..=0x0007 | 0x0014 | 0x0040 => Some(8),
            0x0048 => Some(16),
            0x000D => None,
            0x0000..=0x0013 => Some(4),
            _ => None,
        }
    }
}

impl fmt::Debug for PropType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06X}", self.0)
    }
}

/// A property tag: 16 bits of id, 16 bits of type ([MS-OXCDATA] 2.9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PropTag(pub u32);

impl PropTag {
    /// PidTagLtpRowId: a table row's id, which is the NID of the object it stands for.
    pub const LTP_ROW_ID: Self = Self(0x67F2_0003);
    /// PidTagLtpRowVer: a table row's version.
    pub const LTP_ROW_VER: Self = Self(0x67F3_0003);

    /// Builds a tag from its id and type.
    #[must_use]
    pub const fn new(id: u16, prop_type: PropType) -> Self {
        Self(((id as u32) << 16) | prop_type.0 as u32)
    }

    /// The property id; 0x8000 and above are named properties.
    #[must_use]
    pub const fn id(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The property type.
    #[must_use]
    pub const fn prop_type(self) -> PropType {
        PropType((self.0 & 0xFFFF) as u16)
    }

    /// Whether the id is that of a named property: it means something only in its own file.
    #[must_use]
    pub const fn is_named(self) -> bool {
        self.id() >= 0x8000
    }
}

impl fmt::Debug for PropTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010X}", self.0)
    }
}

impl fmt::Display for PropTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010X}", self.0)
    }
}

/// The value of a PtypObject property: a subnode of the node that has the property
/// ([MS-PST] 2.3.3.5).
#[derive(Clone, Debug)]
pub struct ObjectValue {
    /// The subnode's NID inside the node.
    pub nid: Nid,
    /// Size in bytes as the property says it.
    pub size: u32,
    /// What the subnode holds; `None` where the file has no such subnode.
    pub content: Option<NodeSource>,
}

/// A property's value.
#[derive(Clone)]
pub enum ValueData {
    /// The stored bytes. Read values are at most [`ValueData::INLINE_LIMIT`] long; values to be
    /// written may have any length.
    Bytes(Vec<u8>),
    /// A longer value that stays in its file until it is wanted.
    Stream {
        /// The file that holds it.
        ndb: Arc<Ndb>,
        /// Its data tree.
        bid: Bid,
        /// Its length in bytes.
        len: u64,
    },
    /// A value to be written whose bytes lie outside any PST: they are read block by block when it
    /// is written, so that it may have gigabytes.
    Payload(Payload),
    /// The subnode of a PtypObject property.
    Object(ObjectValue),
}

impl ValueData {
    /// Longest value that a reader returns as [`ValueData::Bytes`], in bytes.
    pub const INLINE_LIMIT: u64 = 64 * 1024;

    /// Length in bytes; 0 for an object.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Stream { len, .. } => *len,
            Self::Payload(p) => p.len(),
            Self::Object(_) => 0,
        }
    }

    /// Whether the value has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes where they are in memory.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(b) => Some(b),
            _ => None,
        }
    }

    /// All bytes of the value, read from its file where needed.
    ///
    /// # Errors
    /// [`PstError::Limit`] if the value is longer than `limit` bytes, and what reading gives. An
    /// object has no bytes of its own: [`PstError::Refused`].
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let len = self.len();
        if len > limit {
            return Err(PstError::Limit {
                what: "property value",
                found: len,
                limit,
            });
        }
        let mut out = Vec::new();
        self.for_each_chunk(|c| out.extend_from_slice(c))?;
        Ok(out)
    }

    /// Hands the value's bytes to `f` piece by piece, in order, without holding all of them.
    ///
    /// # Errors
    /// What reading gives; [`PstError::Refused`] for an object.
    pub fn for_each_chunk(&self, mut f: impl FnMut(&[u8])) -> Result<()> {
        match self {
            Self::Bytes(b) => f(b),
            Self::Stream { ndb, bid, .. } => {
                let tree = ndb.data(*bid)?;
                for i in 0..tree.block_count() {
                    f(&tree.read_block(ndb, i)?);
                }
            }
            Self::Payload(p) => {
                let read = p.pieces(|_, part| {
                    f(part);
                    Ok(())
                });
                read.map_err(|source| PstError::Io { offset: 0, source })?;
            }
            Self::Object(_) => {
                return Err(PstError::Refused(
                    "an object property has no bytes of its own".into(),
                ));
            }
        }
        Ok(())
    }

    /// Whether two values have the same content, wherever it is kept. Objects are compared by
    /// the data of their subnode (not by what hangs below it).
    ///
    /// # Errors
    /// What reading gives.
    pub fn same_content(&self, other: &Self) -> Result<bool> {
        match (self, other) {
            (Self::Object(a), Self::Object(b)) => match (&a.content, &b.content) {
                (None, None) => Ok(true),
                (Some(a), Some(b)) => a.same_data(b),
                _ => Ok(false),
            },
            (Self::Object(_), _) | (_, Self::Object(_)) => Ok(false),
            (a, b) if a.len() != b.len() => Ok(false),
            (Self::Bytes(a), Self::Bytes(b)) => Ok(a == b),
            (a, b) => {
                let hash = |v: &Self| -> Result<blake3::Hash> {
                    let mut h = blake3::Hasher::new();
                    v.for_each_chunk(|c| {
                        h.update(c);
                    })?;
                    Ok(h.finalize())
                };
                Ok(hash(a)? == hash(b)?)
            }
        }
    }

    /// What to give to the node layer so that a subnode holds this value: shared where the value
    /// lies in `same`, copied block by block from another file.
    pub(crate) fn to_node_data(&self, same: Option<&Arc<Ndb>>) -> NodeData {
        match self {
            Self::Bytes(b) => NodeData::Bytes(b.clone()),
            Self::Stream { ndb, bid, .. } => match same {
                Some(s) if Arc::ptr_eq(s, ndb) => NodeData::Existing(*bid),
                _ => NodeData::Copy(Arc::clone(ndb), *bid),
            },
            Self::Payload(p) => NodeData::Payload(p.clone()),
            Self::Object(_) => NodeData::None,
        }
    }
}

impl fmt::Debug for ValueData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(b) => f.debug_tuple("Bytes").field(b).finish(),
            Self::Stream { bid, len, .. } => f
                .debug_struct("Stream")
                .field("bid", bid)
                .field("len", len)
                .finish_non_exhaustive(),
            Self::Payload(p) => f.debug_tuple("Payload").field(p).finish(),
            Self::Object(o) => f.debug_tuple("Object").field(o).finish(),
        }
    }
}

/// A property: tag and value.
#[derive(Clone, Debug)]
pub struct PropValue {
    /// The tag: id and type.
    pub tag: PropTag,
    /// The value.
    pub data: ValueData,
}

impl PropValue {
    /// A property from its stored bytes.
    #[must_use]
    pub fn new(tag: PropTag, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            tag,
            data: ValueData::Bytes(bytes.into()),
        }
    }

    /// A PtypInteger32.
    #[must_use]
    pub fn i32(id: u16, v: i32) -> Self {
        Self::new(PropTag::new(id, PropType::I32), v.to_le_bytes())
    }

    /// A PtypInteger16.
    #[must_use]
    pub fn i16(id: u16, v: i16) -> Self {
        Self::new(PropTag::new(id, PropType::I16), v.to_le_bytes())
    }

    /// A PtypInteger64.
    #[must_use]
    pub fn i64(id: u16, v: i64) -> Self {
        Self::new(PropTag::new(id, PropType::I64), v.to_le_bytes())
    }

    /// A PtypBoolean.
    #[must_use]
    pub fn bool(id: u16, v: bool) -> Self {
        Self::new(PropTag::new(id, PropType::BOOL), [u8::from(v)])
    }

    /// A PtypTime from a FILETIME (100 ns since 1601, UTC).
    #[must_use]
    pub fn time(id: u16, filetime: u64) -> Self {
        Self::new(PropTag::new(id, PropType::TIME), filetime.to_le_bytes())
    }

    /// A PtypString (UTF-16LE, no terminator).
    #[must_use]
    pub fn string(id: u16, v: &str) -> Self {
        Self::new(PropTag::new(id, PropType::UNICODE), utf16le(v))
    }

    /// A PtypBinary.
    #[must_use]
    pub fn binary(id: u16, v: impl Into<Vec<u8>>) -> Self {
        Self::new(PropTag::new(id, PropType::BINARY), v)
    }

    /// The PtypInteger16, PtypInteger32 or PtypErrorCode value.
    #[must_use]
    pub fn as_i32(&self) -> Option<i32> {
        match self.tag.prop_type() {
            PropType::I32 | PropType::ERROR => Some(i32::from_le_bytes(self.fixed()?)),
            PropType::I16 => Some(i16::from_le_bytes(self.fixed()?).into()),
            _ => None,
        }
    }

    /// The PtypInteger32 value as an unsigned number.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        self.as_i32().map(i32::cast_unsigned)
    }

    /// The value of any integer, currency or time type, widened.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match self.tag.prop_type() {
            PropType::I64 | PropType::CURRENCY | PropType::TIME => {
                Some(i64::from_le_bytes(self.fixed()?))
            }
            _ => self.as_i32().map(Into::into),
        }
    }

    /// The PtypBoolean value; any non-zero byte is true.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        (self.tag.prop_type() == PropType::BOOL)
            .then(|| self.data.bytes()?.first().map(|b| *b != 0))
            .flatten()
    }

    /// The PtypTime value: 100 ns since 1601-01-01, UTC.
    #[must_use]
    pub fn as_filetime(&self) -> Option<u64> {
        (self.tag.prop_type() == PropType::TIME).then(|| self.fixed().map(u64::from_le_bytes))?
    }

    /// The PtypFloating32, PtypFloating64 or PtypFloatingTime value.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self.tag.prop_type() {
            PropType::F32 => Some(f32::from_le_bytes(self.fixed()?).into()),
            PropType::F64 | PropType::FLOATING_TIME => Some(f64::from_le_bytes(self.fixed()?)),
            _ => None,
        }
    }

    /// The PtypGuid value as stored.
    #[must_use]
    pub fn as_guid(&self) -> Option<[u8; 16]> {
        (self.tag.prop_type() == PropType::GUID).then(|| self.fixed())?
    }

    /// The stored bytes where they are in memory, whatever the type.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        self.data.bytes()
    }

    /// The string that a PtypString or PtypString8 value shows. `None` for other types and for
    /// values that are not in memory. Use [`PropValue::as_text`] to learn whether the view is exact.
    #[must_use]
    pub fn as_str(&self) -> Option<String> {
        self.as_text().map(|t| t.text)
    }

    /// The string view of a PtypString or PtypString8 value.
    #[must_use]
    pub fn as_text(&self) -> Option<Text> {
        let bytes = self.data.bytes()?;
        match self.tag.prop_type() {
            PropType::UNICODE => Some(Text::from_utf16le(bytes)),
            PropType::STRING8 => Some(Text::from_string8(bytes)),
            _ => None,
        }
    }

    /// The elements of a multi-valued property, each as its stored bytes
    /// ([MS-PST] 2.3.3.4.2). `None` if it is not multi-valued, not in memory, or malformed.
    #[must_use]
    pub fn elements(&self) -> Option<Vec<&[u8]>> {
        let t = self.tag.prop_type();
        let bytes = self.data.bytes()?;
        if !t.is_multi() {
            return None;
        }
        if let Some(n) = t.element().fixed_size() {
            return (bytes.len() % n == 0).then(|| bytes.chunks_exact(n).collect());
        }
        if bytes.is_empty() {
            return Some(Vec::new());
        }
        let word = |i: usize| -> Option<usize> {
            let b = bytes.get(i..i.checked_add(4)?)?;
            usize::try_from(u32::from_le_bytes(b.try_into().ok()?)).ok()
        };
        let count = word(0)?;
        if count > bytes.len() / 4 {
            return None;
        }
        (0..count)
            .map(|i| {
                let start = word(4 + 4 * i)?;
                let end = if i + 1 < count {
                    word(8 + 4 * i)?
                } else {
                    bytes.len()
                };
                bytes.get(start..end)
            })
            .collect()
    }

    /// A multi-valued property packed from its elements ([MS-PST] 2.3.3.4.2). `tag` has the
    /// multi-valued type; elements of a fixed-size type must have exactly that size.
    ///
    /// # Errors
    /// [`PstError::Refused`] if `tag` or an element does not fit.
    pub fn multi(tag: PropTag, elements: &[&[u8]]) -> Result<Self> {
        let refused = |why: &str| PstError::Refused(format!("property {tag}: {why}"));
        if !tag.prop_type().is_multi() {
            return Err(refused("not a multi-valued type"));
        }
        let mut out = Vec::new();
        if let Some(n) = tag.prop_type().element().fixed_size() {
            for e in elements {
                if e.len() != n {
                    return Err(refused("element of the wrong size"));
                }
                out.extend_from_slice(e);
            }
        } else {
            let u32_of = |n: usize| u32::try_from(n).map_err(|_| refused("too long"));
            out.extend_from_slice(&u32_of(elements.len())?.to_le_bytes());
            let mut at = 4 + 4 * elements.len();
            for e in elements {
                out.extend_from_slice(&u32_of(at)?.to_le_bytes());
                at += e.len();
            }
            for e in elements {
                out.extend_from_slice(e);
            }
        }
        Ok(Self::new(tag, out))
    }

    fn fixed<const N: usize>(&self) -> Option<[u8; N]> {
        self.data.bytes()?.get(..N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multi_values_unpack_as_packed() {
        let tag = PropTag::new(0x1234, PropType(0x1000 | PropType::UNICODE.0));
        let (a, b) = (utf16le("one"), utf16le(""));
        let v = PropValue::multi(tag, &[&a, &b, &a]).unwrap();
        assert_eq!(v.elements().unwrap(), vec![&a[..], &b[..], &a[..]]);
        let ints = PropTag::new(0x1234, PropType(0x1003));
        assert_eq!(
            PropValue::multi(ints, &[&[1, 0, 0, 0]])
                .unwrap()
                .elements()
                .unwrap()
                .len(),
            1
        );
        assert!(PropValue::multi(ints, &[&[1]]).is_err());
        // A count that the bytes cannot hold is refused, not allocated.
        assert!(PropValue::new(tag, [0xFF; 8]).elements().is_none());
    }

    #[test]
    fn getters_respect_types() {
        assert_eq!(PropValue::i32(1, -5).as_i32(), Some(-5));
        assert_eq!(PropValue::i32(1, -5).as_bool(), None);
        assert_eq!(PropValue::bool(1, true).as_bool(), Some(true));
        assert_eq!(PropValue::time(1, 77).as_filetime(), Some(77));
        assert_eq!(PropValue::i64(1, 1 << 40).as_i64(), Some(1 << 40));
        assert_eq!(
            PropValue::new(PropTag::new(1, PropType::I32), [1, 2]).as_i32(),
            None
        );
        assert_eq!(PropValue::string(1, "x").as_str().as_deref(), Some("x"));
    }
}
