//! The sync engine: compiles what changed in a container into a change list of mail objects with
//! a carrier, applies it at a destination, and believes only what the destination re-read.

mod agent_destination;
mod apply;
mod base;
mod change_list;
pub mod client;
mod compare;
mod compile;
mod database;
mod delivery;
mod destination;
mod details;
mod done;
mod engine;
mod error;
pub mod hex;
pub mod kv;
mod outbox;
mod package;
mod patch;
pub mod pin;
mod plan;
mod raw;
pub mod record;
mod rows;
pub mod wire;

pub use agent_destination::AgentDestination;
pub use apply::{Applied, apply, apply_with, as_current};
pub use change_list::{Action, Change, Counts, Fingerprint, Level, ObjectKind, Patch, Piece};
pub use compare::{compare, expected};
pub use compile::{Details, compile, compile_with, details_from};
pub use database::{Drift, Head, StoredDetail, SyncDatabase, Synced, SyncedRow};
pub use destination::{ApplyAnswer, ApplyJob, ApplyOutcome, Destination, RemoteInventory};
pub use engine::{Options, Report, Sequencer, Source, Verdict, sync_container};
pub use error::{Result, SyncError};
pub use package::{
    APPLY_VERSION, Carrier, Envelope, Extent, MAX_CARRIER, MAX_CONTENT, MAX_LIST, MAX_PACKAGE,
    Package,
};
pub use rows::{decode_inventory, encode_inventory};
