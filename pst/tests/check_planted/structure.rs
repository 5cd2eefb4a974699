//! Defects of header, trees, blocks and maps.

use pst::check::Code;
use pst::ndb::format::{DLIST_OFFSET, FIRST_AMAP, amap_offset};
use pst::ndb::{NodeContent, PageType};
use pst::{Bid, Nid, NidType};

use super::support::surgery::Patient;
use super::{Planted, base, edited, patient};

/// A block of an attachment, which nothing but its data tree depends on.
fn attachment_block(p: &Patient) -> Bid {
    let ndb = p.ndb();
    let message = ndb.node(base().full).unwrap().unwrap();
    let subs = ndb.subnodes(message.bid_sub).unwrap();
    let attachment = subs.values().find(|s| s.nid.kind() == NidType::ATTACHMENT);
    let below = ndb.subnodes(attachment.unwrap().bid_sub).unwrap();
    let data = below.values().next().unwrap().bid_data;
    ndb.data(data).unwrap().block_bids()[0]
}

/// The XBLOCK over the body of the full message.
fn body_tree(p: &Patient) -> Bid {
    let ndb = p.ndb();
    let message = ndb.node(base().full).unwrap().unwrap();
    let subs = ndb.subnodes(message.bid_sub).unwrap();
    let body = subs
        .values()
        .find(|s| s.nid.kind() == NidType::LTP && s.bid_data.is_internal());
    body.unwrap().bid_data
}

fn subnode_tree(p: &Patient) -> Bid {
    p.ndb().node(base().full).unwrap().unwrap().bid_sub
}

/// Offset of the root page of a tree.
fn root(p: &Patient, kind: PageType) -> u64 {
    let header = p.ndb().header().clone();
    if kind == PageType::Nbt {
        header.nbt.ib
    } else {
        header.bbt.ib
    }
}

/// Offset of child `i` of the root page.
fn child(p: &Patient, kind: PageType, i: usize) -> u64 {
    let at = root(p, kind) as usize + 24 * i + 16;
    u64::from_le_bytes(p.bytes[at..at + 8].try_into().unwrap())
}

fn with_header(edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    p.header(edit);
    p
}

fn with_block_entry(bid: impl Fn(&Patient) -> Bid, edit: impl Fn(&mut [u8])) -> Patient {
    let mut p = patient();
    let bid = bid(&p);
    p.leaf(PageType::Bbt, bid.0, edit);
    p
}

fn with_internal(bid: impl Fn(&Patient) -> Bid, edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    let bid = bid(&p);
    p.block(bid, edit);
    p
}

/// A map or list page with one of its bytes changed, sealed again or not.
fn with_page(kind: PageType, ib: u64, sealed: bool, edit: impl FnOnce(&mut [u8])) -> Patient {
    let mut p = patient();
    if sealed {
        p.page(kind, ib, edit);
    } else {
        edit(&mut p.bytes[ib as usize..ib as usize + 512]);
    }
    p
}

/// Breaks the last leaf of a tree, below the checksum.
fn with_broken_leaf(kind: PageType) -> Patient {
    let mut p = patient();
    let page = root(&p, kind) as usize;
    let last = usize::from(p.bytes[page + 488]) - 1;
    assert_eq!(p.bytes[page + 491], 1, "the base has trees of two levels");
    let at = child(&p, kind, last) as usize;
    p.bytes[at] ^= 1;
    p
}

#[allow(clippy::too_many_lines)] // One arm a code.
pub fn plant(code: Code) -> Planted {
    match code {
        Code::HeaderDamaged => Planted::alone(with_header(|h| h[512] = 0)),
        Code::FileCut => {
            let mut p = patient();
            p.bytes.truncate(p.bytes.len() - 512);
            Planted::alone(p)
        }
        Code::TreeRoot => {
            let mut p = patient();
            let at = root(&p, PageType::Nbt) as usize;
            p.bytes[at] ^= 1;
            Planted::alone(p)
        }
        Code::HeaderTorn => {
            let mut p = patient();
            p.bytes[524] ^= 1;
            Planted::alone(p)
        }
        Code::MapsFlag => Planted::alone(with_header(|h| h[248] = 7)),
        Code::MapsInvalid => Planted::alone(with_header(|h| h[248] = 0)),
        Code::NidCounter => Planted::alone(with_header(|h| h[44 + 4 * 4..44 + 5 * 4].fill(0))),
        Code::NbtPage | Code::Nodes => Planted::anything(with_broken_leaf(PageType::Nbt)),
        Code::BbtPage => Planted::anything(with_broken_leaf(PageType::Bbt)),
        Code::BtreeSharedPage => {
            let mut p = patient();
            let at = root(&p, PageType::Nbt);
            p.page(PageType::Nbt, at, |b| b.copy_within(8..24, 24 + 8));
            Planted::anything(p)
        }
        Code::BtreeOrder => {
            // The first key of the second leaf now lies below its page's range.
            let mut p = patient();
            let at = root(&p, PageType::Bbt);
            p.page(PageType::Bbt, at, |b| b[24] += 2);
            Planted::anything(p)
        }
        Code::BtreeKey => {
            let mut p = patient();
            let at = root(&p, PageType::Bbt);
            p.page(PageType::Bbt, at, |b| b[24] -= 2);
            Planted::alone(p)
        }
        Code::BtreeFill => {
            let mut p = patient();
            let at = child(&p, PageType::Nbt, 0);
            p.page(PageType::Nbt, at, |b| b[489] = 3);
            Planted::alone(p)
        }
        Code::BtreeEmptyPage => {
            let mut p = patient();
            let at = child(&p, PageType::Nbt, 1);
            p.page(PageType::Nbt, at, |b| b[488] = 0);
            Planted::anything(p)
        }
        Code::PageBid => Planted::alone(with_header(|h| {
            h[32..40].copy_from_slice(&1u64.to_le_bytes());
        })),
        Code::NodeType => Planted::alone(edited(|tx| {
            tx.put_node(Nid(0x6B6), Nid(0), &NodeContent::default())
                .unwrap();
        })),
        Code::BlockBid => Planted::alone(with_header(|h| {
            h[516..524].copy_from_slice(&8u64.to_le_bytes());
        })),
        Code::BlockAlignment => {
            let p = with_block_entry(attachment_block, |e| e[8] += 32);
            Planted::with(
                p,
                &[
                    Code::BlockDamaged,
                    Code::Leaked,
                    Code::Overlap,
                    Code::UsedButFree,
                ],
            )
        }
        Code::BlockDamaged => {
            let mut p = patient();
            let at = p.entry(attachment_block(&p)).bref.ib as usize;
            p.bytes[at] ^= 1;
            Planted::alone(p)
        }
        Code::BlockMissing => {
            let p = with_internal(body_tree, |x| x[8 + 4] ^= 0x40);
            Planted::with(p, &[Code::BlockOrphan])
        }
        Code::BlockKind => {
            // A folder's data as its subnodes.
            let mut p = patient();
            p.leaf(PageType::Nbt, base().sub.0.into(), |e| {
                e.copy_within(8..16, 16);
            });
            Planted::with(p, &[Code::CrefLow, Code::Subnodes])
        }
        Code::BlockOrphan => {
            let mut p = patient();
            p.leaf(PageType::Nbt, 0x0F01, |e| e[8..16].fill(0));
            Planted::alone(p)
        }
        Code::CrefLow => Planted::alone(with_block_entry(attachment_block, |e| e[18] = 1)),
        Code::CrefHigh => Planted::alone(with_block_entry(attachment_block, |e| e[18] = 9)),
        Code::DataTree => {
            let p = with_internal(body_tree, |x| x[1] = 3);
            Planted::with(p, &[Code::BlockOrphan, Code::PropertyValue])
        }
        Code::DataTotal => Planted::alone(with_internal(body_tree, |x| x[4] ^= 2)),
        Code::DataBlockSize => Planted::alone(with_internal(body_tree, |x| {
            let last = 8 + 8 * (usize::from(x[2]) - 1);
            let (first, short) = (x[8..16].to_vec(), x[last..last + 8].to_vec());
            x[8..16].copy_from_slice(&short);
            x[last..last + 8].copy_from_slice(&first);
        })),
        Code::SubnodeTree => {
            let p = with_internal(subnode_tree, |x| x[0] = 9);
            Planted::with(p, &[Code::BlockOrphan, Code::Subnodes])
        }
        Code::SubnodeOrder => Planted::alone(with_internal(subnode_tree, |x| {
            let (first, second) = (x[8..32].to_vec(), x[32..56].to_vec());
            x[8..32].copy_from_slice(&second);
            x[32..56].copy_from_slice(&first);
        })),
        Code::FileEof => {
            let p = with_header(|h| h[185] -= 2);
            Planted::with(p, &[Code::FileLonger])
        }
        Code::FileLonger => {
            let mut p = patient();
            p.bytes.extend_from_slice(&[0; 64]);
            Planted::alone(p)
        }
        Code::AMapLast => Planted::alone(with_header(|h| h[192..200].fill(0))),
        Code::Outside => {
            let p = with_block_entry(attachment_block, |e| {
                e[8..16].copy_from_slice(&0x400u64.to_le_bytes());
            });
            Planted::with(p, &[Code::BlockDamaged, Code::Leaked])
        }
        Code::Overlap => {
            let other = patient().entry(body_tree(&patient())).bref.ib;
            let p = with_block_entry(attachment_block, |e| {
                e[8..16].copy_from_slice(&other.to_le_bytes());
            });
            Planted::with(p, &[Code::BlockDamaged, Code::Leaked, Code::UsedButFree])
        }
        Code::AMapPage => {
            Planted::alone(with_page(PageType::AMap, FIRST_AMAP, false, |b| b[9] ^= 1))
        }
        Code::MapPage => {
            let at = amap_offset(0) + 0x200;
            Planted::alone(with_page(PageType::PMap, at, false, |b| b[9] ^= 1))
        }
        Code::UsedButFree => {
            let p = with_page(PageType::AMap, FIRST_AMAP, true, |b| b[4] = 0);
            Planted::with(p, &[Code::AMapFree, Code::DListStale])
        }
        Code::Leaked => {
            let p = with_page(PageType::AMap, FIRST_AMAP, true, |b| b[490] = 0xFF);
            Planted::with(p, &[Code::AMapFree, Code::DListStale])
        }
        Code::AMapFree => Planted::alone(with_header(|h| h[200] ^= 64)),
        Code::DList => Planted::alone(with_page(PageType::DList, DLIST_OFFSET, false, |b| {
            b[9] ^= 1;
        })),
        Code::DListStale => Planted::alone(with_page(PageType::DList, DLIST_OFFSET, true, |b| {
            b[10] ^= 0x10;
        })),
        _ => unreachable!("{code} is of another level"),
    }
}
