//! The package: a change list and its carrier as one sequence of bytes, format version 2.
//!
//! ```text
//! offset  size  field
//! 0       4     magic "PSTC"
//! 4       1     format version (2)
//! 5       1     apply version
//! 6       1     pattern (2)
//! 7       1     zero
//! 8       4     length of the list, bytes, little-endian
//! 12      8     length of the carrier's image, bytes, little-endian; 0: nothing is carried
//! 20      n     one zstd frame: list, then image; the pattern is its prefix
//! 20+n    32    BLAKE3 of everything before
//! ```
//!
//! The carrier is a whole PST that other readers open. It travels as what differs from the *pattern*, a
//! carrier that is part of this program (`patterns/`): zstd finds what is equal, wherever it lies, and
//! a change of one subject costs a few hundred bytes. A pattern is never changed; a better one gets a
//! new number. docs/CHANGE-LIST.md describes all of it, [`v1`] reads packages of version 1.

mod carrier;
mod pattern;
mod v1;

use std::io::{self, Read, Write};

pub use carrier::{Carrier, Extent};
pub(crate) use pattern::skeleton;

use crate::change_list::Change;
use crate::error::{Result, SyncError};
use carrier::Folder;

const MAGIC: &[u8; 4] = b"PSTC";
const VERSION: u8 = 2;
const HEADER: usize = 20;
const DIGEST: usize = 32;

/// The most bytes of a package that are accepted: a message with its attachments must fit.
pub const MAX_PACKAGE: usize = 1 << 30;
/// The most bytes that a carrier may unfold to.
pub const MAX_CARRIER: u64 = 2 << 30;
/// The most bytes of an encoded list.
pub const MAX_LIST: usize = 256 << 20;
/// The most bytes that a package may unpack to: carrier and list.
pub const MAX_CONTENT: u64 = MAX_CARRIER + MAX_LIST as u64;
/// The rules by which this version writes change lists (DESIGN R6). It applies those before it too.
pub const APPLY_VERSION: u8 = 2;
/// The largest zstd window that is accepted, as a power of two (64 MiB).
const MAX_WINDOW_LOG: u32 = 26;
/// A good trade: higher levels take ten times as long for a byte or two.
const LEVEL: i32 = 9;
/// Bytes that are read or written at once.
const PIECE: usize = 64 << 10;

/// A change list with its carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The rules to apply it by.
    pub apply_version: u8,
    /// The ordered work.
    pub changes: Vec<Change>,
    /// The objects that it adds or updates.
    pub carrier: Carrier,
}

/// A package whose list is not decoded yet: the outer layer of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The rules to apply it by.
    pub apply_version: u8,
    /// The encoded list: bincode (legacy configuration) of the changes.
    pub list: Vec<u8>,
    /// The carrier.
    pub carrier: Carrier,
}

impl Package {
    /// The package as bytes, in the format above.
    ///
    /// # Errors
    /// [`SyncError::Package`] if it is larger than [`MAX_PACKAGE`], or its carrier cannot be read.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let list = bincode::encode_to_vec(&self.changes, bincode::config::legacy())
            .map_err(|e| SyncError::package("list", e.to_string()))?;
        Envelope {
            apply_version: self.apply_version,
            list,
            carrier: self.carrier.clone(),
        }
        .seal()
    }

    /// Reads a package from outside, of this format version or of version 1.
    ///
    /// # Errors
    /// [`SyncError::Package`] naming the field that is not acceptable.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_within(bytes, MAX_CONTENT)
    }

    /// As [`Package::decode`], of a package that unpacks to at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Package::decode`].
    pub fn decode_within(bytes: &[u8], limit: u64) -> Result<Self> {
        if bytes.starts_with(MAGIC) && bytes.get(4) == Some(&v1::VERSION) {
            return v1::decode(bytes);
        }
        Envelope::open_within(bytes, limit)?.package()
    }
}

impl Envelope {
    /// The envelope as bytes.
    ///
    /// # Errors
    /// [`SyncError::Package`] if it is larger than [`MAX_PACKAGE`], or the carrier cannot be read.
    pub fn seal(&self) -> Result<Vec<u8>> {
        let limit = |len: u64| {
            let detail = format!("{len} bytes; the limit is {MAX_PACKAGE}");
            Err(SyncError::package("length", detail))
        };
        let image = self.carrier.len();
        let list_len = match u32::try_from(self.list.len()) {
            Ok(len) if self.list.len() <= MAX_LIST => len,
            _ => return limit(self.list.len() as u64),
        };
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.apply_version, pattern::CURRENT, 0]);
        out.extend_from_slice(&list_len.to_le_bytes());
        out.extend_from_slice(&image.to_le_bytes());
        let failed = |e: io::Error| SyncError::package("frame", e.to_string());
        let mut out = self.squeeze(out, image).map_err(failed)?;
        if out.len() + DIGEST > MAX_PACKAGE {
            return limit(out.len() as u64);
        }
        let digest = blake3::hash(&out);
        out.extend_from_slice(digest.as_bytes());
        Ok(out)
    }

    /// Decodes the list.
    ///
    /// # Errors
    /// [`SyncError::Package`] for bytes that are not one list, or more.
    pub fn package(self) -> Result<Package> {
        let config = bincode::config::legacy().with_limit::<MAX_LIST>();
        let (changes, used) = bincode::decode_from_slice(&self.list, config)
            .map_err(|e| SyncError::package("list", e.to_string()))?;
        if used != self.list.len() {
            return Err(SyncError::package("list", "trailing bytes"));
        }
        Ok(Package {
            apply_version: self.apply_version,
            changes,
            carrier: self.carrier,
        })
    }

    fn squeeze(&self, out: Vec<u8>, image: u64) -> io::Result<Vec<u8>> {
        let prefix = pattern::prefix()?;
        let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(out, LEVEL, &prefix)?;
        encoder.include_checksum(false)?;
        encoder.include_contentsize(false)?;
        encoder.set_pledged_src_size(Some(self.list.len() as u64 + image))?;
        encoder.write_all(&self.list)?;
        let source = self.carrier.image()?;
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < image {
            let len = usize::try_from(image - at).unwrap_or(PIECE).min(PIECE);
            let piece = piece.get_mut(..len).unwrap_or_default();
            source.read_exact_at(at, piece)?;
            encoder.write_all(piece)?;
            at += len as u64;
        }
        encoder.finish()
    }

    /// Reads an envelope of this format version from outside. What it unpacks to is bounded by
    /// [`MAX_LIST`] and [`MAX_CARRIER`], and takes memory only where it differs from the pattern and
    /// from zeros.
    ///
    /// # Errors
    /// [`SyncError::Package`] naming the field that is not acceptable.
    pub fn open(bytes: &[u8]) -> Result<Self> {
        Self::open_within(bytes, MAX_CONTENT)
    }

    /// As [`Envelope::open`], of one that unpacks to at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Envelope::open`].
    pub fn open_within(bytes: &[u8], limit: u64) -> Result<Self> {
        let (signed, digest) = bytes
            .split_last_chunk::<DIGEST>()
            .ok_or_else(|| SyncError::package("length", "too short"))?;
        let (head, frame) = signed
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| SyncError::package("length", "too short"))?;
        let [
            m0,
            m1,
            m2,
            m3,
            version,
            apply_version,
            pattern,
            zero,
            lengths @ ..,
        ] = *head;
        if [m0, m1, m2, m3] != *MAGIC {
            return Err(SyncError::package(
                "magic",
                "this is no pstsyncd change list",
            ));
        }
        if version != VERSION {
            return Err(SyncError::package(
                "version",
                format!("{version}; this version reads 1 and {VERSION}"),
            ));
        }
        if bytes.len() > MAX_PACKAGE {
            return Err(SyncError::package(
                "length",
                format!("{} bytes", bytes.len()),
            ));
        }
        if blake3::hash(signed) != *digest {
            return Err(SyncError::package(
                "digest",
                "the bytes were damaged on the way",
            ));
        }
        if pattern != pattern::CURRENT || zero != 0 {
            let detail = format!("pattern {pattern}, reserved {zero}");
            return Err(SyncError::package("pattern", detail));
        }
        let [a, b, c, d, image @ ..] = lengths;
        let list = u32::from_le_bytes([a, b, c, d]) as usize;
        let image = u64::from_le_bytes(image);
        if list > MAX_LIST || list as u64 > limit {
            return Err(SyncError::package("list", format!("{list} bytes")));
        }
        if image > MAX_CARRIER || (list as u64).saturating_add(image) > limit {
            let limit = limit.min(MAX_CARRIER);
            let detail = format!("{image} bytes beside a list of {list}; the limit is {limit}");
            return Err(SyncError::package("carrier", detail));
        }
        let (list, carrier) = unsqueeze(frame, list, image)
            .map_err(|e| SyncError::package("frame", e.to_string()))?;
        Ok(Self {
            apply_version,
            list,
            carrier,
        })
    }
}

fn unsqueeze(frame: &[u8], list: usize, image: u64) -> io::Result<(Vec<u8>, Carrier)> {
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early");
    let prefix = pattern::prefix()?;
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(frame, &prefix)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    let mut head = Vec::new();
    (&mut decoder).take(list as u64).read_to_end(&mut head)?;
    if head.len() != list {
        return Err(short());
    }
    let mut fold = Folder::new()?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < image {
        let len = usize::try_from(image - at).unwrap_or(PIECE).min(PIECE);
        let piece = piece.get_mut(..len).unwrap_or_default();
        decoder.read_exact(piece)?;
        fold.push(piece);
        at += len as u64;
    }
    if decoder.read(&mut [0])? != 0 {
        return Err(io::Error::other("it unpacks to more than it says"));
    }
    if !decoder.finish().is_empty() {
        return Err(io::Error::other("bytes follow it"));
    }
    Ok((head, fold.finish()))
}
