//! The bytes of a segment: its header and its frames, as the head of [`super`] lays them out.

const MAGIC: [u8; 8] = *b"PSTSYNCJ";
/// Length of a segment's header.
pub(super) const HEADER: u64 = 64;
/// Length of a frame's header.
pub(super) const FRAME: u64 = 16;
/// Bound on a frame read back, so that a damaged length cannot ask for more.
const MAX_BODY: u64 = 4 << 20;

/// A segment's header.
pub(super) struct Head {
    pub version: u32,
    pub seq: u64,
    pub first: u64,
    pub durable: u64,
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
        };
        (head.encode() == *bytes && head.seq == seq && head.first > 0).then_some(head)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn checksum(seq: u64, lsn: u64, body: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&seq.to_le_bytes());
    h.update(&lsn.to_le_bytes());
    h.update(&(body.len() as u64).to_le_bytes());
    h.update(body);
    h.finalize()
}

/// Fills in the frame's header.
pub(super) fn seal(frame: &mut [u8], seq: u64, lsn: u64) {
    let Some((head, body)) = frame.split_at_mut_checked(FRAME as usize) else {
        return;
    };
    let crc = checksum(seq, lsn, body);
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let fields = len
        .to_le_bytes()
        .into_iter()
        .chain(crc.to_le_bytes())
        .chain(lsn.to_le_bytes());
    for (to, from) in head.iter_mut().zip(fields) {
        *to = from;
    }
}

/// The frames of a segment: (position, body).
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    seq: u64,
    lsn: u64,
    pos: u64,
}

impl<'a> Frames<'a> {
    pub fn new(bytes: &'a [u8], head: &Head) -> Self {
        Self {
            bytes,
            seq: head.seq,
            lsn: head.first,
            pos: HEADER,
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.pos;
        let (body, step) = frame_at(self.bytes, at, self.seq, self.lsn)?;
        self.lsn += 1;
        self.pos += step;
        Some((at, body))
    }
}

/// The body of the frame at `pos` and the distance to the next, if it is record `lsn`.
pub(super) fn frame_at(bytes: &[u8], pos: u64, seq: u64, lsn: u64) -> Option<(&[u8], u64)> {
    let frame = bytes.get(usize::try_from(pos).ok()?..)?;
    let len = u64::from(u32_at(frame, 0)?);
    if len == 0 || len > MAX_BODY || u64_at(frame, 8)? != lsn {
        return None;
    }
    let body = frame.get(FRAME as usize..usize::try_from(FRAME + len).ok()?)?;
    (u32_at(frame, 4)? == checksum(seq, lsn, body))
        .then_some((body, (FRAME + len).next_multiple_of(8)))
}
