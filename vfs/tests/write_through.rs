//! Writes that are passed through and copied into the cache while the share is at work: what the share did not
//! take is not believed here.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io;

use common::{Rig, open_rw, pattern, read_all};
use vfs::share::fault::Fault;
use vfs::{Error, State};

/// Refused: the bytes past the end must not show when the file grows over them, nor those before it.
#[test]
fn a_refused_write_leaves_nothing_in_the_copy() {
    let rig = Rig::new();
    let mut content = pattern(100_000, 3);
    rig.put("m.pst", &content);
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let h = open_rw(&d, "m.pst");
    rig.faults.all(Fault::Fail(io::ErrorKind::PermissionDenied));
    d.write(h, 99_990, &[0xAA; 20]).unwrap_err();
    d.write(h, 100_000, &[0xBB; 50]).unwrap_err();
    rig.faults.heal();
    // The gap between the end and this is zeros.
    d.write(h, 100_100, b"grown").unwrap();
    d.fsync(h).unwrap();
    content.resize(100_100, 0);
    content.extend_from_slice(b"grown");
    assert_eq!(rig.get("m.pst"), content, "the share");
    d.fill().unwrap();
    d.set_state(State::Offline);
    assert_eq!(d.read(h, 0, 200_000).unwrap(), content, "the copy");
    drop(d);
    let d = rig.drive(State::Offline);
    assert_eq!(read_all(&d, "m.pst").unwrap(), content, "after a kill");
}

/// No answer, and the cache has not the whole file: the program gets the error, and whether the share took the
/// bytes is asked of the share.
#[test]
fn bytes_in_doubt_of_a_file_in_parts_are_the_shares() {
    for fault in [
        Fault::Fail(io::ErrorKind::ConnectionReset),
        Fault::FailAfter(io::ErrorKind::ConnectionReset),
    ] {
        let rig = Rig::new();
        rig.put("m.pst", &pattern(300_000, 5));
        let d = rig.drive(State::Online);
        let h = open_rw(&d, "m.pst");
        d.write(h, 0, &[1; 8192]).unwrap();
        d.fsync(h).unwrap();
        rig.faults.all(fault);
        let failed = d.write(h, 4096, &[2; 4096]);
        assert!(matches!(failed, Err(Error::Link(_))), "{failed:?}");
        rig.faults.heal();
        d.write(h, 200_000, b"later").unwrap();
        d.fsync(h).unwrap();
        let there = rig.get("m.pst");
        d.fill().unwrap();
        d.set_state(State::Offline);
        assert!(d.read(h, 0, 400_000).unwrap() == there, "{fault:?}");
    }
}

/// The same with the whole file here: the write is done again in the cache, whatever the copy held by then.
#[test]
fn a_write_without_an_answer_goes_on_in_the_cache() {
    for (offset, fault) in [
        (99_990, Fault::Fail(io::ErrorKind::ConnectionReset)),
        (99_990, Fault::FailAfter(io::ErrorKind::ConnectionReset)),
        (50_000, Fault::Fail(io::ErrorKind::ConnectionReset)),
        (100_050, Fault::FailAfter(io::ErrorKind::ConnectionReset)),
    ] {
        let rig = Rig::new();
        let mut content = pattern(100_000, 7);
        rig.put("m.pst", &content);
        let d = rig.drive(State::Online);
        d.fill().unwrap();
        let h = open_rw(&d, "m.pst");
        rig.faults.all(fault);
        d.write(h, offset, &[0xCC; 40]).unwrap();
        rig.faults.heal();
        let at = usize::try_from(offset).unwrap();
        content.resize(content.len().max(at + 40), 0);
        content[at..at + 40].fill(0xCC);
        assert_eq!(d.read(h, 0, 200_000).unwrap(), content, "{fault:?}");
        d.fsync(h).unwrap();
        drop(d);
        let d = rig.drive(State::Offline);
        assert_eq!(read_all(&d, "m.pst").unwrap(), content, "{fault:?}");
    }
}
