//! The redo log's bytes: pinned, and never misread when damaged.
#![allow(clippy::unwrap_used, reason = "a failing helper fails the test")]

use std::fs;

use storage::{Generation, Loaded, MemStorage, Outcome, Phase, RedoError, RedoLog, WriteSet};

const GOLDEN: &[u8] = include_bytes!("data/redo-v1.bin");
const BASE: &[u8] = b"0123456789";

fn change() -> WriteSet {
    WriteSet {
        base_len: 10,
        target_len: 14,
        phases: vec![
            Phase {
                name: "blocks".into(),
                writes: vec![(8, b"ABCD".to_vec().into())],
            },
            Phase {
                name: "h\u{e9}ad".into(),
                writes: vec![(0, b"xy".to_vec().into()), (1, vec![].into())],
            },
        ],
    }
}

fn generation(leaf: &[u8]) -> Generation {
    let mut text = b"pstsyncd generation 1\0".to_vec();
    text.extend_from_slice(&(leaf.len() as u64).to_le_bytes());
    text.extend_from_slice(blake3::hash(leaf).as_bytes());
    Generation {
        len: leaf.len() as u64,
        root: *blake3::hash(&text).as_bytes(),
    }
}

/// The file written out by hand from the layout comment, without the encoder.
fn by_hand() -> Vec<u8> {
    let target = b"xy234567ABCD\0\0";
    let mut f = b"pstsredo\x01\x10\0\0\x03\0\0\0".to_vec();
    f.extend_from_slice(&0u64.to_le_bytes()); // patched below
    for g in [generation(BASE), generation(target)] {
        f.extend_from_slice(&g.len.to_le_bytes());
        f.extend_from_slice(&g.root);
    }
    f.extend_from_slice(b"\x01\0\0\0\x02\0\0\0\x02\0\0\0\0\0\0\0");
    assert_eq!(f.len(), 120);
    f.extend_from_slice(b"who");
    f.extend_from_slice(&0u64.to_le_bytes());
    f.extend_from_slice(blake3::hash(BASE).as_bytes());
    f.extend_from_slice(blake3::hash(target).as_bytes());
    let extent = |f: &mut Vec<u8>, at: u64, bytes: &[u8]| {
        f.extend_from_slice(&at.to_le_bytes());
        f.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        f.extend_from_slice(bytes);
    };
    extent(&mut f, 0, b"01");
    extent(&mut f, 8, b"89");
    f.extend_from_slice(b"\x06\0blocks\x01\0\0\0");
    extent(&mut f, 8, b"ABCD");
    f.extend_from_slice(b"\x05\0h\xc3\xa9ad\x02\0\0\0");
    extent(&mut f, 0, b"xy");
    extent(&mut f, 1, b"");
    let len = f.len() as u64 + 32;
    f[16..24].copy_from_slice(&len.to_le_bytes());
    sealed(f)
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let sum = blake3::hash(&body);
    body.extend_from_slice(sum.as_bytes());
    body
}

fn load_bytes(bytes: &[u8]) -> Result<Loaded, RedoError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, bytes).unwrap();
    RedoLog::load(&path)
}

#[test]
fn the_format_is_pinned() {
    assert!(
        by_hand() == GOLDEN,
        "the layout comment and the pinned file differ"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    RedoLog::create(&path, &change(), &MemStorage::from(BASE), b"who").unwrap();
    assert!(
        fs::read(&path).unwrap() == GOLDEN,
        "the encoder left the pinned format"
    );
    let Loaded::Complete(log) = load_bytes(GOLDEN).unwrap() else {
        panic!("not complete")
    };
    assert_eq!((log.meta(), log.change()), (&b"who"[..], &change()));
    let mem = MemStorage::from(BASE);
    assert_eq!(log.recover(&mem).unwrap(), Outcome::Finished);
    assert_eq!(mem.to_vec(), b"xy234567ABCD\0\0");
}

#[test]
fn no_truncation_and_no_flipped_bit_reads_as_a_log() {
    for n in 0..GOLDEN.len() {
        let result = load_bytes(&GOLDEN[..n]);
        assert!(
            matches!(result, Err(RedoError::Damaged { .. })),
            "{n} bytes: {result:?}"
        );
    }
    for at in 0..GOLDEN.len() {
        for bit in 0..8 {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= 1 << bit;
            match load_bytes(&bytes) {
                Err(RedoError::Damaged { .. }) => {}
                Err(RedoError::Version(_)) if at == 8 => {}
                other => panic!("byte {at} bit {bit}: {other:?}"),
            }
        }
    }
    assert!(load_bytes(&[GOLDEN, b"\0"].concat()).is_err());
}

/// A log whose checksum is right but whose content lies: every byte of the body changed in turn.
/// It must be refused, or be a log that at worst finds the file foreign or leads it to a target
/// whose bytes the log itself names. It never panics.
#[test]
fn a_lying_log_is_refused_or_harmless() {
    let body = &GOLDEN[..GOLDEN.len() - 32];
    let mut refused = 0;
    for at in 9..body.len() {
        for value in [0u8, 1, 0x7f, 0xff] {
            let mut bytes = body.to_vec();
            if bytes[at] == value {
                continue;
            }
            bytes[at] = value;
            match load_bytes(&sealed(bytes)) {
                Ok(Loaded::Complete(log)) => {
                    let mem = MemStorage::from(BASE);
                    match log.recover(&mem).unwrap() {
                        Outcome::Foreign { .. } => assert_eq!(mem.to_vec(), BASE, "byte {at}"),
                        Outcome::Finished | Outcome::AlreadyDone => {
                            assert_eq!(mem.to_vec(), b"xy234567ABCD\0\0", "byte {at}");
                        }
                    }
                }
                Ok(other) => panic!("byte {at}: {other:?}"),
                Err(RedoError::Damaged { .. } | RedoError::TooLarge { .. }) => refused += 1,
                Err(other) => panic!("byte {at}: {other:?}"),
            }
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn a_newer_version_is_named_and_not_read() {
    let mut bytes = GOLDEN.to_vec();
    bytes[8] = 2;
    assert!(matches!(load_bytes(&bytes), Err(RedoError::Version(2))));
}

#[test]
fn absent_torn_complete_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mail.pst.redo");
    assert!(matches!(RedoLog::load(&path).unwrap(), Loaded::Absent));
    // Never got its final name: whatever it holds, the target was not touched.
    let temp = dir.path().join("mail.pst.redo.tmp");
    for bytes in [&b""[..], &GOLDEN[..77], GOLDEN] {
        fs::write(&temp, bytes).unwrap();
        assert!(matches!(RedoLog::load(&path).unwrap(), Loaded::Torn));
    }
    // Remains do not stand in the way of the next log, nor does it leave any.
    RedoLog::create(&path, &change(), &MemStorage::from(BASE), b"who").unwrap();
    assert!(!temp.exists());
    assert!(matches!(RedoLog::load(&path).unwrap(), Loaded::Complete(_)));
    fs::write(&temp, b"x").unwrap();
    RedoLog::drop_log(&path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(matches!(RedoLog::load(&path).unwrap(), Loaded::Absent));
    RedoLog::drop_log(&path).unwrap();
}

#[test]
fn an_unreachable_directory_is_an_error_and_not_absence() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let inside_a_file = dir.path().join("file/log");
    assert!(matches!(
        RedoLog::load(&inside_a_file),
        Err(RedoError::Io { .. })
    ));
}
