//! Memory for a walk over all folders and messages does not grow with their number: measured in
//! processes of their own, on files whose node B-trees hold far more messages than fit into the bound.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use pst::messaging::{Step, Transaction, tags};
use pst::ndb::{Ndb, NdbTransaction, NodeContent};
use pst::{Nid, NidType, Pst, PstError};
use storage::{FileStorage, MemStorage, ReadAt, WriteAt};
use support::mail::folder;

/// Where the child finds its file.
const FILE: &str = "PSTSYNCD_WALK_FILE";
/// How many messages the child must find.
const COUNT: &str = "PSTSYNCD_WALK_COUNT";

/// A file with `count` message nodes without content: most in one folder, the rest in two hundred.
fn write(path: &Path, count: u32) {
    let file = Arc::new(MemStorage::from(
        pst::create_empty(&support::mail::SEED).unwrap(),
    ));
    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
    let top = tx.ipm_subtree().unwrap();
    let folders: Vec<Nid> = (0..201)
        .map(|i| {
            tx.create_folder(top, None, &folder(&format!("F{i}")))
                .unwrap()
        })
        .collect();
    tx.finish().unwrap().commit(&*file).unwrap();
    let ndb = Arc::new(Ndb::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap());
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    for n in 0..count {
        let place = if n % 3 == 0 {
            1 + n as usize / 3 % 200
        } else {
            0
        };
        let nid = Nid::new(NidType::NORMAL_MESSAGE, 0x1_0000 + n);
        tx.put_node(nid, folders[place], &NodeContent::default())
            .unwrap();
    }
    tx.finish().unwrap().commit(&*file).unwrap();
    let out = FileStorage::create_new(path).unwrap();
    out.write_all_at(0, &file.to_vec()).unwrap();
}

#[test]
fn child_that_walks() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let want: u64 = std::env::var(COUNT).unwrap().parse().unwrap();
    let file = FileStorage::open_read_only(Path::new(&path)).unwrap();
    let pst = Pst::open(Arc::new(file)).unwrap();
    let tree = pst.folder_tree().unwrap();
    let order: Vec<Nid> = tree.folders.keys().copied().collect();
    let (mut found, mut last, mut here) = (0u64, Nid(0), Nid(0));
    pst.each_message::<PstError>(&tree, &order, &mut |step| {
        match step {
            Step::Folder(f) => {
                here = f.folder.nid;
                last = Nid(0);
            }
            Step::Message(m) => {
                assert_eq!(m.entry.nid_parent, here, "messages come with their folder");
                assert!(m.nid > last, "in NID order");
                last = m.nid;
                found += 1;
            }
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(found, want);
    assert_eq!(tree.folders.values().map(|f| f.messages).sum::<u64>(), want);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

/// The peak memory of a walk in another process, KiB.
fn peak(path: &Path, count: u32) -> u64 {
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_walks",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FILE, path)
        .env(COUNT, count.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{text}");
    let peak = text.split("peak ").nth(1).unwrap();
    peak.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_walk_takes_no_more_memory_where_there_are_more_messages() {
    if !Path::new("/proc/self/status").exists() {
        return support::skip::skipped("memory", "no /proc on this machine");
    }
    let dir = tempfile::tempdir().unwrap();
    let measure = |count: u32| {
        let path = dir.path().join(format!("{count}.pst"));
        write(&path, count);
        peak(&path, count)
    };
    // Both fill the page cache and the bound of messages that are collected.
    let (small, large) = (measure(200_000), measure(600_000));
    println!("200,000 messages: {small} KiB, 600,000: {large} KiB");
    assert!(large < 64 << 10, "{large} KiB");
    // What an index of them would take more: 400,000 entries of 40 bytes and more.
    assert!(large < small + (8 << 10), "{small} KiB, then {large} KiB");
}

#[test]
fn folders_are_visited_in_the_order_asked_for_and_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.pst");
    write(&path, 300);
    let pst = Pst::open(Arc::new(FileStorage::open_read_only(&path).unwrap())).unwrap();
    let tree = pst.folder_tree().unwrap();
    let index = pst.index().unwrap();
    let order: Vec<Nid> = tree
        .folders
        .keys()
        .rev()
        .copied()
        .chain([Nid(0x9_0002)])
        .collect();
    let (mut folders, mut messages) = (Vec::new(), Vec::new());
    pst.each_message::<PstError>(&tree, &order, &mut |step| {
        match step {
            Step::Folder(f) => folders.push(f.folder.nid),
            Step::Message(m) => messages.push((*folders.last().unwrap(), m.nid)),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(
        folders,
        order[..order.len() - 1],
        "one that is not there is left out"
    );
    let want: Vec<_> = folders
        .iter()
        .flat_map(|f| {
            index
                .messages
                .get(f)
                .into_iter()
                .flatten()
                .map(move |m| (*f, m.nid))
        })
        .collect();
    assert_eq!(messages, want);
    assert_eq!(messages.len(), 300);
    let name = pst
        .folder(folders[0])
        .unwrap()
        .props
        .str(tags::DISPLAY_NAME);
    assert_eq!(name.as_deref(), Some("F200"));
}
