//! A drive over an SMB server while others change its share's files (see `model.rs`).
#![cfg(target_os = "linux")]

#[path = "model.rs"]
mod model;
