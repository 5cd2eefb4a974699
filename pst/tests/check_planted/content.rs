//! Defects of heaps, properties, tables, subnodes and the name map.
//!
//! Odd heaps go into nodes that stand for nothing in the mail store: an attachment and a recipient table
//! at top level.

use std::collections::BTreeMap;

use pst::check::Code;
use pst::ltp::{PropBag, PropTag, PropType, PropValue, TableBuilder, build_pc};
use pst::ndb::{NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType};

use super::{Planted, edited, structure, with_node, with_props};

const PROPS: Nid = Nid::new(NidType::ATTACHMENT, 0x900);
const TABLE: Nid = Nid::new(NidType::RECIPIENT_TABLE, 0x900);

fn props() -> NodeContent {
    let bag = PropBag::from_iter([
        PropValue::string(0x3001, "Inbox"),
        PropValue::i32(0x3602, 2),
        PropValue::time(0x3007, 1),
        PropValue::binary(0x3613, vec![1; 5000]),
    ]);
    build_pc(&bag, None).unwrap()
}

fn table() -> NodeContent {
    let columns = [
        PropTag::new(0x3002, PropType::UNICODE),
        PropTag::new(0x0C15, PropType::I32),
    ];
    let mut t = TableBuilder::new(&columns).unwrap();
    for id in 0..3 {
        let row = [PropValue::string(0x3002, "SMTP"), PropValue::i32(0x0C15, 3)];
        t.row(id, &PropBag::from_iter(row)).unwrap();
    }
    t.build(None).unwrap()
}

/// A heap of several blocks.
fn long() -> NodeContent {
    let many = (1..9u16).map(|id| PropValue::binary(id, vec![7; 2000]));
    build_pc(&many.collect(), None).unwrap()
}

/// Content with one of its heap blocks changed.
fn with_block(
    mut content: NodeContent,
    i: usize,
    change: impl FnOnce(&mut Vec<u8>),
) -> NodeContent {
    let NodeData::Blocks(blocks) = &mut content.data else {
        panic!("blocks")
    };
    change(&mut blocks[i]);
    content
}

fn bent(nid: Nid, content: NodeContent, change: impl FnOnce(&mut Vec<u8>)) -> Planted {
    Planted::alone(with_node(nid, &with_block(content, 0, change)))
}

fn bent_props(change: impl FnOnce(&mut Vec<u8>)) -> Planted {
    bent(PROPS, props(), change)
}

fn bent_table(change: impl FnOnce(&mut Vec<u8>)) -> Planted {
    bent(TABLE, table(), change)
}

fn word(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes([b[at], b[at + 1]]).into()
}

/// Where item `n` (1-based) begins in a block.
fn item(b: &[u8], n: usize) -> usize {
    word(b, word(b, 0) + 4 + 2 * (n - 1))
}

fn hid_item(b: &[u8], at: usize) -> usize {
    item(b, word(b, at) >> 5)
}

/// The records of the property context's BTH.
fn records(b: &[u8]) -> usize {
    hid_item(b, item(b, 1) + 4)
}

/// The records of the row index, and the rows.
fn index(b: &[u8]) -> usize {
    hid_item(b, item(b, 1) + 4)
}

fn info(b: &[u8]) -> usize {
    item(b, 2)
}

fn rows(b: &[u8]) -> usize {
    hid_item(b, info(b) + 14)
}

/// Nodes that all have one large subnode tree: each takes a visit to all of it.
fn unfolding() -> Planted {
    let tree: BTreeMap<Nid, NodeContent> = (1..6000)
        .map(|i| (Nid::new(NidType::INTERNAL, i), NodeContent::default()))
        .collect();
    Planted::alone(edited(|tx| {
        let first = NodeContent {
            data: NodeData::Bytes(vec![1]),
            subnodes: Subnodes::Tree(tree),
        };
        let shared = tx.put_node(Nid(0x1_0001), Nid(0), &first).unwrap().bid_sub;
        for i in 1..400u32 {
            let content = NodeContent {
                data: NodeData::Bytes(i.to_le_bytes().to_vec()),
                subnodes: Subnodes::Existing(shared),
            };
            tx.put_node(Nid(0x1_0001 + (i << 5)), Nid(0), &content)
                .unwrap();
        }
    }))
}

/// A chain of subnodes, each below the one before.
fn deep() -> Planted {
    Planted::alone(edited(|tx| {
        let nid = Nid(0x1_0001);
        let mut below = Subnodes::None;
        for i in 0..140u32 {
            let content = NodeContent {
                data: NodeData::Bytes(i.to_le_bytes().to_vec()),
                subnodes: below,
            };
            // The deepest is looked at first: what was seen is not looked at again.
            let node = Nid(nid.0 + ((200 - i) << 5));
            let sub = Subnodes::Tree([(nid, content)].into());
            let holder = NodeContent {
                data: NodeData::None,
                subnodes: sub,
            };
            let made = tx.put_node(node, Nid(0), &holder).unwrap();
            below = Subnodes::Existing(made.bid_sub);
        }
    }))
}

/// The name map with one of its properties changed.
fn names(id: u16, edit: impl FnOnce(&mut Vec<u8>), also: &'static [Code]) -> Planted {
    let file = with_props(Nid::NAME_TO_ID_MAP, |bag| {
        let old = bag.get(id).unwrap().clone();
        let mut data = old.data.read(1 << 20).unwrap();
        edit(&mut data);
        bag.insert(PropValue::new(old.tag, data));
    });
    Planted::with(file, also)
}

#[allow(clippy::too_many_lines)] // One arm a code.
pub fn plant(code: Code) -> Planted {
    match code {
        Code::Nodes => structure::plant(Code::NbtPage),
        Code::Subnodes => {
            let also = &[Code::BlockKind, Code::CrefLow];
            Planted::with(structure::plant(Code::BlockKind).file, also)
        }
        Code::Unfolding => unfolding(),
        Code::SubnodeDepth => deep(),
        Code::SubnodeUnused => {
            let mut content = props();
            let Subnodes::Tree(tree) = &mut content.subnodes else {
                panic!("a subnode")
            };
            let value = tree.values().next().unwrap().clone();
            tree.insert(Nid::new(NidType::LTP, 0x777), value);
            Planted::alone(with_node(PROPS, &content))
        }
        Code::Heap => bent_props(|b| b[2] = 0),
        Code::HeapBlock => {
            let content = with_block(long(), 1, |b| b[1] = 0xFF);
            Planted::with(with_node(PROPS, &content), &[Code::PropertyValue])
        }
        Code::HeapMap => {
            let file = with_node(
                PROPS,
                &with_block(props(), 0, |b| {
                    let at = word(b, 0) + 6;
                    b[at] = 2;
                }),
            );
            Planted::with(file, &[Code::Properties, Code::PropertyValue])
        }
        Code::HeapFirstItem => {
            // The first item is the BTH's header: eight bytes are enough of it.
            let content = with_block(long(), 1, |b| {
                let at = word(b, 0) + 4;
                b[at] += 1;
            });
            Planted::alone(with_node(PROPS, &content))
        }
        Code::HeapFreeCount => bent_props(|b| {
            let at = word(b, 0) + 2;
            b[at] = 1;
        }),
        Code::HeapFill => bent_props(|b| b[8] = 7),
        Code::HeapReserved => bent_props(|b| b[3] = 0xAC),
        Code::BthOrder => bent_props(|b| {
            let at = records(b);
            let (first, second) = (b[at..at + 8].to_vec(), b[at + 8..at + 16].to_vec());
            b[at..at + 8].copy_from_slice(&second);
            b[at + 8..at + 16].copy_from_slice(&first);
        }),
        Code::Properties => bent_props(|b| {
            let at = item(b, 1);
            b[at] = 0;
        }),
        Code::PropertyValue => bent_props(|b| {
            let at = records(b) + 6;
            b[at] = 9;
        }),
        Code::PropertySize => bent_props(|b| {
            // The time gets the string's bytes.
            let at = records(b);
            let value = b[at + 4..at + 8].to_vec();
            b[at + 12..at + 16].copy_from_slice(&value);
        }),
        Code::PropertyMulti => {
            let mut value = 2u32.to_le_bytes().to_vec();
            for offset in [12u32, 99] {
                value.extend_from_slice(&offset.to_le_bytes());
            }
            let bag = PropBag::from_iter([PropValue::new(PropTag(0x6801_101F), value)]);
            Planted::alone(with_node(PROPS, &build_pc(&bag, None).unwrap()))
        }
        Code::Table => bent_table(|b| {
            let at = info(b);
            b[at + 8] = 0;
        }),
        Code::TableColumns => bent_table(|b| {
            let at = info(b) + 22;
            let (first, second) = (b[at..at + 8].to_vec(), b[at + 8..at + 16].to_vec());
            b[at..at + 8].copy_from_slice(&second);
            b[at + 8..at + 16].copy_from_slice(&first);
        }),
        Code::TableRow => bent_table(|b| {
            let at = index(b) + 4;
            b[at] = 99;
        }),
        Code::TableRowTwice => {
            let file = with_node(
                TABLE,
                &with_block(table(), 0, |b| {
                    let at = index(b) + 4;
                    b[at] = 1;
                }),
            );
            Planted::with(file, &[Code::TableRowId])
        }
        Code::TableRowId => bent_table(|b| {
            let at = rows(b);
            b[at] ^= 0x40;
        }),
        Code::TableCell => bent_table(|b| {
            // The first column by tag is the number, the second the string's HNID.
            let at = info(b) + 22 + 8;
            let cell = rows(b) + word(b, at + 4);
            b[cell + 2] = 9;
        }),
        Code::TableUnlistedRows => {
            let content = with_block(table(), 0, |b| {
                let at = item(b, 1) + 4;
                b[at..at + 4].fill(0);
            });
            Planted::alone(with_node(TABLE, &content))
        }
        Code::NameMap => names(0x0003, |b| b.truncate(7), &[]),
        Code::NameBuckets => {
            let file = with_props(Nid::NAME_TO_ID_MAP, |bag| {
                bag.insert(PropValue::i32(0x0001, 250));
            });
            Planted::with(file, &[Code::NameBucket, Code::NameStray])
        }
        Code::NameBucket => {
            let file = with_props(Nid::NAME_TO_ID_MAP, |bag| {
                let bucket = bag.iter().find(|v| v.tag.id() >= 0x1000).unwrap().tag.id();
                bag.remove(bucket);
            });
            Planted::alone(file)
        }
        Code::NameStray => {
            let file = with_props(Nid::NAME_TO_ID_MAP, |bag| {
                bag.insert(PropValue::binary(
                    0x1000 + 250,
                    vec![1, 0, 0, 0, 2, 0, 9, 0],
                ));
            });
            Planted::alone(file)
        }
        Code::NameTwice => names(
            0x0003,
            |b| {
                let mut again = b[..8].to_vec();
                again[6..8].copy_from_slice(&77u16.to_le_bytes());
                b.extend_from_slice(&again);
            },
            &[Code::NameBucket],
        ),
        Code::NameUnknown => {
            let bag = PropBag::from_iter([PropValue::i32(0x8FFF, 1)]);
            Planted::alone(with_node(PROPS, &build_pc(&bag, None).unwrap()))
        }
        _ => unreachable!("{code} is of another level"),
    }
}
