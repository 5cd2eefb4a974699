//! The messaging layer ([MS-PST] 2.4): store, folders, messages, recipients, attachments.
//!
//! Reading goes through [`Pst`]; writing through [`Transaction`], which keeps the node, the tables
//! that copy from it, the counts and the search queue together. Values are the raw little-endian
//! bytes of the file; nothing is lost by reading and writing an object back.

mod read;
pub mod tags;
mod value;

pub use read::{
    AttachmentData, FolderData, FolderEntry, Index, MAX_EMBED_DEPTH, MAX_MESSAGE_PARTS,
    MessageData, MessageEntry, Pst,
};
pub(crate) use read::{not_found, read_message};
pub use value::{for_each_chunk, value_len};
