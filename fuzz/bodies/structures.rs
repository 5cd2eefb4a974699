//! The `structures` target: one parser each, chosen by the first byte.

use std::sync::{Arc, OnceLock};

use pst::ltp::{
    Heap, NameMap, NodeSource, PropTag, PropType, PropValue, PropertyContext, TableContext,
    TableEdit, Text, filetime_iso, read_bth,
};
use pst::ndb::format::{ANSI, OST_4K, UNICODE};
use pst::ndb::{
    BtPage, CryptMethod, Header, Ndb, NodeContent, NodeData, PageType, Subnodes, verify_page,
};
use pst::{Bid, Bref, Nid, NidType, Pst};

use super::memory;
use super::seeds::{nids, store};
use super::surgery::Patient;

/// How many parsers there are.
pub const KINDS: u8 = 14;

/// Hands the bytes after the first to the parser that the first one chooses.
pub fn structures(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % KINDS {
        0 => drop(Header::parse(rest).map(|h| Header::parse(&h.encode()))),
        1 => pages(rest),
        2 => internal(rest, false),
        3 => internal(rest, true),
        4 => heap(rest),
        5 => properties(rest),
        6 => table(rest),
        7 => drop(NameMap::from_source(&content(rest)).map(|m| m.len())),
        8 => queue(rest),
        9 => values(rest),
        10 => codecs(rest),
        11 => drop(sync::Package::decode(rest)),
        12 => drop(sync::decode_inventory(rest)),
        _ => search_lists(rest),
    }
}

fn pages(rest: &[u8]) {
    let bref = Bref {
        bid: Bid(7),
        ib: 0x4C00,
    };
    for format in [&UNICODE, &ANSI, &OST_4K] {
        let mut page = rest.to_vec();
        page.resize(format.page_size, 0);
        format.put_id(&mut page, format.page_data + format.trailer_bid, bref.bid.0);
        for kind in [PageType::Nbt, PageType::Bbt] {
            let mut page = page.clone();
            pst::ndb::seal_page(format, &mut page, kind, bref.ib, bref.bid);
            let Ok(page) = BtPage::parse(format, page, kind, bref) else {
                continue;
            };
            let _ = page.verify_order::<pst::ndb::BbtEntry>();
            for i in 0..=page.count() {
                let _ = page.child(i);
                let _ = page.leaf::<pst::ndb::NbtEntry>(i);
                let _ = page.leaf::<pst::ndb::BbtEntry>(i);
            }
        }
        for kind in [PageType::AMap, PageType::DList] {
            let _ = verify_page(format, &page, kind, bref.ib, None);
        }
    }
}

/// A file whose data tree or subnode tree of one message has these bytes as its root block.
fn internal(rest: &[u8], subnodes: bool) {
    static ROOTS: OnceLock<(Nid, Bid, Nid, Bid)> = OnceLock::new();
    let (tree, tree_bid, node, sub_bid) = *ROOTS.get_or_init(|| {
        let ndb = Ndb::open(memory(store())).expect("opens");
        let with_sub = nids(store(), NidType::NORMAL_MESSAGE)
            .into_iter()
            .map(|nid| ndb.node(nid).expect("reads").expect("there"))
            .find(|n| !n.bid_sub.is_none())
            .expect("a message with subnodes");
        let tree = ndb
            .blocks()
            .map(|b| b.expect("a block").bref.bid)
            .find(|b| b.is_internal() && ndb.data(*b).is_ok())
            .expect("a data tree");
        (with_sub.nid, tree, with_sub.nid, with_sub.bid_sub)
    });
    let mut file = Patient::new(store().to_vec());
    file.block(if subnodes { sub_bid } else { tree_bid }, |b| {
        let n = rest.len().min(b.len());
        b[..n].copy_from_slice(&rest[..n]);
    });
    let ndb = file.ndb();
    let _ = ndb.data(tree_bid).map(|t| t.read_all(&ndb, 1 << 20));
    let _ = ndb.subnodes(sub_bid);
    if let Ok(pst) = Pst::from_ndb(ndb) {
        let _ = pst.message(node);
        let _ = pst.message(tree);
    }
}

/// Content whose heap has these bytes: the first two say where its first block ends.
fn content(rest: &[u8]) -> NodeSource {
    let (cut, rest) = match rest {
        [a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        short => (0, short),
    };
    let cut = cut.min(rest.len());
    let blocks = if cut == 0 {
        vec![rest.to_vec()]
    } else {
        vec![rest[..cut].to_vec(), rest[cut..].to_vec()]
    };
    let value = NodeContent {
        data: NodeData::Bytes(rest.to_vec()),
        subnodes: Subnodes::None,
    };
    let tree = [(Nid(0x3F), value.clone()), (Nid(0x8025), value)];
    NodeSource::built(NodeContent {
        data: NodeData::Blocks(blocks),
        subnodes: Subnodes::Tree(tree.into_iter().collect()),
    })
}

fn heap(rest: &[u8]) {
    let Ok(heap) = Heap::open(&content(rest)) else {
        return;
    };
    for i in 0..heap.block_count() {
        let Ok(block) = heap.block(i) else { continue };
        for item in 0..=block.1.alloc.min(64) as u16 {
            let _ = heap.item(pst::ltp::Hid::new(i as u16, item));
        }
    }
    let _ = read_bth(&heap, heap.user_root());
}

fn properties(rest: &[u8]) {
    let Ok(pc) = PropertyContext::open_source(&content(rest)) else {
        return;
    };
    let (bag, _) = pc.bag_lenient();
    for value in bag.iter() {
        views(value);
    }
    let _ = pc.bag().map(|bag| pst::ltp::build_pc(&bag, None));
}

fn table(rest: &[u8]) {
    let source = content(rest);
    let Ok(table) = TableContext::open_source(&source) else {
        return;
    };
    let _ = table.all_rows();
    let _ = table.row_ids().next().map(|id| table.row_by_id(id));
    if let Ok(mut edit) = TableEdit::open_source(&source) {
        edit.delete_row(0x20);
        let _ = edit.build(None);
    }
}

/// The search queues and lists of a file, through the check.
fn search_lists(rest: &[u8]) {
    put_raw(Nid::SEARCH_ACTIVITY_LIST, Nid(0), rest);
    put_raw(Nid::SEARCH_DOMAIN_OBJECT, Nid(0), rest);
}

fn queue(rest: &[u8]) {
    let head = rest.first().copied().unwrap_or_default();
    put_raw(Nid::SEARCH_MANAGEMENT_QUEUE, Nid(head.into()), rest);
}

fn put_raw(nid: Nid, parent: Nid, data: &[u8]) {
    let base = Arc::new(Ndb::open(memory(store())).expect("opens"));
    let mut tx = pst::ndb::NdbTransaction::begin(base).expect("begins");
    let content = NodeContent {
        data: NodeData::Bytes(data.to_vec()),
        subnodes: Subnodes::None,
    };
    tx.put_node(nid, parent, &content).expect("puts");
    let file = Arc::new(storage::MemStorage::from(store().to_vec()));
    tx.finish()
        .expect("finishes")
        .commit(&*file)
        .expect("commits");
    super::check(&file.to_vec());
    // An edit of a folder appends to the queue, whatever it holds.
    let file = file.to_vec();
    let Ok(mut tx) = pst::messaging::Transaction::begin(memory(&file)) else {
        return;
    };
    let inbox = nids(&file, NidType::NORMAL_FOLDER)[3];
    let _ = tx.add_message(inbox, None, &super::seeds::message(20, 10), false);
    let _ = tx.finish();
}

/// Every view of a value of every type.
fn values(rest: &[u8]) {
    let Some((kind, bytes)) = rest.split_first() else {
        return;
    };
    const TYPES: [u16; 24] = [
        0x0002, 0x0003, 0x0004, 0x0005, 0x0006, 0x0007, 0x000A, 0x000B, 0x0014, 0x001E, 0x001F,
        0x0040, 0x0048, 0x00FB, 0x00FD, 0x00FE, 0x0102, 0x1002, 0x1003, 0x1014, 0x101E, 0x101F,
        0x1048, 0x1102,
    ];
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    views(&PropValue::new(PropTag::new(0x3001, PropType(kind)), bytes));
}

fn views(value: &PropValue) {
    let _ = (
        value.as_i32(),
        value.as_str(),
        value.as_bool(),
        value.as_bytes(),
    );
    if let Some(bytes) = value.data.bytes() {
        let _ = Text::from_utf16le(bytes);
        if let Some(Ok(time)) = bytes
            .first_chunk()
            .map(|b| Ok::<_, ()>(u64::from_le_bytes(*b)))
        {
            let _ = filetime_iso(time);
        }
    }
}

/// What is encoded is decoded again.
fn codecs(rest: &[u8]) {
    for method in [CryptMethod::None, CryptMethod::Permute, CryptMethod::Cyclic] {
        let mut data = rest.to_vec();
        method.encode(&mut data, Bid(0x1234));
        method.decode(&mut data, Bid(0x1234));
        assert_eq!(data, rest);
    }
}

/// The structures of a small store, each behind its number.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let file = Patient::new(store().to_vec());
    let ndb = file.ndb();
    let page = |ib: u64| file.bytes[ib as usize..ib as usize + 512].to_vec();
    let data = |nid: Nid| {
        let node = ndb.node(nid).expect("reads").expect("a node");
        let tree = ndb.data(node.bid_data).expect("reads");
        tree.read_all(&ndb, 1 << 20).expect("reads")
    };
    let message = nids(store(), NidType::NORMAL_MESSAGE)[1];
    let root = |sub: bool| {
        let node = ndb.node(message).expect("reads").expect("a node");
        let found = ndb.blocks().map(|b| b.expect("a block").bref.bid);
        let tree = found
            .filter(|b| b.is_internal())
            .find(|b| ndb.data(*b).is_ok());
        let bid = if sub { Some(node.bid_sub) } else { tree };
        ndb.block_data(bid.expect("a tree")).expect("reads")
    };
    let whole = |nid: Nid| {
        let mut bytes = vec![0, 0];
        bytes.extend(data(nid));
        bytes
    };
    let inbox = nids(store(), NidType::NORMAL_FOLDER)[3];
    let made = sync::encode_inventory(
        &pst::inventory::Inventory::read(&Pst::open(memory(store())).expect("opens"))
            .expect("reads"),
    );
    let kinds: [(u8, &str, Vec<u8>); 14] = [
        (0, "header", file.bytes[..564].to_vec()),
        (1, "nbt", page(ndb.header().nbt.ib)),
        (1, "bbt", page(ndb.header().bbt.ib)),
        (2, "xblock", root(false)),
        (3, "slblock", root(true)),
        (4, "heap", whole(message)),
        (5, "properties", whole(message)),
        (6, "table", whole(inbox.with_kind(NidType::CONTENTS_TABLE))),
        (7, "names", whole(Nid::NAME_TO_ID_MAP)),
        (8, "queue", data(Nid::SEARCH_MANAGEMENT_QUEUE)),
        (
            9,
            "value",
            b"\x15\x02\0\0\0\x0c\0\0\0\x0e\0\0\0a\0b\0".to_vec(),
        ),
        (10, "codec", b"some data".to_vec()),
        (12, "inventory", made.expect("encodes")),
        (13, "list", vec![0x23, 0x22, 0, 0, 0x22, 0x80, 0, 0]),
    ];
    let mut out = Vec::new();
    for (kind, name, bytes) in kinds {
        let mut seed = vec![kind];
        seed.extend(bytes);
        out.push((name.to_owned(), seed));
    }
    out
}
