//! The queues and lists of the search engine ([MS-PST] 2.4.8).

use std::collections::BTreeSet;

use super::codes::Code;
use super::collect::Findings;
use crate::messaging::SUD_LEN;
use crate::ndb::{NbtEntry, Ndb};
use crate::{Nid, NidType, Result};

/// The greatest SUDT_* ([MS-PST] 2.4.8.1.1.2).
const LAST_TYPE: u16 = 0x0F;
/// Longest queue whose items are looked at, in bytes.
const MAX_QUEUE: u64 = 64 << 20;

pub(super) fn check(ndb: &Ndb, out: &mut Findings, nodes: &[NbtEntry]) {
    let indexes: BTreeSet<u32> = nodes
        .iter()
        .filter(|n| {
            matches!(
                n.nid.kind(),
                NidType::NORMAL_FOLDER | NidType::SEARCH_FOLDER
            )
        })
        .map(|n| n.nid.index())
        .collect();
    for node in nodes {
        // What cannot be read has been reported as a block or tree.
        let _ = match node.nid {
            // The gatherer's queue is the indexer's own: its items have 28 bytes in real files.
            Nid::SEARCH_MANAGEMENT_QUEUE => queue(ndb, out, node),
            nid if nid.kind() == NidType::SEARCH_UPDATE_QUEUE => queue(ndb, out, node),
            Nid::SEARCH_ACTIVITY_LIST | Nid::SEARCH_DOMAIN_OBJECT => list(ndb, out, node, &indexes),
            _ => Ok(()),
        };
    }
}

/// A queue node: items of one size behind a head that the parent field points to (2.4.8.3).
fn queue(ndb: &Ndb, out: &mut Findings, node: &NbtEntry) -> Result<()> {
    let nid = node.nid;
    let tree = ndb.data(node.bid_data)?;
    let len = tree.len();
    let at = ndb.block(node.bid_data)?.map_or(0, |b| b.bref.ib);
    if len % SUD_LEN as u64 != 0 {
        out.add(Code::QueueLength, at, || {
            format!("queue {nid} has {len} bytes, items have {SUD_LEN}")
        });
        return Ok(());
    }
    let head = u64::from(node.nid_parent.0);
    if head > len || head % SUD_LEN as u64 != 0 {
        out.add(Code::QueueHead, at, || {
            format!("the head of queue {nid} is at {head} of {len} bytes")
        });
        return Ok(());
    }
    let data = tree.read_all(ndb, MAX_QUEUE)?;
    let items = data.as_chunks::<SUD_LEN>().0;
    for (i, item) in items
        .iter()
        .enumerate()
        .skip((head / SUD_LEN as u64) as usize)
    {
        let [_, _, low, high, ..] = *item;
        let kind = u16::from_le_bytes([low, high]);
        if kind == 0 || kind > LAST_TYPE {
            out.add(Code::QueueItem, at, || {
                format!("item {i} of queue {nid} is of the unknown type {kind:#x}")
            });
        }
    }
    Ok(())
}

/// A list of NIDs (2.4.8.4.2, 2.4.8.4.3). Their low bits are not those of the folder's node in real
/// files: the index names it.
fn list(ndb: &Ndb, out: &mut Findings, node: &NbtEntry, folders: &BTreeSet<u32>) -> Result<()> {
    let nid = node.nid;
    let data = ndb.data(node.bid_data)?.read_all(ndb, MAX_QUEUE)?;
    let at = ndb.block(node.bid_data)?.map_or(0, |b| b.bref.ib);
    let (entries, rest) = data.as_chunks::<4>();
    if !rest.is_empty() {
        out.add(Code::SearchList, at, || {
            format!("list {nid} has {} bytes, entries have 4", data.len())
        });
    }
    for entry in entries {
        let named = Nid(u32::from_le_bytes(*entry));
        if !folders.contains(&named.index()) {
            out.add(Code::SearchList, at, || {
                format!("list {nid} names {named}, which is no folder of this file")
            });
        }
    }
    Ok(())
}
