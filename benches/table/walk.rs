//! Walk and inventory, beside the walks of others.

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use outlook_pst::UnicodePstFile;
use outlook_pst::messaging::folder::{Folder as _, UnicodeFolder};
use outlook_pst::messaging::message::{Message as _, UnicodeMessage};
use outlook_pst::messaging::store::{Store as _, UnicodeStore};
use outlook_pst::ndb::node_id::NodeId;
use pst::messaging::tags;

use crate::Bench;
use crate::peer::{Cost, Peer, task};

/// Walk: every folder, every message with its subject; then the inventory of the same file.
pub fn rows(bench: &mut Bench, name: &str, file: &Path) -> Result<()> {
    let me = std::env::current_exe()?;
    let out = bench.at("export/all");
    let peers = [
        Peer::new(
            "pstsyncd pst ls -l",
            bench.program,
            &[&"pst", &"ls", &"-l", &file],
        ),
        Peer::new("lspst", "lspst", &[&file]),
        Peer::new("outlook-pst crate", &me, &[&"outlook-pst-walk", &file]),
        Peer::new(
            "readpst -r (also writes mbox files)",
            "readpst",
            &[&"-q", &"-r", &"-D", &"-j", &"0", &"-o", &out, &file],
        )
        .filling(&out, true),
        Peer::new(
            "pffexport (also writes a file per item)",
            "pffexport",
            &[&"-q", &"-t", &out, &file],
        )
        .filling(&out, false),
    ];
    let title = format!("Walk, {name}: every folder, every message with its subject");
    let walk = task(&title, &peers, bench.runs, &bench.report());
    let _ = std::fs::remove_dir_all(bench.at("export"));
    let wall = |cost: &Cost| cost.wall.as_secs_f64();
    if let [Some(ours), others @ ..] = walk.as_slice() {
        let fastest = others.iter().flatten().map(wall).min_by(f64::total_cmp);
        if let Some(fastest) = fastest {
            let times = fastest / wall(ours);
            bench.target(
                &format!("walk, {name}: the fastest peer over ours"),
                format!("{times:.1}"),
                "at least 3",
                times >= 3.0,
            );
        }
        let peak = ours.peak_kib as f64 / 1024.0;
        bench.target(
            &format!("walk, {name}: peak memory"),
            format!("{peak:.1} MB"),
            "under 64 MB",
            peak < 64.0,
        );
    }
    let peers = [
        Peer::new(
            "pstsyncd pst inventory",
            bench.program,
            &[&"pst", &"inventory", &file],
        ),
        Peer::new(
            "pstsyncd pst inventory --blocks",
            bench.program,
            &[&"pst", &"inventory", &"--blocks", &file],
        ),
        Peer::new(
            "pstsyncd pst inventory --content",
            bench.program,
            &[&"pst", &"inventory", &"--content", &file],
        ),
    ];
    let title = format!("Inventory, {name}: ids, parents, kinds, fingerprints");
    let inventory = task(&title, &peers, bench.runs, &bench.report());
    if let ([_, Some(lspst), ..], [Some(ours), ..]) = (walk.as_slice(), inventory.as_slice()) {
        let part = wall(ours) / wall(lspst);
        bench.target(
            &format!("inventory, {name}: over lspst's walk"),
            format!("{part:.3}"),
            "under 0.1",
            part < 0.1,
        );
    }
    Ok(())
}

/// The subject of every message, through Microsoft's `outlook-pst` crate: folders and contents tables say
/// which, and each message is then opened, as the others do it.
pub fn outlook_pst_walk(path: &Path) -> Result<()> {
    let store = UnicodeStore::read(Rc::new(UnicodePstFile::open(path)?))?;
    let mut queue = vec![store.properties().ipm_sub_tree_entry_id()?];
    let (mut found, mut failed) = (0u64, 0u64);
    while let Some(id) = queue.pop() {
        let folder = UnicodeFolder::read(Rc::clone(&store), &id)?;
        let id_of = |row: u32| store.properties().make_entry_id(NodeId::from(row));
        if let Some(table) = folder.hierarchy_table() {
            for row in table.rows_matrix() {
                queue.push(id_of(u32::from(row.id()))?);
            }
        }
        let Some(table) = folder.contents_table() else {
            continue;
        };
        for row in table.rows_matrix() {
            let id = id_of(u32::from(row.id()))?;
            match UnicodeMessage::read(Rc::clone(&store), &id, None) {
                Ok(m) if m.properties().get(tags::SUBJECT).is_some() => found += 1,
                _ => failed += 1,
            }
        }
    }
    println!("{found} messages, {failed} unreadable");
    Ok(())
}
