//! Power goes at every single call in the middle of bringing everything to the share, with files of
//! which the cache has only parts: whatever the share has seen by then, programs still read every byte,
//! and the next attempt brings the rest over.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::pattern;
use vfs::disk::crash::CrashDisk;
use vfs::share::dir::DirShare;
use vfs::{Drive, DriveConfig, PushOutcome, ROOT, ReintegratedOutcome, SetAttr, State};

const SIZE: usize = 300_000;

fn open(share: &Path, disk: &CrashDisk) -> vfs::Result<Arc<Drive>> {
    let mut c = DriveConfig::new(Arc::new(DirShare::open(share).unwrap()), "unused");
    c.disk = Some(Arc::new(disk.clone()));
    c.state = State::Cached;
    c.background = false;
    c.attr_life = Duration::ZERO;
    Drive::open(c)
}

fn sync(d: &Drive) -> vfs::Result<()> {
    for done in d.reintegrate("d", "h")? {
        assert_eq!(done.outcome, ReintegratedOutcome::Done, "{done:?}");
    }
    for path in d.status().dirty_opaque {
        let pushed = d.push_opaque(&path, "d", "h")?;
        assert!(matches!(pushed, PushOutcome::Pushed(_)), "{pushed:?}");
    }
    Ok(())
}

fn write_at(d: &Drive, path: &str, offset: u64, data: &[u8]) {
    let h = common::open_rw(d, path);
    d.write(h, offset, data).unwrap();
    d.release(h).unwrap();
}

/// A change of files of which the cache has the first bytes only; the names afterwards.
type Change = fn(&Drive) -> Vec<(&'static str, Vec<u8>)>;

fn content(seed: u8, edits: &[(usize, &[u8])]) -> Vec<u8> {
    let mut all = pattern(SIZE, seed);
    for (at, data) in edits {
        all[*at..*at + data.len()].copy_from_slice(data);
    }
    all
}

fn written(d: &Drive) -> Vec<(&'static str, Vec<u8>)> {
    write_at(d, "a", 200_000, b"ours");
    write_at(d, "dir/b", 7, b"also");
    vec![
        ("a", content(1, &[(200_000, b"ours")])),
        ("dir/b", content(2, &[(7, b"also")])),
        ("c", content(3, &[])),
    ]
}

fn renamed(d: &Drive) -> Vec<(&'static str, Vec<u8>)> {
    let dir = d.find("dir").unwrap();
    d.rename(ROOT, "a", dir, "a", true).unwrap();
    d.rename(ROOT, "dir", ROOT, "moved", true).unwrap();
    write_at(d, "moved/b", 250_000, b"moved");
    d.rename(ROOT, "c", dir, "b", true).unwrap();
    vec![("moved/a", content(1, &[])), ("moved/b", content(3, &[]))]
}

fn timed(d: &Drive) -> Vec<(&'static str, Vec<u8>)> {
    for path in ["a", "c"] {
        let set = SetAttr {
            mtime: Some(1_000_000_000),
            ..SetAttr::default()
        };
        d.set_attr(d.find(path).unwrap(), &set).unwrap();
    }
    write_at(d, "a", 100_000, b"timed");
    vec![
        ("a", content(1, &[(100_000, b"timed")])),
        ("dir/b", content(2, &[])),
        ("c", content(3, &[])),
    ]
}

fn everywhere(change: Change) {
    let mut cut = 0;
    loop {
        let tmp = tempfile::tempdir().unwrap();
        let share = tmp.path();
        std::fs::create_dir(share.join("dir")).unwrap();
        for (path, seed) in [("a", 1), ("dir/b", 2), ("c", 3)] {
            std::fs::write(share.join(path), pattern(SIZE, seed)).unwrap();
        }
        let disk = CrashDisk::default();
        let d = open(share, &disk).unwrap();
        for path in ["a", "dir/b", "c"] {
            let h = d.open_file(d.find(path).unwrap(), true, false).unwrap();
            assert_eq!(d.read(h.handle, 0, 4).unwrap().len(), 4);
            d.release(h.handle).unwrap();
        }
        let want = change(&d);
        d.sync_all().unwrap();
        disk.cut_after(cut);
        let whole = sync(&d).is_ok();
        drop(d);
        for survivor in 0..2 {
            let after = disk.survivor(survivor);
            let d = open(share, &after).unwrap();
            for (path, data) in &want {
                let got = common::read_all(&d, path);
                assert!(
                    got.as_ref().is_ok_and(|got| got == data),
                    "cut {cut}, survivor {survivor}, {path}: {:?}",
                    got.map(|g| g.len())
                );
            }
            if survivor == 1 {
                sync(&d).unwrap_or_else(|e| panic!("cut {cut}: {e}"));
                for (path, data) in &want {
                    assert!(std::fs::read(share.join(path)).unwrap() == *data, "{path}");
                }
            }
        }
        if whole {
            println!("{cut} cuts");
            assert!(cut > 10);
            return;
        }
        cut += 1;
    }
}

#[test]
fn bytes_that_only_the_share_had() {
    everywhere(written);
}

#[test]
fn names_that_the_share_has_already() {
    everywhere(renamed);
}

#[test]
fn times_that_the_share_has_already() {
    everywhere(timed);
}
