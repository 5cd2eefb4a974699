//! The bytes of a segment: its header and its frames, as the head of [`super`] lays them out.

use super::record::{MetaRecord, Record};

const MAGIC: [u8; 8] = *b"PSTSYNCJ";
/// Length of a segment's header.
pub(super) const HEADER: u64 = 64;
/// Length of a frame's header, in segments of this version.
pub(super) const FRAME: u64 = 24;
/// The same in segments of versions 1 and 2: they say neither what is durable nor whose they are.
const FRAME_V2: u64 = 16;
/// The first version whose frames are sealed with a nonce of their segment.
const SEALED: u32 = 3;
/// Bound on a frame read back, so that a damaged length cannot ask for more.
const MAX_BODY: u64 = 4 << 20;

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub version: u32,
    pub seq: u64,
    pub first: u64,
    pub durable: u64,
    /// Random, of this segment alone; 0 before version 3.
    pub nonce: u64,
}

impl Head {
    pub fn encode(&self) -> [u8; HEADER as usize] {
        let mut out = [0; HEADER as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = out.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        put(0, &MAGIC);
        put(8, &self.version.to_le_bytes());
        put(16, &self.seq.to_le_bytes());
        put(24, &self.first.to_le_bytes());
        put(32, &self.durable.to_le_bytes());
        put(40, &self.nonce.to_le_bytes());
        let crc = crc32fast::hash(&out);
        if let Some(to) = out.get_mut(12..16) {
            to.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// `None`: not a header this program wrote (torn, or of a spare).
    pub fn decode(bytes: &[u8], seq: u64) -> Option<Self> {
        let bytes: &[u8; HEADER as usize] = bytes.get(..HEADER as usize)?.try_into().ok()?;
        let head = Head {
            version: u32_at(bytes, 8)?,
            seq: u64_at(bytes, 16)?,
            first: u64_at(bytes, 24)?,
            durable: u64_at(bytes, 32)?,
            nonce: u64_at(bytes, 40)?,
        };
        (head.encode() == *bytes && head.seq == seq && head.first > 0).then_some(head)
    }

    /// A header of which one bit was flipped, as it was.
    pub fn mend(mut bytes: [u8; HEADER as usize], seq: u64) -> Option<Self> {
        (0..HEADER as usize * 8).find_map(|bit| {
            let flip = |bytes: &mut [u8]| {
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            };
            flip(&mut bytes);
            let found = Self::decode(&bytes, seq);
            flip(&mut bytes);
            found
        })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What a frame is sealed with, beside its body: its segment, its place in it, its number, and what was
/// durable when it was made.
pub(super) struct Seal {
    pub nonce: u64,
    pub pos: u64,
    pub lsn: u64,
    pub durable: u64,
}

impl Seal {
    fn checksum(&self, body: &[u8]) -> u32 {
        let len = body.len() as u64;
        let mut fields = [0; 40];
        let all = [self.nonce, self.pos, self.lsn, self.durable, len];
        for (to, from) in fields.chunks_exact_mut(8).zip(all) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let mut h = crc32fast::Hasher::new();
        h.update(&fields);
        h.update(body);
        h.finalize()
    }

    /// Fills in the frame's header.
    pub fn apply(&self, frame: &mut [u8]) {
        let Some((head, body)) = frame.split_at_mut_checked(FRAME as usize) else {
            return;
        };
        let crc = self.checksum(body);
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let fields = len
            .to_le_bytes()
            .into_iter()
            .chain(crc.to_le_bytes())
            .chain(self.lsn.to_le_bytes())
            .chain(self.durable.to_le_bytes());
        for (to, from) in head.iter_mut().zip(fields) {
            *to = from;
        }
    }
}

fn checksum_v2(seq: u64, lsn: u64, body: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&seq.to_le_bytes());
    h.update(&lsn.to_le_bytes());
    h.update(&(body.len() as u64).to_le_bytes());
    h.update(body);
    h.finalize()
}

/// A record as it lies in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub pos: u64,
    pub lsn: u64,
    /// All through this LSN was durable when the record was made.
    pub durable: u64,
    pub body: &'a [u8],
    /// Where the next one begins.
    pub end: u64,
}

/// The frames of a segment, in order, up to the first that is not whole.
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    head: Head,
    /// Number and place of the next.
    pub lsn: u64,
    pub pos: u64,
}

impl<'a> Frames<'a> {
    pub fn new(bytes: &'a [u8], head: &Head) -> Self {
        Self {
            bytes,
            head: *head,
            lsn: head.first,
            pos: HEADER,
        }
    }

    /// Goes on behind a frame that is not whole, at the next one that is: of this segment, in this
    /// life of it, and of a later number (which the nonce tells). `None`: there is none, and before
    /// version 3 it cannot be known.
    pub fn look_past(&mut self) -> Option<Frame<'a>> {
        if self.head.version < SEALED {
            return None;
        }
        let end = self.bytes.len() as u64;
        // Each takes some bytes, so numbers cannot have run further than this.
        let most = self.lsn + (end.saturating_sub(self.pos)) / FRAME;
        let mut at = self.pos;
        while at + FRAME < end {
            if let Some(found) = frame_at(self.bytes, at, &self.head, self.lsn + 1..=most) {
                (self.lsn, self.pos) = (found.lsn + 1, found.end);
                return Some(found);
            }
            at += 8;
        }
        None
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = frame_at(self.bytes, self.pos, &self.head, self.lsn..=self.lsn)?;
        (self.lsn, self.pos) = (found.lsn + 1, found.end);
        Some(found)
    }
}

/// The frame at `pos`, if it is whole and its number is one of these.
fn frame_at<'a>(
    bytes: &'a [u8],
    pos: u64,
    head: &Head,
    lsns: std::ops::RangeInclusive<u64>,
) -> Option<Frame<'a>> {
    let frame = bytes.get(usize::try_from(pos).ok()?..)?;
    let len = u64::from(u32_at(frame, 0)?);
    let lsn = u64_at(frame, 8)?;
    if len == 0 || len > MAX_BODY || !lsns.contains(&lsn) {
        return None;
    }
    let sealed = head.version >= SEALED;
    let begin = if sealed { FRAME } else { FRAME_V2 };
    let body = frame.get(begin as usize..usize::try_from(begin + len).ok()?)?;
    let durable = if sealed { u64_at(frame, 16)? } else { 0 };
    let crc = if sealed {
        let seal = Seal {
            nonce: head.nonce,
            pos,
            lsn,
            durable,
        };
        seal.checksum(body)
    } else {
        checksum_v2(head.seq, lsn, body)
    };
    (u32_at(frame, 4)? == crc).then(|| Frame {
        pos,
        lsn,
        durable,
        body,
        end: pos + (begin + len).next_multiple_of(8),
    })
}

/// What a frame that is not whole seems to be: a write of (file's node, offset, length).
pub(super) fn guess(bytes: &[u8], pos: u64) -> Option<(u64, u64, u64)> {
    let frame = bytes.get(usize::try_from(pos).ok()?..)?;
    let end = usize::try_from(FRAME + u64::from(u32_at(frame, 0)?)).ok()?;
    match Record::decode(frame.get(FRAME as usize..end)?) {
        Ok(Record::Write {
            file, offset, data, ..
        }) => Some((file, offset, data.len() as u64)),
        Ok(Record::Meta(MetaRecord::Direct {
            file, offset, len, ..
        })) => Some((file, offset, len)),
        _ => None,
    }
}
