//! Failover of a drive over an SMB server at the other end of a link, which goes down without a word, or
//! whose server is killed and started again, signed and encrypted: see `vanish/mod.rs`.
//!
//! `VFS_FAILOVER_TIMES` sets how often (4 by default, each way), `VFS_FAILOVER_BUDGET` the stall budget in
//! milliseconds (1,000; a drive's usual one is 2,000, which leaves a busy machine no second to spare).
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/net/mod.rs"]
mod net;
#[path = "vanish/mod.rs"]
mod vanish;

use std::time::Duration;

use common::smbd::{Host, Smbd};
use common::{Rig, fuse_missing, skip};
use net::{Net, SERVER};
use vanish::{Outage, times, vanishing};

fn far(net: &Net, sealed: bool) -> Option<Rig> {
    let host = Host {
        address: SERVER,
        enter: net.beside_server(),
    };
    let mut rig = Rig::far(host, sealed)?;
    let set = std::env::var("VFS_FAILOVER_BUDGET").ok();
    rig.budget = Duration::from_millis(set.map_or(1000, |ms| ms.parse().unwrap()));
    Some(rig)
}

/// Packets go nowhere, and nobody says so.
struct Silent<'a>(&'a Net);

impl Outage for Silent<'_> {
    fn begin(&mut self, _: u64) {
        self.0.down();
    }

    fn end(&mut self) {
        self.0.up();
    }
}

/// The server dies, and the kernel says so to whoever asks it.
struct Abrupt(Smbd);

impl Outage for Abrupt {
    fn begin(&mut self, _: u64) {
        self.0.kill();
    }

    fn end(&mut self) {
        assert!(self.0.run(), "the server does not come back");
    }
}

fn falls_silent(sealed: bool) {
    let Some(net) = Net::new().filter(|_| !fuse_missing()) else {
        return;
    };
    let _inside = net.enter();
    let Some(rig) = far(&net, sealed) else {
        return;
    };
    let times = times(4);
    let flips = vanishing(&rig, times, &mut Silent(&net));
    assert!(flips >= times / 2, "{flips} flips of {times}");
}

fn dies(sealed: bool) {
    let Some(net) = Net::new().filter(|_| !fuse_missing()) else {
        return;
    };
    let _inside = net.enter();
    let Some(mut rig) = far(&net, sealed) else {
        return;
    };
    let times = times(4);
    let server = rig.server.take().unwrap();
    let flips = vanishing(&rig, times, &mut Abrupt(server));
    assert!(flips >= times / 2, "{flips} flips of {times}");
}

#[test]
fn programs_work_on_while_the_link_falls_silent_and_returns() {
    falls_silent(false);
}

#[test]
fn programs_work_on_while_the_server_dies_and_returns() {
    dies(false);
}

#[test]
fn encrypted_programs_work_on_while_the_link_falls_silent_and_returns() {
    falls_silent(true);
}

#[test]
fn encrypted_programs_work_on_while_the_server_dies_and_returns() {
    dies(true);
}
