//! The messaging layer ([MS-PST] 2.4): store, folders, messages, recipients, attachments.
//!
//! Reading goes through [`Pst`]; writing through [`Transaction`], which keeps the node, the tables
//! that copy from it, the counts and the search queue together. Values are the raw little-endian
//! bytes of the file; nothing is lost by reading and writing an object back.

mod build;
mod cells;
mod create;
mod names;
mod read;
pub mod schema;
mod search;
pub mod tags;
mod transaction;
mod value;

pub use create::{DELETED_ITEMS, IPM_SUBTREE, SEARCH_ROOT, create_empty, create_empty_as};
pub(crate) use names::by_key;
pub(crate) use read::not_found;
pub use read::{
    AttachmentData, FolderData, FolderEntry, Index, MAX_EMBED_DEPTH, MAX_MESSAGE_PARTS,
    MessageData, MessageEntry, Pst,
};
pub use transaction::Transaction;
pub use value::{for_each_chunk, value_len};
