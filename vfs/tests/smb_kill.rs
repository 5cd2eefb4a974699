//! A process that is killed while it writes to a drive over an SMB server (see `kill.rs`).
#![cfg(target_os = "linux")]

#[path = "kill.rs"]
mod kill;
