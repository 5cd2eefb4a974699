//! A link of a test's own: two network namespaces, the client's and the server's, joined by a pair of
//! virtual Ethernet devices that the test can make slow, far, lossy or dead, and whose bytes it can
//! count. What happens on it is what happens on a real one: sockets hang, resets come late or never,
//! queues fill.
//!
//! - [`spaces`]: the namespaces, and how a thread or a program gets into one;
//! - [`wire`]: rate, loss, up and down, and the bytes that passed;
//! - [`delay`]: a round trip, by a proxy beside the server.
//!
//! Nothing of it is seen outside: the namespaces have no names, so that tests run beside each other,
//! and they end with the test's process however that ends. It needs root and the programs `unshare`,
//! `nsenter`, `ip`, `tc`, `nft` and `ethtool` (scripts/bootstrap.sh); without, [`Net::new`] gives `None`
//! and the test counts as skipped.
//!
//! Whoever includes this module has `skip` (tests/support/skip.rs) beside it.
#![allow(dead_code)] // Not every test needs all of it.

pub mod delay;
pub mod spaces;
pub mod wire;

pub use spaces::{Net, SERVER};
