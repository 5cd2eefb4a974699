//! What an object said, in short: enough to see later what of it changed, without its old bytes.
//!
//! A [`Detail`] holds a short hash per property value and a digest per attachment. Held against the
//! [`Record`] of a later version ([`Edits::between`]) it tells which properties, recipients and
//! attachments differ. It is a hint and no proof: values with equal hashes pass for equal, so whoever
//! acts on it must check the result by the object's fingerprint.
//!
//! Encoded ([`Detail::encode`]), all numbers little-endian:
//!
//! ```text
//! version     1      1
//! level:
//!   count     2      properties, then for each
//!     key     2      a property id; 0xFFFF: a named property, 6 bytes of key number follow
//!     value   4      BLAKE3 of type and value, cut short
//!   list      8      BLAKE3 of the recipients, cut short
//!   count     2      attachments, then for each
//!     whole   8      BLAKE3 of the attachment, cut short
//!     count   2      properties as above
//!     inner   1      1: the level of its embedded message follows; 0: it has none
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::encode::{hash_prop, hash_recipients};
use super::record::{CanonKey, CanonProp, Record, RecordAttachment, canon_key};
use crate::derived::{ObjectKind, is_folder_count};
use crate::ltp::{NameMap, PropBag};
use crate::messaging::{MAX_EMBED_DEPTH, by_key, tags};

/// The most bytes of an encoded detail. An object with more to say has none, and is sent whole.
pub const MAX_DETAIL: usize = 16 << 10;
/// Version of the encoding and of the hashes in it.
const VERSION: u8 = 1;
/// Marks a key that is no plain property id.
const NAMED: u16 = 0xFFFF;

impl CanonKey {
    /// The key as a number that is the same in every file: a property id below 0x10000 as it is; a
    /// named property as 47 bits of BLAKE3 over GUID and name, with bit 47 set.
    #[must_use]
    pub fn number(&self) -> u64 {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd property\0");
        match self {
            Self::Id(id) | Self::Unmapped(id) => return u64::from(*id),
            Self::Number(guid, n) => {
                h.update(&[1]);
                h.update(guid);
                h.update(&n.to_le_bytes());
            }
            Self::Text(guid, s) => {
                h.update(&[2]);
                h.update(guid);
                h.update(s);
            }
        }
        (cut(&h) & (NAMED_BIT - 1)) | NAMED_BIT
    }
}

const NAMED_BIT: u64 = 1 << 47;

/// The first eight bytes of a hash.
fn cut(h: &blake3::Hasher) -> u64 {
    let mut out = [0; 8];
    h.finalize_xof().fill(&mut out);
    u64::from_le_bytes(out)
}

type Values = BTreeMap<u64, u32>;

/// One version of an object, in short.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Detail {
    props: Values,
    recipients: u64,
    attachments: Vec<AttachmentDetail>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct AttachmentDetail {
    whole: u64,
    props: Values,
    message: Option<Box<Detail>>,
}

impl Detail {
    /// The detail of a folder or a message.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            props: values(&record.props, record.kind == ObjectKind::Folder),
            recipients: recipients(record),
            attachments: record.attachments.iter().map(attachment).collect(),
        }
    }

    /// The bytes above; `None` for more than [`MAX_DETAIL`].
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = vec![VERSION];
        self.write(&mut out)?;
        (out.len() <= MAX_DETAIL).then_some(out)
    }

    /// Reads what [`Detail::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, mut rest) = bytes.split_first()?;
        if *version != VERSION || bytes.len() > MAX_DETAIL {
            return None;
        }
        let detail = Self::read(&mut rest, 0)?;
        rest.is_empty().then_some(detail)
    }

    fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        write_values(&self.props, out)?;
        out.extend_from_slice(&self.recipients.to_le_bytes());
        out.extend_from_slice(&u16::try_from(self.attachments.len()).ok()?.to_le_bytes());
        for a in &self.attachments {
            out.extend_from_slice(&a.whole.to_le_bytes());
            write_values(&a.props, out)?;
            out.push(u8::from(a.message.is_some()));
            if let Some(message) = &a.message {
                message.write(out)?;
            }
            if out.len() > MAX_DETAIL {
                return None;
            }
        }
        Some(())
    }

    fn read(rest: &mut &[u8], depth: usize) -> Option<Self> {
        if depth > MAX_EMBED_DEPTH {
            return None;
        }
        let mut detail = Self {
            props: read_values(rest)?,
            recipients: u64::from_le_bytes(take(rest)?),
            attachments: Vec::new(),
        };
        for _ in 0..u16::from_le_bytes(take(rest)?) {
            detail.attachments.push(AttachmentDetail {
                whole: u64::from_le_bytes(take(rest)?),
                props: read_values(rest)?,
                message: match take(rest)? {
                    [0] => None,
                    [1] => Some(Box::new(Self::read(rest, depth + 1)?)),
                    _ => return None,
                },
            });
        }
        Some(detail)
    }
}

fn values(props: &[CanonProp], folder: bool) -> Values {
    props
        .iter()
        .filter(|p| !(folder && matches!(p.key, CanonKey::Id(id) if is_folder_count(id))))
        .map(|p| (p.key.number(), value(p)))
        .collect()
}

fn value(p: &CanonProp) -> u32 {
    let mut h = blake3::Hasher::new();
    hash_prop(&mut h, p);
    u32::try_from(cut(&h) & u64::from(u32::MAX)).unwrap_or_default()
}

fn recipients(record: &Record) -> u64 {
    let mut h = blake3::Hasher::new();
    hash_recipients(&mut h, record);
    cut(&h)
}

fn attachment(a: &RecordAttachment) -> AttachmentDetail {
    AttachmentDetail {
        whole: whole(a),
        props: values(&a.props, false),
        message: a.message.as_deref().map(|m| Box::new(Detail::of(m))),
    }
}

fn whole(a: &RecordAttachment) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = a.fingerprint();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn write_values(values: &Values, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&u16::try_from(values.len()).ok()?.to_le_bytes());
    for (key, value) in values {
        match u16::try_from(*key) {
            Ok(id) if id != NAMED => out.extend_from_slice(&id.to_le_bytes()),
            _ => {
                out.extend_from_slice(&NAMED.to_le_bytes());
                out.extend_from_slice(key.to_le_bytes().get(..6)?);
            }
        }
        out.extend_from_slice(&value.to_le_bytes());
    }
    Some(())
}

fn read_values(rest: &mut &[u8]) -> Option<Values> {
    let mut values = Values::new();
    for _ in 0..u16::from_le_bytes(take(rest)?) {
        let key = match u16::from_le_bytes(take(rest)?) {
            NAMED => {
                let [a, b, c, d, e, f] = take(rest)?;
                u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
            }
            id => u64::from(id),
        };
        values.insert(key, u32::from_le_bytes(take(rest)?));
    }
    Some(values)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// What became of a folder, a message or an embedded message since its detail was taken.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Edits {
    /// Properties that are new or have another value.
    pub set: BTreeSet<CanonKey>,
    /// Properties that are gone, by [`CanonKey::number`].
    pub removed: Vec<u64>,
    /// Whether the list of recipients differs.
    pub recipients: bool,
    /// What each attachment is now, in order; `None` if they are as they were.
    pub attachments: Option<Vec<AttachmentEdit>>,
}

/// What an attachment of the later version is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentEdit {
    /// The attachment that was at this index.
    Kept(usize),
    /// One that was not there.
    New,
    /// The attachment that was at this index, with some properties changed.
    Edited {
        /// Its index before.
        before: usize,
        /// Properties that are new or have another value.
        set: BTreeSet<CanonKey>,
        /// Properties that are gone, by [`CanonKey::number`].
        removed: Vec<u64>,
        /// What became of its embedded message; `None` if it has none, or it is as it was.
        message: Option<Box<Edits>>,
    },
}

impl Edits {
    /// What changed from `before` to `after`.
    #[must_use]
    pub fn between(before: &Detail, after: &Record) -> Self {
        let now = Detail::of(after);
        Self::of(before, &now, after)
    }

    fn of(before: &Detail, now: &Detail, after: &Record) -> Self {
        let (set, removed) = changed(&before.props, &now.props, &after.props);
        Self {
            set,
            removed,
            recipients: before.recipients != now.recipients,
            attachments: attachments(before, now, after),
        }
    }

    /// Of a bag's properties those that are in `set`. `names` is the name map of the bag's file.
    #[must_use]
    pub fn pick(set: &BTreeSet<CanonKey>, props: &PropBag, names: &NameMap) -> PropBag {
        by_key(props, names)
            .into_iter()
            .filter(|(key, _)| set.contains(key))
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// Takes the properties out of a bag that `removed` names, under every id that has the name.
    pub fn strip(removed: &[u64], props: &mut PropBag, names: &NameMap) {
        let gone: Vec<u16> = props
            .iter()
            .map(|v| v.tag.id())
            .filter(|id| removed.contains(&canon_key(*id, names).number()))
            .collect();
        for id in gone {
            props.remove(id);
        }
    }
}

fn changed(before: &Values, now: &Values, props: &[CanonProp]) -> (BTreeSet<CanonKey>, Vec<u64>) {
    let differs = |p: &&CanonProp| {
        let key = p.key.number();
        now.get(&key)
            .is_some_and(|value| before.get(&key) != Some(value))
    };
    let set = props
        .iter()
        .filter(differs)
        .map(|p| p.key.clone())
        .collect();
    let removed = before.keys().filter(|k| !now.contains_key(k)).copied();
    (set, removed.collect())
}

/// Finds the attachments of before among those of now: first the same, then those with the same data,
/// then embedded messages in the same place.
fn attachments(before: &Detail, now: &Detail, after: &Record) -> Option<Vec<AttachmentEdit>> {
    let same = before.attachments.len() == now.attachments.len()
        && before
            .attachments
            .iter()
            .zip(&now.attachments)
            .all(|(a, b)| a.whole == b.whole);
    if same {
        return None;
    }
    let mut free: BTreeSet<usize> = (0..before.attachments.len()).collect();
    let mut out: Vec<AttachmentEdit> = vec![AttachmentEdit::New; now.attachments.len()];
    type Alike = fn(&AttachmentDetail, &AttachmentDetail) -> bool;
    let rounds: [(Alike, bool); 3] = [
        (|a, b| a.whole == b.whole, false),
        (
            |a, b| a.message.is_none() && b.message.is_none() && same_data(a, b),
            true,
        ),
        (
            |a, b| a.message.is_some() && b.message.is_some() && same_method(a, b),
            true,
        ),
    ];
    for (alike, edited) in rounds {
        for ((slot, now), record) in out.iter_mut().zip(&now.attachments).zip(&after.attachments) {
            if *slot != AttachmentEdit::New {
                continue;
            }
            let found = free
                .iter()
                .filter_map(|i| before.attachments.get(*i).map(|b| (*i, b)))
                .find(|(_, b)| alike(b, now));
            let Some((index, was)) = found else {
                continue;
            };
            free.remove(&index);
            *slot = if edited {
                edit(index, was, now, record)
            } else {
                AttachmentEdit::Kept(index)
            };
        }
    }
    Some(out)
}

/// Whether both have the same PidTagAttachDataBinary: what is long in an attachment.
fn same_data(a: &AttachmentDetail, b: &AttachmentDetail) -> bool {
    let key = u64::from(tags::ATTACH_DATA);
    a.props.contains_key(&key) && a.props.get(&key) == b.props.get(&key) && same_method(a, b)
}

/// Whether both say in the same way where their content is. An attachment that does not is another
/// one: PidTagAttachMethod is never patched.
fn same_method(a: &AttachmentDetail, b: &AttachmentDetail) -> bool {
    let key = u64::from(tags::ATTACH_METHOD);
    a.props.get(&key) == b.props.get(&key)
}

fn edit(
    before: usize,
    was: &AttachmentDetail,
    now: &AttachmentDetail,
    record: &RecordAttachment,
) -> AttachmentEdit {
    let (set, removed) = changed(&was.props, &now.props, &record.props);
    let message = match (&was.message, &now.message, &record.message) {
        (Some(was), Some(now), Some(record)) if was != now => {
            Some(Box::new(Edits::of(was, now, record)))
        }
        _ => None,
    };
    AttachmentEdit::Edited {
        before,
        set,
        removed,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltp::PropValue;
    use crate::messaging::{AttachmentData, MessageData};

    fn message(subject: &str, files: &[(&str, &[u8])]) -> MessageData {
        let file = |(name, data): &(&str, &[u8])| AttachmentData {
            props: PropBag::from_iter([
                PropValue::string(tags::ATTACH_LONG_FILENAME, name),
                PropValue::binary(tags::ATTACH_DATA, *data),
            ]),
            embedded: None,
        };
        MessageData {
            props: PropBag::from_iter([PropValue::string(tags::SUBJECT, subject)]),
            recipients: vec![PropBag::from_iter([PropValue::string(0x3001, "Ann")])],
            attachments: files.iter().map(file).collect(),
        }
    }

    fn record(data: &MessageData) -> Record {
        Record::message(data, false, &NameMap::default()).unwrap()
    }

    fn edits(before: &MessageData, after: &MessageData) -> Edits {
        Edits::between(&Detail::of(&record(before)), &record(after))
    }

    /// Kept details must stay readable, and mean the same: the hashes are part of the version.
    const GOLDEN: &str = "010200370093a6e209ffff05000000008004030201da428404bebace9f0200a94ea390cd66\
        207b020001379335216f073754b1fad700fdd4bfd9d5b7ad130000010100370044c2ab93da428404bebace9f0000";

    #[test]
    fn a_detail_has_these_bytes() {
        let mut data = message("a", &[("b", b"c")]);
        data.attachments.push(AttachmentData {
            props: PropBag::new(),
            embedded: Some(Box::new(message("inner", &[]))),
        });
        let mut detail = Detail::of(&record(&data));
        detail.props.insert((1 << 47) | 5, 0x0102_0304);
        let bytes = detail.encode().unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert_eq!(Detail::decode(&bytes), Some(detail));
        for len in 0..bytes.len() {
            assert_eq!(Detail::decode(&bytes[..len]), None, "cut at {len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Detail::decode(&longer), None);
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(Detail::decode(&other), None);
    }

    #[test]
    fn too_much_to_say_is_no_detail() {
        let files: Vec<(String, Vec<u8>)> =
            (0..2000).map(|i| (format!("file {i}"), vec![1])).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, d)| (&**n, &**d)).collect();
        assert_eq!(Detail::of(&record(&message("many", &files))).encode(), None);
        let bomb = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF];
        assert_eq!(Detail::decode(&bomb), None);
    }

    #[test]
    fn nesting_is_bounded() {
        // Level after level, each with one attachment that holds the next.
        let mut bytes = vec![1];
        for _ in 0..1000 {
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
        assert!(bytes.len() > 1000 && Detail::decode(&bytes).is_none());
    }

    #[test]
    fn edits_name_what_changed() {
        let before = message("a", &[("1", b"one"), ("2", b"two"), ("3", b"three")]);
        assert_eq!(edits(&before, &before), Edits::default());

        let mut after = before.clone();
        after.props = PropBag::from_iter([PropValue::string(0x0070, "topic")]);
        let found = edits(&before, &after);
        assert_eq!(found.set, [CanonKey::Id(0x0070)].into_iter().collect());
        assert_eq!(found.removed, [0x37]);
        assert!(!found.recipients && found.attachments.is_none());

        let mut after = before.clone();
        after.recipients.clear();
        assert!(edits(&before, &after).recipients);

        // One gone, one renamed, two swapped, one new.
        let after = message("a", &[("3", b"three"), ("two", b"two"), ("4", b"four")]);
        let Some(pieces) = edits(&before, &after).attachments else {
            panic!("attachments differ");
        };
        assert_eq!(pieces[0], AttachmentEdit::Kept(2));
        assert!(
            matches!(&pieces[1], AttachmentEdit::Edited { before: 1, set, .. }
                if set.iter().eq([&CanonKey::Id(tags::ATTACH_LONG_FILENAME)])),
            "{pieces:?}"
        );
        assert_eq!(pieces[2], AttachmentEdit::New);
    }
}
