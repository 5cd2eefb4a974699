//! The lists, tables and properties layer ([MS-PST] 2.3): what nodes hold.
//!
//! Readers open a node of a file or content that was just built ([`NodeSource`]); builders give
//! [`NodeContent`](crate::ndb::NodeContent) for a transaction to write. Values stay the raw bytes
//! that the file stores, so that reading and building again gives the same properties.

mod bag;
mod bth;
mod bth_edit;
mod build;
mod codepage;
mod heap;
mod heap_build;
mod heap_edit;
mod matrix_edit;
mod names;
mod names_edit;
mod node;
mod pc;
mod prop;
mod table;
mod table_edit;
mod table_patch;
mod text;

pub use bag::PropBag;
pub use bth::{BthEntry, BthHeader, build_bth, read_bth};
pub use build::{build_pc, insert_subnode};
pub use codepage::CodePage;
pub use heap::{ClientSig, Heap, Hid, Hnid, PageMap};
pub use heap_build::{HeapBuilder, MAX_ITEM};
pub use names::{Guid, NameKind, NameMap, PropName};
pub use names_edit::NameMapEdit;
pub use node::NodeSource;
pub use pc::PropertyContext;
pub use prop::{ObjectValue, PropTag, PropType, PropValue, ValueData};
pub use table::{Column, Layout, Row, TableContext, TableLookup};
pub use table_edit::{TableBuilder, TableEdit};
pub use table_patch::{RowChange, TablePatch};
pub use text::{Text, filetime_iso, utf16le};

pub(crate) use heap_build::{fill_level, header_size};
pub(crate) use names_edit::{NameAudit, audit_names};
