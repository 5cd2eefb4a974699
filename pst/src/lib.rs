//! A PST engine: reads and safely edits Personal Storage Table files ([MS-PST]).

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod check;
mod error;
pub mod ltp;
pub mod ndb;
mod types;

pub use error::{PstError, Result};
pub use types::{Bid, Bref, Nid, NidType};
