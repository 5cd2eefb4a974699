//! Failover of a drive over a directory, whose calls fail or hang on purpose: see `vanish/mod.rs`.
//!
//! `VFS_FAILOVER_TIMES` sets how often the share vanishes (50 by default).
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;
#[path = "vanish/mod.rs"]
mod vanish;

use std::io::ErrorKind;
use std::time::Duration;

use common::{Rig, fuse_missing};
use vanish::{Outage, times, vanishing};
use vfs::share::fault::{Fault, FaultControl};

struct Faults(FaultControl);

impl Outage for Faults {
    fn begin(&mut self, n: u64) {
        let errors = [
            ErrorKind::TimedOut,
            ErrorKind::ConnectionReset,
            ErrorKind::HostUnreachable,
        ];
        self.0.all(match n % 2 {
            0 => Fault::Hang,
            _ => Fault::Fail(errors[(n / 2) as usize % errors.len()]),
        });
    }

    fn end(&mut self) {
        self.0.heal();
    }
}

#[test]
fn programs_work_on_while_the_share_vanishes_and_returns() {
    if fuse_missing() {
        return;
    }
    let times = times(50);
    let mut rig = Rig::new();
    rig.budget = Duration::from_millis(200);
    let flips = vanishing(&rig, times, &mut Faults(rig.faults.clone()));
    // Where the file was just being opened anew there is nothing to flip.
    assert!(flips >= times / 2, "{flips} flips of {times}");
}

#[test]
fn with_the_usual_stall_budget_too() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    vanishing(&rig, 4, &mut Faults(rig.faults.clone()));
}
