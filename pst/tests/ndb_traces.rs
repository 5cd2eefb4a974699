//! A real writer's file in the middle of its edits: maps marked invalid, then edited by us.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::sync::Arc;

use pst::Nid;
use pst::check::{Severity, check};
use pst::ndb::{Ndb, NdbTransaction, NodeContent, NodeData};
use support::{bytes, committed, pffinfo_accepts, shared};

fn unhex(s: &str) -> Vec<u8> {
    (0..s.len() / 2)
        .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn decompressed(path: &std::path::Path) -> Vec<u8> {
    let mut out = Vec::new();
    zstd::Decoder::new(std::fs::File::open(path).unwrap())
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    out
}

/// Whether everything in the file reads and nothing but the maps is wrong.
fn consistent(image: &[u8]) -> Option<Arc<Ndb>> {
    let ndb = Ndb::open(bytes(image.to_vec())).ok()?;
    let fine = check(&ndb).iter().all(|f| f.severity < Severity::Error);
    fine.then(|| Arc::new(ndb))
}

#[test]
fn edits_in_the_middle_of_anothers() {
    let Some(dir) = shared() else { return };
    let dir = dir.join("traces");
    let mut image = decompressed(&dir.join("mail.pst.zst"));
    let (mut steps, mut flips, mut moments) = (0, 0, 0);
    let (mut whole, mut invalid, mut edited) = (0, 0, 0);
    for trace in ["edits-11.jsonl.zst", "edits-12.jsonl.zst"] {
        let lines = String::from_utf8(decompressed(&dir.join(trace))).unwrap();
        let count = lines.lines().count();
        for (i, line) in lines.lines().enumerate() {
            let op: serde_json::Value = serde_json::from_str(line).unwrap();
            if op["op"] == "truncate" {
                image.resize(op["len"].as_u64().unwrap() as usize, 0);
            } else {
                let (off, data) = (
                    op["off"].as_u64().unwrap() as usize,
                    unhex(op["data"].as_str().unwrap()),
                );
                if image.len() < off + data.len() {
                    image.resize(off + data.len(), 0);
                }
                image[off..off + data.len()].copy_from_slice(&data);
            }
            steps += 1;
            // This writer flips fAMapValid at each allocation: look at some of those moments.
            flips += usize::from(op["off"] == 248);
            let looked = op["off"] == 248 && flips % 61 == 0;
            if !looked && i + 1 != count {
                continue;
            }
            moments += 1;
            let Some(ndb) = consistent(&image) else {
                continue;
            };
            whole += 1;
            invalid += usize::from(!ndb.header().maps_valid());
            let nodes: Vec<_> = ndb.nodes().map(Result::unwrap).collect();
            let mut tx = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
            let content = NodeContent {
                data: NodeData::Bytes(vec![9; 50_000]),
                ..Default::default()
            };
            tx.put_node(Nid(0x3F_FFE4), Nid(0), &content).unwrap();
            tx.delete_node(nodes[nodes.len() / 2].nid).unwrap();
            let after = committed(&image, &tx.finish().unwrap());
            let after = Ndb::open(bytes(after)).unwrap();
            let bad: Vec<_> = check(&after)
                .into_iter()
                .filter(|f| f.severity > Severity::Info)
                .collect();
            assert!(bad.is_empty(), "{trace} {i}: {bad:#?}");
            for (at, node) in nodes.iter().enumerate() {
                let expected = (at != nodes.len() / 2).then_some(*node);
                assert_eq!(after.node(node.nid).unwrap(), expected);
            }
            edited += 1;
        }
        let ndb = consistent(&image).unwrap();
        for f in check(&ndb) {
            println!("after {trace}: {f}");
        }
        pffinfo_accepts(&image);
    }
    println!(
        "{steps} writes; of {moments} moments {whole} whole, {invalid} with invalid maps, {edited} edited"
    );
    assert!(invalid > 0);
}
