//! Somebody between client and server who wants an older dialect, or no encryption, and gets no
//! connection (MS-SMB2 3.2.5.5). Every way of changing the negotiation is tried on every dialect.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use common::proxy::{Proxy, Way};
use common::smbd::{Options, Smbd};
use vfs::share::smb::{Retry, SmbError, SmbShare};
use vfs::{Drive, Share, State};

/// MS-SMB2 2.2.3, 2.2.4: behind the header of 64 bytes.
const COUNT: usize = 64 + 2;
const CAPABILITIES: usize = 64 + 8;
const DIALECTS: usize = 64 + 36;
const ANSWERED_MODE: usize = 64 + 2;
const ANSWERED_SERVER: usize = 64 + 8;
const ANSWERED_CAPABILITIES: usize = 64 + 24;
const ENCRYPTION: u8 = 0x40;

/// Offers nothing above `most`.
fn offer(message: &mut [u8], most: u16) {
    let count = usize::from(message[COUNT]);
    for i in 0..count {
        let at = DIALECTS + 2 * i;
        let dialect = u16::from_le_bytes([message[at], message[at + 1]]);
        if dialect > most {
            message[at..at + 2].copy_from_slice(&most.to_le_bytes());
        }
    }
}

fn only_2_1(message: &mut [u8], to_server: bool) {
    if to_server {
        offer(message, 0x0210);
    }
}

fn only_3_0(message: &mut [u8], to_server: bool) {
    if to_server {
        offer(message, 0x0300);
    }
}

fn only_3_0_2(message: &mut [u8], to_server: bool) {
    if to_server {
        offer(message, 0x0302);
    }
}

fn no_encryption_asked(message: &mut [u8], to_server: bool) {
    if to_server {
        message[CAPABILITIES] &= !ENCRYPTION;
    }
}

fn no_encryption_offered(message: &mut [u8], to_server: bool) {
    if !to_server {
        message[ANSWERED_CAPABILITIES] &= !ENCRYPTION;
    }
}

fn no_signing_wanted(message: &mut [u8], to_server: bool) {
    if !to_server {
        message[ANSWERED_MODE] &= !2;
    }
}

fn another_server(message: &mut [u8], to_server: bool) {
    if !to_server {
        message[ANSWERED_SERVER] ^= 1;
    }
}

fn server(root: &std::path::Path, most: &str) -> Option<Smbd> {
    let global = format!("server max protocol = {most}");
    let options = Options {
        global: &global,
        ..Options::default()
    };
    Smbd::start(root, options)
}

fn through(server: &Smbd, way: Way) -> (Proxy, SmbShare) {
    let proxy = Proxy::new(way);
    let mut config = server.config("share");
    config.address.port = proxy.port();
    (proxy, SmbShare::new(config).unwrap())
}

#[test]
fn a_changed_negotiation_gets_no_connection() {
    type Change = fn(&mut [u8], bool);
    let lower: [(&str, Change); 3] = [
        ("only 2.1", only_2_1),
        ("only 3.0", only_3_0),
        ("only 3.0.2", only_3_0_2),
    ];
    let others: [(&str, Change); 4] = [
        ("no encryption asked", no_encryption_asked),
        ("no encryption offered", no_encryption_offered),
        ("no signing wanted", no_signing_wanted),
        ("another server", another_server),
    ];
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), b"as it is").unwrap();
    for (most, below) in [
        ("SMB2_10", 0),
        ("SMB3_00", 1),
        ("SMB3_02", 2),
        ("SMB3_11", 3),
    ] {
        let Some(server) = server(root.path(), most) else {
            return;
        };
        // With nobody between, every dialect is fine.
        let (_proxy, share) = through(&server, Way::To(server.port()));
        share.connect().unwrap_or_else(|e| panic!("{most}: {e}"));
        let mut eight = [0; 8];
        share
            .open("a", false)
            .unwrap()
            .read_at(0, &mut eight)
            .unwrap();
        assert_eq!(&eight, b"as it is", "{most}");
        // That bit of the answer is only there where it says something: 2.1 does not encrypt, and 3.1.1
        // names its ciphers elsewhere.
        let others = others.iter().filter(|(name, _)| {
            *name != "no encryption offered" || ["SMB3_00", "SMB3_02"].contains(&most)
        });
        for (name, change) in lower.iter().take(below).chain(others) {
            let (_proxy, share) = through(&server, Way::Changed(server.port(), *change));
            let e = match share.connect() {
                Ok(()) => panic!("{most}, {name}: connected"),
                Err(e) => e,
            };
            let said = SmbError::of(&e).unwrap();
            assert_ne!(said.retry, Retry::Never, "{most}, {name}: {e}");
            if most != "SMB3_11" {
                assert!(
                    e.to_string().contains("somebody between"),
                    "{most}, {name}: {e}"
                );
            }
        }
    }
}

/// What the user sees: no file of such a connection, whatever the stranger would show.
#[test]
fn a_drive_that_is_downgraded_stays_away_from_the_share() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("m.bin"), b"mail").unwrap();
    let Some(server) = server(root.path(), "SMB3_02") else {
        return;
    };
    let (proxy, share) = through(&server, Way::Changed(server.port(), only_2_1));
    let rig = common::Rig::bare();
    let mut config = rig.config(State::Online);
    config.share = std::sync::Arc::new(share);
    let drive = Drive::open(config).unwrap();
    let looked = drive.lookup(vfs::ROOT, "m.bin");
    assert!(looked.is_err(), "the share was used: {looked:?}");
    drop((drive, proxy));
}
