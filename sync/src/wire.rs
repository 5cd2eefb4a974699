//! What travels between a client and an agent: HTTPS, HTTP/1.1, under `/v1`.
//!
//! | verb | body | answer |
//! |---|---|---|
//! | `GET /v1/health` | | [`HealthAnswer`] |
//! | `GET /v1/containers?path=P` | | [`ContainerAnswer`] |
//! | `GET /v1/inventory?path=P` | | [`InventoryAnswer`] |
//! | `POST /v1/apply` | [`ApplyRequest`] | [`ApplyAnswer`] |
//!
//! Bodies and answers are versioned records ([`crate::record`]); packages and inventories in them
//! are zstd frames. Errors are JSON ([`ErrorBody`]) with the HTTP status of their [`ErrorCode`].
//! Every request carries `Authorization: Bearer TOKEN`. `P` is percent-encoded ([`encode_path`]).
//!
//! An interrupted upload starts again from its beginning. Resuming fits in without a change of
//! these records: `PUT /v1/uploads/DIGEST?offset=N` stages pieces of a body under the digest of
//! the package, and `POST /v1/apply` then names the digest with an empty package.

use std::io::{self, Read};

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::hex;
use crate::record::{self, RecordError};

/// Version of all records on the wire.
pub const VERSION: u8 = 1;
/// The media type of records.
pub const RECORD_TYPE: &str = "application/x-pstsyncd-record";
/// The most bytes of one body; an agent may allow less ([`HealthAnswer::max_body`]).
pub const MAX_BODY: usize = 1 << 30;
/// The most bytes that a package or an inventory may unpack to.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// The most bytes of an error.
pub const MAX_ERROR: usize = 64 << 10;
/// The largest zstd window that is accepted, as a power of two (64 MiB).
const MAX_WINDOW_LOG: u32 = 26;
/// A good trade for links that need it: the window stays under [`MAX_WINDOW_LOG`].
const LEVEL: i32 = 9;
/// The longest path of a container, bytes.
const MAX_PATH: usize = 4096;
/// The longest part of a path, bytes.
const MAX_NAME: usize = 255;

/// What ends the name of the redo sidecar beside a container; such names are no containers.
pub const REDO_SUFFIX: &str = ".pstsyncd-redo";

/// Names a client: chosen at random when its journal is made.
pub type ClientId = [u8; 16];

/// Exact bytes of a container: length and BLAKE3 Merkle root (DESIGN 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Generation {
    /// Length, bytes.
    pub len: u64,
    /// Merkle root over 64 KiB leaves.
    #[serde(with = "hex::serde_32")]
    pub root: [u8; 32],
}

impl From<storage::Generation> for Generation {
    fn from(other: storage::Generation) -> Self {
        Self {
            len: other.len,
            root: other.root,
        }
    }
}

impl From<Generation> for storage::Generation {
    fn from(other: Generation) -> Self {
        Self {
            len: other.len,
            root: other.root,
        }
    }
}

/// Tells cheaply that a file was changed: a differing stamp means rehash (DESIGN 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Stamp {
    /// Length, bytes.
    pub len: u64,
    /// Change time, nanoseconds since 1970.
    pub changed_ns: i64,
    /// The file's number on its device.
    pub file_id: u64,
    /// The device.
    pub device: u64,
    /// BLAKE3 of the first 4 KiB, in which the PST header lies.
    pub header: [u8; 32],
}

/// Answer of `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HealthAnswer {
    /// Version of the agent program.
    pub version: String,
    /// The most bytes of a body that it takes.
    pub max_body: u64,
    /// The most bytes that a package may unpack to.
    pub max_package: u64,
}

/// Answer of `GET /v1/containers`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ContainerAnswer {
    /// The exact bytes now.
    pub generation: Generation,
    /// The stamp that they were read under.
    pub stamp: Stamp,
    /// Digest of the inventory.
    pub inventory_digest: [u8; 32],
    /// Per client, the last sequence that was applied.
    pub sequences: Vec<(ClientId, u64)>,
}

/// Answer of `GET /v1/inventory`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InventoryAnswer {
    /// The exact bytes that it was read from.
    pub generation: Generation,
    /// Digest of the inventory.
    pub digest: [u8; 32],
    /// The encoded rows, as a zstd frame.
    pub rows: Vec<u8>,
}

/// Body of `POST /v1/apply`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ApplyRequest {
    /// Who asks.
    pub client: ClientId,
    /// Path of the container beneath the agent's root, `/`-separated.
    pub container: String,
    /// Rises with every package of this client for this container.
    pub sequence: u64,
    /// BLAKE3 of the package, unpacked.
    pub digest: [u8; 32],
    /// The bytes that the package was made for; `None` if whatever is there will do.
    pub base: Option<Generation>,
    /// The inventory digest that must result where no object gets another NID.
    pub expected: [u8; 32],
    /// The package, as a zstd frame.
    pub package: Vec<u8>,
}

/// Answer of `POST /v1/apply`: what was re-read after it was durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ApplyAnswer {
    /// The sequence of the request.
    pub sequence: u64,
    /// The digest of the request.
    pub digest: [u8; 32],
    /// Digest of the inventory, from the re-read file.
    pub inventory_digest: [u8; 32],
    /// The exact bytes now.
    pub generation: Generation,
    /// Added objects that got another NID: (proposed, given).
    pub nid_map: Vec<(u32, u32)>,
    /// Bytes written to the container.
    pub bytes_written: u64,
    /// Applied before; everything else is as in the first answer.
    pub repeated: bool,
}

/// What went wrong, for programs. Each has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The token is missing or wrong.
    Unauthorized,
    /// No such verb.
    UnknownVerb,
    /// The body or the query does not decode.
    BadRequest,
    /// The path is not allowed.
    BadPath,
    /// There is no such container.
    NotFound,
    /// The body, or what it unpacks to, is over a limit.
    TooLarge,
    /// The body did not arrive in time.
    TooSlow,
    /// Too many requests at once.
    Overloaded,
    /// The agent is stopping.
    Stopping,
    /// The container is in use by another program; the change is deferred.
    InUse,
    /// The container does not hold the bytes that the package was made for.
    WrongBase,
    /// The sequence was used for another package, or is lower than the last one.
    SequenceUsed,
    /// The result would not have the expected inventory digest; nothing was written.
    NotExpected,
    /// The file is not a container that the agent can read.
    NotAContainer,
    /// The package cannot be applied to this container.
    PackageRefused,
    /// A redo sidecar beside the container fits no state of it; someone must look.
    NeedsAttention,
    /// No space left where the container lies; the container is unharmed.
    DiskFull,
    /// The file system failed; the container is valid, the work will be finished later.
    Storage,
    /// What was re-read is not what was written.
    NotVerified,
    /// Something failed that should not.
    Internal,
    /// A code of a newer agent.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::UnknownVerb | Self::NotFound => 404,
            Self::BadRequest | Self::BadPath => 400,
            Self::TooLarge => 413,
            Self::TooSlow => 408,
            Self::Overloaded | Self::Stopping => 503,
            Self::InUse => 423,
            Self::WrongBase | Self::SequenceUsed | Self::NeedsAttention => 409,
            Self::NotExpected | Self::NotAContainer | Self::PackageRefused => 422,
            Self::DiskFull => 507,
            Self::Storage | Self::NotVerified | Self::Internal | Self::Unknown => 500,
        }
    }

    /// Whether a package is refused for what it is: nothing was changed, and the same package will be
    /// refused again, where another one may not.
    #[must_use]
    pub const fn refuses_package(self) -> bool {
        matches!(
            self,
            Self::BadRequest | Self::TooLarge | Self::NotExpected | Self::PackageRefused
        )
    }

    /// Whether the same request may succeed later without anyone changing anything.
    #[must_use]
    pub const fn retry(self) -> bool {
        matches!(
            self,
            Self::TooSlow
                | Self::Overloaded
                | Self::Stopping
                | Self::InUse
                | Self::DiskFull
                | Self::Storage
        )
    }
}

/// The body of an error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// One clear sentence.
    pub message: String,
    /// The same request may succeed later.
    pub retry: bool,
    /// What to do next.
    pub next: String,
    /// With [`ErrorCode::WrongBase`] and [`ErrorCode::SequenceUsed`]: the bytes there now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// What a client needs to reach an agent: written by the agent as `client.json`, mode 0600.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// `https://NAME:PORT`.
    pub url: String,
    /// SHA-256 of the agent's CA certificate (DER).
    #[serde(with = "hex::serde_32")]
    pub ca_fingerprint: [u8; 32],
    /// The secret that the client is known by.
    pub token: String,
}

impl std::fmt::Debug for Invitation {
    /// Leaves the token out: it must not get into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation")
            .field("url", &self.url)
            .field("ca_fingerprint", &hex::encode(&self.ca_fingerprint))
            .finish_non_exhaustive()
    }
}

/// Why a container path is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path {0}")]
pub struct BadPath(&'static str);

/// Checks a container path: relative, `/`-separated, nothing that leads elsewhere.
///
/// # Errors
/// [`BadPath`] with the reason.
pub fn check_path(path: &str) -> Result<(), BadPath> {
    if path.is_empty() {
        return Err(BadPath("is empty"));
    }
    if path.len() > MAX_PATH {
        return Err(BadPath("is too long"));
    }
    if path.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(BadPath("holds a backslash or a control character"));
    }
    if path.starts_with('/') {
        return Err(BadPath("is not relative"));
    }
    for name in path.split('/') {
        if name.is_empty() {
            return Err(BadPath("has an empty part"));
        }
        if name == "." || name == ".." {
            return Err(BadPath("leads elsewhere with `.` or `..`"));
        }
        if name.len() > MAX_NAME {
            return Err(BadPath("has a name that is too long"));
        }
    }
    if path.ends_with(REDO_SUFFIX) {
        return Err(BadPath("names a redo sidecar"));
    }
    Ok(())
}

/// Percent-encodes a path for a query.
#[must_use]
pub fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode(&[byte]));
        }
    }
    out
}

/// The inverse of [`encode_path`]; `None` if it is no percent-encoded UTF-8.
#[must_use]
pub fn decode_path(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let value = (digit()? << 4) | digit()?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Encodes a record for the wire.
///
/// # Errors
/// [`RecordError::Payload`] if bincode refuses it.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, RecordError> {
    record::encode(VERSION, value)
}

/// Decodes a record from the wire.
///
/// # Errors
/// [`RecordError`] for anything that is not exactly one such record.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, RecordError> {
    record::decode::<T, MAX_BODY>(VERSION, bytes)
}

/// Packs bytes as one zstd frame with a checksum.
///
/// # Errors
/// Those of zstd (memory).
pub fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

/// Puts bytes that are compressed already into a zstd frame, with little effort.
///
/// # Errors
/// Those of zstd (memory).
pub fn frame(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, 1)
}

/// Why a frame does not unpack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// It unpacks to more than is allowed.
    #[error("unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// It is no zstd frame, is damaged, or needs too large a window.
    #[error("does not unpack: {0}")]
    Damaged(io::Error),
}

/// Unpacks zstd bytes to at most `limit` bytes, with a capped window. Memory grows with what is
/// really there, not with what the frame claims.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(bytes: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut decoder = zstd::Decoder::with_buffer(bytes).map_err(UnpackError::Damaged)?;
    decoder
        .window_log_max(MAX_WINDOW_LOG)
        .map_err(UnpackError::Damaged)?;
    let mut out = Vec::new();
    decoder
        .take(limit.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(UnpackError::Damaged)?;
    if out.len() as u64 > limit {
        return Err(UnpackError::TooLarge(limit));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for good in ["a.pst", "dir/Mail of Jörg.pst", "a..b/...pst", "x:y"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
            assert_eq!(decode_path(&encode_path(good)).as_deref(), Some(good));
        }
        for bad in [
            "",
            "/a",
            "a//b",
            "a/",
            "../a",
            "a/../b",
            ".",
            "a/./b",
            "a\0b",
            "a\\b",
            "a\nb",
            "a.pst.pstsyncd-redo",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        assert!(check_path(&"a".repeat(256)).is_err());
        assert!(check_path(&"a/".repeat(2049)).is_err());
        assert_eq!(decode_path("%c3%28"), None);
        assert_eq!(decode_path("a%2"), None);
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = pack(&vec![0; 8 << 20]).unwrap();
        assert!(bomb.len() < 4096);
        assert!(matches!(
            unpack(&bomb, 1 << 20),
            Err(UnpackError::TooLarge(_))
        ));
        assert_eq!(unpack(&bomb, 8 << 20).unwrap().len(), 8 << 20);
        assert!(matches!(
            unpack(&bomb[..bomb.len() - 1], 8 << 20),
            Err(UnpackError::Damaged(_))
        ));
    }

    #[test]
    fn a_window_over_the_cap_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        for i in 0..1u32 << 10 {
            io::Write::write_all(&mut encoder, &i.to_le_bytes().repeat(16)).unwrap();
        }
        let frame = encoder.finish().unwrap();
        assert!(matches!(
            unpack(&frame, 1 << 30),
            Err(UnpackError::Damaged(_))
        ));
    }

    /// The bytes of version 1: a change here is a new version of the wire.
    #[test]
    fn golden_apply_request() {
        let request = ApplyRequest {
            client: [1; 16],
            container: "a.pst".to_owned(),
            sequence: 7,
            digest: [2; 32],
            base: Some(Generation {
                len: 9,
                root: [3; 32],
            }),
            expected: [4; 32],
            package: vec![5, 6],
        };
        let mut payload = vec![1; 16];
        payload.extend([5, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend(b"a.pst");
        payload.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([2; 32]);
        payload.push(1);
        payload.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([3; 32]);
        payload.extend([4; 32]);
        payload.extend([2, 0, 0, 0, 0, 0, 0, 0, 5, 6]);
        let bytes = encode(&request).unwrap();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1..5], crc32fast::hash(&payload).to_le_bytes());
        assert_eq!(bytes[5..], payload);
        assert_eq!(decode::<ApplyRequest>(&bytes).unwrap(), request);
    }

    #[test]
    fn golden_apply_answer() {
        let answer = ApplyAnswer {
            sequence: 7,
            digest: [1; 32],
            inventory_digest: [2; 32],
            generation: Generation {
                len: 9,
                root: [3; 32],
            },
            nid_map: vec![(0x10, 0x20)],
            bytes_written: 512,
            repeated: true,
        };
        let mut payload = vec![7, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([1; 32]);
        payload.extend([2; 32]);
        payload.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([3; 32]);
        payload.extend([1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0]);
        payload.extend([0, 2, 0, 0, 0, 0, 0, 0, 1]);
        let bytes = encode(&answer).unwrap();
        assert_eq!(bytes[5..], payload);
        assert_eq!(decode::<ApplyAnswer>(&bytes).unwrap(), answer);
    }

    #[test]
    fn errors_as_json() {
        let body = ErrorBody {
            code: ErrorCode::WrongBase,
            message: "m".to_owned(),
            retry: false,
            next: "n".to_owned(),
            generation: Some(Generation {
                len: 1,
                root: [0xab; 32],
            }),
        };
        let json = serde_json::to_string(&body).unwrap();
        assert!(json.contains(r#""code":"wrong_base""#), "{json}");
        assert_eq!(serde_json::from_str::<ErrorBody>(&json).unwrap(), body);
        let newer = r#"{"code":"from_the_future","message":"","retry":true,"next":""}"#;
        assert_eq!(
            serde_json::from_str::<ErrorBody>(newer).unwrap().code,
            ErrorCode::Unknown
        );
    }
}
