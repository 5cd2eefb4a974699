//! What the journal records.
//!
//! One byte says the kind; a write's payload follows raw, everything else as bincode (legacy
//! configuration, bounded, trailing bytes refused). Kinds are never renumbered; a new meaning gets
//! a new number.

use bincode::{Decode, Encode};

use crate::share::{Attr, SetAttr, Stamp};

/// A node of the tree as the journal and the metadata keep it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NodeRecord {
    /// Number of the node, never reused.
    pub id: u64,
    /// The directory it lies in.
    pub parent: u64,
    /// Its name there.
    pub name: String,
    /// Attributes as last known.
    pub attr: Attr,
    /// Where it lies on the share (directory and name), if it does.
    pub share: Option<(u64, String)>,
    /// Whether it is part of the drive's tree (else: removed here, still on the share).
    pub linked: bool,
    /// For a directory: its children are all known.
    pub known: bool,
    /// For a symbolic link: its target.
    pub target: Option<String>,
}

/// A change of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum TreeOp {
    /// A file or directory is made.
    Create(NodeRecord),
    /// A file, link or empty directory is removed.
    Remove {
        /// The node.
        id: u64,
    },
    /// A node moves, perhaps replacing another.
    Rename {
        /// The node.
        id: u64,
        /// Its new directory.
        parent: u64,
        /// Its new name.
        name: String,
        /// What was there.
        replaced: Option<u64>,
    },
    /// Attributes change.
    SetAttr {
        /// The node.
        id: u64,
        /// What changes.
        set: SetAttr,
        /// Change time, nanoseconds since 1970.
        ctime: i64,
    },
    /// An extended attribute is set or removed.
    SetXattr {
        /// The node.
        id: u64,
        /// Name, with its `user.`.
        name: String,
        /// Value; `None`: removed.
        value: Option<Vec<u8>>,
    },
    /// A file gets another name.
    Link {
        /// The node of its content.
        file: u64,
        /// The node that the name becomes which it has so far, if it had just one.
        first: Option<u64>,
        /// The node of the new name.
        id: u64,
        /// The directory.
        parent: u64,
        /// The name there.
        name: String,
    },
}

impl TreeOp {
    /// Directory and name that it makes, if it makes one.
    #[must_use]
    pub fn makes(&self) -> Option<(u64, &str)> {
        match self {
            TreeOp::Create(r) => Some((r.parent, &r.name)),
            TreeOp::Rename { parent, name, .. } | TreeOp::Link { parent, name, .. } => {
                Some((*parent, name))
            }
            TreeOp::Remove { .. } | TreeOp::SetAttr { .. } | TreeOp::SetXattr { .. } => None,
        }
    }

    /// The node that it changes (one that a rename replaces apart); of a link, the new name's.
    #[must_use]
    pub fn node(&self) -> u64 {
        match self {
            TreeOp::Create(record) => record.id,
            TreeOp::Remove { id }
            | TreeOp::Rename { id, .. }
            | TreeOp::Link { id, .. }
            | TreeOp::SetAttr { id, .. }
            | TreeOp::SetXattr { id, .. } => *id,
        }
    }
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// Bytes written to a file that is served from the cache.
    Write {
        /// The file's node.
        file: u64,
        /// Offset in bytes.
        offset: u64,
        /// Time of the write, nanoseconds since 1970.
        time: i64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Everything else.
    Meta(MetaRecord),
    /// All records through this one are durable. Written before the cache files are touched.
    Synced {
        /// LSN.
        through: u64,
    },
}

/// Records without payload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum MetaRecord {
    /// An append written directly to the cache file.
    Direct {
        /// The file's node.
        file: u64,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// CRC-32 of the bytes.
        crc: u32,
        /// Time of the write, nanoseconds since 1970.
        time: i64,
    },
    /// A new length of a file that is served from the cache.
    Truncate {
        /// The file's node.
        file: u64,
        /// Length in bytes.
        size: u64,
        /// Time, nanoseconds since 1970.
        time: i64,
    },
    /// Bytes about to be written to the share (pass-through).
    OnlineWrite {
        /// The file's node.
        file: u64,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether the cache file gets them too.
        teed: bool,
    },
    /// A new length about to be set on the share (pass-through).
    OnlineTruncate {
        /// The file's node.
        file: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The share and the cache file hold, durably, all that was passed through.
    OnlineFlushed {
        /// The file's node.
        file: u64,
        /// The share's file after the flush.
        stamp: Stamp,
    },
    /// As [`MetaRecord::FlipAt`], until version 3 of the journal.
    Flip {
        /// The file's node.
        file: u64,
    },
    /// The cache file begins anew as an (empty) copy of the share's file.
    Attach {
        /// The file's node.
        file: u64,
        /// The share's file.
        stamp: Stamp,
        /// Number of this physical life.
        lineage: u64,
    },
    /// These bytes were fetched from the share and are durable in the cache file.
    Fetched {
        /// The file's node.
        file: u64,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// A node met on the share and used.
    Adopt(NodeRecord),
    /// A change of the tree; `pending` if the share has yet to see it.
    Tree {
        /// The change.
        op: TreeOp,
        /// Whether it waits for the share.
        pending: bool,
    },
    /// The pending change recorded at this LSN has been brought to the share, or dropped.
    TreeDone {
        /// LSN of the change.
        lsn: u64,
    },
    /// A node's place on the share changed without a change here.
    Placed {
        /// The node.
        id: u64,
        /// Directory and name on the share.
        share: Option<(u64, String)>,
        /// What was found or made there, where it was looked at.
        attr: Option<Attr>,
    },
    /// What was written so far belongs to the epoch that is this record's LSN.
    Epoch {
        /// The file's node.
        file: u64,
    },
    /// A destination holds everything through the epoch.
    MarkSynced {
        /// The file's node.
        file: u64,
        /// The epoch.
        epoch: u64,
        /// Whether share and cache now hold the same objects in different bytes.
        detached: bool,
    },
    /// A change list is about to be sent under this number.
    Sequence {
        /// The file's node.
        file: u64,
        /// The number.
        seq: u64,
        /// Digest of the change list.
        digest: [u8; 32],
    },
    /// The change list under this number was answered.
    Settled {
        /// The file's node.
        file: u64,
        /// The number.
        seq: u64,
    },
    /// Dirty bytes through the epoch are about to be written to the share's file.
    PushBegin {
        /// The file's node.
        file: u64,
        /// The epoch.
        epoch: u64,
        /// Identity of the share's file.
        file_id: u64,
    },
    /// They are there, durably; the share's file now looks so.
    PushDone {
        /// The file's node.
        file: u64,
        /// The epoch.
        epoch: u64,
        /// The share's file.
        stamp: Stamp,
    },
    /// The share was asked for the next pending change of the tree and did not answer.
    Unsure,
    /// The pending changes through this LSN are about to be brought to the share.
    Tried {
        /// LSN of the last of them.
        through: u64,
    },
    /// Pending changes became fewer, or others, to the same end.
    Optimised {
        /// LSNs of those that are gone.
        gone: Vec<u64>,
        /// What others are now.
        instead: Vec<(u64, TreeOp)>,
    },
    /// The cache gave up its (clean) bytes of the file.
    Evicted {
        /// The file's node.
        file: u64,
    },
    /// The cache file is a copy of another file of the share from here on: of these bytes, of which those
    /// that differ lie beside it.
    Renewed {
        /// The file's node.
        file: u64,
        /// The share's file.
        stamp: Stamp,
        /// Number of this physical life.
        lineage: u64,
        /// What the cache has of it.
        valid: Vec<(u64, u64)>,
    },
    /// The file, wholly cached, left the share for the cache under open handles.
    FlipAt {
        /// The file's node.
        file: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// What of ours the share has there is not known (pass-through): the file reaches as far, and the cache has
    /// nothing of it.
    Doubted {
        /// The file's node.
        file: u64,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
}

const WRITE: u8 = 1;
const META: u8 = 2;
const SYNCED: u8 = 3;

/// bincode as the project uses it for stored records.
pub(crate) fn codec() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<{ 1 << 30 }>()
}

impl<'a> Record<'a> {
    /// Appends the encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Write {
                file,
                offset,
                time,
                data,
            } => {
                out.push(WRITE);
                out.extend_from_slice(&file.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&time.to_le_bytes());
                out.extend_from_slice(data);
            }
            Record::Meta(meta) => {
                out.push(META);
                // Encoding into a Vec cannot fail: no type here refuses, and the limit is far.
                let _ = bincode::encode_into_std_write(meta, out, codec());
            }
            Record::Synced { through } => {
                out.push(SYNCED);
                out.extend_from_slice(&through.to_le_bytes());
            }
        }
    }

    /// Reads an encoding back.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &'a [u8]) -> Result<Self, String> {
        let (&kind, rest) = body.split_first().ok_or("empty record")?;
        match kind {
            WRITE => {
                let (file, rest) = rest.split_first_chunk::<8>().ok_or("short write record")?;
                let (offset, rest) = rest.split_first_chunk::<8>().ok_or("short write record")?;
                let (time, data) = rest.split_first_chunk::<8>().ok_or("short write record")?;
                let offset = u64::from_le_bytes(*offset);
                offset
                    .checked_add(data.len() as u64)
                    .ok_or("write beyond the address space")?;
                Ok(Record::Write {
                    file: u64::from_le_bytes(*file),
                    offset,
                    time: i64::from_le_bytes(*time),
                    data,
                })
            }
            META => {
                let (meta, used) = bincode::decode_from_slice(rest, codec())
                    .map_err(|e| format!("record does not decode: {e}"))?;
                if used != rest.len() {
                    return Err("record with trailing bytes".to_owned());
                }
                Ok(Record::Meta(meta))
            }
            SYNCED => {
                let through = rest.try_into().map_err(|_| "short mark")?;
                Ok(Record::Synced {
                    through: u64::from_le_bytes(through),
                })
            }
            other => Err(format!("unknown kind of record {other}")),
        }
    }
}
