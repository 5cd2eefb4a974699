//! A message with an attachment of gigabytes is written, read, copied to another file, and its
//! change made durable in a redo log, in bounded memory.
//!
//! `PSTSYNCD_STREAM_MB` sets the size of the attachment (96 without). The peak is the process's own,
//! so this test has a process to itself.

#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;

use pst::check::check;
use pst::ltp::{PropBag, PropValue, ValueData};
use pst::messaging::{AttachmentData, Transaction, tags};
use pst::ndb::EditOptions;
use pst::{Nid, Pst, create_empty_as};
use storage::{FileStorage, Payload, ReadAt, RedoLog, Scratch, ScratchDir, WriteSet};
use support::FORMATS;
use support::mail::{SEED, message};

/// Bytes that depend on where they are, and take no room.
struct Synthetic(u64);

impl Synthetic {
    fn fill(at: u64, buf: &mut [u8]) {
        for (at, byte) in (at..).zip(buf) {
            let word = (at / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (at >> 40);
            *byte = word.to_le_bytes()[at as usize % 8] ^ (word >> 29) as u8;
        }
    }
}

impl ReadAt for Synthetic {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.saturating_sub(offset).min(buf.len() as u64) as usize;
        Self::fill(offset, &mut buf[..n]);
        Ok(n)
    }
}

/// The most memory that the process had at once since the last reset, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn digest(value: &ValueData) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let read = value.for_each_chunk(|chunk| {
        hasher.update(chunk);
    });
    read.unwrap();
    hasher.finalize()
}

/// Makes the change durable beside the file and puts it in.
fn commit(dir: &Path, file: &Arc<FileStorage>, set: &WriteSet) {
    let path = dir.join("redo");
    RedoLog::create(&path, set, file, b"streaming").unwrap();
    set.commit(&**file).unwrap();
    RedoLog::drop_log(&path).unwrap();
}

fn store(path: &Path, format: &'static pst::ndb::Format) -> Arc<FileStorage> {
    let empty = create_empty_as(&SEED, format, pst::ndb::CryptMethod::Permute).unwrap();
    std::fs::write(path, empty).unwrap();
    Arc::new(FileStorage::open(path).unwrap())
}

fn attachment(pst: &Pst, nid: Nid) -> ValueData {
    let message = pst.message(nid).unwrap();
    message.attachments[0]
        .props
        .get(tags::ATTACH_DATA)
        .unwrap()
        .data
        .clone()
}

#[test]
fn an_attachment_of_gigabytes_takes_no_memory() {
    let megabytes: u64 = std::env::var("PSTSYNCD_STREAM_MB").map_or(96, |n| n.parse().unwrap());
    // An ANSI file ends below 2 GB.
    for format in FORMATS
        .into_iter()
        .filter(|f| f.bid_size == 8 || megabytes < 1_800)
    {
        let dir = tempfile::tempdir().unwrap();
        let scratch: Arc<dyn Scratch> = Arc::new(ScratchDir::new(dir.path()));
        let options = EditOptions {
            scratch: Some(scratch),
            memory: 4 << 20,
            max_size: None,
        };
        let first = store(&dir.path().join("first.pst"), format);
        let second = store(&dir.path().join("second.pst"), format);
        let len = megabytes << 20;
        let source: Arc<dyn ReadAt> = Arc::new(Synthetic(len));
        reset_peak();
        let before = peak();

        let mut tx = Transaction::begin_with(Arc::clone(&first) as _, &options).unwrap();
        let top = tx.ipm_subtree().unwrap();
        let mut mail = message(1, 100, true);
        let value = ValueData::Payload(Payload::stored(source, 0, len));
        let wanted = digest(&value);
        let mut props = PropBag::from_iter([
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::string(tags::ATTACH_LONG_FILENAME, "film.mkv"),
            PropValue::i32(tags::ATTACH_SIZE, i32::try_from(len).unwrap_or(i32::MAX)),
            PropValue::binary(tags::ATTACH_DATA, Vec::new()),
        ]);
        let mut data = props.get(tags::ATTACH_DATA).unwrap().clone();
        data.data = value;
        props.insert(data);
        mail.attachments.push(AttachmentData {
            props,
            embedded: None,
        });
        let nid = tx.add_message(top, None, &mail, false).unwrap();
        let set = tx.finish().unwrap();
        assert!(set.payload() > len);
        let worked_out = peak() - before;
        commit(dir.path(), &first, &set);
        drop((set, mail));
        let written = peak() - before;

        // Read it, and copy it to another file.
        reset_peak();
        let before = peak();
        let pst = Pst::open(Arc::clone(&first) as _).unwrap();
        let stored = attachment(&pst, nid);
        assert!(matches!(stored, ValueData::Stream { .. }));
        assert_eq!((stored.len(), digest(&stored)), (len, wanted));
        let read = peak() - before;
        let mut tx = Transaction::begin_with(Arc::clone(&second) as _, &options).unwrap();
        let top = tx.ipm_subtree().unwrap();
        let mail = pst.message(nid).unwrap();
        let mail = tx.import_message(&mail, pst.names()).unwrap();
        let copy = tx.add_message(top, None, &mail, false).unwrap();
        commit(dir.path(), &second, &tx.finish().unwrap());
        let copied = peak() - before;
        println!(
            "{}: {megabytes} MB: peaks of {} KiB to work out, {} to write, {} to read, {} to copy",
            format.name,
            worked_out >> 10,
            written >> 10,
            read >> 10,
            copied >> 10
        );
        let bound = (32 << 20) + len / 64;
        assert!(written < bound && copied < bound && read < (4 << 20));

        let pst = Pst::open(second as _).unwrap();
        assert_eq!(digest(&attachment(&pst, copy)), wanted);
        for pst in [&pst, &Pst::open(first as _).unwrap()] {
            let findings = check(pst.ndb());
            assert!(findings.is_empty(), "{findings:#?}");
        }
    }
}
