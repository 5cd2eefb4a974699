//! fsx on a mounted drive, with an SMB server for the share (see `fsx.rs`).
#![cfg(target_os = "linux")]

#[path = "fsx.rs"]
mod fsx;
