//! The sync engine: inventory, change list, carrier, wire format and client.

pub mod client;
pub mod hex;
pub mod kv;
pub mod pin;
pub mod record;
pub mod wire;
