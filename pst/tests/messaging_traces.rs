//! A real writer's edits: what it did to a file, told by two inventories, is done again through our
//! transaction on the file before, and gives a file that dumps like the file after.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use pst::derived::ObjectKind;
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::messaging::{Pst, Transaction};
use storage::{MemStorage, ReadAt};

/// The file before and after a trace; `None` where there is no corpus or no zstd.
fn versions() -> Option<Vec<Vec<u8>>> {
    let dir = support::shared()?.join("traces");
    let unpack = |name: &str| -> Option<Vec<u8>> {
        let out = Command::new("zstd")
            .arg("-dcq")
            .arg(dir.join(name))
            .output();
        match out {
            Ok(out) if out.status.success() => Some(out.stdout),
            _ => {
                support::skip::skipped("traces", &format!("{name} cannot be unpacked with zstd"));
                None
            }
        }
    };
    let mut file = unpack("mail.pst.zst")?;
    let mut out = vec![file.clone()];
    for name in ["edits-11.jsonl.zst", "edits-12.jsonl.zst"] {
        for line in String::from_utf8(unpack(name)?).unwrap().lines() {
            replay(&mut file, line);
        }
        out.push(file.clone());
    }
    Some(out)
}

/// Does one line of a trace: `{"op":"write","off":n,"data":hex}` or `{"op":"truncate","len":n}`.
fn replay(file: &mut Vec<u8>, line: &str) {
    let number = |key: &str| -> usize {
        let rest = line
            .split_once(&format!("\"{key}\":"))
            .unwrap()
            .1
            .trim_start();
        rest.split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    if line.contains("\"truncate\"") {
        file.resize(number("len"), 0);
        return;
    }
    let hex = line
        .split_once("\"data\":")
        .unwrap()
        .1
        .split('"')
        .nth(1)
        .unwrap();
    let data: Vec<u8> = hex
        .as_bytes()
        .chunks(2)
        .map(|h| u8::from_str_radix(std::str::from_utf8(h).unwrap(), 16).unwrap())
        .collect();
    let at = number("off");
    if file.len() < at + data.len() {
        file.resize(at + data.len(), 0);
    }
    file[at..at + data.len()].copy_from_slice(&data);
}

fn open(bytes: &[u8]) -> Pst {
    Pst::open(support::bytes(bytes.to_vec())).unwrap()
}

fn lines(pst: &Pst) -> Vec<String> {
    let mut out = Vec::new();
    dump(pst, DumpOptions::default(), &mut |l| {
        out.push(l.to_owned());
        Ok(())
    })
    .unwrap();
    out
}

#[test]
fn a_real_writers_edits_done_again_by_us_dump_the_same() {
    let Some(versions) = versions() else { return };
    for pair in versions.windows(2) {
        let (before, after) = (open(&pair[0]), open(&pair[1]));
        let (old, new) = (
            Inventory::read(&before).unwrap(),
            Inventory::read(&after).unwrap(),
        );
        // The file lives on: an update that trusts equal BIDs sees what a full read sees.
        assert_eq!(Inventory::update(&after, &old).unwrap(), new);
        let file = Arc::new(MemStorage::from(pair[0].clone()));
        let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
        let (mut added, mut updated, mut moved, mut deleted) = (0, 0, 0, 0);
        let gone: BTreeSet<_> = old
            .rows
            .keys()
            .filter(|n| !new.rows.contains_key(n))
            .collect();
        for nid in gone {
            assert_eq!(old.rows[nid].kind, ObjectKind::Message);
            tx.delete_message(*nid).unwrap();
            deleted += 1;
        }
        for (nid, row) in &new.rows {
            let was = old.rows.get(nid);
            if was.is_some_and(|w| w.fingerprint == row.fingerprint && w.parent == row.parent) {
                continue;
            }
            match (row.kind, was) {
                (ObjectKind::Folder, was) => {
                    let props = after.folder(*nid).unwrap().props;
                    let props = tx.import_props(&props, after.names()).unwrap();
                    if was.is_none() {
                        // Folders come before messages, and here parents before children, in NID order.
                        tx.create_folder(row.parent, Some(*nid), &props).unwrap();
                        added += 1;
                    } else {
                        tx.update_folder(*nid, &props).unwrap();
                        updated += 1;
                    }
                }
                (ObjectKind::Message, _) => {
                    let m = after.message(*nid).unwrap();
                    let m = tx.import_message(&m, after.names()).unwrap();
                    match was {
                        None => {
                            tx.add_message(row.parent, Some(*nid), &m, false).unwrap();
                            added += 1;
                        }
                        Some(w) => {
                            if w.fingerprint != row.fingerprint {
                                tx.update_message(*nid, &m).unwrap();
                                updated += 1;
                            }
                            if w.parent != row.parent {
                                tx.move_message(*nid, row.parent).unwrap();
                                moved += 1;
                            }
                        }
                    }
                }
                other => panic!("{nid}: {other:?}"),
            }
        }
        let set = tx.finish().unwrap();
        let bytes: u64 = set
            .phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(_, d)| d.len())
            .sum();
        println!(
            "{added} added, {updated} updated, {moved} moved, {deleted} deleted; {bytes} bytes written"
        );
        assert!(added + updated + moved + deleted > 10);
        set.commit(&*file).unwrap();
        let ours = Pst::open(file).unwrap();
        assert_eq!(Inventory::read(&ours).unwrap().digest(), new.digest());
        let (a, b) = (lines(&ours), lines(&after));
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a, b);
        }
    }
}
