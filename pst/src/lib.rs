#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod canonical;
pub mod check;
pub mod derived;
pub mod dump;
mod error;
pub mod inventory;
pub mod ltp;
pub mod messaging;
pub mod ndb;
mod types;
mod verify;

pub use error::{PstError, Result};
pub use messaging::{Pst, create_empty, create_empty_as};
pub use types::{Bid, Bref, Nid, NidType};
pub use verify::{Moment, verify_written};
