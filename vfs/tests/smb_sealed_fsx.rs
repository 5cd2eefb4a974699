//! fsx on a mounted drive, with an SMB server for the share that takes encrypted connections only (see
//! `fsx.rs`).
#![cfg(target_os = "linux")]

#[path = "fsx.rs"]
mod fsx;
