//! Two drives over an SMB server that takes encrypted connections only (see `two_drives.rs`).
#![cfg(target_os = "linux")]

#[path = "two_drives.rs"]
mod two_drives;
