//! The drive's own tests, with an SMB server for the share. (Those that fail one call after the other
//! are not among them: they would start hundreds of servers, and test the drive, not the share.)
#![allow(clippy::unwrap_used)]
// Each of them brings the common part along.
#![allow(clippy::duplicate_mod)]

#[path = "namespace.rs"]
mod namespace;
#[path = "rules.rs"]
mod rules;
#[path = "two_drives.rs"]
mod two_drives;
