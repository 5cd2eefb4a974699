//! What the structural check says about real files.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::check::{Severity, check, check_ltp};
use pst::ndb::Ndb;
use support::{bytes, readable_files, shared};

#[test]
fn real_files_have_no_errors() {
    let Some(dir) = shared() else { return };
    for name in readable_files() {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let ndb = Ndb::open(bytes(data)).unwrap();
        let findings = check(&ndb);
        for f in &findings {
            println!("{name}: {f}");
        }
        assert!(
            findings.iter().all(|f| f.severity < Severity::Error),
            "{name}"
        );
        if name == "enron.pst" {
            let leak = findings.iter().find(|f| f.code == "leaked").unwrap();
            assert!(leak.detail.starts_with("11506 slots"), "{leak}");
        }
    }
}

#[test]
fn real_files_hold_what_their_nodes_should() {
    let Some(dir) = shared() else { return };
    for name in readable_files() {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let ndb = Arc::new(Ndb::open(bytes(data)).unwrap());
        let findings = check_ltp(&ndb);
        for f in &findings {
            println!("{name}: {f}");
        }
        assert!(
            findings.iter().all(|f| f.severity < Severity::Error),
            "{name}"
        );
        // Its writer forgets cFree, which makes strict readers reject every message.
        let odd = findings.iter().any(|f| f.code == "heap-free-count");
        assert_eq!(odd, name == "enron.pst", "{name}");
    }
}
