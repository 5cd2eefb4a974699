//! Every way to find a delta gives what two full inventories held against each other give: on random
//! edits, on a real writer's, on copies that were compacted, restored or copied over, and where blocks
//! were overwritten in place.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod ask;
mod edits;
mod lineage;
