//! A PST engine: reads and safely edits Personal Storage Table files ([MS-PST]).

mod error;
mod types;

pub use error::{PstError, Result};
pub use types::{Bid, Bref, Nid, NidType};
